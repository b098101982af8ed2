"""Windows, cells, blocks and shards on one lattice anchored at the origin of the CRS.

Pure geometry: a pixel has the global index ``row = -y / gsd_m``, ``col = x / gsd_m``, so
that the same place has the same index in every run; ``anchor_m`` shifts the lattice where it has
to meet another product's pixels. Regions are ``(rows, cols)`` slices
of global indices and may be negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

ROI = tuple[slice, slice]

BLOCKS_A_SIDE = 8
"""Of a square of blocks that is looked at as one."""


@dataclass(frozen=True)
class Lattice:
    """The input grid, its partition, and the partition of the output."""

    crs: str
    """Projected CRS in metres."""
    gsd_m: float
    """Pixel size of the input grid, in metres."""
    core_px: int
    """Side of a window's core, in input pixels."""
    cell_px: int
    """Side of a cell, in input pixels."""
    block_px: int
    """Side of a block, in input pixels."""
    upscale: int
    """Output pixels per input pixel, along each axis."""
    shard_px: int
    """Side of a Zarr shard, in output pixels."""
    chunk_px: int
    """Side of a Zarr chunk, in output pixels."""
    anchor_m: tuple[float, float] = (0.0, 0.0)
    """Where pixel (0, 0) has its upper left corner: x and y in metres."""
    shift_px: int = 0
    """How far cores and cells lie off the lattice of blocks, along both axes, in input pixels.
    Where neighbouring windows blend over the borders of cores, a block whose edge is a border needs
    a ring of windows for a narrow strip; an edge in the middle of cores needs half of them, so that
    n x n cores take (n + 1)² instead of (n + 2)² windows."""

    @property
    def output_gsd_m(self) -> float:
        """Pixel size of the output, in metres."""
        return self.gsd_m / self.upscale

    @property
    def extent_step_px(self) -> int:
        """Step, in input pixels, to which a map's extent is snapped: whole cells and shards."""
        return math.lcm(self.cell_px, self.shard_px // math.gcd(self.shard_px, self.upscale))

    def geobox(self, roi: ROI, *, upscale: int = 1) -> GeoBox:
        """Return the GeoBox of a region of input pixels, at ``upscale`` pixels per pixel."""
        rows, cols = roi
        gsd_m = self.gsd_m / upscale
        left, _, _, top = self.bounds(roi)
        affine = Affine(gsd_m, 0, left, 0, -gsd_m, top)
        shape = (upscale * (rows.stop - rows.start), upscale * (cols.stop - cols.start))
        return GeoBox(shape, affine, self.crs)

    def bounds(self, roi: ROI) -> tuple[float, float, float, float]:
        """Return left, bottom, right, top of a region, in metres."""
        rows, cols = roi
        x, y = self.anchor_m
        return (
            x + cols.start * self.gsd_m,
            y - rows.stop * self.gsd_m,
            x + cols.stop * self.gsd_m,
            y - rows.start * self.gsd_m,
        )

    def snap(self, bounds: tuple[float, float, float, float], step_px: int) -> ROI:
        """Return the smallest region on the lattice of ``step_px`` that covers ``bounds``.

        Parameters
        ----------
        bounds
            Left, bottom, right, top in metres.
        step_px
            Step of the lattice, in input pixels.
        """
        left, bottom, right, top = bounds
        x, y = self.anchor_m
        step_m = step_px * self.gsd_m
        return (
            slice(
                math.floor((y - top) / step_m) * step_px,
                math.ceil((y - bottom) / step_m) * step_px,
            ),
            slice(
                math.floor((left - x) / step_m) * step_px,
                math.ceil((right - x) / step_m) * step_px,
            ),
        )

    def bounds_of(self, rois: Sequence[ROI]) -> npt.NDArray[np.float64]:
        """Return :meth:`bounds` of many regions, (n, 4) in metres."""
        edges = np.array(
            [(cols.start, rows.stop, cols.stop, rows.start) for rows, cols in rois], dtype=float
        ).reshape(-1, 4)
        x, y = self.anchor_m
        gsd_m = self.gsd_m
        corner, step = np.array((x, y, x, y)), np.array((gsd_m, -gsd_m, gsd_m, -gsd_m))
        bounds: npt.NDArray[np.float64] = corner + step * edges
        return bounds

    def cores(self, roi: ROI) -> Iterator[ROI]:
        """Yield the cores that touch a region, in row-major order, each whole."""
        return tiles_of(roi, self.core_px, self.shift_px)

    def cells(self, roi: ROI) -> Iterator[ROI]:
        """Yield the cells that touch a region, in row-major order, each whole."""
        return tiles_of(roi, self.cell_px, self.shift_px)

    def blocks(self, extent: ROI) -> Iterator[ROI]:
        """Yield the blocks of an extent in row-major order, clipped to the extent.

        The extent is snapped to :attr:`extent_step_px`, so a clipped block still consists of
        whole shards.
        """
        for block in tiles_of(extent, self.block_px):
            yield intersect(block, extent)

    def blocks_in(self, area: Area, extent: ROI) -> list[ROI]:
        """Return those of :meth:`blocks` that an area meets, in row-major order.

        Squares of many blocks are looked at first: of a thin area's extent most hold nothing.
        """
        squares = list(tiles_of(extent, BLOCKS_A_SIDE * self.block_px))
        met = compress(squares, area.meets(self.bounds_of(squares)))
        blocks = [block for square in met for block in self.blocks(intersect(square, extent))]
        chosen = compress(blocks, area.meets(self.bounds_of(blocks)))
        return sorted(chosen, key=lambda block: (block[0].start, block[1].start))


def tiles_of(roi: ROI, step_px: int, shift_px: int = 0) -> Iterator[ROI]:
    """Yield the squares of a lattice of ``step_px`` that touch a region, row by row.

    Parameters
    ----------
    roi
        The region.
    step_px
        Side of the squares.
    shift_px
        Where one has its upper left corner, along both axes.
    """
    firsts = [(part.start - shift_px) // step_px * step_px + shift_px for part in roi]
    for row in range(firsts[0], roi[0].stop, step_px):
        for col in range(firsts[1], roi[1].stop, step_px):
            yield slice(row, row + step_px), slice(col, col + step_px)


def window_of(core: ROI, halo_px: int) -> tuple[ROI, ROI]:
    """Grow a core by its halo and locate the core inside the window.

    Parameters
    ----------
    core
        ``(rows, cols)`` slices of one core on the lattice, in input-grid pixels; may be
        negative: the lattice starts at the CRS origin.
    halo_px
        Context wanted on each side, in input-grid pixels.

    Returns
    -------
    window, trim
        ``window`` is what to read; ``trim`` cuts the core back out of it:
        ``grid[window][trim]`` equals ``grid[core]``.

    Raises
    ------
    ValueError
        If ``halo_px`` is negative or ``core`` is empty.
    """
    if halo_px < 0 or is_empty(core):
        raise ValueError(
            f"halo of {halo_px} px around {core}: the halo must not be negative "
            "and the core not be empty"
        )
    window = grow(core, halo_px)
    return window, relative(core, window)


def grow(roi: ROI, margin_px: int) -> ROI:
    """Return a region grown by a margin on each side."""
    rows, cols = roi
    return (
        slice(rows.start - margin_px, rows.stop + margin_px),
        slice(cols.start - margin_px, cols.stop + margin_px),
    )


def intersect(a: ROI, b: ROI) -> ROI:
    """Return the common part of two regions; :func:`is_empty` where there is none."""
    rows, cols = (
        slice(max(i.start, j.start), min(i.stop, j.stop)) for i, j in zip(a, b, strict=True)
    )
    return rows, cols


def is_empty(roi: ROI) -> bool:
    """Tell whether a region holds no pixel."""
    return any(part.stop <= part.start for part in roi)


def hull(rois: list[ROI]) -> ROI:
    """Return the smallest region that contains all the given ones."""
    rows, cols = (
        slice(min(roi[axis].start for roi in rois), max(roi[axis].stop for roi in rois))
        for axis in (0, 1)
    )
    return rows, cols


def relative(roi: ROI, parent: ROI) -> ROI:
    """Return a region in the pixel indices of a parent region."""
    rows, cols = (
        slice(i.start - j.start, i.stop - j.start) for i, j in zip(roi, parent, strict=True)
    )
    return rows, cols


def scale(roi: ROI, factor: int) -> ROI:
    """Return a region in pixels that are ``factor`` times smaller."""
    rows, cols = (slice(part.start * factor, part.stop * factor) for part in roi)
    return rows, cols


def shape_of(roi: ROI) -> tuple[int, int]:
    """Return the (y, x) size of a region, in pixels."""
    rows, cols = roi
    return rows.stop - rows.start, cols.stop - cols.start


@dataclass(frozen=True)
class Area:
    """The AOI in the CRS of the grid.

    ``parts`` are polygons of which a pixel must lie in every one: an outline and, for a trial,
    a box. They are kept apart because clipping one by the other would move vertices, and with
    them pixels of the edge.
    """

    parts: tuple[BaseGeometry, ...]

    @property
    def outline(self) -> Area:
        """The outline alone, without the box of a trial."""
        return Area(self.parts[:1])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top of the common part, in metres; NaN where there is none."""
        left, bottom, right, top = shapely.intersection_all(list(self.parts)).bounds
        return left, bottom, right, top

    @property
    def area_km2(self) -> float:
        """Area of the common part on the grid, in square kilometres."""
        return float(shapely.intersection_all(list(self.parts)).area) / 1e6

    def meets(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Tell which of many boxes every part meets, as :meth:`intersects` does for one.

        Parameters
        ----------
        boxes
            (n, 4), left, bottom, right, top in metres.
        """
        shapes = shapely.box(*boxes.T)
        meets = np.ones(len(boxes), dtype=bool)
        for part in self.parts:
            shapely.prepare(part)
            meets[meets] = shapely.intersects(part, shapes[meets])
        return meets

    def intersects(self, bounds: tuple[float, float, float, float]) -> bool:
        """Tell whether every part meets a box; a block that does not has nothing to map."""
        box = shapely.box(*bounds)
        return all(part.intersects(box) for part in self.parts)


def area_mask(area: Area, lattice: Lattice, roi: ROI) -> npt.NDArray[np.bool_]:
    """Rasterise the AOI at output resolution: pixels whose centre lies inside it.

    Each cell is rasterised alone, whatever region is asked for, so that rounding on an edge
    cannot differ between regions.

    Returns
    -------
    numpy.ndarray
        bool, (y, x), ``lattice.upscale`` times the size of ``roi``.
    """
    upscale = lattice.upscale
    mask = np.zeros(shape_of(scale(roi, upscale)), dtype=bool)
    for cell in lattice.cells(roi):
        part = intersect(cell, roi)
        piece = _cell_mask(area, lattice, cell)[scale(relative(part, cell), upscale)]
        mask[scale(relative(part, roi), upscale)] = piece
    return mask


def _cell_mask(area: Area, lattice: Lattice, cell: ROI) -> npt.NDArray[np.bool_]:
    geobox = lattice.geobox(cell, upscale=lattice.upscale)
    box = shapely.box(*lattice.bounds(cell))
    mask = np.ones(geobox.shape, dtype=bool)
    for part in area.parts:
        if part.covers(box):
            continue
        if not part.intersects(box):
            return np.zeros(geobox.shape, dtype=bool)
        mask &= rasterio.features.geometry_mask([part], geobox.shape, geobox.transform, invert=True)
    return mask
