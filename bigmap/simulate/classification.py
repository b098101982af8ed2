"""A scene classification at 20 m that errs in the ways of Sen2Cor.

The kinds of error are those that comparisons report: bright ground and roofs taken for cloud,
thin edges of clouds missed, shadows taken for water and water for shadow (K. Tarrio et al.
2020, doi:10.1016/j.srs.2020.100010; S. Skakun et al. 2022, doi:10.1016/j.rse.2022.112990). Their
rates are our assumptions; ``docs/simulation.md`` states the confusion that results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bigmap.simulate.covers import ROOFS, Cover
from bigmap.simulate.noise import F32, F64, derive_seed, sample_noise

U8 = npt.NDArray[np.uint8]

DARK, SHADOW, VEGETATION, BARE, WATER, UNCLASSIFIED = 2, 3, 4, 5, 6, 7
CLOUD_LIKELY, CLOUD_SURE, CIRRUS, SNOW = 8, 9, 10, 11

WATER_AS_SHADOW = 0.12
"""Share of open water that is called shadow."""
SHADOW_MISSED = 0.25
"""Share of cloud shadows that is called what lies below."""
SHADOW_AS_DARK = 0.2
"""Share of cloud shadows that is called a dark feature."""


@dataclass(frozen=True)
class Scene:
    """What the classifier sees, and the truth that it guesses at; (y, x) at 20 m."""

    cover: U8
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
        Of the datatake: errors come in patches of some 100 m that differ between datatakes.
    x, y
        World coordinates of the pixels, in metres.

    Returns
    -------
    numpy.ndarray
        uint8 (y, x), classes 2 to 11 of the L2A product definition.
    """

    def happens(purpose: str, share: float) -> npt.NDArray[np.bool_]:
        noise = sample_noise(derive_seed(seed, purpose), x, y, wavelength_m=140)
        return np.asarray(1 / (1 + np.exp(-1.7 * noise)) < share)

    ndvi = (scene.nir - scene.red) / np.maximum(scene.nir + scene.red, 0.01)
    scl = np.where(ndvi > 0.38, VEGETATION, BARE).astype(np.uint8)
    scl[scene.cover == Cover.WATER] = WATER
    scl[(scene.cover == Cover.WATER) & happens("water", WATER_AS_SHADOW)] = SHADOW
    scl[(scene.nir < 0.09) & (scl == BARE)] = DARK
    scl[(scene.snow > 0.4) | (scene.cover == Cover.SNOW)] = SNOW
    dark = (scene.shade > 0.25) & (scl != WATER) & ~happens("shadow", SHADOW_MISSED)
    scl[dark] = SHADOW
    scl[dark & happens("dark", SHADOW_AS_DARK)] = DARK
    # What is called cloud is bright in the blue, whether it is one or a roof.
    white = scene.blue / np.maximum(scene.red, 0.01) > 0.72
    likely = white & (scene.blue > 0.19) & (scl != SNOW)
    scl[(scene.blue > 0.15) & white & (scl != SNOW) & (scene.cloud > 0.02)] = UNCLASSIFIED
    scl[scene.cirrus > 0.05] = CIRRUS
    scl[likely] = CLOUD_LIKELY
    scl[likely & (scene.blue > 0.38)] = CLOUD_SURE
    return scl


def label_truth(scene: Scene) -> U8:
    """Return the classification without errors: what truly covers most of each pixel."""
    bare = (Cover.ROAD, Cover.TRACK, Cover.PAVED, Cover.ROCK, *ROOFS)
    ndvi = (scene.nir - scene.red) / np.maximum(scene.nir + scene.red, 0.01)
    scl = np.where((ndvi > 0.38) & ~np.isin(scene.cover, bare), VEGETATION, BARE).astype(np.uint8)
    scl[scene.cover == Cover.WATER] = WATER
    scl[(scene.snow > 0.5) | (scene.cover == Cover.SNOW)] = SNOW
    scl[scene.shade > 0.2] = SHADOW
    scl[scene.cirrus > 0.03] = CIRRUS
    scl[scene.cloud > 0.1] = CLOUD_SURE
    return scl
