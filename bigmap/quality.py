"""From mask values to clear pixels, from clear pixels to a choice of dates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

SCL_NODATA = 0
MASK_FILL = 255

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MaskRule:
    """How the values of a mask asset are read; see ``source.mask`` of the recipe."""

    kind: Literal["scl", "binary", "probability", "none"]
    asset: str | None = None
    clear_values: tuple[int, ...] = ()
    """Values of clear pixels, for the kinds ``scl`` and ``binary``."""
    max_percent: int = 0
    """Greatest cloud probability of a clear pixel, for the kind ``probability``."""
    dilate_px: int = 0

    @property
    def nodata(self) -> int:
        """Value of the mask where there is no data.

        SCL has 0; other masks have none of their own and are filled with 255.
        """
        return SCL_NODATA if self.kind == "scl" else MASK_FILL


def read_mask(values: npt.NDArray[Any], rule: MaskRule) -> tuple[BoolArray, BoolArray]:
    """Tell which pixels are clear and which have data at all.

    Parameters
    ----------
    values
        uint8, (..., y, x): the mask of one or more items, with ``rule.nodata`` outside.
    rule
        How to read them. Dilation reaches ``dilate_px`` in all eight directions, so the
        outermost ``dilate_px`` pixels are only right if the caller has read that much more.

    Returns
    -------
    clear, has_data
        bool, like ``values``; a clear pixel has data. Without a mask both are true everywhere.
    """
    if rule.kind == "none":
        everywhere = np.ones(values.shape, dtype=bool)
        return everywhere, everywhere
    has_data = values != rule.nodata
    spoilt = has_data & ~_clear_table(rule)[values]
    if rule.dilate_px and spoilt.any():
        size = (1,) * (values.ndim - 2) + (2 * rule.dilate_px + 1,) * 2
        spoilt = maximum_filter(spoilt, size=size, mode="constant", cval=0)
    return has_data & ~spoilt, has_data


def _clear_table(rule: MaskRule) -> BoolArray:
    """Tell for each of the 256 values of a mask whether it is clear."""
    table = np.zeros(256, dtype=bool)
    if rule.kind == "probability":
        table[: rule.max_percent + 1] = True
    else:
        table[[value for value in rule.clear_values if value < len(table)]] = True
    return table


def mosaic_first(has_data: BoolArray) -> npt.NDArray[np.intp]:
    """Return, for each pixel, the first item that has data there.

    Parameters
    ----------
    has_data
        bool, (item, y, x), items in the order of precedence.

    Returns
    -------
    numpy.ndarray
        Index of the item, (y, x); 0 where no item has data.
    """
    first: npt.NDArray[np.intp] = has_data.argmax(axis=0)
    return first


@dataclass(frozen=True)
class DateRule:
    """Which dates a cell is mapped from; see ``dates`` of the recipe."""

    max_per_cell: int
    min_clear_percent: float


def choose_dates(
    clear_percent: npt.NDArray[np.float64],
    rule: DateRule,
    *,
    worth_percent: npt.NDArray[np.float64] | None = None,
) -> list[int]:
    """Choose a cell's dates, clearest first; equally clear dates by time.

    Parameters
    ----------
    clear_percent
        Share of the cell's pixels that are clear, in percent, one per date in order of time. It
        ranks the dates.
    rule
        How many to take, and the least share that makes a date worth taking.
    worth_percent
        The share that ``rule.min_clear_percent`` is compared with, where it is another one: that
        of the pixels that are to be mapped and that the date has seen at all.

    Returns
    -------
    list of int
        Indices of the chosen dates, in order of time. A date without a single clear pixel is
        never chosen.
    """
    worth = clear_percent if worth_percent is None else worth_percent
    ranked = np.argsort(-clear_percent, kind="stable")
    enough = [
        int(date)
        for date in ranked
        if clear_percent[date] > 0 and worth[date] >= rule.min_clear_percent
    ]
    return sorted(enough[: rule.max_per_cell])
