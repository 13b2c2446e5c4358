"""Closed forms of speculative decoding, in layer times and layer executions of the target.

A *round* drafts tokens and verifies them in one pass of the target model, on all drafted positions
and one more. It yields the accepted tokens and one of the target. Verifying a position costs
d layer executions; the positions of one pass run at the same time.
"""

from __future__ import annotations

from . import ops
from .contract import closed_form
from .ops import Operand


@closed_form(equation="8.1", page="08-other-methods")
def speculative_tokens_per_round(acceptance_rate: Operand, draft_tokens: Operand) -> Operand:
    r"""Mean tokens that one round yields: $\sum_{j=0}^{\gamma} \alpha^j$.

    Leviathan et al., arXiv 2211.17192, equation 1.

    Args:
        acceptance_rate: alpha, probability that a drafted token is accepted, given that those
            before it were; in [0, 1], any shape.
        draft_tokens: gamma, tokens drafted per round; a whole number >= 0.

    Returns:
        Tokens, from 1 to gamma + 1.

    >>> round(speculative_tokens_per_round(0.8, 5), 2)
    3.69
    """
    return ops.sum(lambda j: acceptance_rate**j, 0, draft_tokens)


@closed_form(equation="8.2", page="08-other-methods")
def speculative_latency(
    acceptance_rate: Operand, layers: Operand, draft_tokens: Operand, draft_time: Operand = 0
) -> Operand:
    r"""Mean time per token of speculative decoding, in layer times of the target.

    $\Lambda = d\,(\gamma c + 1) / \sum_{j=0}^{\gamma} \alpha^j$.

    Leviathan et al., arXiv 2211.17192, theorem 3.8.

    Args:
        acceptance_rate: alpha; in [0, 1].
        layers: d, decoder layers of the target; positive.
        draft_tokens: gamma, tokens drafted per round; a whole number >= 0.
        draft_time: c, time of a draft step over that of a target step; >= 0.

    Returns:
        Latency per token in layer times; d / latency is the speed-up.

    >>> round(40 / speculative_latency(0.8, 40, 5), 2)
    3.69
    """
    tokens = ops.sum(lambda j: acceptance_rate**j, 0, draft_tokens)
    return layers * (draft_tokens * draft_time + 1) / tokens


@closed_form(equation="8.3", page="08-other-methods")
def speculative_compute(
    acceptance_rate: Operand, layers: Operand, draft_tokens: Operand, draft_compute: Operand = 0
) -> Operand:
    r"""Mean layer executions per token of speculative decoding.

    $C = d\,(\gamma \hat c + \gamma + 1) / \sum_{j=0}^{\gamma} \alpha^j$.

    Leviathan et al., arXiv 2211.17192, theorem 3.11.

    Args:
        acceptance_rate: alpha; in [0, 1].
        layers: d, decoder layers of the target; positive.
        draft_tokens: gamma, tokens drafted per round; a whole number >= 0.
        draft_compute: c-hat, operations of a draft step over those of a target step; >= 0.

    Returns:
        Target-layer executions per token; compute / d is the operations factor.

    >>> round(speculative_compute(0.8, 40, 5) / 40, 2)
    1.63
    """
    tokens = ops.sum(lambda j: acceptance_rate**j, 0, draft_tokens)
    return layers * (draft_tokens * draft_compute + draft_tokens + 1) / tokens


@closed_form(equation="8.4", page="08-other-methods")
def self_speculative_latency(
    acceptance_rate: Operand, layers: Operand, exit_layer: Operand, draft_tokens: Operand
) -> Operand:
    r"""Mean time per token when the model's own first e layers draft, in layer times.

    $\Lambda = (\gamma e + d) / \sum_{j=0}^{\gamma} \alpha^j$, whether or not the verification
    reuses the drafted tokens' first e layers: the last drafted token has run none of them.

    Speculative decoding with c = e/d.

    Args:
        acceptance_rate: alpha, probability that the exit's first guess is the model's token, along
            runs of accepted ones; in [0, 1].
        layers: d, decoder layers; positive.
        exit_layer: e, layers of the draft; 0 < e <= d.
        draft_tokens: gamma, tokens drafted per round; a whole number >= 0.

    Returns:
        Latency per token in layer times.

    >>> round(self_speculative_latency(0.8, 40, 10, 2), 4)
    24.5902
    """
    tokens = ops.sum(lambda j: acceptance_rate**j, 0, draft_tokens)
    return (draft_tokens * exit_layer + layers) / tokens


