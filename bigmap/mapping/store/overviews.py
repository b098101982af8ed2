"""Halved levels below a map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bigmap.grid import ROI
from bigmap.mapping.store.shards import MapWriter
from bigmap.mapping.store.template import CATEGORICAL, LayerTemplate, MapTemplate


def overview_places(template: MapTemplate, level: int) -> Iterator[ROI]:
    """Yield the shards of an overview level, in pixels of that level."""
    height, width = template.shape(level)
    step = template.lattice.shard_px
    for row in range(0, height, step):
        for col in range(0, width, step):
            yield slice(row, min(row + step, height)), slice(col, min(col + step, width))


def write_overview(path: str, template: MapTemplate, *, level: int, place: ROI) -> None:
    """Halve one shard's worth of the level above.

    Classes take the most frequent of four pixels, the smaller value where two are equally
    frequent; other layers the mean of those that are not nodata.
    """
    source = MapWriter(path, level=level - 1)
    target = MapWriter(path, level=level)
    height, width = template.shape(level - 1)
    rows, cols = (
        slice(2 * part.start, min(2 * part.stop, size))
        for part, size in zip(place, (height, width), strict=True)
    )
    halved = {
        layer.name: _halve_in_strips(source, layer, (rows, cols), template.lattice.chunk_px)
        for layer in template.layers
    }
    target.write(halved, place)


def _halve_in_strips(
    source: MapWriter, layer: LayerTemplate, place: ROI, strip_px: int
) -> npt.NDArray[Any]:
    """Halve a region a few rows at a time: halving takes several times the room of its result."""
    halve = halve_classes if layer.name == CATEGORICAL else halve_values
    rows, cols = place
    strips = [
        halve(
            source.read(layer.name, (slice(row, min(row + 2 * strip_px, rows.stop)), cols)),
            layer.nodata,
        )
        for row in range(rows.start, rows.stop, 2 * strip_px)
    ]
    return np.concatenate(strips, axis=-2)


def _quarters(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Return the four pixels below each pixel of the next level, (4, ..., y, x)."""
    odd = [(0, 0)] * (values.ndim - 2) + [(0, size % 2) for size in values.shape[-2:]]
    padded = np.pad(values, odd, constant_values=nodata)
    return np.stack([padded[..., row::2, col::2] for row in (0, 1) for col in (0, 1)])


def halve_classes(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Halve a layer of classes by the most frequent of four pixels that are not nodata."""
    four = np.sort(_quarters(values, nodata), axis=0)
    counts = np.stack([(four == one).sum(axis=0, dtype=np.uint8) for one in four])
    counts = np.where(four == nodata, 0, counts)
    winner = np.take_along_axis(four, counts.argmax(axis=0)[np.newaxis], axis=0)[0]
    return np.where(counts.max(axis=0) == 0, nodata, winner).astype(values.dtype)


def halve_values(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Halve a layer of measured values by the mean of four pixels that are not nodata."""
    four = _quarters(values, nodata)
    known = four != nodata
    count = known.sum(axis=0)
    total = np.where(known, four, 0).sum(axis=0, dtype=np.int64)
    mean = np.rint(total / np.maximum(count, 1))
    return np.where(count == 0, nodata, mean).astype(values.dtype)
