"""Reading windows of rasters so that a pixel does not depend on the window it is read in.

GDAL's warper approximates coordinates per window and derives its kernel from the window's
shape, so by default the same pixel differs between two windows. Here the warped image of a
file is fixed by the file and the grid alone: it is anchored on the grid's lattice, the
coordinates are exact (``tolerance`` of the approximating transformer is all but zero; zero
itself fails to open) and the kernel's scale is the true ratio of the pixel sizes. Where the
file's own grid coincides with the target, pixels are copied and nothing is warped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from bigmap import grid
from bigmap.catalog import sign_href
from bigmap.errors import ReadError
from bigmap.grid import ROI

EXACT_TOLERANCE_PX = 1e-9
ALIGNED_TOLERANCE_PX = 1e-4
EDGE_POINTS = 41


@dataclass(frozen=True)
class Access:
    """How files are fetched; see ``source.access`` of the recipe."""

    sign: Literal["none", "planetary-computer"] = "none"
    unsigned_s3: bool = True
    requester_pays: bool = False
    s3_endpoint: str | None = None
    timeout_s: float = 30.0
    retries: int = 4

    def gdal_options(self) -> dict[str, Any]:
        """Return the GDAL configuration for these settings."""
        options: dict[str, Any] = {
            # Without these two, opening one COG costs a dozen requests for files beside it.
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
            "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
            "GDAL_HTTP_MAX_RETRY": self.retries,
            "GDAL_HTTP_RETRY_DELAY": 0.5,
            # Blocked and overloaded services answer 403 or HTML with 200, not only 5xx.
            "GDAL_HTTP_RETRY_CODES": "ALL",
            "GDAL_HTTP_CONNECTTIMEOUT": math.ceil(self.timeout_s),
            "GDAL_HTTP_LOW_SPEED_TIME": math.ceil(self.timeout_s),
            "GDAL_HTTP_LOW_SPEED_LIMIT": 1,
            "AWS_NO_SIGN_REQUEST": "YES" if self.unsigned_s3 else "NO",
        }
        if self.requester_pays:
            options["AWS_REQUEST_PAYER"] = "requester"
        if self.s3_endpoint:
            options["AWS_S3_ENDPOINT"] = self.s3_endpoint
        return options


@dataclass(frozen=True)
class TargetGrid:
    """The grid that files are read onto: a CRS and a pixel size, anchored at the origin."""

    crs: str
    gsd_m: float


@dataclass(frozen=True)
class RasterReader:
    """Reads one kind of single-band files, bands or masks, onto a grid."""

    target: TargetGrid
    resampling: str
    """``nearest``, ``bilinear`` or ``cubic``."""
    dtype: str
    nodata: int
    """Value of pixels without data in the files; it also fills what lies outside them."""
    access: Access = Access()

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
            If the file is missing or cannot be read after all retries.
        """
        attempts = Retrying(
            stop=stop_after_attempt(self.access.retries + 1),
            wait=wait_random_exponential(multiplier=0.2, max=10),
            retry=retry_if_exception_type(RasterioIOError),
            reraise=True,
        )
        try:
            for attempt in attempts:
                with attempt:
                    return self._read_once(href, roi, fresh=attempt.retry_state.attempt_number > 1)
        except (RasterioError, CRSError) as error:
            raise ReadError(f"{href}: {_reason(error, href)}") from None
        raise AssertionError("the loop above returns or raises")

    def _read_once(self, href: str, roi: ROI, *, fresh: bool) -> npt.NDArray[Any]:
        if is_local(href) and not Path(href).exists():
            raise ReadError(f"{href}: no such file")
        with (
            rasterio.Env(**self.access.gdal_options(), **(_uncached(href) if fresh else {})),
            rasterio.open(sign_href(href, self.access.sign), sharing=False) as dataset,
        ):
            if dataset.count != 1:
                raise ReadError(f"{href}: has {dataset.count} bands, but assets of one are read")
            if dataset.crs is None:
                raise ReadError(f"{href}: has no CRS")
            if self.nodata == 0 and dataset.nodata not in (None, 0):
                raise ReadError(f"{href}: declares {dataset.nodata} as nodata, Sentinel-2 has 0")
            out = np.full(grid.shape_of(roi), self.nodata, dtype=self.dtype)
            with self._on_grid(dataset) as (source, origin):
                extent = (
                    slice(origin[0], origin[0] + source.height),
                    slice(origin[1], origin[1] + source.width),
                )
                part = grid.intersect(roi, extent)
                if not grid.is_empty(part):
                    window = Window.from_slices(*grid.relative(part, extent))
                    out[grid.relative(part, roi)] = source.read(1, window=window)
            return out

    @contextmanager
    def _on_grid(self, dataset: Any) -> Iterator[tuple[Any, tuple[int, int]]]:
        """Yield the file on the target grid and the global index of its first pixel."""
        aligned = self._origin_if_aligned(dataset)
        if aligned is not None:
            yield dataset, aligned
            return
        gsd_m = self.target.gsd_m
        bounds = transform_bounds(
            dataset.crs, self.target.crs, *dataset.bounds, densify_pts=EDGE_POINTS
        )
        if not all(map(math.isfinite, bounds)):
            raise ReadError(f"{dataset.name}: does not project to {self.target.crs}")
        # Two pixels of margin: the kernel reaches over the edge, and edges are curved.
        row, col = math.floor(-bounds[3] / gsd_m) - 2, math.floor(bounds[0] / gsd_m) - 2
        height = math.ceil(-bounds[1] / gsd_m) + 2 - row
        width = math.ceil(bounds[2] / gsd_m) + 2 - col
        with WarpedVRT(
            dataset,
            crs=self.target.crs,
            transform=Affine(gsd_m, 0, col * gsd_m, 0, -gsd_m, -row * gsd_m),
            width=width,
            height=height,
            resampling=Resampling[self.resampling],
            src_nodata=self.nodata,
            nodata=self.nodata,
            tolerance=EXACT_TOLERANCE_PX,
            XSCALE=abs(dataset.transform.a) / gsd_m,
            YSCALE=abs(dataset.transform.e) / gsd_m,
        ) as vrt:
            yield vrt, (row, col)

    def _origin_if_aligned(self, dataset: Any) -> tuple[int, int] | None:
        """Return the global index of a file's first pixel if its grid is the target grid."""
        gsd_m, transform = self.target.gsd_m, dataset.transform
        if dataset.crs != CRS.from_user_input(self.target.crs):
            return None
        col, row = transform.c / gsd_m, -transform.f / gsd_m
        offsets = (
            (transform.a / gsd_m - 1) * dataset.width,
            (transform.e / gsd_m + 1) * dataset.height,
            transform.b,
            transform.d,
            col - round(col),
            row - round(row),
        )
        if any(abs(offset) > ALIGNED_TOLERANCE_PX for offset in offsets):
            return None
        return round(row), round(col)


def is_local(href: str) -> bool:
    """Tell whether a href is a plain path of this machine."""
    return "://" not in href and not href.startswith("/vsi")


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
    return " ".join(words) or type(error).__name__
