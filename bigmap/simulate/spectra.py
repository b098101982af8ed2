"""Reflectance of the ground: endmembers, the course of the seasons, and their mixture.

The endmember values are our own readings, rounded to about 0.005, of the typical shapes and
levels of published spectra: vegetation, soils, water, snow, rock and building materials of the
USGS library (R. Kokaly et al. 2017, doi:10.3133/ds1035) and ECOSTRESS (S. Meerdink et al. 2019,
doi:10.1016/j.rse.2019.05.015). They are plausible levels, not the libraries' numbers. Seasons
are double logistic curves (P. Beck et al. 2006, doi:10.1016/j.rse.2005.10.021) whose dates are
our assumptions for 42 degrees north; they come four days later for each degree of latitude
(A. Hopkins 1918, the bioclimatic law).
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from bigmap.items import BANDS
from bigmap.simulate.covers import N_COVERS, Cover
from bigmap.simulate.noise import F32, F64, hash_ints, to_normal, to_uniform
from bigmap.simulate.units import Units

# Wavelengths, in nm: 443 490 560 665 705 740 783 842 865 945 1375 1610 2190
ENDMEMBERS: dict[str, tuple[float, ...]] = {
    "light soil": (.10, .13, .18, .24, .26, .27, .29, .30, .31, .32, .33, .38, .33),
    "dark soil": (.05, .06, .085, .115, .13, .14, .155, .165, .17, .18, .20, .24, .20),
    "crop": (.02, .025, .06, .025, .09, .36, .47, .50, .52, .51, .20, .21, .09),
    "straw": (.08, .11, .17, .24, .27, .29, .32, .34, .35, .36, .35, .38, .27),
    "grass": (.025, .033, .07, .038, .11, .31, .39, .42, .44, .44, .23, .24, .12),
    "broadleaf": (.015, .02, .042, .02, .07, .30, .41, .45, .47, .47, .20, .20, .085),
    "bare wood": (.03, .045, .065, .08, .10, .13, .15, .17, .18, .19, .18, .20, .14),
    "conifer": (.012, .017, .03, .019, .048, .16, .22, .25, .265, .265, .10, .105, .05),
    "shrub": (.025, .03, .05, .045, .08, .17, .21, .23, .24, .25, .16, .17, .10),
    "heath": (.025, .035, .055, .06, .09, .15, .18, .20, .21, .22, .17, .19, .12),
    "reed": (.03, .04, .065, .06, .10, .19, .23, .25, .26, .26, .13, .14, .08),
    "peat": (.03, .04, .055, .06, .08, .13, .16, .17, .18, .18, .10, .13, .08),
    "water": (.03, .035, .035, .02, .015, .01, .01, .008, .007, .006, .003, .004, .003),
    "asphalt": (.08, .09, .105, .12, .125, .13, .135, .14, .145, .15, .16, .17, .16),
    "gravel": (.15, .18, .22, .26, .27, .28, .29, .30, .31, .31, .32, .35, .33),
    "concrete": (.16, .19, .23, .26, .27, .28, .29, .30, .30, .31, .30, .33, .29),
    "tile": (.06, .08, .12, .23, .27, .29, .30, .31, .32, .33, .37, .42, .36),
    "metal": (.45, .48, .50, .50, .50, .50, .50, .50, .49, .48, .45, .45, .40),
    "slate": (.07, .08, .09, .095, .10, .10, .105, .11, .11, .115, .12, .13, .12),
    "rock": (.12, .15, .19, .22, .23, .24, .25, .26, .26, .27, .27, .30, .28),
    "snow": (.90, .90, .89, .87, .85, .84, .82, .79, .78, .70, .30, .10, .08),
}  # fmt: skip
"""Surface reflectance in the 13 bands of :data:`bigmap.items.BANDS`."""


@dataclass(frozen=True)
class Season:
    """The green cover of one land cover through the year."""

    canopy: str
    ground: str = "soil"
    """``soil`` mixes light and dark soil by parcel."""
    low: float = 1.0
    high: float = 1.0
    rise: float = 0.0
    """Day of year of half the rise, at 42 degrees north."""
    fall: float = 366.0
    """Day of year of half the fall."""
    rise_days: float = 12.0
    fall_days: float = 12.0
    residue: float = 0.0
    """Share of the ground that straw covers after the fall, for about 70 days."""
    cut_days: float = 0.0
    """Days between cuts, 0 where there are none."""
    texture: float = 0.08
    """Standard deviation of the green cover within a unit, or of brightness without one."""


SEASONS: dict[Cover, Season] = {
    Cover.WINTER_WHEAT: Season("crop", low=0.12, high=0.92, rise=78, fall=162, rise_days=16,
                               fall_days=7, residue=0.65),
    Cover.WINTER_BARLEY: Season("crop", low=0.12, high=0.88, rise=68, fall=148, rise_days=15,
                                fall_days=7, residue=0.65),
    Cover.SPRING_CEREAL: Season("crop", low=0.06, high=0.85, rise=112, fall=182, rise_days=10,
                                fall_days=7, residue=0.6),
    Cover.MAIZE: Season("crop", low=0.05, high=0.95, rise=166, fall=262, rise_days=9,
                        fall_days=10, residue=0.5),
    Cover.SUNFLOWER: Season("crop", low=0.05, high=0.85, rise=152, fall=224, rise_days=9,
                            fall_days=8, residue=0.3),
    Cover.RAPESEED: Season("crop", low=0.25, high=0.9, rise=66, fall=158, rise_days=14,
                           fall_days=8, residue=0.5),
    Cover.ALFALFA: Season("crop", low=0.25, high=0.9, rise=72, fall=312, rise_days=12,
                          fall_days=14, cut_days=36),
    Cover.FALLOW: Season("grass", low=0.08, high=0.38, rise=85, fall=165, rise_days=18,
                         fall_days=12, residue=0.25, texture=0.12),
    Cover.ORCHARD: Season("broadleaf", low=0.12, high=0.52, rise=98, fall=305, rise_days=9,
                          fall_days=12, texture=0.16),
    Cover.VINEYARD: Season("crop", low=0.05, high=0.34, rise=126, fall=290, rise_days=10,
                           fall_days=12, texture=0.05),
    Cover.MEADOW: Season("grass", low=0.5, high=0.93, rise=84, fall=300, rise_days=16,
                         fall_days=20, cut_days=58),
    Cover.PASTURE: Season("grass", low=0.35, high=0.8, rise=78, fall=186, rise_days=18,
                          fall_days=16, residue=0.45, texture=0.11),
    Cover.BROADLEAF: Season("broadleaf", "bare wood", 0.08, 0.96, 108, 304, 6, 9, texture=0.10),
    Cover.CONIFER: Season("conifer", "bare wood", 0.88, 0.95, 120, 300, 20, 20, texture=0.10),
    Cover.SHRUB: Season("shrub", low=0.72, high=0.82, rise=95, fall=190, rise_days=20,
                        fall_days=25, texture=0.14),
    Cover.HEATH: Season("heath", low=0.7, high=0.88, rise=120, fall=280, rise_days=15,
                        fall_days=18, texture=0.11),
    Cover.MARSH: Season("reed", "water", 0.55, 0.9, 118, 296, 12, 14, texture=0.14),
    Cover.PEATBOG: Season("peat", "water", 0.82, 0.95, 120, 290, 14, 14),
    Cover.WATER: Season("water", "water", texture=0.03),
    Cover.ROAD: Season("asphalt", texture=0.04),
    Cover.TRACK: Season("gravel", texture=0.06),
    Cover.PAVED: Season("concrete", texture=0.09),
    Cover.ROOF_TILE: Season("tile", texture=0.06),
    Cover.ROOF_BRIGHT: Season("metal", texture=0.06),
    Cover.ROOF_DARK: Season("slate", texture=0.06),
    Cover.ROCK: Season("rock", texture=0.14),
    Cover.SNOW: Season("snow", texture=0.03),
    Cover.HEDGE: Season("broadleaf", "bare wood", 0.2, 0.95, 100, 304, 8, 10, texture=0.12),
    Cover.MARGIN: Season("grass", low=0.4, high=0.8, rise=80, fall=196, rise_days=16,
                         fall_days=20, residue=0.5, texture=0.1),
    Cover.GARDEN: Season("grass", low=0.45, high=0.75, rise=85, fall=300, rise_days=16,
                         fall_days=20, texture=0.16),
}  # fmt: skip


def mix_spectra(units: Units, day: dt.date) -> tuple[F32, F32]:
    """Mix the reflectance of each unit on one day.

    Returns
    -------
    mean, slope
        float32 (unit, 13): reflectance where the texture is 0, and its change for a texture of
        one standard deviation. Within fields, texture turns soil into canopy; on surfaces
        without seasons it changes the brightness.
    """
    tables = _SEASON_TABLES
    cover = units.cover
    names = {name: tables[name][cover] for name in tables}
    green = _grow(units, names, day)
    after = _day_of_year(units, day) - (names["fall"] + 2 * names["fall_days"])
    fading = 1 / (1 + np.exp((after - 70) / 8)) / (1 + np.exp(-after / 3))
    straw = names["residue"] * (1 - 0.5 * units.humidity) * fading * (1 - green)
    tone = (to_uniform(units.bits, draw=41) * (1 - 0.6 * units.humidity))[:, None]
    soil = tone * _SPECTRA["light soil"] + (1 - tone) * _SPECTRA["dark soil"]
    ground = np.where(_IS_SOIL[cover][:, None], soil, _GROUND[cover])
    ground = ground + straw[:, None] * (_SPECTRA["straw"] - ground)
    canopy = _CANOPY[cover] * (1 + 0.05 * to_normal(hash_ints(1, _as_ints(units)))[:, None])
    mean = ground + green[:, None] * (canopy - ground)
    bright = 1 + 0.09 * to_normal(hash_ints(2, _as_ints(units)))[:, None]
    has_season = (names["high"] > names["low"])[:, None]
    # A little of the variation is brightness everywhere: roughness, moisture, slope.
    slope = (
        1.3
        * names["texture"][:, None]
        * np.where(has_season, (canopy - ground) + 0.25 * mean, mean)
    )
    return (mean * bright).astype(np.float32), (slope * bright).astype(np.float32)


def _grow(units: Units, season: dict[str, F64], day: dt.date) -> F64:
    """Return the green cover of each unit, 0 to 1."""
    today = _day_of_year(units, day)
    early = 8 * to_normal(hash_ints(3, _as_ints(units)))
    late = early + 6 * to_normal(hash_ints(4, _as_ints(units)))
    vigour = 1 - 0.3 * to_uniform(units.bits, draw=42) ** 2
    rise = 1 / (1 + np.exp(-(today - season["rise"] - early) / season["rise_days"] * 1.5))
    fall = 1 / (1 + np.exp((today - season["fall"] - late) / season["fall_days"] * 1.5))
    growth = season["low"] + (season["high"] * vigour - season["low"]) * rise * fall
    # Crops die to nothing at harvest; what has no residue falls back to its winter cover.
    dead = (
        (1 - fall)
        * (1 - units.humidity * (units.cover == Cover.PASTURE))
        * (season["residue"] > 0)
        * (today > season["rise"])
    )
    # In autumn the land is sown again, so that the end of a year meets the start of the next.
    dead = dead / (1 + np.exp((today - 312) / 9))
    growth = growth * (1 - 0.9 * dead)
    # Weeds, volunteers and catch crops come after harvest, most of them where it rains.
    regrowth = (0.08 + 0.7 * units.humidity) * to_uniform(units.bits, draw=44)
    growth = growth + dead * regrowth / (1 + np.exp(-(today - season["fall"] - late - 30) / 8))
    period = np.maximum(season["cut_days"], 1)
    since_cut = np.mod(today - season["rise"] + period * to_uniform(units.bits, draw=43), period)
    cut = (season["cut_days"] > 0) * rise * fall
    growth = growth * (1 - 0.55 * cut * np.exp(-since_cut / 9))
    return np.asarray(np.clip(np.where(season["high"] > season["low"], growth, 1), 0, 1))


def _day_of_year(units: Units, day: dt.date) -> F64:
    """Return the day of the season of each unit: of the year at 42 degrees north."""
    today = day.timetuple().tm_yday
    shifted = today - 4.0 * (np.abs(units.latitude) - 42.0)
    return np.asarray(np.where(units.latitude < 0, np.mod(shifted + 182, 365), shifted))


def _as_ints(units: Units) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return units.bits.view(np.int64)


def _tabulate(name: str) -> F64:
    table = np.zeros(N_COVERS)
    for cover, season in SEASONS.items():
        table[cover] = getattr(season, name)
    return table


def _tabulate_spectra(part: str) -> F64:
    table = np.zeros((N_COVERS, len(BANDS)))
    for cover, season in SEASONS.items():
        name = getattr(season, part)
        table[cover] = ENDMEMBERS["dark soil" if name == "soil" else name]
    return table


_SPECTRA = {name: np.array(values) for name, values in ENDMEMBERS.items()}
_SEASON_TABLES = {
    name: _tabulate(name)
    for name in (
        "low",
        "high",
        "rise",
        "fall",
        "rise_days",
        "fall_days",
        "residue",
        "cut_days",
        "texture",
    )
}
_SEASON_TABLES["rise_days"] = np.maximum(_SEASON_TABLES["rise_days"], 1)
_SEASON_TABLES["fall_days"] = np.maximum(_SEASON_TABLES["fall_days"], 1)
_CANOPY, _GROUND = _tabulate_spectra("canopy"), _tabulate_spectra("ground")
_IS_SOIL = np.array([cover in SEASONS and SEASONS[cover].ground == "soil" for cover in Cover])
