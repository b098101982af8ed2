"""Folders that appear whole or not at all, files of scenes, and a cache within a limit."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from bigmap.files import replace_whole

COG_TILE_PX = 1024
IN_USE_S = 6 * 3600.0
"""A folder used more recently than this is never removed: another process may read it."""


@contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """Give a folder beside a new one to write into; it takes the new one's place at the end.

    After an error or an interruption it is removed.

    Parameters
    ----------
    folder
        Does not exist yet, or is empty.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}-unfinished")
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_cog(
    file: Path,
    values: npt.NDArray[np.generic],
    transform: Affine,
    crs: str | int,
    *,
    nodata: float | None = 0,
) -> None:
    """Write one or more bands as a Cloud-Optimized GeoTIFF.

    Parameters
    ----------
    values
        (y, x) or (band, y, x).
    nodata
        Value of pixels without data; None where there are none.
    """
    stack = values if values.ndim == 3 else values[None]
    side = -(-max(stack.shape[1:]) // 16) * 16
    options = {
        "driver": "COG", "count": len(stack), "dtype": stack.dtype.name,
        "height": stack.shape[1], "width": stack.shape[2], "crs": crs, "transform": transform,
        "compress": "deflate", "predictor": 3 if stack.dtype.kind == "f" else 2,
        "blocksize": min(COG_TILE_PX, side),
        "overviews": "auto", "overview_resampling": "nearest",
    }  # fmt: skip
    if nodata is not None:
        options["nodata"] = nodata

    with replace_whole(file) as temporary, rasterio.open(temporary, "w", **options) as target:
        target.write(stack)


def write_jp2(
    file: Path, values: npt.NDArray[np.generic], transform: Affine, crs: str | int
) -> None:
    """Write one band as lossless JPEG 2000, without a nodata tag as ESA's own files.

    Parameters
    ----------
    values
        (y, x), uint8 or uint16.
    """
    height, width = values.shape
    options = {
        "driver": "JP2OpenJPEG", "count": 1, "dtype": values.dtype.name,
        "height": height, "width": width, "crs": crs, "transform": transform,
        "blockxsize": min(COG_TILE_PX, width), "blockysize": min(COG_TILE_PX, height),
        # Said, because GDAL would take it from the name, and the file has another one at first.
        "codec": "jp2", "quality": 100, "reversible": "yes", "ycbcr420": "no",
    }  # fmt: skip

    with replace_whole(file) as temporary, rasterio.open(temporary, "w", **options) as target:
        target.write(values, 1)


def mark_used(file: Path) -> None:
    """Note that a file is in use, at most once in an hour."""
    now = time.time()
    if now - file.stat().st_mtime > 3600:
        os.utime(file, (now, now))


def trim_cache(cache: Path, *, max_bytes: int, keep: set[Path]) -> int:
    """Remove the scenes that were not used for the longest time until a cache fits its limit.

    Parameters
    ----------
    cache
        Folder that :func:`bigmap.simulate.scenes.write_scenes` fills.
    keep
        Folders of scenes that must stay.

    Returns
    -------
    int
        Bytes that remain. More than the limit where the rest is in use.
    """
    scenes = {file.parent: file.stat().st_mtime for file in cache.glob("world-*/*/*/*/*/item.json")}
    sizes = {folder: _measure(folder) for folder in scenes}
    total = sum(sizes.values())
    oldest = time.time() - IN_USE_S
    for folder in sorted(scenes, key=lambda folder: (scenes[folder], folder)):
        if total <= max_bytes:
            break
        if folder in keep or scenes[folder] > oldest:
            continue
        # Renamed first, so that no other process finds half a scene.
        doomed = folder.with_name(f".{uuid.uuid4().hex[:8]}-removed")
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
        total -= sizes[folder]
    return total


def _measure(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
