"""Tiny made-up scenes for tests that need files but no picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds

SIDE_M = 109_800
PIXEL_M = 1_200
BANDS = {"blue": 600, "green": 800, "red": 900, "nir": 3_500}


def write_tiny_scenes(
    folder: Path,
    *,
    days=("2024-05-03", "2024-05-08"),
    pixel_m=PIXEL_M,
    seed=0,
    left=400_000,
    epsg=32631,
) -> Path:
    """Write one tile on some days, with coarse pixels, and return its items."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    top = 4_700_000 - 60_000
    size = SIDE_M // pixel_m
    transform = Affine(pixel_m, 0, left, 0, -pixel_m, top)
    bounds = (left, top - size * pixel_m, left + size * pixel_m, top)
    west, south, east, north = transform_bounds(f"EPSG:{epsg}", "EPSG:4326", *bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    features = []
    for day in days:
        name = f"S2A_31TDF_{day.replace('-', '')}_0_L2A"
        assets = {}
        for band, level in {**BANDS, "scl": 4}.items():
            is_mask = band == "scl"
            values = np.full((size, size), level, np.uint8 if is_mask else np.uint16)
            if not is_mask:
                values += rng.integers(0, 200, values.shape).astype(np.uint16)
            file = folder / f"{name}_{band}.tif"
            with rasterio.open(
                file, "w", driver="GTiff", height=size, width=size, count=1, crs=f"EPSG:{epsg}",
                dtype=values.dtype, transform=transform, nodata=0,
            ) as target:  # fmt: skip
                target.write(values, 1)
            assets[band] = {
                "href": f"./{file.name}",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "proj:shape": [size, size],
                "proj:transform": list(transform)[:6],
                "raster:bands": [
                    {"nodata": 0, "data_type": str(values.dtype)}
                    | ({} if is_mask else {"scale": 1e-4, "offset": -0.1})
                ],
                "roles": ["data"],
            }
        features.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": name,
                "collection": "sentinel-2-l2a",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "bbox": [west, south, east, north],
                "links": [],
                "assets": assets,
                "properties": {
                    "datetime": f"{day}T10:50:31Z",
                    "created": f"{day}T20:00:00Z",
                    "platform": "sentinel-2a",
                    "proj:epsg": epsg,
                    "grid:code": "MGRS-31TDF",
                    "eo:cloud_cover": 5.0,
                    "s2:processing_baseline": "05.10",
                    "earthsearch:boa_offset_applied": True,
                },
            }
        )
    file = folder / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file
