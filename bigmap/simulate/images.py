"""True images: what a perfect sensor would see at 2.5 m, and a second sensor at 4.77 m."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
from affine import Affine

from bigmap.draws import derive_seed, hash_ints
from bigmap.errors import PlanError
from bigmap.scenes.items import BANDS
from bigmap.simulate.landscape import build_landscape
from bigmap.simulate.noise import F32, to_normal
from bigmap.simulate.painting import paint_ground
from bigmap.simulate.patch import NODE_M, Patch
from bigmap.simulate.sensor import make_sampler, spread_of
from bigmap.simulate.spectra import mix_spectra
from bigmap.simulate.truth import build_pieces, locate_window

SECOND_GSD_M = 4.77
"""Pixel size of the second sensor: that of web map tiles at zoom 15, as in Planet's mosaics."""
SECOND_RESPONSE = {
    "red": {"green": 0.10, "red": 0.75, "rededge1": 0.15},
    "green": {"blue": 0.15, "green": 0.75, "red": 0.10},
    "blue": {"coastal": 0.15, "blue": 0.75, "green": 0.10},
}
"""Its bands as mixtures of Sentinel-2's: broader, as those of small satellites are (assumed)."""
SECOND_NOISE = 0.004
"""Standard deviation of its noise, in reflectance; assumed."""
_SECOND_MTF = 0.2
_MARGIN_M = 40


def render_reflectance(
    crs: str,
    transform: Affine,
    shape: tuple[int, int],
    *,
    seed: int,
    day: dt.date,
    bands: tuple[str, ...],
) -> F32:
    """Render the surface reflectance of a day without sky, light, blur or noise.

    Parameters
    ----------
    crs, transform, shape
        A window of the 2.5 m lattice, as for :func:`bigmap.simulate.truth.render_truth`.
    bands
        Common names from :data:`bigmap.scenes.items.BANDS`.

    Returns
    -------
    numpy.ndarray
        float32 (band, y, x), in the order of ``bands``.

    Raises
    ------
    PlanError
        If a band is unknown or the window does not lie on the lattice.
    """
    unknown = [band for band in bands if band not in BANDS]
    if unknown:
        raise PlanError(f"{unknown[0]} is no band; choose from {', '.join(BANDS)}")
    result = np.empty((len(bands), *shape), dtype=np.float32)
    for landscape, target, source in build_pieces(crs, locate_window(transform), shape, seed=seed):
        spectra = mix_spectra(landscape.units, day)
        for index, band in enumerate(bands):
            result[index][target] = paint_ground(landscape, spectra, {band: 1.0})[source]
    return result


def render_second_sensor(
    crs: str, corner: tuple[int, int], shape: tuple[int, int], *, seed: int, day: dt.date
) -> tuple[F32, Affine]:
    """Render an RGB image of another sensor: other bands, 4.77 m, its own blur and noise.

    Parameters
    ----------
    corner
        Row and column of the window on the lattice of 4.77 m from the origin of the CRS.
    shape
        Size in pixels, (y, x).

    Returns
    -------
    image, transform
        float32 (band, y, x) in the order red, green, blue, in reflectance; and its place.
        Windows agree to within 1e-5.
    """
    row, column = corner
    left, top = column * SECOND_GSD_M, -row * SECOND_GSD_M
    patch = _cover(crs, left, top, shape)
    landscape = build_landscape(seed, patch)
    sigma_m = spread_of(SECOND_GSD_M, _SECOND_MTF)
    down, right = (
        make_sampler(SECOND_GSD_M, sigma_m, pixels=pixels, size=size, start_m=start)
        for pixels, size, start in (
            (shape[0], patch.shape[0], patch.top_m - top),
            (shape[1], patch.shape[1], left - patch.left_m),
        )
    )
    spectra = mix_spectra(landscape.units, day)
    rows = row + np.arange(shape[0])[:, None]
    columns = column + np.arange(shape[1])[None, :]
    image = np.empty((3, *shape), dtype=np.float32)
    for index, (name, response) in enumerate(SECOND_RESPONSE.items()):
        sampled = down @ paint_ground(landscape, spectra, response)
        image[index] = (right @ np.ascontiguousarray(sampled.T)).T
        bits = hash_ints(derive_seed(seed, "second", name, day.isoformat()), rows, columns)
        image[index] += np.float32(SECOND_NOISE) * to_normal(bits)
    return image, Affine(SECOND_GSD_M, 0, left, 0, -SECOND_GSD_M, top)


def _cover(crs: str, left: float, top: float, shape: tuple[int, int]) -> Patch:
    """Return the patch that covers a window of the second sensor and its blur."""
    west = math.floor((left - _MARGIN_M) / NODE_M)
    north = math.ceil((top + _MARGIN_M) / NODE_M)
    east = math.ceil((left + shape[1] * SECOND_GSD_M + _MARGIN_M) / NODE_M)
    south = math.floor((top - shape[0] * SECOND_GSD_M - _MARGIN_M) / NODE_M)
    return Patch(crs, west * NODE_M, north * NODE_M, north - south, east - west)
