"""Local copies of files: whole, or only the parts that a run reads.

A part keeps the grid of its file: size, transform and CRS are the same, but tiles that no block
reads are left out of a sparse GeoTIFF. So a staged pixel has the same indices, and every number
that resampling derives from them the same bits, as in the file itself. The parts are noted in the
file, and the reader refuses to read beyond them: what was left out never looks like nodata.
"""

from __future__ import annotations

import json
import math
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import numpy.typing as npt
import rasterio
import requests
from rasterio.errors import RasterioError
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bigmap import grid
from bigmap.config.sources import Access
from bigmap.errors import ReadError
from bigmap.grid import ROI
from bigmap.scenes.cube.pixels import bound_window, has_mask, read_mask_of
from bigmap.scenes.cube.reading import (
    STAGED_TAG,
    covers,
    grid_of,
    is_local,
    open_raster,
    say_access,
    staged_parts_of,
    use_raster,
)
from bigmap.scenes.cube.resampling import FileGrid, TargetGrid, bound_sampling
from bigmap.scenes.signing import sign_href

DEFAULT_TILE_PX = 512
"""Tiles of a staged part where those of the file cannot be tiles of a GeoTIFF; our choice."""
STRIP_PX = 1024
"""Rows that are held in memory at once, about; our choice."""
COPY_BYTES = 4 << 20
EDGE_POINTS = 41
CURVE_M = 500.0
"""How far the edge of a file may bend between the points that its bounds are taken from."""

Check = Callable[[], None]
"""Raises where the work is to stop."""


