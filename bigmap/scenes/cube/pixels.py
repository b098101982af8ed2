"""What files of bands and masks hold: checked against what is expected, and brought to it.

Every pixel of a band or mask passes here, whichever loader asks for it and wherever its file
lies. What a file declares (nodata of any value, a mask inside, an alpha band) is applied; what
cannot be meant is refused by name, because a wrong number looks like a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.windows import Window

from bigmap.errors import UnfitFileError
from bigmap.grid import ROI, shape_of
from bigmap.scenes.quality import NO_DATA, MaskRule, classify
from bigmap.scenes.radiometry import NODATA, check_scaling

MAX_READ_PX = 1 << 29
"""Greatest window that is read at once: 1 GB of uint16, four times a whole band at 10 m."""

BoolArray = npt.NDArray[np.bool_]


class Pixels(Protocol):
    """What is expected of a kind of files, and what becomes of it on the grid."""

    @property
    def dtype(self) -> str:
        """Of what is made of the pixels."""

    @property
    def fill(self) -> int:
        """What stands for "no data" in what is made of the pixels."""

    @property
    def absent(self) -> int | None:
        """The value that means "no data" in files, whatever they declare."""

    def check(self, dataset: DatasetReader) -> str | None:
        """Tell what is wrong with what a file declares; None where nothing is."""

    def convert(self, values: npt.NDArray[Any], has_data: BoolArray | None) -> npt.NDArray[Any]:
        """Turn values of a file, (y, x), into pixels of ``dtype``.

        Parameters
        ----------
        values
            In the dtype of the file.
        has_data
            Where the file declares that it has data; None where it says nothing.

        Raises
        ------
        ValueError
            If a value cannot be meant; says which.
        """


@dataclass(frozen=True)
class BandPixels:
    """Digital numbers of Sentinel-2, from 1 to 65535; 0 is no data."""

    dtype: ClassVar[str] = "uint16"
    fill: ClassVar[int] = NODATA
    absent: ClassVar[int] = NODATA

    def check(self, dataset: DatasetReader) -> str | None:
        """See :class:`Pixels`."""
        dtype = dataset.dtypes[0]
        if not _is_whole(dtype) or np.dtype(dtype).itemsize == 1:
            return f"holds {dtype}, but Sentinel-2's digital numbers are uint16, int16 or int32"
        scale, offset = dataset.scales[0], dataset.offsets[0]
        wrong = None if (scale, offset) == (1, 0) else check_scaling(scale, offset)
        return None if wrong is None else f"declares the {wrong} of Sentinel-2's digital numbers"

    def convert(self, values: npt.NDArray[Any], has_data: BoolArray | None) -> npt.NDArray[Any]:
        """See :class:`Pixels`."""
        if has_data is not None:
            values = np.where(has_data, values, values.dtype.type(NODATA))
        if values.dtype != np.uint16 and values.size:
            for value in (values.min(), values.max()):
                if not 0 <= value <= np.iinfo(np.uint16).max:
                    raise ValueError(
                        f"holds {value}, but digital numbers are 0 to 65535; where it stands for "
                        "no data, declare it as the file's nodata"
                    )
        return values.astype(np.uint16, copy=False)


@dataclass(frozen=True)
class MaskPixels:
    """Masks, which become one of the states of :mod:`bigmap.scenes.quality`."""

    rule: MaskRule
    dtype: ClassVar[str] = "uint8"
    fill: ClassVar[int] = NO_DATA

    @property
    def absent(self) -> int | None:
        """See :class:`Pixels`."""
        return self.rule.absent

    def check(self, dataset: DatasetReader) -> str | None:
        """See :class:`Pixels`."""
        dtype, bits = dataset.dtypes[0], self.rule.bits
        is_share = dtype.startswith("float") and self.rule.max_value is not None
        if not (_is_whole(dtype) or is_share):
            return (
                f"holds {dtype}, but a mask of kind {self.rule.kind} is whole numbers; where it "
                "holds probabilities, set source.mask.kind: probability and source.mask.max_value, "
                "for example 1 for shares of 0 to 1"
            )
        if bits and max(bits) >= (width := 8 * np.dtype(dtype).itemsize):
            return f"has {width} bits, and no bit {max(bits)} of source.mask.bits"
        scale, offset = dataset.scales[0], dataset.offsets[0]
        if (scale, offset) != (1, 0):
            return f"declares a scale of {scale:g} and an offset of {offset:g}, which masks lack"
        return None

    def convert(self, values: npt.NDArray[Any], has_data: BoolArray | None) -> npt.NDArray[Any]:
        """See :class:`Pixels`."""
        return classify(values, has_data, self.rule)


BANDS = BandPixels()


def check_file(dataset: DatasetReader, expected: Pixels, href: str) -> None:
    """Refuse a file that declares what cannot be meant.

    Raises
    ------
    UnfitFileError
        If its dtype, scale or offset is not that of what is expected.
    """
    if wrong := expected.check(dataset):
        raise UnfitFileError(f"{href}: {wrong}")


def read_pixels(
    dataset: DatasetReader, window: ROI, expected: Pixels, href: str
) -> npt.NDArray[Any]:
    """Read a window of a file that was checked, as what is expected of it.

    Parameters
    ----------
    dataset
        Of one band, and perhaps an alpha band behind it.
    window
        ``(rows, cols)`` in pixels of the file.
    expected
        What it holds.
    href
        Its name in errors.

    Returns
    -------
    numpy.ndarray
        (y, x), ``expected.dtype``.

    Raises
    ------
    UnfitFileError
        If a pixel cannot be meant, or the window is larger than the bound.
    """
    at = bound_window(window, href)
    values = dataset.read(1, window=at)
    try:
        return expected.convert(values, _find_data(dataset, values, at, expected.absent))
    except ValueError as error:
        raise UnfitFileError(f"{href}: {error}") from None


def bound_window(window: ROI, href: str) -> Window:
    """Refuse a window that does not fit in memory; returns it as rasterio's."""
    rows, cols = shape_of(window)
    if rows * cols > MAX_READ_PX:
        raise UnfitFileError(
            f"{href}: {rows} x {cols} of its pixels would be read at once, which takes too much "
            "memory; they are too small for grid.gsd_m and grid.block_px"
        )
    return Window.from_slices(*window)


