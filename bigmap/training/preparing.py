"""Recipe + chips -> what is to be trained; refuses what cannot work before anything is spent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigmap.chips import SPLITS, ChipSet, ChipTemplate
from bigmap.config import (
    DualObjective,
    EndToEndObjective,
    ImageObjective,
    PlateauSchedule,
    Recipe,
    SegmentationObjective,
    TrainingConfig,
)
from bigmap.errors import RecipeError, SamplesError, TrainingError
from bigmap.losses import class_weights
from bigmap.metrics import HALO_PX
from bigmap.models import ModelChoice, ModelSpec, NetworkModel
from bigmap.models.base import image_layer
from bigmap.models.layers import BandStatistics
from bigmap.models.shiftnet import SIDE_PX
from bigmap.planning import model_choice
from bigmap.training.batches import Batch, ChipFeed, ChipView
from bigmap.training.folder import TrainingFolder
from bigmap.training.objectives import Objective, make_objective
from bigmap.training.optimising import has_segmenter

LEAST_STD = 1e-4
"""Of a band that is all one value, in reflectance."""
NEEDS_LABELS = (SegmentationObjective, DualObjective, EndToEndObjective)
NEEDS_TARGET = (DualObjective, EndToEndObjective, ImageObjective)


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
            probe(model, self.open_feed().load(self.train[:1], None)),
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

    def open_feed(self, *, threads: int = 1, cache_bytes: int = 0, pin: bool = False) -> ChipFeed:
        """Open the chips for reading; see :class:`ChipFeed`."""
        return ChipFeed(
            self.chips, self.view, augment=self.settings.augment, seed=self.settings.seed,
            threads=threads, cache_bytes=cache_bytes, pin=pin,
        )  # fmt: skip


@torch.no_grad()
def probe(model: NetworkModel, batch: Batch) -> dict[str, Tensor]:
    """Run the model on a chip for the shapes of its outputs."""
    was_training = model.training
    outputs = model.eval().compute(batch.prepare(model.mean_reflectance), batch.dates, batch.clear)
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
    choice = model_choice(recipe.model)
    model = choice.build()
    if not isinstance(model, NetworkModel):
        raise TrainingError(f"model.name: {recipe.model.name} has no weights that can be trained")
    view = _view_chips(settings, model.spec, chips)
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


def _view_chips(settings: TrainingConfig, spec: ModelSpec, chips: ChipSet) -> ChipView:
    """Choose what the model takes of the chips, and refuse chips that lack it."""
    template, path, objective = chips.template, chips.path, settings.objective
    for band in spec.bands:
        if band not in template.bands:
            raise SamplesError(
                f"samples.path: {path}: the chips have no band {band}, which {spec.name} needs; "
                f"they have {', '.join(template.bands)}"
            )
    if template.chip_px % spec.multiple_px:
        raise SamplesError(
            f"samples.chip_px: {template.chip_px} is no multiple of {spec.multiple_px}, which "
            f"{spec.name} needs"
        )
    bands = tuple(template.bands.index(band) for band in spec.bands)
    std = chips.statistics[1]
    classes = targets = references = None
    if isinstance(objective, NEEDS_LABELS):
        classes = _place_classes(objective.kind, spec, chips)
    if isinstance(objective, NEEDS_TARGET):
        targets = _place_targets(objective, spec, chips)
    if isinstance(objective, ImageObjective) and objective.consistency_weight:
        wanted = _image_bands(spec)
        references = tuple(template.bands.index(band) for band in wanted)
    return ChipView(
        bands, classes, targets, references, tuple(max(std[band], LEAST_STD) for band in bands)
    )


def _image_bands(spec: ModelSpec) -> tuple[str, ...]:
    """Return the bands of the model's image: those of its layer, or all."""
    name = image_layer(()).name
    return next((each.channels for each in spec.extra_layers if each.name == name), spec.bands)


def _place_classes(
    kind: str, spec: ModelSpec, chips: ChipSet
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the position in the legend of each value of the labels."""
    template = chips.template
    if not spec.legend:
        raise TrainingError(
            f"training.objective: {kind} needs a model of classes, which {spec.name} is not"
        )
    if not template.class_values:
        raise SamplesError(
            f"training.objective: {kind} needs labels, which the chips of {chips.path} do not have"
        )
    mine = {entry.value: entry.name for entry in spec.legend}
    theirs = dict(zip(template.class_values, template.class_names, strict=True))
    for value in sorted(mine.keys() | theirs.keys()):
        if mine.get(value) != theirs.get(value):
            raise SamplesError(
                f"model.legend: class {value} is {mine.get(value, 'unknown')} to {spec.name} and "
                f"{theirs.get(value, 'unknown')} in the chips of {chips.path}"
            )
    if template.upscale != spec.upscale:
        raise SamplesError(
            f"model.options.upscale: {spec.name} makes {spec.upscale} pixels of one, and the "
            f"labels of {chips.path} have {template.upscale}"
        )
    pixels = chips.places.class_px[chips.indices("train")].sum(axis=0)
    if np.count_nonzero(pixels) < 2:
        raise SamplesError(
            f"samples.labels: the training chips of {chips.path} have fewer than two classes"
        )
    table = np.full(256, 255, dtype=np.uint8)
    for place, entry in enumerate(spec.legend):
        table[entry.value] = place
    return table


def _place_targets(
    objective: DualObjective | EndToEndObjective | ImageObjective, spec: ModelSpec, chips: ChipSet
) -> tuple[int, ...]:
    """Return the target's bands in the order of the model's image."""
    template = chips.template
    if not template.target_bands:
        raise SamplesError(
            f"training.objective: {objective.kind} needs a target image, which the chips of "
            f"{chips.path} do not have; give samples.target"
        )
    wanted = _image_bands(spec)
    for band in wanted:
        if band not in template.target_bands:
            raise SamplesError(
                f"samples.target: the images of {chips.path} have no band {band}, which "
                f"{spec.name} makes; they have {', '.join(template.target_bands)}"
            )
    if template.target_px <= 2 * HALO_PX:
        raise SamplesError(
            f"samples.chip_px: targets of {chips.path} measure {template.target_px} px, too few "
            f"for a window of SSIM, {2 * HALO_PX + 1} px; cut larger chips"
        )
    side = template.chip_px * spec.upscale
    if not isinstance(objective, ImageObjective) and template.target_px != side:
        raise SamplesError(
            f"samples.target: {objective.kind} compares pixel by pixel, but images of {chips.path} "
            f"measure {template.target_px} px and those of {spec.name} {side} px"
        )
    is_registered = isinstance(objective, ImageObjective) and objective.registered
    if is_registered and template.target_px < SIDE_PX:
        raise SamplesError(
            f"training.objective.registered: shifts are read from {SIDE_PX} px, but targets of "
            f"{chips.path} measure {template.target_px} px; cut larger chips"
        )
    return tuple(template.target_bands.index(band) for band in wanted)


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
    outputs = probe(model, job.open_feed().load(job.train[:1], None))
    for name in needed:
        if name not in outputs:
            what = "image with uncertainty" if name == "log_scale" else objective.kind
            raise TrainingError(
                f"training.objective: {what} needs a model with the output {name}, which "
                f"{model.spec.name} does not have"
            )
