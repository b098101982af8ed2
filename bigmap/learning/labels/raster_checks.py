"""Rasters of labels are looked through before any work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pystac
from rasterio.io import DatasetReader
from rasterio.windows import Window

from bigmap.config.sources import Access
from bigmap.config.training import RasterLabels
from bigmap.errors import SamplesError
from bigmap.learning.labels.raster_files import (
    RasterFile,
    has_alpha_band,
    use_own_raster,
    window_of,
)
from bigmap.learning.labels.rasters import RasterLabelReader, read_seen
from bigmap.learning.labels.reader import UNLABELLED, Bounds

SCAN_PX = 2048
"""Side of the pieces in which rasters are looked through before any work."""


def open_rasters(
    settings: RasterLabels, crs: str, bounds: Bounds, class_values: Sequence[int], *,
    least: int, access: Access,
) -> RasterLabelReader:  # fmt: skip
    """Check rasters of classes, and make what reads them."""
    paths = [path for each in settings.files for path in _list_rasters(each)]
    classes = settings.classes or {value: value for value in class_values}
    files = tuple(_check_raster(path, settings.classes or {}, access) for path in paths)
    reader = RasterLabelReader(files, tuple(sorted(classes.items())), crs, access).near(bounds)
    if not reader.files:
        raise SamplesError(
            f"samples.labels.files: none of the {len(files)} rasters lies in the area; check "
            "the CRS"
        )
    _check_values(reader, bounds, least=least, is_mapped=settings.classes is not None)
    return reader


def _list_rasters(place: str) -> list[str]:
    """Return the rasters that a file names: itself, or the data assets of a STAC collection."""
    if not place.endswith(".json"):
        return [place]
    try:
        catalog = pystac.read_file(place)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pystac.STACError) as error:
        raise SamplesError(f"samples.labels.files: {place}: is no STAC file ({error})") from None
    if isinstance(catalog, pystac.Item):
        items = [catalog]
    elif isinstance(catalog, pystac.Catalog):
        items = list(catalog.get_items(recursive=True))
    else:
        items = list(catalog)  # type: ignore[call-overload]
    files = []
    for item in items:
        assets = sorted(item.assets.items(), key=lambda pair: "data" not in (pair[1].roles or ()))
        rasters = [a.get_absolute_href() for _, a in assets if "tiff" in (a.media_type or "")]
        if not rasters or rasters[0] is None:
            raise SamplesError(f"samples.labels.files: {place}: item {item.id} has no GeoTIFF")
        files.append(rasters[0])
    if not files:
        raise SamplesError(f"samples.labels.files: {place}: holds no item")
    return files


def _check_raster(path: str, mapped: Mapping[int, int], access: Access) -> RasterFile:
    """Refuse a raster that cannot hold classes."""
    where = f"samples.labels.files: {path}"
    if Path(f"{path}.msk").exists():
        raise SamplesError(f"{where}: has a mask in {path}.msk, which is not read; put it inside")

    def check(source: DatasetReader) -> RasterFile:
        bands = source.count - has_alpha_band(source)
        if source.crs is None or source.transform.is_identity:
            raise SamplesError(f"{where}: has no CRS or no transform inside; assign them")
        if not all(map(math.isfinite, source.transform)) or source.transform.is_degenerate:
            raise SamplesError(f"{where}: has pixels of no size; correct its transform")
        if bands != 1:
            raise SamplesError(f"{where}: has {bands} bands, but labels need one; take it out")
        if not np.issubdtype(np.dtype(source.dtypes[0]), np.integer):
            raise SamplesError(f"{where}: holds {source.dtypes[0]}; classes need whole numbers")
        if source.nodata in mapped:
            raise SamplesError(
                f"samples.labels.classes: maps {source.nodata:.12g}, which is nodata in {path}; "
                "leave it out, or take nodata off the file"
            )
        corners = [(0, 0), (source.width, 0), (0, source.height), (source.width, source.height)]
        x, y = zip(*(source.transform * corner for corner in corners), strict=True)
        return RasterFile(path, source.crs.to_wkt(), (min(x), min(y), max(x), max(y)))

    return use_own_raster(path, access, check)


def _check_values(
    reader: RasterLabelReader, bounds: Bounds, *, least: int, is_mapped: bool
) -> None:
    """Refuse rasters that have no two classes in the area, from which nothing can be learnt.

    They are read until two are found. Where ``least`` is 1, one class alone is refused only if
    values that nobody has mapped, or nodata, say that another was meant.
    """
    found: set[int] = set()
    others: set[int] = set()
    nodata: set[int] = set()
    for file in reader.files:
        for values, empty in _scan(file, bounds, reader):
            classes = reader.classify(values)
            found.update(classes[classes != UNLABELLED].tolist())
            others.update(values[classes == UNLABELLED].tolist()[: 10 - len(others)])
            nodata.update(empty & {value for value, _ in reader.classes})
            if len(found) > 1:
                return
    is_odd = not is_mapped and bool(others or nodata)
    if len(found) >= (2 if is_odd else least):
        return
    name = reader.files[0].path if len(reader.files) == 1 else f"{len(reader.files)} rasters"
    shown = ", ".join(map(str, sorted(others)))
    said = f"all labels are of class {min(found)}" if found else "has no labels"
    hints = [f"nodata is {each}, so that class is unlabelled: take nodata off the file"
             for each in sorted(nodata)]  # fmt: skip
    if others:
        hints.append(f"its values ({shown}) are no classes: map them by samples.labels.classes")
    advice = "; ".join(hints) or "use another file or area"
    raise SamplesError(f"samples.labels.files: {name}: {said} in the area; {advice}")


def _scan(
    file: RasterFile, bounds: Bounds, reader: RasterLabelReader
) -> Iterator[tuple[npt.NDArray[Any], set[int]]]:
    """Yield the values of a raster in a region piece by piece, and nodata where there is some."""
    for turn in file.find_turns(bounds, reader.crs):
        find = partial(window_of, bounds=bounds, crs=reader.crs, turn=turn)
        whole = use_own_raster(file.path, reader.access, find)
        for row in range(whole.row_off, whole.row_off + whole.height, SCAN_PX):
            for col in range(whole.col_off, whole.col_off + whole.width, SCAN_PX):
                piece = Window(col, row, SCAN_PX, SCAN_PX).intersection(whole)
                yield use_own_raster(file.path, reader.access, partial(_list_values, window=piece))


def _list_values(source: DatasetReader, *, window: Window) -> tuple[npt.NDArray[Any], set[int]]:
    """Return the values of a window, and nodata where it holds some."""
    seen = read_seen(source, window)
    is_empty = source.nodata is not None and not seen.all()
    values = source.read(1, window=window)[seen]
    return np.unique(values), {int(source.nodata)} if is_empty else set()
