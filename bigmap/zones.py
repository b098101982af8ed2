"""UTM zones: strips of six degrees, north or south of the equator, on WGS 84.

The wider strips of Norway and Svalbard are of the military grid, and play no part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import shapely
from shapely.geometry.base import BaseGeometry

SOUTH_DEG, NORTH_DEG = -80, 84
"""Where UTM ends."""
WIDTH_DEG = 6
EDGE_DEG = 0.002
"""Longest edge of a strip: both zones at a meridian have its vertices in common, and bend away from
the chords between them to the two sides by less than 1 mm."""
NEAR_DEG = 29
"""How far from its strip an area is kept whole, where all of it is too wide for a zone's CRS."""


@dataclass(frozen=True)
class UtmZone:
    """One zone."""

    number: int
    """1 to 60, from 180 degrees west."""
    is_north: bool

    @property
    def name(self) -> str:
        """Such as ``31n``."""
        return f"{self.number:02d}{'n' if self.is_north else 's'}"

    @property
    def group(self) -> str:
        """Name of the zone's part of a map, such as ``utm31n``."""
        return f"utm{self.name}"

    @property
    def crs(self) -> str:
        """Such as ``EPSG:32631``."""
        return f"EPSG:{326 if self.is_north else 327}{self.number:02d}"

    @property
    def west_deg(self) -> float:
        """Longitude of its western edge."""
        return WIDTH_DEG * self.number - 186.0

    def reach(self, lon_deg: float, lat_deg: float) -> tuple[float, float, float, float]:
        """Return west, south, east, north of its strip, grown beyond its meridians and equator."""
        west, east = self.west_deg - lon_deg, self.west_deg + WIDTH_DEG + lon_deg
        if self.is_north:
            return west, -lat_deg, east, NORTH_DEG
        return west, SOUTH_DEG, east, lat_deg

    def strip(self, south_deg: float, north_deg: float) -> BaseGeometry:
        """Return its strip between two parallels in degrees, no longer than the zone; or nothing.

        Pixels along an edge are found from all its vertices, so it is as long as is needed.
        """
        south, north = (0, NORTH_DEG) if self.is_north else (SOUTH_DEG, 0)
        south = max(south, math.floor(south_deg) - 1)
        north = min(north, math.ceil(north_deg) + 1)
        if south >= north:
            return shapely.Polygon()
        box = shapely.box(self.west_deg, south, self.west_deg + WIDTH_DEG, north)
        return box.segmentize(EDGE_DEG)


def all_zones() -> Iterator[UtmZone]:
    """Return the zones from west to east, north before south."""
    return (UtmZone(number, is_north) for number in range(1, 61) for is_north in (True, False))
