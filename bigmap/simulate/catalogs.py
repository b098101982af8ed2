"""Other forms of a list of items: a static catalogue and stac-geoparquet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import geopandas
import pandas as pd
import shapely

from bigmap.files import replace_whole, write_and_sync

_LICENCE = "Apache-2.0"


def write_static_catalog(items: Path, folder: Path) -> Path:
    """Write a static STAC catalogue of a list of items.

    Parameters
    ----------
    items
        From :func:`bigmap.simulate.scenes.write_scenes`; the files stay where they are.
    folder
        Gets ``catalog.json``, one folder for the collection and one file for each item.

    Returns
    -------
    pathlib.Path
        ``catalog.json``.
    """
    features = _read_items(items)
    collection = features[0]["collection"]
    target = folder / collection
    for original in features:
        feature = _move(original, items.parent, target)
        feature["links"] = [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "collection.json", "type": "application/json"},
            {"rel": "collection", "href": "collection.json", "type": "application/json"},
        ]
        write_and_sync(target / f"{feature['id']}.json", json.dumps(feature).encode())
    write_and_sync(target / "collection.json", json.dumps(_describe_collection(features)).encode())
    catalog = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "simulated-sentinel-2",
        "description": "Simulated Sentinel-2 scenes",
        "links": [
            {"rel": "root", "href": "catalog.json", "type": "application/json"},
            {"rel": "child", "href": f"{collection}/collection.json", "type": "application/json"},
        ],
    }
    write_and_sync(folder / "catalog.json", json.dumps(catalog).encode())
    return folder / "catalog.json"


def write_geoparquet(items: Path, file: Path) -> Path:
    """Write a list of items as stac-geoparquet 1.0, with hrefs relative to the file.

    Returns
    -------
    pathlib.Path
        ``file``.
    """
    rows = []
    for feature in _read_items(items):
        moved = _move(feature, items.parent, file.parent)
        properties = moved.pop("properties")
        bbox = dict(zip(("xmin", "ymin", "xmax", "ymax"), moved.pop("bbox"), strict=True))
        geometry = shapely.geometry.shape(moved.pop("geometry"))
        # An empty list has no type that Parquet could keep.
        moved["links"] = [{"rel": "self", "href": f"{moved['id']}.json"}]
        rows.append(moved | properties | {"bbox": bbox, "geometry": geometry})
    frame = geopandas.GeoDataFrame(rows, geometry="geometry", crs="OGC:CRS84")
    for name in ("datetime", "created", "updated", "s2:generation_time", "processing:datetime"):
        if name in frame:
            frame[name] = pd.to_datetime(frame[name], utc=True)
    with replace_whole(file) as temporary:
        frame.to_parquet(temporary, index=False)
    return file


def _read_items(items: Path) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = json.loads(items.read_text())["features"]
    return features


def _move(feature: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    """Make the hrefs of an item relative to another folder."""
    assets = {
        name: asset | {"href": _relate(source / asset["href"], target)}
        for name, asset in feature["assets"].items()
    }
    return feature | {"assets": assets}


def _relate(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def _describe_collection(features: list[dict[str, Any]]) -> dict[str, Any]:
    boxes = list(zip(*(feature["bbox"] for feature in features), strict=True))
    times = sorted(feature["properties"]["datetime"] for feature in features)
    extent = [min(boxes[0]), min(boxes[1]), max(boxes[2]), max(boxes[3])]
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": features[0]["collection"],
        "description": "Simulated Sentinel-2 L2A scenes",
        "license": _LICENCE,
        "extent": {
            "spatial": {"bbox": [extent]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *(
                {"rel": "item", "href": f"{feature['id']}.json", "type": "application/geo+json"}
                for feature in features
            ),
        ],
    }
