"""Make the virtual environments of the rivals: `python -m benchmarks.rivals.envs [NAME ...]`.

Each rival gets a Python of its own, with the versions of constraints.txt (so the same torch and
Transformers as this project, and torch's CPU build where the index has one).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "rivals"
CONSTRAINTS = ROOT / "constraints.txt"
#: what pip installs in each rival's environment
RIVALS = {
    "tuned_lens": "tuned-lens==0.2.0",
    "transformer_lens": "transformer-lens==4.3.0",
    "nnsight": "nnsight==0.8.1",
}
#: in an environment once everything is installed in it
STAMP = ".installed"


def python(name: str, folder: Path = FOLDER) -> Path:
    """The Python of a rival's environment, made or not."""
    return folder / name / "bin" / "python"


def create(name: str, folder: Path = FOLDER) -> Path:
    """Make a rival's environment, unless it is there already; return its Python.

    Raises:
        RuntimeError: the rival does not install; the message has pip's last lines.
    """
    stamp = folder / name / STAMP
    wanted = f"{RIVALS[name]}\n{CONSTRAINTS.read_text()}"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        command = [str(python(name, folder)), "-m", "pip", "install", "--quiet"]
        command += ["--disable-pip-version-check", "-c", str(CONSTRAINTS), RIVALS[name]]
        _run(name, [sys.executable, "-m", "venv", "--clear", str(folder / name)])
        _run(name, command)
        stamp.write_text(wanted)
    return python(name, folder)


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise RuntimeError(
            f"{name} must install; got exit code {done.returncode} from {' '.join(command)}:\n"
            f"{last}"
        )


def main() -> None:
    """Make the named environments, or all; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description="Make the virtual environments of the rivals.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(RIVALS)}")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where; default build/rivals")
    arguments = parser.parse_args()
    names = arguments.names or list(RIVALS)
    if unknown := set(names) - set(RIVALS):
        parser.error(f"rivals are {', '.join(RIVALS)}; got {', '.join(sorted(unknown))}")
    failed = False
    for name in names:
        try:
            print(f"{name}: {create(name, arguments.folder.resolve())}", flush=True)
        except RuntimeError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
