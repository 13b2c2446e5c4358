"""The commands, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from .compare import compare_command
from .decode import decode_command
from .differ import differ_command
from .estimate import estimate_command
from .explore import explore_command
from .fit import fit_command
from .formulas import formulas_command
from .measure import measure_command
from .merge import merge_command
from .models import models_app
from .optimize import optimize_command
from .plot import plot_command
from .replay import replay_command
from .time import time_command
from .train_exits import train_exits_command
from .validate import validate_command

app = typer.Typer(
    name="ppdmodel",
    help="Is predictive pipelined decoding worth it, for which exit layer, k and depth?",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppdmodel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Latency and compute of predictive pipelined decoding (PPD)."""


_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "From numbers of your own": {
        "estimate": estimate_command,
        "formulas": formulas_command,
        "explore": explore_command,
    },
    "Measure a model": {
        "measure": measure_command,
        "merge": merge_command,
        "train-exits": train_exits_command,
        "differ": differ_command,
    },
    "Decide": {
        "fit": fit_command,
        "optimize": optimize_command,
        "compare": compare_command,
        "replay": replay_command,
        "plot": plot_command,
    },
    "Run PPD for real": {
        "time": time_command,
        "decode": decode_command,
        "validate": validate_command,
    },
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(models_app, name="models", rich_help_panel="Measure a model")
