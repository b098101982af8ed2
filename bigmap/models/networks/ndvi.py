"""Cropland by a threshold on the upsampled mean NDVI.

The model-based baseline of SPInet (Valsesia & Magli, "Super-resolved multi-temporal
segmentation with deep permutation-invariant networks", IGARSS 2022, section 3.2): the
normalised difference vegetation index, averaged over the dates, bicubically interpolated to
the output grid and compared with a threshold. It has no trained weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmap.models.base import LayerSpec, MapModel, ModelSpec, probability_of
from bigmap.models.layers import upsample_bicubic
from bigmap.models.legends import CROPLAND

FILL_RADIUS_PX = 2
CUBIC_RADIUS_PX = 2
SOFTNESS = 0.1


class NdviModel(MapModel):
    """Binary cropland: mean NDVI of the clear dates above a threshold.

    Parameters
    ----------
    threshold
        NDVI above which a pixel is cropland. The paper does not give its own; 0.45 separates
        green crops from bare soil in the season's mean.
    upscale
        Output pixels per input pixel, 1 to 8.
    """

    has_weights = False

    def __init__(self, *, threshold: float = 0.45, upscale: int = 4) -> None:
        super().__init__()
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} is not an NDVI, between -1 and 1")
        if not 1 <= upscale <= 8:
            raise ValueError(f"upscale {upscale} is not between 1 and 8")
        self.threshold = threshold
        self.spec = ModelSpec(
            name="ndvi",
            title="Threshold on the bicubic temporal mean NDVI (SPInet's model-based baseline)",
            paper="Valsesia & Magli 2022",
            bands=("red", "nir"),
            upscale=upscale,
            halo_px=0 if upscale == 1 else CUBIC_RADIUS_PX + FILL_RADIUS_PX,
            kind="exact",
            legend=CROPLAND,
            extra_layers=(
                LayerSpec("ndvi", "Mean NDVI of the clear dates", "int16", -32768, scale=1e-4),
            ),
            notice="ndvi is a baseline: it takes every green surface for cropland.",
        )

    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows; see :meth:`MapModel.forward`."""
        del dates  # A padded date is nowhere clear.
        mean, observed = average_ndvi(reflectance[:, :, 0], reflectance[:, :, 1], clear)
        if self.spec.upscale > 1:
            mean = upsample_bicubic(fill_holes(mean, observed), self.spec.upscale)
        return {
            "probability": probability_of(((mean - self.threshold) / SOFTNESS).unsqueeze(1)),
            "ndvi": mean.unsqueeze(1),
        }


def average_ndvi(red: Tensor, nir: Tensor, clear: Tensor) -> tuple[Tensor, Tensor]:
    """Average the NDVI over the clear dates.

    Parameters
    ----------
    red, nir
        float32 reflectance, (batch, time, y, x). Negative reflectance, which atmospheric
        correction leaves in shadow, counts as 0.
    clear
        bool, (batch, time, y, x).

    Returns
    -------
    mean, observed
        float32 (batch, y, x), 0 where no date is clear; and bool (batch, y, x).
    """
    red, nir = red.clamp(min=0), nir.clamp(min=0)
    total = nir + red
    ndvi = torch.where(clear & (total > 0), (nir - red) / total.clamp(min=1e-6), 0)
    # Added date by date: a reduction over an axis may change its order with the shape of the
    # window, and with it the last bit.
    summed = torch.zeros_like(ndvi[:, 0])
    for date in ndvi.unbind(1):
        summed = summed + date
    count = clear.sum(dim=1)
    return summed / count.clamp(min=1), count > 0


def fill_holes(values: Tensor, known: Tensor) -> Tensor:
    """Give unknown pixels the mean of the known ones around them, 0 where there is none.

    An unknown pixel that the bicubic kernel of a known one can reach has a known pixel within
    ``FILL_RADIUS_PX``, so no made-up value enters a known pixel.

    Parameters
    ----------
    values, known
        float32 and bool, (batch, y, x).
    """
    if bool(known.all()):
        return values
    total = _sum_around(torch.where(known, values, 0))
    count = _sum_around(known.to(values.dtype))
    return torch.where(known, values, total / count.clamp(min=1))


def _sum_around(values: Tensor) -> Tensor:
    """Add up the pixels within ``FILL_RADIUS_PX`` along both axes, in one fixed order."""
    for axis in (-2, -1):
        size = values.shape[axis]
        padding = (0, 0, FILL_RADIUS_PX, FILL_RADIUS_PX) if axis == -2 else (FILL_RADIUS_PX,) * 2
        padded = F.pad(values, padding)
        values = padded.narrow(axis, 0, size)
        for shift in range(1, 2 * FILL_RADIUS_PX + 1):
            values = values + padded.narrow(axis, shift, size)
    return values
