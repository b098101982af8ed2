"""A patch: a window of the 2.5 m lattice of a CRS, with its world coordinates.

The world lies in one plane that does not depend on zones or grids: Lambert's azimuthal
equal-area projection centred on Europe, the projection of EPSG:3035 on WGS 84. It keeps areas
everywhere; shapes are true to 2 % within Europe and stretch far from it (by 1.4 at 90 degrees
from its centre), so parcels in other continents are longer in one direction.

Smooth quantities are evaluated at the nodes of a 20 m lattice anchored at the origin of the
CRS and interpolated in between: a function of the place alone, at a small part of the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from bigmap.draws import F64

FINE_M = 2.5
"""Pixel size of the world, in metres."""
NODE_M = 20
"""Spacing of the nodes of smooth fields, in metres."""
FINE_PER_NODE = 8
WORLD = "+proj=laea +lat_0=52 +lon_0=10 +x_0=4321000 +y_0=3210000 +datum=WGS84 +units=m"


@dataclass(frozen=True)
class Patch:
    """A window of whole squares of 20 m, in one CRS."""

    crs: str
    left_m: int
    """West edge, a multiple of 20 m."""
    top_m: int
    """North edge, a multiple of 20 m."""
    rows: int
    """Height in squares of 20 m."""
    columns: int
    """Width in squares of 20 m."""

    @property
    def shape(self) -> tuple[int, int]:
        """Size at 2.5 m, (y, x)."""
        return self.rows * FINE_PER_NODE, self.columns * FINE_PER_NODE

    def grow(self, margin_m: int) -> Patch:
        """Return the patch grown on each side by a multiple of 20 m."""
        more = margin_m // NODE_M
        return Patch(
            self.crs,
            self.left_m - margin_m,
            self.top_m + margin_m,
            self.rows + 2 * more,
            self.columns + 2 * more,
        )

    @cached_property
    def nodes(self) -> tuple[F64, F64]:
        """World coordinates x, y of the corners of the squares, (rows + 1, columns + 1)."""
        x = self.left_m + NODE_M * np.arange(self.columns + 1, dtype=np.float64)
        y = self.top_m - NODE_M * np.arange(self.rows + 1, dtype=np.float64)
        grid_x, grid_y = np.meshgrid(x, y)
        world_x, world_y = _to_world(self.crs).transform(grid_x, grid_y)
        return world_x, world_y

    @cached_property
    def lonlat(self) -> tuple[F64, F64]:
        """Longitude and latitude of the nodes, in degrees, (rows + 1, columns + 1)."""
        lon, lat = _world_to_lonlat().transform(*self.nodes)
        return lon, lat

    @cached_property
    def north(self) -> float:
        """Azimuth of true north at the middle, in radians clockwise from the world's y axis."""
        lon, lat = (float(part.mean()) for part in self.lonlat)
        x, y = _to_world("EPSG:4326").transform([lon, lon], [lat, lat + 0.01])
        return float(np.arctan2(x[1] - x[0], y[1] - y[0]))


T = TypeVar("T", np.float32, np.float64)


def refine(nodes: npt.NDArray[T], factor: int = FINE_PER_NODE) -> npt.NDArray[T]:
    """Interpolate bilinearly from nodes to the centres of ``factor`` pixels per square.

    Parameters
    ----------
    nodes
        (rows + 1, columns + 1), floating point.
    factor
        Pixels per square along each axis.

    Returns
    -------
    numpy.ndarray
        (factor * rows, factor * columns), the type of ``nodes``.
    """
    weight = ((np.arange(factor) + 0.5) / factor).astype(nodes.dtype)
    down = nodes[:-1, None, :] + (nodes[1:] - nodes[:-1])[:, None, :] * weight[:, None]
    down = down.reshape(-1, nodes.shape[1])
    across = down[:, :-1, None] + (down[:, 1:] - down[:, :-1])[:, :, None] * weight
    return np.asarray(across.reshape(down.shape[0], -1))


def average_nodes(nodes: F64) -> F64:
    """Return the mean of the four nodes of each square: the value at its centre."""
    return np.asarray((nodes[:-1, :-1] + nodes[:-1, 1:] + nodes[1:, :-1] + nodes[1:, 1:]) / 4)


@lru_cache(maxsize=256)
def _to_world(crs: str) -> Transformer:
    return Transformer.from_crs(crs, WORLD, always_xy=True)


@lru_cache(maxsize=1)
def _world_to_lonlat() -> Transformer:
    return Transformer.from_crs(WORLD, "EPSG:4326", always_xy=True)
