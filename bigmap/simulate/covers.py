"""What can lie on the ground, and how it is named in the truth."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Cover(IntEnum):
    """The covers of the simulated ground; the truth layer ``cover``."""

    VOID = 0
    WINTER_WHEAT = 1
    WINTER_BARLEY = 2
    SPRING_CEREAL = 3
    MAIZE = 4
    SUNFLOWER = 5
    RAPESEED = 6
    ALFALFA = 7
    FALLOW = 8
    ORCHARD = 9
    VINEYARD = 10
    MEADOW = 11
    PASTURE = 12
    BROADLEAF = 13
    CONIFER = 14
    SHRUB = 15
    HEATH = 16
    MARSH = 17
    PEATBOG = 18
    WATER = 19
    ROAD = 20
    TRACK = 21
    PAVED = 22
    ROOF_TILE = 23
    ROOF_BRIGHT = 24
    ROOF_DARK = 25
    ROCK = 26
    SNOW = 27
    HEDGE = 28
    MARGIN = 29
    GARDEN = 30


N_COVERS = len(Cover)

CROPS = tuple(Cover(code) for code in range(1, 11))
"""Covers that count as cropland: annual crops, alfalfa, fallow land, orchards and vineyards.

Their codes are the truth layer ``crop``; meadows and pastures are not cropland.
"""

ROOFS = (Cover.ROOF_TILE, Cover.ROOF_BRIGHT, Cover.ROOF_DARK)


@dataclass(frozen=True)
class LandCover:
    """A class of S2GLC."""

    code: int
    name: str
    covers: tuple[Cover, ...]


S2GLC = (
    LandCover(0, "clouds", ()),
    LandCover(
        62,
        "artificial surfaces and constructions",
        (Cover.ROAD, Cover.PAVED, *ROOFS),
    ),
    LandCover(73, "cultivated areas", (*CROPS[:9],)),
    LandCover(75, "vineyards", (Cover.VINEYARD,)),
    LandCover(82, "broadleaf tree cover", (Cover.BROADLEAF, Cover.HEDGE)),
    LandCover(83, "coniferous tree cover", (Cover.CONIFER,)),
    LandCover(
        102, "herbaceous vegetation", (Cover.MEADOW, Cover.PASTURE, Cover.MARGIN, Cover.GARDEN)
    ),
    LandCover(103, "moors and heathland", (Cover.HEATH,)),
    LandCover(104, "sclerophyllous vegetation", (Cover.SHRUB,)),
    LandCover(105, "marshes", (Cover.MARSH,)),
    LandCover(106, "peatbogs", (Cover.PEATBOG,)),
    LandCover(121, "natural material surfaces", (Cover.ROCK, Cover.TRACK)),
    LandCover(123, "permanent snow covered surfaces", (Cover.SNOW,)),
    LandCover(162, "water bodies", (Cover.WATER,)),
)
"""The 14 classes of S2GLC (Malinowski et al. 2020, doi:10.3390/rs12213523); clouds never occur.

Which cover falls into which class is our reading of the paper's legend; 255 is no data.
"""


def land_cover_of() -> npt.NDArray[np.uint8]:
    """Return the S2GLC code of each cover, uint8, indexed by :class:`Cover`."""
    table = np.full(N_COVERS, 255, dtype=np.uint8)
    for entry in S2GLC:
        table[list(entry.covers)] = entry.code
    return table


def is_crop() -> npt.NDArray[np.bool_]:
    """Return which covers are cropland, bool, indexed by :class:`Cover`."""
    table = np.zeros(N_COVERS, dtype=bool)
    table[list(CROPS)] = True
    return table
