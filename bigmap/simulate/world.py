"""One call that writes scenes, catalogues and truth of an area into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bigmap.errors import OutputError, PlanError
from bigmap.simulate.catalogs import write_geoparquet, write_static_catalog
from bigmap.simulate.scenes import SceneRequest, write_scenes
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
        Gets ``scenes/``, ``catalog/``, ``items.parquet`` and ``truth/``.
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
    items = write_scenes(request, folder / "scenes", max_bytes=max_bytes)
    try:
        return World(
            items=items,
            catalog=write_static_catalog(items, folder / "catalog"),
            table=write_geoparquet(items, folder / "items.parquet"),
            truth=write_truth(
                folder / "truth", request.crs, bounds, seed=request.seed, layers=layers
            ),
            polygons=write_truth_polygons(folder / "truth", request.crs, bounds, seed=request.seed)
            if layers
            else {},
        )
    except OSError as error:
        raise OutputError(f"{folder}: the truth cannot be written ({error.strerror})") from error


def _check_truth(bounds: Bounds) -> None:
    left, bottom, right, top = bounds
    area_km2 = (right - left) * (top - bottom) / 1e6
    if area_km2 > MOST_TRUTH_KM2:
        raise PlanError(
            f"the truth of {area_km2:,.0f} km² is more than the {MOST_TRUTH_KM2:,} km² that can "
            "be written at once; choose a smaller area, or leave out the truth"
        )
