"""Recipes on the real scenes, and the same maps computed by other means."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

CLEAR = (2, 4, 5, 6, 7, 11)
BBOX = [15.0, 45.1, 16.4, 46.95]
"""Both tiles, without their corners."""


def raw_recipe(data: Path, output: Path, **changes):
    """A recipe over both tiles in EPSG:3035 at 100 m; ``part__field=value`` changes it."""
    raw = {
        "name": "real",
        "area": {"bbox": BBOX},
        "grid": {
            "crs": "EPSG:3035", "gsd_m": 100, "core_px": 64, "cell_px": 512, "block_px": 1024,
            "shard_px": 512, "chunk_px": 128,
        },
        "source": {
            "kind": "files", "files": [str(data / "sentinel-2-l2a/items.json")],
            "start": "2023-08-01", "end": "2023-08-31",
        },
        "dates": {"max_per_cell": 5, "min_clear_percent": 0},
        "model": {"name": "ndvi", "options": {"upscale": 1}},
        "output": {"path": str(output), "overviews": 2},
        "cluster": {"workers": 1},
    }  # fmt: skip
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            raw.setdefault(part, {})[field] = value
        else:
            raw[part] = value
    return raw


def items_by_day(data: Path) -> dict[dt.date, list[Path]]:
    """Folders of the products of each day, in the order of their acquisition."""
    folder = data / "sentinel-2-l2a"
    features = json.loads((folder / "items.json").read_text())["features"]
    features.sort(key=lambda item: (item["properties"]["datetime"], item["id"]))
    days: dict[dt.date, list[Path]] = {}
    for item in features:
        day = dt.datetime.fromisoformat(item["properties"]["datetime"]).date()
        days.setdefault(day, []).append(folder / item["id"])
    return dict(sorted(days.items()))


def warp_whole(file: Path, transform: Affine, shape, method: str, *, crs: str) -> np.ndarray:
    """Warp a whole file by GDAL, its coordinates within a ten-thousandth of a pixel."""
    gsd_m = transform.a
    with (
        rasterio.open(file) as source,
        WarpedVRT(
            source, crs=crs, transform=transform, height=shape[0], width=shape[1],
            resampling=Resampling[method], src_nodata=0, nodata=0, tolerance=1e-4,
            XSCALE=120 / gsd_m, YSCALE=120 / gsd_m,
        ) as vrt,
    ):  # fmt: skip
        return vrt.read(1)


def mean_ndvi(dates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NDVI averaged over clear dates in float64; the items' offset is removed already.

    ``dates`` yields, per day, lists of (red, nir, scl) arrays of its items in order. Returns the
    mean, the count, and how much the mean moves if one DN is off by one.
    """
    total = count = slack = 0
    for items in dates:
        taken = None
        for red, nir, scl in items:
            has_data = (red > 0) & (nir > 0) & (scl > 0)
            if taken is None:
                taken, picked = np.zeros(red.shape, bool), np.zeros((3, *red.shape))
            new = has_data & ~taken
            picked[:, new] = np.stack([red, nir, scl])[:, new]
            taken |= has_data
        red, nir, scl = picked
        # Earth Search has removed the offset: the files' DN are reflectance times 10,000.
        clear = taken & np.isin(scl, CLEAR)
        ndvi = np.where(clear, (nir - red) / np.maximum(nir + red, 1), 0)
        total = total + ndvi
        count = count + clear
        slack = slack + np.where(clear, 2.0 / np.maximum(nir + red, 1), 0)
    return total / np.maximum(count, 1), count, slack / np.maximum(count, 1)
