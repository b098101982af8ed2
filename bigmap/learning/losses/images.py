"""Losses of images: differences, structure, and consistency with the coarse image."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmap.learning.losses.masking import erode_mask, keep_valid, mean_valid, widen

SSIM_SIGMA_PX = 1.5
SSIM_RADIUS_PX = 5
"""The Gaussian window of 11 x 11 px of Wang et al. (2004)."""


def mse_loss(image: Tensor, target: Tensor, *, valid: Tensor) -> Tensor:
    """Mean of (image - target)^2 over bands and valid pixels (Abadal et al. 2021, equation 2).

    Parameters
    ----------
    image, target
        Reflectance, (batch, band, y, x).
    valid
        bool, (batch, y, x).
    """
    return mean_valid((keep_valid(image, valid) - keep_valid(target, valid)) ** 2, valid)


def mae_loss(image: Tensor, target: Tensor, *, valid: Tensor) -> Tensor:
    """Mean of abs(image - target) over bands and valid pixels (Abadal et al. 2021, equation 3).

    Parameters
    ----------
    image, target
        Reflectance, (batch, band, y, x).
    valid
        bool, (batch, y, x).
    """
    return mean_valid((keep_valid(image, valid) - keep_valid(target, valid)).abs(), valid)


def ssim_loss(image: Tensor, target: Tensor, *, valid: Tensor, data_range: float = 1.0) -> Tensor:
    """Return 1 - SSIM, Wang et al. (2004, doi:10.1109/TIP.2003.819861), equation 13.

    SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)) in Gaussian windows
    of 11 x 11 px and 1.5 px deviation, C1 = (0.01 R)^2, C2 = (0.03 R)^2; torchmetrics computes it
    for each window. Windows that leave the image or hold an invalid pixel count nothing (the
    latter our choice).

    Parameters
    ----------
    image, target
        Reflectance, (batch, band, y, x), with sides of more than 5 px.
    valid
        bool, (batch, y, x).
    data_range
        R, the span that reflectance can take; 1 is our choice.

    Returns
    -------
    torch.Tensor
        Mean over bands and windows, from 0 (equal) to 2.
    """
    # It imports Matplotlib, for which no other command should wait.
    from torchmetrics.functional.image import (  # noqa: PLC0415
        structural_similarity_index_measure,
    )

    _, similarity = structural_similarity_index_measure(
        keep_valid(image, valid),
        keep_valid(target, valid),
        sigma=SSIM_SIGMA_PX,
        data_range=data_range,
        return_full_image=True,
    )
    return mean_valid(1 - similarity, erode_mask(valid, SSIM_RADIUS_PX))


def radiometric_consistency(image: Tensor, reference: Tensor, *, valid: Tensor) -> Tensor:
    """Compare a super-resolved image, averaged back, with Sentinel-2 itself, by MSE.

    Razzak et al. (2021), section 5.1. They pool adaptively, so that pixels at the border of two
    bins count whole in both; here they count by area, which is the same where the factor is whole.

    Parameters
    ----------
    image
        Reflectance, (batch, band, fine y, fine x).
    reference
        Reflectance of the reference view, (batch, band, y, x).
    valid
        bool, (batch, y, x): pixels of the reference that are clear.
    """
    height, width = reference.shape[-2:]
    coarse = downsample_area(image, (height, width))
    return mse_loss(coarse, reference, valid=valid)


def downsample_area(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Average an image over coarser pixels, both covering the same area.

    Parameters
    ----------
    image
        (..., y, x).
    shape
        Rows and columns of the coarse image.

    Returns
    -------
    torch.Tensor
        (..., *shape).
    """
    values = widen(image)
    rows, columns = (
        _overlap_weights(coarse, size).to(values)
        for coarse, size in zip(shape, values.shape[-2:], strict=True)
    )
    return rows @ values @ columns.mT


def _overlap_weights(coarse: int, fine: int) -> Tensor:
    """Share of each fine pixel in each coarse one, along one axis, float64 (coarse, fine)."""
    upscale = fine / coarse
    starts = torch.arange(coarse, dtype=torch.float64)[:, None] * upscale
    pixels = torch.arange(fine, dtype=torch.float64)
    overlap = torch.minimum(starts + upscale, pixels + 1) - torch.maximum(starts, pixels)
    overlap = overlap.clamp(min=0)
    return overlap / overlap.sum(dim=1, keepdim=True)
