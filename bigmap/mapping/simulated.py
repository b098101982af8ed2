"""The scenes of a simulated source, as a plan needs them: listed, never rendered."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigmap import grid, simulate
from bigmap.config import Recipe
from bigmap.config.sources import FilesSource, SimulatedSource
from bigmap.grid import Area, Lattice
from bigmap.mapping.windows import Windowing
from bigmap.models import MapModel

CACHE_LIMIT = "source.cache_gb"


def request_scenes(
    recipe: Recipe,
    *,
    lattice: Lattice,
    model: MapModel,
    windowing: Windowing,
    area: Area,
    flavour: str = "earth-search",
) -> simulate.SceneRequest:
    """Return the simulated scenes that an area would be mapped from, whatever the source is.

    Parameters
    ----------
    flavour
        Catalogue whose ways the items follow, of :data:`bigmap.simulate.FLAVOURS`.
    """
    source = recipe.source
    default = SimulatedSource(kind="simulated", start=source.start, end=source.end)
    simulated = source if isinstance(source, SimulatedSource) else default
    # Cells choose their dates as wholes, and blending sees the cells around them too.
    context_px = windowing.halo_px(model.spec, lattice)
    context_px += lattice.cell_px if windowing.overlap == "blend" else 0
    cells = grid.grow(lattice.snap(area.bounds, lattice.cell_px), context_px)
    request = simulate.SceneRequest(
        crs=lattice.crs,
        bounds=lattice.bounds(cells),
        start=source.start,
        end=source.end,
        bands=model.spec.bands,
        seed=simulated.seed,
        scene_px=simulated.scene_px,
    )
    return replace(request, flavour=flavour)


def list_scenes(source: SimulatedSource, request: simulate.SceneRequest) -> simulate.SceneStock:
    """List what a simulated source needs and what of it is there.

    Raises
    ------
    PlanError
        If nothing was acquired, or the cache cannot hold it.
    """
    max_bytes = int(source.cache_gb * 1e9)
    simulate.check_size(request, max_bytes, limit=CACHE_LIMIT)
    return simulate.SceneStock.of(request, simulated_cache(source), max_bytes=max_bytes)


def forecast_items(
    source: SimulatedSource, scenes: simulate.SceneStock
) -> tuple[FilesSource, list[tuple[Any, str]]]:
    """Turn a simulated source into the file that lists its items, and what that holds or will."""
    (request,) = scenes.requests
    file = str(simulate.locate_items(request, scenes.cache))
    common = source.model_dump(exclude={"kind", "seed", "scene_px", "cache", "cache_gb"})
    items = simulate.forecast_items(request, scenes.cache)
    return FilesSource(kind="files", files=(file,), **common), [(item, file) for item in items]


def simulated_cache(source: SimulatedSource) -> Path:
    """Return the folder of simulated scenes."""
    if source.cache is not None:
        return Path(source.cache)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bigmap" / "scenes"
