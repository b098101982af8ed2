"""Clouds, their shadows, haze and snow of one datatake, as functions of place.

How often which sky occurs, and how large, high and dense clouds are, are our assumptions; the
page ``docs/simulation.md`` compares what comes out with real scenes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigmap.draws import F64, derive_seed, hash_ints, to_uniform
from bigmap.simulate.noise import F32, sample_fractal

CLEAR_SHARE = 0.4
"""Share of datatakes with a blue sky."""
CIRRUS_SHARE = 0.28
"""Share of datatakes with high thin clouds."""
HAZE_BLUE = 0.012
"""Largest path radiance that the atmospheric correction leaves in the blue, in reflectance."""


@dataclass(frozen=True)
class Weather:
    """The sky over a patch at the corners of 20 m squares, (rows + 1, columns + 1)."""

    cloud: F32
    """Opacity of low and middle clouds, 0 to 1."""
    brightness: F32
    """Reflectance of the cloud in the visible."""
    cirrus: F32
    """Opacity of thin high clouds, 0 to 0.4."""
    shade: F32
    """Share of the direct sun that clouds take away, 0 to 1."""
    haze: F32
    """Residual path radiance in the blue, in reflectance."""


@dataclass(frozen=True)
class Layer:
    """Low and middle clouds of one datatake."""

    amount: float
    """Threshold: very negative for blue skies, positive for overcast ones."""
    size_m: float
    """Size of the largest clouds."""
    crispness: float
    """Rise of the noise from the edge of a cloud to where it is opaque."""
    base_m: float
    """Height above the ground."""


def draw_layer(seed: int) -> Layer:
    """Draw the clouds of a datatake: blue sky, small cumulus, broken fields or sheets."""
    bits = hash_ints(seed, 7)
    mood, kind, height = (float(to_uniform(bits, draw=draw)[0]) for draw in (1, 2, 3))
    amount = -4.5 if mood < CLEAR_SHARE else -2.4 + 3.6 * (mood - CLEAR_SHARE) / (1 - CLEAR_SHARE)
    if kind < 0.45:
        return Layer(amount - 0.3, 1_400, 0.25, 700 + 1300 * height)
    if kind < 0.75:
        return Layer(amount, 4_500, 0.35, 1000 + 2500 * height)
    return Layer(amount, 18_000, 0.9, 500 + 3500 * height)


def sample_weather(seed: int, x: F64, y: F64, *, sun: tuple[F64, F64], north: float) -> Weather:
    """Sample clouds and the shadows that they throw.

    A shadow is the layer seen from where the light comes from: moved away from the sun by its
    height over the tangent of the sun's elevation. That the cloud itself appears displaced by
    up to a fifth of its height at the edge of the swath is left out.

    Parameters
    ----------
    seed
        Of the datatake.
    x, y
        World coordinates in metres.
    sun
        Azimuth and elevation at these places, in degrees.
    north
        Azimuth of true north in the world plane, in radians clockwise from its y axis.
    """
    layer = draw_layer(seed)
    azimuth, elevation = (np.radians(angle) for angle in sun)
    reach = layer.base_m / np.tan(elevation)
    depth = _sample_depth(seed, x, y, layer)
    from_x = x + reach * np.sin(azimuth + north)
    from_y = y + reach * np.cos(azimuth + north)
    shade = np.clip(_sample_depth(seed, from_x, from_y, layer) / layer.crispness, 0, 1)
    level = HAZE_BLUE * float(to_uniform(hash_ints(seed, 7), draw=5)[0])
    drift = sample_fractal(derive_seed(seed, "haze"), x, y, wavelength_m=30_000, octaves=3)
    return Weather(
        cloud=np.clip(depth / layer.crispness, 0, 1).astype(np.float32),
        brightness=(0.42 + 0.45 * np.clip(depth / 2.0, 0, 1)).astype(np.float32),
        cirrus=_sample_cirrus(seed, x, y).astype(np.float32),
        shade=(0.8 * shade).astype(np.float32),
        haze=(level * (1 + 0.4 * drift) - 0.3 * HAZE_BLUE).astype(np.float32),
    )


def _sample_depth(seed: int, x: F64, y: F64, layer: Layer) -> F64:
    front = sample_fractal(derive_seed(seed, "front"), x, y, wavelength_m=90_000, octaves=3)
    octaves = 6 if layer.size_m < 2_000 else 8
    puffs = sample_fractal(
        derive_seed(seed, "puffs"), x, y, wavelength_m=layer.size_m, octaves=octaves, gain=0.55
    )
    return np.asarray(0.8 * front + puffs + layer.amount)


def _sample_cirrus(seed: int, x: F64, y: F64) -> F64:
    mood, turn = (float(to_uniform(hash_ints(seed, 8), draw=draw)[0]) for draw in (1, 2))
    if mood > CIRRUS_SHARE:
        return np.zeros_like(x)
    turn *= 2 * np.pi
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    # Ice clouds are drawn out along the wind.
    streaks = sample_fractal(
        derive_seed(seed, "cirrus"), along / 4, across, wavelength_m=12_000, octaves=6
    )
    return np.asarray(np.clip(0.16 * (streaks - 0.4), 0, 0.4))


def sample_snow(seed: int, elevation_m: F64, x: F64, y: F64, *, day_of_year: int) -> F32:
    """Return the share of open ground under seasonal snow, 0 to 1.

    The snow line swings between 1,500 m in early February and 3,100 m in early August (an
    assumption for 42 degrees north), by 250 m between datatakes, and is ragged.
    """
    swing = np.cos(2 * np.pi * (day_of_year - 35) / 365)
    luck = float(to_uniform(hash_ints(seed, 9))[0]) - 0.5
    line = 2300 - 800 * swing + 500 * luck
    if float(elevation_m.max()) < line - 800:
        return np.zeros(elevation_m.shape, dtype=np.float32)
    ragged = sample_fractal(derive_seed(seed, "snow"), x, y, wavelength_m=900, octaves=5)
    return np.asarray(np.clip((elevation_m + 120 * ragged - line) / 120, 0, 1).astype(np.float32))
