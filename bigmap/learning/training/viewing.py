"""What a model takes of chips; refuses chips that do not fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bigmap.config.training import (
    DualObjective,
    EndToEndObjective,
    ImageObjective,
    SegmentationObjective,
    TrainingConfig,
)
from bigmap.errors import SamplesError, TrainingError
from bigmap.learning.chips import ChipSet, ChipTemplate
from bigmap.learning.losses.images import SSIM_RADIUS_PX
from bigmap.learning.training.batches import ChipView
from bigmap.models import ModelSpec
from bigmap.models.base import image_layer
from bigmap.models.networks.shiftnet import SIDE_PX

LEAST_STD = 1e-4
"""Of a band that is all one value, in reflectance."""
NEEDS_LABELS = (SegmentationObjective, DualObjective, EndToEndObjective)
NEEDS_TARGET = (DualObjective, EndToEndObjective, ImageObjective)


def find_bands(spec: ModelSpec, template: ChipTemplate) -> tuple[int, ...]:
    """Return the places of a model's bands among those of chips.

    Raises
    ------
    SamplesError
        If the chips lack one.
    """
    missing = [band for band in spec.bands if band not in template.bands]
    if missing:
        raise SamplesError(
            f"model.bands: {spec.name} needs {missing[0]}, but the samples have "
            f"{', '.join(template.bands)}"
        )
    return tuple(template.bands.index(band) for band in spec.bands)


def refuse_other_legend(name: str, spec: ModelSpec, template: ChipTemplate) -> None:
    """Refuse a model whose classes are not those of chips.

    Raises
    ------
    SamplesError
        Naming both.
    """
    mine = [(entry.value, entry.name) for entry in spec.legend]
    theirs = list(zip(template.class_values, template.class_names, strict=True))
    if sorted(mine) != sorted(theirs):
        raise SamplesError(
            f"model.legend: {name} has the classes {name_classes(mine)}, but the samples have "
            f"{name_classes(theirs)}"
        )


def name_classes(classes: Sequence[tuple[int, str]]) -> str:
    """Return classes for a message."""
    return ", ".join(f"{value} {name}" for value, name in classes)


def view_chips(settings: TrainingConfig, spec: ModelSpec, chips: ChipSet) -> ChipView:
    """Choose what a model that is trained takes of chips.

    Raises
    ------
    SamplesError
        If the chips lack it.
    TrainingError
        If the objective does not fit the model.
    """
    template, objective = chips.template, settings.objective
    bands = find_bands(spec, template)
    if template.chip_px % spec.multiple_px:
        raise SamplesError(
            f"samples.chip_px: {template.chip_px} is no multiple of {spec.multiple_px}, which "
            f"{spec.name} needs"
        )
    std = chips.statistics[1]
    classes = targets = references = None
    if isinstance(objective, NEEDS_LABELS):
        classes = _place_classes(objective.kind, spec, chips)
    if isinstance(objective, NEEDS_TARGET):
        targets = _place_targets(objective, spec, chips)
    if isinstance(objective, ImageObjective) and objective.consistency_weight:
        references = tuple(template.bands.index(band) for band in _image_bands(spec))
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
    refuse_other_legend(spec.name, spec, template)
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
    if template.target_px <= 2 * SSIM_RADIUS_PX:
        raise SamplesError(
            f"samples.chip_px: targets of {chips.path} measure {template.target_px} px, too few "
            f"for a window of SSIM, {2 * SSIM_RADIUS_PX + 1} px; cut larger chips"
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
