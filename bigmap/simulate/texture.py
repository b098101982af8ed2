"""Variation within parcels and stands: how dense plants stand, and the tone of the ground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.noise import F32
from bigmap.simulate.patch import FINE_M
from bigmap.simulate.voronoi import Cells

_SIDE = 512
_SLOPES = {"density": 0.65, "tone": 0.9, "hue": 0.75}
"""Fall of amplitude with frequency: between white noise (0) and relief (2); assumptions.

Soil varies along slopes over 20 to 300 m, so its tone falls more steeply than plants do.
"""


@dataclass(frozen=True)
class Texture:
    """Independent fields of mean 0 and variance 1 in each cell, float32 (y, x) at 2.5 m."""

    density: F32
    """Of plants, or brightness where there are none; starts anew with each cover."""
    tone: F32
    """Of soil and stands: what makes all bands brighter; runs on under parcels."""
    hue: F32
    """What makes long wavelengths brighter and short ones darker; runs on under parcels."""


def sample_texture(
    seed: int, x: F64, y: F64, cells: Cells, cover: npt.NDArray[np.uint8]
) -> Texture:
    """Sample the texture of the ground.

    Periodic fields of 512 x 512 pixels hold all scales from 2.5 m to a kilometre. Each cell
    reads them from a place of its own, so that nothing repeats visibly.

    Parameters
    ----------
    x, y
        World coordinates of the pixels in metres, (y, x).
    """
    start = hash_ints(seed, cells.bits.view(np.int64)).view(np.int64) & (_SIDE**2 - 1)
    column = np.floor(x / FINE_M).astype(np.int64) & (_SIDE - 1)
    row = np.floor(y / FINE_M).astype(np.int64) & (_SIDE - 1)
    index = (row * _SIDE + column + start[cells.owner]) & (_SIDE**2 - 1)
    tone, hue = (np.take(_make_field(seed, name), index) for name in ("tone", "hue"))
    index += cover.astype(np.int64) * 40961
    index &= _SIDE**2 - 1
    return Texture(np.take(_make_field(seed, "density"), index), tone, hue)


@lru_cache(maxsize=12)
def _make_field(seed: int, name: str) -> F32:
    """Shape white noise to a power law in the frequency domain; float32 (512 * 512,)."""
    places = np.arange(_SIDE**2)
    bits = hash_ints(derive_seed(seed, name), places)
    radius = np.sqrt(-2 * np.log1p(-to_uniform(bits, draw=1)))
    white = radius * np.cos(2 * np.pi * to_uniform(bits, draw=2))
    frequency = np.fft.fftfreq(_SIDE)
    distance = np.hypot(frequency[:, None], frequency[None, : _SIDE // 2 + 1])
    distance[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(white.reshape(_SIDE, _SIDE)) * distance ** -_SLOPES[name])
    return np.asarray((field / field.std()).astype(np.float32).ravel())
