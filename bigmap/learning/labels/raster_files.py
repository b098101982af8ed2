"""Rasters that a recipe names: where they lie around the Earth, and reading them as scenes are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import rasterio.crs
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp
from rasterio.io import DatasetReader
from rasterio.windows import Window

from bigmap.config.sources import Access
from bigmap.errors import ReadError, SamplesError, UnfitFileError
from bigmap.learning.labels.reader import Bounds, bounds_of
from bigmap.scenes.cube.reading import use_raster
from bigmap.scenes.cube.resampling import transformer_between

HALF_TURN = 180.0
T = TypeVar("T")


@dataclass(frozen=True)
class RasterFile:
    """Where a raster lies."""

    path: str
    crs: str
    """As WKT."""
    bounds: Bounds
    """Left, bottom, right, top of all its corners in ``crs``."""

    def find_turns(self, bounds: Bounds, crs: str) -> list[Turn]:
        """Return how to lay it around the Earth so that it reaches into a region; none if not."""
        try:
            left, bottom, right, top = transform_bounds(bounds, crs, self.crs)
        except ProjError as error:
            raise SamplesError(
                f"samples.labels.files: {self.path}: its CRS leads nowhere from {crs} ({error}); "
                "correct it"
            ) from None
        if not math.isfinite(left + bottom + right + top):
            return []
        west, south, east, north = self.bounds
        if south > top or north < bottom:
            return []
        # PROJ counts longitudes from -180 to 180; only what lies beyond needs more than that.
        if max(-west, east, -left, right) <= HALF_TURN or not is_in_degrees(self.crs):
            return [Turn()] if west <= right and east >= left else []
        shifts = (turns * 2 * HALF_TURN for turns in (-2, -1, 0, 1, 2))
        return [
            Turn(shift, (left + right) / 2)
            for shift in shifts
            if west + shift <= right and east + shift >= left
        ]


@dataclass(frozen=True)
class Turn:
    """How a raster in degrees is laid around the Earth."""

    shift: float = 0.0
    """Added to its longitudes."""
    centre: float | None = None
    """Longitude around which they count, None for the usual one."""

    def transform_of(self, source: DatasetReader) -> Affine:
        """Return the moved transform of a raster."""
        moved: Affine = Affine.translation(self.shift, 0) * source.transform
        return moved

    def options(self, source: DatasetReader) -> dict[str, Any]:
        """Return how GDAL is told."""
        if self.centre is None:
            return {}
        wkt = source.crs.to_wkt(version="WKT1_GDAL").removesuffix("]")
        centred = rasterio.crs.CRS.from_wkt(f'{wkt},EXTENSION["CENTER_LONG","{self.centre:.6f}"]]')
        return {"src_crs": centred, "src_transform": self.transform_of(source)}

    def count(self, longitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Count longitudes around the centre."""
        if self.centre is None:
            return longitudes
        start = self.centre - HALF_TURN
        return (longitudes - start) % (2 * HALF_TURN) + start


def use_own_raster(
    file: str,
    access: Access,
    use: Callable[[DatasetReader], T],
    *,
    field: str = "samples.labels.files",
) -> T:
    """Open a GeoTIFF or JPEG 2000 file that the recipe names, and use it, as scenes are read.

    Parameters
    ----------
    file
        Path or URL.
    access
        Of the recipe. S3 is asked with the user's credentials whatever it says: that scenes lie in
        a public bucket says nothing of the user's own files.
    use
        What to do with the open dataset; done again with backoff where GDAL fails.
    field
        Which names the file, for messages.

    Raises
    ------
    ReadError
        If it cannot be read after all retries, which may pass.
    SamplesError
        If it can be read, but is not what is needed.
    """
    try:
        return use_raster(
            file, access.model_copy(update={"unsigned_s3": False}), use, one_band=False
        )
    except UnfitFileError as error:
        raise SamplesError(f"{field}: {error}") from None
    except ReadError as error:
        raise ReadError(f"{field}: {error}") from None
    except ProjError as error:
        raise SamplesError(f"{field}: {file}: has a CRS that leads nowhere ({error})") from None


def has_alpha_band(source: DatasetReader) -> bool:
    """Tell whether the last of a raster's bands says where it has data."""
    return bool(source.colorinterp[-1] == ColorInterp.alpha) and source.count > 1


def window_of(source: DatasetReader, *, bounds: Bounds, crs: str, turn: Turn) -> Window:
    """Return the pixels of a raster below a region, with a margin for its curvature."""
    left, bottom, right, top = bounds
    edge = shapely.get_coordinates(
        shapely.box(*bounds).segmentize(max(right - left, top - bottom) / 20)
    )
    x, y = transformer_between(crs, source.crs.to_wkt()).transform(*edge.T)
    places = np.array(~turn.transform_of(source) * (turn.count(np.asarray(x)), np.asarray(y)))
    low, high = np.floor(places.min(axis=1)), np.ceil(places.max(axis=1))
    margin = np.ceil(2 + 0.01 * (high - low))
    limit = np.array([source.width, source.height])
    first = np.clip(low - margin, 0, limit).astype(int)
    size = np.clip(high + margin, 0, limit).astype(int) - first
    return Window(first[0], first[1], size[0], size[1])


def size_ratio(source: DatasetReader, geobox: GeoBox) -> float:
    """Return source pixels per pixel along one axis, at most 1 below which nothing is averaged."""
    crs = source.crs.to_wkt()
    box = transform_bounds(bounds_of(geobox), str(geobox.crs), crs, densify_pts=5)
    a, b, _, d, e, _ = source.transform[:6]
    spans_px = (box[2] - box[0]) / math.hypot(a, d), (box[3] - box[1]) / math.hypot(b, e)
    ratio = max(spans_px[0] / geobox.shape[1], spans_px[1] / geobox.shape[0])
    return 1 / max(1.0, round(float(ratio), 2))


@lru_cache(maxsize=256)
def transform_bounds(bounds: Bounds, crs: str, to_crs: str, *, densify_pts: int = 21) -> Bounds:
    """Return the box around a region in another CRS; its right may lie beyond 180 degrees."""
    transformer = transformer_between(crs, to_crs)
    left, bottom, right, top = transformer.transform_bounds(*bounds, densify_pts=densify_pts)
    if right < left and is_in_degrees(to_crs):
        right += 2 * HALF_TURN
    return left, bottom, right, top


@lru_cache(maxsize=256)
def is_in_degrees(crs: str) -> bool:
    """Tell whether a CRS counts longitudes and latitudes."""
    known = CRS(crs)
    return bool(known.is_geographic and known.axis_info[0].unit_name == "degree")
