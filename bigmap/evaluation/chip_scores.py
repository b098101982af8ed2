"""Models on chips: the windows are the chips, batches go through the device one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from bigmap.chips import Chip, ChipSet, ChipTemplate
from bigmap.errors import SamplesError
from bigmap.evaluation.candidates import Candidate
from bigmap.evaluation.images import ImageScorer
from bigmap.evaluation.results import ModelScores
from bigmap.inference import Windowing, optimise, prepare
from bigmap.metrics import ConfusionMatrix, InstanceParts
from bigmap.models import ModelSpec
from bigmap.models.base import NODATA_CLASS
from bigmap.quality import DateRule, choose_dates

READERS = 4
AHEAD = 2
"""Batches that are read while one is predicted."""
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
    candidates: Sequence[Candidate],
    chips: ChipSet,
    indices: npt.NDArray[np.intp],
    *,
    settings: ChipSettings,
    advance: Callable[[int], None] | None = None,
) -> list[ModelScores]:
    """Score models on the same chips, each of which is read once.

    Parameters
    ----------
    candidates
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
    scorers = [ChipScorer(candidate, chips.template, settings) for candidate in candidates]
    for batch in read_batches(chips, indices, settings.batch_chips):
        for scorer in scorers:
            scorer.update(batch)
        if advance is not None:
            advance(len(batch))
    return [scorer.compute() for scorer in scorers]


