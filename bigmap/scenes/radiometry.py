"""Digital numbers of Sentinel-2: one scale and one offset for every item.

Since processing baseline 04.00 (25 January 2022) ESA adds 1000 to every valid digital number,
so that dark pixels need not be clipped: ``reflectance = (DN - 1000) / 10000`` (Sentinel-2
Products Specification Document, ``BOA_ADD_OFFSET`` and ``RADIO_ADD_OFFSET``). Some publishers
subtract it again, and say so, or do not, or say so wrongly. bigmap takes the digital numbers of
baseline 04.00 as canonical: ``reflectance = 1e-4 * DN - 0.1`` for every item, after one integer,
``dn_shift``, was added to the file's valid pixels.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Harmonise = Literal["flag", "baseline", "drop", "refuse"]

NODATA = 0
DN_SCALE = 1e-4
DN_OFFSET = -0.1
OFFSET_DN = 1000
"""The offset of baseline 04.00, in digital numbers."""

OFFSET_BASELINE = (4, 0)
OFFSET_DAY = dt.datetime(2022, 1, 25, tzinfo=dt.UTC)
"""First day of operational processing with baseline 04.00."""

_MAX_DN = int(np.iinfo(np.uint16).max)
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class OffsetEvidence:
    """What an item says about the offset of its files."""

    flag: bool | None
    """``boa_offset_applied``: whether the publisher says to have removed the offset."""
    baseline: str | None
    """Processing baseline as ``MM.mm``."""
    offset: float | None
    """``offset`` of ``raster:bands``, or ``raster:offset``; None where it says nothing."""
    processed: dt.datetime | None
    """Time of processing, or of acquisition where that is unknown; used as a last resort."""


@dataclass(frozen=True, slots=True)
class OffsetDecision:
    """What to add to an item's digital numbers, and why."""

    dn_shift: int | None
    """0 or 1000; None where the item must not be used."""
    contradiction: bool
    """Whether the pieces of evidence cannot all be true."""
    reason: str


def decide_dn_shift(evidence: OffsetEvidence, harmonise: Harmonise) -> OffsetDecision:
    """Decide what to add to the file's digital numbers to make them canonical.

    Either the product never had the offset, or the file still has it, or its publisher has
    removed it. The file lacks it in the first and the last case (``dn_shift`` 1000). Evidence is
    read as follows:

    ================  ==============================================================
    flag true         the publisher removed the offset. ``offset`` then describes
                      ESA's product, not the file, and decides nothing: Earth Search
                      says -0.1 of files without it.
    flag false        the publisher left the file as ESA made it.
    flag absent       the publisher removes no offsets: the file is as ESA made it.
    baseline >= 04.00 ESA's product has the offset. A publisher who sets the flag
                      removes it from every such product.
    baseline < 04.00  ESA's product never had it.
    offset -0.1, 0    the file has it, or lacks it (unless the flag is true).
    ================  ==============================================================

    A *contradiction* is evidence that no single case satisfies:

    - flag true, baseline below 04.00: nothing was there to remove;
    - flag false, baseline 04.00 or later: such a publisher should have removed it. Flags of
      this kind have been found wrong as well as right (Element84/earth-search issues 66, 71);
    - flag not true, baseline below 04.00, offset -0.1;
    - no flag, baseline 04.00 or later, offset 0.

    ``harmonise`` decides these: ``flag`` believes what is said of the file (the flag, without
    one the offset), ``baseline`` what follows from the baseline, the other two give None.

    Without flag true, baseline and offset, nothing is said. Products processed from
    25 January 2022 on then count as baseline 04.00, earlier ones not, and ``reason`` says so.

    Parameters
    ----------
    evidence
        What the item says; offsets other than 0 and -0.1 are refused by
        :func:`check_scaling` before.
    harmonise
        The recipe's setting.
    """
    has_offset = _has_offset(evidence.baseline)
    if has_offset is not None and _contradicts(evidence, has_offset=has_offset):
        return _settle(evidence, harmonise, has_offset=has_offset)
    if evidence.flag:
        return OffsetDecision(OFFSET_DN, contradiction=False, reason="the flag says removed")
    if has_offset is not None:
        reason = f"baseline {evidence.baseline}"
        return OffsetDecision(_shift(in_file=has_offset), contradiction=False, reason=reason)
    if evidence.offset is not None:
        in_file = evidence.offset < 0
        reason = f"raster offset {evidence.offset:g}, no baseline"
        return OffsetDecision(_shift(in_file=in_file), contradiction=False, reason=reason)
    in_file = evidence.processed is not None and evidence.processed >= OFFSET_DAY
    when = f"{evidence.processed:%Y-%m-%d}" if evidence.processed else "an unknown day"
    reason = f"assumed from the date alone: no flag, baseline or offset, processed {when}"
    return OffsetDecision(_shift(in_file=in_file), contradiction=False, reason=reason)


