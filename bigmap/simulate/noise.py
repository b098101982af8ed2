"""Random numbers that are functions of a seed and a place: nearly normal ones and smooth noise.

Nothing here has a state: the value at a place is the same in every call, process and window.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bigmap.draws import F64, U64, derive_seed, hash_ints, to_uniform

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def to_normal(bits: U64) -> F32:
    """Turn hashes into nearly normal numbers of mean 0 and variance 1.

    The sum of four uniform numbers: within 3.5 standard deviations, excess kurtosis -0.3.
    """
    quarters = np.ascontiguousarray(bits).view(np.uint16).reshape(*bits.shape, 4)
    total = quarters[..., 0].astype(np.float32)
    for part in range(1, 4):
        total += quarters[..., part]
    return (total * np.float32(1 / 65536) - np.float32(2)) * np.float32(np.sqrt(3))


def sample_noise(seed: int, x: F64, y: F64, *, wavelength_m: float) -> F64:
    """Sample gradient noise (K. Perlin, 2002, doi:10.1145/566654.566636).

    Parameters
    ----------
    x, y
        World coordinates in metres, float64, any shape.
    wavelength_m
        Spacing of the lattice of random gradients.

    Returns
    -------
    numpy.ndarray
        float64, the shape of ``x``; smooth, mean 0, standard deviation 0.78.
    """
    u, v = x / wavelength_m, y / wavelength_m
    column, row = np.floor(u), np.floor(v)
    u, v = u - column, v - row
    first_column, first_row = int(column.min()), int(row.min())
    columns = np.arange(first_column, int(column.max()) + 2)
    rows = np.arange(first_row, int(row.max()) + 2)
    angle = to_uniform(hash_ints(seed, rows[:, None], columns[None, :])) * (2 * np.pi)
    east, north = np.cos(angle).ravel(), np.sin(angle).ravel()
    corner = ((row - first_row) * len(columns) + (column - first_column)).astype(np.int64)

    def ramp(down: int, right: int) -> F64:
        node = corner + (down * len(columns) + right)
        return np.asarray(east[node] * (u - right) + north[node] * (v - down))

    fade_u = u * u * u * (u * (u * 6 - 15) + 10)
    fade_v = v * v * v * (v * (v * 6 - 15) + 10)
    top = ramp(0, 0) + fade_u * (ramp(0, 1) - ramp(0, 0))
    bottom = ramp(1, 0) + fade_u * (ramp(1, 1) - ramp(1, 0))
    return np.asarray((top + fade_v * (bottom - top)) * _HEIGHT)


NOISE_STD = 0.78
"""Standard deviation of the noise, measured."""
_HEIGHT = 3.6
"""Gradients of unit length give a standard deviation of 0.216 and extremes of 0.7 (measured)."""


def sample_fractal(
    seed: int, x: F64, y: F64, *, wavelength_m: float, octaves: int, gain: float = 0.5
) -> F64:
    """Sum octaves of noise, each at half the wavelength and ``gain`` times the height.

    The sum is scaled to the variance of one octave; ``gain`` 0.5 gives a spectrum near 1/f^2 in
    amplitude, as relief and clouds have (R. F. Voss, 1985, doi:10.1007/978-3-642-84574-1_34).
    """
    total = np.zeros_like(x)
    power = 0.0
    for octave in range(octaves):
        total += gain**octave * sample_noise(
            derive_seed(seed, octave), x, y, wavelength_m=wavelength_m / 2**octave
        )
        power += gain ** (2 * octave)
    return np.asarray(total / np.sqrt(power))
