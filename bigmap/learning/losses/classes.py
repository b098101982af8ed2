"""Losses of classes: cross-entropies of logits against labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmap.learning.losses.masking import keep_valid, mean_valid


def class_weights(frequency: Tensor) -> Tensor:
    """Weigh classes so that rare ones count more, 1 / ln(1.02 + frequency).

    Abadal et al. (2021), equation 8, after Paszke et al. (2016, ENet).

    Parameters
    ----------
    frequency
        (class,), share of each class in the labelled pixels, or pixel counts: they are divided by
        their sum.

    Returns
    -------
    torch.Tensor
        float32, (class,); 50.5 for a class that does not occur, 1.42 for one that is everything.

    Raises
    ------
    ValueError
        If a frequency is negative or all are 0.
    """
    counts = frequency.double()
    if (counts < 0).any() or counts.sum() <= 0:
        raise ValueError(f"frequencies {frequency.tolist()} are negative or all 0")
    return (1 / torch.log(1.02 + counts / counts.sum())).float()


def binary_cross_entropy(logits: Tensor, labels: Tensor, *, valid: Tensor) -> Tensor:
    """Compare logits of one class with where it is.

    -(y ln p + (1 - y) ln(1 - p)), p the sigmoid of the logit, as Valsesia & Magli (2022) and Razzak
    et al. (2021) train with.

    Parameters
    ----------
    logits
        Floating, (batch, 1, y, x).
    labels
        Integer or bool, (batch, y, x): 1 where the class is, else 0; anything where not valid.
    valid
        bool, (batch, y, x).

    Returns
    -------
    torch.Tensor
        Mean over valid pixels, in nats.

    Raises
    ------
    ValueError
        If a valid label is neither 0 nor 1.
    """
    truth = _clean_labels(labels, valid, 2)[:, None]
    kept = keep_valid(logits, valid)
    losses = F.binary_cross_entropy_with_logits(kept, truth.to(kept.dtype), reduction="none")
    return mean_valid(losses, valid)


def cross_entropy(
    logits: Tensor, labels: Tensor, *, valid: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Compare logits of classes with labels.

    sum(w_k * -ln p_k) / sum(w_k) over valid pixels, k the class of each, p the softmax (Abadal et
    al. 2021, equation 1). That weighted pixels are divided by their weights is PyTorch's reading;
    the paper does not say.

    Parameters
    ----------
    logits
        Floating, (batch, class, y, x).
    labels
        Integer, (batch, y, x): position of the class in the legend; anything where not valid.
    valid
        bool, (batch, y, x).
    weights
        Floating, (class,), see :func:`class_weights`; by default all are 1.

    Returns
    -------
    torch.Tensor
        Weighted mean over valid pixels, in nats.

    Raises
    ------
    ValueError
        If a valid label is no class.
    """
    classes = logits.shape[1]
    truth = _clean_labels(labels, valid, classes)
    kept = keep_valid(logits, valid)
    losses = F.cross_entropy(kept, truth, reduction="none")
    if weights is None:
        return mean_valid(losses[:, None], valid)
    weight = torch.where(valid, weights.to(kept)[truth], 0)
    return (weight * losses).sum() / torch.where(valid.any(), weight.sum(), 1)


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, valid: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Take the cross-entropy that fits: binary for one channel, else that of the classes.

    See :func:`binary_cross_entropy` and :func:`cross_entropy`.

    Raises
    ------
    ValueError
        If weights are given with one channel, which has none.
    """
    if logits.shape[1] > 1:
        return cross_entropy(logits, labels, valid=valid, weights=weights)
    if weights is not None:
        raise ValueError("class weights need one logit per class; binary cross-entropy has none")
    return binary_cross_entropy(logits, labels, valid=valid)


def _clean_labels(labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Set invalid labels to 0 and refuse others that are no class."""
    truth = torch.where(valid, labels, 0).long()
    if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < classes:
        raise ValueError(
            f"labels from {int(truth.min())} to {int(truth.max())} are not among {classes} "
            "classes; mark what is unlabelled as not valid"
        )
    return truth
