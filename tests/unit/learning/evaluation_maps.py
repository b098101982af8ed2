"""Small maps, and labels that know each pixel by its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigmap.grid import Lattice
from bigmap.mapping.store.shards import MapWriter
from bigmap.mapping.store.template import LayerTemplate, MapTemplate, complete_map, create_root

GSD_M = 5.0
"""Of the map; the input grid has 10 m."""
CROPLAND = {
    "long_name": "Class", "flag_values": [0, 1], "flag_meanings": "other cropland",
    "flag_colors": "#d9d2c5 #3f8f29",
}  # fmt: skip


def write_map(
    path: Path, classes: Any, *, shard_px: int = 32, crs: str = "EPSG:25831", legend: Any = None,
    corner_px: tuple[int, int] = (-320, 64), attributes: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write a map of classes, whose sides are multiples of the shard."""
    lattice = Lattice(crs, 2 * GSD_M, 8, 16, shard_px // 2, 2, shard_px, 16)
    rows, cols = (side // 2 for side in classes.shape)
    top, left = corner_px
    template = MapTemplate(
        lattice=lattice,
        extent=(slice(top, top + rows), slice(left, left + cols)),
        layers=(LayerTemplate("class", "uint8", 255, legend or CROPLAND),),
        overviews=0,
        attributes={"title": "test", **(attributes or {})},
    )
    complete_map(str(path), template)
    height, width = classes.shape
    MapWriter(str(path)).write({"class": classes}, (slice(0, height), slice(0, width)))
    return str(path)


def write_zones(path: Path, maps: dict[str, Any]) -> str:
    """Write a map of UTM zones: classes by zone, such as ``31n``."""
    create_root(str(path), {"title": "zones"}, [f"utm{zone}" for zone in maps])
    for zone, classes in maps.items():
        write_map(path / f"utm{zone}", classes, crs=f"EPSG:326{zone[:2]}")
    return str(path)


@dataclass(frozen=True)
class PlaceLabels:
    """Labels that are a function of the place alone: wrong reading gives other ones."""

    classes: int = 2

    def near(self, bounds: Any) -> PlaceLabels:
        return self

    def read(self, geobox: Any) -> Any:
        height, width = geobox.shape
        a, _, left, _, e, top = tuple(geobox.transform)[:6]
        col = np.rint((left + a * (np.arange(width) + 0.5)) / GSD_M - 0.5).astype(np.int64)
        row = np.rint((top + e * (np.arange(height) + 0.5)) / -GSD_M - 0.5).astype(np.int64)
        mixed = (row[:, None] * 73_856_093) ^ (col[None, :] * 19_349_663)
        drawn = (mixed >> 3) % (self.classes + 1)
        return np.where(drawn == self.classes, 255, drawn).astype(np.uint8)
