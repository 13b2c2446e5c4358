"""The application; a command's module is imported only when that command is run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__

#: the commands by the panel of the help in which they are listed
PANELS = {
    "From numbers of your own": ("estimate", "formulas", "explore"),
    "Measure a model": ("measure", "merge", "train-exits", "differ", "models"),
    "Decide": ("fit", "optimize", "compare", "replay", "plot"),
    "Run PPD for real": ("time", "decode", "validate"),
}
COMMANDS = {name: panel for panel, names in PANELS.items() for name in names}


def app_of(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The application with some of the commands, or all of them."""
    app = typer.Typer(
        name="ppdmodel",
        help="Is predictive pipelined decoding worth it, for which exit layer, k and depth?",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_main)
    for name in names:
        word = name.replace("-", "_")
        module = importlib.import_module(f".{word}", __package__)
        if name == "models":  # a group of commands
            app.add_typer(module.models_app, name=name, rich_help_panel=COMMANDS[name])
        else:
            command = getattr(module, f"{word}_command")
            app.command(name, rich_help_panel=COMMANDS[name])(_paths_checked(command))
    return app


def _paths_checked(command: Callable[..., None]) -> Callable[..., None]:
    """A command that refuses paths at which nothing can be before it begins."""

    @wraps(command)
    def checked(**options: Any) -> None:
        for value in options.values():
            for path in value if isinstance(value, list) else (value,):
                if isinstance(path, Path):
                    from ..results.files import check_path

                    check_path(path)
        command(**options)

    return checked


def app_for(argv: Sequence[str]) -> typer.Typer:
    """The application with the command that is asked for; with all of them for help and errors."""
    return app_of(argv[:1] if argv and argv[0] in COMMANDS else COMMANDS)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppdmodel {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Latency and compute of predictive pipelined decoding (PPD)."""
