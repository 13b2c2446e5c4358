"""Weights that packages carry: found without importing, joined from parts, checked, never half."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ppdmodel.errors import InvalidInputError, RunFailedError
from ppdmodel.measure.models import packaged as packaged_module
from ppdmodel.measure.models.packaged import (
    PACKAGED,
    PackagedModel,
    find,
    install,
    installed_path,
    part_paths,
    sha256,
    verify,
)
from ppdmodel.measure.models.sources import locate

CHUNKS = (b"GGUF first", b" and second", b" and last")


def fake_model(site: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model in three parts, whose packages are on `sys.path` and refuse to be imported."""
    for n, chunk in enumerate(CHUNKS):
        data = site / f"fake_part{n}" / "data"
        data.mkdir(parents=True)
        (data / f"fake.part{n}").write_bytes(chunk)
        (data.parent / "__init__.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(site))
    return PackagedModel(
        name="fake",
        requirements=tuple(f"fake-part{n}==1.0.0" for n in range(3)),
        parts=tuple((f"fake_part{n}", f"data/fake.part{n}") for n in range(3)),
        filename="fake.gguf",
        sha256=hashlib.sha256(b"".join(CHUNKS)).hexdigest(),
        layers=2,
        quantization="F32",
        license="Fake terms",
        license_url="https://example.org/terms",
        about="nothing",
        accepting="you agree",
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPDMODEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    return fake_model(tmp_path / "site", monkeypatch)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have run; each fails."""
    commands: list[list[str]] = []

    def refuse(command: list[str], check: bool, **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if check:
            raise subprocess.CalledProcessError(7, command)
        return subprocess.CompletedProcess(command, 7)

    monkeypatch.setattr(subprocess, "run", refuse)
    return commands


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_parts_are_joined_into_the_cache(
    fake: PackagedModel, cache: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find(fake) is None
    assert len(part_paths(fake)) == 3
    path, installed_now = install(fake, accept_license=True)
    assert (path, installed_now) == (cache / "fake" / "fake.gguf", True)
    assert path.read_bytes() == b"".join(CHUNKS)
    assert files(cache) == ["fake/fake.gguf"]
    assert find(fake) == installed_path(fake) == path
    verify(path, fake.sha256)
    assert install(fake) == (path, False), "what is there needs no second acceptance"
    monkeypatch.setitem(PACKAGED, "fake", fake)
    assert locate("fake").weights_sha256 == (fake.sha256,)
    assert pip == []
    assert "fake_part0" not in sys.modules


def test_no_acceptance_no_installation(
    fake: PackagedModel, cache: Path, pip: list[list[str]]
) -> None:
    with pytest.raises(
        InvalidInputError, match=r"the licence of fake must be accepted; got no --a"
    ):
        install(fake)
    assert not cache.exists()
    assert pip == []


def test_a_damaged_joined_file_is_made_again(fake: PackagedModel, cache: Path) -> None:
    path, _ = install(fake, accept_license=True)
    path.write_bytes(b"GGUF fir")
    with pytest.raises(RunFailedError, match=r"the sha256 of .*fake\.gguf must be"):
        verify(path, fake.sha256)
    assert install(fake, accept_license=True) == (path, True)
    verify(path, fake.sha256)


def test_a_missing_part_is_installed_by_pip(
    fake: PackagedModel, cache: Path, pip: list[list[str]]
) -> None:
    part_paths(fake)[1].unlink()
    assert part_paths(fake) == ()
    with pytest.raises(
        RunFailedError, match=r"pip must install fake-part0==1\.0\.0 fake-part1==.* 7"
    ):
        install(fake, accept_license=True)
    ((*command, first, second, third),) = pip
    assert [first, second, third] == list(fake.requirements)
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert not cache.exists()


def test_weights_in_one_part_stay_in_their_package(
    fake: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged, they are installed again; no copy is made of them."""
    whole = replace(fake, parts=fake.parts[1:2], sha256=hashlib.sha256(CHUNKS[1]).hexdigest())
    (part,) = part_paths(whole)
    part.write_bytes(b"damaged")
    monkeypatch.setattr(packaged_module, "_pip_install", lambda _: part.write_bytes(CHUNKS[1]))
    assert install(whole, accept_license=True) == (part, True)
    assert find(whole) == part
    assert install(whole) == (part, False)
    assert not cache.exists()


def test_other_parts_are_installed_again_and_never_joined(
    fake: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_paths(fake)[2].write_bytes(b"other")
    asked: list[PackagedModel] = []
    monkeypatch.setattr(packaged_module, "_pip_install", asked.append)
    with pytest.raises(RunFailedError, match=r"joined parts of fake\.gguf must be .*; got "):
        install(fake, accept_license=True)
    assert asked == [fake]
    assert not cache.exists()


def test_packages_without_the_weights_are_named(
    fake: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part_paths(fake)[0].unlink()
    monkeypatch.setattr(packaged_module, "_pip_install", lambda model: None)
    with pytest.raises(RunFailedError, match=r"must carry fake\.gguf; got packages without it"):
        install(fake, accept_license=True)


def test_a_cache_that_cannot_be_written_is_named(
    fake: PackagedModel, cache: Path, pip: list[list[str]]
) -> None:
    (cache / "fake" / "fake.gguf").mkdir(parents=True)  # a folder where the file should be
    with pytest.raises(RunFailedError, match=r"fake\.gguf must be a file; got a folder"):
        install(fake, accept_license=True)
    assert files(cache) == []


def test_sha256_of_parts_is_that_of_the_whole(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, content in zip(paths, (b"x" * (2**20 + 1), b"y"), strict=True):
        path.write_bytes(content)
    assert sha256(*paths) == hashlib.sha256(b"x" * (2**20 + 1) + b"y").hexdigest()


@pytest.mark.parametrize("model", PACKAGED.values(), ids=PACKAGED)
def test_pins_are_exact(model: PackagedModel) -> None:
    assert all(requirement.count("==") == 1 for requirement in model.requirements)
    assert len(model.sha256) == 64
    assert model.license_url.startswith("https://")


def test_finding_models_stays_light() -> None:
    code = (
        "import sys; from ppdmodel.measure.models.packaged import PACKAGED, find; "
        "[find(model) for model in PACKAGED.values()]; "
        "print(*{'torch', 'numpy', 'gguf', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_whole_file_is_read_where_it_is_installed(fake: PackagedModel, cache: Path) -> None:
    one = replace(fake, parts=fake.parts[:1])
    found = find(one)
    assert found is not None
    assert found.read_bytes() == CHUNKS[0]
    assert not cache.exists()
    assert find(replace(one, parts=(("no_such_package", "x"),))) is None
