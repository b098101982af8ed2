"""The truth of the simulated world at 2.5 m, for any window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from affine import Affine

from bigmap.errors import PlanError
from bigmap.grid import ROI, intersect, relative, scale, tiles_of
from bigmap.simulate.covers import is_crop, land_cover_of
from bigmap.simulate.landscape import Landscape, build_landscape
from bigmap.simulate.patch import FINE_M, FINE_PER_NODE, NODE_M, Patch

LAYERS = ("cropland", "land_cover", "crop", "cover", "parcel", "building")
_STEP_M = 2560
"""Side of the pieces in which windows are rendered, on a lattice from the origin."""


def render_truth(
    crs: str, transform: Affine, shape: tuple[int, int], *, seed: int, layer: str
) -> npt.NDArray[np.generic]:
    """Render a layer of the truth for a window of the 2.5 m lattice of a CRS.

    Parameters
    ----------
    crs
        Projected CRS in metres.
    transform
        Of the window: pixels of 2.5 m, north up, corner at a multiple of 2.5 m.
    shape
        Size in pixels, (y, x).
    seed
        Seed of the world.
    layer
        ``cropland`` (uint8, 1 cropland, 0 other), ``land_cover`` (uint8, codes of
        :data:`bigmap.simulate.covers.S2GLC`), ``crop`` (uint8, codes of
        :data:`bigmap.simulate.covers.CROPS`, 0 other), ``cover`` (uint8, codes of
        :class:`bigmap.simulate.covers.Cover`), ``parcel`` (uint32, a number for each parcel or
        stand, never 0) or ``building`` (uint32, 0 where there is none).

    Returns
    -------
    numpy.ndarray
        (y, x); the same for a pixel in every window that holds it.

    Raises
    ------
    PlanError
        If the layer is unknown or the window does not lie on the lattice.
    """
    if layer not in LAYERS:
        raise PlanError(f"truth layer {layer!r} is unknown; choose from {', '.join(LAYERS)}")
    dtype = np.uint32 if layer in ("parcel", "building") else np.uint8
    result: npt.NDArray[np.generic] = np.zeros(shape, dtype=dtype)
    for landscape, target, source in build_pieces(crs, locate_window(transform), shape, seed=seed):
        result[target] = _read_layer(landscape, layer)[source]
    return result


def build_pieces(
    crs: str, corner: tuple[int, int], shape: tuple[int, int], *, seed: int
) -> Iterator[tuple[Landscape, ROI, ROI]]:
    """Build the landscapes of a window piece by piece, to bound the memory.

    Parameters
    ----------
    corner
        Row and column of the window on the 2.5 m lattice.

    Yields
    ------
    landscape, target, source
        ``window[target]`` is ``landscape[source]``.
    """
    row, column = corner
    step = round(_STEP_M / FINE_M)
    window = slice(row, row + shape[0]), slice(column, column + shape[1])
    for piece in tiles_of(window, step):
        rows, columns = intersect(piece, window)
        top, bottom = rows.start // FINE_PER_NODE, -(-rows.stop // FINE_PER_NODE)
        left, right = columns.start // FINE_PER_NODE, -(-columns.stop // FINE_PER_NODE)
        patch = Patch(crs, left * NODE_M, -top * NODE_M, bottom - top, right - left)
        whole = scale((slice(top, bottom), slice(left, right)), FINE_PER_NODE)
        yield (
            build_landscape(seed, patch),
            relative((rows, columns), window),
            relative((rows, columns), whole),
        )


def locate_window(transform: Affine) -> tuple[int, int]:
    """Return row and column of a window's corner on the 2.5 m lattice from the origin."""
    a, b, left, d, e, top = (float(value) for value in tuple(transform)[:6])
    row, column = -top / FINE_M, left / FINE_M
    is_north_up = a == FINE_M and e == -FINE_M and b == 0 and d == 0
    if not (is_north_up and row.is_integer() and column.is_integer()):
        raise PlanError(
            f"truth needs pixels of {FINE_M} m, north up, with a corner at multiples of "
            f"{FINE_M} m, not {tuple(transform)[:6]}"
        )
    return int(row), int(column)


def _read_layer(landscape: Landscape, layer: str) -> npt.NDArray[np.generic]:
    if layer == "building":
        return landscape.building
    if layer == "parcel":
        number = (landscape.units.bits >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        return np.asarray(number[landscape.unit])
    cover = landscape.cover
    if layer == "cover":
        return cover
    if layer == "land_cover":
        return land_cover_of()[cover]
    crop = np.where(is_crop()[cover], cover, 0)
    return np.asarray((crop > 0 if layer == "cropland" else crop).astype(np.uint8))
