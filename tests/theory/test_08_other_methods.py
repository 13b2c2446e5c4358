"""Page 8: the derivations of the other methods, in symbols."""

from __future__ import annotations

import pytest
import sympy

from ppdmodel import draft_tree, formulas
from ppdmodel.formulas import symbolic
from tests.theory.latex import tagged_equations

alpha, d, c, c_hat, L, e = (
    symbolic.SYMBOLS[n]
    for n in (
        "acceptance_rate", "layers", "draft_time", "draft_compute", "draft_layers", "exit_layer",
    )
)  # fmt: skip


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
def test_a_round_of_speculation(gamma: int) -> None:
    """(8.1) to (8.3): the tokens of a round by the number accepted, then ratios of means."""
    yields = (
        sum((n + 1) * alpha**n * (1 - alpha) for n in range(gamma)) + (gamma + 1) * alpha**gamma
    )
    tokens = symbolic.expr("speculative_tokens_per_round", draft_tokens=gamma)
    assert sympy.expand(yields - tokens) == 0
    latency = symbolic.expr("speculative_latency", draft_tokens=gamma)
    assert sympy.cancel(latency - (gamma * c * d + d) / yields) == 0
    compute = symbolic.expr("speculative_compute", draft_tokens=gamma)
    assert sympy.cancel(compute - ((gamma + 1) * d + gamma * c_hat * d) / yields) == 0


@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_self_speculation_is_speculation_with_its_own_layers(gamma: int) -> None:
    """(8.4) and (8.5): c = e/d, and c-hat = (1-u) e/d."""
    ours = symbolic.expr("self_speculative_latency", draft_tokens=gamma)
    theirs = symbolic.expr("speculative_latency", draft_tokens=gamma, draft_time=e / d)
    assert sympy.cancel(ours - theirs) == 0
    for reuse, ratio in ((1, 0), (0, e / d)):
        ours = symbolic.expr("self_speculative_compute", draft_tokens=gamma, reuse=reuse)
        theirs = symbolic.expr("speculative_compute", draft_tokens=gamma, draft_compute=ratio)
        assert sympy.cancel(ours - theirs) == 0


@pytest.mark.parametrize("most", [1, 2, 4])
def test_drafts_of_varying_length(most: int) -> None:
    """A gate that is open with probability s: layers by layers, against the means of G and tau."""
    s = sympy.Symbol("s", positive=True)
    time = work = tokens = drafted = sympy.Integer(0)
    for number in range(most + 1):
        chance = s**number * (1 - s if number < most else 1)
        # number tokens and, where the gate closed, one below it have run e layers one by one
        steps = number + (number < most)
        positions = [e] * steps + [0] * (number + 1 - steps)
        assert len(positions) == number + 1
        deepest = d if 0 in positions else d - e
        time += chance * (steps * e + deepest)
        work += chance * (steps * e + sum(d - ran for ran in positions))
        tokens += chance * sum(alpha**j for j in range(number + 1))
        drafted += chance * number
    assert sympy.expand(time - (drafted * e + d)) == 0
    assert sympy.expand(work - (drafted + 1) * d) == 0
    at_most = {s: 1}  # always open: (8.4) and (8.5)
    ours = symbolic.expr("self_speculative_latency", draft_tokens=most)
    assert sympy.cancel((time / tokens).subs(at_most) - ours) == 0
    ours = symbolic.expr("self_speculative_compute", draft_tokens=most, reuse=1)
    assert sympy.cancel((work / tokens).subs(at_most) - ours) == 0


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
def test_prompt_lookup_by_its_rounds(gamma: int) -> None:
    """(8.15) and (8.16): rounds with and without a draft; (8.2) and (8.3) where all have one."""
    f, v = (symbolic.SYMBOLS[n] for n in ("found_rate", "verification_time"))
    by_accepted = (
        sum((n + 1) * alpha**n * (1 - alpha) for n in range(gamma)) + (gamma + 1) * alpha**gamma
    )
    tokens = f * by_accepted + (1 - f) * 1
    time, work = f * v * d + (1 - f) * d, f * (gamma + 1) * d + (1 - f) * d
    latency = symbolic.expr("prompt_lookup_latency", draft_tokens=gamma)
    assert sympy.cancel(latency - time / tokens) == 0
    compute = symbolic.expr("prompt_lookup_compute", draft_tokens=gamma)
    assert sympy.cancel(compute - work / tokens) == 0
    always = {f: 1, v: 1}
    theirs = symbolic.expr("speculative_latency", draft_tokens=gamma, draft_time=0)
    assert sympy.cancel(latency.subs(always) - theirs) == 0
    theirs = symbolic.expr("speculative_compute", draft_tokens=gamma, draft_compute=0)
    assert sympy.cancel(compute.subs(always) - theirs) == 0
    # the gain over plain decoding, as the page states it
    extra = f * (by_accepted - 1) - f * (v - 1)
    assert sympy.cancel((d / latency - 1) * time / d - extra) == 0


