"""Losses of an image and the log-scale of its error (Valsesia & Magli 2021, PIUnet)."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from bigmap.losses.masking import keep_valid, mean_valid


def uncertainty_loss(image: Tensor, log_scale: Tensor, target: Tensor, *, valid: Tensor) -> Tensor:
    """Negative log-likelihood of a Laplacian, |x - mu| exp(-s) + s, without the constant ln 2.

    Valsesia & Magli (2021, arXiv:2105.12409): the target x is spread about the image mu as
    exp(-|x - mu| / b) / 2b with the scale b = exp(s).

    Parameters
    ----------
    image
        mu, (batch, band, y, x).
    log_scale
        s, natural logarithm of the scale b in the unit of the image, (batch, band or 1, y, x).
    target
        x, (batch, band, y, x).
    valid
        bool, (batch, y, x).

    Returns
    -------
    torch.Tensor
        Mean over bands and valid pixels; it may be negative.
    """
    mean, scale, truth = (keep_valid(each, valid) for each in (image, log_scale, target))
    return mean_valid((truth - mean).abs() * torch.exp(-scale) + scale, valid)


def registered_uncertainty_loss(
    image: Tensor, log_scale: Tensor, target: Tensor, *, valid: Tensor, border_px: int = 3
) -> Tensor:
    """Take :func:`uncertainty_loss` at the best shift of the target, brightness corrected.

    PIUnet's public code (``l1_registered_uncertainty_loss``), after the cPSNR of the PROBA-V
    challenge: image and log-scale lose ``border_px`` = d pixels on each side, and per chip

        L = min over u, v in 0..2d of mean(|x_uv - (mu + b_uv)| exp(-s) + s),
        b_uv = mean(x_uv - mu)

    where x_uv is the target cut from row u and column v, and means go over its valid pixels. The
    code adds b_uv to s as well, which we do not: a brightness is no log-scale. With several bands,
    b_uv is per band and the shift common to all (our choice, the code has one band).

    Parameters
    ----------
    image, log_scale, target, valid
        See :func:`uncertainty_loss`.
    border_px
        Greatest shift, in pixels of the image; 3 in the challenge.

    Returns
    -------
    torch.Tensor
        Mean over chips that have a valid pixel.

    Raises
    ------
    ValueError
        If nothing is left within the border.
    """
    if min(image.shape[-2:]) <= 2 * border_px:
        raise ValueError(
            f"an image of {tuple(image.shape[-2:])} px has no inside of {border_px} px"
        )
    inner = (..., slice(border_px, -border_px or None), slice(border_px, -border_px or None))
    chips = zip(image[inner], log_scale[inner], target, valid, strict=True)
    losses = [_best_loss(*chip) for chip in chips if chip[3].any()]
    return torch.stack(losses).mean() if losses else (image * 0 + log_scale * 0).sum()


def _best_loss(mean: Tensor, scale: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Loss of one chip at its best shift; only that one needs gradients."""
    height, width = mean.shape[-2:]
    spare = target.shape[-2] - height
    shifts = list(product(range(spare + 1), range(spare + 1)))

    def compare(down: int, right: int) -> Tensor:
        cut = (..., slice(down, down + height), slice(right, right + width))
        return _corrected_loss(mean[None], scale[None], target[cut][None], valid[cut][None])

    with torch.no_grad():
        costs = torch.stack([compare(*shift) for shift in shifts])
    return compare(*shifts[int(costs.argmin())])


def _corrected_loss(mean: Tensor, scale: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Loss of one pair after the brightness correction; infinite where nothing is valid."""
    difference = keep_valid(target, valid) - keep_valid(mean, valid)
    brightness = difference.sum(dim=(-2, -1), keepdim=True) / valid.sum().clamp(min=1)
    loss = uncertainty_loss(mean + brightness, scale, target, valid=valid)
    return torch.where(valid.any(), loss, torch.inf)
