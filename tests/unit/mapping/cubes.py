"""Cubes of a few pixels, and their prediction in small windows."""

from __future__ import annotations

import numpy as np
import xarray as xr

import bigmap


def make_cube(*, bands=("blue", "green", "red", "nir"), time=3, size=70, dtype="uint16", seed=0):
    """Return a cube of DN, or of reflectance where ``dtype`` is a float, with some clouds."""
    rng = np.random.default_rng(seed)
    shape = (time, len(bands), size, size)
    dn = rng.integers(1100, 5000, shape).astype(np.uint16)
    x = 400_000 + 10 * (np.arange(size) + 0.5)
    y = 4_600_000 - 10 * (np.arange(size) + 0.5)
    coords = {
        "time": np.array(["2024-05-01", "2024-05-06", "2024-05-11"][:time], "datetime64[ns]"),
        "band": list(bands), "y": y, "x": x,
        "clear": (("time", "y", "x"), rng.random((time, size, size)) > 0.2),
    }  # fmt: skip
    cube = xr.DataArray(
        dn, dims=("time", "band", "y", "x"), coords=coords,
        attrs={"dn_scale": 1e-4, "dn_offset": -0.1, "nodata": 0},
    )  # fmt: skip
    if dtype == "uint16":
        return cube
    return (cube * 1e-4 - 0.1).astype(dtype)


def predict(cube, model, **settings):
    """Predict a cube in cores of 16 px and cells of 32 px."""
    return bigmap.predict(cube, model, core_px=16, cell_px=32, **settings).compute(
        scheduler="synchronous"
    )
