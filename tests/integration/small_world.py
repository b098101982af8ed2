"""Three small scenes near Lleida with their items and a recipe, for tests of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml
from affine import Affine
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds

SIDE_PX = 256
TRANSFORM = Affine(10, 0, 300_000, 0, -10, 4_620_000)
"""UTM 31N; 2.56 km."""
BBOX = [0.601, 41.688, 0.612, 41.698]
"""Inside the scenes, about 1 km²."""
CLOUD = {"2024-04-01": 5.0, "2024-05-01": 20.0, "2024-06-01": 60.0}
BANDS = {"blue": 500, "green": 700, "red": 600, "nir": 3000, "scl": 4}


def write_scenes(folder: Path, *, query: str = "") -> Path:
    """Write one item a day with its bands; DN are those of Earth Search, without offset.

    ``query`` is added to the self links, like a signature.
    """
    folder.mkdir()
    features = []
    for day, cloud in CLOUD.items():
        name = f"S2A_31TCG_{day.replace('-', '')}_0_L2A"
        for band, value in BANDS.items():
            file = folder / name / f"{band}.tif"
            file.parent.mkdir(exist_ok=True)
            with rasterio.open(
                file, "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=1, nodata=0,
                dtype="uint8" if band == "scl" else "uint16", crs="EPSG:32631",
                transform=TRANSFORM,
            ) as target:  # fmt: skip
                target.write(np.full((SIDE_PX, SIDE_PX), value), 1)
        features.append(describe_scene(name, day, cloud, query))
    file = folder / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def describe_scene(name: str, day: str, cloud: float, query: str) -> dict[str, Any]:
    """Describe a scene as Earth Search would."""
    west, south, east, north = transform_bounds(
        "EPSG:32631", "EPSG:4326", *array_bounds(SIDE_PX, SIDE_PX, TRANSFORM)
    )
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [west, south, east, north],
        "properties": {
            "datetime": f"{day}T10:50:00Z",
            "proj:epsg": 32631,
            "eo:cloud_cover": cloud,
            "s2:processing_baseline": "05.10",
            "earthsearch:boa_offset_applied": True,
            "grid:code": "MGRS-31TCG",
        },
        "links": [{"rel": "self", "href": f"https://example.org/{name}.json{query}"}],
        "assets": {
            band: {
                "href": f"./{name}/{band}.tif",
                "proj:shape": [SIDE_PX, SIDE_PX],
                "proj:transform": list(TRANSFORM)[:6],
            }
            for band in BANDS
        },
    }


def raw_recipe(**changes: Any) -> dict[str, Any]:
    """Return a recipe of six small blocks; ``part__field=value`` changes it, ``...`` removes."""
    raw: dict[str, Any] = {
        "name": "small",
        "area": {"bbox": list(BBOX)},
        "grid": {
            "crs": "EPSG:32631", "gsd_m": 10, "core_px": 32, "cell_px": 64, "block_px": 64,
            "shard_px": 64, "chunk_px": 32,
        },
        "source": {
            "kind": "files", "files": ["scenes/items.json"], "start": "2024-03-01",
            "end": "2024-06-30",
        },
        "dates": {"min_clear_percent": 0},
        "model": {"name": "ndvi", "options": {"upscale": 1}},
        "output": {"path": "map.zarr", "overviews": 1},
        "cluster": {"workers": 1},
    }  # fmt: skip
    for key, value in changes.items():
        *parts, last = key.split("__")
        section = raw
        for part in parts:
            section = section.setdefault(part, {})
        if value is ...:
            del section[last]
        else:
            section[last] = value
    return raw


def write_recipe(path: Path, **changes: Any) -> Path:
    """Write :func:`raw_recipe` as YAML."""
    path.write_text(yaml.safe_dump(raw_recipe(**changes), sort_keys=False))
    return path
