"""Cubes given from Python, whatever library made them: read as what they declare.

Place, CRS, nodata and units of a cube stand in its coordinates, attributes and encoding, and
each library has its own habits: stackstac's coordinates are corners of pixels, rioxarray's are
centres; xarray keeps the attributes of digital numbers after they were turned into something else.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 - gives DataArrays their .rio
import xarray as xr
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from bigmap.errors import ModelError
from bigmap.grid import ROI
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA

DIMS = ("time", "band", "y", "x")
MIN_REFLECTANCE, MAX_REFLECTANCE = -1.0, 10.0
"""What reflectance lies between; the greatest DN, 65535, is 6.45."""
MAX_DN = 65535
STEP_TOLERANCE = 1e-6
HALVES_TOLERANCE = 1e-3
EPSG_COORDINATES = ("epsg", "proj:epsg", "proj:code")

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class GivenCube:
    """A cube that was checked; it is read piece by piece."""

    pixels: xr.DataArray
    """(time, band, y, x), without coordinates: uint16 DN or floats."""
    clear: xr.DataArray | None
    """bool, (time, y, x)."""
    nodata: tuple[float, ...]
    """Declared values of pixels without data, beside 0 of DN and what is not finite."""
    scaling: tuple[float, float] | None
    """Scale and offset of DN, where the cube declares them."""
    x: npt.NDArray[np.float64]
    """Centres of pixels, as ``y``."""
    y: npt.NDArray[np.float64]
    gsd_m: float
    crs: CRS | None

    def count_clear(self, roi: ROI) -> npt.NDArray[np.intp]:
        """Count the clear pixels of a region, (time,).

        Without a mask, dates are chosen by where there is data; one band tells.
        """
        if self.clear is not None:
            seen = self.clear[:, *roi].compute(scheduler="threads").values
        else:
            seen = find_data(self._read(slice(None), slice(0, 1), roi))
        count: npt.NDArray[np.intp] = seen.sum(axis=(1, 2))
        return count

    def read(self, dates: list[int], roi: ROI) -> tuple[npt.NDArray[Any], BoolArray]:
        """Read dates of a region.

        Returns
        -------
        pixels, clear
            (time, band, y, x), uint16 DN with 0, or float32 reflectance with NaN for nodata; and
            bool (time, y, x): a clear pixel has data in every band.

        Raises
        ------
        ModelError
            If the floats cannot be reflectance, nor the DN that the cube declares.
        """
        pixels = self._read(dates, slice(None), roi)
        clear = find_data(pixels)
        if self.clear is not None:
            clear &= self.clear[dates, *roi].compute(scheduler="threads").values
        return pixels, clear

    def _read(self, dates: Any, bands: slice, roi: ROI) -> npt.NDArray[Any]:
        values = self.pixels[dates, bands, *roi].compute(scheduler="threads").values
        hidden = np.zeros(values.shape, dtype=bool)
        for value in self.nodata:
            hidden |= values == value
        if values.dtype == np.uint16:
            return np.where(hidden, np.uint16(NODATA), values) if self.nodata else values
        return self._to_reflectance(values, np.isfinite(values) & ~hidden)

    def _to_reflectance(
        self, values: npt.NDArray[Any], known: BoolArray
    ) -> npt.NDArray[np.float32]:
        """Turn floats into reflectance, with NaN where they are not known.

        The attributes of DN outlive what is done with a cube, so that its values must tell
        whether they still are DN: no reflectance is that large, and no DN as small as all are.
        """
        low, high = _range_of(values[known])
        if self.scaling is not None and high > MAX_REFLECTANCE:
            known = known & (values != NODATA)
            low, _ = _range_of(values[known])
            if low < 1 or high > MAX_DN:
                raise ModelError(
                    f"the cube declares dn_scale, but its floats go from {low:g} to {high:g}, "
                    "which are neither digital numbers nor reflectance; declare its nodata, or "
                    "give reflectance without dn_scale"
                )
            scale, offset = (np.float32(part) for part in self.scaling)
            values = values.astype(np.float32) * scale + offset
        elif high > MAX_REFLECTANCE or low < MIN_REFLECTANCE:
            raise ModelError(
                f"the cube's floats reach {high if high > MAX_REFLECTANCE else low:g}, which is no "
                "reflectance; give reflectance, or DN with attrs dn_scale and dn_offset, and "
                "declare its nodata (attrs _FillValue)"
            )
        return np.where(known, values, np.nan).astype(np.float32)


def _range_of(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value; of none, a range that says nothing."""
    return (float(values.min()), float(values.max())) if values.size else (1.0, 1.0)


