"""Resampling onto the grid so that a pixel's value depends on its place alone.

GDAL's warper approximates coordinates along each scanline of a window, so the same pixel
differs between two windows; made exact, it spends most of its time in PROJ. Here the
coordinates of a pixel come from exact ones at knots of a fixed lattice, every 16 pixels,
interpolated bilinearly in between: the same for every window, and a ten-thousandth of a pixel
off at most. They are shared by all files of one CRS. Kernels and the treatment of missing
pixels follow GDAL's warper (Keys 1981 with a = -0.5 for ``cubic``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


def _weigh_bilinear(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.maximum(1 - np.abs(distance), 0)


def _weigh_cubic(distance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    t = np.abs(distance)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


KERNELS: dict[str, tuple[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]] = {
    "bilinear": (1, _weigh_bilinear),
    "cubic": (2, _weigh_cubic),
}
"""Radius in source pixels, and weight by distance."""


@lru_cache(maxsize=16)
def _transformer(target: str, source: str) -> Transformer:
    return Transformer.from_crs(target, source, always_xy=True)


@lru_cache(maxsize=8)
def _locate(
    target: str, source: str, gsd_m: float, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[FloatArray, FloatArray]:
    knots = [np.arange(a // KNOT_PX, (b - 1) // KNOT_PX + 2) * KNOT_PX for a, b in (rows, cols)]
    x, y = np.meshgrid(knots[1] * gsd_m, -knots[0] * gsd_m)
    located = _transformer(target, source).transform(x, y)
    xs, ys = (_interpolate(values, knots, rows, cols) for values in located)
    for values in (xs, ys):
        values.flags.writeable = False
    return xs, ys


def _interpolate(
    values: FloatArray, knots: list[IntArray], rows: tuple[int, int], cols: tuple[int, int]
) -> FloatArray:
    """Interpolate values at knots (knot row, knot column) to the centres of pixels."""
    for axis, (start, stop) in enumerate((rows, cols)):
        places = (np.arange(start, stop) + 0.5 - knots[axis][0]) / KNOT_PX
        left = np.floor(places).astype(np.int64)
        share = np.expand_dims(places - left, 1 - axis)
        low, high = np.take(values, left, axis), np.take(values, left + 1, axis)
        values = low * (1 - share) + high * share
    return values


def locate_pixels(
    roi: ROI, *, gsd_m: float, target: str, source: str
) -> tuple[FloatArray, FloatArray]:
    """Return the centres of a region's pixels in the CRS of a file.

    Parameters
    ----------
    roi
        ``(rows, cols)`` in global pixel indices of the grid.
    gsd_m
        Pixel size of the grid, in metres.
    target, source
        CRS of the grid and of the file.

    Returns
    -------
    x, y
        float64, (y, x), in metres of the file's CRS; infinite where there is no such place. Not
        to be written to: they are shared.
    """
    rows, cols = roi
    return _locate(target, source, gsd_m, (rows.start, rows.stop), (cols.start, cols.stop))


def resample(
    read: Callable[[slice, slice], npt.NDArray[Any]],
    *,
    shape: tuple[int, int],
    transform: Affine,
    places: tuple[FloatArray, FloatArray],
    gsd_m: float,
    method: str,
    nodata: int,
) -> npt.NDArray[Any] | None:
    """Resample a file at given places.

    A pixel has a value where the file's pixel that holds its centre has one; missing neighbours
    are left out and the weights of the others scaled up. A cubic kernel that misses a neighbour
    falls back to the bilinear one. Kernels widen where the file is finer than the grid.

    Parameters
    ----------
    read
        Reads rows and columns of the file, (y, x); called once, with slices inside it.
    shape
        Size of the file in pixels, (y, x).
    transform
        Of the file: pixel (column, row) to metres.
    places
        x and y of the wanted pixels' centres, float64 (y, x), in the file's CRS.
    gsd_m
        Pixel size of the grid, in metres.
    method
        ``nearest``, ``bilinear`` or ``cubic``.
    nodata
        Value of missing pixels, in the file and in the result.

    Returns
    -------
    numpy.ndarray or None
        (y, x) in the dtype of the file; None where no place lies in the file.
    """
    inverse = ~transform
    x, y = places
    cols = inverse.a * x + inverse.b * y + inverse.c
    rows = inverse.d * x + inverse.e * y + inverse.f
    with np.errstate(invalid="ignore"):
        inside = (rows >= -TIE_PX) & (cols >= -TIE_PX)
        inside &= (rows < shape[0] - TIE_PX) & (cols < shape[1] - TIE_PX)
    if not inside.any():
        return None
    ratios = (abs(transform.e) / gsd_m, abs(transform.a) / gsd_m)
    radius = KERNELS[method][0] if method in KERNELS else 0
    reach = tuple(math.ceil(radius / min(ratio, 1.0)) + 1 for ratio in ratios)
    window = tuple(
        slice(
            max(0, int(values[inside].min()) - margin),
            min(size, int(values[inside].max()) + margin + 2),
        )
        for values, margin, size in zip((rows, cols), reach, shape, strict=True)
    )
    pixels = read(*window)
    # From here on in pixels of what was read, with the centre of the first pixel at 0.5.
    rows = np.where(inside, rows - window[0].start, 0.0)
    cols = np.where(inside, cols - window[1].start, 0.0)
    nearest = pixels[
        _clip(np.floor(rows + TIE_PX), pixels.shape[0]),
        _clip(np.floor(cols + TIE_PX), pixels.shape[1]),
    ]
    found = inside & (nearest != nodata)
    if method == "nearest":
        return np.where(found, nearest, np.asarray(nodata, pixels.dtype))
    values = _convolve(pixels, rows - 0.5, cols - 0.5, ratios, method, nodata)
    info = np.iinfo(pixels.dtype)
    # Rounding must not turn a value into "no value".
    rounded = np.clip(np.rint(values), info.min + (nodata == info.min), info.max)
    return np.where(found, rounded, nodata).astype(pixels.dtype)


def _convolve(
    pixels: npt.NDArray[Any], rows: FloatArray, cols: FloatArray, ratios: tuple[float, float],
    method: str, nodata: int,
) -> npt.NDArray[np.float32]:  # fmt: skip
    """Weigh the pixels around each place; NaN where there is none."""
    total = np.zeros(rows.shape, np.float32)
    weights = np.zeros(rows.shape, np.float32)
    complete = np.ones(rows.shape, bool)
    is_whole = bool((pixels != nodata).all())
    for row, row_weight in _taps(rows, ratios[0], method):
        row_inside = (row >= 0) & (row < pixels.shape[0])
        row_index = _clip(row, pixels.shape[0])
        for col, col_weight in _taps(cols, ratios[1], method):
            weight = row_weight * col_weight
            value = pixels[row_index, _clip(col, pixels.shape[1])]
            known = row_inside & (col >= 0) & (col < pixels.shape[1])
            if not is_whole:
                known &= value != nodata
            complete &= known | (weight == 0)
            weight = np.where(known, weight, np.float32(0))
            total += weight * value
            weights += weight
    with np.errstate(invalid="ignore", divide="ignore"):
        values = total / weights
    if method == "cubic" and not complete.all():
        fallback = _convolve(pixels, rows, cols, ratios, "bilinear", nodata)
        values = np.where(complete, values, fallback)
    return values


def _taps(
    places: FloatArray, ratio: float, method: str
) -> Iterator[tuple[IntArray, npt.NDArray[np.float32]]]:
    """Yield the neighbours along one axis: index of the pixel, and its weight."""
    radius, weigh = KERNELS[method]
    stretch = min(ratio, 1.0)
    reach = math.ceil(radius / stretch)
    first = np.floor(places)
    share = places - first
    first = first.astype(np.int64)
    for tap in range(1 - reach, reach + 1):
        yield first + tap, weigh((tap - share) * stretch).astype(np.float32)


def _clip(index: npt.NDArray[Any], size: int) -> IntArray:
    return np.clip(index, 0, size - 1).astype(np.int64)
