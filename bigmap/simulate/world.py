"""One call that writes scenes, catalogues and truth of an area into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bigmap.errors import OutputError, PlanError
from bigmap.simulate.catalogs import write_geoparquet, write_static_catalog
from bigmap.simulate.files import fill_folder
from bigmap.simulate.requests import SceneRequest
from bigmap.simulate.scenes import write_scenes
from bigmap.simulate.tiles import Bounds
from bigmap.simulate.truth import LAYERS
from bigmap.simulate.truth_files import write_truth, write_truth_polygons

MOST_TRUTH_KM2 = 1000
"""Of truth written at once: outlining its polygons takes about 20 bytes for each pixel."""


@dataclass(frozen=True)
class World:
    """Where the files of a simulated area lie."""

    items: Path
    """STAC ItemCollection."""
    catalog: Path
    """Static STAC catalogue."""
    table: Path
    """The items as stac-geoparquet."""
    truth: dict[str, Path]
    """COG of each layer of the truth at 2.5 m."""
    polygons: dict[str, Path]
    """GeoParquet of ``parcels`` and ``buildings``."""


def write_world(
    request: SceneRequest,
    folder: Path,
    *,
    truth_bounds: Bounds | None = None,
    layers: tuple[str, ...] = LAYERS,
    max_bytes: int | None = None,
) -> World:
    """Write the scenes of a request, their catalogues, and the truth below them.

    Parameters
    ----------
    request
        Its CRS is also that of the truth.
    folder
        New or empty; gets ``scenes/``, ``catalog/``, ``items.parquet`` and ``truth/`` at the
        very end, so that it never holds half a world.
    truth_bounds
        Area of the truth; by default that of the request.
    layers
        Of the truth; none: no polygons either.
    max_bytes
        Limit of the scenes' size.

    Raises
    ------
    PlanError, OutputError
        As :func:`bigmap.simulate.scenes.write_scenes`, or if the truth does not fit into memory.
    """
    bounds = truth_bounds or request.bounds
    if layers:
        _check_truth(bounds)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder}: exists and is not empty; choose another folder")
        with fill_folder(folder) as unfinished:
            world = _write_files(request, unfinished, bounds, layers, max_bytes)
    except OSError as error:
        raise OutputError(f"{folder}: the world cannot be written ({error.strerror})") from error
    return _move(world, unfinished, folder)


def _write_files(
    request: SceneRequest,
    folder: Path,
    bounds: Bounds,
    layers: tuple[str, ...],
    max_bytes: int | None,
) -> World:
    crs, seed, truth = request.crs, request.seed, folder / "truth"
    items = write_scenes(request, folder / "scenes", max_bytes=max_bytes)
    return World(
        items=items,
        catalog=write_static_catalog(items, folder / "catalog"),
        table=write_geoparquet(items, folder / "items.parquet"),
        truth=write_truth(truth, crs, bounds, seed=seed, layers=layers),
        polygons=write_truth_polygons(truth, crs, bounds, seed=seed) if layers else {},
    )


def _move(world: World, old: Path, new: Path) -> World:
    def move(file: Path) -> Path:
        return new / file.relative_to(old)

    return World(
        items=move(world.items),
        catalog=move(world.catalog),
        table=move(world.table),
        truth={name: move(file) for name, file in world.truth.items()},
        polygons={name: move(file) for name, file in world.polygons.items()},
    )


def _check_truth(bounds: Bounds) -> None:
    left, bottom, right, top = bounds
    area_km2 = (right - left) * (top - bottom) / 1e6
    if area_km2 > MOST_TRUTH_KM2:
        raise PlanError(
            f"the truth of {area_km2:,.0f} km² is more than the {MOST_TRUTH_KM2:,} km² that can "
            "be written at once; choose a smaller area, or leave out the truth"
        )