def find_data(pixels: npt.NDArray[Any]) -> BoolArray:
    """Tell where pixels (time, band, y, x), DN or reflectance, have data in every band."""
    has_data = np.isfinite(pixels) if pixels.dtype.kind == "f" else pixels != NODATA
    everywhere: BoolArray = has_data.all(axis=1)
    return everywhere


def check_cube(cube: xr.DataArray, bands: Sequence[str]) -> GivenCube:
    """Check a cube and find what it declares; nothing is read.

    Parameters
    ----------
    cube
        See :func:`bigmap.predict`.
    bands
        Common names of the bands wanted, in their order.

    Raises
    ------
    ModelError
        If it cannot be understood.
    """
    if not isinstance(cube, xr.DataArray):
        raise ModelError(
            f"the cube is a {type(cube).__name__}; give a DataArray (time, band, y, x), of a "
            "Dataset of bands by .to_dataarray('band')"
        )
    clear = cube.coords.get("clear")
    if "time" not in cube.dims:
        cube = cube.expand_dims("time")
        clear = clear.expand_dims("time") if clear is not None else None
    odd = [str(dim) for dim in cube.dims if dim not in DIMS]
    if odd:
        raise ModelError(
            f"the cube has the dimension {odd[0]}; rename it to, or select along it until only, "
            "time, band, y and x are left"
        )
    absent = set(DIMS) - set(map(str, cube.dims))
    if absent:
        raise ModelError(f"the cube lacks the dimension {min(absent)}")
    _check_clear(clear)
    x, y, gsd_m = _find_centres(cube)
    pixels = _choose_bands(cube, bands).transpose(*DIMS)
    return GivenCube(
        pixels=pixels.drop_vars(list(pixels.coords)),
        clear=None if clear is None else clear.drop_vars(list(clear.coords)).transpose(
            "time", "y", "x"),
        nodata=_find_nodata(cube), scaling=_check_units(cube), x=x, y=y, gsd_m=gsd_m,
        crs=_find_crs(cube),
    )  # fmt: skip


def _check_clear(clear: xr.DataArray | None) -> None:
    if clear is not None and (clear.dtype != bool or set(clear.dims) != {"time", "y", "x"}):
        raise ModelError(
            f"the cube's coordinate clear is {clear.dtype} ({', '.join(map(str, clear.dims))}); "
            "give bool (time, y, x), or drop it"
        )


def _choose_bands(cube: xr.DataArray, bands: Sequence[str]) -> xr.DataArray:
    names = [str(name) for name in cube["band"].values]
    for band in bands:
        if names.count(band) != 1:
            what = "has twice" if band in names else "lacks"
            raise ModelError(f"the model needs the band {band}, which the cube {what}")
    return cube.isel(band=[names.index(band) for band in bands])


def _check_units(cube: xr.DataArray) -> tuple[float, float] | None:
    """Return the scale and offset of DN that a cube declares."""
    declared = cube.attrs.get("dn_scale"), cube.attrs.get("dn_offset")
    if cube.dtype == np.uint16 and declared != (DN_SCALE, DN_OFFSET):
        raise ModelError(
            f"a uint16 cube needs attrs dn_scale={DN_SCALE} and dn_offset={DN_OFFSET}; convert "
            "other pixels to float reflectance first"
        )
    if cube.dtype != np.uint16 and cube.dtype.kind != "f":
        raise ModelError(f"the cube is {cube.dtype}; give uint16 DN or float reflectance")
    if declared == (None, None):
        return None
    scale, offset = declared
    if not (_is_number(scale) and _is_number(offset)):
        raise ModelError(f"the cube's dn_scale and dn_offset are {declared}; give both as numbers")
    return float(scale), float(offset)


