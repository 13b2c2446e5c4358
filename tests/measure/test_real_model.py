"""The real model, end to end: a small measurement by the command that users type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ppdmodel import Measurement, load
from ppdmodel.measure.models.loading import load_model
from ppdmodel.measure.models.packaged import DEFAULT_MODEL
from ppdmodel.measure.models.sources import locate


def test_the_default_model_loads_aligned_and_without_gradients() -> None:
    """It stands before the next: one process converts the file, and both read the conversion."""
    model = load_model(locate(DEFAULT_MODEL)).model
    assert not [p for p in model.parameters() if p.data_ptr() % 64 or p.requires_grad]
    assert os.environ.get("HF_HUB_OFFLINE") == "1"


def test_smollm2_by_command(tmp_path: Path) -> None:
    out = tmp_path / "m"
    command = [
        sys.executable, "-m", "ppdmodel", "measure", "--model", "smollm2-135m", "--limit", "2",
        "--max-new-tokens", "8", "--out", str(out),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "smollm2-135m: p_correct by exit layer" in done.stdout
    result = load(out)
    assert isinstance(result, Measurement)
    assert result.layers == 30
    assert result.n_tokens == 16
    assert result.provenance["quantization"] == "Q4_1"
    ties = {(tie["prompt_id"], tie["position"]) for tie in result.ties}
    assert int((result.rank[:, -1] != 1).sum()) == len(ties)
    hits = result.hits_by_prompt(5).sum(axis=0)
    assert hits[28, 4] > hits[14, 4] > 0, "late layers know more"
    # The first words of this answer are in the committed measurement too.
    committed = load(Path(__file__).parents[2] / "data" / "smollm2-135m")
    assert isinstance(committed, Measurement)
    first = committed.prompt_index == 0
    assert result.token_id[:8].tolist() == committed.token_id[first][:8].tolist()
