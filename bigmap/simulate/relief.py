"""Relief, and the woods and waters that follow it, as smooth fields at the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, derive_seed, to_uniform
from bigmap.simulate.covers import Cover
from bigmap.simulate.noise import F32, sample_fractal, sample_noise
from bigmap.simulate.patch import NODE_M, refine
from bigmap.simulate.voronoi import Cells

U8 = npt.NDArray[np.uint8]

TREELINE_M = 2000.0
SNOWLINE_M = 2800.0


@dataclass(frozen=True)
class Relief:
    """Smooth fields at the nodes of a patch, (rows + 1, columns + 1)."""

    elevation_m: F64
    bend: tuple[F64, F64]
    """Displacement of parcels, tracks and roads, in metres, so that none is quite straight."""
    woods: F64
    """Woods stand where this is positive, shrubs a little below."""
    river_m: F64
    """Distance to the bank of the nearest river or lake; negative in the water."""
    stream_m: F64
    """Distance to the middle of the nearest stream."""
    wetness: F64
    humidity: F64

    def draw_nature(self, cells: Cells) -> U8:
        """Return woods, shrubs, heath, rock and snow, 0 elsewhere; uint8 (y, x) at 2.5 m."""
        woods = _refine(self.woods)
        height = _refine(self.elevation_m)
        humidity = _refine(self.humidity)
        chance = to_uniform(cells.bits, draw=11)
        # One species rules a stand; conifers take over with height.
        conifer = chance[cells.owner] < np.clip(0.2 + height / 2000, 0, 0.9)
        dry = to_uniform(cells.bits, draw=12)[cells.owner] < 0.6
        cover = np.zeros(woods.shape, dtype=np.uint8)
        fringe = (woods > -0.12) & (height > 300) & (humidity < 0.6)
        cover[fringe] = np.where(height > 1200, Cover.HEATH, Cover.SHRUB)[fringe]
        forest = woods > 0
        cover[forest] = np.where(conifer, Cover.CONIFER, Cover.BROADLEAF)[forest]
        maquis = forest & dry & (humidity < 0.5) & (woods < 0.5) & (height > 250) & (height < 900)
        cover[maquis] = Cover.SHRUB
        high = height + 150 * woods > TREELINE_M
        cover[high] = np.where(woods > -0.4, Cover.HEATH, Cover.PASTURE)[high]
        cover[(height + 250 * woods > TREELINE_M + 350)] = Cover.ROCK
        cover[height + 100 * woods > SNOWLINE_M] = Cover.SNOW
        return cover

    def draw_water(self) -> U8:
        """Return open water, marshes, bogs and the trees along streams; uint8 (y, x) at 2.5 m."""
        river, stream, wetness = (
            _refine(part) for part in (self.river_m, self.stream_m, self.wetness)
        )
        height = _refine(self.elevation_m)
        cover = np.zeros(river.shape, dtype=np.uint8)
        low = height < 1500
        cover[(stream < 8 + 4 * wetness) & low] = Cover.BROADLEAF
        cover[(stream < 1.8) & low] = Cover.WATER
        shore = (river < 60 * (wetness - 0.6)) & low
        cover[shore] = np.where(height > 700, Cover.PEATBOG, Cover.MARSH)[shore]
        cover[(river < 0) & low] = Cover.WATER
        return cover


def sample_humidity(seed: int, x: F64, y: F64) -> F64:
    """Return the climate of places: 0 in the dry south, 1 in the humid north.

    The gradient is Europe's between Valencia and Munich, on the world plane, with regions; it
    is an assumption that decides how much wood, grass and bare soil there is.
    """
    regions = 0.12 * sample_noise(derive_seed(seed, "climate"), x, y, wavelength_m=70_000)
    return np.asarray(np.clip(0.5 + (y - 2.33e6) / 7e5 + regions, 0, 1))


def shape_relief(seed: int, x: F64, y: F64) -> Relief:
    """Evaluate the relief and what follows from it.

    Parameters
    ----------
    x, y
        World coordinates of the nodes, in metres, (rows + 1, columns + 1).
    """

    def sample(purpose: str, wavelength_m: float, octaves: int, gain: float = 0.5) -> F64:
        return sample_fractal(
            derive_seed(seed, purpose), x, y, wavelength_m=wavelength_m, octaves=octaves, gain=gain
        )

    region = sample("region", 45_000, 2)
    mountain = np.clip((region - 0.35) / 1.5, 0, 1)
    hills = sample("hills", 7_000, 7)
    # Lowlands are flat in some regions and hilly in others: 12 to 100 m of height (assumed).
    rugged = 35 * np.exp(0.7 * sample("rugged", 25_000, 2))
    elevation = 200 + 60 * region + hills * (rugged + 420 * mountain) + 2300 * mountain**1.3
    wetness = np.clip(0.5 + 0.35 * sample("wetness", 9_000, 2), 0, 1)
    humidity = sample_humidity(seed, x, y)
    bend = (
        14 * sample_noise(derive_seed(seed, "bend-x"), x, y, wavelength_m=420),
        14 * sample_noise(derive_seed(seed, "bend-y"), x, y, wavelength_m=420),
    )
    woods = sample("woods", 2_600, 6, 0.6) - 1.05 + 1.6 * np.minimum(mountain * 2.5, 1)
    woods += 0.75 * humidity
    return Relief(
        elevation_m=np.maximum(elevation, 2.0),
        bend=bend,
        woods=woods,
        river_m=_measure_water(seed, x, y, wetness),
        stream_m=_measure_contour(derive_seed(seed, "stream"), x, y, wavelength_m=2_800),
        wetness=wetness,
        humidity=humidity,
    )


def _measure_water(seed: int, x: F64, y: F64, wetness: F64) -> F64:
    river = _measure_contour(derive_seed(seed, "river"), x, y, wavelength_m=14_000)
    width = 6 + 30 * wetness**2
    lake = sample_fractal(derive_seed(seed, "lake"), x, y, wavelength_m=3_500, octaves=4)
    # One unit of the lake's noise is about 700 m of ground, so this is nearly a distance.
    return np.minimum(river - width, (2.35 - lake) * 700)


def _measure_contour(seed: int, x: F64, y: F64, *, wavelength_m: float) -> F64:
    """Estimate the distance to the zero line of a noise: its value over its slope."""
    noise = sample_fractal(seed, x, y, wavelength_m=wavelength_m, octaves=4, gain=0.45)
    # Slopes come from a step of one metre at the node itself, so they need no neighbours.
    slope_x = sample_fractal(seed, x + 1, y, wavelength_m=wavelength_m, octaves=4, gain=0.45)
    slope_y = sample_fractal(seed, x, y + 1, wavelength_m=wavelength_m, octaves=4, gain=0.45)
    slope = np.hypot(slope_x - noise, slope_y - noise)
    distance = np.abs(noise) / np.maximum(slope, 0.15 / wavelength_m)
    return np.minimum(distance, 20.0 * NODE_M)


def _refine(nodes: F64) -> F32:
    return refine(nodes.astype(np.float32))
