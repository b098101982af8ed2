"""From projected bounds to longitudes: solar days and footprints, also at the antimeridian."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]
_EDGE_POINTS = 8


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
    """
    left, bottom, right, top = bounds
    box = shapely.segmentize(shapely.box(*bounds), max(right - left, top - bottom) / _EDGE_POINTS)
    transformer = _to_lonlat(epsg)
    xs, ys = shapely.get_coordinates(box).T
    longitudes, latitudes = transformer.transform(xs, ys)
    centre, _ = transformer.transform((left + right) / 2, (bottom + top) / 2)
    unwrapped = centre + (np.asarray(longitudes) - centre + 180.0) % 360.0 - 180.0
    world = shapely.box(-180.0, -90.0, 180.0, 90.0)
    turned = (
        shapely.Polygon(np.column_stack([unwrapped + turn, latitudes]))
        for turn in (-360.0, 0.0, 360.0)
    )
    return shapely.union_all([polygon.intersection(world) for polygon in turned])
