"""Losses of the papers, each over valid pixels only.

Every loss takes ``valid``, bool (batch, y, x): what predictions and references hold elsewhere, even
NaN in a reference, changes nothing. All are means over what is valid; where nothing is, a loss is 0
and its gradients are 0. Values of half precision are widened to float32 first.
"""

from bigmap.losses.affinity import FeatureAffinity
from bigmap.losses.classes import (
    binary_cross_entropy,
    class_weights,
    cross_entropy,
    segmentation_loss,
)
from bigmap.losses.combined import combine_consistency, end_to_end_loss
from bigmap.losses.images import (
    downsample_area,
    mae_loss,
    mse_loss,
    radiometric_consistency,
    ssim_loss,
)
from bigmap.losses.registered import RegisteredLoss
from bigmap.losses.uncertainty import registered_uncertainty_loss, uncertainty_loss

__all__ = [
    "FeatureAffinity",
    "RegisteredLoss",
    "binary_cross_entropy",
    "class_weights",
    "combine_consistency",
    "cross_entropy",
    "downsample_area",
    "end_to_end_loss",
    "mae_loss",
    "mse_loss",
    "radiometric_consistency",
    "registered_uncertainty_loss",
    "segmentation_loss",
    "ssim_loss",
    "uncertainty_loss",
]
