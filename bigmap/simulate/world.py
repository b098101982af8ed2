"""One call that writes scenes, catalogues and truth of an area into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bigmap.errors import OutputError
from bigmap.simulate.catalogs import write_geoparquet, write_static_catalog
from bigmap.simulate.scenes import SceneRequest, write_scenes
from bigmap.simulate.tiles import Bounds
from bigmap.simulate.truth import LAYERS
from bigmap.simulate.truth_files import write_truth, write_truth_polygons


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
) -> World:
    """Write the scenes of a request, their catalogues, and the truth below them.

    Parameters
    ----------
    request
        Its CRS is also that of the truth.
    folder
        Gets ``scenes/``, ``catalog/``, ``items.parquet`` and ``truth/``.
    truth_bounds
        Area of the truth; by default that of the request.

    Raises
    ------
    PlanError, OutputError
        As :func:`bigmap.simulate.scenes.write_scenes`.
    """
    items = write_scenes(request, folder / "scenes")
    bounds = truth_bounds or request.bounds
    try:
        return World(
            items=items,
            catalog=write_static_catalog(items, folder / "catalog"),
            table=write_geoparquet(items, folder / "items.parquet"),
            truth=write_truth(
                folder / "truth", request.crs, bounds, seed=request.seed, layers=layers
            ),
            polygons=write_truth_polygons(folder / "truth", request.crs, bounds, seed=request.seed),
        )
    except OSError as error:
        raise OutputError(f"{folder}: the truth cannot be written ({error.strerror})") from error
