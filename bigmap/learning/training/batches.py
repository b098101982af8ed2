"""Chips as batches of tensors, read ahead by threads while the network computes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigmap.learning.chips import UNLABELLED, Chip, ChipSet
from bigmap.learning.training.augmenting import Variation
from bigmap.mapping.engine import prepare
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA

READ_AHEAD = 4
"""Batches that wait for the network, or are being read."""

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some chips as tensors, with fewer dates filled up; what a set lacks is None."""

    chips: tuple[int, ...]
    """Their indices in the set."""
    pixels: Tensor
    """int16, (batch, time, band, y, x): the bits of uint16 DN."""
    clear: Tensor
    """bool, (batch, time, y, x)."""
    dates: Tensor
    """bool, (batch, time): false where a chip has fewer dates than others."""
    gain: Tensor | None = None
    """float32, (batch, time), of reflectance."""
    offset: Tensor | None = None
    """float32, (batch, time, band), of reflectance."""
    labels: Tensor | None = None
    """uint8, (batch, fine y, fine x): position of the class in the legend, 255 where unlabelled."""
    target: Tensor | None = None
    """int16, (batch, band, target y, target x): the bits of uint16 DN."""
    reference: Tensor | None = None
    """int16, (batch, band, y, x): the clearest date in the bands of the model's image."""
    reference_clear: Tensor | None = None
    """bool, (batch, y, x)."""
    epoch: int = 0
    """In which the chips are seen, for random numbers."""

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.chips)

    @property
    def labelled(self) -> Tensor:
        """Which pixels have a class, bool (batch, fine y, fine x)."""
        assert self.labels is not None
        return self.labels != UNLABELLED

    @property
    def target_valid(self) -> Tensor:
        """Which pixels of the target have data in all bands, bool (batch, y, x)."""
        assert self.target is not None
        return (self.target != NODATA).all(dim=1)

    def prepare(self, empty: Tensor) -> Tensor:
        """Return finite reflectance, float32 (batch, time, band, y, x), jittered where it is.

        See :func:`bigmap.mapping.engine.prepare`.
        """
        reflectance = prepare(self.pixels, self.clear, empty=empty)
        if self.gain is None or self.offset is None:
            return reflectance
        gain = self.gain[:, :, None, None, None]
        return reflectance * gain + self.offset[:, :, :, None, None]

    def map(self, change: Any) -> Batch:
        """Return the batch with each tensor changed by a function."""
        tensors = {
            each.name: change(value)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        return replace(self, **tensors)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device; from pinned memory without waiting for the copy."""
        if device.type == "cpu":
            return self
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Copy the batch to memory that a GPU reads by itself."""
        return self.map(lambda tensor: tensor.pin_memory())


def to_reflectance(bits: Tensor) -> Tensor:
    """Turn the bits of uint16 DN, int16, into float32 reflectance."""
    return (bits.to(torch.int32) & 0xFFFF).to(torch.float32) * DN_SCALE + DN_OFFSET


@dataclass(frozen=True, eq=False)
class ChipView:
    """What a model takes of a set's chips."""

    bands: tuple[int, ...]
    """Of the set, in the order of the model."""
    classes: npt.NDArray[np.uint8] | None = None
    """(256,): position in the model's legend by value, 255 for no class; None without labels."""
    target_bands: tuple[int, ...] | None = None
    """Of the set's target; None where it is not wanted."""
    reference_bands: tuple[int, ...] | None = None
    """Of the set, those of the model's image; None where the clearest date is not wanted."""
    band_std: tuple[float, ...] = ()
    """Standard deviation of reflectance, of the model's bands: the unit of the jitter's offset."""


class ChipFeed:
    """Reads chips in threads, some batches ahead; small sets stay in memory.

    Parameters
    ----------
    chips
        The set.
    threads
        That read.
    cache_bytes
        Chips are kept in memory up to so much.
    """

    def __init__(self, chips: ChipSet, *, threads: int = 2, cache_bytes: int = 0) -> None:
        self.chips = chips
        self.waited_s = 0.0
        """Time for which whoever asks for batches has waited."""
        self._room = cache_bytes // max(1, chips.template.chip_bytes)
        self._kept: dict[int, Chip] = {}
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bigmap-chips")

    def __enter__(self) -> Self:
        """Return the feed, whose threads end with the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads."""
        self.close()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def iterate(
        self, batches: Iterable[Sequence[int]], make: Callable[[Sequence[int], list[Chip]], Made]
    ) -> Iterator[Made]:
        """Yield batches in their order, some read ahead.

        Parameters
        ----------
        batches
            Indices of the chips of each.
        make
            Makes a batch of indices and their chips, in the threads that read.
        """
        waiting: deque[Future[Made]] = deque()
        source = iter(batches)
        try:
            while True:
                while len(waiting) < READ_AHEAD and (indices := next(source, None)) is not None:
                    waiting.append(self._pool.submit(self._load, indices, make))
                if not waiting:
                    return
                started = time.perf_counter()
                batch = waiting.popleft().result()
                self.waited_s += time.perf_counter() - started
                yield batch
        finally:
            for future in waiting:
                future.cancel()

    def read(self, indices: Sequence[int]) -> list[Chip]:
        """Read chips, or take them from memory."""
        return [self._read(int(index)) for index in indices]

    def _load(
        self, indices: Sequence[int], make: Callable[[Sequence[int], list[Chip]], Made]
    ) -> Made:
        return make(indices, self.read(indices))

    def _read(self, index: int) -> Chip:
        chip = self._kept.get(index)
        if chip is None:
            chip = self.chips.read(index)
            if len(self._kept) < self._room:
                self._kept[index] = chip
        return chip


def share_out(items: Sequence[int], *, rank: int, world: int) -> Sequence[int]:
    """Return the part of a sequence that a process takes; parts differ by one item at most."""
    cuts = [len(items) * place // world for place in range(world + 1)]
    return items[cuts[rank] : cuts[rank + 1]]


def cut_batches(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut a sequence into pieces of a size; the last one may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def collate(
    indices: Sequence[int], chips: Sequence[Chip], variations: Sequence[Variation], view: ChipView
) -> Batch:
    """Make a batch of chips, each varied in its own way.

    Turns, flips and the choice of dates are views; pixels are copied once, into the batch.
    """
    most = max(1, *(len(variation.dates) for variation in variations))
    side = chips[0].images.shape[-1]
    pixels = np.zeros((len(chips), most, len(view.bands), side, side), dtype=np.uint16)
    clear = np.zeros((len(chips), most, side, side), dtype=bool)
    dates = np.zeros((len(chips), most), dtype=bool)
    for row, (chip, variation) in enumerate(zip(chips, variations, strict=True)):
        images, mask = variation.move(chip.images), variation.move(chip.clear)
        for place, date in enumerate(variation.dates):
            for band, source in enumerate(view.bands):
                pixels[row, place, band] = images[date, source]
            clear[row, place] = mask[date]
        dates[row, : len(variation.dates)] = True
    batch = Batch(
        chips=tuple(int(index) for index in indices),
        pixels=torch.from_numpy(pixels.view(np.int16)),
        clear=torch.from_numpy(clear),
        dates=torch.from_numpy(dates),
    )
    more: dict[str, Any] = {
        **_jitter(variations, most, view),
        **_labels(chips, variations, view),
        **_targets(chips, variations, view),
        **_references(chips, variations, view),
    }
    return replace(batch, **more)


def _jitter(variations: Sequence[Variation], most: int, view: ChipView) -> dict[str, Tensor]:
    if all(variation.gain is None for variation in variations):
        return {}
    gain = torch.ones(len(variations), most)
    offset = torch.zeros(len(variations), most)
    for row, variation in enumerate(variations):
        assert variation.gain is not None
        assert variation.offset is not None
        gain[row, : len(variation.dates)] = torch.from_numpy(variation.gain)
        offset[row, : len(variation.dates)] = torch.from_numpy(variation.offset)
    return {"gain": gain, "offset": offset[:, :, None] * torch.tensor(view.band_std)}


def _labels(
    chips: Sequence[Chip], variations: Sequence[Variation], view: ChipView
) -> dict[str, Tensor]:
    if view.classes is None:
        return {}
    moved = [
        variation.move(chip.labels)
        for chip, variation in zip(chips, variations, strict=True)
        if chip.labels is not None
    ]
    return {"labels": torch.from_numpy(view.classes[np.stack(moved)])}


def _targets(
    chips: Sequence[Chip], variations: Sequence[Variation], view: ChipView
) -> dict[str, Tensor]:
    if view.target_bands is None:
        return {}
    chosen = list(view.target_bands)
    moved = [
        variation.move(chip.target[chosen])
        for chip, variation in zip(chips, variations, strict=True)
        if chip.target is not None
    ]
    return {"target": torch.from_numpy(np.stack(moved).view(np.int16))}


def _references(
    chips: Sequence[Chip], variations: Sequence[Variation], view: ChipView
) -> dict[str, Tensor]:
    """Return the clearest date of each chip, of equal ones the earliest, and its mask."""
    if view.reference_bands is None:
        return {}
    bands = list(view.reference_bands)
    images, masks = [], []
    for chip, variation in zip(chips, variations, strict=True):
        best = int(chip.clear.sum(axis=(1, 2)).argmax())
        images.append(variation.move(chip.images[best][bands]))
        masks.append(variation.move(chip.clear[best]))
    return {
        "reference": torch.from_numpy(np.stack(images).view(np.int16)),
        "reference_clear": torch.from_numpy(np.stack(masks)),
    }
