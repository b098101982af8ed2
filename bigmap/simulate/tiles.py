"""Sentinel-2's tiles and the fixed parts in which scenes are written.

A tile is 10980 px of 10 m wide (109.8 km) and starts at the upper left corner of its square of
100 km, moved outwards to a multiple of 60 m, as real tiles do; so neighbours overlap by about
9.8 km, and all the tiles of a UTM zone share one lattice of 60 m. A tile belongs to a zone
where its square touches the zone, so both zones cover the ground along their border.

A whole tile is far too big to write for a small area. It is therefore cut, from its own corner,
into 10 x 10 parts of 1098 px (10.98 km) or, for small trials, 30 x 30 parts of 366 px (3.66 km),
and only the parts that a request touches are written: one STAC item for each part and datatake.
The part does not depend on the request, so neither does its file. All parts are rendered in
pieces of 366 px, so a pixel does not depend on the size of its part either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from bigmap.errors import PlanError

Bounds = tuple[float, float, float, float]

TILE_PX = 10980
PIECE_PX = 366
"""Side of what is rendered at once: a process needs 0.5 to 0.9 GB for it."""
PIECE_M = 10 * PIECE_PX
SCENE_SIDES_PX = (PIECE_PX, 3 * PIECE_PX)
"""Sides of parts, in pixels of 10 m: of one piece, or of 3 x 3 pieces."""
_SQUARE_M = 100_000
_COLUMN_LETTERS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_ROW_LETTERS = "ABCDEFGHJKLMNPQRSTUV"
_BAND_LETTERS = "CDEFGHJKLMNPQRSTUVWXX"


@dataclass(frozen=True)
class Tile:
    """One tile of the military grid in one UTM zone."""

    zone: int
    """UTM zone, 1 to 60."""
    south: bool
    column: int
    """Easting of the square of 100 km, in squares."""
    row: int
    """Northing of the square of 100 km, in squares."""

    @property
    def epsg(self) -> int:
        """EPSG code of the tile's CRS."""
        return (32700 if self.south else 32600) + self.zone

    @property
    def corner(self) -> tuple[int, int]:
        """Easting and northing of the upper left corner, in metres, multiples of 60 m."""
        left = self.column * _SQUARE_M
        top = (self.row + 1) * _SQUARE_M
        return left // 60 * 60, -(-top // 60) * 60

    @cached_property
    def name(self) -> str:
        """Name in the military grid reference system, for example ``31TDG``."""
        _, latitude = _to_lonlat(self.epsg).transform(
            (self.column + 0.5) * _SQUARE_M, (self.row + 0.5) * _SQUARE_M
        )
        band = _BAND_LETTERS[min(20, max(0, math.floor((latitude + 80) / 8)))]
        column = _COLUMN_LETTERS[self.zone % 3][self.column - 1]
        # The southern false northing of 10,000 km is a whole number of 20 rows, so one rule fits.
        row = _ROW_LETTERS[(self.row + (0 if self.zone % 2 else 5)) % 20]
        return f"{self.zone:02d}{band}{column}{row}"


@dataclass(frozen=True)
class Part:
    """One of the parts into which a tile is cut."""

    tile: Tile
    row: int
    """From the top."""
    column: int
    """From the left."""
    side_px: int
    """In pixels of 10 m, of :data:`SCENE_SIDES_PX`."""

    @property
    def bounds(self) -> Bounds:
        """Left, bottom, right, top in metres of the tile's CRS."""
        side_m = 10 * self.side_px
        left, top = self.tile.corner
        left, top = left + self.column * side_m, top - self.row * side_m
        return left, top - side_m, left + side_m, top

    @property
    def place(self) -> str:
        """Row and column, of two digits each for the small parts and one each for the large."""
        digits = 2 if self.side_px == PIECE_PX else 1
        return f"{self.row:0{digits}d}{self.column:0{digits}d}"

    @property
    def name(self) -> str:
        """Name of the tile and place of the part in it: ``31TDG-0412``, or ``31TDG-14``."""
        return f"{self.tile.name}-{self.place}"

    @property
    def pieces(self) -> list[Part]:
        """The parts of 366 px inside, row by row; of one of these, itself."""
        count = self.side_px // PIECE_PX
        return [
            Part(self.tile, count * self.row + row, count * self.column + column, PIECE_PX)
            for row in range(count)
            for column in range(count)
        ]


