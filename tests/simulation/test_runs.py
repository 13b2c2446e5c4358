"""What simulated and replayed generations come to, by hand."""

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


def made(hits: list[int], times: list[float], work: list[float]) -> Simulation:
    """A generation with these totals."""
    return Simulation(np.array(hits), np.array(times), np.array(work), peak_units=2)


def test_totals_over_tokens_by_hand() -> None:
    """Two texts of 3 and 2 tokens."""
    runs = (made([1, 0], [4, 6, 10], [6, 14, 18]), made([2], [4, 5], [4, 12]))
    result = Replay(policy=Policy((1, 2)), layers=4, generations=runs)
    assert runs[0].latency_per_token == pytest.approx(10 / 3)
    assert runs[0].compute_per_token == pytest.approx(6)
    assert (result.n_tokens, result.latency_per_token, result.compute_per_token) == (5, 3, 6)
    assert result.match_rate == pytest.approx(2 / 3)
    row = result.to_frame().iloc[1]
    assert (row.tokens, row.latency_per_token, row.compute_per_token, row.peak_units) == (
        2,
        2.5,
        6,
        2,
    )


def test_autocorrelation_by_hand() -> None:
    """Matches 1 1 0 and 1 0: p = 3/5; the pairs are (1, 1), (1, 0) and (1, 0)."""
    runs = tuple(made(hits, [4.0] * (len(hits) + 1), [4.0]) for hits in ([1, 1, 0], [3, 0]))
    result = Replay(policy=Policy((1, 2, 3)), layers=4, generations=runs)
    products = 0.4 * 0.4 + 2 * 0.4 * -0.6
    assert result.autocorrelation == pytest.approx(products / 3 / (0.6 * 0.4))


@pytest.mark.parametrize("matches", [[], [[1]], [[1, 1]], [[0, 0]], [[1], [0]], [[1], []]])
def test_autocorrelation_is_undefined_without_pairs_that_vary(matches: list[list[int]]) -> None:
    """Texts of two tokens have no pair; matches that never vary have no variance."""
    runs = tuple(made(hits, [4.0] * (len(hits) + 1), [4.0]) for hits in matches)
    assert Replay(policy=Policy(2), layers=4, generations=runs).autocorrelation is None
