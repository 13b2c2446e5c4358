"""Page 11: splitting and PPD on linked units, held against messages one by one, in fractions."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy

from ppdmodel import (
    calibrated_latency,
    link_break_even,
    ppd_linked_latency,
    simulate,
    tensor_parallel_linked_latency,
)
from ppdmodel.decide.hardware import device, models, shape
from ppdmodel.decide.roofline import ideal_times
from ppdmodel.formulas import symbolic
from tests.support import linked_reference as reference
from tests.support.linked_reference import Model
from tests.theory.latex import THEORY

PAGE = " ".join((THEORY / "11-when-ppd-pays.md").read_text("utf-8").split())


def drawn(rng: random.Random) -> tuple[Model, int, Fraction, Fraction]:
    """A model, an exit that knows its verdict in time, what reading it takes, and a link."""

    def between(low: float, high: float) -> Fraction:
        return Fraction(round(rng.uniform(low, high) * 60), 60)

    while True:
        d = rng.randint(4, 16)
        model = Model(d, between(0.5, 2), between(0, 6))
        exit_layer, reading = rng.randint(d // 2, d), between(0, 6)
        whole = d * model.layer_time + model.head_time
        if 2 * exit_layer * model.layer_time + reading >= whole:
            return model, exit_layer, reading, between(0, 4)


@pytest.mark.parametrize(
    ("all_reduce", "messages"),
    [
        (reference.recursive_doubling, lambda n: math.ceil(math.log2(n))),
        (reference.tree, lambda n: 2 * math.ceil(math.log2(n))),
        (reference.ring, lambda n: 2 * (n - 1)),
    ],
    ids=["recursive doubling", "tree", "ring"],
)
@pytest.mark.parametrize("units", [2, 4, 8])
def test_splitting_message_by_message(
    all_reduce: Callable[..., Any], messages: Callable[[int], int], units: int
) -> None:
    """(11.1), with r = mu delta."""
    rng = random.Random(units)
    for _ in range(10):
        model, *_, link = drawn(rng)
        efficiency, attention = (Fraction(rng.randint(5, 10), 10) for _ in range(2))
        steps = reference.split(
            model, units, all_reduce, link, efficiency=efficiency, attention=attention
        )
        latency = tensor_parallel_linked_latency(
            model.layers, units, model.layer_time, messages(units) * link, model.head_time,
            efficiency,
        )  # fmt: skip
        assert set(steps) == {latency}


def test_one_unit_is_plain_decoding() -> None:
    assert tensor_parallel_linked_latency(30, 1, 1.5, 0, 6) == 30 * 1.5 + 6


@pytest.mark.parametrize("seed", range(40))
def test_ppd_message_by_message(seed: int) -> None:
    """(11.2) with q = 1: the verdict and the keys and values cost nothing."""
    rng = random.Random(seed)
    model, exit_layer, reading, link = drawn(rng)
    units = rng.randint(2, 5)
    matches = [rng.choice([None, *range(units - 1)]) for _ in range(60)]
    steps = reference.ppd(model, exit_layer, reading, units, link, matches)
    miss, match = (
        ppd_linked_latency(
            p, model.layers, exit_layer, link, model.layer_time, model.head_time, reading
        )
        for p in (0, 1)
    )
    assert steps == [miss if hit is None else match for hit in matches[:-1]]


@pytest.mark.parametrize("messages", [1, 2, 3])
def test_ppd_as_the_packages_simulator_has_it(messages: int) -> None:
    """Promotions that wait for messages too are pauses; the head is a last layer."""
    d, e, layer, head, reading, link = 20, 14, 0.5, 2.0, 1.25, 0.5
    run = simulate(
        0.6, d + 1, e, 3, tokens=5000, seed=messages, layer_times=[layer] * d + [head],
        start_delay=reading + link, promotion_delay=(messages - 1) * link,
    )  # fmt: skip
    rate = float((run.first_hit > 0).mean())
    closed = ppd_linked_latency(rate, d, e, link, layer, head, reading, messages)
    assert np.diff(run.finish_times).mean() == pytest.approx(closed, rel=1e-9)


def test_it_is_page_ten_with_one_layer_time() -> None:
    rng = random.Random(5)
    for _ in range(200):
        model, exit_layer, reading, link = drawn(rng)
        tau, p = model.layer_time, rng.random()
        ten = calibrated_latency(
            p, model.layers, exit_layer, tau, tau, tau, model.head_time, reading, start_delay=link
        )
        ours = ppd_linked_latency(p, model.layers, exit_layer, link, tau, model.head_time, reading)
        assert float(ours) == pytest.approx(float(ten), rel=1e-12)


@dataclass(frozen=True)
class Duel:
    """The same units used both ways."""

    p_correct: float
    layers: int
    exit_layer: int
    units: int
    layer_time: float
    head_time: float
    exit_time: float
    efficiency: float
    all_reduce_messages: int
    messages_per_match: int

    def split(self, link: float) -> float:
        return float(
            tensor_parallel_linked_latency(
                self.layers, self.units, self.layer_time, self.all_reduce_messages * link,
                self.head_time, self.efficiency,
            )
        )  # fmt: skip

    def ppd(self, link: float) -> float:
        return float(
            ppd_linked_latency(
                self.p_correct, self.layers, self.exit_layer, link, self.layer_time,
                self.head_time, self.exit_time, self.messages_per_match,
            )
        )  # fmt: skip


def test_the_boundary_is_where_both_take_the_same() -> None:
    """(11.3): equal there, PPD faster right of it and splitting left of it."""
    rng = random.Random(7)
    kinds = set()
    for _ in range(500):
        model, exit_layer, reading, _ = drawn(rng)
        duel = Duel(
            rng.random(), model.layers, exit_layer, rng.randint(2, 8), float(model.layer_time),
            float(model.head_time), float(reading), rng.uniform(0.4, 1), rng.randint(1, 4),
            rng.randint(1, 3),
        )  # fmt: skip
        start = link_break_even(**vars(duel))
        if start > 0:
            assert duel.ppd(start) == pytest.approx(duel.split(start), rel=1e-9)
            assert duel.split(0.99 * start) < duel.ppd(0.99 * start)
        for link in (1.01 * start + 1e-6, 2 * start + 1, 50 * start + 100):
            assert duel.ppd(link) < duel.split(link)
        kinds.add((start > 0, duel.ppd(start) < duel.layers * duel.layer_time + duel.head_time))
    assert kinds >= {(True, True), (True, False), (False, True)}


def test_on_a_free_link() -> None:
    """PPD wins where p > (1 + h/(d tau)) (2 - 1/eta), for two units, e = d/2 and x = h."""
    d, tau, head, eta = (
        symbolic.SYMBOLS[n] for n in ("layers", "layer_time", "head_time", "efficiency")
    )
    gain = (d * tau + head) * (1 - 1 / (2 * eta))
    least = gain / (d * tau / 2)
    assert sympy.simplify(least - (1 + head / (d * tau)) * (2 - 1 / eta)) == 0
    for efficiency in (0.6, 0.7, 0.8):
        rate = (1 + 4 / 40) * (2 - 1 / efficiency)
        for p, wins in ((rate + 0.01, True), (rate - 0.01, False)):
            if p <= 1:
                at = link_break_even(p, 40, 20, 2, 1.0, 4, 4, efficiency)
                assert (at == 0) is wins
    assert link_break_even(1, 40, 20, 2, 1.0, 4, 4) > 0
    assert link_break_even(1, 40, 20, 2, 1.0, 0, 0) == 0


def test_times_scale_together() -> None:
    one = link_break_even(0.7, 40, 20, 4, 1.0, 6, 5, 0.9, 2)
    ten = link_break_even(0.7, 40, 20, 4, 10.0, 60, 50, 0.9, 2)
    assert ten == pytest.approx(10 * one)


def test_the_exit_of_the_map_is_the_earliest_that_it_may_be() -> None:
    """2 e tau + x >= d tau + h with equality."""
    for name in models():
        assert shape(name).layers % 2 == 0
    assert "e = d/2" in PAGE


def boundary(name: str, p: float, units: int) -> float:
    """In microseconds, for the map's assumptions."""
    model = shape(name)
    layer, head = (1e6 * t for t in ideal_times(model, device("H100 SXM")))
    messages = math.ceil(math.log2(units))
    return float(
        link_break_even(p, model.layers, model.layers // 2, units, layer, head, head, 1, messages)
    )


def test_the_table_of_the_page() -> None:
    for name in models():
        model = shape(name)
        layer, head = (1e6 * t for t in ideal_times(model, device("H100 SXM")))
        numbers = [layer, head, *(boundary(name, p, 2) for p in (0.5, 0.7, 0.9, 0))]
        numbers += [boundary(name, p, 4) for p in (0.5, 0.7, 0.9)]
        saves = model.layers / 2 * layer
        cells = [f"{x:.3g}" for x in numbers] + [f"{saves:.3g}" if saves < 1000 else f"{saves:.0f}"]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE


def test_the_words_of_the_page() -> None:
    at = [f"{boundary(name, 0.7, 2):.3g} µs" for name in models()]
    assert f"two devices {at[0]} for 135M parameters, {at[1]} for 7B, {at[2]} for 70B" in PAGE
    assert f"beyond {boundary('SmolLM2 135M', 0, 2):.3g} µs a message" in PAGE
    size = 2 * shape("Llama 2 70B").layer_weights * 80 / 1e9
    assert f"are {size:.0f} GB in 16 bits" in PAGE
    for name in models():
        saves = 1e6 * shape(name).layers / 2 * ideal_times(shape(name), device("H100 SXM"))[0]
        assert 100 < saves / boundary(name, 0.7, 2) < 1000
        assert boundary(name, 0.5, 4) < boundary(name, 0.5, 2)
        assert boundary(name, 0.9, 4) > boundary(name, 0.9, 2)


def test_the_map_is_drawn_for_the_memory_that_the_page_names() -> None:
    found = re.search(r"at the ([\d.]+) TB/s", PAGE)
    assert found is not None
    assert float(found[1]) * 1e12 == device("H100 SXM").bytes_per_s