def _contradicts(evidence: OffsetEvidence, *, has_offset: bool) -> bool:
    if evidence.flag is not None and evidence.flag != has_offset:
        return True
    if evidence.flag or evidence.offset is None:
        return False
    return (evidence.offset < 0) != has_offset


def _settle(evidence: OffsetEvidence, harmonise: Harmonise, *, has_offset: bool) -> OffsetDecision:
    claims = [f"baseline {evidence.baseline}"]
    if evidence.flag is not None:
        claims.insert(0, f"flag {str(evidence.flag).lower()}")
    if evidence.offset is not None:
        claims.append(f"raster offset {evidence.offset:g}")
    said = " against ".join(claims)
    if harmonise in ("drop", "refuse"):
        return OffsetDecision(None, contradiction=True, reason=said)
    if harmonise == "baseline":
        in_file = has_offset and evidence.flag is None
    elif evidence.flag is None:
        in_file = evidence.offset is not None and evidence.offset < 0
    else:
        in_file = has_offset and not evidence.flag
    return OffsetDecision(_shift(in_file=in_file), contradiction=True, reason=said)


def _shift(*, in_file: bool) -> int:
    return 0 if in_file else OFFSET_DN


def _has_offset(baseline: str | None) -> bool | None:
    version = parse_baseline(baseline)
    return None if version is None else version >= OFFSET_BASELINE


def parse_baseline(text: str | None) -> tuple[int, int] | None:
    """Read a processing baseline such as ``04.00`` or ``5.9``; None where it is none."""
    match = re.fullmatch(r"\s*(\d{1,2})\.(\d{1,2})\s*", text or "")
    return (int(match[1]), int(match[2])) if match else None


def check_scaling(scale: float | None, offset: float | None) -> str | None:
    """Tell what is wrong with a band's scale and offset; None where nothing is.

    bigmap's integers have the scale 1e-4 and the offset 0 or -0.1. What says nothing is taken
    to be so: Planetary Computer gives neither.
    """
    if scale is not None and abs(scale - DN_SCALE) > _TOLERANCE:
        return f"scale {scale:g} instead of {DN_SCALE:g}"
    if offset is not None and min(abs(offset), abs(offset - DN_OFFSET)) > _TOLERANCE:
        return f"offset {offset:g} instead of 0 or {DN_OFFSET:g}"
    return None


def to_canonical(dn: npt.NDArray[np.uint16], dn_shift: int) -> npt.NDArray[np.uint16]:
    """Add an item's shift to its valid pixels, once.

    Parameters
    ----------
    dn
        Digital numbers of a file, uint16, any shape; 0 is nodata. NumPy, Dask, or the like.
    dn_shift
        :attr:`bigmap.scenes.items.ItemRow.dn_shift`, 0 or 1000.

    Returns
    -------
    numpy.ndarray
        uint16, same shape; nodata stays 0, valid pixels stay above 0 and stop at 65535.

    Raises
    ------
    ValueError
        If ``dn_shift`` is neither 0 nor 1000.
    TypeError
        If ``dn`` is not uint16: a second shift of scaled values would go unseen.
    """
    if dn_shift not in (0, OFFSET_DN):
        raise ValueError(f"dn_shift is {dn_shift}; it must be 0 or {OFFSET_DN}")
    if dn.dtype != np.uint16:
        raise TypeError(f"digital numbers are {dn.dtype}; they must be uint16")
    if dn_shift == 0:
        return dn
    raised = np.minimum(dn, np.uint16(_MAX_DN - dn_shift)) + np.uint16(dn_shift)
    shifted: npt.NDArray[np.uint16] = raised * (dn != NODATA)
    return shifted


def to_reflectance(dn: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Turn canonical digital numbers into reflectance.

    Parameters
    ----------
    dn
        Canonical digital numbers, any shape; 0 is nodata.

    Returns
    -------
    numpy.ndarray
        float32, same shape: ``1e-4 * dn - 0.1``, unitless; NaN for nodata.
    """
    values = dn.astype(np.float32) * np.float32(DN_SCALE) + np.float32(DN_OFFSET)
    return np.where(dn != NODATA, values, np.float32(np.nan))
