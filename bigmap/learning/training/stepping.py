"""How one process of a training run learns from a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigmap.errors import TrainingError
from bigmap.learning.training.batches import Batch
from bigmap.learning.training.norms import synchronise_norms
from bigmap.learning.training.optimising import (
    MovingAverage,
    Schedule,
    clip_gradients,
    make_optimiser,
)
from bigmap.learning.training.preparing import TrainingJob
from bigmap.learning.training.ranks import Link
from bigmap.models import NetworkModel


class Learner:
    """A model with its objective and its optimiser; all processes hold the same.

    Parameters
    ----------
    job
        What is trained on what.
    link
        To the other processes.
    device
        Of this process.
    """

    def __init__(self, job: TrainingJob, link: Link, device: torch.device) -> None:
        self.link, self.device = link, device
        self.settings = job.settings
        self.model = job.build_model()
        self.objective = job.build_objective(self.model).to(device).train()
        self.model.to(device)
        if link.world > 1:
            self._synchronise()
        self.average = (
            MovingAverage(self.model, self.settings.ema_decay) if self.settings.ema_decay else None
        )
        self.optimiser = make_optimiser(self.model, self.objective, self.settings.optimiser)
        self.schedule = Schedule(
            self.settings.schedule, epochs=self.settings.epochs, steps_per_epoch=job.steps_per_epoch
        )

    @property
    def trained(self) -> nn.ModuleList:
        """Model and objective."""
        return nn.ModuleList([self.model, self.objective])

    @property
    def rate(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    @property
    def kept_model(self) -> NetworkModel:
        """The model that is validated and saved."""
        if self.average is None:
            return self.model
        averaged = self.average.model
        assert isinstance(averaged, NetworkModel)
        return averaged

    def _synchronise(self) -> None:
        """Let all processes start alike, and normalise over all of them."""
        self.link.copy_first([*self.trained.parameters(), *self.trained.buffers()])
        if self.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        else:
            synchronise_norms(self.model, self.link.sum)
            synchronise_norms(self.objective, self.link.sum)

    def step(self, parts: list[Batch], number: int) -> dict[str, float]:
        """Do one step.

        Parameters
        ----------
        parts
            Of the batch, those of this process.
        number
            Of the step, counted from 0 over all epochs.

        Returns
        -------
        dict of str to float
            Loss, learning rate, and norm of the gradient where it is clipped.

        Raises
        ------
        TrainingError
            If the loss is no finite number.
        """
        rate = self.settings.optimiser.learning_rate * self.schedule.factor(number)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        weights = torch.stack([self.objective.weigh(part) for part in parts])
        whole = self.link.sum(weights.sum(dim=0))
        coefficients = torch.tensor(list(self.objective.coefficients.values())).double()
        shares = torch.where(whole > 0, coefficients * weights / whole, 0)
        self.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for place, (part, share) in enumerate(zip(parts, shares, strict=True)):
            self._seed_torch(number, place)
            batch = part.to(self.device)
            terms = self.objective(self.compute(self.model, batch), batch)
            part_loss = (terms * share.to(terms)).sum()
            part_loss.backward()
            loss += part_loss.detach()
        value = float(self.link.sum(loss.cpu()))
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} in step {number + 1}; lower "
                "training.optimiser.learning_rate, or set training.clip_norm"
            )
        self.link.sum_gradients(self.trained.parameters())
        norm = clip_gradients(self.optimiser.param_groups, self.settings.clip_norm)
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.model, number)
        values = {"loss": value, "learning_rate": rate}
        return values | ({} if norm is None else {"gradient_norm": float(norm)})

    def compute(self, model: NetworkModel, batch: Batch) -> dict[str, Tensor]:
        """Run a model on a batch in the recipe's precision; outputs are float32."""
        is_half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
            outputs = model.compute(batch.prepare(model.mean_reflectance), batch.dates, batch.clear)
        return {name: values.float() for name, values in outputs.items()}

    def _seed_torch(self, step: int, part: int) -> None:
        """Seed what models draw themselves by where the run is, so that a resumed one agrees."""
        parts = [self.settings.seed, step, part, self.link.rank.rank]
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1)[0]))

    @contextmanager
    def score(self) -> Iterator[NetworkModel]:
        """Lend the model that is kept as one that is scored: nothing learns meanwhile."""
        self.objective.eval()
        try:
            with torch.inference_mode():
                yield self.kept_model.eval()
        finally:
            self.objective.train()
            self.model.train()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state(),
            "random": torch.get_rng_state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what a checkpoint kept."""
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load(state["schedule"])
        torch.set_rng_state(state["random"])
