"""A picture of the chips, coloured by split."""

from __future__ import annotations

import io

import fsspec
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.files import write_atomically
from bigmap.grid import Area
from bigmap.learning.chips import SPLITS, ChipSet
from bigmap.learning.samples.candidates import ChipLattice

PICTURE_FILE = "chips.png"
COLOURS = ("#1f77b4", "#ff9f1c", "#d7263d")
"""Of train, validation and test."""


def draw_chips(run_folder: str, path: str, chips: ChipLattice) -> str:
    """Draw the chips of a set over the area as ``chips.png`` in the run folder.

    Parameters
    ----------
    run_folder
        Of the extraction.
    path
        Of the set.
    chips
        Tells the places.

    Returns
    -------
    str
        Path of the picture.
    """
    # It takes a second to import, which other commands need not wait for.
    from matplotlib.collections import PolyCollection  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    places = ChipSet(path).places
    figure = Figure(figsize=(9, 8), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    _draw_outline(axes, chips.area)
    corners = np.stack([places.row, places.col], axis=1)
    left, bottom, right, top = (chips.boxes(corners) / 1000).T
    ring = ((left, bottom), (right, bottom), (right, top), (left, top))
    squares = np.stack([np.stack(corner, axis=1) for corner in ring], axis=1)
    for index, (split, colour) in enumerate(zip(SPLITS, COLOURS, strict=True)):
        own = places.split == index
        drawn = PolyCollection(
            squares[own], facecolor=colour, edgecolor=colour, linewidth=0.6,
            label=f"{split}: {int(own.sum())} chips",
        )  # fmt: skip
        axes.add_collection(drawn)
    axes.autoscale_view()
    axes.set_aspect("equal")
    axes.set_xlabel(f"x, km ({chips.lattice.crs})")
    axes.set_ylabel("y, km")
    axes.set_title("Chips by split")
    axes.legend(loc="best")
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    filesystem, root = fsspec.core.url_to_fs(run_folder)
    write_atomically(filesystem, f"{root}/{PICTURE_FILE}", stream.getvalue())
    return f"{run_folder}/{PICTURE_FILE}"


def _draw_outline(axes: object, area: Area) -> None:
    outline: BaseGeometry = shapely.intersection_all(list(area.parts))
    for polygon in getattr(outline, "geoms", [outline]):
        x, y = np.asarray(polygon.exterior.coords).T / 1000
        axes.plot(x, y, color="#555555", linewidth=0.8)  # type: ignore[attr-defined]
