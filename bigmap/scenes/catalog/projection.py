"""From projected bounds to longitudes: solar days and footprints, also at the antimeridian."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import shapely
import shapely.affinity
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]
_EDGE_POINTS = 8
_WORLD = shapely.box(-180.0, -90.0, 180.0, 90.0)


@lru_cache(maxsize=256)
def is_metric(epsg: int) -> bool:
    """Tell whether an EPSG code is a projected CRS in metres."""
    try:
        crs = CRS.from_epsg(epsg)
    except CRSError:
        return False
    return crs.is_projected and {axis.unit_name for axis in crs.axis_info} == {"metre"}


@lru_cache(maxsize=256)
def _to_lonlat(epsg: int) -> Transformer:
    return Transformer.from_crs(epsg, 4326, always_xy=True)


@lru_cache(maxsize=256)
def _from_lonlat(epsg: int) -> Transformer:
    return Transformer.from_crs(4326, epsg, always_xy=True)


def project_bounds(geometry: BaseGeometry, epsg: int) -> Bounds:
    """Return left, bottom, right, top of a geometry's vertices in a projected CRS.

    Between them its edges are straight in degrees, and would bulge out of a tile's bounds.

    Parameters
    ----------
    geometry
        In degrees, EPSG:4326, longitude first; not empty.
    epsg
        EPSG code of the CRS.

    Raises
    ------
    ValueError
        If it lies where the projection has no coordinates.
    """
    xs, ys = _from_lonlat(epsg).transform(*shapely.get_coordinates(geometry).T)
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        raise ValueError(f"its geometry lies where EPSG:{epsg} has no coordinates")
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def solar_day_of(time: dt.datetime, bounds: Bounds, epsg: int) -> dt.date:
    """Return the day in mean solar time at the centre of a footprint.

    Solar time is UTC plus one hour for each 15 degrees of longitude. The centre is taken in the
    item's CRS, because the mean of the longitudes is wrong for a tile that crosses 180 degrees.

    Parameters
    ----------
    time
        Time of acquisition, with a zone.
    bounds
        Left, bottom, right, top in metres of ``epsg``.
    epsg
        EPSG code of the item's CRS.
    """
    left, bottom, right, top = bounds
    longitude, _ = _to_lonlat(epsg).transform((left + right) / 2, (bottom + top) / 2)
    return (time.astimezone(dt.UTC) + dt.timedelta(hours=longitude / 15)).date()


@lru_cache(maxsize=65536)
def footprint_of(bounds: Bounds, epsg: int) -> BaseGeometry:
    """Return projected bounds as a polygon in degrees, split where it crosses 180 degrees.

    RFC 7946, section 3.1.9: a geometry across the antimeridian is cut in two.

    Parameters
    ----------
    bounds
        Left, bottom, right, top in metres of ``epsg``.
    epsg
        EPSG code of the bounds.

    Returns
    -------
    shapely.geometry.base.BaseGeometry
        Polygon or MultiPolygon in EPSG:4326, longitude first.

    Raises
    ------
    ValueError
        If the bounds are empty, or lie where there are no longitudes.
    """
    left, bottom, right, top = bounds
    if not (left < right and bottom < top and np.isfinite((right - left) + (top - bottom))):
        raise ValueError(f"its grid has no extent: {bounds}")
    box = shapely.segmentize(shapely.box(*bounds), max(right - left, top - bottom) / _EDGE_POINTS)
    transformer = _to_lonlat(epsg)
    xs, ys = shapely.get_coordinates(box).T
    longitudes, latitudes = transformer.transform(xs, ys)
    centre, _ = transformer.transform((left + right) / 2, (bottom + top) / 2)
    if not np.isfinite([*longitudes, *latitudes, centre]).all():
        raise ValueError(f"its grid {bounds} of EPSG:{epsg} is not on Earth")
    unwrapped = centre + (np.asarray(longitudes) - centre + 180.0) % 360.0 - 180.0
    # Beyond a pole its edges cross.
    outline = shapely.make_valid(shapely.Polygon(np.column_stack([unwrapped, latitudes])))
    return turn_into_world(outline)


def turn_into_world(geometry: BaseGeometry) -> BaseGeometry:
    """Turn what lies beyond 180 degrees, east or west, by 360 degrees, and cut it there.

    What lies farther out than a whole turn, or beyond the poles, is lost.
    """
    turned = (shapely.affinity.translate(geometry, xoff=turn) for turn in (-360.0, 0.0, 360.0))
    return shapely.union_all([part.intersection(_WORLD) for part in turned])
