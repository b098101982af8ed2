"""From mask values to clear pixels, from clear pixels to a choice of dates. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

SCL_NODATA = 0
NO_DATA, CLEAR, SPOILT = 0, 1, 2
"""States of a pixel by its mask."""
PERCENT = 100
TABLE_SIZE = 256
SHARE_TOLERANCE = 1e-6
"""By which shares may lie beyond 0 and 1 after resampling in float32."""

BoolArray = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskRule:
    """How the values of a mask asset are read; see ``source.mask`` of the recipe."""

    kind: Literal["scl", "binary", "probability", "bits", "none"]
    asset: str | None = None
    clear_values: tuple[int, ...] = ()
    """Values of clear pixels, for the kinds ``scl`` and ``binary``."""
    max_percent: int = 0
    """Greatest cloud probability of a clear pixel, for the kind ``probability``."""
    max_value: int | None = None
    """Value that means 100 %; None for whole percent."""
    bits: tuple[int, ...] = ()
    """Bits of which none is set in a clear pixel, for the kind ``bits``; 0 is the lowest."""
    nodata: int | None = None
    """Value that means "no data" where a file does not declare it."""
    dilate_px: int = 0

    @property
    def absent(self) -> int | None:
        """The value that means "no data", whatever a file declares."""
        return SCL_NODATA if self.kind == "scl" else self.nodata


def classify(values: npt.NDArray[Any], has_data: BoolArray | None, rule: MaskRule) -> UInt8Array:
    """Turn values of a mask file into states.

    Parameters
    ----------
    values
        (y, x), in the dtype of the file.
    has_data
        Where the file declares that it has data; None where it says nothing.
    rule
        How to read them.

    Returns
    -------
    numpy.ndarray
        uint8, like ``values``: :data:`NO_DATA`, :data:`CLEAR` or :data:`SPOILT`.

    Raises
    ------
    ValueError
        If a probability lies outside its range.
    """
    if values.dtype == np.uint8 and values.size > TABLE_SIZE and rule.kind != "probability":
        # Most masks are of bytes: a table is several times faster than comparisons.
        table = classify(np.arange(TABLE_SIZE, dtype=np.uint8), None, rule)
        states: UInt8Array = table[values]
        return states if has_data is None else np.where(has_data, states, np.uint8(NO_DATA))
    known = np.ones(values.shape, dtype=bool) if has_data is None else has_data
    if rule.absent is not None:
        known = known & (values != rule.absent)
    if values.dtype.kind == "f":
        known = known & ~np.isnan(values)
    if rule.kind == "probability":
        full = rule.max_value or PERCENT
        _check_range(values[known], full)
        clear = values <= rule.max_percent * full / PERCENT
    elif rule.kind == "bits":
        wanted = sum(1 << bit for bit in rule.bits)
        clear = (values.view(f"u{values.itemsize}") & wanted) == 0
    else:
        clear = np.isin(values, rule.clear_values)
    states = np.where(clear, np.uint8(CLEAR), np.uint8(SPOILT))
    states[~known] = NO_DATA
    return states


def _check_range(values: npt.NDArray[Any], full: int) -> None:
    """Refuse probabilities that are none."""
    margin = SHARE_TOLERANCE if values.dtype.kind == "f" else 0
    wrong = values[(values < -margin) | (values > full + margin)]
    if wrong.size:
        raise ValueError(
            f"holds {wrong[0]:g}, but the mask's probabilities are 0 to {full}; set "
            "source.mask.max_value to what means 100 %, or source.mask.nodata"
        )


def read_mask(states: UInt8Array, rule: MaskRule) -> tuple[BoolArray, BoolArray]:
    """Tell which pixels are clear and which have data at all.

    Parameters
    ----------
    states
        uint8, (..., y, x): of one or more items, as :func:`classify` returns them.
    rule
        Dilation reaches ``dilate_px`` in all eight directions, so the outermost ``dilate_px``
        pixels are only right if the caller has read that much more.

    Returns
    -------
    clear, has_data
        bool, like ``states``; a clear pixel has data. Without a mask both are true everywhere.
    """
    if rule.kind == "none":
        everywhere = np.ones(states.shape, dtype=bool)
        return everywhere, everywhere
    has_data, spoilt = states != NO_DATA, states == SPOILT
    if rule.dilate_px and spoilt.any():
        size = (1,) * (states.ndim - 2) + (2 * rule.dilate_px + 1,) * 2
        spoilt = maximum_filter(spoilt, size=size, mode="constant", cval=0)
    return has_data & ~spoilt, has_data


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
