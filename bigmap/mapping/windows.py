"""Windows of a region: how it is cut, and how their scores become layers.

Windows are cores of the lattice grown by a halo, and all of one shape. A window's result depends
on its place alone; windows are added in the order of cells and then of cores, which is the same
whatever region is asked for, so the bytes of a pixel do not depend on the region, the batch or the
number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor

from bigmap import grid
from bigmap.errors import ModelError, ScoresError
from bigmap.grid import ROI, Lattice
from bigmap.models import LayerSpec, ModelSpec
from bigmap.models.base import CLASS, CONFIDENCE, OBSERVATIONS

_STORED = {"uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32}
"""What holds a layer on the device; PyTorch computes with few operations on uint16."""
BLEND_PX = 4
"""Neighbouring cores blend over so many input pixels on each side of their border; our choice. What
differs between them are means over windows: their step is spread over 80 m."""
_DEFAULT_BATCH = {"cpu": 1, "cuda": 8}
"""Windows. On CPUs one at a time is fastest: its arrays stay longest in the caches."""


@dataclass(frozen=True)
class Windowing:
    """How a region is cut into windows and run."""

    overlap: Literal["trim", "blend"] = "trim"
    batch_windows: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    @classmethod
    def for_model(
        cls,
        spec: ModelSpec,
        *,
        overlap: Literal["auto", "trim", "blend"] = "auto",
        batch_windows: int | None = None,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Windowing:
        """Settle what is left open: exact models are trimmed, others blended."""
        if overlap == "auto":
            overlap = "trim" if spec.kind == "exact" else "blend"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise ModelError("inference.device: cuda is asked for, but PyTorch sees no GPU here")
        return cls(overlap, batch_windows or _DEFAULT_BATCH[device], precision, device)

    def blend_px(self, lattice: Lattice) -> int:
        """Return how far neighbours blend on each side of their border, in input pixels."""
        return min(BLEND_PX, lattice.core_px // 2) if self.overlap == "blend" else 0

    def halo_px(self, spec: ModelSpec, lattice: Lattice) -> int:
        """Return the halo of a window: what the model needs beside what is blended.

        Windows have sides, and begin, at multiples of what the model wants. Where they blend, cores
        may begin halfway between such places, and a halo be half of one more.
        """
        wanted, step_px = spec.halo_px + self.blend_px(lattice), spec.multiple_px
        if self.overlap == "blend" and step_px % 4 == 0:  # for less it is a pixel
            step_px //= 2
        return math.ceil(wanted / step_px) * step_px


class Canvas:
    """Collects the scores of windows for one region.

    Where one window alone decides, its scores become layers at once. Sums are kept of the strips
    along the borders of cores, over which neighbours blend.
    """

    def __init__(
        self,
        roi: ROI,
        layers: tuple[LayerSpec, ...],
        *,
        spec: ModelSpec,
        lattice: Lattice,
        windowing: Windowing,
    ) -> None:
        self.spec = spec
        self.layers = layers
        self.roi = roi
        self.upscale = self.spec.upscale
        self.shape = grid.shape_of(grid.scale(roi, self.upscale))
        self.blend_px = windowing.blend_px(lattice)
        self.device = torch.device(windowing.device)
        self.observations = torch.zeros(grid.shape_of(roi), dtype=torch.int32, device=self.device)
        self.strips: dict[tuple[int, int], _Strip] = {}
        """By axis, and the border that they lie along."""
        self.results: dict[str, Tensor] = {}

    def count_observations(self, cell: ROI, window: ROI, clear: Tensor) -> None:
        """Count the clear dates of the cell's pixels."""
        part = grid.intersect(grid.intersect(cell, self.roi), window)
        if not grid.is_empty(part):
            count = clear[:, *grid.relative(part, window)].sum(dim=0, dtype=torch.int32)
            self.observations[grid.relative(part, self.roi)] = count

    def add(self, core: ROI, window: ROI, scores: Mapping[str, Tensor]) -> None:
        """Put the scores of one window, (channel, y, x) at output resolution, in their place."""
        part = grid.intersect(grid.grow(core, self.blend_px), self.roi)
        if grid.is_empty(part):
            return
        cut = grid.scale(grid.relative(part, window), self.upscale)
        kept = {name: values[:, *cut] for name, values in scores.items()}
        self._check_finite(kept, part)
        for rows, row_border in self._divide(core[0], part[0]):
            for cols, col_border in self._divide(core[1], part[1]):
                place = rows, cols
                inside = grid.scale(grid.relative(place, part), self.upscale)
                values = {name: each[:, *inside] for name, each in kept.items()}
                if row_border is not None:  # with the corners
                    self._blend(core, place, values, (0, row_border))
                elif col_border is not None:
                    self._blend(core, place, values, (1, col_border))
                else:
                    self._settle(place, values)

    @torch.inference_mode()
    def finish(self) -> dict[str, npt.NDArray[Any]]:
        """Return all layers; nodata where no clear date or no window was."""
        while self.strips:
            _, strip = self.strips.popitem()
            scores = {name: total / strip.weights for name, total in strip.sums.items()}
            self._settle(strip.roi, scores, strip.weights > 0)
        unseen = _repeat(self.observations == 0, self.upscale)
        arrays = {}
        for layer in self.layers:
            if layer.name == OBSERVATIONS.name:
                seen = self.observations.clamp(max=254).to(torch.uint8)
                values = _repeat(seen, self.upscale)
            else:
                values = self._result(layer.name)
            values.masked_fill_(unseen, layer.nodata)
            arrays[layer.name] = values.cpu().numpy().astype(layer.dtype, copy=False)
        return arrays

    def _check_finite(self, scores: Mapping[str, Tensor], part: ROI) -> None:
        """Refuse scores of which stored values could be made, but none that means anything."""
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                rows, cols = part
                raise ScoresError(
                    f"the {name} that {self.spec.name} gives is not finite in rows {rows.start} to "
                    f"{rows.stop}, columns {cols.start} to {cols.stop} of the grid; check its "
                    "weights, or set inference.precision: float32"
                )

    def _divide(self, core: slice, part: slice) -> Iterator[tuple[slice, int | None]]:
        """Yield the pieces of one axis: those that blend with their border, and the one between."""
        pieces = (
            (core.start - self.blend_px, core.start + self.blend_px, core.start),
            (core.start + self.blend_px, core.stop - self.blend_px, None),
            (core.stop - self.blend_px, core.stop + self.blend_px, core.stop),
        )
        for start, stop, border in pieces:
            piece = slice(max(start, part.start), min(stop, part.stop))
            if piece.start < piece.stop:
                yield piece, border

    def _blend(
        self, core: ROI, place: ROI, scores: Mapping[str, Tensor], border: tuple[int, int]
    ) -> None:
        """Add weighted scores to the strip along a border."""
        if border not in self.strips:
            axis, middle = border
            along = slice(middle - self.blend_px, middle + self.blend_px)
            whole = (along, self.roi[1]) if axis == 0 else (self.roi[0], along)
            roi = grid.intersect(whole, self.roi)
            shape = grid.shape_of(grid.scale(roi, self.upscale))
            self.strips[border] = _Strip(roi, torch.zeros(shape, device=self.device), {})
        strip = self.strips[border]
        weight = self._weight(core, place)
        inside = grid.scale(grid.relative(place, strip.roi), self.upscale)
        strip.weights[inside] += weight
        for name, values in scores.items():
            if name not in strip.sums:
                shape = (len(values), *strip.weights.shape)
                strip.sums[name] = torch.zeros(shape, device=self.device)
            strip.sums[name][:, *inside] += values * weight

    def _settle(
        self, place: ROI, scores: Mapping[str, Tensor], is_known: Tensor | None = None
    ) -> None:
        """Write the layers of scores, of some pixels or of all, in their place."""
        inside = grid.scale(grid.relative(place, self.roi), self.upscale)
        for name, values in self._layers_of(scores).items():
            result = self._result(name)[..., *inside]
            if is_known is None:
                result.copy_(values)
            else:
                result.copy_(torch.where(is_known, values.to(result.dtype), result))

    def _result(self, name: str) -> Tensor:
        if name not in self.results:
            layer = self._spec(name)
            lead = (len(layer.channels),) if layer.channels else ()
            self.results[name] = torch.full(
                (*lead, *self.shape),
                layer.nodata,
                dtype=_STORED[layer.dtype],
                device=self.device,
            )
        return self.results[name]

    def _layers_of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn scores into stored values, int32."""
        values: dict[str, Tensor] = {}
        wanted = {layer.name: layer for layer in self.layers}
        if "probability" in scores and self.spec.legend:
            best, codes = _find_best(scores["probability"], self.spec)
            if CLASS.name in wanted:
                values[CLASS.name] = codes
            if CONFIDENCE.name in wanted:
                values[CONFIDENCE.name] = CONFIDENCE.quantise(best * 100)
        for layer in self.spec.extra_layers:
            if layer.name in wanted:
                score = scores[layer.name] * (100 if layer.units == "percent" else 1)
                values[layer.name] = layer.quantise(score if layer.channels else score[0])
        return values

    def _spec(self, name: str) -> LayerSpec:
        return next(layer for layer in self.layers if layer.name == name)

    def _weight(self, core: ROI, part: ROI) -> Tensor:
        """Return a core's weights on a part, which with its neighbours' sum to one."""
        rows, cols = (
            _ramp(axis, wanted, self.blend_px, self.upscale).to(self.device)
            for axis, wanted in zip(core, part, strict=True)
        )
        return rows[:, None] * cols[None, :]


@dataclass
class _Strip:
    """Sums of weighted scores along one border of cores."""

    roi: ROI
    weights: Tensor
    """(y, x) at output resolution."""
    sums: dict[str, Tensor]
    """(channel, y, x)."""


def _find_best(probability: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return the greatest probability and its class's value; of equal ones the first class.

    Going through whole planes, class by class, is several times faster than a maximum over the
    leading axis.
    """
    best = probability[0]
    codes = torch.full_like(best, spec.legend[0].value, dtype=torch.int32)
    for plane, entry in zip(probability[1:], spec.legend[1:], strict=True):
        codes = codes.masked_fill(plane > best, entry.value)
        best = torch.maximum(best, plane)
    return best, codes


def _ramp(core: slice, part: slice, blend_px: int, upscale: int) -> Tensor:
    """Return 1-D weights of a core.

    They are one inside, and fall to zero from ``blend_px`` within the border to ``blend_px``
    beyond. A falling flank is one minus the neighbour's rising one, so they sum to one exactly.
    """
    centres = torch.arange(part.start * upscale, part.stop * upscale) + 0.5
    rising = ((centres / upscale - core.start + blend_px) / (2 * blend_px)).clamp(0, 1)
    falling = 1 - ((centres / upscale - core.stop + blend_px) / (2 * blend_px)).clamp(0, 1)
    return torch.minimum(rising, falling)


def _repeat(values: Tensor, upscale: int) -> Tensor:
    """Repeat pixels (y, x) onto the output grid."""
    return values.repeat_interleave(upscale, dim=0).repeat_interleave(upscale, dim=1)
