"""Slim rows of STAC items: all that planning and workers need to know of a scene."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

BANDS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3",
    "nir", "nir08", "nir09", "cirrus", "swir16", "swir22",
)  # fmt: skip
"""Common names of Sentinel-2's bands B01 to B08, B8A, B09 to B12, in the order of wavelength."""


@dataclass(frozen=True, slots=True)
class AssetRow:
    """One file of an item."""

    href: str
    """Where the file lies, unsigned."""
    shape: tuple[int, int]
    """Size in pixels, (y, x)."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients a, b, c, d, e, f: pixel (column, row) to metres of the item's CRS."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One product of one MGRS tile, as a worker reads it."""

    id: str
    collection: str
    datetime: dt.datetime
    """Time of acquisition, UTC."""
    solar_day: dt.date
    """Day of acquisition in solar time at the item's centre."""
    epsg: int
    """EPSG code of the item's CRS."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top in the item's CRS."""
    dn_shift: int
    """What to add to a valid DN of a band so that reflectance = 1e-4 * DN - 0.1: 0 or 1000."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline, for example ``05.09``."""
    mgrs_tile: str | None
    assets: Mapping[str, AssetRow]
    """By common band name, and the mask under the name of its asset."""
