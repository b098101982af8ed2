"""Models on chips: the windows are the chips, batches go through the device one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bigmap.errors import SamplesError
from bigmap.learning.chips import Chip, ChipSet, ChipTemplate
from bigmap.learning.evaluation.contenders import Contender
from bigmap.learning.evaluation.images import ImageScorer
from bigmap.learning.evaluation.results import ModelScores
from bigmap.learning.metrics import ConfusionMatrix, InstanceParts
from bigmap.learning.training.augmenting import choose_clearest
from bigmap.learning.training.batches import Batch, ChipFeed, ChipView, collate, cut_batches
from bigmap.learning.training.viewing import find_bands, refuse_other_legend
from bigmap.mapping.engine import optimise
from bigmap.mapping.windows import Windowing
from bigmap.models.base import NODATA_CLASS

READERS = 4
"""Threads that read chips."""
IMAGE = "image"


@dataclass(frozen=True)
class ChipSettings:
    """How chips go through models."""

    batch_chips: int = 8
    precision: str = "float32"
    device: str = "auto"
    max_dates: int | None = None
    """Of a chip, the clearest first; by default all, as far as a model can take them."""
    instances: bool = False
    """Score connected areas of the second class too."""
    register: bool = False
    """Score images after a shift too."""


def score_chips(
    contenders: Sequence[Contender],
    chips: ChipSet,
    indices: npt.NDArray[np.intp],
    *,
    settings: ChipSettings,
    advance: Callable[[int], None] | None = None,
) -> list[ModelScores]:
    """Score models on the same chips, each of which is read once.

    Parameters
    ----------
    contenders
        The models.
    chips, indices
        Which chips.
    settings
        How they go through the models.
    advance
        Told the number of chips after each batch.

    Raises
    ------
    SamplesError
        If a model does not fit the chips, naming the field; before any is read.
    """
    scorers = [ChipScorer(contender, chips.template, settings) for contender in contenders]
    batches = cut_batches(indices.tolist(), settings.batch_chips)
    with ChipFeed(chips, threads=READERS) as feed:
        for batch, read in feed.iterate(batches, lambda batch, read: (batch, read)):
            for scorer in scorers:
                scorer.update(batch, read)
            if advance is not None:
                advance(len(batch))
    return [scorer.compute() for scorer in scorers]


class ChipScorer:
    """One model, and what was seen of it.

    Parameters
    ----------
    contender
        The model.
    template
        Of the chips.
    settings
        How they go through it.

    Raises
    ------
    SamplesError
        If the model does not fit the chips.
    """

    def __init__(
        self, contender: Contender, template: ChipTemplate, settings: ChipSettings
    ) -> None:
        spec = contender.spec
        self.contender = contender
        self.template = template
        self.windowing = Windowing.for_model(
            spec,
            batch_windows=settings.batch_chips,
            precision=settings.precision,  # type: ignore[arg-type]
            device=settings.device,  # type: ignore[arg-type]
        )
        self.view = ChipView(find_bands(spec, template))
        limits = [settings.max_dates, spec.max_dates, template.max_dates]
        self.max_dates = min(limit for limit in limits if limit is not None)
        self.matrix = self._make_matrix()
        self.images = self._make_images(register=settings.register)
        if self.matrix is None and self.images is None:
            raise SamplesError(
                f"model.name: {contender.label} makes nothing that the samples know: it has "
                f"{'classes' if spec.legend else 'neither classes nor an image'}, and they have "
                f"{'labels' if template.class_values else 'no labels'}"
            )
        self.instances = self._make_instances() if settings.instances else None
        self.labelled_px = 0
        self.device = torch.device(self.windowing.device)
        self.model = optimise(contender.model).to(self.device)

    def _make_matrix(self) -> ConfusionMatrix | None:
        spec, template = self.contender.spec, self.template
        if not (spec.legend and template.class_values):
            return None
        refuse_other_legend(self.contender.label, spec, template)
        if template.upscale % spec.upscale:
            raise SamplesError(
                f"model.options.upscale: {self.contender.label} makes {spec.upscale} pixels of "
                f"one, but labels have {template.upscale}, which is no multiple of it; extract "
                "samples anew for this model"
            )
        return ConfusionMatrix(template.class_values)

    def _make_images(self, *, register: bool) -> ImageScorer | None:
        spec = self.contender.spec
        layer = next((each for each in spec.extra_layers if each.name == IMAGE), None)
        if layer is None:
            return None
        missing = [band for band in self.template.target_bands if band not in layer.channels]
        if missing:
            raise SamplesError(
                f"model.bands: {self.contender.label} makes an image of "
                f"{', '.join(layer.channels)}, but the samples' target has {missing[0]} too"
            )
        return ImageScorer(layer.channels, self.template, register=register)

    def _make_instances(self) -> InstanceParts | None:
        if self.matrix is None:
            return None
        if len(self.matrix.values) != 2:
            raise SamplesError(
                f"--instances: instances are those of the second of two classes, but "
                f"{self.contender.label} has {len(self.matrix.values)}"
            )
        return InstanceParts()

    def update(self, indices: Sequence[int], chips: Sequence[Chip]) -> None:
        """Predict chips and add up how they compare."""
        variations = [choose_clearest(chip.clear, self.max_dates) for chip in chips]
        batch = collate(indices, chips, variations, self.view)
        scores = self._predict(batch.to(self.device))
        for index, chip in enumerate(chips):
            seen = batch.clear[index].any(dim=0).numpy()
            if self.matrix is not None:
                self._add_classes(scores["classes"][index], chip, seen)
            if self.images is not None:
                self.images.update(scores[IMAGE][index], chip, seen)

    @torch.inference_mode()
    def _predict(self, batch: Batch) -> dict[str, npt.NDArray[np.float32]]:
        """Return class values (chip, y, x) and images (chip, band, y, x) at output resolution."""
        spec = self.contender.spec
        is_half = self.windowing.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
            reflectance = batch.prepare(self.model.mean_reflectance)
            scores = self.model(reflectance, batch.dates, batch.clear)
        found = {}
        if self.matrix is not None:
            values = torch.tensor([entry.value for entry in spec.legend], device=self.device)
            # Of equal probabilities the first class, as in maps.
            found["classes"] = values[scores["probability"].argmax(dim=1)].cpu().numpy()
        if self.images is not None:
            found[IMAGE] = scores[IMAGE].float().cpu().numpy()
        return found

    def _add_classes(
        self, classes: npt.NDArray[np.float32], chip: Chip, seen: npt.NDArray[np.bool_]
    ) -> None:
        assert self.matrix is not None
        assert chip.labels is not None
        upscale = self.template.upscale
        repeated = _repeat(classes, upscale // self.contender.spec.upscale)
        # As in a map, what is clear on no date has no class.
        predicted = np.where(_repeat(seen, upscale), repeated, NODATA_CLASS).astype(np.uint8)
        self.matrix.update(predicted, chip.labels)
        self.labelled_px += int((chip.labels != NODATA_CLASS).sum())
        if self.instances is not None:
            second = self.matrix.values[1]
            valid = (chip.labels != NODATA_CLASS) & (predicted != NODATA_CLASS)
            origin = chip.row * upscale, chip.col * upscale
            self.instances.update(
                predicted == second, chip.labels == second, origin=origin, valid=valid
            )

    def compute(self) -> ModelScores:
        """Derive all scores."""
        spec = self.contender.spec
        facts = {
            "model": spec.name,
            "options": dict(self.contender.model.options),
            "bands": list(spec.bands),
            "upscale": spec.upscale,
            "max_dates": self.max_dates,
            "precision": self.windowing.precision,
            "device": self.windowing.device,
            "labelled_px": self.labelled_px,
        }
        notes = [spec.notice] if spec.notice else []
        if self.template.chip_px % spec.multiple_px:
            notes.append(
                f"chips of {self.template.chip_px} px are no multiple of {spec.multiple_px}, as "
                f"windows of {spec.name} in maps are; their edges were repeated"
            )
        return ModelScores(
            label=self.contender.label,
            classes=self.matrix.compute() if self.matrix is not None else None,
            instances=self.instances.compute() if self.instances is not None else None,
            images=self.images.compute() if self.images is not None else None,
            facts=facts,
            notes=tuple(notes),
        )


def _repeat(values: npt.NDArray[np.generic], factor: int) -> npt.NDArray[np.generic]:
    return values.repeat(factor, axis=0).repeat(factor, axis=1)