def read_batches(chips: ChipSet, indices: npt.NDArray[np.intp], size: int) -> Iterator[list[Chip]]:
    """Read chips in batches, a few ahead of what is asked for."""
    ahead: deque[list[Callable[[], Chip]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            ahead.append([pool.submit(chips.read, int(index)).result for index in part])
            if len(ahead) > AHEAD:
                yield [read() for read in ahead.popleft()]
        for waiting in ahead:
            yield [read() for read in waiting]


class ChipScorer:
    """One model, and what was seen of it.

    Parameters
    ----------
    candidate
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
        self, candidate: Candidate, template: ChipTemplate, settings: ChipSettings
    ) -> None:
        spec = candidate.spec
        self.candidate = candidate
        self.template = template
        self.windowing = Windowing.for_model(
            spec,
            batch_windows=settings.batch_chips,
            precision=settings.precision,  # type: ignore[arg-type]
            device=settings.device,  # type: ignore[arg-type]
        )
        self.bands = find_bands(spec, template)
        limits = [settings.max_dates, spec.max_dates, template.max_dates]
        self.max_dates = min(limit for limit in limits if limit is not None)
        self.matrix = self._make_matrix()
        self.images = self._make_images(register=settings.register)
        if self.matrix is None and self.images is None:
            raise SamplesError(
                f"model.name: {candidate.label} makes nothing that the samples know: it has "
                f"{'classes' if spec.legend else 'neither classes nor an image'}, and they have "
                f"{'labels' if template.class_values else 'no labels'}"
            )
        self.instances = self._make_instances() if settings.instances else None
        self.labelled_px = 0
        self.device = torch.device(self.windowing.device)
        self.model = optimise(candidate.model).to(self.device)

    def _make_matrix(self) -> ConfusionMatrix | None:
        spec, template = self.candidate.spec, self.template
        if not (spec.legend and template.class_values):
            return None
        refuse_other_legend(self.candidate.label, spec, template)
        if template.upscale % spec.upscale:
            raise SamplesError(
                f"model.options.upscale: {self.candidate.label} makes {spec.upscale} pixels of "
                f"one, but labels have {template.upscale}, which is no multiple of it; extract "
                "samples anew for this model"
            )
        return ConfusionMatrix(template.class_values)

    def _make_images(self, *, register: bool) -> ImageScorer | None:
        spec = self.candidate.spec
        layer = next((each for each in spec.extra_layers if each.name == IMAGE), None)
        if layer is None:
            return None
        missing = [band for band in self.template.target_bands if band not in layer.channels]
        if missing:
            raise SamplesError(
                f"model.bands: {self.candidate.label} makes an image of "
                f"{', '.join(layer.channels)}, but the samples' target has {missing[0]} too"
            )
        return ImageScorer(layer.channels, self.template, register=register)

    def _make_instances(self) -> InstanceParts | None:
        if self.matrix is None:
            return None
        if len(self.matrix.values) != 2:
            raise SamplesError(
                f"--instances: instances are those of the second of two classes, but "
                f"{self.candidate.label} has {len(self.matrix.values)}"
            )
        return InstanceParts()

    def update(self, batch: Sequence[Chip]) -> None:
        """Predict chips and add up how they compare."""
        chosen = [choose_chip_dates(chip, self.max_dates) for chip in batch]
        scores = self._predict(chosen)
        for index, chip in enumerate(chosen):
            seen = np.asarray(chip.clear.any(axis=0))
            if self.matrix is not None:
                self._add_classes(scores["classes"][index], chip, seen)
            if self.images is not None:
                self.images.update(scores[IMAGE][index], chip, seen)

    @torch.inference_mode()
    def _predict(self, batch: Sequence[Chip]) -> dict[str, npt.NDArray[np.float32]]:
        """Return class values (chip, y, x) and images (chip, band, y, x) at output resolution."""
        pixels, clear, dates = (each.to(self.device) for each in stack_chips(batch, self.bands))
        spec = self.candidate.spec
        is_half = self.windowing.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
            scores = self.model(
                prepare(pixels, clear, empty=self.model.mean_reflectance), dates, clear
            )
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
        repeated = _repeat(classes, upscale // self.candidate.spec.upscale)
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
        spec = self.candidate.spec
        facts = {
            "model": spec.name,
            "options": dict(self.candidate.model.options),
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
            label=self.candidate.label,
            classes=self.matrix.compute() if self.matrix is not None else None,
            instances=self.instances.compute() if self.instances is not None else None,
            images=self.images.compute() if self.images is not None else None,
            facts=facts,
            notes=tuple(notes),
        )


def find_bands(spec: ModelSpec, template: ChipTemplate) -> list[int]:
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
    return [template.bands.index(band) for band in spec.bands]


def refuse_other_legend(label: str, spec: ModelSpec, template: ChipTemplate) -> None:
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
            f"model.legend: {label} has the classes {name_classes(mine)}, but the samples have "
            f"{name_classes(theirs)}"
        )


def name_classes(classes: Sequence[tuple[int, str]]) -> str:
    """Return classes for a message."""
    return ", ".join(f"{value} {name}" for value, name in classes)


def choose_chip_dates(chip: Chip, max_dates: int) -> Chip:
    """Return a chip with so many of its dates, the clearest, in order of time."""
    if len(chip.days) <= max_dates:
        return chip
    shares = 100.0 * chip.clear.mean(axis=(1, 2))
    kept = sorted(choose_dates(shares, DateRule(max_dates, 0.0)))
    return replace(
        chip,
        images=chip.images[kept],
        clear=chip.clear[kept],
        days=tuple(chip.days[date] for date in kept),
    )


def stack_chips(
    batch: Sequence[Chip], bands: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stack chips of different numbers of dates.

    Returns
    -------
    pixels, clear, dates
        int16 bits of DN (chip, time, band, y, x), bool (chip, time, y, x), and bool (chip, time),
        false for dates that only pad.
    """
    count = max(1, *(len(chip.days) for chip in batch))
    side = batch[0].images.shape[-2:]
    pixels = np.zeros((len(batch), count, len(bands), *side), dtype=np.uint16)
    clear = np.zeros((len(batch), count, *side), dtype=bool)
    dates = np.zeros((len(batch), count), dtype=bool)
    for index, chip in enumerate(batch):
        number = len(chip.days)
        pixels[index, :number] = chip.images[:, list(bands)]
        clear[index, :number] = chip.clear
        dates[index, :number] = True
    bits = torch.from_numpy(pixels.view(np.int16))
    return bits, torch.from_numpy(clear), torch.from_numpy(dates)


def _repeat(values: npt.NDArray[np.generic], factor: int) -> npt.NDArray[np.generic]:
    return values.repeat(factor, axis=0).repeat(factor, axis=1)
