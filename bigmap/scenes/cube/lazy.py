"""The dates of a region as a lazy DataArray."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import rioxarray  # noqa: F401 - gives DataArrays their .rio
import xarray as xr

from bigmap import grid
from bigmap.grid import ROI
from bigmap.scenes.cube.reader import BoolArray, CubeReader, UInt16Array, mosaic_items
from bigmap.scenes.quality import NO_DATA, MaskRule, read_mask
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA


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
        dn = da.zeros((0, len(reader.reading.bands), *shape), dtype=np.uint16, chunks=-1)
        clear = da.zeros((0, *shape), dtype=bool, chunks=-1)
    geobox = reader.reading.lattice.geobox(roi)
    y, x = (geobox.coords[name].values for name in ("y", "x"))
    cube = xr.DataArray(
        dn,
        dims=("time", "band", "y", "x"),
        coords={
            "time": np.array(days, dtype="datetime64[ns]"),
            "band": list(reader.reading.bands),
            "y": y,
            "x": x,
            "clear": (("time", "y", "x"), clear),
        },
        name="dn",
        attrs={"dn_scale": DN_SCALE, "dn_offset": DN_OFFSET, "nodata": NODATA},
    )
    placed: xr.DataArray = cube.rio.write_crs(reader.reading.lattice.crs)
    return placed


def _lazy_day(
    reader: CubeReader, day: dt.date, roi: ROI, chunk_px: int
) -> tuple[da.Array, da.Array]:
    """Build one date lazily: DN (band, y, x) and clear (y, x)."""
    rows, mask = reader.rows_of(day), reader.reading.mask
    bands = reader.stack(rows, reader.reading.bands, roi, is_mask=False, chunk_px=chunk_px)
    bands = bands.rechunk({0: -1, 1: -1})
    spatial = bands.chunks[2:]
    if mask.asset is None:
        states = da.zeros((len(rows), *grid.shape_of(roi)), np.uint8, chunks=(-1, *spatial))
    else:
        window = grid.grow(roi, mask.dilate_px)
        states = reader.stack(rows, (mask.asset,), window, is_mask=True, chunk_px=chunk_px)
        states = states[:, 0].rechunk({0: -1})
    clear, has_data = (_mask_chunks(states, mask, which, spatial) for which in (0, 1))
    shifts = [row.dn_shift for row in rows]
    merged = da.map_blocks(
        _mosaic_chunk, bands, clear[:, np.newaxis], has_data[:, np.newaxis], shifts,
        dtype=np.uint16, chunks=((1,), (len(reader.reading.bands) + 1,), *spatial),
    )  # fmt: skip
    return merged[0, :-1], merged[0, -1].astype(bool)


def _mask_chunks(states: da.Array, rule: MaskRule, which: int, chunks: Any) -> da.Array:
    """Read states chunk by chunk, with the overlap that dilation needs."""
    margin = rule.dilate_px
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
