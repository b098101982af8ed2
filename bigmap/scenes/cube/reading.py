"""Reading windows of rasters onto the grid, whatever window is asked for.

Where the grid of a file coincides with the target, pixels are copied; otherwise they are
resampled as :mod:`bigmap.scenes.cube.resampling` says. Reads are tried again with backoff, past
GDAL's cache, which would serve a broken answer again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.transform import array_bounds
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bigmap import grid
from bigmap.config.sources import Access
from bigmap.errors import ReadError, UnfitFileError
from bigmap.grid import ROI
from bigmap.scenes.cube.pixels import Pixels, check_file, has_alpha, read_pixels
from bigmap.scenes.cube.resampling import FileGrid, TargetGrid, plan_sampling, transformer_between
from bigmap.scenes.signing import sign_href

ALIGNED_TOLERANCE_PX = 1e-4
CLAIM_MARGIN_M = 500.0
"""How far beyond the place that an item gives its files are looked for."""
CLAIM_EDGE_POINTS = 21
DRIVERS = ["GTiff", "JP2OpenJPEG"]
"""What is opened. Formats such as VRT name other files, also local ones, whose bytes would pass
for pixels."""
MAX_BLOCK_PX = 1 << 27
"""GDAL decodes whole blocks (tiles or strips), whatever is read of them. This one takes 256 MB in
uint16; a band of 10,980 x 10,980 px in one strip stays below."""
FETCHED_BYTES = 500_000_000
"""Of what a process has fetched, so much is kept, compressed as it is: cells and blocks share tiles
of files. For 12 bands on 12 dates that is about the tiles of two rows of cells of 1,024 px."""
STAGED_TAG = "BIGMAP_STAGED"
"""Of a file that holds parts of another on its grid: these parts, as JSON lists of the first row,
the row behind the last, the first column and the column behind the last."""

T = TypeVar("T")


def gdal_options(access: Access) -> dict[str, Any]:
    """Return the GDAL configuration for how files are fetched."""
    options: dict[str, Any] = {
        # Without these two, opening one COG costs a dozen requests for files beside it.
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        # Several ranges at once would go past the cache, and neighbours fetch them again.
        "GDAL_HTTP_MULTIRANGE": "SERIAL",
        "CPL_VSIL_CURL_CACHE_SIZE": FETCHED_BYTES,
        "GDAL_HTTP_MAX_RETRY": access.retries,
        "GDAL_HTTP_RETRY_DELAY": 0.5,
        # Blocked and overloaded services answer 403 or HTML with 200, not only 5xx.
        "GDAL_HTTP_RETRY_CODES": "ALL",
        "GDAL_HTTP_CONNECTTIMEOUT": math.ceil(access.timeout_s),
        "GDAL_HTTP_LOW_SPEED_TIME": math.ceil(access.timeout_s),
        "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
        "AWS_NO_SIGN_REQUEST": "YES" if access.unsigned_s3 else "NO",
    }
    if access.requester_pays:
        options["AWS_REQUEST_PAYER"] = "requester"
    if access.s3_endpoint:
        options["AWS_S3_ENDPOINT"] = access.s3_endpoint
    return options


@dataclass(frozen=True)
class Claim:
    """Where an item says that its files lie."""

    epsg: int
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top in metres."""


@dataclass(frozen=True)
class RasterReader:
    """Reads one kind of files, bands or masks, onto a grid."""

    target: TargetGrid
    resampling: str
    """``nearest``, ``bilinear`` or ``cubic``."""
    expected: Pixels
    """What the files hold."""
    access: Access = Access()
    claims: Mapping[str, Claim] = field(default_factory=dict)
    """Where items say that their files lie, by href."""
    on_read: Callable[[str], None] | None = None
    """Told of each file that was read."""

    @property
    def dtype(self) -> str:
        """Of what is read."""
        return self.expected.dtype

    @property
    def nodata(self) -> int:
        """Value of pixels without data, and of what lies outside a file."""
        return self.expected.fill

    def read(self, href: str, roi: ROI) -> npt.NDArray[Any]:
        """Read a region of the grid from one file.

        Parameters
        ----------
        href
            Path or URL of a single-band raster.
        roi
            ``(rows, cols)`` in global pixel indices of the grid.

        Returns
        -------
        numpy.ndarray
            (y, x) in ``dtype``; ``nodata`` outside the file.

        Raises
        ------
        ReadError
            If the file is missing, holds other than what is expected, or cannot be read after all
            retries.
        """
        pixels = use_raster(href, self.access, partial(self._place, roi=roi, href=href))
        if self.on_read is not None:
            self.on_read(href)
        return pixels

    def _place(self, dataset: DatasetReader, *, roi: ROI, href: str) -> npt.NDArray[Any]:
        """Bring an open file onto the grid."""
        check_file(dataset, self.expected, href)
        source, parts = grid_of(dataset), staged_parts_of(dataset)
        if href in self.claims:
            _check_claim(source, self.claims[href], href)

        def read(rows: slice, cols: slice) -> npt.NDArray[Any]:
            if parts is not None and not covers(parts, (rows, cols)):
                raise ReadError(
                    f"{href}: the part that was staged does not hold rows {rows.start} to "
                    f"{rows.stop}, columns {cols.start} to {cols.stop}; run bigmap stage with "
                    "this recipe"
                )
            return read_pixels(dataset, (rows, cols), self.expected, href)

        origin = find_origin(self.target, source)
        out = np.full(grid.shape_of(roi), self.nodata, dtype=self.dtype)
        if origin is None:
            sampling = plan_sampling(self.target, roi, source, self.resampling)
            return out if sampling is None else sampling.apply(read(*sampling.window), self.nodata)
        height, width = source.shape
        extent = slice(origin[0], origin[0] + height), slice(origin[1], origin[1] + width)
        part = grid.intersect(roi, extent)
        if not grid.is_empty(part):
            out[grid.relative(part, roi)] = read(*grid.relative(part, extent))
        return out