def has_alpha(dataset: DatasetReader) -> bool:
    """Tell whether a file has one band and its alpha band."""
    return bool(dataset.count == 2 and dataset.colorinterp[1] == ColorInterp.alpha)


def has_mask(dataset: DatasetReader) -> bool:
    """Tell whether a file has a mask beside its values, as a band or inside."""
    return has_alpha(dataset) or MaskFlags.per_dataset in dataset.mask_flag_enums[0]


def read_mask_of(dataset: DatasetReader, window: Window) -> BoolArray:
    """Read where a file that :func:`has_mask` has data, (y, x)."""
    if has_alpha(dataset):
        alpha: BoolArray = dataset.read(2, window=window) > 0
        return alpha
    inside: BoolArray = dataset.read_masks(1, window=window) > 0
    return inside


def _is_whole(dtype: str) -> bool:
    """Tell whether GDAL's dtype is one of whole numbers; CInt16 is none."""
    return dtype.startswith(("int", "uint"))


def _find_data(
    dataset: DatasetReader, values: npt.NDArray[Any], window: Window, absent: int | None
) -> BoolArray | None:
    """Tell where a file declares that it has data; None where it says nothing beyond ``absent``."""
    nodata, declared = dataset.nodata, []
    if nodata is not None and nodata != absent:
        # As a Python number: it may be one that the dtype of the file cannot hold.
        declared.append(~np.isnan(values) if math.isnan(nodata) else values != nodata)
    if has_mask(dataset):
        declared.append(read_mask_of(dataset, window))
    return np.logical_and.reduce(declared) if declared else None
