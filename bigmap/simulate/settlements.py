"""Towns, villages and farms: streets, yards and buildings on lots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.covers import Cover
from bigmap.simulate.noise import F32, sample_fractal
from bigmap.simulate.voronoi import Cells

U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

TOWN_SPACING_M = 4200.0
FARM_RADIUS_M = 42.0
_LOT_U_M, _LOT_V_M = 21.0, 27.0
_STREET_M = 3.5
_STREET_LOTS = (2, 5)
"""Lots between streets along u and v."""


@dataclass(frozen=True)
class Lots:
    """What the lots of settlements hold, (y, x) at 2.5 m."""

    cover: U8
    """Cover; 0 outside settlements."""
    building: npt.NDArray[np.uint32]
    """Number of the building; 0 where there is none."""


def sample_urbanity(seed: int, x: F64, y: F64) -> F64:
    """Return how deep places lie in a town: 1 in its middle, 0 at its edge, less outside.

    Towns are random points with radii of 150 to 1,000 m, small ones most frequent.

    Parameters
    ----------
    x, y
        World coordinates in metres, any shape.
    """
    columns, rows = (
        np.arange(
            np.floor(part.min() / TOWN_SPACING_M) - 1, np.floor(part.max() / TOWN_SPACING_M) + 2
        )
        for part in (x, y)
    )
    rough = 0.22 * sample_fractal(derive_seed(seed, "edge"), x, y, wavelength_m=500, octaves=4)
    depth = np.full(x.shape, -1.0)
    for row in rows:
        for column in columns:
            bits = hash_ints(seed, int(row), int(column))
            east, north, size = (float(to_uniform(bits, draw=draw)[0]) for draw in (1, 2, 3))
            radius = 150 * (1 - 0.9 * size) ** -0.8
            distance = np.hypot(
                x - (column + east) * TOWN_SPACING_M, y - (row + north) * TOWN_SPACING_M
            )
            np.maximum(depth, 1 - distance / radius, out=depth)
    return np.asarray(np.where(depth > -0.99, depth + rough * (depth > -0.5), -1.0))


def build_lots(seed: int, cells: Cells, u: F32, v: F32, is_town: Bool, has_farm: Bool) -> Lots:
    """Lay streets and buildings on the rotated grid of each cell.

    Parameters
    ----------
    u, v
        Coordinates of each pixel in its cell's rotated grid, in metres, (y, x).
    is_town
        Where towns are, (y, x).
    has_farm
        Which cells hold a lone farm at their point.
    """
    cover = np.zeros(u.shape, dtype=np.uint8)
    building = np.zeros(u.shape, dtype=np.uint32)
    is_farm = has_farm[cells.owner] & (np.maximum(np.abs(u), np.abs(v)) < FARM_RADIUS_M)
    rows, columns = np.nonzero(is_town | is_farm)
    if not len(rows):
        return Lots(cover, building)
    place = rows, columns
    u, v = u[place], v[place]
    lot_u, lot_v = np.floor(u / _LOT_U_M), np.floor(v / _LOT_V_M)
    bits = hash_ints(
        seed,
        cells.bits.view(np.int64)[cells.owner[place]],
        lot_u.astype(np.int64),
        lot_v.astype(np.int64),
    )
    from_u = np.abs(u - (lot_u + 0.5) * _LOT_U_M)
    from_v = np.abs(v - (lot_v + 0.5) * _LOT_V_M)
    half_u = 4 + 4.5 * to_uniform(bits, draw=1)
    half_v = 4 + 7.0 * to_uniform(bits, draw=2)
    # Houses keep 1.5 m from the border of the cell: tracks become streets there.
    is_built = (
        (from_u < half_u)
        & (from_v < half_v)
        & (to_uniform(bits, draw=3) < 0.8)
        & (cells.border_m[place] > 5)
    )
    is_street = _is_street(u, v) & is_town[place]
    ground = np.where(to_uniform(bits, draw=4) < 0.35, Cover.PAVED, Cover.GARDEN)
    roof = np.select(
        [to_uniform(bits, draw=5) < limit for limit in (0.62, 0.74)],
        [Cover.ROOF_TILE, Cover.ROOF_BRIGHT],
        Cover.ROOF_DARK,
    )
    kind = np.where(is_built, roof, ground)
    kind = np.where(is_street | (cells.border_m[place] < 3.0), Cover.ROAD, kind)
    cover[place] = kind
    number = (bits >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    building[place] = np.where(np.isin(kind, (23, 24, 25)), number, 0)
    return Lots(cover, building)


def _is_street(u: F32, v: F32) -> Bool:
    along_u, along_v = _LOT_U_M * _STREET_LOTS[0], _LOT_V_M * _STREET_LOTS[1]
    near_u = np.abs(np.mod(u + along_u / 2, along_u) - along_u / 2)
    near_v = np.abs(np.mod(v + along_v / 2, along_v) - along_v / 2)
    return np.asarray((near_u < _STREET_M) | (near_v < _STREET_M))
