"""Reflectance of the ground: endmembers, the course of the seasons, and their mixture.

The endmember values are our own readings, rounded to about 0.005, of the typical shapes and
levels of published spectra: vegetation, soils, water, snow, rock and building materials of the
USGS library (R. Kokaly et al. 2017, doi:10.3133/ds1035) and ECOSTRESS (S. Meerdink et al. 2019,
doi:10.1016/j.rse.2019.05.015). They are plausible levels, not the libraries' numbers. Seasons
are double logistic curves (P. Beck et al. 2006, doi:10.1016/j.rse.2005.10.021) whose dates are
our assumptions for 42 degrees north; they come four days later for each degree of latitude
(A. Hopkins 1918, the bioclimatic law).

Colours vary by more than these endmembers: soils by tone, iron and moisture (wet soil is up to
half as bright: D. Lobell and G. Asner 2002, doi:10.2136/sssaj2002.7220), canopies by pigment,
structure and water (the parameters of leaves in PROSPECT: S. Jacquemoud and F. Baret 1990,
doi:10.1016/0034-4257(90)90100-Z), by dead matter among the green, and every unit by a little in
each band on its own. The sizes of these variations are our assumptions.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import numpy as np

from bigmap.draws import F64, hash_ints, to_uniform
from bigmap.scenes.items import BANDS
from bigmap.simulate.covers import N_COVERS, Cover
from bigmap.simulate.noise import F32, to_normal
from bigmap.simulate.units import Units

# Wavelengths, in nm: 443 490 560 665 705 740 783 842 865 945 1375 1610 2190
ENDMEMBERS: dict[str, tuple[float, ...]] = {
    "light soil": (.10, .13, .18, .24, .26, .27, .29, .30, .31, .32, .33, .38, .33),
    "dark soil": (.05, .06, .085, .115, .13, .14, .155, .165, .17, .18, .20, .24, .20),
    "red soil": (.04, .055, .085, .17, .20, .215, .235, .245, .255, .27, .32, .36, .31),
    "crop": (.02, .025, .06, .025, .09, .36, .47, .50, .52, .51, .20, .21, .09),
    "straw": (.08, .11, .17, .24, .27, .29, .32, .34, .35, .36, .35, .38, .27),
    "litter": (.045, .06, .085, .125, .15, .175, .20, .22, .235, .25, .24, .28, .21),
    "grass": (.023, .03, .067, .033, .105, .31, .39, .42, .44, .44, .23, .24, .12),
    "broadleaf": (.015, .02, .042, .02, .07, .30, .41, .45, .47, .47, .18, .175, .075),
    "bare wood": (.035, .045, .06, .08, .095, .115, .135, .15, .16, .17, .18, .20, .14),
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
"""Surface reflectance in the 13 bands of :data:`bigmap.scenes.items.BANDS`."""


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
    mate: str = ""
    """Canopy of which a unit holds up to 40 %: no stand is quite pure."""


# How a standard deviation of each variation changes the logarithm of reflectance.
# Wavelengths, in nm: 443 490 560 665 705 740 783 842 865 945 1375 1610 2190
_CHLOROPHYLL = (0.04, 0.07, 0.15, 0.09, 0.13, 0.04, 0, 0, 0, 0, 0, 0, 0)
_STRUCTURE = (-0.03, -0.03, -0.02, -0.03, 0.02, 0.06, 0.08, 0.09, 0.09, 0.09, 0.08, 0.06, 0.04)
_WATER = (0, 0, 0, 0, 0, 0, 0, 0, 0.005, 0.02, 0.10, 0.08, 0.12)
_ALONE = (0.06, 0.055, 0.045, 0.06, 0.035, 0.02, 0.015, 0.015, 0.015, 0.015, 0.03, 0.03, 0.045)
"""Of each band on its own."""
_WETNESS = (0.9, 0.9, 0.95, 1, 1, 1, 1, 1, 1, 1.05, 1.3, 1.2, 1.4)
"""How much more or less a band darkens in wet soil than the red does."""
_AGEING = (0, 0.05, 0.10, 0.15, 0.12, 0, -0.08, -0.10, -0.10, -0.10, 0, 0.05, 0.08)
"""Change of a tree's leaves from their first month to autumn."""

TONE: F32 = np.array(
    (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.055, 0.055, 0.055, 0.055, 0.055, 0.06, 0.06), np.float32
)
"""Relative change of each band for a standard deviation of the texture's tone."""
HUE: F32 = np.array(
    (-0.05, -0.045, -0.01, 0.045, 0.035, 0, -0.025, -0.035, -0.035, -0.035, 0, 0.03, 0.045),
    np.float32,
)
"""Relative change of each band for a standard deviation of the texture's hue."""


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
    Cover.BROADLEAF: Season("broadleaf", "bare wood", 0.09, 0.96, 108, 300, 6, 12,
                            texture=0.13, mate="conifer"),
    Cover.CONIFER: Season("conifer", "bare wood", 0.88, 0.95, 120, 300, 20, 20, texture=0.14,
                          mate="broadleaf"),
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
    green = _grow(units, names, day)[:, None]
    ground = _lay_ground(units, names, green, day)
    canopy = _draw_canopy(units, names, day)
    mean = ground + green * (canopy - ground)
    alone = _ALONE * to_normal(hash_ints(11, _as_ints(units)[:, None], np.arange(len(BANDS))))
    bright = np.exp(0.06 * to_normal(hash_ints(2, _as_ints(units)))[:, None] + alone)
    has_season = (names["high"] > names["low"])[:, None]
    # A little of the variation is brightness everywhere: roughness, moisture, slope.
    slope = (
        1.3
        * names["texture"][:, None]
        * np.where(has_season, (canopy - ground) + 0.25 * mean, mean)
    )
    return (mean * bright).astype(np.float32), (slope * bright).astype(np.float32)