@pytest.mark.parametrize("gamma", [1, 2, 3, 6])
def test_the_two_modes_of_parallel_drafting(gamma: int) -> None:
    """(8.6) and (8.7): the chain of the modes is solved, then tokens and work per cycle."""
    one, many = sympy.symbols("one many")
    stays = alpha**gamma
    shares = sympy.solve(
        [
            sympy.Eq(one, one * (1 - alpha) + many * (1 - stays)),
            sympy.Eq(one + many, 1),
        ],
        [one, many],
    )
    by_rejection = sum((n + 1) * alpha**n * (1 - alpha) for n in range(gamma)) + gamma * stays
    tokens = shares[one] + shares[many] * by_rejection
    work = d * (shares[one] + shares[many] * gamma) + gamma * c_hat * d
    cycle = d * sympy.Max(1, gamma * c)
    latency = symbolic.expr("parallel_draft_latency", block_tokens=gamma)
    assert sympy.cancel((latency - cycle / tokens) / sympy.Max(1, gamma * c)) == 0
    compute = symbolic.expr("parallel_draft_compute", block_tokens=gamma)
    assert sympy.cancel(compute - work / tokens) == 0
    assert sympy.cancel(shares[one] / shares[many] - (1 - stays) / alpha) == 0
    # tokens between rejections: cycles per rejection times tokens per cycle
    rejections = shares[one] * (1 - alpha) + shares[many] * (1 - stays)
    assert sympy.cancel(tokens / rejections - 1 / (1 - alpha)) == 0


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
def test_a_pipeline_by_its_verdicts(stages: int) -> None:
    """(8.8) and (8.9): one cycle after a right token, n after a wrong one, which drops n-1."""
    cycle = d / stages + L
    latency = cycle * (alpha * 1 + (1 - alpha) * stages)
    ours = symbolic.expr("pipelined_latency", stages=stages)
    assert sympy.cancel(ours - latency) == 0
    flushed = sum(sympy.Rational(n, stages) * d + L for n in range(1, stages))
    compute = d + L + (1 - alpha) * flushed
    assert sympy.cancel(symbolic.expr("pipelined_compute", stages=stages) - compute) == 0
    # the speed-up as SPD states it for PPSD
    accepted = stages / (alpha + (1 - alpha) * stages)
    assert sympy.cancel(d / ours - accepted * d / (L * stages + d)) == 0


@pytest.mark.parametrize("stages", [1, 2, 4, 5, 10])
def test_a_pipeline_is_ppd_with_one_guess(stages: int) -> None:
    """PPD at k = 1, e = d/n, unlimited depth, p = alpha: latency and compute."""
    for layers in (stages, 4 * stages):
        at = {"layers": layers, "exit_layer": layers // stages, "depth": None, "p_correct": alpha}
        ppd = symbolic.expr("latency_per_token", **at)
        ours = symbolic.expr("pipelined_latency", layers=layers, stages=stages, draft_layers=0)
        assert sympy.expand(ppd - ours) == 0
        ppd = symbolic.expr("compute_per_token", **at, k=1).doit()
        ours = symbolic.expr("pipelined_compute", layers=layers, stages=stages, draft_layers=0)
        assert sympy.expand(ppd - ours) == 0
        assert sympy.cancel(layers / symbolic.expr("latency_per_token", **at)
                            - stages / (alpha + stages * (1 - alpha))) == 0  # fmt: skip


def test_tensor_parallel_holds_its_units_all_the_time() -> None:
    """(8.10) and (8.11): N times the latency is d / eta; the work is d."""
    units, eta = (symbolic.SYMBOLS[n] for n in ("units", "efficiency"))
    latency = symbolic.expr("tensor_parallel_latency")
    assert sympy.simplify(units * latency - d / eta) == 0
    assert sympy.simplify(symbolic.expr("tensor_parallel_compute") - d) == 0


@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_a_chain_is_a_tree(gamma: int) -> None:
    """(8.12) to (8.14) with one rank are (8.1) to (8.3)."""
    tree = draft_tree([0.7], gamma + 1)
    tau = tree.tokens_per_round
    assert (tree.nodes, tree.depth, tree.drafted_from) == (gamma + 1, gamma, gamma)
    assert tau == pytest.approx(formulas.speculative_tokens_per_round(0.7, gamma))
    latency = formulas.tree_speculative_latency(tau, 40, tree.depth, 0.1)
    assert latency == pytest.approx(formulas.speculative_latency(0.7, 40, gamma, 0.1))
    compute = formulas.tree_speculative_compute(tau, 40, tree.nodes, tree.drafted_from, 0.1)
    assert compute == pytest.approx(formulas.speculative_compute(0.7, 40, gamma, 0.1))


def test_the_best_tree_obeys_its_recursion() -> None:
    """(8.14), with two ranks, by trying every division of the nodes."""
    assert "T(n_b, h - 1)" in tagged_equations("08-other-methods.md")["8.14"]
    rates = (0.5, 0.3)

    def best(nodes: int, levels: int) -> float:
        if levels == 0 or nodes <= 1:
            return 1.0
        values = [1.0]
        for first in range(1, nodes):
            values.append(1 + rates[0] * best(first, levels - 1))
            for second in range(1, nodes - first):
                children = (best(first, levels - 1), best(second, levels - 1))
                values.append(1 + sum(q * x for q, x in zip(rates, children, strict=True)))
        return max(values)

    for nodes in range(1, 9):
        for levels in range(1, 5):
            tree = draft_tree(rates, nodes, levels)
            assert tree.tokens_per_round == pytest.approx(best(nodes, levels))
            assert tree.depth <= levels
