"""Item rows and a region of the grid -> lazy DataArray of pixels.

Two loaders, stackstac and odc-stac, build the same stack of items; both read through
:class:`~bigmap.cube.reading.RasterReader`, so that values depend neither on the loader nor on
chunks. Items of one solar day then become one **date**: a pixel of a date comes, in all bands
and in the mask, from the first item in the order of acquisition time and id that has data
there in every band and in the mask.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 - gives DataArrays their .rio
import xarray as xr

from bigmap import grid
from bigmap.cube.loaders import LOADERS, bounds_on
from bigmap.cube.pixels import BANDS, MaskPixels
from bigmap.cube.reading import Access, Claim, RasterReader
from bigmap.cube.resampling import TargetGrid
from bigmap.cube.versions import find_version, sum_up_versions
from bigmap.grid import ROI, Lattice
from bigmap.items import ItemRow
from bigmap.quality import NO_DATA, MaskRule, mosaic_first, read_mask
from bigmap.radiometry import DN_OFFSET, DN_SCALE, NODATA, to_canonical

__all__ = ["Access", "CubeReader", "DayMasks", "open_cube_of"]

UInt16Array = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]


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
    lattice: Lattice
    bands: tuple[str, ...]
    mask: MaskRule
    resampling: Literal["nearest", "bilinear", "cubic"] = "bilinear"
    loader: Literal["stackstac", "odc-stac"] = "stackstac"
    access: Access = Access()
    threads: int = 8
    versions: dict[str, str | None] | None = None
    """Gathers the versions of the files that are read, by href; None where nobody asks."""

    @property
    def days(self) -> tuple[dt.date, ...]:
        """The solar days of the items, in order."""
        return tuple(sorted({row.solar_day for row in self.rows}))

    def near(self, roi: ROI) -> CubeReader:
        """Return a reader of the items that may have pixels in a region only."""
        left, bottom, right, top = self.lattice.bounds(roi)
        rows = []
        for row in self.rows:
            west, south, east, north = bounds_on(self.lattice.crs, row.epsg, row.bounds)
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
        if self.mask.asset is None:
            # Without a mask, dates are chosen by where there is data; one band tells.
            stack = self._stack(rows, self.bands[:1], roi, is_mask=False)
            pixels = stack.compute(scheduler="threads", num_workers=self.threads)
            clear = has_data = pixels[:, 0] != NODATA
        else:
            window = grid.grow(roi, self.mask.dilate_px)
            stack = self._stack(rows, (self.mask.asset,), window, is_mask=True)
            states = stack.compute(scheduler="threads", num_workers=self.threads)[:, 0]
            trim = (slice(None), *grid.relative(roi, window))
            clear, has_data = (part[trim] for part in read_mask(states, self.mask))
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
        stack = self._stack(rows, self.bands, roi, is_mask=False)
        dn = stack.compute(scheduler="threads", num_workers=self.threads)
        dates, first = {}, 0
        for day, items in by_day.items():
            own = dn[first : first + len(items)]
            first += len(items)
            shifts = [row.dn_shift for row in items]
            dates[day] = mosaic_items(own, masks[day].clear, masks[day].has_data, shifts)
        return dates

    def _stack(
        self,
        rows: Sequence[ItemRow],
        assets: Sequence[str],
        roi: ROI,
        *,
        is_mask: bool,
        chunk_px: int | None = None,
    ) -> da.Array:
        """Stack assets of items lazily, (item, asset, y, x), one chunk per file by default."""
        reader = RasterReader(
            target=TargetGrid(self.lattice.crs, self.lattice.gsd_m, self.lattice.anchor_m),
            resampling="nearest" if is_mask else self.resampling,
            expected=MaskPixels(self.mask) if is_mask else BANDS,
            access=self.access,
            claims={
                row.assets[name].href: Claim(row.epsg, row.bounds)
                for row in rows
                for name in assets
            },
            on_read=self._note_version if self.versions is not None else None,
        )
        chunk = chunk_px or max(grid.shape_of(roi))
        return LOADERS[self.loader](rows, assets, reader, self.lattice, roi, chunk)

    def _note_version(self, href: str) -> None:
        assert self.versions is not None
        if href not in self.versions:
            self.versions[href] = find_version(href, self.access)

    def sum_up_versions(self) -> dict[str, str]:
        """Return checksums of the versions of the items' files that were read."""
        first = self.mask.asset or self.bands[0]
        assets = (first, *(band for band in self.bands if band != first))
        return sum_up_versions(self.rows, self.versions or {}, assets)


