"""The AOI of a recipe: polygons of a file or a box -> the CRS of the grid."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Proj
from pyproj.exceptions import ProjError
from shapely.geometry.base import BaseGeometry

from bigmap.errors import EmptyAreaError, RecipeError
from bigmap.grid import Area
from bigmap.vectors import open_vector, take_polygons
from bigmap.zones import NEAR_DEG, NORTH_DEG, SOUTH_DEG, UtmZone, all_zones

LONLAT = "EPSG:4326"
EDGE_DEG = 0.05
"""Longest edge of an outline before it is projected: straight in degrees is curved on the map."""
EDGE_M = 5_000
"""The same for outlines in a projected CRS."""
CHOOSE_LAYER = "set area.layer"
CLIP_FIELD = "area.clip_bbox (--bbox)"
FAR_DEG = 30
"""How far east or west of a CRS's own area it may be used: countries wider than a UTM zone are."""
MOST_STRETCH = 2
"""Metres of the CRS for one on the ground, at most: beyond it, ``gsd_m`` means nothing."""


def read_area(
    *,
    crs: str,
    bbox: Sequence[float] | None = None,
    file: str | None = None,
    layer: str | None = None,
    buffer_m: float = 0.0,
    clip_bbox: Sequence[float] | None = None,
    zone: UtmZone | None = None,
) -> Area:
    """Read an AOI into the CRS of the grid.

    Parameters
    ----------
    crs
        Projected CRS in metres.
    bbox, file
        One of both: west, south, east, north in degrees, or a vector file with polygons.
    layer
        Of a file with several; by default a file must have one. A KML's folders are united.
    buffer_m
        How much to grow it, in metres.
    clip_bbox
        A box, in degrees, outside of which nothing is mapped.
    zone
        Beyond whose strip nothing is mapped.

    Raises
    ------
    RecipeError
        If the file cannot be read, holds no polygons or no CRS, or lies where the CRS of the grid
        is not made for.
    """
    if bbox is not None:
        given, field = _box(bbox), "area.bbox"
    else:
        given, field = _read_polygons(file or "", layer), f"area.file: {file}"
    outline = _project(_reduce(given, crs, zone), crs, field=field)
    if buffer_m:
        outline = outline.buffer(buffer_m)
    parts = [outline]
    if clip_bbox is not None:
        parts.append(_project(_reduce(_box(clip_bbox), crs, zone), crs, field=CLIP_FIELD))
    if zone is not None:
        _, south, _, north = lonlat_of(outline, crs).bounds
        # Straight in degrees, curved on the grid.
        strip = gpd.GeoSeries([zone.strip(south, north)], crs=LONLAT)
        parts.append(_project(strip, crs, field=f"zone {zone.name}"))
    for part in parts:
        shapely.prepare(part)
    area = Area(tuple(parts))
    if not area.area_km2 > 0:
        field = CLIP_FIELD if zone is None else f"zone {zone.name}"
        raise EmptyAreaError(f"{field}: does not meet the area, so there is nothing to map")
    return area


def list_utm_zones(
    *,
    bbox: Sequence[float] | None = None,
    file: str | None = None,
    layer: str | None = None,
    buffer_m: float = 0.0,
    clip_bbox: Sequence[float] | None = None,
) -> list[UtmZone]:
    """List the UTM zones in which an AOI may lie, from west to east.

    Parameters
    ----------
    bbox, file, layer, buffer_m, clip_bbox
        As for :func:`read_area`.

    Raises
    ------
    RecipeError
        If the file cannot be read, or the AOI lies beyond 84 degrees north or 80 south.
    """
    field = "area.bbox" if bbox is not None else f"area.file: {file}"
    outline = _in_degrees(
        _box(bbox) if bbox is not None else _read_polygons(file or "", layer), field
    )
    if clip_bbox is not None:
        outline = outline.intersection(shapely.union_all(_box(clip_bbox).values))
        if outline.is_empty:
            raise RecipeError(f"{CLIP_FIELD}: does not meet the area, so there is nothing to map")
    _, south, _, north = outline.bounds
    lat_deg = buffer_m / 110_000
    if not (south - lat_deg >= SOUTH_DEG and north + lat_deg <= NORTH_DEG):
        raise RecipeError(
            f"{field}: reaches {south:.1f} to {north:.1f} degrees north, but UTM ends at "
            f"{SOUTH_DEG} and {NORTH_DEG}; choose a polar CRS for grid.crs, or cut the area"
        )
    lon_deg = lat_deg / np.cos(np.radians(min(84.9, max(abs(south), abs(north)) + lat_deg)))
    shapely.prepare(outline)
    zones = []
    for zone in all_zones():
        strip = _lonlat_span(*zone.reach(lon_deg, lat_deg))
        if outline.intersection(strip).area > 0 or (buffer_m and outline.intersects(strip)):
            zones.append(zone)
    return zones


