"""Losses of the papers, each over valid pixels only.

Every loss takes ``valid``, bool (batch, y, x): what predictions and references hold elsewhere, even
NaN in a reference, changes nothing. All are means over what is valid; where nothing is, a loss is 0
and its gradients are 0. Values of half precision are widened to float32 first.
"""

from bigmap.learning.losses.affinity import FeatureAffinity
from bigmap.learning.losses.classes import (
    binary_cross_entropy,
    class_weights,
    cross_entropy,
    segmentation_loss,
)
from bigmap.learning.losses.images import (
    downsample_area,
    mae_loss,
    mse_loss,
    radiometric_consistency,
    ssim_loss,
)
from bigmap.learning.losses.registered import Registration
from bigmap.learning.losses.uncertainty import uncertainty_loss

__all__ = [
    "FeatureAffinity",
    "Registration",
    "binary_cross_entropy",
    "class_weights",
    "cross_entropy",
    "downsample_area",
    "mae_loss",
    "mse_loss",
    "radiometric_consistency",
    "segmentation_loss",
    "ssim_loss",
    "uncertainty_loss",
]
