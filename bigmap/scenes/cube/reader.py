"""Item rows -> the dates of a region: masks first, then the bands of the days that are wanted.

Items of one solar day become one **date**: a pixel of a date comes, in all bands and in the mask,
from the first item in the order of acquisition time and id that has data there in every band and in
the mask.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import dask.array as da
import numpy as np
import numpy.typing as npt

from bigmap import grid
from bigmap.config.masks import MaskConfig
from bigmap.config.sources import Access
from bigmap.grid import ROI, Lattice
from bigmap.scenes.cube.loaders import LOADERS, bounds_on
from bigmap.scenes.cube.pixels import BANDS, MaskPixels
from bigmap.scenes.cube.reading import Claim, RasterReader
from bigmap.scenes.cube.resampling import TargetGrid
from bigmap.scenes.cube.versions import find_version, sum_up_versions
from bigmap.scenes.items import ItemRow
from bigmap.scenes.quality import MaskRule, mosaic_first, read_mask
from bigmap.scenes.radiometry import NODATA, to_canonical

UInt16Array = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SceneReading:
    """What is read of scenes, and how: one value for the blocks of maps and of chips."""

    lattice: Lattice
    bands: tuple[str, ...]
    mask: MaskRule
    resampling: Literal["nearest", "bilinear", "cubic"] = "bilinear"
    loader: Literal["stackstac", "odc-stac"] = "stackstac"
    on_error: Literal["fail", "drop-date"] = "fail"
    access: Access = Access()
    threads: int = 8
    """Files that are read at once."""
    watch_versions: bool = False
    """Whether to note which versions of files are read."""


def mask_rule(mask: MaskConfig) -> MaskRule:
    """Turn the recipe's mask setting into the rule that readers apply."""
    fields = mask.model_dump()
    clear = fields.pop("clear_value", None)
    if clear is not None:
        fields["clear_values"] = (clear,)
    return MaskRule(**fields)


@dataclass(frozen=True)
class DayMasks:
    """The masks of the items of one day, bool (item, y, x)."""

    clear: BoolArray
    has_data: BoolArray

    def cut(self, roi: ROI) -> DayMasks:
        """Return a part, given in pixels of these masks."""
        return DayMasks(self.clear[:, *roi], self.has_data[:, *roi])

    def mosaic(self) -> BoolArray:
        """Return the day's clear pixels by the masks alone, bool (y, x)."""
        if len(self.clear) == 1:
            only: BoolArray = self.clear[0]
            return only
        first = mosaic_first(self.has_data)[np.newaxis]
        clear: BoolArray = np.take_along_axis(self.clear & self.has_data, first, axis=0)[0]
        return clear


