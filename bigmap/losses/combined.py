"""Weighted sums of losses as the papers train with them."""

from __future__ import annotations

from torch import Tensor

from bigmap.losses.classes import segmentation_loss
from bigmap.losses.images import mae_loss


def end_to_end_loss(
    image: Tensor,
    logits: Tensor,
    *,
    target: Tensor,
    labels: Tensor,
    valid: Tensor,
    target_valid: Tensor | None = None,
    alpha: float = 0.1,
    beta: float = 1000.0,
) -> Tensor:
    """Train super-resolution and segmentation as one: alpha * L1 + beta * cross-entropy.

    Pereira & dos Santos (2020), equation 1, with their alpha and beta.

    Parameters
    ----------
    image, target
        Super-resolved image and reference, (batch, band, y, x).
    logits, labels
        (batch, class or 1, y, x) and (batch, y, x), see :func:`~bigmap.losses.segmentation_loss`.
    valid
        bool, (batch, y, x): labelled pixels.
    target_valid
        bool, (batch, y, x): pixels of the reference image; by default the labelled ones.
    alpha, beta
        Weights of the image and of the classes.
    """
    seen = valid if target_valid is None else target_valid
    difference = mae_loss(image, target, valid=seen)
    return alpha * difference + beta * segmentation_loss(logits, labels, valid=valid)


def combine_consistency(
    consistency: Tensor, super_resolution: Tensor, *, weight: float = 0.9
) -> Tensor:
    """Weigh two losses convexly: 0.9 consistency + 0.1 super-resolution.

    Razzak et al. (2021), section 5.1. The losses are
    :func:`~bigmap.losses.radiometric_consistency` and, of the colour-matched and registered image,
    :class:`~bigmap.losses.RegisteredLoss`.
    """
    return weight * consistency + (1 - weight) * super_resolution
