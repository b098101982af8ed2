"""Where chips may be cut: squares of a lattice, their split, and a draw by their place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from bigmap import grid
from bigmap.draws import derive_seed, hash_ints, to_uniform
from bigmap.grid import ROI, Area, Lattice
from bigmap.learning.samples.splits import SplitAreas

TILE_PX = 256
"""Least side of what is read at once: chips lie close, and small reads are slow."""


@dataclass(frozen=True)
class ChipLattice:
    """Chips on the lattice of the grid, and tiles of them that are read and stored together.

    Both depend on their place alone: neither blocks nor the area move them.
    """

    lattice: Lattice
    span_px: int
    """Side of a chip's place, in pixels of the grid."""
    area: Area
    splits: SplitAreas
    seed: int
    shares: tuple[float, float, float]
    """Of the candidates of each split that are looked at."""

    @property
    def tile_px(self) -> int:
        """Side of a tile: whole chips, about 256 px, at most a cell."""
        return max(1, min(TILE_PX, self.lattice.cell_px) // self.span_px) * self.span_px

    def tiles(self, block: ROI) -> list[ROI]:
        """Return the tiles whose upper left corner lies in a block, in row-major order."""
        rows, cols = block
        return [
            tile
            for tile in grid.tiles_of(block, self.tile_px)
            if tile[0].start >= rows.start and tile[1].start >= cols.start
        ]

    def list_chips(self, region: ROI) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]:
        """Return the candidates of a region.

        Parameters
        ----------
        region
            Whole tiles, in global pixel indices.

        Returns
        -------
        corners, split
            int64, (chip, 2): row and column of the upper left pixel, in row-major order; and int8,
            (chip,): index into :data:`bigmap.learning.chips.SPLITS`.
        """
        rows, cols = (np.arange(part.start, part.stop, self.span_px) for part in region)
        corners = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
        boxes = self.boxes(corners)
        middles = shapely.points((boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2)
        inside = np.ones(len(corners), dtype=bool)
        for part in self.area.parts:
            shapely.prepare(part)
            inside[inside] = shapely.intersects(part, middles[inside])
        split = np.full(len(corners), -1, dtype=np.int8)
        split[inside] = self.splits.assign(boxes[inside])
        drawn = self.draw(corners) < np.array([*self.shares, 0.0])[split]
        return corners[drawn], split[drawn]

    def boxes(self, corners: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return left, bottom, right, top of chips in metres, (chip, 4)."""
        return self.lattice.bounds_of([self.roi(row, col) for row, col in corners])

    def roi(self, row: int, col: int) -> ROI:
        """Return the place of a chip."""
        return (
            slice(int(row), int(row) + self.span_px),
            slice(int(col), int(col) + self.span_px),
        )

    def draw(self, corners: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return a number in [0, 1) for each chip, which its place and the seed alone decide."""
        seed = derive_seed(self.seed, "chip", self.span_px)
        return to_uniform(hash_ints(seed, corners[:, 0], corners[:, 1]))


def name_tile(tile: ROI) -> str:
    """Return the name of a tile: row and column of its upper left pixel."""
    return f"r{tile[0].start}c{tile[1].start}"


def choose_chips(
    split: npt.NDArray[np.int8],
    draw: npt.NDArray[np.float64],
    class_px: npt.NDArray[np.int64],
    *,
    max_chips: int | None,
    balanced: bool,
) -> npt.NDArray[np.bool_]:
    """Choose at most so many chips of each split.

    Parameters
    ----------
    split
        int, (chip,).
    draw
        (chip,), in [0, 1): the chips of the smallest numbers are taken.
    class_px
        (chip, class): labelled pixels.
    max_chips
        Of each split; None takes all.
    balanced
        Take training chips with chances in proportion to sum_k share_k / frequency_k, the classes
        k of a chip against those of all training chips, without replacement (Efraimidis &
        Spirakis 2006, doi:10.1016/j.ipl.2005.11.003). Validation and test stay as they are, or
        their scores would not be those of the area.

    Returns
    -------
    numpy.ndarray
        bool, (chip,).
    """
    chosen = np.ones(len(split), dtype=bool)
    if max_chips is None:
        return chosen
    for index in range(3):
        own = np.flatnonzero(split == index)
        keys = draw[own]
        if balanced and index == 0 and len(own):
            shares = class_px[own] / np.maximum(class_px[own].sum(axis=1, keepdims=True), 1)
            frequency = class_px[own].sum(axis=0) / max(1, class_px[own].sum())
            weight = (shares / np.where(frequency > 0, frequency, np.inf)).sum(axis=1)
            keys = -np.log1p(-keys) / np.maximum(weight, 1e-12)
        chosen[own] = False
        chosen[own[np.argsort(keys, kind="stable")[:max_chips]]] = True
    return chosen
