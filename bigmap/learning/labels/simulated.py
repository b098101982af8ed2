"""Labels of the simulated world: its truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from bigmap import simulate
from bigmap.errors import SamplesError
from bigmap.learning.labels.reader import Bounds, UInt8Array, bounds_of

FINE_M = 2.5
"""Pixel size of the simulated truth."""
SIMULATED_VALUES = {"cropland": (0, 1), "building": (0, 1)}
"""Values of truth layers whose classes are always these; others follow the legend."""


@dataclass(frozen=True)
class SimulatedLabelReader:
    """The truth of the simulated world; coarser pixels take its most frequent value."""

    layer: str
    seed: int
    crs: str
    loaded: tuple[float, float, UInt8Array] | None = None
    """Left, top and labels at 2.5 m, (y, x), of a region that was rendered."""

    def near(self, bounds: Bounds) -> SimulatedLabelReader:
        """Render a region once."""
        left, bottom, right, top = bounds
        box = (
            math.floor(left / FINE_M) * FINE_M, math.floor(bottom / FINE_M) * FINE_M,
            math.ceil(right / FINE_M) * FINE_M, math.ceil(top / FINE_M) * FINE_M,
        )  # fmt: skip
        return replace(self, loaded=(box[0], box[3], self._render(box)))

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Take the truth; pixels must be whole ones of 2.5 m, on their lattice."""
        bounds = bounds_of(geobox)
        factor = (bounds[2] - bounds[0]) / geobox.shape[1] / FINE_M
        if factor != round(factor):
            raise SamplesError(
                f"samples.labels.kind: simulated labels need pixels of whole multiples of {FINE_M} "
                f"m, not {factor * FINE_M:g} m; change grid.gsd_m or the model's upscale"
            )
        return reduce_by_mode(self._cut(bounds), round(factor))

    def _cut(self, bounds: Bounds) -> UInt8Array:
        left, bottom, right, top = bounds
        if self.loaded is not None:
            west, north, labels = self.loaded
            row, col = (north - top) / FINE_M, (left - west) / FINE_M
            shape = round((top - bottom) / FINE_M), round((right - left) / FINE_M)
            fits = row >= 0 and col >= 0 and row + shape[0] <= labels.shape[0]
            if fits and row.is_integer() and col.is_integer() and col + shape[1] <= labels.shape[1]:
                return labels[int(row) : int(row) + shape[0], int(col) : int(col) + shape[1]]
        return self._render(bounds)

    def _render(self, bounds: Bounds) -> UInt8Array:
        left, bottom, right, top = bounds
        shape = round((top - bottom) / FINE_M), round((right - left) / FINE_M)
        transform = Affine(FINE_M, 0, left, 0, -FINE_M, top)
        truth = simulate.render_truth(self.crs, transform, shape, seed=self.seed, layer=self.layer)
        return np.asarray(truth != 0 if self.layer == "building" else truth).astype(np.uint8)


def reduce_by_mode(labels: UInt8Array, step: int) -> UInt8Array:
    """Take the most frequent label of squares of ``step`` pixels, the smaller of equal ones."""
    if step == 1:
        return labels
    rows, cols = labels.shape[0] // step, labels.shape[1] // step
    squares = labels.reshape(rows, step, cols, step)
    values = np.unique(labels)
    counts = np.stack([(squares == value).sum(axis=(1, 3)) for value in values])
    most: UInt8Array = values[counts.argmax(axis=0)]
    return most