def _reduce(polygons: gpd.GeoSeries, crs: str, zone: UtmZone | None) -> gpd.GeoSeries:
    """Cut away what lies too far from a zone for its CRS; what suits it stays as it is."""
    if zone is None:
        return polygons
    places = shapely.get_coordinates(polygons.to_crs(LONLAT).values)
    if np.isfinite(places).all() and _suits(crs, places).all():
        return polygons
    west, _, east, _ = zone.reach(NEAR_DEG, 0)
    near = _lonlat_span(west, SOUTH_DEG - 4, east, NORTH_DEG)
    return gpd.GeoSeries([_in_degrees(polygons, "area").intersection(near)], crs=LONLAT)


def _in_degrees(polygons: gpd.GeoSeries, field: str) -> BaseGeometry:
    """Unite polygons in longitude and latitude, cut at the antimeridian."""
    if polygons.crs is not None and polygons.crs.is_projected:
        united = shapely.union_all(shapely.make_valid(polygons.values))
        return lonlat_of(united, polygons.crs.to_wkt())
    try:
        return shapely.union_all(shapely.make_valid(polygons.to_crs(LONLAT).values))
    except ProjError:
        raise RecipeError(f"{field}: has a CRS whose place on the Earth is unknown") from None


def _lonlat_span(west: float, south: float, east: float, north: float) -> BaseGeometry:
    """Return a box whose sides may lie beyond 180 degrees, cut there."""
    boxes = [shapely.box(west + turn, south, east + turn, north) for turn in (-360, 0, 360)]
    return shapely.union_all(boxes).intersection(shapely.box(-180, -90, 180, 90))


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
    if not np.isfinite(shapely.get_coordinates(lonlat)).all():
        return shapely.box(-180, -90, 180, 90)  # it reaches beyond what the CRS can show
    west, south, east, north = lonlat.bounds
    poles = gpd.GeoSeries.from_xy([0, 0], [-90, 90], crs=LONLAT).to_crs(crs)
    if dense.intersects(poles).any():
        holds_south, holds_north = dense.intersects(poles)
        return shapely.box(-180, -90 if holds_south else south, 180, 90 if holds_north else north)
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
    # The cut leaves lines where a part ends on it.
    parts = shapely.get_parts(halves)
    return shapely.union_all(parts[shapely.area(parts) > 0])


def _count_from_zero(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([lonlat[:, 0] % 360, lonlat[:, 1]])


def _box(bbox: Sequence[float]) -> gpd.GeoSeries:
    west, south, east, north = bbox
    spans = [(west, east)] if west < east else [(west, 180.0), (-180.0, east)]
    boxes = [shapely.box(w, south, e, north).segmentize(EDGE_DEG) for w, e in spans]
    return gpd.GeoSeries(boxes, crs=LONLAT)


def _project(polygons: gpd.GeoSeries, crs: str, *, field: str) -> BaseGeometry:
    """Unite polygons in the CRS of the grid, if that is made for their place."""
    try:
        places = shapely.get_coordinates(polygons.to_crs(LONLAT).values)
    except ProjError:
        raise RecipeError(f"{field}: has a CRS whose place on the Earth is unknown") from None
    is_far = ~_suits(crs, places)
    if is_far.any():
        lon, lat = places[is_far][0]
        raise RecipeError(
            f"{field}: reaches {lon:.1f}, {lat:.1f}, for which grid.crs {crs} is not made; "
            "choose another CRS, for example the UTM zone"
        )
    return shapely.union_all(shapely.make_valid(polygons.to_crs(crs).values))


def _suits(crs: str, places: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell at which places, (n, 2) in degrees, a CRS can be used."""
    lon, lat = places.T
    factors = Proj(crs).get_factors(lon, lat)
    most, least = np.asarray(factors.tissot_semimajor), np.asarray(factors.tissot_semiminor)
    with np.errstate(divide="ignore"):
        suits: npt.NDArray[np.bool_] = np.maximum(most, 1 / least) <= MOST_STRETCH
    use = CRS(crs).area_of_use
    if use is not None:
        width = (use.east - use.west) % 360 or 360
        from_middle = (lon - use.west - width / 2 + 180) % 360 - 180
        suits &= np.abs(from_middle) - width / 2 <= FAR_DEG
    return suits


def _read_polygons(file: str, layer: str | None) -> gpd.GeoSeries:
    where = f"area.file: {file}"
    source = open_vector(file, layer, where=where, choose=CHOOSE_LAYER, error=RecipeError)
    frame = source.read(columns=[])
    polygons = gpd.GeoSeries(take_polygons(frame.geometry.to_numpy()), crs=frame.crs)
    polygons = polygons[~polygons.is_empty]
    if polygons.empty:
        raise RecipeError(f"{where}: holds no polygons")
    # Edges are straight in the file's own coordinates, whatever grid they are projected to. Wild
    # numbers are refused later; until then they must not be cut into millions of edges.
    step, most = (EDGE_DEG, 720) if frame.crs.is_geographic else (EDGE_M, 1e8)
    is_place = np.abs(polygons.total_bounds).max() <= most
    return polygons.segmentize(step) if is_place else polygons
