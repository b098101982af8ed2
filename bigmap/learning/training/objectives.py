"""What is minimised: the recipe's objective as sums over pixels of the whole batch.

An objective has terms, each a mean over what is valid. A batch that goes through the network in
parts, or on several processes, must have the loss that it has as one: so each part says beforehand
how much it holds of each term (:meth:`Objective.weigh`), and its means are weighted by that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigmap.config.training import (
    DualObjective,
    EndToEndObjective,
    ImageObjective,
    ObjectiveConfig,
    SegmentationObjective,
)
from bigmap.learning.losses import (
    FeatureAffinity,
    Registration,
    mae_loss,
    mse_loss,
    radiometric_consistency,
    segmentation_loss,
    ssim_loss,
    uncertainty_loss,
)
from bigmap.learning.losses.images import SSIM_RADIUS_PX
from bigmap.learning.losses.masking import erode_mask
from bigmap.learning.training.augmenting import Purpose, make_generator
from bigmap.learning.training.batches import Batch, to_reflectance
from bigmap.models.networks.colour_matching import ColourMatching
from bigmap.models.networks.shiftnet import SIDE_PX, ShiftNet, shift_lanczos

BORDER_PX = 3
"""Left out at the edges of registered images, where a shift invents values."""

Outputs = Mapping[str, Tensor]
PIXEL_LOSSES = {"mae": mae_loss, "mse": mse_loss, "ssim": ssim_loss}


class Objective(nn.Module, ABC):
    """A weighted sum of terms; what it holds of parameters is trained with the model."""

    coefficients: Mapping[str, float]
    """Of the terms, by name, in their order."""

    @abstractmethod
    def weigh(self, batch: Batch) -> Tensor:
        """Tell how much a batch holds of each term, float64 (term,); 0 where nothing."""

    @abstractmethod
    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Compute the mean of each term over a batch, float32 (term,)."""

    def match(self, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Bring an image to the target's grid, colours and place, to score it.

        Returns
        -------
        image, valid
            (batch, band, y, x) on the grid of the target, and bool (batch, y, x).
        """
        return resample(image, batch), batch.target_valid


def resample(image: Tensor, batch: Batch) -> Tensor:
    """Bring an image to the size of the target, bicubically; both cover the same area."""
    assert batch.target is not None
    size = batch.target.shape[-2:]
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size=size, mode="bicubic")


def count(mask: Tensor) -> Tensor:
    """Count true pixels, float64."""
    return mask.sum().double()


class Classes(Objective):
    """Cross-entropy: binary with one logit, else of the classes, weighted or not."""

    def __init__(self, class_weights: Tensor | None) -> None:
        super().__init__()
        self.coefficients = {"classes": 1.0}
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)

    def weigh(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.weigh`."""
        return weigh_classes(batch, self.class_weights)[None]

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See :meth:`Objective.forward`."""
        return lose_classes(outputs, batch, self.class_weights)[None]


def weigh_classes(batch: Batch, weights: Tensor | None) -> Tensor:
    """Add up the weights of the labelled pixels, float64; each counts 1 without weights."""
    if weights is None:
        return count(batch.labelled)
    assert batch.labels is not None
    labels = batch.labels[batch.labelled].long()
    each = torch.bincount(labels, minlength=len(weights)).double()
    return (each * weights.to(each)).sum()


def lose_classes(outputs: Outputs, batch: Batch, weights: Tensor | None) -> Tensor:
    """Compare logits with labels; see :func:`bigmap.learning.losses.segmentation_loss`."""
    assert batch.labels is not None
    valid = batch.labelled
    return segmentation_loss(outputs["logits"], batch.labels, valid=valid, weights=weights)


class Dual(Objective):
    """Cross-entropy + w1 MSE of the image + w2 feature affinity (Abadal et al. 2021, eq. 6).

    Parameters
    ----------
    settings
        The recipe's.
    class_weights
        (class,), or None.
    channels
        Of the features of the segmentation and of the image. Where they differ, the convolution
        of :class:`~bigmap.learning.losses.FeatureAffinity` matches them, else the model has done
        so.
    """

    def __init__(
        self, settings: DualObjective, class_weights: Tensor | None, channels: tuple[int, int]
    ) -> None:
        super().__init__()
        self.coefficients = {
            "classes": 1.0, "image": settings.image_weight, "affinity": settings.affinity_weight
        }  # fmt: skip
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.affinity = FeatureAffinity(*channels)
        if channels[0] == channels[1]:
            self.affinity.match = nn.Identity()  # type: ignore[assignment]

    def weigh(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.weigh`."""
        valid = batch.target_valid
        pairs = self.affinity.count_pairs(valid).double()
        return torch.stack([weigh_classes(batch, self.class_weights), count(valid), pairs])

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See :meth:`Objective.forward`."""
        assert batch.target is not None
        valid, target = batch.target_valid, to_reflectance(batch.target)
        affinity = self.affinity(
            outputs["segmentation_features"], outputs["image_features"], valid=valid
        )
        image = mse_loss(outputs["image"], target, valid=valid)
        return torch.stack([lose_classes(outputs, batch, self.class_weights), image, affinity])


class EndToEnd(Objective):
    """alpha L1 of the image + beta cross-entropy (Pereira & dos Santos 2020, equation 1)."""

    def __init__(self, settings: EndToEndObjective) -> None:
        super().__init__()
        self.coefficients = {"image": settings.alpha, "classes": settings.beta}

    def weigh(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.weigh`."""
        return torch.stack([count(batch.target_valid), weigh_classes(batch, None)])

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See :meth:`Objective.forward`."""
        assert batch.target is not None
        target = to_reflectance(batch.target)
        image = mae_loss(outputs["image"], target, valid=batch.target_valid)
        return torch.stack([image, lose_classes(outputs, batch, None)])


class SeededDropout(nn.Module):
    """Dropout whose random numbers belong to chips, whatever batch or process they are in.

    Parameters
    ----------
    share
        Of the features that are left out.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.keys: list[tuple[int, ...]] = []
        """Seed, epoch and chip of each row; set before each use in training."""

    def forward(self, features: Tensor) -> Tensor:
        """Set features (row, feature) to 0 and enlarge the others, in training."""
        if not self.training:
            return features
        assert len(self.keys) == len(features), "each row has its key"
        size = features.shape[1]
        drawn = [
            make_generator(Purpose.DROPOUT, *key).random(size, dtype="float32") for key in self.keys
        ]
        kept = torch.stack([torch.from_numpy(row) for row in drawn]) >= self.share
        return features * (kept / (1 - self.share)).to(features)


class Image(Objective):
    """A super-resolved image against its target, registered or not, with consistency or not.

    Razzak et al. (2021), section 5.1: w consistency + (1 - w) loss, where the consistency
    compares the image, averaged down, with the clearest date of Sentinel-2 (our reading of
    their reference view), and the loss comes after colour matching and registration. They do not
    tell the unit of reflectance; the consistency is in standard deviations of each band here, as
    squares of reflectance would be nothing beside the other loss.

    Parameters
    ----------
    settings
        The recipe's.
    bands
        Of the image, and of its target.
    band_std
        Standard deviations of the reflectance of these bands, (band,).
    seed
        Of the dropout in ShiftNet.
    """

    def __init__(
        self, settings: ImageObjective, bands: int, *, band_std: Tensor | None = None, seed: int
    ) -> None:
        super().__init__()
        std = torch.ones(bands) if band_std is None else band_std.float()
        self.std: Tensor
        self.register_buffer("std", std[:, None, None], persistent=False)
        share = settings.consistency_weight
        self.loss = settings.loss
        self.seed = seed
        self.has_consistency = share > 0
        self.coefficients = {settings.loss: 1 - share}
        if share:
            self.coefficients["consistency"] = share
        self.colours: nn.Module = ColourMatching(bands) if share else nn.Identity()
        self.registered: Registration | None = None
        self.dropout: SeededDropout | None = None
        if settings.registered:
            estimator = ShiftNet(bands)
            self.dropout = SeededDropout(estimator.dropout.p)
            estimator.dropout = self.dropout  # type: ignore[assignment]
            self.registered = Registration(
                estimator, colours=self.colours, estimate_px=SIDE_PX, border_px=BORDER_PX
            )

    def weigh(self, batch: Batch) -> Tensor:
        """See :meth:`Objective.weigh`."""
        valid = batch.target_valid
        if self.registered is not None:
            valid = valid & erode_mask(torch.ones_like(valid), BORDER_PX)
        if self.loss == "ssim":
            valid = erode_mask(valid, SSIM_RADIUS_PX)
        weights = [count(valid)]
        if self.has_consistency:
            assert batch.reference_clear is not None
            weights.append(count(batch.reference_clear))
        return torch.stack(weights)

    def forward(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See :meth:`Objective.forward`."""
        losses = [self._compare(outputs, batch)]
        if self.has_consistency:
            assert batch.reference is not None
            assert batch.reference_clear is not None
            reference = to_reflectance(batch.reference)
            valid = batch.reference_clear
            image = outputs["image"] / self.std
            losses.append(radiometric_consistency(image, reference / self.std, valid=valid))
        return torch.stack(losses)

    def match(self, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See :meth:`Objective.match`."""
        matched, shifts_px, valid = self._align(image, batch)
        return (matched if shifts_px is None else shift_lanczos(matched, shifts_px)), valid

    def _align(self, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        assert batch.target is not None
        valid = batch.target_valid
        if self.registered is None:
            return self.colours(resample(image, batch)), None, valid
        if self.dropout is not None:
            self.dropout.keys = [(self.seed, batch.epoch, chip) for chip in batch.chips]
        aligned: tuple[Tensor, Tensor, Tensor] = self.registered(
            image, to_reflectance(batch.target), valid=valid
        )
        return aligned

    def _compare(self, outputs: Outputs, batch: Batch) -> Tensor:
        assert batch.target is not None
        target = to_reflectance(batch.target)
        image, shifts_px, valid = self._align(outputs["image"], batch)
        images = [image]
        if self.loss == "uncertainty":
            images.append(resample(outputs["log_scale"], batch))
        if shifts_px is not None:
            images = [shift_lanczos(each, shifts_px) for each in images]
        if self.loss == "uncertainty":
            return uncertainty_loss(images[0], images[1], target, valid=valid)
        return PIXEL_LOSSES[self.loss](images[0], target, valid=valid)


def make_objective(
    settings: ObjectiveConfig,
    outputs: Outputs,
    *,
    class_weights: Tensor | None,
    band_std: Tensor | None = None,
    seed: int,
) -> Objective:
    """Make the objective of a recipe.

    Parameters
    ----------
    settings
        The recipe's.
    outputs
        What the model gives for some chip; their channels decide those of the objective.
    class_weights
        float32, (class,), see :func:`bigmap.learning.losses.class_weights`; used where the recipe
        wants classes weighted and each has its own logit.
    band_std
        Standard deviations of the reflectance of the image's bands, (band,); the unit of the
        radiometric consistency, by default 1.
    seed
        Of the objective's own weights and of its dropout.
    """
    weights = class_weights if getattr(settings, "weighted", False) else None
    if "logits" in outputs and outputs["logits"].shape[1] == 1:
        weights = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match settings:
            case SegmentationObjective():
                return Classes(weights)
            case DualObjective():
                names = ("segmentation_features", "image_features")
                first, second = (outputs[name].shape[1] for name in names)
                return Dual(settings, weights, (first, second))
            case EndToEndObjective():
                return EndToEnd(settings)
            case ImageObjective():
                bands = outputs["image"].shape[1]
                return Image(settings, bands, band_std=band_std, seed=seed)