@dataclass(frozen=True)
class CubeReader:
    """Reads the dates of some items: everything that decides a value, and nothing else."""

    rows: tuple[ItemRow, ...]
    reading: SceneReading
    versions: dict[str, str | None] | None = None
    """Gathers the versions of the files that are read, by href; None where nobody asks."""

    @classmethod
    def of(cls, reading: SceneReading, rows: Iterable[ItemRow]) -> CubeReader:
        """Return a reader of some items, which notes versions where that is asked for."""
        return cls(tuple(rows), reading, {} if reading.watch_versions else None)

    @property
    def days(self) -> tuple[dt.date, ...]:
        """The solar days of the items, in order."""
        return tuple(sorted({row.solar_day for row in self.rows}))

    def near(self, roi: ROI) -> CubeReader:
        """Return a reader of the items that may have pixels in a region only."""
        left, bottom, right, top = self.reading.lattice.bounds(roi)
        rows = []
        for row in self.rows:
            west, south, east, north = bounds_on(self.reading.lattice.crs, row.epsg, row.bounds)
            if west < right and left < east and south < top and bottom < north:
                rows.append(row)
        return replace(self, rows=tuple(rows))

    def rows_of(self, day: dt.date) -> list[ItemRow]:
        """Return the items of one solar day in the order of precedence in overlaps."""
        rows = [row for row in self.rows if row.solar_day == day]
        return sorted(rows, key=lambda row: (row.datetime, row.id))

    def read_masks(self, days: Sequence[dt.date], roi: ROI) -> dict[dt.date, DayMasks]:
        """Read the masks of all items of some days.

        Raises
        ------
        ReadError
            If a file cannot be read.
        """
        by_day = {day: self.rows_of(day) for day in days}
        rows = [row for day in days for row in by_day[day]]
        if not rows:
            return {}
        if self.reading.mask.asset is None:
            # Without a mask, dates are chosen by where there is data; one band tells.
            stack = self.stack(rows, self.reading.bands[:1], roi, is_mask=False)
            pixels = stack.compute(scheduler="threads", num_workers=self.reading.threads)
            clear = has_data = pixels[:, 0] != NODATA
        else:
            window = grid.grow(roi, self.reading.mask.dilate_px)
            stack = self.stack(rows, (self.reading.mask.asset,), window, is_mask=True)
            states = stack.compute(scheduler="threads", num_workers=self.reading.threads)[:, 0]
            trim = (slice(None), *grid.relative(roi, window))
            clear, has_data = (part[trim] for part in read_mask(states, self.reading.mask))
        masks, first = {}, 0
        for day in days:
            own = slice(first, first + len(by_day[day]))
            masks[day] = DayMasks(clear[own], has_data[own])
            first = own.stop
        return masks

    def read_days(
        self, masks: Mapping[dt.date, DayMasks], roi: ROI
    ) -> dict[dt.date, tuple[UInt16Array, BoolArray]]:
        """Read dates whose masks have been read.

        Parameters
        ----------
        masks
            The days wanted, with their masks of the region from :meth:`read_masks`.
        roi
            ``(rows, cols)`` in global pixel indices of the grid.

        Returns
        -------
        dict of date to (dn, clear)
            ``dn`` is uint16, (band, y, x); reflectance is ``1e-4 * dn - 0.1``, and 0 is nodata.
            ``clear`` is bool, (y, x); a clear pixel has data in every band.

        Raises
        ------
        ReadError
            If a file cannot be read.
        """
        by_day = {day: self.rows_of(day) for day in masks}
        rows = [row for items in by_day.values() for row in items]
        if not rows:
            return {}
        stack = self.stack(rows, self.reading.bands, roi, is_mask=False)
        dn = stack.compute(scheduler="threads", num_workers=self.reading.threads)
        dn = np.require(dn, requirements="W")  # Dask's constant arrays are not
        dates, first = {}, 0
        for day, items in by_day.items():
            own = dn[first : first + len(items)]
            first += len(items)
            shifts = [row.dn_shift for row in items]
            # Of one item each, dates stay where they were read; of more, the items are let go.
            place = own[0] if len(rows) == len(masks) else None
            day_masks = masks[day].clear, masks[day].has_data
            dates[day] = mosaic_items(own, *day_masks, shifts, out=place)
        return dates

    def stack(
        self,
        rows: Sequence[ItemRow],
        assets: Sequence[str],
        roi: ROI,
        *,
        is_mask: bool,
        chunk_px: int | None = None,
    ) -> da.Array:
        """Stack assets of items lazily, (item, asset, y, x), one chunk per file by default."""
        lattice = self.reading.lattice
        reader = RasterReader(
            target=TargetGrid(lattice.crs, lattice.gsd_m, lattice.anchor_m),
            resampling="nearest" if is_mask else self.reading.resampling,
            expected=MaskPixels(self.reading.mask) if is_mask else BANDS,
            access=self.reading.access,
            claims={
                row.assets[name].href: Claim(row.epsg, row.bounds)
                for row in rows
                for name in assets
            },
            on_read=self._note_version if self.versions is not None else None,
        )
        chunk = chunk_px or max(grid.shape_of(roi))
        return LOADERS[self.reading.loader](rows, assets, reader, lattice, roi, chunk)

    def _note_version(self, href: str) -> None:
        assert self.versions is not None
        if href not in self.versions:
            self.versions[href] = find_version(href, self.reading.access)

    def sum_up_versions(self) -> dict[str, str]:
        """Return checksums of the versions of the items' files that were read."""
        first = self.reading.mask.asset or self.reading.bands[0]
        assets = (first, *(band for band in self.reading.bands if band != first))
        return sum_up_versions(self.rows, self.versions or {}, assets)


def mosaic_items(
    dn: UInt16Array, clear: BoolArray, has_mask: BoolArray, dn_shifts: Sequence[int],
    *, out: UInt16Array | None = None,
) -> tuple[UInt16Array, BoolArray]:  # fmt: skip
    """Make one date of the items of a day.

    Parameters
    ----------
    dn
        uint16, (item, band, y, x): DN of the files, in the order of precedence.
    clear, has_mask
        bool, (item, y, x).
    dn_shifts
        What brings each item's DN to reflectance = 1e-4 * DN - 0.1.
    out
        Where the date's DN are put, by default in memory of their own.

    Returns
    -------
    dn, clear
        uint16 (band, y, x) and bool (y, x); a pixel without data is 0 in every band.
    """
    has_data = (dn != NODATA).all(axis=1) & has_mask
    if len(dn) == 1:
        first_dn, first_clear, found = to_canonical(dn[0], dn_shifts[0]), clear[0], has_data[0]
    else:
        first = mosaic_first(has_data)
        shifted = np.stack(
            [to_canonical(item, shift) for item, shift in zip(dn, dn_shifts, strict=True)]
        )
        first_dn = np.take_along_axis(shifted, first[np.newaxis, np.newaxis], axis=0)[0]
        first_clear = np.take_along_axis(clear, first[np.newaxis], axis=0)[0]
        found = has_data.any(axis=0)
    # Nodata is 0.
    return np.multiply(first_dn, found, out=out), first_clear & found