def use_raster(href: str, access: Access, use: Callable[[Any], T], *, one_band: bool = True) -> T:
    """Open a raster and use it, both again with backoff where GDAL fails.

    Parameters
    ----------
    href
        Path or URL, unsigned.
    access
        How to fetch it.
    use
        What to do with the open dataset.
    one_band
        Refuse what is no band or mask of a scene: several bands, complex numbers, no CRS.

    Raises
    ------
    ReadError
        If the file is missing, is not such a raster, or cannot be read after all retries.
    """
    attempts = Retrying(
        stop=stop_after_attempt(access.retries + 1),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        retry=retry_if_exception_type((RasterioIOError, CPLE_BaseError)),
        reraise=True,
    )
    try:
        for attempt in attempts:
            with attempt:
                fresh = attempt.retry_state.attempt_number > 1
                with open_raster(href, access, fresh=fresh) as dataset:
                    if one_band:
                        _check_band(dataset, href)
                    return use(dataset)
    except (RasterioError, CPLE_BaseError, CRSError, OSError) as error:
        raise ReadError(f"{href}: {_reason(error, href)}") from None
    raise AssertionError("the loop above returns or raises")


def _check_band(dataset: DatasetReader, href: str) -> None:
    if dataset.count != 1 and not has_alpha(dataset):
        raise UnfitFileError(f"{href}: has {dataset.count} bands, but assets of one are read")
    if dataset.dtypes[0].startswith("complex"):
        raise UnfitFileError(f"{href}: holds complex numbers, not those of a band or mask")
    if dataset.crs is None:
        raise UnfitFileError(f"{href}: has no CRS")


@contextmanager
def open_raster(href: str, access: Access, *, fresh: bool = False) -> Iterator[DatasetReader]:
    """Open a GeoTIFF or JPEG 2000 file that reads no other file and fits in memory by blocks.

    Files beside it (overviews, masks, metadata) are not looked for.

    Parameters
    ----------
    href
        Path or URL, unsigned.
    access
        How to fetch it.
    fresh
        Ask again for what GDAL has in its cache.

    Raises
    ------
    ReadError
        If the file is missing, points to another, or declares blocks beyond the bound.
    rasterio.errors.RasterioError
        If GDAL cannot open or read it.
    """
    if is_local(href) and not Path(href).exists():
        raise ReadError(f"{href}: no such file")
    with (
        rasterio.Env(**gdal_options(access), **(_uncached(href) if fresh else {})),
        DatasetReader(
            _name_for_gdal(sign_href(href, access.sign)), driver=DRIVERS, sharing=False
        ) as dataset,
    ):
        if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
            raise UnfitFileError(f"{href}: has its overviews in another file, which is not opened")
        rows, cols = max(dataset.block_shapes, key=math.prod)
        if rows * cols * dataset.count > MAX_BLOCK_PX:
            raise UnfitFileError(
                f"{href}: declares blocks of {rows} x {cols} px in {dataset.count} bands, which "
                f"take too much memory; write it in tiles, as a COG"
            )
        yield dataset


def grid_of(dataset: Any) -> FileGrid:
    """Return where the pixels of an open file lie."""
    return FileGrid(dataset.crs.to_wkt(), dataset.transform, dataset.shape)


