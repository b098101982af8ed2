"""Shadows that trees, hedges and buildings throw on the ground and on each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, to_uniform
from bigmap.simulate.covers import N_COVERS, Cover
from bigmap.simulate.noise import F32, I64
from bigmap.simulate.patch import FINE_M, FINE_PER_NODE
from bigmap.simulate.units import Units

U8 = npt.NDArray[np.uint8]

HEIGHTS_M = {
    Cover.BROADLEAF: (10, 24), Cover.CONIFER: (10, 26), Cover.HEDGE: (3, 9), Cover.ORCHARD: (3, 5),
    Cover.SHRUB: (1, 3), Cover.MARSH: (1, 3), Cover.ROOF_TILE: (4, 10), Cover.ROOF_BRIGHT: (5, 11),
    Cover.ROOF_DARK: (4, 13),
}  # fmt: skip
"""Lowest and highest mean height of stands, and of roofs above the street; assumptions."""
CROWN_M = 0.7
"""Standard deviation of the height of crowns within a stand; an assumption."""
REACH_PX = 16
"""Longest shadow along an axis: 40 m, so that those of tall trees under a low sun are cut."""
LIGHT_LEFT = (0.38, 0.34, 0.28, 0.24, 0.26, 0.30, 0.30, 0.30, 0.30, 0.28, 0.16, 0.14, 0.10)
"""Share of the light that reaches shaded ground, in the 13 bands; assumptions.

It is that of the sky, which falls with wavelength, and what leaves pass in the near infrared.
"""
_QUARTERS = 4
_LOW, _HIGH = (
    np.array([HEIGHTS_M.get(Cover(code), (0, 0))[end] for code in range(N_COVERS)])
    for end in (0, 1)
)
_HAS_CROWNS = np.isin(np.arange(N_COVERS), (Cover.BROADLEAF, Cover.CONIFER, Cover.HEDGE))


def measure_height(unit: I64, units: Units, density: F32, building: npt.NDArray[np.uint32]) -> U8:
    """Return the height of what stands on the ground, in quarters of a metre, uint8 (y, x).

    Parameters
    ----------
    unit
        Index into ``units`` of each pixel, (y, x).
    density
        Texture of the plants; crowns are higher where it is greater, and orchards have rows.
    building
        Number of the building on each pixel, which decides its height.
    """
    cover = units.cover
    level = _LOW[cover] + (_HIGH - _LOW)[cover] * to_uniform(units.bits, draw=61)
    height = np.take((_QUARTERS * level).astype(np.float32), unit)
    crown = (_QUARTERS * CROWN_M * _HAS_CROWNS[cover]).astype(np.float32)
    height += np.take(crown, unit) * density
    height[np.take(cover == Cover.ORCHARD, unit) & (density < 0)] = 0
    built = building > 0
    roof = cover[unit[built]]
    share = (building[built] % 251) / np.float32(251)
    height[built] = _QUARTERS * (_LOW[roof] + (_HIGH - _LOW)[roof] * share)
    return np.asarray(np.clip(height, 0, 120).astype(np.uint8))


def cast_shadows(height: U8, azimuth: F64, elevation: F64) -> F32:
    """Return where the sun is hidden, 1 or 0, float32 (y, x) at 2.5 m.

    From each pixel one looks along the sun's azimuth for what rises above the ray. The sun's
    place is rounded to whole degrees, pixel by pixel, so that it does not depend on the window;
    that grid north is not true north (up to 2 degrees) is neglected.

    Parameters
    ----------
    height
        From :func:`measure_height`.
    azimuth, elevation
        Of the sun at the nodes, in degrees, (rows + 1, columns + 1).
    """
    place = 1000 * np.rint(azimuth[:-1, :-1]) + np.rint(elevation[:-1, :-1])
    suns = np.unique(place)
    shade = _cast(height, *divmod(suns[0], 1000))
    for sun in suns[1:]:
        here = (place == sun).repeat(FINE_PER_NODE, axis=0).repeat(FINE_PER_NODE, axis=1)
        np.copyto(shade, _cast(height, *divmod(sun, 1000)), where=here)
    return shade.astype(np.float32)


def _cast(height: U8, azimuth: float, elevation: float) -> npt.NDArray[np.bool_]:
    """Cast the shadows of one sun."""
    east, south = np.sin(np.radians(azimuth)), -np.cos(np.radians(azimuth))
    longest = max(abs(east), abs(south))
    rise = _QUARTERS * FINE_M * np.tan(np.radians(elevation))
    padded = np.pad(height, REACH_PX)
    rows, columns = height.shape
    shade = np.zeros(height.shape, dtype=bool)
    highest = int(height.max())
    for step in range(1, REACH_PX + 1):
        down, right = round(step * south / longest), round(step * east / longest)
        # Half a pixel less: what stands there begins at the near edge of its pixel.
        drop = round(rise * (np.hypot(down, right) - 0.5))
        if drop >= min(highest, 135):
            break
        towards = padded[
            REACH_PX + down : REACH_PX + down + rows, REACH_PX + right : REACH_PX + right + columns
        ]
        shade |= towards > height + np.uint8(drop)
    return shade
