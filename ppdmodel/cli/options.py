"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..checks import positive_integer
from ..errors import InvalidInputError

if TYPE_CHECKING:
    from ..results.measurement import Guesses

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="D", help="Decoder layers of the model.")
]
ExitLayer = Annotated[
    str | None,
    typer.Option("--exit-layer", metavar="E", help="Layer read for guesses; default D/2 up."),
]
K = Annotated[str, typer.Option("--k", metavar="K", help="Guesses, hence sub-processes, per exit.")]
Depth = Annotated[
    str, typer.Option("--depth", metavar="N", help="Tokens in flight beyond the verified one; inf.")
]


def whole(name: str, text: str) -> int:
    """Read a positive integer from the command line."""
    try:
        return positive_integer(name, int(text))
    except ValueError:
        raise InvalidInputError(
            f"{name} must be a positive integer; got {text}; give 1 or more"
        ) from None


def whole_list(name: str, text: str) -> tuple[int, ...]:
    """Read positive integers that are separated by commas."""
    return tuple(whole(name, part.strip()) for part in text.split(","))


def whole_or_none(name: str, text: str | None) -> int | None:
    """Read a positive integer that may be absent."""
    return None if text is None else whole(name, text)


def depth_value(text: str) -> int | None:
    """Read a depth: a positive integer, or `inf` for unlimited (None)."""
    return None if text.strip().lower() in ("inf", "unlimited") else whole("depth", text)


def refuse(wanted: str, **options: Any) -> None:
    """Refuse options that were given although only another option makes sense of them."""
    for name, value in options.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise InvalidInputError(
                f"{flag} must come with {wanted}; got {value} without it; add {wanted}, or leave "
                f"{flag} out"
            )


def guesses_beside(folder: Path) -> Guesses | None:
    """The guesses of a measurement's folder, where they were recorded."""
    from ..results.files import GUESSES_FILE
    from ..results.io import load_guesses

    return load_guesses(folder) if (folder / GUESSES_FILE).is_file() else None


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))


def note(text: str) -> None:
    """Say something beside the result, on standard error."""
    typer.echo(text, err=True)
