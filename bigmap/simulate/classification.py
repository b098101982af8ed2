"""A scene classification at 20 m that errs in the ways of Sen2Cor.

The kinds of error are those that comparisons report: bright ground and roofs taken for cloud,
thin edges of clouds missed, shadows taken for water and water for shadow (K. Tarrio et al.
2020, doi:10.1016/j.srs.2020.100010; S. Skakun et al. 2022, doi:10.1016/j.rse.2022.112990), and
mixed pixels and plain ground taken for another class or for none. Their rates are our
assumptions; ``docs/simulation.md`` states the confusion that results. Errors come in patches of
up to some 200 m and more often at borders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from bigmap.draws import F64, derive_seed
from bigmap.simulate.covers import Cover
from bigmap.simulate.noise import F32, NOISE_STD, sample_fractal

U8 = npt.NDArray[np.uint8]

DARK, SHADOW, VEGETATION, BARE, WATER, UNCLASSIFIED = 2, 3, 4, 5, 6, 7
CLOUD_LIKELY, CLOUD_SURE, CIRRUS, SNOW = 8, 9, 10, 11

GROUND_ERRORS = {
    VEGETATION: ((BARE, 0.01), (UNCLASSIFIED, 0.006), (SHADOW, 0.002)),
    BARE: ((VEGETATION, 0.03), (UNCLASSIFIED, 0.04), (CIRRUS, 0.01)),
    WATER: ((SHADOW, 0.05), (DARK, 0.03)),
}
"""What clear ground is called wrongly, and its share, away from borders."""
BRIGHT_AS_CLOUD = 0.12
"""Share of bare ground brighter than 0.12 in the blue that is called cloud of medium chance."""
DARK_VEGETATION_AS_DARK = 0.03
"""Share of vegetation below 0.2 in the near infrared that is called a dark feature."""
BORDER = 2.5
"""How much more often errors happen in pixels where two covers meet."""
SHADOW_MISSED = 0.25
"""Share of cloud shadows that is called what lies below."""
SHADOW_AS_DARK = 0.2
"""Share of the cloud shadows that are seen that is called a dark feature."""
CIRRUS_MISSED, CIRRUS_AS_CLOUD = 0.3, 0.1
"""Shares of cirrus that is called what lies below, and cloud of medium chance."""
CLOUD_AS_LIKELY = 0.2
"""Share of opaque cloud that is called cloud of medium chance."""
_SIZE_M = 240
"""Of the largest patches of errors."""


@dataclass(frozen=True)
class Scene:
    """What the classifier sees, and the truth that it guesses at; (y, x) at 20 m."""

    cover: U8
    border: npt.NDArray[np.bool_]
    """Where a neighbour has another cover."""
    blue: F32
    red: F32
    nir: F32
    cloud: F32
    cirrus: F32
    shade: F32
    snow: F32


def classify_scene(seed: int, scene: Scene, x: F64, y: F64) -> U8:
    """Classify a scene as Sen2Cor might.

    Parameters
    ----------
    seed
        Of the datatake: errors differ between datatakes.
    x, y
        World coordinates of the pixels, in metres.

    Returns
    -------
    numpy.ndarray
        uint8 (y, x), classes 2 to 11 of the L2A product definition.
    """

    def draw(purpose: str) -> F64:
        noise = sample_fractal(derive_seed(seed, purpose), x, y, wavelength_m=_SIZE_M, octaves=3)
        return np.asarray(ndtr(noise / NOISE_STD))

    scl = _classify_ground(scene, draw("ground"))
    sky = draw("sky")
    dark = (scene.shade > 0.25) & (scl != WATER) & (sky > SHADOW_MISSED)
    scl[dark] = SHADOW
    scl[dark & (sky > 1 - SHADOW_AS_DARK * (1 - SHADOW_MISSED))] = DARK
    # What is called cloud is bright in the blue, whether it is one or a roof.
    white = scene.blue / np.maximum(scene.red, 0.01) > 0.72
    likely = white & (scene.blue > 0.19) & (scl != SNOW)
    scl[(scene.blue > 0.15) & white & (scl != SNOW) & (scene.cloud > 0.02)] = UNCLASSIFIED
    thin = (scene.cirrus > 0.05) & (sky > CIRRUS_MISSED)
    scl[thin] = CIRRUS
    scl[likely | (thin & (sky > 1 - CIRRUS_AS_CLOUD))] = CLOUD_LIKELY
    scl[likely & (scene.blue > 0.38) & (sky > CLOUD_AS_LIKELY)] = CLOUD_SURE
    return scl


def _classify_ground(scene: Scene, luck: F64) -> U8:
    """Classify what a clear sky would show; ``luck`` is uniform in [0, 1)."""
    early = np.where(scene.border, luck / BORDER, luck)
    ndvi = (scene.nir - scene.red) / np.maximum(scene.nir + scene.red, 0.01)
    right = np.where(ndvi > 0.38, VEGETATION, BARE).astype(np.uint8)
    # Brooks narrower than a pixel look like their banks.
    right[(scene.cover == Cover.WATER) & (ndvi < 0.3)] = WATER
    scl = right.copy()
    for code, errors in GROUND_ERRORS.items():
        limit = 0.0
        for wrong, share in errors:
            scl[(right == code) & (early >= limit) & (early < limit + share)] = wrong
            limit += share
    # The other end of the same chance, so that errors do not overlap.
    bright = (right == BARE) & (scene.blue > 0.12) & (luck > 1 - BRIGHT_AS_CLOUD)
    scl[bright] = CLOUD_LIKELY
    dim = (right == VEGETATION) & (scene.nir < 0.2) & (luck > 1 - DARK_VEGETATION_AS_DARK)
    scl[dim | ((scene.nir < 0.09) & (right == BARE))] = DARK
    scl[(scene.snow > 0.4) | (scene.cover == Cover.SNOW)] = SNOW
    return scl
