"""Images that models are to make: the chip's own, before it is degraded, or a second sensor's."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject

from bigmap import simulate
from bigmap.config.sources import Access
from bigmap.errors import SamplesError
from bigmap.learning.labels.raster_files import has_alpha_band, use_own_raster
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA
from bigmap.simulate.images import SECOND_GSD_M, SECOND_RESPONSE

UInt16Array = npt.NDArray[np.uint16]
BoolArray = npt.NDArray[np.bool_]
FILES_FIELD = "samples.target.files"
CUBIC_A = -0.5
"""Keys' parameter for reductions, as in Pillow and MATLAB's imresize."""
MARGIN_PX = 8
"""Rendered around a target of the second sensor, for resampling."""
Bounds = tuple[float, float, float, float]


def reduce_date(
    dn: UInt16Array, clear: BoolArray, factor: int, method: Literal["average", "bicubic"]
) -> tuple[UInt16Array, BoolArray]:
    """Degrade one date, as Abadal et al. (2021) and Pereira & dos Santos (2020) make their pairs.

    Parameters
    ----------
    dn
        uint16, (band, y, x), sides multiples of ``factor``; 0 is nodata.
    clear
        bool, (y, x).
    factor
        Pixels that become one, along each axis.
    method
        Mean of the pixels, or bicubic with a kernel as wide as the reduction.

    Returns
    -------
    dn, clear
        A pixel made of one without data has none; it is clear where all it is made of are clear.
    """
    shape = dn.shape[1] // factor, factor, dn.shape[2] // factor, factor
    has_data = (dn != NODATA).all(axis=0)
    whole, seen = (np.asarray(part.reshape(shape).all(axis=(1, 3))) for part in (has_data, clear))
    rows, columns = (_reduction(side, factor, method) for side in dn.shape[1:])
    reduced = rows @ dn.astype(np.float64) @ columns.T
    reduced = np.clip(np.rint(reduced), 1, np.iinfo(np.uint16).max)
    return np.where(whole, reduced, NODATA).astype(np.uint16), seen & whole


def _reduction(side: int, factor: int, method: str) -> npt.NDArray[np.float64]:
    """Return the weights of a reduction along one axis, (side // factor, side); edges repeat."""
    weights = np.zeros((side // factor, side))
    reach = factor / 2 if method == "average" else 2.0 * factor
    for row in range(side // factor):
        centre = (row + 0.5) * factor
        taps = np.arange(math.floor(centre - reach), math.ceil(centre + reach))
        distance = np.abs(taps + 0.5 - centre) / factor
        own = (distance < 0.5).astype(float) if method == "average" else _keys(distance)
        np.add.at(weights[row], np.clip(taps, 0, side - 1), own / own.sum())
    return weights


def _keys(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cubic kernel of Keys (1981)."""
    a, t = CUBIC_A, distance
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    kernel: npt.NDArray[np.float64] = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return kernel


@dataclass(frozen=True)
class SensorReader:
    """Images of a second sensor on the place of a chip, as DN of reflectance 1e-4 * DN - 0.1."""

    bands: tuple[str, ...]
    files: tuple[str, ...] = ()
    """None: the second sensor of the simulated world."""
    scale: float = 1.0
    offset: float = 0.0
    seed: int = 0
    gsd_m: float = SECOND_GSD_M
    access: Access = Access()

    def read(self, crs: str, bounds: Bounds, side_px: int, day: dt.date) -> UInt16Array:
        """Read the image of a chip.

        Parameters
        ----------
        bounds
            Left, bottom, right, top of the chip in ``crs``, in metres.
        side_px
            Side of the image.
        day
            Which day to render, of the simulated sensor; files are as they are.

        Returns
        -------
        numpy.ndarray
            uint16, (band, side_px, side_px), 0 where there is nothing.

        Raises
        ------
        ReadError
            If a file cannot be read at present; trying again may help.
        SamplesError
            If a file is unfit.
        """
        geobox = GeoBox.from_bbox(bounds, crs=crs, shape=(side_px, side_px))
        if not self.files:
            reflectance = self._render(crs, bounds, geobox, day)
        else:
            reflectance = np.full((len(self.bands), side_px, side_px), np.nan)
            warp = partial(self._warp, geobox=geobox)
            for file in self.files:
                found = use_own_raster(file, self.access, warp, field=FILES_FIELD)
                reflectance = np.where(np.isnan(reflectance), found, reflectance)
        dn = np.rint((reflectance - DN_OFFSET) / DN_SCALE)
        has_data = np.isfinite(dn).all(axis=0)
        return np.where(has_data, np.clip(np.nan_to_num(dn), 1, 65535), NODATA).astype(np.uint16)

    def _render(self, crs: str, bounds: Bounds, geobox: GeoBox, day: dt.date) -> Any:
        left, _, right, top = bounds
        row = math.floor(-top / SECOND_GSD_M) - MARGIN_PX
        col = math.floor(left / SECOND_GSD_M) - MARGIN_PX
        side = math.ceil((right - left) / SECOND_GSD_M) + 2 * MARGIN_PX + 1
        image, transform = simulate.render_second_sensor(
            crs, (row, col), (side, side), seed=self.seed, day=day
        )
        target = np.full((len(image), *geobox.shape), np.nan, dtype=np.float32)
        reproject(
            image, target, src_transform=transform, src_crs=crs, dst_transform=geobox.transform,
            dst_crs=crs, resampling=Resampling.cubic, dst_nodata=np.nan,
        )  # fmt: skip
        order = list(SECOND_RESPONSE)
        return target[[order.index(band) for band in self.bands]]

    def _warp(self, source: DatasetReader, *, geobox: GeoBox) -> Any:
        with WarpedVRT(
            source, crs=str(geobox.crs), transform=geobox.transform, width=geobox.shape[1],
            height=geobox.shape[0], resampling=Resampling.cubic, tolerance=1e-9,
            add_alpha=source.nodata is None and not has_alpha_band(source),
        ) as warped:  # fmt: skip
            values = warped.read(range(1, len(self.bands) + 1)).astype(np.float64)
            seen = warped.dataset_mask() > 0
        return np.where(seen, self.scale * values + self.offset, np.nan)


def open_sensor(
    files: Sequence[str], bands: tuple[str, ...], *, scale: float, offset: float, seed: int,
    access: Access = Access(),
) -> SensorReader:  # fmt: skip
    """Check images of a second sensor and make what reads them.

    Raises
    ------
    ReadError
        If a file cannot be read after all retries.
    SamplesError
        If a file is unfit, has no CRS, too few bands, or pixels not in metres; or the simulated
        sensor has no such band.
    """
    if not files:
        unknown = sorted(set(bands) - set(SECOND_RESPONSE))
        if unknown:
            raise SamplesError(
                f"samples.target: the simulated second sensor has no band {unknown[0]}; it has "
                f"{', '.join(SECOND_RESPONSE)}"
            )
        return SensorReader(bands, seed=seed)
    gsd_m = min(
        use_own_raster(file, access, partial(_check, file=file, bands=bands), field=FILES_FIELD)
        for file in files
    )
    return SensorReader(bands, tuple(files), scale, offset, seed, gsd_m, access)


def _check(source: DatasetReader, *, file: str, bands: tuple[str, ...]) -> float:
    """Refuse an image that can be no target; returns the side of its pixels in metres."""
    where = f"{FILES_FIELD}: {file}"
    if source.crs is None or not source.crs.is_projected:
        raise SamplesError(f"{where}: needs a projected CRS in metres")
    count = source.count - has_alpha_band(source)
    if count < len(bands):
        raise SamplesError(
            f"{where}: has {count} bands, but the model makes {len(bands)}: {', '.join(bands)}"
        )
    return abs(float(source.transform.a))
