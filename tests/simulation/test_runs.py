"""What a run comes to: totals, match rate, autocorrelation, a table."""

from __future__ import annotations

import numpy as np
import pytest

from ppdmodel import Measurement, Policy, replay, simulate
from ppdmodel.simulation.runs import Replay, Simulation


def test_autocorrelation_of_a_replay_is_that_of_its_matches() -> None:
    run = simulate(0.5, 4, 2, tokens=50_000, autocorrelation=0.6, seed=1)
    result = replay(run.first_hit.tolist(), Policy(2), layers=4)
    assert result.autocorrelation == pytest.approx(0.6, abs=0.02)
    assert result.generations[0].finish_times.tolist() == run.finish_times.tolist()
    assert replay([], Policy(2), layers=4).match_rate is None
    assert replay([True, True], Policy(2), layers=4).autocorrelation is None


def test_a_replay_is_a_table_of_texts(measurement: Measurement) -> None:
    result = replay(measurement, Policy(4, k=2))
    frame = result.to_frame()
    assert len(frame) == len(result.generations)
    mean = (frame.tokens * frame.latency_per_token).sum() / frame.tokens.sum()
    assert mean == pytest.approx(result.latency_per_token)


def test_totals_of_two_texts_by_hand() -> None:
    """d = 4, e = 2, k = 2: a match and a miss, then one token alone."""
    policy = Policy(2, 2)
    runs = [replay(hits, policy, layers=4).generations[0] for hits in ([True, False], [])]
    result = Replay(policy, 4, tuple(runs))
    assert runs[0].latency_per_token == pytest.approx(10 / 3)
    assert runs[0].compute_per_token == pytest.approx(18 / 3)
    assert (runs[0].tokens, runs[1].tokens, result.n_tokens) == (3, 1, 4)
    assert result.latency_per_token == (10 + 4) / 4
    assert result.compute_per_token == (18 + 4) / 4
    assert result.match_rate == 1 / 2
    assert result.autocorrelation == -1


def test_autocorrelation_is_counted_within_texts() -> None:
    """Two texts of which each is alike inside: p = 1/2, and no pair reaches over their border."""
    policy = Policy(2)
    runs = [replay([hit] * 3, policy, layers=4).generations[0] for hit in (True, False)]
    assert Replay(policy, 4, tuple(runs)).autocorrelation == 1


def made(hits: list[int], times: list[float], work: list[float]) -> Simulation:
    """A generation with these totals."""
    return Simulation(np.array(hits), np.array(times), np.array(work), peak_units=2)


@pytest.mark.parametrize("matches", [[], [[1]], [[1, 1]], [[0, 0]], [[1], [0]], [[1], [0], []]])
def test_autocorrelation_is_undefined_without_pairs_that_vary(matches: list[list[int]]) -> None:
    """Texts of two tokens have no pair; matches that never vary have no variance."""
    runs = tuple(made(hits, [4.0] * (len(hits) + 1), [4.0]) for hits in matches)
    assert Replay(policy=Policy(2), layers=4, generations=runs).autocorrelation is None
