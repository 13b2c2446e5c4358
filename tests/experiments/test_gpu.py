"""The script for a GPU machine: its steps, their limits, and what it writes, here on CPUs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments import gpu
from ppdmodel.pipeline import timing as timing_module
from ppdmodel.pipeline.random_weights import random_source
from ppdmodel.results.io import load_timing
from tests.conftest import make_tiny_llama
from tests.pipeline.conftest import TWO_CPUS, _quick_processes  # noqa: F401
from tests.pipeline.test_random_weights import TINY


def test_the_steps_on_one_gpu_on_two_and_on_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    one = [step.name for step in gpu.steps("cuda", tmp_path, ["1b"])]
    assert one == ["tests", "throughput", "model default one-gpu", "model 1b one-gpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    two = [step.name for step in gpu.steps("cuda", tmp_path, ["1b"])]
    assert two == [*one, "model default two-gpus", "model 1b two-gpus"]
    assert gpu.places("cuda")["two-gpus"] == "cuda:0,cuda:1"
    on_cpus = gpu.steps("cpu", tmp_path, ["a/config.json"])
    assert [step.name for step in on_cpus][2:] == ["model default cpu", "model a/config.json cpu"]
    assert on_cpus[-1].command[-4:] == ("--step", "model", "a/config.json", "cpu")
    assert sum(gpu.LIMITS.values()) < 60 * gpu.MINUTES


def test_a_step_that_fails_or_takes_too_long_does_not_lose_the_others(tmp_path: Path) -> None:
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(late)!r}).touch()"
    slow = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    ran = gpu.run_all(
        [
            gpu.Step(name, (sys.executable, "-S", "-c", code), limit)
            for name, code, limit in (
                ("slow", slow, 1.0),
                ("wrong", "print(1); raise ValueError('no')", 60.0),
                ("right", "print('a' * 5000)", 60.0),
                ("no time", "", 0.0),
            )
        ],
        600,
    )
    done = list(ran)
    assert [row["ok"] for row in done] == [False, False, True, False]
    errors = ["took longer than 1 s", "ValueError: no", "", "no time was left"]
    assert [row["error"] for row in done] == errors
    assert done[2]["output"] == "a" * gpu.KEPT
    time.sleep(max(0.0, begin + 4 - time.monotonic()))
    assert not late.exists(), "what a step started is killed with it"


def test_a_gpu_that_is_not_there_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    words = "error: there must be a GPU that torch can use; got none; give --device cpu"
    assert capsys.readouterr().err.splitlines()[-1].endswith(words)
    assert not (tmp_path / "out").exists()


def test_all_is_written_with_its_provenance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"ok": True, "error": "", "seconds": 1.0, "output": "x"}
    monkeypatch.setattr(gpu, "run_step", lambda command, limit: about)
    words = ["--device", "cpu", "--out", str(tmp_path), "--shapes", "--minutes", "16"]
    assert gpu.main(words) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [row["name"] for row in found["steps"]] == ["tests", "throughput", "model default cpu"]
    assert found["steps"][0]["limit_s"] == 2 * gpu.LIMITS["tests"]
    assert found["cuda_graphs"] is False
    assert found["provenance"]["packages"]["torch"] == torch.__version__
    about = about | {"ok": False, "error": "no memory"}
    assert gpu.main(words) == 1
    assert "FAILED throughput: no memory" in capsys.readouterr().out


def test_throughput_of_a_model_and_of_its_shape_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(TINY | {"max_position_embeddings": 2048}))
    monkeypatch.setattr(gpu, "MODEL", str(tmp_path / "missing" / "model.gguf"))
    monkeypatch.setattr(gpu, "MODEL_SHAPE", str(tmp_path / "shape.json"))
    monkeypatch.setitem(gpu.BATCH, "cpu", (2, 6))
    assert gpu.measure_throughput("cpu", tmp_path) == 0
    found = json.loads((tmp_path / "throughput.json").read_text())
    assert found["provenance"]["model"] == "shape with random weights"
    assert 0 < found["tokens"] <= 12
    assert found["tokens_per_s"] == pytest.approx(found["tokens"] / found["seconds"])
    (tmp_path / "tiny").mkdir()
    monkeypatch.setattr(gpu, "MODEL", str(make_tiny_llama(tmp_path / "tiny")))
    assert gpu.default_model("float32").source.name == "tiny"


@TWO_CPUS
def test_a_shape_is_timed_and_run_with_planted_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"num_hidden_layers": 8, "hidden_size": 256, "intermediate_size": 1024}
    (tmp_path / "Tiny 1.json").write_text(json.dumps(TINY | sizes))
    monkeypatch.setattr(timing_module, "MAX_SPREAD", 10.0)
    monkeypatch.setattr(timing_module, "EXIT_DEPTHS", (0.25,))
    monkeypatch.setattr(gpu, "REPEATS", 1)
    assert gpu.run_model("cpu", tmp_path, str(tmp_path / "Tiny 1.json"), "cpu") == 0
    timing = load_timing(tmp_path / "timing-tiny-1-cpu.json")
    assert timing.has_random_weights
    assert tuple(timing.by_k) == gpu.KS
    found = json.loads((tmp_path / "planted-tiny-1-cpu.json").read_text())
    assert found["provenance"]["random_weights"]["config"]["num_hidden_layers"] == 8
    rows = found["rows"]
    assert {row["exit_layer"] for row in rows} == {4, 6}
    assert len(rows) == 2 * len(gpu.PLANTED_KS) * len(gpu.SHARES)
    for row in rows:
        assert row["same_text"]
        assert row["n_trials"] == 22
        assert row["n_matched"] + row["n_late"] == 22 * row["planted"]
        assert len(row["latency_s"]) == 1
    assert len(found["plain_latency_s"]) == len(found["split_latency_s"]) == 1


def test_a_test_that_does_not_run_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n\n@pytest.mark.skip\ndef test_zq1(): pass\n\ndef test_zq2(): pass\n"
    )
    monkeypatch.setattr(
        gpu, "TEST_FILES", (str(test), "-c", os.devnull, "--rootdir", str(tmp_path))
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, code in (("test_zq1", 1), ("test_zq2", 0)):
        monkeypatch.setattr(gpu, "TESTS", {"cpu": name})
        assert gpu.run_tests("cpu", tmp_path) == code
    assert "a test must have run; got none of: test_zq1" in capsys.readouterr().out


def test_names_and_configurations_of_shapes(tmp_path: Path) -> None:
    assert gpu.shape_name("Llama 2 7B") == "llama-2-7b"
    assert gpu.shape_name("a/My Shape/config.json") == "my-shape"
    assert gpu.shape_name("a/b.json") == "b"
    assert gpu.config_of("Llama 2 7B", tmp_path) == "Llama 2 7B"
    assert json.loads(Path(gpu.config_of("1b", tmp_path)).read_text()) == gpu.BILLION
    for name, config in gpu.CONFIGS.items():
        about = random_source(gpu.config_of(name, tmp_path)).random_weights
        assert about is not None
        assert about["config"] == config
