"""The AOI of a recipe: polygons of a file or a box -> the CRS of the grid."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio.errors
import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.errors import RecipeError
from bigmap.grid import Area

LONLAT = "EPSG:4326"
EDGE_DEG = 0.05
"""Longest edge of a box before it is projected: straight in degrees is curved on the map."""


def read_area(
    *,
    crs: str,
    bbox: Sequence[float] | None = None,
    file: str | None = None,
    buffer_m: float = 0.0,
    clip_bbox: Sequence[float] | None = None,
) -> Area:
    """Read an AOI into the CRS of the grid.

    Parameters
    ----------
    crs
        Projected CRS in metres.
    bbox, file
        One of both: west, south, east, north in degrees, or a vector file with polygons.
    buffer_m
        How much to grow it, in metres.
    clip_bbox
        A box, in degrees, outside of which nothing is mapped.

    Raises
    ------
    RecipeError
        If the file cannot be read, or holds no polygons or no CRS.
    """
    outline = _box(bbox, crs) if bbox is not None else _read_polygons(file or "", crs)
    if buffer_m:
        outline = outline.buffer(buffer_m)
    parts = [outline] if clip_bbox is None else [outline, _box(clip_bbox, crs)]
    for part in parts:
        if not part.is_valid or part.is_empty or not shapely.is_geometry(part):
            raise RecipeError(f"area: cannot be brought to {crs}; is the CRS made for this place?")
        shapely.prepare(part)
    area = Area(tuple(parts))
    if not area.area_km2 > 0:
        raise RecipeError("area.clip_bbox: does not meet the area, so there is nothing to map")
    return area


def lonlat_of(geometry: BaseGeometry, crs: str) -> BaseGeometry:
    """Bring a geometry to longitude and latitude, cut in two where it crosses the antimeridian.

    Parameters
    ----------
    geometry
        Polygons in ``crs``.
    crs
        Their projected CRS.
    """
    dense = geometry.segmentize(10_000)
    lonlat = gpd.GeoSeries([dense], crs=crs).to_crs(LONLAT).iloc[0]
    west, _, east, _ = lonlat.bounds
    if east - west <= 180:
        return lonlat
    # A ring that jumps from 180 to -180 is whole again when counted from 0 to 360.
    unrolled = shapely.transform(lonlat, _count_from_zero)
    halves = [
        shapely.intersection(unrolled, shapely.box(0, -90, 180, 90)),
        shapely.transform(
            shapely.intersection(unrolled, shapely.box(180, -90, 360, 90)), lambda xy: xy - [360, 0]
        ),
    ]
    return shapely.union_all([half for half in halves if not half.is_empty])


def _count_from_zero(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([lonlat[:, 0] % 360, lonlat[:, 1]])


def _box(bbox: Sequence[float], crs: str) -> BaseGeometry:
    west, south, east, north = bbox
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    boxes = [shapely.box(w, south, e, north).segmentize(EDGE_DEG) for w, e in spans]
    projected = gpd.GeoSeries(boxes, crs=LONLAT).to_crs(crs)
    return shapely.union_all(projected.values)


def _read_polygons(file: str, crs: str) -> BaseGeometry:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            is_parquet = file.lower().endswith((".parquet", ".geoparquet"))
            frame = gpd.read_parquet(file) if is_parquet else gpd.read_file(file)
    except FileNotFoundError:
        raise RecipeError(f"area.file: {file}: no such file") from None
    except (pyogrio.errors.DataSourceError, OSError, ValueError) as error:
        missing = "no such file" in str(error).lower()
        reason = "no such file" if missing else "is not a vector file that can be read"
        raise RecipeError(f"area.file: {file}: {reason}") from None
    if not isinstance(frame, gpd.GeoDataFrame) or frame.crs is None:
        raise RecipeError(f"area.file: {file}: has no CRS, so its place is unknown")
    polygons = frame.geometry[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
    if polygons.empty:
        raise RecipeError(f"area.file: {file}: holds no polygons")
    projected = polygons.to_crs(crs)
    return shapely.union_all(shapely.make_valid(projected.values))
