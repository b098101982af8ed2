"""Labels of rasters: the most frequent value below a pixel, or the nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.enums import MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from bigmap.config.sources import Access
from bigmap.errors import SamplesError
from bigmap.learning.labels.raster_files import (
    RasterFile,
    Turn,
    has_alpha_band,
    size_ratio,
    use_own_raster,
    window_of,
)
from bigmap.learning.labels.reader import UNLABELLED, Bounds, UInt8Array, bounds_of

MOST_VALUES, OPAQUE = 65_536, 65_535


@dataclass(frozen=True)
class RasterLabelReader:
    """Rasters of classes, warped by the most frequent value; where several hold a pixel, the first.

    Values that are no class are unlabelled.
    """

    files: tuple[RasterFile, ...]
    classes: tuple[tuple[int, int], ...]
    """Values and their classes, in rising order."""
    crs: str
    access: Access = Access()

    def near(self, bounds: Bounds) -> RasterLabelReader:
        """Keep the files that meet a region."""
        files = tuple(file for file in self.files if file.find_turns(bounds, self.crs))
        return replace(self, files=files)

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Warp the files onto a grid."""
        labels = np.full(geobox.shape, UNLABELLED, dtype=np.uint8)
        for file in self.files:
            for turn in file.find_turns(bounds_of(geobox), self.crs):
                warp = partial(_warp, file=file, geobox=geobox, turn=turn)
                values, has_data = use_own_raster(file.path, self.access, warp)
                found = np.where(has_data, self.classify(values), UNLABELLED)
                labels = np.where(labels == UNLABELLED, found, labels).astype(np.uint8)
        return labels

    def classify(self, values: npt.NDArray[Any]) -> UInt8Array:
        """Return the classes of values, 255 where they are none."""
        known, classes = np.array(self.classes).T
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[place] == values, classes[place], UNLABELLED).astype(np.uint8)


def _warp(
    source: DatasetReader, *, file: RasterFile, geobox: GeoBox, turn: Turn
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read a raster on a grid by the most frequent value."""
    ratio = size_ratio(source, geobox)
    # GDAL takes the mode of wider values as float32, and heeds one way to say nodata only.
    if np.dtype(source.dtypes[0]).itemsize <= 2 and _count_masks(source) <= 1:
        return _warp_dataset(source, geobox, ratio, turn)
    window = window_of(source, bounds=bounds_of(geobox), crs=str(geobox.crs), turn=turn)
    values, seen = source.read(1, window=window), read_seen(source, window)
    if not values.size:
        return np.zeros(geobox.shape, np.uint8), np.zeros(geobox.shape, bool)
    found, codes = np.unique(values, return_inverse=True)
    if len(found) > MOST_VALUES:
        raise SamplesError(
            f"samples.labels.files: {file.path}: has more than {MOST_VALUES:,} values in one "
            "place, which can be no classes"
        )
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=values.shape[1], height=values.shape[0], count=2,
            dtype="uint16", crs=source.crs, transform=source.window_transform(window),
            alpha="YES",
        ) as target:  # fmt: skip
            target.write(codes.reshape(values.shape).astype(np.uint16), 1)
            target.write(np.where(seen, OPAQUE, 0).astype(np.uint16), 2)
        with memory.open() as coded:
            chosen, has_data = _warp_dataset(coded, geobox, ratio, turn)
    return found[np.where(has_data, chosen, 0)], has_data


def _warp_dataset(
    source: DatasetReader, geobox: GeoBox, ratio: float, turn: Turn
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    with WarpedVRT(
        source, crs=str(geobox.crs), transform=geobox.transform, width=geobox.shape[1],
        height=geobox.shape[0], resampling=Resampling.mode, tolerance=1e-9, XSCALE=ratio,
        YSCALE=ratio, add_alpha=source.nodata is None and not has_alpha_band(source),
        **turn.options(source),
    ) as warped:  # fmt: skip
        return warped.read(1), warped.dataset_mask() > 0


def read_seen(source: DatasetReader, window: Window) -> npt.NDArray[np.bool_]:
    """Tell where a raster has labels: by its nodata, its mask and its alpha band."""
    seen = np.asarray(source.read_masks(1, window=window) > 0)
    if source.nodata is not None:
        seen &= source.read(1, window=window) != source.nodata
    if has_alpha_band(source):
        seen &= source.read(source.count, window=window) > 0
    return seen


def _count_masks(source: DatasetReader) -> int:
    """Return in how many ways a raster says where it has no data."""
    flags = source.mask_flag_enums[0]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    return (source.nodata is not None) + has_alpha_band(source) + has_mask
