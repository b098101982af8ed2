"""Variation within parcels and stands."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bigmap.simulate.noise import F32, F64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.patch import FINE_M
from bigmap.simulate.voronoi import Cells

_SIDE = 512
_SLOPE = 0.65
"""Fall of amplitude with frequency: between white noise (0) and relief (2); an assumption."""


def sample_texture(seed: int, x: F64, y: F64, cells: Cells, cover: npt.NDArray[np.uint8]) -> F32:
    """Sample the texture of the ground, mean 0 and variance 1 in each cell.

    A periodic field of 512 x 512 pixels holds all scales from 2.5 m to a kilometre. Each cell
    and cover reads it from a place of its own, so that nothing repeats visibly.

    Parameters
    ----------
    x, y
        World coordinates of the pixels in metres, (y, x).
    """
    start = hash_ints(seed, cells.bits.view(np.int64)).view(np.int64) & (_SIDE**2 - 1)
    column = np.floor(x / FINE_M).astype(np.int64) & (_SIDE - 1)
    row = np.floor(y / FINE_M).astype(np.int64) & (_SIDE - 1)
    index = row * _SIDE + column + start[cells.owner] + cover.astype(np.int64) * 40961
    return np.asarray(_make_field(seed)[index & (_SIDE**2 - 1)])


@lru_cache(maxsize=4)
def _make_field(seed: int) -> F32:
    """Shape white noise to a power law in the frequency domain; float32 (512 * 512,)."""
    places = np.arange(_SIDE**2)
    bits = hash_ints(derive_seed(seed, "field"), places)
    radius = np.sqrt(-2 * np.log1p(-to_uniform(bits, draw=1)))
    white = radius * np.cos(2 * np.pi * to_uniform(bits, draw=2))
    frequency = np.fft.fftfreq(_SIDE)
    distance = np.hypot(frequency[:, None], frequency[None, : _SIDE // 2 + 1])
    distance[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(white.reshape(_SIDE, _SIDE)) * distance**-_SLOPE)
    return np.asarray((field / field.std()).astype(np.float32).ravel())
