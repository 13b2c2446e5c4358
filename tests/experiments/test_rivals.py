"""The comparison of methods runs to its end on a tiny model with trained exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import rivals
from ppdmodel.measure.prompts import Prompt
from tests.pipeline.conftest import TWO_CPUS
from tests.support.runs import command, training, write_prompts


@TWO_CPUS
def test_it_runs_to_its_end(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [Prompt(f"p{n}", "a quick brown fox"[n:]) for n in range(5)]  # it reads bytes
    monkeypatch.setattr(rivals, "default_prompts", lambda: texts)
    monkeypatch.setattr(rivals, "PPD", ((2, 1), (2, 3), (90, 3)))
    monkeypatch.setattr(rivals, "PPD_AND_LOOKUP", ((2, 2),))
    monkeypatch.setattr(rivals, "SELF_SPECULATION", ((2, 1),))
    monkeypatch.setattr(rivals, "LOOKUP", (2,))
    prompts = write_prompts(tmp_path / "prompts.jsonl", 8)
    assert command(*training(tiny_model, prompts, tmp_path / "exits")).code == 0
    out = tmp_path / "rivals.json"
    words = [tmp_path / "exits", "--model", tiny_model, "--choosing", 1, "--judging", 3]
    rivals.main([str(word) for word in [*words, "--tokens", 6, "--out", out]])
    found = json.loads(out.read_text())
    assert (found["chosen_on"], found["judged_on"]) == (["p0"], ["p1", "p2", "p3"])
    assert found["tried"]["PPD"].keys() == {"exit 2, k = 1", "exit 2, k = 3"}
    assert len(found["judged"]) == 7
    for method, judged in found["judged"].items():
        ratios = sorted(row["ratio"] for row in found["rows"] if row["method"] == method)
        assert judged["ratio"][0] == pytest.approx(ratios[1], abs=1e-4)
        low, high = judged["ratio"][1:]
        assert ratios[0] <= low <= high <= ratios[2]
        assert (judged["n_prompts"], judged["n_same"]) == (3, 3)
    shown = capsys.readouterr().out
    assert rivals.table(found) in shown
    assert shown.count("3 of 3") == 7
