"""Peak memory of a worker, from what it holds at each step of a block.

Numbers of bytes are counted in the code that they belong to; benchmarks/results compares the sum
with what workers of every model really took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigmap.models import LayerSpec, ModelSpec

IDLE_BYTES = 480e6
"""A worker of Dask that has imported all it needs: measured, 0.46 to 0.49 GB."""
KEPT_BYTES = 150e6
"""Of small things beside the arrays. What the C library keeps of freed memory lies in the peak."""
HEAP_SHARE = 1.2
"""What the heap takes for each byte of arrays in use; the rest lies in holes between them."""
PREPARED_BYTES = 18
"""Of one sample while pixels become reflectance: see :func:`bigmap.mapping.engine.prepare`."""
MASK_BYTES = 5
"""Of one pixel of one item: its value, what is clear and has data, and dilation's copy."""
SAMPLING_BYTES = {"nearest": 5, "bilinear": 25, "cubic": 61}
"""Of one pixel: places and weights of a plan of :mod:`bigmap.scenes.cube.resampling`."""
APPLYING_BYTES = 35
"""Of one pixel of a file, while a thread resamples it."""


UNSEEN_BYTES = 3
"""Of one output pixel: whether it was seen, and its observations while they are enlarged."""


@dataclass(frozen=True)
class CellLoad:
    """What a block reads of a cell."""

    pixels: int
    """Of the cell with its halo."""
    bands: int
    dates: int
    items: int
    """Of the dates that are chosen."""
    masks: int
    """Items whose masks are read."""

    @property
    def held_bytes(self) -> float:
        """Of a cell in hand: its dates and their masks."""
        return self.pixels * self.dates * (2 * self.bands + 1)

    @property
    def reading_bytes(self) -> float:
        """Of the stack of files, and of dates made of several; or of the masks before."""
        made = self.dates if self.items > self.dates else 0
        bands = 2 * self.bands * (self.items + made) + 2 * self.masks
        return self.pixels * float(max(self.masks * MASK_BYTES, bands))


@dataclass(frozen=True)
class CanvasLoad:
    """What a block collects of scores and layers."""

    pixels: int
    """Of the block, at output resolution."""
    spec: ModelSpec
    layers: Sequence[LayerSpec]
    blended: float
    """Share of pixels along borders of cores, of which sums are kept."""

    @property
    def growing_bytes(self) -> float:
        """While windows are added: layers, and sums of scores and weights."""
        layers = sum(_channels(each) * _stored_bytes(each) for each in self.layers)
        return self.pixels * (layers + self.blended * 4 * (self._scores() + 1))

    @property
    def finishing_bytes(self) -> float:
        """While layers are brought to what is written."""
        written = sum(
            _channels(each) * np.dtype(each.dtype).itemsize
            for each in self.layers
            if _stored_bytes(each) != np.dtype(each.dtype).itemsize
        )
        return self.growing_bytes + self.pixels * (written + UNSEEN_BYTES)

    def _scores(self) -> int:
        extra = (each for each in self.spec.extra_layers if each.name != "probability")
        return len(self.spec.legend) + sum(map(_channels, extra))


def _channels(layer: LayerSpec) -> int:
    return max(1, len(layer.channels))


def _stored_bytes(layer: LayerSpec) -> int:
    """Return the bytes of a value on the device: uint16 is held as int32."""
    return 4 if layer.dtype == "uint16" else np.dtype(layer.dtype).itemsize


def count_peak_bytes(
    cell: CellLoad, canvas: CanvasLoad, *, pass_bytes: float, shared_bytes: float, blocks: int
) -> float:
    """Return the peak memory of a worker.

    Parameters
    ----------
    cell, canvas
        Of one block.
    pass_bytes
        What the heap takes for a batch, holes included; one block at a time predicts.
    shared_bytes
        What all blocks share: weights, plans of resampling.
    blocks
        In hand at once. The one that predicts reads its next cell meanwhile.
    """
    waiting = max(canvas.growing_bytes + cell.reading_bytes, canvas.finishing_bytes)
    held = canvas.growing_bytes + cell.held_bytes + cell.reading_bytes  # of the next cell
    predicting = HEAP_SHARE * held + pass_bytes
    others = HEAP_SHARE * (shared_bytes + (blocks - 1) * waiting)
    return IDLE_BYTES + KEPT_BYTES + others + max(predicting, HEAP_SHARE * waiting)
