"""Losses of an image and the log-scale of its error (Valsesia & Magli 2021, PIUnet)."""

from __future__ import annotations

import torch
from torch import Tensor

from bigmap.learning.losses.masking import keep_valid, mean_valid


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