@dataclass(frozen=True)
class Reach:
    """What a run reads of any file, and the parts of files that follow from it."""

    target: TargetGrid
    regions: tuple[ROI, ...]
    """In global pixel indices of the grid."""
    resampling: str
    _known: dict[Any, list[ROI]] = field(default_factory=dict, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def parts_of(self, source: FileGrid, tile: tuple[int, int]) -> list[ROI]:
        """Return the parts of a file that are read, as whole tiles, apart from each other.

        Parameters
        ----------
        source
            The grid of the file.
        tile
            Size of the tiles in pixels, (y, x).
        """
        with self._lock:  # all bands of a scene want the same
            if (source, tile) not in self._known:
                self._known[source, tile] = join_tiles(self._touch(source, tile), source, tile)
            return self._known[source, tile]

    def is_held_by(self, source: FileGrid, parts: list[ROI]) -> bool:
        """Tell whether parts of a file hold all that is read of it."""
        return all(covers(parts, window) for window in self._windows(source))

    def _touch(self, source: FileGrid, tile: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Mark the tiles that are read, bool (tile row, tile column)."""
        counts = [-(-size // step) for size, step in zip(source.shape, tile, strict=True)]
        touched = np.zeros(counts, bool)
        for rows, cols in self._windows(source):
            touched[
                rows.start // tile[0] : -(-rows.stop // tile[0]),
                cols.start // tile[1] : -(-cols.stop // tile[1]),
            ] = True
        return touched

    def _windows(self, source: FileGrid) -> Iterator[ROI]:
        """Yield the window of the file that each region reads, if it meets the file."""
        bounds = array_bounds(*source.shape, source.transform)
        west, south, east, north = transform_bounds(
            source.crs, self.target.crs, *bounds, densify_pts=EDGE_POINTS
        )
        first_row, first_col = self.target.index_of(west - CURVE_M, north + CURVE_M)
        last_row, last_col = self.target.index_of(east + CURVE_M, south - CURVE_M)
        around = (slice(first_row - 1, last_row + 2), slice(first_col - 1, last_col + 2))
        for region in self.regions:
            if grid.is_empty(grid.intersect(region, around)):
                continue
            window = bound_sampling(self.target, region, source, self.resampling)
            if not grid.is_empty(window):
                yield window


def join_tiles(
    touched: npt.NDArray[np.bool_], source: FileGrid, tile: tuple[int, int]
) -> list[ROI]:
    """Join marked tiles to few rectangles that do not overlap, in pixels of the file.

    Runs of tiles in a row are joined with the same run in the rows below.
    """
    parts: list[ROI] = []
    open_runs: dict[tuple[int, int], int] = {}
    for row in range(len(touched) + 1):
        marks = touched[row] if row < len(touched) else np.zeros(touched.shape[1], bool)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]))).tolist()
        runs = set(zip(edges[::2], edges[1::2], strict=True))
        ended = sorted(open_runs.keys() - runs)
        parts += [_to_pixels((open_runs.pop(run), row), run, source, tile) for run in ended]
        for run in runs - open_runs.keys():
            open_runs[run] = row
    return parts


def _to_pixels(
    rows: tuple[int, int], cols: tuple[int, int], source: FileGrid, tile: tuple[int, int]
) -> ROI:
    first, second = (
        slice(span[0] * step, min(span[1] * step, size))
        for span, step, size in zip((rows, cols), tile, source.shape, strict=True)
    )
    return first, second


def holds_what_is_read(path: Path, reach: Reach) -> bool:
    """Tell whether a staged file holds all that a run reads of it; whole files do.

    Raises
    ------
    ReadError
        If it is no raster.
    """

    def ask(dataset: Any) -> bool:
        parts = staged_parts_of(dataset)
        return parts is None or reach.is_held_by(grid_of(dataset), parts)

    return use_raster(str(path), Access(retries=0), ask)


def copy_parts(href: str, path: Path, reach: Reach, *, access: Access, check: Check) -> None:
    """Write the parts of a file that a run reads, on the grid of the file.

    Parameters
    ----------
    href
        Path or URL of a single-band raster.
    path
        The new GeoTIFF: tiled, sparse, lossless.
    reach
        What is read.
    access
        How to fetch the file; what fails is tried again.
    check
        Called now and then; what it raises ends the work.

    Raises
    ------
    ReadError
        If the file cannot be read after all retries, or the copy is not what was read.
    """
    source, tile, profile, declared = use_raster(href, access, _describe)
    parts = reach.parts_of(source, tile)
    listed = [[p[0].start, p[0].stop, p[1].start, p[1].stop] for p in parts]
    sums = []
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", **profile) as copy,
    ):
        copy.update_tags(**{STAGED_TAG: json.dumps(listed, separators=(",", ":"))})
        if declared != ((1.0,), (0.0,)):
            copy.scales, copy.offsets = declared
        for strip in _strips_of(parts, tile[0]):
            check()
            # Each strip is tried anew by itself; GDAL keeps the header of the file.
            pixels, mask = use_raster(href, access, partial(_read_strip, strip=strip, href=href))
            window = Window.from_slices(*strip)
            copy.write(pixels, 1, window=window)
            if mask is not None:
                copy.write_mask(mask, window=window)
            sums.append((strip, _sum_of(pixels, mask)))
    _check_copy(href, path, source, sums)


def _read_strip(dataset: Any, *, strip: ROI, href: str) -> tuple[Any, Any]:
    """Read pixels as they are, and where the file has data if a mask of it says so."""
    window = bound_window(strip, href)
    mask = read_mask_of(dataset, window) if has_mask(dataset) else None
    return dataset.read(1, window=window), mask


def _sum_of(pixels: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None) -> int:
    return zlib.crc32(b"" if mask is None else mask.tobytes(), zlib.crc32(pixels.tobytes()))


def _describe(dataset: Any) -> tuple[FileGrid, tuple[int, int], dict[str, Any], Any]:
    """Return the grid of a file, its tiles, the profile of its copy, and its scale and offset."""
    tile = dataset.block_shapes[0]
    if any(side % 16 or side > 2 * STRIP_PX for side in tile):
        tile = (DEFAULT_TILE_PX, DEFAULT_TILE_PX)
    dtype = dataset.dtypes[0]
    profile = {
        "driver": "GTiff", "width": dataset.width, "height": dataset.height, "count": 1,
        "dtype": dtype, "crs": dataset.crs, "transform": dataset.transform,
        "nodata": dataset.nodata, "tiled": True, "blockysize": tile[0], "blockxsize": tile[1],
        "compress": "deflate", "predictor": 2 if np.issubdtype(dtype, np.integer) else 3,
        "SPARSE_OK": True, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    declared = dataset.scales[:1], dataset.offsets[:1]
    return grid_of(dataset), (tile[0], tile[1]), profile, declared


def _strips_of(parts: Sequence[ROI], tile_rows: int) -> Iterator[ROI]:
    """Cut parts into strips of whole rows of tiles that are held in memory at once."""
    step = tile_rows * max(1, STRIP_PX // tile_rows)
    for rows, cols in parts:
        for first in range(rows.start, rows.stop, step):
            yield slice(first, min(first + step, rows.stop)), cols


def _check_copy(href: str, path: Path, source: FileGrid, sums: list[tuple[ROI, int]]) -> None:
    """Read a copy back: a full disk may cut it short without a word."""

    def compare(dataset: Any) -> None:
        if grid_of(dataset) != source:
            raise ReadError(f"{href}: a GeoTIFF cannot keep its grid; stage it with --whole")
        for strip, expected in sums:
            if _sum_of(*_read_strip(dataset, strip=strip, href=href)) != expected:
                raise ReadError(f"{path}: differs from what was read of {href}; stage it again")

    use_raster(str(path), Access(retries=0), compare)


class _DamagedCopyError(OSError):
    """What arrived is not the raster that was asked for."""


def copy_whole(
    href: str, path: Path, shape: tuple[int, int], *, access: Access, check: Check
) -> None:
    """Copy a file byte by byte.

    Over HTTP it is asked for from where the last answer broke off.

    Parameters
    ----------
    href
        Path or URL.
    path
        The new file.
    shape
        Size of the raster in pixels, (y, x), by which a wrong answer is told.
    access, check
        As for :func:`copy_parts`.

    Raises
    ------
    ReadError
        If it cannot be copied after all retries.
    """
    if is_local(href) and not Path(href).exists():
        raise ReadError(f"{href}: no such file")
    is_http = urlsplit(href).scheme in {"http", "https"}
    version: dict[str, str] = {}
    attempts = Retrying(
        stop=stop_after_attempt(access.retries + 1),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        retry=retry_if_exception_type(OSError),  # those of requests are among them
        reraise=True,
    )
    try:
        for attempt in attempts:
            with attempt:
                if is_http:
                    _download(
                        sign_href(href, access.sign), path, version, access=access, check=check
                    )
                else:
                    _copy_stream(href, path, access, check)
                _check_shape(path, shape)
    except ImportError as error:
        raise ReadError(f"{href}: {error}; install the extra s3, or stage parts") from None
    except OSError as error:
        raise ReadError(f"{href}: {_say(error)}") from None


def _say(error: OSError) -> str:
    """Tell what went wrong without the signed URL that requests repeats."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return f"the server answered {status}{say_access(str(status))}"
    if isinstance(error, requests.RequestException):
        return f"the connection failed ({type(error).__name__})"
    return error.strerror or str(error) or type(error).__name__


def _check_shape(path: Path, shape: tuple[int, int]) -> None:
    try:
        with open_raster(str(path), Access(retries=0)) as dataset:
            found = dataset.shape
    except RasterioError:
        found = None
    if found != shape:
        path.unlink()
        what = f"has {found} px" if found else "is no raster"
        raise _DamagedCopyError(f"what was sent {what}, and not a raster of {shape} px")


def _download(
    url: str, path: Path, version: dict[str, str], *, access: Access, check: Check
) -> None:
    """Go on with a download until the file is as long as the server says.

    ``version`` keeps what marks the version of the file: a later one begins anew (RFC 9110,
    section 13.1.5).
    """
    total = None
    while total is None or path.stat().st_size < total:
        check()
        have = path.stat().st_size if path.exists() else 0
        answer = requests.get(
            url, stream=True, timeout=access.timeout_s,
            headers={"Range": f"bytes={have}-", "Accept-Encoding": "identity"} | version,
        )  # fmt: skip
        with closing(answer):
            if answer.status_code == requests.codes.requested_range_not_satisfiable:
                path.unlink(missing_ok=True)  # it was another file's; begin again
            answer.raise_for_status()
            is_part = answer.status_code == requests.codes.partial_content
            mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
            if mark and not mark.startswith("W/"):
                version["If-Range"] = mark
            if "Content-Encoding" in answer.headers:
                # It would grow beyond what is announced: a few bytes can fill a disk.
                raise _DamagedCopyError("the answer is compressed, though not asked to be")
            if is_part:
                total = int(answer.headers["Content-Range"].rpartition("/")[2])
            else:
                total = int(answer.headers.get("Content-Length", 0))
            with path.open("ab" if is_part else "wb") as file:
                for chunk in answer.iter_content(COPY_BYTES):
                    file.write(chunk)
                    check()
        if path.stat().st_size == have:
            raise _DamagedCopyError("the answer was empty")


def _copy_stream(href: str, path: Path, access: Access, check: Check) -> None:
    """Copy a local file, or an object of a store, from its start."""
    options: dict[str, Any] = {}
    if href.startswith("s3://"):
        options = {"anon": access.unsigned_s3, "requester_pays": access.requester_pays}
        if access.s3_endpoint:
            endpoint = access.s3_endpoint
            options["endpoint_url"] = endpoint if "://" in endpoint else f"https://{endpoint}"
    filesystem, inner = fsspec.core.url_to_fs(href, **options)
    size = int(filesystem.size(inner))
    with filesystem.open(inner, "rb") as source, path.open("wb") as target:
        while chunk := source.read(COPY_BYTES):
            target.write(chunk)
            check()
    if path.stat().st_size != size:
        raise _DamagedCopyError(f"{path.stat().st_size} of {size} bytes arrived")


def bound_bytes(reach: Reach, source: FileGrid, *, whole: bool, pixel_bytes: int) -> int:
    """Bound the size of a copy: what its pixels take before compression."""
    if whole:
        return math.prod(source.shape) * pixel_bytes
    parts = reach.parts_of(source, (STRIP_PX, STRIP_PX))
    return sum(math.prod(grid.shape_of(part)) for part in parts) * pixel_bytes


def free_bytes(folder: Path) -> int:
    """Return the room on the disk of a folder."""
    return shutil.disk_usage(folder).free