def list_parts(crs: str, bounds: Bounds, *, side_px: int) -> list[Part]:
    """List the parts of all tiles that touch a box, sorted by name.

    Parameters
    ----------
    crs
        Projected CRS of ``bounds``.
    bounds
        Left, bottom, right, top in metres.
    side_px
        Side of the parts, of :data:`SCENE_SIDES_PX`.

    Raises
    ------
    PlanError
        If the CRS is unknown, or the box is empty or lies beyond 84 degrees north or 80 south.
    """
    area, longitudes, latitudes = _outline(crs, bounds)
    first, last = (math.floor((lon + 180) / 6) for lon in (min(longitudes), max(longitudes)))
    parts: list[Part] = []
    # A square may reach 100 km, and its tile 10 km more, beyond the border of its zone.
    for zone in range(first - 1, last + 2):
        for south in {latitude < 0 for latitude in latitudes}:
            parts.extend(_list_parts_of_zone(crs, area, zone % 60 + 1, south, side_px))
    return sorted(set(parts), key=lambda part: part.name)


def _outline(crs: str, bounds: Bounds) -> tuple[BaseGeometry, list[float], list[float]]:
    left, bottom, right, top = bounds
    if not (left < right and bottom < top and all(map(math.isfinite, bounds))):
        raise PlanError(f"bounds {bounds} are empty; give left, bottom, right, top in metres")
    try:
        forward = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except CRSError:
        raise PlanError(f"crs {crs!r} is not a CRS that PROJ knows") from None
    step = max(right - left, top - bottom) / 16
    area = shapely.segmentize(shapely.box(*bounds), step)
    lon, lat = forward.transform(*shapely.get_coordinates(area).T)
    if not (np.isfinite(lon).all() and np.isfinite(lat).all() and -80 < min(lat) <= max(lat) < 84):
        raise PlanError(f"bounds {bounds} in {crs} leave the UTM zones, 80 degrees S to 84 N")
    # Longitudes are unwrapped around the first one, so that the antimeridian does not matter.
    lon = lon[0] + (lon - lon[0] + 180) % 360 - 180
    return area, [float(value) for value in lon], [float(value) for value in lat]


def _list_parts_of_zone(
    crs: str, area: BaseGeometry, zone: int, south: bool, side_px: int
) -> list[Part]:
    epsg = (32700 if south else 32600) + zone
    to_zone = Transformer.from_crs(crs, epsg, always_xy=True)
    x, y = to_zone.transform(*shapely.get_coordinates(area).T)
    if not np.isfinite(x).all():
        return []
    local = shapely.Polygon(np.column_stack([x, y]))
    left, bottom, right, top = local.bounds
    tile_m = 10 * TILE_PX
    parts: list[Part] = []
    for column in range(
        max(1, int((left - tile_m) // _SQUARE_M)), min(8, int(right // _SQUARE_M)) + 1
    ):
        for row in range(int(bottom // _SQUARE_M) - 1, int((top + tile_m) // _SQUARE_M) + 1):
            tile = Tile(zone, south, column, row)
            if _touches_zone(tile):
                parts.extend(_cut(tile, local, side_px))
    return parts


def _touches_zone(tile: Tile) -> bool:
    east = np.array([0, 1, 0, 1, 0.5]) + tile.column
    north = np.array([0, 0, 1, 1, 0.5]) + tile.row
    lon, lat = _to_lonlat(tile.epsg).transform(east * _SQUARE_M, north * _SQUARE_M)
    centre = 6 * tile.zone - 183
    offset = (np.asarray(lon) - centre + 180) % 360 - 180
    hemisphere = (np.asarray(lat) < 0).any() if tile.south else (np.asarray(lat) >= 0).any()
    return bool(hemisphere and offset.min() < 3 and offset.max() > -3)


def _cut(tile: Tile, area: BaseGeometry, side_px: int) -> list[Part]:
    corner_x, corner_y = tile.corner
    left, bottom, right, top = area.bounds
    side_m, count = 10 * side_px, TILE_PX // side_px
    columns = range(
        max(0, math.floor((left - corner_x) / side_m)),
        min(count, math.ceil((right - corner_x) / side_m)),
    )
    rows = range(
        max(0, math.floor((corner_y - top) / side_m)),
        min(count, math.ceil((corner_y - bottom) / side_m)),
    )
    parts = (Part(tile, row, column, side_px) for row in rows for column in columns)
    return [part for part in parts if area.intersects(shapely.box(*part.bounds))]


@lru_cache(maxsize=256)
def _to_lonlat(epsg: int) -> Transformer:
    return Transformer.from_crs(CRS.from_epsg(epsg), "EPSG:4326", always_xy=True)
