"""What a plan must not do: cover nothing or too much, or write among its inputs."""

from __future__ import annotations

import math
from pathlib import Path

from bigmap import grid
from bigmap.config import Recipe
from bigmap.config.sources import SimulatedSource
from bigmap.errors import CatalogError, EmptyAreaError, PlanError, RecipeError
from bigmap.grid import ROI, Lattice
from bigmap.mapping.loads import most_items
from bigmap.mapping.plans import Part
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.simulated import simulated_cache
from bigmap.scenes.catalog.hrefs import is_url, path_of

MOST_BLOCKS = 1_000_000
"""Ten times a map of Europe."""


def check_size(extent: ROI, lattice: Lattice) -> None:
    """Refuse what would take hours to list before anything is found out."""
    blocks = math.prod(math.ceil(side / lattice.block_px) for side in grid.shape_of(extent))
    if blocks > MOST_BLOCKS:
        raise PlanError(
            f"area: needs {blocks:,} blocks, more than {MOST_BLOCKS:,}; raise grid.block_px or "
            "grid.gsd_m, or map it in parts"
        )


def check_pixels(part: Part) -> None:
    """Refuse an area so small that no pixel has its centre in it."""
    # The first block nearly always holds one; only specks are looked at whole.
    if not any(part.count_km2(block) for block in part.blocks):
        raise EmptyAreaError(
            "area: holds no pixel of the grid, since no centre of a pixel of "
            f"{part.lattice.output_gsd_m:g} m lies in it; give a larger area, or set area.buffer_m"
        )


def check_coverage(part: Part) -> None:
    """Refuse items that lie elsewhere."""
    if not most_items(part):
        raise CatalogError(
            f"area: none of the {len(part.catalogue.rows)} items found meets the area; check "
            "area, grid.crs and source"
        )


def check_inputs(recipe: Recipe, purpose: Purpose) -> None:
    """Refuse an output among the inputs, where --overwrite would delete what is read."""
    output, field = purpose.path, purpose.field
    if is_url(output):
        return
    target, source = Path(output).resolve(), recipe.source
    if isinstance(source, SimulatedSource):
        cache = simulated_cache(source).resolve()
        if target in cache.parents or target.is_relative_to(cache):
            raise RecipeError(
                f"{field}: {output} lies among the scenes in {cache}; choose another place"
            )
    for file in _list_inputs(recipe):
        if file.is_relative_to(target):
            raise RecipeError(f"{field}: {output} holds the input {file}; choose another place")


def check_scenes(part: Part) -> None:
    """Refuse an output that holds a file of a scene, or lies in the folder of one scene.

    Elsewhere it may lie beside them: in the folder of all scenes, or where the list of items is.
    """
    output, field = part.purpose.path, part.purpose.field
    if is_url(output):
        return
    target, spelt = Path(output).resolve(), Path(output).absolute()
    rows = [row for place in {target, spelt} for row in part.catalogue.rows.find_around(place)]
    folders: dict[Path, set[str]] = {}
    for row in rows:
        for asset in row.assets.values():
            if not is_url(asset.href):
                folders.setdefault(Path(asset.href).parent, set()).add(row.id)
    shared = {file.parent for file in _list_inputs(part.recipe)}
    for folder, items in folders.items():
        real = folder.resolve()
        if real.is_relative_to(target):
            raise RecipeError(f"{field}: {output} holds the scenes in {real}; choose another")
        if target.is_relative_to(real) and len(items) == 1 and real not in shared:
            raise RecipeError(
                f"{field}: {output} lies among the files of {min(items)} in {real}; choose "
                "another place"
            )


def _list_inputs(recipe: Recipe) -> list[Path]:
    """Return the files of this machine that a recipe names, without links."""
    places = [*getattr(recipe.source, "files", ()), recipe.area.file, recipe.model.weights]
    paths = [path_of(place) for place in places if place]
    return [Path(path).resolve() for path in paths if path]
