"""Options that several commands share, and the recipe that they lead to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bigmap.config import Recipe, load_recipe, parse_recipe
from bigmap.config.areas import check_lonlat_bbox
from bigmap.errors import RecipeError

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe, a YAML file.", show_default=False)]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the recipe.")
]
BboxOption = Annotated[
    str | None,
    typer.Option("--bbox", metavar="W,S,E,N", help="Only inside this box, in degrees."),
]
SourceOption = Annotated[
    str | None,
    typer.Option("--source", metavar="simulated", help="Use simulated scenes instead."),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster", metavar="FILE", help="Cluster file, or its name: slurm-cpu, local-cuda."
    ),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with what was begun.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start anew.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def read_recipe(
    path: Path,
    settings: list[str],
    bbox: str | None,
    source: str | None,
    *,
    cluster: str | None = None,
) -> Recipe:
    """Load a recipe and apply the options that all commands share."""
    if source not in (None, "simulated"):
        raise RecipeError(f"--source {source}: only simulated can be asked for here")
    recipe = load_recipe(path, settings, simulated=source is not None, cluster=cluster)
    if bbox is None:
        return recipe
    raw = recipe.model_dump(mode="json")
    raw["area"]["clip_bbox"] = parse_bbox(bbox)
    return parse_recipe(raw, origin=str(path))


def parse_bbox(text: str) -> list[float]:
    """Read west,south,east,north in degrees."""
    try:
        values = [float(value) for value in text.split(",")]
        if len(values) != 4:
            raise ValueError("four numbers are needed")
        check_lonlat_bbox(values)
    except ValueError as error:
        raise RecipeError(
            f"--bbox {text!r}: write it as west,south,east,north in degrees ({error})"
        ) from None
    return values
