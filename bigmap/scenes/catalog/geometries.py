"""Geometries of items, from GeoJSON or WKB, refused where GEOS would not survive them."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import shapely
from shapely.geometry.base import BaseGeometry

MOST_NESTED = 16
"""Levels of collections in collections. GEOS reads them by recursion: some thousand levels, which
fit in 20 kB, overflow its stack and end the process without an error."""

_HAS_Z, _HAS_M, _HAS_SRID = 0x80000000, 0x40000000, 0x20000000
_POINT, _LINE, _POLYGON, _COLLECTIONS = 1, 2, 3, range(4, 8)


def read_geometry(value: object) -> BaseGeometry:
    """Read a geometry, GeoJSON as a mapping or WKB as bytes.

    Raises
    ------
    ValueError
        If it is neither, or its collections are nested deeper than :data:`MOST_NESTED`.
    shapely.errors.ShapelyError
        If GEOS cannot read it.
    """
    if isinstance(value, Mapping):
        _check_geojson(value)
        return shapely.geometry.shape(value)
    if isinstance(value, bytes):
        _check_wkb(value)
        return shapely.from_wkb(value)
    raise ValueError("its geometry is neither GeoJSON nor WKB")


def _check_geojson(geometry: Mapping[str, object]) -> None:
    level: list[Mapping[str, object]] = [geometry]
    for _ in range(MOST_NESTED):
        children = [part.get("geometries") or () for part in level]
        level = [child for group in children for child in group]  # type: ignore[attr-defined]
        if not level:
            return
    raise ValueError(f"its geometry is nested deeper than {MOST_NESTED} levels")


def _check_wkb(wkb: bytes) -> None:
    """Walk through the geometries of OGC's or PostGIS's binary form without recursion."""
    offset, waiting = 0, [1]  # geometries that are still to be read, at each level
    try:
        while waiting:
            if not waiting[-1]:
                waiting.pop()
                continue
            waiting[-1] -= 1
            order = "<" if wkb[offset] else ">"
            (code,) = struct.unpack_from(f"{order}I", wkb, offset + 1)
            offset += 9 if code & _HAS_SRID else 5
            dimensions, kind = divmod(code & 0xFFFF, 1000)
            ordinates = 2 + (dimensions + 1) // 2 + bool(code & _HAS_Z) + bool(code & _HAS_M)
            if kind == _POINT:
                offset += 8 * ordinates
                continue
            (count,) = struct.unpack_from(f"{order}I", wkb, offset)
            offset += 4
            if kind == _LINE:
                offset += 8 * ordinates * count
            elif kind == _POLYGON:
                for _ in range(count):
                    (points,) = struct.unpack_from(f"{order}I", wkb, offset)
                    offset += 4 + 8 * ordinates * points
            elif kind in _COLLECTIONS:
                waiting.append(count)
            else:
                raise ValueError(f"its geometry is of the unknown kind {code} of WKB")
            if len(waiting) > MOST_NESTED:
                raise ValueError(f"its geometry is nested deeper than {MOST_NESTED} levels")
    except (struct.error, IndexError):
        raise ValueError("its geometry is cut: WKB that ends too early") from None
