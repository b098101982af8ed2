"""How weights follow gradients: groups of parameters, learning rates, the moving average."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from bigmap.config.training import (
    ConstantSchedule,
    CosineSchedule,
    OptimiserConfig,
    PlateauSchedule,
    ScheduleConfig,
    StepSchedule,
)

SEGMENTER = "network.segmenter"
"""The segmentation network of models that have one beside their super-resolution."""
EMA_WARMUP_STEPS = 10


def has_segmenter(model: nn.Module) -> bool:
    """Tell whether a model has a segmentation network of its own."""
    return any(name.startswith(f"{SEGMENTER}.") for name, _ in model.named_parameters())


def group_parameters(
    model: nn.Module, objective: nn.Module, settings: OptimiserConfig
) -> list[dict[str, Any]]:
    """Sort parameters by their weight decay.

    Parameters
    ----------
    model, objective
        Both are trained; what the objective holds decays as the model does.
    settings
        ``segmentation_weight_decay`` is that of the model's segmentation network alone.
    """
    plain = settings.weight_decay
    other = settings.segmentation_weight_decay
    if other is None:
        return [{"params": [*model.parameters(), *objective.parameters()], "weight_decay": plain}]
    named = list(model.named_parameters())
    inside = [value for name, value in named if name.startswith(f"{SEGMENTER}.")]
    outside = [value for name, value in named if not name.startswith(f"{SEGMENTER}.")]
    return [
        {"params": [*outside, *objective.parameters()], "weight_decay": plain},
        {"params": inside, "weight_decay": other},
    ]


def make_optimiser(
    model: nn.Module, objective: nn.Module, settings: OptimiserConfig
) -> torch.optim.Optimizer:
    """Make Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) with its own decay."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.kind]
    groups = group_parameters(model, objective, settings)
    optimiser: torch.optim.Optimizer = kind(groups, lr=settings.learning_rate, fused=True)
    return optimiser


class Schedule:
    """The factor of the learning rate at each step.

    Parameters
    ----------
    settings
        The recipe's.
    epochs, steps_per_epoch
        How long training is to last.
    """

    def __init__(self, settings: ScheduleConfig, *, epochs: int, steps_per_epoch: int) -> None:
        self.settings = settings
        self.epochs = epochs
        self.steps_per_epoch = steps_per_epoch
        self.best_loss = math.inf
        self.bad_epochs = 0
        self.lowered = 1.0
        """By plateaus."""

    def factor(self, step: int) -> float:
        """Return the factor of a step, counted from 0 over all epochs."""
        match self.settings:
            case ConstantSchedule():
                return 1.0
            case CosineSchedule(warmup_epochs=epochs):
                return self._follow_cosine(step, round(epochs * self.steps_per_epoch))
            case PlateauSchedule():
                return self.lowered
            case StepSchedule(at=at, factor=factor):
                is_late = step >= round(at * self.epochs * self.steps_per_epoch)
                return factor if is_late else 1.0

    def _follow_cosine(self, step: int, rise: int) -> float:
        """Rise linearly, then fall as (1 + cos) / 2 (Loshchilov & Hutter 2017, equation 5)."""
        if step < rise:
            return (step + 1) / rise
        total = self.epochs * self.steps_per_epoch
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))

    def end_epoch(self, loss: float) -> None:
        """Take note of an epoch's validation loss; a loss that is no number has not fallen."""
        if not isinstance(self.settings, PlateauSchedule):
            return
        if loss < self.best_loss:
            self.best_loss, self.bad_epochs = loss, 0
            return
        self.bad_epochs += 1
        if self.bad_epochs > self.settings.patience_epochs:
            self.lowered *= self.settings.factor
            self.bad_epochs = 0

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {
            "best_loss": self.best_loss, "bad_epochs": self.bad_epochs, "lowered": self.lowered
        }  # fmt: skip

    def load(self, state: dict[str, float]) -> None:
        """Take what a checkpoint kept."""
        self.best_loss, self.lowered = state["best_loss"], state["lowered"]
        self.bad_epochs = int(state["bad_epochs"])


class MovingAverage:
    """An exponential moving average of a model's weights, m = d m + (1 - d) w.

    The decay of step n is min(d, (1 + n) / (10 + n)), so that the random weights of the start
    are soon forgotten (as in TensorFlow's ExponentialMovingAverage). Statistics of
    normalisations are those of the model.

    Parameters
    ----------
    model
        What is averaged.
    decay
        d.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (EMA_WARMUP_STEPS + step))
        for mine, weight in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(weight, 1 - decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)


def clip_gradients(groups: list[dict[str, Any]], most: float | None) -> Tensor | None:
    """Scale gradients so that their norm is at most so much; return what it was."""
    if most is None:
        return None
    parameters = [parameter for group in groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, most)
