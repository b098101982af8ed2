"""Units of land: parcels with their crops, and stands or surfaces of one cover in one cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyproj import Transformer

from bigmap.draws import F64, U64, derive_seed, to_uniform
from bigmap.simulate.covers import Cover
from bigmap.simulate.noise import sample_noise
from bigmap.simulate.patch import WORLD
from bigmap.simulate.relief import sample_humidity
from bigmap.simulate.voronoi import Cells

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fields:
    """How the land of each cell is divided, one value per cell."""

    angle: F64
    """Direction of the strips, in radians."""
    width_m: F64
    """Width of a strip."""
    length_m: F64
    """Length of a brick."""
    hedge_m: F64
    """Width of the hedges between parcels; 0 where there are none."""
    has_farm: npt.NDArray[np.bool_]
    """Whether a farm stands at the cell's point."""


@dataclass(frozen=True)
class Units:
    """The units of a patch, one value per unit."""

    cover: U8
    """Codes of :class:`Cover`."""
    bits: U64
    """A hash that names the unit in every patch."""
    latitude: F64
    """In degrees, of the point of the unit's cell."""
    humidity: F64
    """Climate there, 0 dry to 1 humid."""
    soil_light: F64
    """Share of light soil, 0 to 1."""
    soil_red: F64
    """Share of red soil in what is not light, 0 to 1."""


def draw_fields(seed: int, cells: Cells) -> Fields:
    """Draw how cells are divided: regions of small and of large parcels, some with hedges."""
    grain = sample_noise(seed, cells.site_x, cells.site_y, wavelength_m=11_000)
    size = np.exp(0.45 * grain + 0.8 * (to_uniform(cells.bits, draw=21) - 0.5))
    bocage = sample_noise(
        derive_seed(seed, "hedges"), cells.site_x, cells.site_y, wavelength_m=8_000
    )
    hedge = 2.5 + 4.5 * to_uniform(cells.bits, draw=24)
    return Fields(
        angle=to_uniform(cells.bits, draw=22) * np.pi,
        width_m=np.clip(75 * size, 28, 260),
        length_m=np.clip(170 * size * (0.7 + to_uniform(cells.bits, draw=23)), 60, 600),
        hedge_m=np.where(bocage + 2 * to_uniform(cells.bits, draw=25) > 1.6, hedge, 0.0),
        has_farm=to_uniform(cells.bits, draw=26) < 0.22,
    )


def draw_units(world_seed: int, bits: U64, fixed: U8, place: tuple[F64, F64]) -> Units:
    """Draw what grows on parcels; other units keep the cover that they have.

    Three smooth fields (irrigation, wine, livestock) make regions of different farming, two
    more regions of lighter and of redder soil. The shares are our assumptions, loosely those of
    the Ebro basin and of central Europe; some parcels are small woods, most where it is humid.

    Parameters
    ----------
    fixed
        Cover of each unit, 0 where it is a parcel.
    place
        World coordinates x, y of each unit's cell, in metres.
    """
    seed = derive_seed(world_seed, "crops")

    def region(purpose: str, wavelength_m: float) -> F64:
        noise = sample_noise(derive_seed(seed, purpose), *place, wavelength_m=wavelength_m)
        return np.asarray(1 / (1 + np.exp(-3 * noise)))

    humid = sample_humidity(derive_seed(world_seed, "relief"), *place)
    water, wine, cattle = region("water", 13_000), region("wine", 9_000), region("cattle", 16_000)
    shares = {
        Cover.WINTER_WHEAT: 0.30 * (1.2 - wine) * (1 - 0.6 * humid),
        Cover.WINTER_BARLEY: 0.18 * (1.3 - water) * (1 - 0.7 * humid),
        Cover.SPRING_CEREAL: 0.05 + 0 * water,
        Cover.MAIZE: 0.02 + 0.26 * water + 0.15 * humid,
        Cover.SUNFLOWER: 0.06 * (1.2 - water),
        Cover.RAPESEED: 0.06 * (1.2 - wine),
        Cover.ALFALFA: 0.02 + 0.12 * water,
        Cover.FALLOW: 0.08 * (1.2 - water) * (1 - humid),
        Cover.ORCHARD: 0.02 + 0.12 * water * wine,
        Cover.VINEYARD: 0.01 + 0.30 * wine**3 * (1 - 0.6 * humid),
        Cover.MEADOW: 0.04 + 0.40 * cattle**2 + 0.55 * humid,
        Cover.PASTURE: 0.03 + 0.12 * cattle * (1 - humid),
        Cover.BROADLEAF: 0.02 + 0.14 * humid,
    }
    limits = np.cumsum(np.stack(list(shares.values())), axis=0)
    choice = (to_uniform(bits, draw=31) * limits[-1] >= limits).sum(axis=0)
    crop = np.array(list(shares), dtype=np.uint8)[np.minimum(choice, len(shares) - 1)]
    _, latitude = Transformer.from_crs(WORLD, "EPSG:4326", always_xy=True).transform(*place)
    cover = np.where(fixed > 0, fixed, crop).astype(np.uint8)
    light = (0.5 * region("lime", 6_000) + 0.5 * to_uniform(bits, draw=41)) * (1 - 0.7 * humid)
    red = np.clip(region("iron", 9_000) + 0.5 * to_uniform(bits, draw=45) - 0.4, 0, 1)
    return Units(cover, bits, np.asarray(latitude), humid, light, red * (1 - 0.5 * humid))
