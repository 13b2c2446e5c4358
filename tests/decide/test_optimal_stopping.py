"""Waiting for a better look: against an exact solution, and against a policy run by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from ppdmodel import load, load_guesses, threshold
from ppdmodel.decide.optimal_stopping import StoppingProblem, Training
from ppdmodel.decide.threshold_policies import Policies
from ppdmodel.results.measurement import Measurement
from tests.conftest import make_measurement
from tests.decide.test_threshold_rule import LAYERS, made_up
from tests.support.tables import repeating_guesses

DATA = Path(__file__).parents[2] / "data"
UNCHANGED = dict.fromkeys(range(3, 6), (1.0, 0.0))


def candidates_of(temperature: float = 1.0) -> StoppingProblem:
    measurement, guesses = made_up(temperature)
    probs = {e: guesses.probs[:, e - 1].astype(float) for e in range(3, 6)}
    return StoppingProblem(measurement, guesses, {e: logit(p) for e, p in probs.items()})


@pytest.mark.parametrize(
    ("last", "exits"),
    [
        (4, (4,)),
        (8, (4, 5, 6, 7, 8)),
        (9, (4, 5, 6, 7, 8)),
        (10, (4, 5, 6, 7, 8)),
        (18, (4, 6, 9, 12, 15)),
    ],
)
def test_at_most_five_exits_are_read(last: int, exits: tuple[int, ...]) -> None:
    """Spaced evenly from the first on; those at hand where they are five or fewer."""
    measurement = make_measurement(prompts=2, tokens=3, layers=20)
    guesses = repeating_guesses(measurement)
    logits = {e: logit(guesses.probs[:, e - 1].astype(float)) for e in range(4, last + 1)}
    assert StoppingProblem(measurement, guesses, logits).exits == exits


def test_a_place_without_a_guess_is_no_candidate() -> None:
    """A vocabulary of five has no eight guesses: the other places have id -1."""
    measurement, guesses = made_up(1.0)
    guesses = replace(guesses, ids=np.where(np.arange(8) < 5, guesses.ids, -1))
    probs = {e: guesses.probs[:, e - 1].astype(float) for e in range(3, 6)}
    found = StoppingProblem(measurement, guesses, {e: logit(p) for e, p in probs.items()})
    known = [{*row.ravel()} - {-1} for row in guesses.ids[:, [e - 1 for e in found.exits]]]
    assert np.bincount(found.row).tolist() == [len(ids) for ids in known]


def test_where_the_next_exit_knows_all_the_threshold_is_exact() -> None:
    r"""At the second exit a candidate is known: q is 0 or 1.

    Starting at the first is worth (d - e_1)((pi + 1) q - 1), waiting q pi (d - e_2): the first is
    more from q = (d - e_1) / ((d - e_1)(pi + 1) - pi (d - e_2)) on. A delay moves both exits later.
    """
    rng = np.random.default_rng(0)
    candidates = candidates_of()
    candidates.exits, candidates.layers = (10, 14), 20
    n = 200_000
    first = rng.random(n)
    candidates.true = rng.random(n) < first
    candidates.row = np.zeros(n, dtype=np.int64)
    q = np.stack([first, np.where(candidates.true, 1.0, 0.0)], axis=1)
    everyone = np.ones(len(candidates.tokens), dtype=bool)
    for price in (0.5, 2.0, 8.0):
        exact = 10 / (10 * (price + 1) - price * 6)
        now, later = candidates.training(q, everyone).thresholds(price)
        assert now == pytest.approx(exact, abs=0.02)
        assert now > threshold(price), "waiting is worth something"
        assert later == 1
    candidates.exits, candidates.delay = (7, 11), 3
    assert candidates.training(q, everyone).thresholds(price) == (now, later)


def test_at_the_last_exit_it_is_the_threshold_of_one() -> None:
    candidates = candidates_of()
    q = candidates.probabilities(UNCHANGED)
    everyone = np.ones(len(candidates.tokens), dtype=bool)
    for price in (1.0, 4.0):
        candidates.true = np.random.default_rng(1).random(len(q)) < np.nanmax(q, axis=1)
        q[:, :-1] = np.nan  # seen at the last exit only
        candidates.true = np.random.default_rng(1).random(len(q)) < q[:, -1]
        thresholds = candidates.training(q, everyone).thresholds(price)
        assert thresholds[:-1] == (np.inf, np.inf)
        assert thresholds[-1] == pytest.approx(threshold(price), abs=0.06)


@pytest.mark.parametrize(
    ("price", "q", "true", "least"),
    [
        (0.0, [0.9], [1], np.inf),  # a match is worth nothing, so nothing is gained
        (0.05, [0.9], [1], 0.9),
        (0.5, [0.9, 0.5, 0.5], [1, 1, 0], 0.9),  # of the equal ones both would start
        (2.0, [0.9, 0.5, 0.5], [1, 1, 0], 0.5),
        (2.0, [0.4, 0.9, 0.6], [0, 0, 1], 0.6),
        (9.0, [0.5, 0.0], [1, 1], 0.5),  # what is no guess of the exit cannot start there
    ],
)
def test_a_threshold_by_hand(price: float, q: list[float], true: list[int], least: float) -> None:
    """Ten layers are left: a match gains 10 x price, a miss costs 10."""
    training = Training(20, [10], np.array(q)[:, None], np.array(true))
    assert training.thresholds(price) == (least,)


def test_exits_that_are_not_read_have_no_threshold() -> None:
    """Nor do they change the others': as if no candidate were seen there."""
    candidates = candidates_of()
    q = candidates.probabilities(UNCHANGED)
    everyone = np.ones(len(candidates.tokens), dtype=bool)
    for read in ([0, 1, 2], [0, 2], [1], []):
        unseen = q.copy()
        unseen[:, [j for j in range(3) if j not in read]] = np.nan
        found = candidates.training(q, everyone).thresholds(2.0, read)
        assert found == candidates.training(unseen, everyone).thresholds(2.0)
        assert [j for j, least in enumerate(found) if np.isfinite(least)] == read