def _find_nodata(cube: xr.DataArray) -> tuple[float, ...]:
    """Return the values that a cube declares to be no data."""
    # What was decoded has no such value any more; its encoding tells of the file.
    is_decoded = {"scale_factor", "add_offset"} & set(cube.encoding)
    places = (cube.attrs,) if is_decoded else (cube.attrs, cube.encoding)
    names = ("_FillValue", "missing_value", "fill_value", "nodata")
    values = [place.get(name) for place in places for name in names]
    declared = {float(value) for value in values if _is_number(value)}
    if "dn_scale" in cube.attrs:
        declared.discard(NODATA)  # it tells of DN, of which 0 never is data
    return tuple(sorted(value for value in declared if np.isfinite(value)))


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, numbers.Real | np.number) and not isinstance(value, bool)


def _find_centres(
    cube: xr.DataArray,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Return the centres of columns and rows, and the size of pixels."""
    if not {"x", "y"} <= set(cube.coords):
        raise ModelError("the cube lacks coordinates x and y, so its place is unknown")
    if min(cube.sizes["y"], cube.sizes["x"]) < 2:
        raise ModelError("the cube needs at least two pixels along x and y")
    if any(cube[name].dtype.kind not in "iuf" for name in ("x", "y")):
        raise ModelError("the cube's coordinates x and y are no numbers")
    x, y = (np.asarray(cube[name].values, dtype=np.float64) for name in ("x", "y"))
    steps = np.diff(x), -np.diff(y)
    gsd_m = float(steps[0][0])
    if not gsd_m > 0 or any(not np.allclose(step, gsd_m, rtol=STEP_TOLERANCE) for step in steps):
        raise ModelError(
            "the cube needs square pixels, x rising and y falling by the same step; sort or "
            "resample it first"
        )
    for transform in _list_transforms(cube):
        sides = transform.a, -transform.e
        offsets = x[0] - transform.c, transform.f - y[0]
        if all(_is_corner(*pair, gsd_m) for pair in zip(offsets, sides, strict=True)):
            return x + sides[0] / 2, y - sides[1] / 2, gsd_m
    return x, y, gsd_m


def _list_transforms(cube: xr.DataArray) -> list[Affine]:
    """Return the transforms that a cube declares: stackstac's, and that of its CRS's variable."""
    transforms = []
    declared = cube.attrs.get("transform")
    if isinstance(declared, Iterable) and not isinstance(declared, str):
        transforms.append(Affine(*itertools.islice(declared, 6)))
    written = cube[cube.rio.grid_mapping].attrs.get("GeoTransform") if _has_mapping(cube) else None
    if written is not None:
        transforms.append(Affine.from_gdal(*map(float, str(written).split())))
    return transforms


def _has_mapping(cube: xr.DataArray) -> bool:
    return cube.rio.grid_mapping in cube.coords


def _is_corner(offset_m: float, side_m: float, gsd_m: float) -> bool:
    """Tell whether a coordinate belongs to a corner of the pixels that a transform declares.

    Parts of a cube keep its transform, and so do means of squares of its pixels, which lie half
    a declared pixel before their centres if they were taken of corners.

    Parameters
    ----------
    offset_m
        From the declared edge to the first coordinate.
    side_m
        Of the pixels that the transform declares.
    gsd_m
        Of the cube's pixels.
    """
    if side_m <= 0:
        return False
    factor, halves = gsd_m / side_m, 2 * offset_m / side_m
    if max(abs(factor - round(factor)), abs(halves - round(halves))) > HALVES_TOLERANCE:
        return False
    return (round(halves) - round(factor)) % 2 == 1


def _find_crs(cube: xr.DataArray) -> CRS | None:
    """Return the CRS that a cube declares, as rioxarray, stackstac or its items do."""
    named = [cube.coords[name] for name in EPSG_COORDINATES if name in cube.coords]
    codes = [str(value.item()).upper().removeprefix("EPSG:") for value in named if value.size == 1]
    try:
        if cube.rio.crs is not None:
            return cube.rio.crs
        return CRS.from_epsg(int(codes[0])) if codes else None
    except (CRSError, ValueError) as error:
        raise ModelError(f"the cube's CRS cannot be understood ({error})") from None
