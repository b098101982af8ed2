"""Clouds, their shadows and haze of one datatake, as functions of place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigmap.simulate.noise import F32, F64, derive_seed, hash_ints, sample_fractal, to_uniform

CLEAR_SHARE = 0.38
"""Share of datatakes without clouds over a place; an assumption for the Mediterranean."""


@dataclass(frozen=True)
class Weather:
    """The sky over a patch at the corners of 20 m squares, (rows + 1, columns + 1)."""

    cloud: F32
    """Opacity of low and middle clouds, 0 to 1."""
    cirrus: F32
    """Opacity of thin high clouds, 0 to 1."""
    shade: F32
    """Share of the direct sun that clouds take away, 0 to 1."""
    haze: F32
    """Residual path radiance in the blue, in reflectance."""


def sample_weather(
    seed: int, x: F64, y: F64, *, sun_azimuth: float, sun_elevation: float
) -> Weather:
    """Sample clouds and the shadows that they throw.

    A layer's shadow is the layer itself, seen from where its light comes from: moved away from
    the sun by its height over the tangent of the sun's elevation.

    Parameters
    ----------
    seed
        Of the datatake.
    x, y
        World coordinates in metres. North of the world plane stands for true north, which is
        wrong by the convergence of meridians (under 10 degrees in Catalonia).
    sun_azimuth, sun_elevation
        In degrees.
    """
    bits = hash_ints(seed, 7)
    mood, kind, height = (float(to_uniform(bits, draw=draw)[0]) for draw in (1, 2, 3))
    amount = _draw_amount(mood)
    base_m = 700 + 2300 * height
    reach = base_m / np.tan(np.radians(max(sun_elevation, 8.0)))
    towards = np.radians(sun_azimuth)
    east, north = reach * np.sin(towards), reach * np.cos(towards)
    cloud = _sample_layer(seed, x, y, amount=amount, kind=kind)
    shade = _sample_layer(seed, x + east, y + north, amount=amount, kind=kind)
    cirrus = _sample_cirrus(seed, x, y, mood=float(to_uniform(bits, draw=4)[0]))
    drift = sample_fractal(derive_seed(seed, "haze"), x, y, wavelength_m=30_000, octaves=3)
    level = 0.010 * float(to_uniform(bits, draw=5)[0])
    haze = level * (1 + 0.4 * drift) - 0.004
    return Weather(
        cloud.astype(np.float32),
        cirrus.astype(np.float32),
        (0.85 * shade).astype(np.float32),
        haze.astype(np.float32),
    )


def _draw_amount(mood: float) -> float:
    """Return the cloud threshold: very negative for clear skies, positive for overcast ones."""
    if mood < CLEAR_SHARE:
        return -3.6
    return -2.0 + 3.4 * (mood - CLEAR_SHARE) / (1 - CLEAR_SHARE)


def _sample_layer(seed: int, x: F64, y: F64, *, amount: float, kind: float) -> F64:
    """Return opacity: cumulus (small, crisp) for a low ``kind``, sheets (large, soft) else."""
    front = sample_fractal(derive_seed(seed, "front"), x, y, wavelength_m=90_000, octaves=3)
    size_m = 2_500 if kind < 0.5 else 14_000
    puffs = sample_fractal(
        derive_seed(seed, "puffs"), x, y, wavelength_m=size_m, octaves=7, gain=0.55
    )
    depth = 0.9 * front + puffs + amount
    crisp = 0.28 if kind < 0.5 else 0.7
    return np.asarray(np.clip(depth / crisp, 0, 1))


def _sample_cirrus(seed: int, x: F64, y: F64, *, mood: float) -> F64:
    if mood < 0.6:
        return np.zeros_like(x)
    turn = 2 * np.pi * mood
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    # Ice clouds are drawn out along the wind.
    streaks = sample_fractal(
        derive_seed(seed, "cirrus"), along / 4, across, wavelength_m=9_000, octaves=5
    )
    return np.asarray(np.clip(0.18 * (streaks - 0.3), 0, 0.35))