@closed_form(equation="8.5", page="08-other-methods")
def self_speculative_compute(
    acceptance_rate: Operand,
    layers: Operand,
    exit_layer: Operand,
    draft_tokens: Operand,
    reuse: Operand = 1,
) -> Operand:
    r"""Mean layer executions per token when the model's own first e layers draft.

    $C = [(1-u)\,\gamma e + (\gamma+1)\,d] / \sum_{j=0}^{\gamma} \alpha^j$.

    Speculative decoding with c-hat = (1-u) e/d.

    Args:
        acceptance_rate: alpha, as in `self_speculative_latency`.
        layers: d, decoder layers; positive.
        exit_layer: e, layers of the draft; 0 < e <= d.
        draft_tokens: gamma, tokens drafted per round; a whole number >= 0.
        reuse: u, 1 if the verification reuses the drafted tokens' first e layers, 0 if it runs
            them again.

    Returns:
        Layer executions per token.

    >>> round(self_speculative_compute(0.8, 40, 10, 2), 4)
    49.1803
    """
    tokens = ops.sum(lambda j: acceptance_rate**j, 0, draft_tokens)
    return ((1 - reuse) * draft_tokens * exit_layer + (draft_tokens + 1) * layers) / tokens


@closed_form(equation="8.12", page="08-other-methods")
def tree_speculative_latency(
    tokens_per_round: Operand, layers: Operand, tree_depth: Operand, draft_time: Operand = 0
) -> Operand:
    r"""Mean time per token when a round drafts a tree, one level per draft step, in layer times.

    $\Lambda = d\,(1 + c\,h) / \tau$.

    The tree is that of Sequoia, arXiv 2402.12374.

    Args:
        tokens_per_round: tau, mean tokens of a round; >= 1; `draft_tree` computes it.
        layers: d, decoder layers of the target; positive.
        tree_depth: h, drafted levels below the root; a whole number >= 0.
        draft_time: c, time of a draft step over that of a target step; >= 0.

    Returns:
        Latency per token in layer times.

    >>> tree_speculative_latency(2.5, 40, tree_depth=5, draft_time=0.05)
    20.0
    """
    return layers * (1 + draft_time * tree_depth) / tokens_per_round


@closed_form(equation="8.13", page="08-other-methods")
def tree_speculative_compute(
    tokens_per_round: Operand,
    layers: Operand,
    tree_nodes: Operand,
    drafted_from: Operand,
    draft_compute: Operand = 0,
) -> Operand:
    r"""Mean layer executions per token when a round drafts a tree.

    $C = d\,(n + \hat c\,n_i) / \tau$: the target runs on every node, the draft on those that have
    children.

    Args:
        tokens_per_round: tau, mean tokens of a round; >= 1; `draft_tree` computes it.
        layers: d, decoder layers of the target; positive.
        tree_nodes: n, nodes of the tree, its root included; a whole number >= 1.
        drafted_from: n_i, nodes with children; a whole number >= 0.
        draft_compute: c-hat, operations of a draft step over those of a target step; >= 0.

    Returns:
        Target-layer executions per token.

    >>> tree_speculative_compute(2.5, 40, tree_nodes=10, drafted_from=4, draft_compute=0.05)
    163.2
    """
    return layers * (tree_nodes + draft_compute * drafted_from) / tokens_per_round


@closed_form(equation="8.15", page="08-other-methods")
def prompt_lookup_latency(
    acceptance_rate: Operand,
    layers: Operand,
    draft_tokens: Operand,
    found_rate: Operand = 1,
    verification_time: Operand = 1,
) -> Operand:
    r"""Mean time per token of prompt lookup decoding, in layer times.

    $\Lambda = d\,[1 + f (v - 1)] / (1 + f \sum_{j=1}^{\gamma} \alpha^j)$.

    Speculative decoding with drafts that take no time, where there are any.

    Args:
        acceptance_rate: alpha, probability that a drafted token is accepted, given that those
            before it were; in [0, 1].
        layers: d, decoder layers; positive.
        draft_tokens: gamma, tokens of a draft; a whole number >= 0.
        found_rate: f, share of the rounds with a draft; in [0, 1].
        verification_time: v, time of a pass over gamma + 1 tokens over that of one; >= 0.

    Returns:
        Latency per token in layer times.

    >>> prompt_lookup_latency(0.5, 30, 2, found_rate=0.8)
    18.75
    """
    accepted = ops.sum(lambda j: acceptance_rate**j, 1, draft_tokens) + 0 * acceptance_rate
    return layers * (1 + found_rate * (verification_time - 1)) / (1 + found_rate * accepted)


@closed_form(equation="8.16", page="08-other-methods")
def prompt_lookup_compute(
    acceptance_rate: Operand, layers: Operand, draft_tokens: Operand, found_rate: Operand = 1
) -> Operand:
    r"""Mean layer executions per token of prompt lookup decoding.

    $C = d\,(1 + f \gamma) / (1 + f \sum_{j=1}^{\gamma} \alpha^j)$.

    Args:
        acceptance_rate: alpha, as in `prompt_lookup_latency`.
        layers: d, decoder layers; positive.
        draft_tokens: gamma, tokens of a draft; a whole number >= 0.
        found_rate: f, share of the rounds with a draft; in [0, 1].

    Returns:
        Layer executions per token.

    >>> prompt_lookup_compute(0.5, 30, 2, found_rate=0.8)
    48.75
    """
    tokens = 1 + found_rate * ops.sum(lambda j: acceptance_rate**j, 1, draft_tokens)
    return layers * (1 + found_rate * draft_tokens) / tokens