def test_on_real_tokens_it_beats_one_threshold_for_all_exits() -> None:
    """On prompts that it has not seen: the second half by thresholds of the first."""
    name = "smollm2-135m-trained"
    measurement = load(DATA / name)
    assert isinstance(measurement, Measurement)
    table = Policies(measurement, load_guesses(DATA / name))
    half = np.arange(len(measurement.prompt_ids)) % 2 == 0
    fitted = table.calibrated(half)
    q = table.stopping.probabilities(fitted)
    d, exits = measurement.layers, np.array(table.stopping.exits)[:, None]
    for price in (3.0, 8.0):
        costs = []
        for least in (
            table.stopping.training(q, half).thresholds(price),
            (threshold(price),) * len(exits),
        ):
            started, right = (x[:, ~half] for x in table.stopping.started(q, least))
            costs.append(((d - exits) * (started - (price + 1) * right)).sum())
        assert costs[0] < costs[1]


def test_each_guess_is_started_once_by_hand() -> None:
    """Where scale and shift of the logits differ from exit to exit."""
    measurement, guesses = made_up()
    candidates = candidates_of()
    least, fitted = (0.5, 0.4, 0.3), {3: (1.0, 0.0), 4: (0.5, 0.3), 5: (1.4, -0.2)}
    started, right = candidates.started(candidates.probabilities(fitted), least)
    slow = np.zeros((2, 3, len(measurement.prompt_ids)), dtype=np.int64)
    for row in range(measurement.n_tokens):
        running: set[int] = set()
        for j, e in enumerate(candidates.exits):
            scale, shift = fitted[e]
            probs = expit(scale * logit(guesses.probs[row, e - 1].astype(float)) + shift)
            probs /= max(probs.sum(), 1)
            for token, q in zip(guesses.ids[row, e - 1], probs, strict=True):
                if q >= least[j] and int(token) not in running:
                    running.add(int(token))
                    owner = measurement.prompt_index[row]
                    slow[0, j, owner] += 1
                    slow[1, j, owner] += int(token) == measurement.token_id[row]
    assert candidates.exits == (3, 4, 5)
    assert LAYERS == 6
    assert (started == slow[0]).all()
    assert (right == slow[1]).all()
    assert started[1:].sum() > 0