def _lay_ground(units: Units, season: dict[str, F64], green: F64, day: dt.date) -> F64:
    """Return the reflectance of what lies below the plants: soil, dry or wet, and dead matter."""
    light, red = units.soil_light[:, None], units.soil_red[:, None]
    dark = _SPECTRA["dark soil"] + red * (_SPECTRA["red soil"] - _SPECTRA["dark soil"])
    soil = dark + light * (_SPECTRA["light soil"] - dark)
    wet = _moisten(units, day)[:, None]
    soil = soil * (1 - 0.45 * wet * _WETNESS)
    ground = np.where(_IS_SOIL[units.cover][:, None], soil, _GROUND[units.cover])
    # Straw lies until the land is tilled, and weathers to grey litter meanwhile.
    after = _day_of_year(units, day) - (season["fall"] + 2 * season["fall_days"])
    until = 20 + 70 * to_uniform(units.bits, draw=47)
    fading = 1 / (1 + np.exp((after - until) / 8)) / (1 + np.exp(-after / 3))
    left = 0.4 + 0.9 * to_uniform(units.bits, draw=48)
    share = season["residue"] * left * (1 - 0.4 * units.humidity) * fading
    grey = 1 / (1 + np.exp(-(after - 25) / 10)) * (0.3 + 0.5 * units.humidity)
    straw = _SPECTRA["straw"] + grey[:, None] * (_SPECTRA["litter"] - _SPECTRA["straw"])
    # What else has died lies on all soil, more of it where plants grow.
    dead = 0.25 * to_uniform(units.bits, draw=49)[:, None] * _IS_SOIL[units.cover][:, None]
    ground = ground + dead * (_SPECTRA["litter"] - ground)
    return np.asarray(ground + share[:, None] * (1 - green) * (straw - ground))


def _moisten(units: Units, day: dt.date) -> F64:
    """Return how wet the soil is, 0 to 1: by climate, season, the week's rain and drainage.

    Rain is drawn for spans of eight days, the same in all worlds, and flows from one to the next.
    """
    span, part = divmod(day.toordinal(), 8)
    first, second = (float(to_uniform(hash_ints(12, span + step))[0]) for step in (0, 1))
    rain = (first + (second - first) * part / 8) ** 2
    winter = 0.5 + 0.5 * np.cos(2 * np.pi * (_day_of_year(units, day) - 15) / 365)
    wet = 0.15 + 0.25 * units.humidity + 0.3 * winter + 0.6 * rain
    return np.asarray(np.clip(wet * (0.4 + 0.8 * to_uniform(units.bits, draw=50)), 0, 1))


def _draw_canopy(units: Units, season: dict[str, F64], day: dt.date) -> F64:
    """Return the reflectance of each unit's plants: mixed stands, pigments, dead leaves, age."""
    cover = units.cover
    mixed = 0.4 * to_uniform(units.bits, draw=51)[:, None] ** 2
    canopy = _CANOPY[cover] + mixed * (_MATE[cover] - _CANOPY[cover])
    green = _IS_GREEN[cover][:, None]
    dry = np.where(_IN_LEAF[cover], 0.03, 0.12) * (1 - 0.6 * units.humidity)
    dead = (dry * to_uniform(units.bits, draw=46))[:, None]
    canopy = canopy + dead * green * (_SPECTRA["litter"] - canopy)
    change = sum(
        np.array(pattern) * to_normal(hash_ints(number, _as_ints(units)))[:, None]
        for number, pattern in ((1, _STRUCTURE), (13, _CHLOROPHYLL), (14, _WATER))
    )
    today = _day_of_year(units, day)
    age = np.clip((today - season["rise"]) / 180, 0, 1) * np.exp(
        -np.logaddexp(0, (today - season["fall"]) / season["fall_days"] * 1.5)
    )
    change = change + _IS_TREE[cover][:, None] * age[:, None] * np.array(_AGEING)
    return np.asarray(canopy * np.exp(green * change))


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
    regrowth = (0.08 + 0.8 * units.humidity) * to_uniform(units.bits, draw=44) ** 0.7
    growth = growth + dead * regrowth / (1 + np.exp(-(today - season["fall"] - late - 24) / 8))
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
        name = getattr(season, part) or season.canopy
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
_CANOPY, _GROUND, _MATE = (_tabulate_spectra(part) for part in ("canopy", "ground", "mate"))
_IS_GREEN = _SEASON_TABLES["high"] > _SEASON_TABLES["low"]
_IN_LEAF = np.isin(np.arange(N_COVERS), (Cover.BROADLEAF, Cover.CONIFER, Cover.HEDGE))
_IS_TREE = np.isin(np.arange(N_COVERS), (Cover.BROADLEAF, Cover.HEDGE, Cover.ORCHARD))
_IS_SOIL = np.array([cover in SEASONS and SEASONS[cover].ground == "soil" for cover in Cover])
