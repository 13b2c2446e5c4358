"""Cheaper readings of exits, by ranks that sorting gives; the whole experiment on a tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import shortlist
from ppdmodel.measure.decoder.exit import Exit
from ppdmodel.measure.models.sources import locate
from ppdmodel.measure.prompts import Prompt
from tests.support.runs import measure_flat
from tests.support.trained_exits import TOKENS, TRAINING, WORDS

V, WIDTH, N = 97, 12, 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SIZES", (N, 200)), ("RANKS", (4, 9)), ("CANDIDATES", 10), ("ROWS", 7)):
        monkeypatch.setattr(shortlist, name, value)


def sorted_rank(logits: torch.Tensor, allowed: set[int], target: int) -> int:
    """A token's place among the allowed ones, by sorting; V + 1 if it is not allowed."""
    order = [token for token in logits.argsort(descending=True).tolist() if token in allowed]
    return order.index(target) + 1 if target in order else V + 1


def test_every_reading_ranks_as_sorting_does() -> None:
    torch.manual_seed(0)
    exit_ = Exit(nn.ModuleList([nn.Identity()] * 2), (), nn.Linear(WIDTH, V), softcap=2.0)
    token, prompt = torch.randint(0, V, (23,)), torch.arange(23) // 6
    read = [torch.tensor(sorted(set(torch.randint(0, V, (5,)).tolist()))) for _ in range(4)]
    counts = torch.bincount(torch.randint(0, 40, (50,)), minlength=V)
    readings = shortlist.Readings(exit_, counts, shortlist.Texts(token, prompt, read))
    states = torch.randn(23, WIDTH)
    found = readings.ranks(states[7:19], 7)
    own = set(sorted(range(V), key=lambda t: (-int(counts[t]), t))[:N])
    weight = exit_.weight.detach()
    for row, rank in zip(range(7, 19), zip(*found.values(), strict=True), strict=True):
        its = dict(zip(found, map(int, rank), strict=True))
        target, owner = int(token[row]), int(prompt[row])
        logits = exit_.logits(states[row : row + 1])[0]
        assert its["whole"] == sorted_rank(logits, set(range(V)), target)
        assert its[f"first ids {N}"] == sorted_rank(logits, set(range(N)), target)
        words = own | set(read[owner].tolist())
        so_far = words | set(token[owner * 6 : row].tolist())
        assert its[f"own text {N}"] == sorted_rank(logits, own, target)
        assert its[f"own text, prompt {N}"] == sorted_rank(logits, words, target)
        assert its[f"own text, prompt and text so far {N}"] == sorted_rank(logits, so_far, target)
        scale = weight.abs().max(1, keepdim=True).values / 127
        bias = exit_.bias
        assert bias is not None
        rough = states[row] @ ((weight / scale).round() * scale).T + bias
        assert its["8 bits"] == sorted_rank(rough, set(range(V)), target)
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        rough = states[row] @ (u[:, :4] * s[:4] @ v[:4]).T + bias
        assert its["rank 4"] == sorted_rank(rough, set(range(V)), target)
        best = set(rough.topk(10).indices.tolist())
        assert its["rank 4, then 10 exactly"] == sorted_rank(logits, best, target)
    assert not any("200" in name for name in found), "more than there are"


def test_the_experiment_runs_to_its_end(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judges = [Prompt(f"h{n}", " ".join(WORDS[n : n + 4][::-1])) for n in range(5)]
    whole = measure_flat(
        locate(str(tiny_model)), judges, tmp_path / "m", max_new_tokens=TOKENS, n_threads=1
    )
    monkeypatch.setattr(shortlist, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(shortlist, "DATA", tmp_path)
    monkeypatch.setattr(shortlist, "DEPTHS", (0.5,))
    monkeypatch.setattr(shortlist, "RANKS", (4,))
    monkeypatch.setattr(shortlist, "training_prompts", lambda: TRAINING[:8])
    monkeypatch.setattr(shortlist, "default_prompts", lambda: judges)
    monkeypatch.setattr(shortlist, "REPETITIONS", 3)
    named = locate(str(tiny_model))
    monkeypatch.setattr(shortlist, "locate", lambda _: named)
    monkeypatch.setattr(sys, "argv", ["shortlist", "m", "--threads", "1", "--prompts", "4"])
    shortlist.main()
    document = json.loads((tmp_path / "m-shortlist.json").read_text())
    assert (document["n_prompts"], document["training_prompts"]) == (4, 8)
    rows = document["rows"]
    assert {(row["exits"], row["exit_layer"], row["k"]) for row in rows} == {
        (kind, 2, k) for kind in ("logit", "trained") for k in (1, 5)
    }
    for row in rows:
        if (row["reading"], row["exits"]) == ("whole", "logit"):
            hits = whole.rank[whole.prompt_index < 4, 1] <= row["k"]
            assert row["rate"][0] == pytest.approx(hits.mean(), abs=5e-5), "as it was measured"
        beside = next(
            one for one in rows
            if one["reading"] == "whole" and all(one[n] == row[n] for n in ("exits", "k"))
        )  # fmt: skip
        assert row["loss"][0] == pytest.approx(beside["rate"][0] - row["rate"][0], abs=2e-4)
    assert {"whole", f"own text {N}", "8 bits", "rank 4"} <= document["milliseconds"].keys()
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["trained:", "| reading | ms | exit 2 |"]
    assert len(shown) == 2 * (3 + len({row["reading"] for row in rows}))
