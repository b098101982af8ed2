"""``bigmap simulate``: a world in files, with its truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bigmap import simulate
from bigmap.cli.options import BboxOption, RecipeArgument, SetOption, read_recipe
from bigmap.errors import OutputError
from bigmap.mapping.planning import request_world


def simulate_command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option(help="New folder for all files.", show_default=False)],
    settings: SetOption = [],  # noqa: B006 - typer reads the default
    bbox: BboxOption = None,
    flavour: Annotated[
        str, typer.Option(help=f"Catalogue to imitate: {', '.join(simulate.FLAVOURS)}.")
    ] = "earth-search",
    truth: Annotated[bool, typer.Option(help="Write the truth at 2.5 m too.")] = True,
    max_gb: Annotated[float, typer.Option(min=0, help="Refuse more scenes than this.")] = 20.0,
) -> None:
    """Write simulated scenes of a recipe's area and days, their items, and the truth below."""
    loaded = read_recipe(recipe, settings, bbox, None)
    check_new_folder(out)
    request, area = request_world(loaded, flavour=flavour)
    world = simulate.write_world(
        request,
        out,
        truth_bounds=area.bounds,
        layers=simulate.LAYERS if truth else (),
        max_bytes=int(max_gb * 1e9),
    )
    show_world(Console(highlight=False, soft_wrap=True), world, request)


def check_new_folder(folder: Path) -> None:
    """Refuse a folder that holds something, so that two worlds never mix."""
    try:
        taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be read ({error.strerror})") from None
    if taken:
        raise OutputError(f"--out {folder}: exists and is not empty; choose another folder")


def show_world(console: Console, world: simulate.World, request: simulate.SceneRequest) -> None:
    """Print what was written, and the line of a recipe that reads it."""
    features = json.loads(world.items.read_text())["features"]
    days = {feature["properties"]["datetime"][:10] for feature in features}
    console.print(f"scenes: {len(features)} on {len(days)} days", markup=False)
    for name, file in (
        ("items", world.items),
        ("catalogue", world.catalog),
        ("table", world.table),
    ):
        console.print(f"{name}: {file}", markup=False)
    for name, file in (world.truth | world.polygons).items():
        console.print(f"truth, {name.replace('_', ' ')}: {file}", markup=False)
    mask = next(name for name in features[0]["assets"] if name.lower().startswith("scl"))
    source = {
        "kind": "files",
        "files": [str(world.items.resolve())],
        "start": str(request.start),
        "end": str(request.end),
        "mask": {"kind": "scl", "asset": mask},
    }
    # JSON is YAML too, and stands on one line.
    console.print(f"source: {json.dumps(source, ensure_ascii=False)}", markup=False)