def mosaic_items(
    dn: UInt16Array, clear: BoolArray, has_mask: BoolArray, dn_shifts: Sequence[int]
) -> tuple[UInt16Array, BoolArray]:
    """Make one date of the items of a day.

    Parameters
    ----------
    dn
        uint16, (item, band, y, x): DN of the files, in the order of precedence.
    clear, has_mask
        bool, (item, y, x).
    dn_shifts
        What brings each item's DN to reflectance = 1e-4 * DN - 0.1.

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
    return np.where(found, first_dn, NODATA).astype(np.uint16), first_clear & found


def open_cube_of(reader: CubeReader, roi: ROI, *, chunk_px: int = 1024) -> xr.DataArray:
    """Build the lazy cube of a region.

    Parameters
    ----------
    reader
        Items and how to read them.
    roi
        ``(rows, cols)`` in global pixel indices of the grid.
    chunk_px
        Side of a chunk; it decides how much is read at a time, never a value.

    Returns
    -------
    xarray.DataArray
        uint16, (time, band, y, x), one time per solar day, backed by Dask; reflectance is
        ``dn_scale * DN + dn_offset`` (both in ``attrs``), 0 is nodata. The coordinate ``clear``
        (time, y, x) holds the clear mask, lazy too.
    """
    days = reader.days
    parts = [_lazy_day(reader, day, roi, chunk_px) for day in days]
    shape = grid.shape_of(roi)
    if parts:
        dn = da.stack([part[0] for part in parts])
        clear = da.stack([part[1] for part in parts])
    else:
        # One chunk: Dask cannot choose chunks of no dates.
        dn = da.zeros((0, len(reader.bands), *shape), dtype=np.uint16, chunks=-1)
        clear = da.zeros((0, *shape), dtype=bool, chunks=-1)
    geobox = reader.lattice.geobox(roi)
    y, x = (geobox.coords[name].values for name in ("y", "x"))
    cube = xr.DataArray(
        dn,
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(days, dtype="datetime64[ns]"),
            "band": list(reader.bands),
            "y": y,
            "x": x,
            "clear": (("time", "y", "x"), clear),
        },
        name="dn",
        attrs={"dn_scale": DN_SCALE, "dn_offset": DN_OFFSET, "nodata": NODATA},
    )
    placed: xr.DataArray = cube.rio.write_crs(reader.lattice.crs)
    return placed


def _lazy_day(
    reader: CubeReader, day: dt.date, roi: ROI, chunk_px: int
) -> tuple[da.Array, da.Array]:
    """Build one date lazily: DN (band, y, x) and clear (y, x)."""
    rows = reader.rows_of(day)
    bands = reader._stack(rows, reader.bands, roi, is_mask=False, chunk_px=chunk_px)
    bands = bands.rechunk({0: -1, 1: -1})
    spatial = bands.chunks[2:]
    if reader.mask.asset is None:
        states = da.zeros((len(rows), *grid.shape_of(roi)), np.uint8, chunks=(-1, *spatial))
    else:
        margin = reader.mask.dilate_px
        window = grid.grow(roi, margin)
        states = reader._stack(rows, (reader.mask.asset,), window, is_mask=True, chunk_px=chunk_px)
        states = states[:, 0].rechunk({0: -1})
    clear, has_data = (
        _mask_chunks(states, reader.mask, which, spatial, margin=reader.mask.dilate_px)
        for which in (0, 1)
    )
    shifts = [row.dn_shift for row in rows]
    merged = da.map_blocks(
        _mosaic_chunk, bands, clear[:, np.newaxis], has_data[:, np.newaxis], shifts,
        dtype=np.uint16, chunks=((1,), (len(reader.bands) + 1,), *spatial),
    )  # fmt: skip
    return merged[0, :-1], merged[0, -1].astype(bool)


def _mask_chunks(
    states: da.Array, rule: MaskRule, which: int, chunks: Any, *, margin: int
) -> da.Array:
    """Read states chunk by chunk, with the overlap that dilation needs."""
    read = da.map_overlap(
        lambda block: read_mask(block, rule)[which],
        states, depth=(0, margin, margin), boundary=NO_DATA, dtype=bool,
    )  # fmt: skip
    if margin:
        read = read[:, margin:-margin, margin:-margin]
    rechunked: da.Array = read.rechunk((-1, *chunks))
    return rechunked


def _mosaic_chunk(
    dn: UInt16Array, clear: BoolArray, has_data: BoolArray, shifts: Sequence[int]
) -> UInt16Array:
    """Mosaic one chunk; the clear mask travels as a last band, as a block has one dtype."""
    merged, is_clear = mosaic_items(dn, clear[:, 0], has_data[:, 0], shifts)
    return np.concatenate([merged, is_clear[np.newaxis].astype(np.uint16)])[np.newaxis]
