"""The comparison of texts runs to its end on a tiny model with trained exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import exactness
from ppdmodel.measure import load_model, locate
from ppdmodel.measure.prompts import Prompt
from ppdmodel.pipeline.options import PpdSetting
from tests.pipeline.conftest import TWO_CPUS
from tests.support.runs import command, training, write_prompts

COMMITTED = Path(__file__).parents[2] / "data" / "smollm2-135m-exactness.json"


@TWO_CPUS
def test_it_runs_to_its_end(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [Prompt(f"p{n}", "a quick brown fox"[n:]) for n in range(3)]  # it reads bytes
    monkeypatch.setattr(exactness, "default_prompts", lambda: texts)
    prompts = write_prompts(tmp_path / "prompts.jsonl", 8)
    assert command(*training(tiny_model, prompts, tmp_path / "exits")).code == 0
    words = [tmp_path / "exits", "--model", tiny_model, "--prompts", 2, "--tokens", 6]
    out = tmp_path / "exactness.json"
    words += ["--exit-layer", 2, "--k", 3, "--out", out]
    exactness.main([str(word) for word in words])
    found, committed = json.loads(out.read_text()), json.loads(COMMITTED.read_text())
    assert set(found) == set(committed)
    assert set(committed["provenance"]) <= set(found["provenance"])
    assert found["provenance"]["devices"] == ["cpu", "cpu"]
    assert found["provenance"]["exit_kind"] == "trained"
    assert (found["n_prompts"], found["n_texts"], found["n_different"]) == (2, 6, 0)
    assert 2 <= found["n_tokens"] <= 12
    ways = [row["way"] for row in found["rows"]]
    assert ways == ["generate", "e2-k3", "sampled-e2-k3"] * 2
    assert all(row["same"] is True for row in found["rows"])


def test_the_committed_setting() -> None:
    assert PpdSetting(exit_layer=20, k=5) == exactness.SETTING
    ways = {row["way"] for row in json.loads(COMMITTED.read_text())["rows"]}
    assert ways == {"generate", "e20-k5", "sampled-e20-k5"}


def test_a_text_that_differs_is_told(tiny_model: Path) -> None:
    loaded = load_model(locate(str(tiny_model)))
    plain = exactness.generated(loaded, [5, 6, 7], 4)
    assert len(plain) == 4
    other = (*plain[:2], (plain[2] + 1) % 50, plain[3])
    found = exactness.row(loaded, "p", [5, 6, 7], "way", other, plain)
    assert (found["prompt_id"], found["way"], found["same"]) == ("p", "way", False)
    difference = found["difference"]
    assert isinstance(difference, dict)
    assert (difference["position"], difference["plain_token_id"]) == (2, plain[2])
    assert exactness.row(loaded, "p", [5, 6, 7], "way", plain, plain)["same"] is True
