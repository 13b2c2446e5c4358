"""What the page computes, in a real browser, is what Python computes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

import ppdmodel as ppd
from ppdmodel import formulas
from ppdmodel.decide.estimate import required_p_correct
from tests.show.explorer.conftest import Open

TOLERANCE = 1e-9
GRID: list[dict[str, Any]] = [
    {"p": p, "layers": d, "exit": e, "k": k, "depth": depth, "overhead": o, "tokens": n}
    for p, (d, e), k, depth, (o, n) in itertools.product(
        (0.0, 0.13, 0.5, 0.87, 1.0),
        ((1, 1), (6, 1), (40, 20), (41, 9), (80, 79), (30, 30)),
        (1, 3, 8),
        (1, 2, 4, None),
        ((0.0, 1), (0.7, 40)),
    )
]


def python_says(s: dict[str, Any]) -> dict[str, Any]:
    found = ppd.estimate(s["p"], s["layers"], s["exit"], s["k"], s["depth"], overhead=s["overhead"])
    total = formulas.expected_total_latency(s["p"], s["layers"], s["exit"], s["tokens"], s["depth"])
    return found | {"expected_total_latency": total + s["overhead"] * s["tokens"]}


def test_the_numbers_of_a_grid_of_settings(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    found = page.evaluate("grid => grid.map((s) => quantities(s))", GRID)
    assert len(found) == len(GRID) == 720
    for s, numbers in zip(GRID, found, strict=True):
        expected = python_says(s)
        expected["saved"] = s["layers"] - expected["latency_per_token"]
        for name, value in numbers.items():
            wanted = expected[name]
            close = wanted if wanted is None else pytest.approx(wanted, rel=TOLERANCE)
            assert value == close, (s, name)


def test_the_match_rate_to_break_even(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    settings = [s for s in GRID if s["p"] == 0.5 and s["k"] == 1]
    for target in (1, 1.3, 4):
        found = page.evaluate("([all, t]) => all.map((s) => neededRate(s, t))", [settings, target])
        for s, rate in zip(settings, found, strict=True):
            expected = required_p_correct(target, s["layers"], s["exit"], s["depth"], s["overhead"])
            assert rate == (None if expected is None else pytest.approx(expected, abs=TOLERANCE))


def test_the_distribution_of_the_total(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    script = """s => {
      const t = totalLatency(s.p, s.layers, s.exit, s.tokens, s.depth);
      const quantiles = [0.01, 0.5, 0.95, 0.99, 1].map(t.quantile);
      return {times: t.times, probabilities: t.probabilities, mean: t.mean, std: t.std, quantiles};
    }"""
    for p, (d, e), depth, tokens in itertools.product(
        (0.0, 0.3, 0.8, 1.0), ((40, 20), (40, 9), (12, 1)), (1, 2, None), (1, 2, 60, 400)
    ):
        s = {"p": p, "layers": d, "exit": e, "depth": depth, "tokens": tokens}
        found, expected = page.evaluate(script, s), ppd.total_latency(p, d, e, tokens, depth)
        likely = {t: q for t, q in zip(*map(list, expected.pmf()), strict=True) if q > 1e-200}
        ours = dict(zip(found["times"], found["probabilities"], strict=True))
        assert {t: ours[t] for t in likely} == pytest.approx(likely, rel=TOLERANCE)
        assert found["mean"] == pytest.approx(expected.mean, rel=TOLERANCE)
        assert found["std"] == pytest.approx(expected.std, rel=TOLERANCE, abs=1e-6)
        assert found["quantiles"] == [expected.quantile(q) for q in (0.01, 0.5, 0.95, 0.99, 1)]


def test_the_pipeline_is_the_simulators(open_page: Open, plain: str) -> None:
    page, rng = open_page(plain), random.Random(5)
    names = ("token", "generation", "count", "started", "ended", "verified")
    for _ in range(80):
        layers, k, depth = rng.randint(1, 12), rng.randint(1, 4), rng.choice([1, 2, 3, None])
        exit_layer = rng.randint(1, layers)
        hits = [rng.random() < 0.6 for _ in range(rng.randint(0, 9))]
        found = page.evaluate(
            "([h, d, e, k, depth]) => runSchedule(h, d, e, k, depth)",
            [hits, layers, exit_layer, k, depth],
        )
        policy = ppd.Policy(exit_layer, k, depth)
        (run,) = ppd.replay(hits, policy, layers=layers, record=True).generations
        assert found["finishes"] == run.finish_times.tolist()
        assert found["work"] == run.work_done[-1]
        assert found["peak"] == run.peak_units
        assert run.processes is not None
        expected = [{name: getattr(one, name) for name in names} for one in run.processes]
        assert found["processes"] == expected


def test_what_real_units_cost(open_page: Open, plain: str) -> None:
    """Against the recursion, which holds for every exit: the page must know where it stops."""
    page, rng = open_page(plain), random.Random(6)
    inside = 0
    for _ in range(300):
        d, k, p = rng.randint(4, 60), rng.randint(1, 8), rng.random()
        e = rng.randint(-(-d // 3), d)
        costs = {
            "head_time": rng.uniform(0, 8),
            "exit_time": rng.uniform(0, 3),
            "token_time": rng.uniform(0, 1),
            "start_delay": rng.uniform(0, 1),
            "promotion_delay": rng.uniform(0, 1),
            "busy_layer_time": rng.uniform(1, 2),
            "batch_layer_time": rng.uniform(1, 3),
        }
        setting = {"p": p, "layers": d, "exit": e, "k": k, "depth": 1, "costs": costs}
        found, outside = page.evaluate("s => [withCosts(s), outsideCosts(s)]", setting)
        head = costs["head_time"]
        unwanted = ("token_time", "promotion_delay")
        work = {name: cost for name, cost in costs.items() if name not in unwanted}
        assert (outside == "") == (formulas.calibrated_head_start(d, e, **work) <= e)
        if outside:
            continue
        inside += 1
        plain_latency = formulas.calibrated_plain_latency(d, 1.0, head, costs["token_time"])
        latency = formulas.calibrated_early_latency(p, d, e, 1.0, **costs, unfinished=0.5)
        assert found["normalized_latency"] == pytest.approx(latency / plain_latency, rel=TOLERANCE)
        assert found["speedup"] == pytest.approx(plain_latency / latency, rel=TOLERANCE)
        compute = formulas.calibrated_compute(p, d, e, k, **work)
        plain_compute = formulas.calibrated_plain_compute(d, 1.0, head)
        assert found["normalized_compute"] == pytest.approx(compute / plain_compute, rel=TOLERANCE)
        even = formulas.calibrated_break_even(d, e, 1.0, plain_head_time=head, **costs)
        expected = pytest.approx(even, rel=TOLERANCE) if 0 <= even <= 1 else None
        assert found["break_even"] == expected
    assert 50 < inside < 290


def test_intervals_are_those_of_estimate(
    open_page: Open, measured: str, calibration: ppd.Calibration
) -> None:
    page = open_page(measured)
    for e, k, depth in ((19, 3, 1), (24, 5, 1), (5, 2, 1), (28, 8, 2)):
        said = ppd.estimate_from(calibration, e, k, depth)
        setting = {"layers": 30, "exit": e, "k": k, "depth": depth, "overhead": 0, "tokens": 9}
        rate = page.evaluate("s => measuredRate(RESULTS[0], s.exit, s.k)", setting)
        found = page.evaluate("([s, r]) => ranges(s, r.low, r.high)", [setting, rate])
        for name in ("p_correct", "latency_per_token", "speedup", "compute_per_token"):
            ends = [said[name]["ci_low"], said[name]["ci_high"]]
            rel = TOLERANCE if name == "p_correct" else 1e-5  # a share of a percentile's step
            assert found[name] == pytest.approx(ends, rel=rel), (e, k, name)


def test_no_interval_where_a_quantity_is_undefined(open_page: Open, plain: str) -> None:
    page = open_page(plain)
    setting = {"layers": 30, "exit": 20, "k": 3, "depth": 1, "overhead": 0, "tokens": 9}
    assert page.evaluate("s => ranges(s, 0, 0.2).exchange_rate", setting) is None
    setting["overhead"] = 2  # latency passes that of plain decoding at p = 0.2
    assert page.evaluate("s => ranges(s, 0.11, 0.31).exchange_rate", setting) is None
    assert page.evaluate("s => ranges(s, 0.3, 0.4).exchange_rate", setting) is not None


def test_the_measured_rates_and_the_best_setting(
    open_page: Open, measured: str, calibration: ppd.Calibration
) -> None:
    page = open_page(measured)
    budgets = [1.1, 1.5, 2, 3, 5, 12]
    decision = ppd.optimize(calibration, max_compute=budgets, ideal=True)
    for budget, choice in zip(budgets, decision.choices, strict=True):
        assert choice.setting is not None
        best = page.evaluate("b => bestWithin(measuredSettings(RESULTS[0], 1, 0), b)", budget)
        assert (best["exit"], best["k"]) == (choice.setting.exit_layer, choice.setting.k)
        rate = page.evaluate(f"measuredRate(RESULTS[0], {best['exit']}, {best['k']})")
        interval = choice.setting.p_correct
        assert rate["value"] == pytest.approx(interval.value, rel=TOLERANCE)
        assert rate["low"] == calibration.ci_low[best["exit"] - 1, best["k"] - 1]
        setting = {"layers": 30, "exit": best["exit"], "k": best["k"], "depth": 1}
        setting |= {"overhead": 0, "tokens": 9}
        spread = page.evaluate(
            "([s, r]) => ranges(s, r.low, r.high).normalized_latency", [setting, rate]
        )
        exit_layer, k = choice.setting.exit_layer, choice.setting.k
        latency = ppd.estimate_from(calibration, exit_layer, k)["normalized_latency"]
        assert spread == pytest.approx([latency["ci_low"], latency["ci_high"]], rel=TOLERANCE)


def test_a_frontier_is_what_no_setting_beats(open_page: Open, measured: str) -> None:
    page = open_page(measured)
    all_of, front = page.evaluate(
        "(() => {const all = measuredSettings(RESULTS[0], 2, 0.5); return [all, frontier(all)];})()"
    )
    for one in all_of:
        beaten = any(
            q["compute"] <= one["compute"] and q["latency"] <= one["latency"] for q in front
        )
        assert beaten or one["latency"] >= 1
