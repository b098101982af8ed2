"""Cells of jittered points: which of them owns each pixel, and how far its border is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bigmap.draws import F64, U64, hash_ints, to_uniform
from bigmap.simulate.noise import I64
from bigmap.simulate.patch import FINE_PER_NODE, average_nodes


@dataclass(frozen=True)
class Cells:
    """The cells that touch a patch."""

    owner: I64
    """Index of the cell of each pixel, (y, x) at 2.5 m."""
    border_m: F64
    """Distance of each pixel to the border of its cell, (y, x) at 2.5 m, in metres."""
    bits: U64
    """A hash for each cell, the same in every patch."""
    site_x: F64
    """World x of each cell's point, in metres."""
    site_y: F64
    """World y of each cell's point, in metres."""


def find_cells(
    seed: int, nodes: tuple[F64, F64], fine: tuple[F64, F64], *, spacing_m: float
) -> Cells:
    """Find the Voronoi cells of one random point in each square of ``spacing_m``.

    The two nearest points are searched at the centre of each square of 20 m; between them,
    every pixel is decided exactly by their bisector. Only where three cells meet within 20 m
    can a pixel go to the second nearest cell.

    Parameters
    ----------
    nodes, fine
        World coordinates x, y of the patch's nodes and of its pixels, in metres.
    spacing_m
        Side of the squares; a cell's mean area is its square.
    """
    x, y = average_nodes(nodes[0]), average_nodes(nodes[1])
    column, row = (np.floor(part / spacing_m).astype(np.int64) for part in (x, y))
    first_row, first_column = int(row.min()) - 2, int(column.min()) - 2
    height = int(row.max()) + 3 - first_row
    width = int(column.max()) + 3 - first_column
    rows = np.arange(first_row, first_row + height)[:, None]
    columns = np.arange(first_column, first_column + width)[None, :]
    bits = hash_ints(seed, rows, columns)
    # A jitter of 80 % keeps every nearest and second nearest point within two squares.
    site_x = (columns + 0.1 + 0.8 * to_uniform(bits, draw=1)) * spacing_m
    site_y = (rows + 0.1 + 0.8 * to_uniform(bits, draw=2)) * spacing_m
    site_x, site_y = site_x.ravel(), site_y.ravel()
    first, second = _find_two_nearest(
        x, y, (row - first_row) * width + (column - first_column), width, site_x, site_y
    )
    # Signed distance to the bisector of two points is linear in the place.
    east, north = site_x[first] - site_x[second], site_y[first] - site_y[second]
    length = np.hypot(east, north)
    east, north = east / length, north / length
    middle = (
        east * (site_x[first] + site_x[second]) + north * (site_y[first] + site_y[second])
    ) / 2
    signed = _spread(east) * fine[0] + _spread(north) * fine[1] - _spread(middle)
    owner = np.where(signed >= 0, _spread(first), _spread(second))
    return Cells(owner, np.abs(signed), bits.ravel(), site_x, site_y)


def _find_two_nearest(
    x: F64, y: F64, square: I64, width: int, site_x: F64, site_y: F64
) -> tuple[I64, I64]:
    best = np.full(x.shape, np.inf)
    next_best = best.copy()
    first = square.copy()
    second = square.copy()
    for down in (-2, -1, 0, 1, 2):
        for right in (-2, -1, 0, 1, 2):
            site = square + (down * width + right)
            distance = (x - site_x[site]) ** 2 + (y - site_y[site]) ** 2
            nearest = distance < best
            nearer = ~nearest & (distance < next_best)
            second = np.where(nearest, first, np.where(nearer, site, second))
            next_best = np.where(nearest, best, np.where(nearer, distance, next_best))
            first = np.where(nearest, site, first)
            best = np.where(nearest, distance, best)
    return first, second


def _spread(squares: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> F64:
    """Repeat a value for each pixel of its square of 20 m."""
    return np.repeat(np.repeat(squares, FINE_PER_NODE, axis=0), FINE_PER_NODE, axis=1)
