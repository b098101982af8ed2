"""Resampling onto the grid so that a pixel's value depends on its place alone.

GDAL's warper approximates coordinates along each scanline of a window, so the same pixel
differs between two windows; made exact, it spends most of its time in PROJ. Here the
coordinates of a pixel come from exact ones at knots of a fixed lattice, every 16 pixels,
interpolated bilinearly in between: the same for every window, and less than a thousandth of a
pixel off. Places and weights are computed once for all files that share a grid, which are all
bands of one pixel size, and all dates, of an MGRS tile. Kernels and the treatment of missing
pixels follow GDAL's warper (Keys 1981 with a = -0.5 for ``cubic``).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import Transformer

from bigmap.grid import ROI

KNOT_PX = 16
TIE_PX = 1e-6
"""Coordinates this close to a pixel's edge count as beyond it, so that rounding decides no tie."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
ROIKey = tuple[int, int, int, int]
_PLANNING = threading.Lock()


def _weigh_bilinear(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    weight: npt.NDArray[Any] = np.maximum(1 - np.abs(distance), 0)
    return weight


def _weigh_cubic(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    t = np.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight: npt.NDArray[Any] = np.where(t <= 1, near, np.where(t < 2, far, 0))
    return weight


KERNELS: dict[str, tuple[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]] = {
    "bilinear": (1, _weigh_bilinear),
    "cubic": (2, _weigh_cubic),
}
"""Radius in source pixels, and weight by distance."""
METHODS: dict[str, tuple[str, ...]] = {
    "nearest": (), "bilinear": ("bilinear",), "cubic": ("cubic", "bilinear"),
}  # fmt: skip
"""The kernel of a method, then the one that replaces it where neighbours are missing."""


@lru_cache(maxsize=128)
def transformer_between(first: str, second: str) -> Transformer:
    """Return the transformation from one CRS to another, which takes tens of ms to make."""
    return Transformer.from_crs(first, second, always_xy=True)


@dataclass(frozen=True)
class FileGrid:
    """Where the pixels of a file lie."""

    crs: str
    transform: Affine
    """Pixel (column, row) to metres of the file's CRS."""
    shape: tuple[int, int]
    """(y, x), in pixels."""


@dataclass(frozen=True)
class TargetGrid:
    """The grid that files are read onto."""

    crs: str
    gsd_m: float
    anchor_m: tuple[float, float] = (0.0, 0.0)
    """Upper left corner of pixel (0, 0): x and y in metres."""

    def index_of(self, x: float, y: float) -> tuple[int, int]:
        """Return the row and column of the pixel whose upper left corner is nearest to a place."""
        row, col = (self.anchor_m[1] - y) / self.gsd_m, (x - self.anchor_m[0]) / self.gsd_m
        return round(row), round(col)


def locate_pixels(target: TargetGrid, roi: ROI, source: str) -> tuple[FloatArray, FloatArray]:
    """Return the centres of a region's pixels in the CRS of a file.

    Parameters
    ----------
    target
        The grid.
    roi
        ``(rows, cols)`` in global pixel indices of the grid.
    source
        CRS of the file.

    Returns
    -------
    x, y
        float64, (y, x), in metres of the file's CRS; infinite where there is no such place.
    """
    knots = _knots_of(roi)
    x, y = np.meshgrid(
        target.anchor_m[0] + knots[1] * target.gsd_m, target.anchor_m[1] - knots[0] * target.gsd_m
    )
    located = transformer_between(target.crs, source).transform(x, y)
    xs, ys = (_interpolate(values, knots, roi) for values in located)
    return xs, ys


def _knots_of(roi: ROI) -> list[IntArray]:
    """Return the rows and columns of the knots around a region, in global pixel indices."""
    return [np.arange(p.start // KNOT_PX, (p.stop - 1) // KNOT_PX + 2) * KNOT_PX for p in roi]


def _interpolate(values: FloatArray, knots: list[IntArray], roi: ROI) -> FloatArray:
    """Interpolate values at knots (knot row, knot column) to the centres of pixels."""
    for axis, part in enumerate(roi):
        places = (np.arange(part.start, part.stop) + 0.5 - knots[axis][0]) / KNOT_PX
        left = np.floor(places).astype(np.int64)
        share = np.expand_dims(places - left, 1 - axis)
        low, high = np.take(values, left, axis), np.take(values, left + 1, axis)
        values = low * (1 - share) + high * share
    return values


@dataclass(frozen=True)
class _Kernel:
    """Weights of the neighbours of each place, the same for all files of one grid."""

    first: npt.NDArray[np.int32]
    """Flat index, in what is read, of the first neighbour."""
    rows: tuple[Float32Array, ...]
    cols: tuple[Float32Array, ...]
    """Weight of each neighbour along an axis; a pixel's weight is the product."""
    total: Float32Array | None
    """Sum of the weights where the kernel is stretched; without stretching it is one."""


@dataclass(frozen=True)
class Sampling:
    """Where to read a file, and how the pixels of a region follow from what was read."""

    window: tuple[slice, slice]
    """Rows and columns of the file to read."""
    padding: tuple[tuple[int, int], tuple[int, int]]
    """Pixels to add around them, where kernels reach beyond the file."""
    inside: npt.NDArray[np.bool_]
    """Places that lie in the file, (y, x)."""
    nearest: npt.NDArray[np.int32]
    """Flat index of the pixel that holds each place."""
    kernels: tuple[_Kernel, ...]
    """The kernel wanted, then the one that replaces it where neighbours are missing."""

    def apply(self, read: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
        """Resample what was read.

        A place has a value where the file's pixel that holds it has one; missing neighbours are
        left out and the weights of the others scaled up. A cubic kernel that misses a neighbour
        falls back to the bilinear one.

        Parameters
        ----------
        read
            The pixels of :attr:`window`, (y, x).
        nodata
            Value of missing pixels, in the file and in the result.

        Returns
        -------
        numpy.ndarray
            (y, x) in the dtype of the file.
        """
        pixels = np.pad(read, self.padding, constant_values=nodata)
        flat = pixels.ravel()
        nearest = flat.take(self.nearest, mode="clip")
        found = self.inside & (nearest != nodata)
        if not self.kernels:
            return np.where(found, nearest, np.asarray(nodata, pixels.dtype))
        result, is_complete = _weigh(flat, nodata, self.kernels[0], pixels.shape[1])
        if len(self.kernels) > 1 and not is_complete.all():
            fallback, _ = _weigh(flat, nodata, self.kernels[1], pixels.shape[1])
            result = np.where(is_complete, result, fallback)
        info = np.iinfo(pixels.dtype)
        # Rounding must not turn a value into "no value".
        result = np.clip(np.rint(result), info.min + (nodata == info.min), info.max)
        return np.where(found, result, np.float32(nodata)).astype(pixels.dtype)


def plan_sampling(target: TargetGrid, roi: ROI, source: FileGrid, method: str) -> Sampling | None:
    """Plan the resampling of a file onto a region.

    Kernels widen where the file is finer than the grid, as GDAL's do.

    Parameters
    ----------
    target
        The grid.
    roi
        ``(rows, cols)`` in global pixel indices of the grid.
    source
        The grid of the file.
    method
        ``nearest``, ``bilinear`` or ``cubic``.

    Returns
    -------
    Sampling or None
        None where no place lies in the file.
    """
    rows, cols = roi
    # One thread plans while the others, which want the same, wait for it.
    with _PLANNING:
        return _plan(target, (rows.start, rows.stop, cols.start, cols.stop), source, method)


@lru_cache(maxsize=12)
def _plan(target: TargetGrid, roi: ROIKey, source: FileGrid, method: str) -> Sampling | None:
    x, y = _locate(target, roi, source.crs)
    inverse = ~source.transform
    cols = inverse.a * x + inverse.b * y + inverse.c
    rows = inverse.d * x + inverse.e * y + inverse.f
    with np.errstate(invalid="ignore"):
        inside = (rows >= -TIE_PX) & (cols >= -TIE_PX)
        inside &= (rows < source.shape[0] - TIE_PX) & (cols < source.shape[1] - TIE_PX)
    if not inside.any():
        return None
    ratios, methods = _ratios(target, source), METHODS[method]
    reach = _margins(ratios, method)
    is_whole = bool(inside.all())
    reached = (rows, cols) if is_whole else (rows[inside], cols[inside])
    wanted = [
        (int(values.min()) - margin, int(values.max()) + margin + 1)
        for values, margin in zip(reached, reach, strict=True)
    ]
    window = [
        slice(max(0, low), min(size, high))
        for (low, high), size in zip(wanted, source.shape, strict=True)
    ]
    padding = [
        (part.start - low, high - part.stop)
        for part, (low, high) in zip(window, wanted, strict=True)
    ]
    width = wanted[1][1] - wanted[1][0]
    rows, cols = rows - wanted[0][0], cols - wanted[1][0]
    if not is_whole:
        rows, cols = np.where(inside, rows, reach[0]), np.where(inside, cols, reach[1])
    # Both are positive here, so that cutting the fraction off rounds down.
    nearest = (rows + TIE_PX).astype(np.int32) * np.int32(width) + (cols + TIE_PX).astype(np.int32)
    return Sampling(
        window=(window[0], window[1]),
        padding=(padding[0], padding[1]),
        inside=inside,
        nearest=nearest,
        kernels=tuple(_plan_kernel(rows - 0.5, cols - 0.5, width, ratios, m) for m in methods),
    )


@lru_cache(maxsize=4)
def _locate(target: TargetGrid, roi: ROIKey, source: str) -> tuple[FloatArray, FloatArray]:
    return locate_pixels(target, (slice(*roi[:2]), slice(*roi[2:])), source)


def bound_sampling(
    target: TargetGrid, roi: ROI, source: FileGrid, method: str
) -> tuple[slice, slice]:
    """Bound the windows that :func:`plan_sampling` reads for a region or any part of it.

    A pixel's coordinates lie between those of the knots around it, and a projection has its
    extremes over a region on the outline; so the knots of the outline tell, and a pixel more
    allows for rounding.

    Parameters
    ----------
    target, roi, source, method
        As for :func:`plan_sampling`.

    Returns
    -------
    rows, cols
        A window inside the file; empty where the region does not meet it. Where the outline has
        no place in the CRS of the file, the whole file.
    """
    knot_rows, knot_cols = _knots_of(roi)
    rows = np.concatenate([knot_rows, knot_rows, *([end] * len(knot_cols) for end in
                           (knot_rows[0], knot_rows[-1]))])  # fmt: skip
    cols = np.concatenate([*([end] * len(knot_rows) for end in (knot_cols[0], knot_cols[-1])),
                           knot_cols, knot_cols])  # fmt: skip
    x, y = transformer_between(target.crs, source.crs).transform(
        target.anchor_m[0] + cols * target.gsd_m, target.anchor_m[1] - rows * target.gsd_m
    )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return slice(0, source.shape[0]), slice(0, source.shape[1])
    inverse = ~source.transform
    places = (
        inverse.d * x + inverse.e * y + inverse.f,
        inverse.a * x + inverse.b * y + inverse.c,
    )
    first, second = (
        slice(
            min(max(0, math.floor(values.min()) - margin - 1), size),
            max(min(size, math.floor(values.max()) + margin + 2), 0),
        )
        for values, margin, size in zip(
            places, _margins(_ratios(target, source), method), source.shape, strict=True
        )
    )
    return first, second


def _ratios(target: TargetGrid, source: FileGrid) -> tuple[float, float]:
    """Return the size of a file's pixels in pixels of the grid, (y, x)."""
    return abs(source.transform.e) / target.gsd_m, abs(source.transform.a) / target.gsd_m


def _margins(ratios: tuple[float, float], method: str) -> list[int]:
    """Return how many pixels of the file are read beyond the places wanted, (y, x)."""
    return [max([0] + [_reach(m, ratio) for m in METHODS[method]]) + 1 for ratio in ratios]


def _reach(method: str, ratio: float) -> int:
    return math.ceil(KERNELS[method][0] / min(ratio, 1.0))


def _plan_kernel(
    rows: FloatArray, cols: FloatArray, width: int, ratios: tuple[float, float], method: str
) -> _Kernel:
    weights, firsts = [], []
    for places, ratio in ((rows, ratios[0]), (cols, ratios[1])):
        stretch, reach = min(ratio, 1.0), _reach(method, ratio)
        base = places.astype(np.int32)
        share = (places - base).astype(np.float32)
        firsts.append(base + np.int32(1 - reach))
        taps = range(1 - reach, reach + 1)
        weigh = KERNELS[method][1]
        weights.append(tuple(weigh((np.float32(t) - share) * np.float32(stretch)) for t in taps))
    total = None
    if min(ratios) < 1:
        total = sum(weights[0][1:], weights[0][0]) * sum(weights[1][1:], weights[1][0])
    return _Kernel(firsts[0] * np.int32(width) + firsts[1], weights[0], weights[1], total)


def _weigh(
    flat: npt.NDArray[Any], nodata: int, kernel: _Kernel, width: int
) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """Weigh neighbours; also tell where none was missing."""
    # The compiler takes half a second to import, which only resampling should wait for.
    from bigmap.scenes.cube.weighing import weigh  # noqa: PLC0415

    result = np.empty(kernel.first.shape, np.float32)
    is_complete = np.empty(kernel.first.shape, np.bool_)
    total = np.empty((0, 0), np.float32) if kernel.total is None else kernel.total
    weigh(flat, nodata, kernel.first, kernel.rows, kernel.cols, total, width, result, is_complete)
    return result, is_complete
