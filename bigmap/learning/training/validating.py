"""Scores of a model on the validation chips."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigmap.learning.metrics import ConfusionMatrix, ImageSums
from bigmap.learning.training.batches import Batch, to_reflectance
from bigmap.learning.training.objectives import Objective
from bigmap.learning.training.ranks import Link

DATA_RANGE = 1.0
"""Of PSNR and SSIM: the span that reflectance can take."""
LEAST_FALL = 1e-3
"""Share by which a loss must fall to be better: normalisations move it a little when nothing is
learnt. Our choice."""


@dataclass(frozen=True)
class Validation:
    """What a model is worth."""

    loss: float
    scores: dict[str, float]
    """By name; NaN where undefined."""
    main: str
    """Name of the score that decides: ``mcc`` of classes, else ``psnr``."""

    @property
    def score(self) -> float:
        """The score that decides; less than any other where it is undefined."""
        value = self.scores[self.main]
        return -math.inf if math.isnan(value) else value

    def is_better(self, score: float, loss: float) -> bool:
        """Tell whether it beats a score, or where both are undefined, a loss by a margin."""
        if self.score == score == -math.inf:
            least = LEAST_FALL * abs(loss) if math.isfinite(loss) else 0.0
            return self.loss < loss - least
        return self.score > score


class Scorer:
    """Adds up loss and scores over chips and processes.

    Parameters
    ----------
    objective
        Its terms are the loss.
    classes
        Of the legend; 0 for a model of images.
    bands
        Of the image; 0 where it is not trained.
    """

    def __init__(self, objective: Objective, *, classes: int, bands: int) -> None:
        self.objective = objective
        terms = len(objective.coefficients)
        self.losses = torch.zeros(2, terms, dtype=torch.float64)
        self.confusion = ConfusionMatrix(range(classes)) if classes else None
        self.images = ImageSums(bands, data_range=DATA_RANGE) if bands else None

    def add(self, outputs: dict[str, Tensor], batch: Batch, weights: Tensor) -> None:
        """Add a batch; its tensors are on the device of the outputs, its weights on the CPU."""
        losses = self.objective(outputs, batch).double().cpu()
        self.losses += torch.stack([losses * weights, weights])
        if self.confusion is not None:
            assert batch.labels is not None
            found = predict_classes(outputs["logits"]).cpu().numpy()
            self.confusion.update(found, batch.labels.cpu().numpy())
        if self.images is not None:
            assert batch.target is not None
            matched, valid = self.objective.match(outputs["image"], batch)
            target = to_reflectance(batch.target)
            for row in range(len(batch)):
                self.images.update(
                    matched[row].double().cpu().numpy(),
                    target[row].double().cpu().numpy(),
                    valid=valid[row].cpu().numpy(),
                )

    def finish(self, link: Link) -> Validation:
        """Add up over all processes and derive the scores."""
        losses, weights = link.sum(self.losses)
        coefficients = torch.tensor(list(self.objective.coefficients.values())).double()
        means = losses / weights.clamp(min=1e-12)
        scores: dict[str, float] = {}
        if self.confusion is not None:
            counts = link.sum(torch.from_numpy(self.confusion.counts))
            self.confusion.counts = counts.numpy()
            found = self.confusion.compute()
            scores |= {
                "mcc": found.mcc, "mean_iou": found.mean_iou, "accuracy": found.accuracy
            }  # fmt: skip
        if self.images is not None:
            self._sum_images(link)
            image = self.images.compute()
            scores |= {"psnr": image.psnr, "ssim": image.ssim}
        main = "mcc" if self.confusion is not None else "psnr"
        return Validation(float((coefficients * means).sum()), scores, main)

    def _sum_images(self, link: Link) -> None:
        images = self.images
        assert images is not None
        counts = np.array([images.pixels, images.windows], dtype=np.float64)
        sums = np.concatenate([images.squares, images.similarity, counts])
        total = link.sum(torch.from_numpy(sums)).numpy()
        images.squares, images.similarity = total[:-2].reshape(2, images.bands)
        images.pixels, images.windows = int(total[-2]), int(total[-1])


def predict_classes(logits: Tensor) -> Tensor:
    """Return the position of the likeliest class, uint8 (batch, y, x)."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.argmax(dim=1).to(torch.uint8)
