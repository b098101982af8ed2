"""Precision and recall of instances, such as buildings, across the borders of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import generate_binary_structure, label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Connectivity = Literal[4, 8]

ROW_STEP = 2**32
"""Pixels get the key row * ROW_STEP + column."""
STEPS: dict[Connectivity, tuple[int, ...]] = {
    4: (1, ROW_STEP),
    8: (1, ROW_STEP, ROW_STEP - 1, ROW_STEP + 1),
}
"""From a pixel to half of its neighbours; the others have it as theirs."""


@dataclass(frozen=True)
class InstanceScores:
    """Scores of instances; NaN where undefined."""

    true: int
    """True instances."""
    predicted: int
    matched: int
    """Pairs of a true and a predicted instance, each in one pair at most."""

    @property
    def precision(self) -> float:
        """Share of the predicted instances that are matched."""
        return _divide(self.matched, self.predicted)

    @property
    def recall(self) -> float:
        """Share of the true instances that are matched."""
        return _divide(self.matched, self.true)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two, 2 matched / (true + predicted)."""
        return _divide(2 * self.matched, self.true + self.predicted)


class InstanceParts:
    """Collects connected components in blocks and joins them across borders.

    An instance is a connected component of a mask. A predicted and a true instance may be paired
    where their IoU is greater than a threshold, 0.25 in SpaceNet 7 (Razzak et al. 2021, 4.2). Below
    0.5 an instance can have several such partners; as many pairs are formed as possible (our
    choice; the challenge goes by the order of its list), so the count depends on no order.

    Memory grows with the number of components and of their pixels at the borders of blocks.

    Parameters
    ----------
    min_iou
        Threshold of the IoU, which must be exceeded.
    connectivity
        Neighbours of a pixel, 4 (as GDAL's polygonize has by default) or 8.
    """

    def __init__(self, *, min_iou: float = 0.25, connectivity: Connectivity = 4) -> None:
        self.min_iou = min_iou
        self.connectivity: Connectivity = connectivity
        self._predicted = _Parts()
        self._true = _Parts()
        self._overlaps: list[IntArray] = []

    def update(
        self,
        predicted: BoolArray,
        truth: BoolArray,
        *,
        origin: tuple[int, int],
        valid: BoolArray | None = None,
    ) -> None:
        """Add a block; each pixel of a map belongs to one block.

        Parameters
        ----------
        predicted, truth
            bool, (y, x): pixels of the class.
        origin
            Row and column of the block's upper left pixel in the map.
        valid
            bool, (y, x); pixels that are False are background in both.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        seen = np.ones(truth.shape, dtype=bool) if valid is None else valid
        if not predicted.shape == truth.shape == seen.shape:
            raise ValueError(
                f"prediction {predicted.shape}, truth {truth.shape} and valid {seen.shape} differ"
            )
        found = self._predicted.add(predicted & seen, origin, self.connectivity)
        real = self._true.add(truth & seen, origin, self.connectivity)
        both = (found >= 0) & (real >= 0)
        # One number a pair: to sort these is much faster than to sort columns.
        keys, pixels = np.unique(found[both] * self._true.count + real[both], return_counts=True)
        self._overlaps.append(np.vstack([*divmod(keys, max(self._true.count, 1)), pixels]))

    def merge(self, other: InstanceParts) -> None:
        """Add the blocks that another one has seen.

        Raises
        ------
        ValueError
            If it has another threshold or connectivity.
        """
        if (self.min_iou, self.connectivity) != (other.min_iou, other.connectivity):
            raise ValueError("instances of two thresholds or connectivities cannot be added")
        shift = np.array([[self._predicted.count], [self._true.count], [0]])
        self._overlaps += [each + shift for each in other._overlaps]
        self._predicted.extend(other._predicted)
        self._true.extend(other._true)

    def compute(self) -> InstanceScores:
        """Join the parts, pair the instances and count."""
        found, found_px = self._predicted.join(self.connectivity)
        real, real_px = self._true.join(self.connectivity)
        shape = len(found_px), len(real_px)
        if not all(shape):
            return InstanceScores(true=shape[1], predicted=shape[0], matched=0)
        part, true_part, pixels = np.hstack(self._overlaps)
        # Converting to rows adds up what several blocks have of the same pair.
        shared = coo_array((pixels, (found[part], real[true_part])), shape=shape).tocsr().tocoo()
        row, column = shared.coords
        enough = shared.data > self.min_iou * (found_px[row] + real_px[column] - shared.data)
        graph = coo_array((enough[enough], (row[enough], column[enough])), shape=shape).tocsr()
        partners = maximum_bipartite_matching(graph, perm_type="column")
        return InstanceScores(
            true=shape[1], predicted=shape[0], matched=int(np.count_nonzero(partners >= 0))
        )


@dataclass
class _Parts:
    """Components of the blocks of one mask, numbered through."""

    count: int = 0
    pixels: list[IntArray] = field(default_factory=list)
    keys: list[IntArray] = field(default_factory=list)
    """Of the component pixels at the borders of blocks, and the number of their component."""
    owners: list[IntArray] = field(default_factory=list)

    def add(self, mask: BoolArray, origin: tuple[int, int], connectivity: Connectivity) -> IntArray:
        """Find the components of a block and their numbers, (y, x); -1 is background."""
        neighbours = generate_binary_structure(2, 1 if connectivity == 4 else 2)
        local, count = label(mask, structure=neighbours, output=np.int64)
        self.pixels.append(np.bincount(local.ravel(), minlength=count + 1)[1:])
        numbers: IntArray = np.where(mask, local - 1 + self.count, -1)
        border = np.ones(mask.shape, dtype=bool)
        border[1:-1, 1:-1] = False
        rows, columns = np.nonzero(border & mask)
        self.keys.append((rows + origin[0]) * ROW_STEP + columns + origin[1])
        self.owners.append(numbers[rows, columns])
        self.count += count
        return numbers

    def extend(self, other: _Parts) -> None:
        """Take the components of other blocks and give them the next numbers."""
        self.pixels += other.pixels
        self.keys += other.keys
        self.owners += [each + self.count for each in other.owners]
        self.count += other.count

    def join(self, connectivity: Connectivity) -> tuple[IntArray, IntArray]:
        """Return the instance of each component, and the pixels of each instance."""
        if not self.count:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        first, second = self._find_neighbours(connectivity)
        graph = coo_array((np.ones(len(first)), (first, second)), shape=(self.count,) * 2)
        number, instances = connected_components(graph, directed=False)
        pixels = np.zeros(number, dtype=np.int64)
        np.add.at(pixels, instances, np.concatenate(self.pixels))
        return instances, pixels

    def _find_neighbours(self, connectivity: Connectivity) -> tuple[IntArray, IntArray]:
        """Return pairs of components with neighbouring pixels at borders of blocks."""
        keys, owners = np.concatenate(self.keys), np.concatenate(self.owners)
        order = np.argsort(keys)
        keys, owners = keys[order], owners[order]
        pairs: list[Any] = []
        for step in STEPS[connectivity]:
            place = np.searchsorted(keys, keys + step)
            place[place == len(keys)] = 0
            beside = keys[place] == keys + step
            pairs.append((owners[beside], owners[place[beside]]))
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return first, second


def _divide(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