def _check_claim(source: FileGrid, claim: Claim, href: str) -> None:
    """Refuse a file that is larger than its item says: it is not opened for what lies beyond."""
    excess_m = find_excess_m(source, claim)
    if excess_m > CLAIM_MARGIN_M:
        raise UnfitFileError(
            f"{href}: reaches {excess_m:,.0f} m beyond the place that its item gives, so a part of "
            "it would be left out; correct the item's proj:shape, proj:transform or geometry"
        )


@lru_cache(maxsize=4096)
def find_excess_m(source: FileGrid, claim: Claim) -> float:
    """Return how far a file reaches beyond a place, at the worst of its sides, in metres."""
    to_claim = transformer_between(source.crs, f"EPSG:{claim.epsg}")
    left, bottom, right, top = array_bounds(*source.shape, source.transform)
    left, bottom, right, top = to_claim.transform_bounds(
        left, bottom, right, top, densify_pts=CLAIM_EDGE_POINTS
    )
    west, south, east, north = claim.bounds
    return float(max(west - left, south - bottom, right - east, top - north))


def staged_parts_of(dataset: Any) -> list[ROI] | None:
    """Return the parts that a staged file holds, apart from each other; None for other files."""
    text = dataset.tags().get(STAGED_TAG)
    if text is None:
        return None
    return [
        (slice(top, bottom), slice(left, right)) for top, bottom, left, right in json.loads(text)
    ]


def covers(parts: list[ROI], window: ROI) -> bool:
    """Tell whether parts, which do not overlap, hold a whole window."""
    common = (grid.intersect(part, window) for part in parts)
    held = sum(math.prod(grid.shape_of(part)) for part in common if not grid.is_empty(part))
    return held == math.prod(grid.shape_of(window))


@lru_cache(maxsize=4096)
def find_origin(target: TargetGrid, source: FileGrid) -> tuple[int, int] | None:
    """Return the global index of a file's first pixel if the file lies on the grid.

    The two coincide if the file's corners, edges and middle fall on the grid's pixel corners,
    whatever their CRS are called: UTM on WGS 84 and on ETRS89 have the same coordinates.

    Returns
    -------
    tuple of int or None
        Row and column, or None where pixels must be resampled.
    """
    (height, width), transform, gsd_m = source.shape, source.transform, target.gsd_m
    cols, rows = np.meshgrid([0, width / 2, width], [0, height / 2, height])
    x = transform.a * cols + transform.b * rows + transform.c
    y = transform.d * cols + transform.e * rows + transform.f
    x, y = transformer_between(source.crs, target.crs).transform(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    origin = target.index_of(float(x[0, 0]), float(y[0, 0]))
    off = max(
        float(np.abs((x - target.anchor_m[0]) / gsd_m - cols - origin[1]).max()),
        float(np.abs((target.anchor_m[1] - y) / gsd_m - rows - origin[0]).max()),
    )
    return origin if off < ALIGNED_TOLERANCE_PX else None


def is_local(href: str) -> bool:
    """Tell whether a href is a plain path of this machine."""
    return "://" not in href and not href.startswith("/vsi")


def _name_for_gdal(href: str) -> str:
    """Write the key of an object as GDAL has it: whole, whatever signs rasterio would cut at."""
    store = re.match("(s3|gs|az)://", href)
    return f"/vsi{store[1]}/{href[store.end() :]}" if store else href


def _uncached(href: str) -> dict[str, str]:
    """Keep a failed answer out of a retry: GDAL would serve it from its cache again."""
    url = urlsplit(href)
    if url.scheme in {"http", "https"}:
        return {"CPL_VSIL_CURL_NON_CACHED": f"/vsicurl/{url.scheme}://{url.netloc}"}
    if url.scheme == "s3":
        return {"CPL_VSIL_CURL_NON_CACHED": f"/vsis3/{url.netloc}"}
    return {}


def _reason(error: Exception, href: str) -> str:
    """Return GDAL's words without the signed URL that it may repeat."""
    text = str(error.__cause__ or error).replace(href, "the file")
    words = [word.split("?")[0] if "://" in word or "/vsi" in word else word
             for word in text.split()]  # fmt: skip
    if "not recognized" in text:
        words.append("Only GeoTIFF and JPEG 2000 are opened.")
    return (" ".join(words) or type(error).__name__) + say_access(text)


def say_access(text: str) -> str:
    """Return what to do about an answer that refuses access, nothing for other faults."""
    if not re.search(r"\b40[13]\b", text):
        return ""
    return (
        "; give access by source.access, or by the environment: a password in ~/.netrc, a header "
        "in GDAL_HTTP_HEADERS, keys of a store as it takes them"
    )
