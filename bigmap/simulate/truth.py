"""The truth of the simulated world at 2.5 m, for any window."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from affine import Affine

from bigmap.errors import PlanError
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
    row, column = locate_window(transform)
    dtype = np.uint32 if layer in ("parcel", "building") else np.uint8
    result: npt.NDArray[np.generic] = np.zeros(shape, dtype=dtype)
    step = round(_STEP_M / FINE_M)
    for piece_row in range(row // step, (row + shape[0] - 1) // step + 1):
        for piece_column in range(column // step, (column + shape[1] - 1) // step + 1):
            rows = slice(max(row, piece_row * step), min(row + shape[0], (piece_row + 1) * step))
            columns = slice(
                max(column, piece_column * step),
                min(column + shape[1], (piece_column + 1) * step),
            )
            result[_shift(rows, -row), _shift(columns, -column)] = _render_piece(
                crs, rows, columns, seed=seed, layer=layer
            )
    return result


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


def _render_piece(
    crs: str, rows: slice, columns: slice, *, seed: int, layer: str
) -> npt.NDArray[np.generic]:
    """Render rows and columns of the 2.5 m lattice through the squares that hold them."""
    first_row, last_row = rows.start // FINE_PER_NODE, -(-rows.stop // FINE_PER_NODE)
    first_column, last_column = columns.start // FINE_PER_NODE, -(-columns.stop // FINE_PER_NODE)
    patch = Patch(
        crs,
        first_column * NODE_M,
        -first_row * NODE_M,
        last_row - first_row,
        last_column - first_column,
    )
    values = _read_layer(build_landscape(seed, patch), layer)
    return values[
        _shift(rows, -first_row * FINE_PER_NODE), _shift(columns, -first_column * FINE_PER_NODE)
    ]


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


def _shift(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
