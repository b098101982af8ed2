"""What every reader of labels gives."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

UNLABELLED = 255
UInt8Array = npt.NDArray[np.uint8]
Bounds = tuple[float, float, float, float]


class LabelReader(Protocol):
    """Gives the labels of any place; travels to workers."""

    def near(self, bounds: Bounds) -> LabelReader:
        """Return a reader for a small region, left, bottom, right, top, which it may load."""

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Return values of classes, (y, x), 255 where unlabelled.

        Raises
        ------
        ReadError
            If a file cannot be read at present; trying again may help.
        SamplesError
            If the labels are refused by a rule of the recipe, or their file is unfit.
        """


def bounds_of(geobox: GeoBox) -> Bounds:
    """Return left, bottom, right, top of a grid in its CRS."""
    box = geobox.boundingbox
    return float(box.left), float(box.bottom), float(box.right), float(box.top)
