"""The legends that recipes can name, and those that they spell out."""

from __future__ import annotations

from bigmap.models.base import ClassEntry

CROPLAND = (
    ClassEntry(0, "other", "#d9d2c5"),
    ClassEntry(1, "cropland", "#3f8f29"),
)
"""Cropland against everything else, as SPInet's paper maps it."""

BUILDINGS = (
    ClassEntry(0, "other", "#e8e4da"),
    ClassEntry(1, "building", "#b3202c"),
)
"""Building footprints, as Razzak et al. (2021) map them."""

S2GLC = (
    ClassEntry(0, "clouds", "#ffffff"),
    ClassEntry(62, "artificial surfaces and constructions", "#d20000"),
    ClassEntry(73, "cultivated areas", "#fdd327"),
    ClassEntry(75, "vineyards", "#b05b10"),
    ClassEntry(82, "broadleaf tree cover", "#239800"),
    ClassEntry(83, "coniferous tree cover", "#086200"),
    ClassEntry(102, "herbaceous vegetation", "#f99627"),
    ClassEntry(103, "moors and heathland", "#8d8b00"),
    ClassEntry(104, "sclerophyllous vegetation", "#5f3506"),
    ClassEntry(105, "marshes", "#956bc4"),
    ClassEntry(106, "peatbogs", "#4d256a"),
    ClassEntry(121, "natural material surfaces", "#9a9a9a"),
    ClassEntry(123, "permanent snow covered surfaces", "#6affff"),
    ClassEntry(162, "water bodies", "#1445f9"),
)
"""S2GLC (Malinowski et al. 2020, doi:10.3390/rs12213523), which Abadal et al. (2021) map."""

LEGENDS = {"cropland": CROPLAND, "buildings": BUILDINGS, "s2glc": S2GLC}
