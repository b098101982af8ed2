"""Reflectance of every pixel of a landscape, from the spectra of its units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bigmap.scenes.items import BANDS
from bigmap.simulate.landscape import Landscape
from bigmap.simulate.noise import F32
from bigmap.simulate.spectra import HUE, TONE


def paint_ground(
    landscape: Landscape, spectra: tuple[F32, F32], response: Mapping[str, float]
) -> F32:
    """Paint a landscape as a mixture of bands sees it.

    Parameters
    ----------
    spectra
        From :func:`bigmap.simulate.spectra.mix_spectra`.
    response
        Weight of each band by common name.

    Returns
    -------
    numpy.ndarray
        float32 (y, x) at 2.5 m, reflectance of at least 0.001.
    """
    mean, slope = spectra
    # Sums in a fixed order: a matrix product may round a unit by where it stands in the table.
    level, change, tone, hue = (
        sum(np.float32(weight) * part[..., BANDS.index(band)] for band, weight in response.items())
        for part in (mean, slope, TONE, HUE)
    )
    texture = landscape.texture
    ground = np.take(change, landscape.unit)
    ground *= texture.density
    ground += np.take(level, landscape.unit)
    # Weights of a response sum to 1, so tone and hue are those of the mixture.
    factor = texture.tone * tone
    factor += texture.hue * hue
    factor += np.float32(1)
    ground *= factor
    return np.asarray(np.maximum(ground, np.float32(0.001), out=ground))
