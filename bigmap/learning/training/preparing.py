"""Recipe + chips -> what is to be trained; refuses what cannot work before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigmap.config import Recipe
from bigmap.config.training import ImageObjective, PlateauSchedule, TrainingConfig
from bigmap.errors import RecipeError, SamplesError, TrainingError
from bigmap.learning.chips import SPLITS, Chip, ChipSet, ChipTemplate
from bigmap.learning.losses import class_weights
from bigmap.learning.training.augmenting import draw_variation, vary_nothing
from bigmap.learning.training.batches import Batch, ChipView, collate
from bigmap.learning.training.folder import TrainingFolder
from bigmap.learning.training.objectives import Objective, make_objective
from bigmap.learning.training.optimising import has_segmenter
from bigmap.learning.training.viewing import LEAST_STD, view_chips
from bigmap.models import ModelChoice, NetworkModel
from bigmap.models.choosing import choose_model
from bigmap.models.layers import BandStatistics


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on what, and how."""

    name: str
    """Of the recipe."""
    settings: TrainingConfig
    choice: ModelChoice
    chips: ChipSet
    view: ChipView
    train: tuple[int, ...]
    """Indices of the training chips."""
    validation: tuple[int, ...]
    fingerprint: dict[str, Any]
    """What must be the same for a run to go on."""

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; the chips that are left over differ from epoch to epoch."""
        return len(self.train) // self.settings.batch_chips

    @property
    def folder(self) -> TrainingFolder:
        """The run folder, beside the weights."""
        return TrainingFolder(self.settings.weights)

    @property
    def class_weights(self) -> Tensor | None:
        """Weights of the classes in the order of the legend, float32 (class,)."""
        if self.view.classes is None:
            return None
        template = self.chips.template
        pixels = self.chips.places.class_px[list(self.train)].sum(axis=0)
        order = np.argsort(self.view.classes[list(template.class_values)])
        return class_weights(torch.from_numpy(pixels[order]))

    def build_model(self) -> NetworkModel:
        """Build the model with the statistics of the chips, or those of the weights it starts from.

        The model is in training mode with channels last, which convolutions prefer.
        """
        model = self.choice.build(seed=self.settings.seed)
        assert isinstance(model, NetworkModel)
        if self.choice.weights is None:
            mean, std = (np.array(each) for each in self.chips.statistics)
            for module in model.modules():
                if isinstance(module, BandStatistics):
                    bands = list(self.view.bands)
                    module.set(mean[bands].tolist(), np.maximum(std[bands], LEAST_STD).tolist())
        return model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def build_objective(self, model: NetworkModel) -> Objective:
        """Build the objective for the outputs that the model has for one chip."""
        return make_objective(
            self.settings.objective,
            self.probe(model),
            class_weights=self.class_weights,
            band_std=self._reference_std(),
            seed=self.settings.seed,
        )

    def _reference_std(self) -> Tensor | None:
        """Return the deviations of what images are to be consistent with, where they are."""
        if self.view.reference_bands is None:
            return None
        std = np.maximum(self.chips.statistics[1], LEAST_STD)
        return torch.from_numpy(np.asarray(std)[list(self.view.reference_bands)])

    def make_batch(
        self, indices: Sequence[int], chips: Sequence[Chip], *, epoch: int | None = None
    ) -> Batch:
        """Make a batch of chips, varied as they are in an epoch; None shows them as they are."""
        variations = [
            vary_nothing(len(chip.days))
            if epoch is None
            else draw_variation(
                self.settings.augment, len(chip.days),
                seed=self.settings.seed, epoch=epoch, chip=int(index),
            )
            for index, chip in zip(indices, chips, strict=True)
        ]  # fmt: skip
        return replace(collate(indices, chips, variations, self.view), epoch=epoch or 0)

    @torch.no_grad()
    def probe(self, model: NetworkModel) -> dict[str, Tensor]:
        """Run the model on a chip for the shapes of its outputs."""
        first = self.train[0]
        batch = self.make_batch([first], [self.chips.read(first)])
        was_training = model.training
        reflectance = batch.prepare(model.mean_reflectance)
        outputs = model.eval().compute(reflectance, batch.dates, batch.clear)
        model.train(was_training)
        return outputs


def prepare_training(recipe: Recipe) -> TrainingJob:
    """Settle what is trained on what.

    Raises
    ------
    RecipeError
        If the recipe has no ``training`` or ``samples``.
    SamplesError
        If the chips are not there or do not fit the model.
    ModelError
        If the model cannot be built.
    TrainingError
        If the objective fits neither the model nor the chips, or a setting cannot work.
    """
    if recipe.training is None or recipe.samples is None:
        missing = "training" if recipe.training is None else "samples"
        raise RecipeError(f"{missing}: the recipe has no such section, which training needs")
    settings = recipe.training
    if "://" in settings.weights:
        raise TrainingError(
            f"training.weights: {settings.weights}: weights and their run folder go to a file "
            "system, not to a URL"
        )
    chips = ChipSet(recipe.samples.path)
    choice = choose_model(recipe.model)
    model = choice.build()
    if not isinstance(model, NetworkModel):
        raise TrainingError(f"model.name: {recipe.model.name} has no weights that can be trained")
    view = view_chips(settings, model.spec, chips)
    train, validation = (tuple(chips.indices(split).tolist()) for split in SPLITS[:2])
    _check_settings(settings, model, len(train), len(validation))
    fingerprint = {
        "model": recipe.model.model_dump(mode="json"),
        "training": settings.model_dump(mode="json", exclude={"checkpoint_minutes", "weights"}),
        "samples": {"template": _plain(chips.template), "statistics": chips.facts["statistics"],
                    "train": len(train), "validation": len(validation)},
    }  # fmt: skip
    job = TrainingJob(
        recipe.name, settings, choice, chips, view, train, validation, fingerprint
    )  # fmt: skip
    _check_outputs(job, model)
    return job


def _plain(template: ChipTemplate) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(template).items()}


def _check_settings(
    settings: TrainingConfig, model: NetworkModel, train: int, validation: int
) -> None:
    """Refuse settings that cannot work with so many chips, or with this model."""
    if settings.batch_chips > train:
        raise SamplesError(
            f"training.batch_chips: {settings.batch_chips} chips are wanted in a batch, but the "
            f"training split has {train}"
        )
    check_parts(settings, world=1)
    if not validation:
        for field, given in (
            ("schedule: plateau", isinstance(settings.schedule, PlateauSchedule)),
            ("early_stop_epochs", settings.early_stop_epochs is not None),
        ):
            if given:
                raise TrainingError(f"training.{field} needs validation chips, but there are none")
    if settings.optimiser.segmentation_weight_decay is not None and not has_segmenter(model):
        raise TrainingError(
            "training.optimiser.segmentation_weight_decay: is of the segmentation network of "
            f"dbpn-segnet, which {model.spec.name} does not have; leave it out"
        )


def check_parts(settings: TrainingConfig, *, world: int) -> None:
    """Refuse more parts than there are chips in a batch: every process needs one in each part.

    Raises
    ------
    TrainingError
        Naming the field.
    """
    if settings.batch_chips // settings.accumulate < world:
        raise TrainingError(
            f"training.batch_chips: {settings.batch_chips} in {settings.accumulate} parts are too "
            f"few for {world} processes, each of which needs a chip in every part"
        )


def _check_outputs(job: TrainingJob, model: NetworkModel) -> None:
    """Refuse an objective whose terms the model has no outputs for."""
    objective = job.settings.objective
    needed = {
        "segmentation": ("logits",),
        "dual": ("logits", "image", "segmentation_features", "image_features"),
        "end-to-end": ("logits", "image"),
        "image": ("image",),
    }[objective.kind]
    if isinstance(objective, ImageObjective) and objective.loss == "uncertainty":
        needed = ("image", "log_scale")
    outputs = job.probe(model)
    for name in needed:
        if name not in outputs:
            what = "image with uncertainty" if name == "log_scale" else objective.kind
            raise TrainingError(
                f"training.objective: {what} needs a model with the output {name}, which "
                f"{model.spec.name} does not have"
            )
