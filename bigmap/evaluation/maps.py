"""A finished map, counted block by block: small counts come back, and no pixel is counted twice.

A block is whole shards of the map. What happens to a pixel is decided shard by shard (its labels
are read, an outline is rasterised), so that the counts do not depend on the size of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from bigmap.errors import OutputError
from bigmap.grid import ROI, Area, intersect, shape_of, tiles_of
from bigmap.labels import LabelReader
from bigmap.metrics import ConfusionMatrix, InstanceParts
from bigmap.models import ClassEntry
from bigmap.models.base import CLASS
from bigmap.store import NO_MAP, open_map, open_store, read_region, tell_damage

STRIP_PX = 512
"""Rows that are compared at once: counting takes several times the room of the pixels."""
LEVELS = 256

Item = TypeVar("Item")
Result = TypeVar("Result")
IntArray = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]


class BlockMapper(Protocol):
    """Does a task for each item and yields the results in any order, such as ``map``."""

    def __call__(
        self, task: Callable[[Item], Result], items: Iterable[Item], /
    ) -> Iterable[Result]:
        """Do the task for each item."""


@dataclass(frozen=True)
class MapGrid:
    """One grid of a map: the whole, or that of a UTM zone."""

    path: str
    """Of the group that holds the layer of classes."""
    crs: str
    """As ``EPSG:`` code where there is one, else as WKT."""
    transform: Affine
    """From pixels (column, row) to metres."""
    shape: tuple[int, int]
    """(y, x) in pixels."""
    shard_px: tuple[int, int]
    """(y, x)."""
    legend: tuple[ClassEntry, ...]
    nodata: int
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Of the whole map."""

    @property
    def pixel_m2(self) -> float:
        """Area of a pixel on the grid."""
        return float(abs(self.transform.a * self.transform.e))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        return self.bounds_of((slice(0, self.shape[0]), slice(0, self.shape[1])))

    def bounds_of(self, place: ROI) -> tuple[float, float, float, float]:
        """Return left, bottom, right, top of a region of pixels, in metres."""
        rows, cols = place
        a, _, left, _, e, top = self.transform[:6]
        return (
            left + a * cols.start,
            top + e * rows.stop,
            left + a * cols.stop,
            top + e * rows.start,
        )

    def geobox(self, place: ROI) -> GeoBox:
        """Return the GeoBox of a region of pixels."""
        a, e = self.transform.a, self.transform.e
        left, _, _, top = self.bounds_of(place)
        return GeoBox(shape_of(place), Affine(a, 0, left, 0, e, top), self.crs)

    def tiles(self, place: ROI | None = None, *, shards: int = 1) -> Iterator[ROI]:
        """Yield squares of so many shards that touch a region, cut at the map's edge."""
        whole = slice(0, self.shape[0]), slice(0, self.shape[1])
        assert self.shard_px[0] == self.shard_px[1], "shards of a map are squares"
        for tile in tiles_of(place or whole, self.shard_px[0] * shards):
            yield intersect(tile, whole)

    def open_layer(self) -> Any:
        """Open the layer of classes as a Zarr array (y, x)."""
        with tell_damage(self.path, missing=NO_MAP):
            return zarr.open_group(open_store(self.path, read_only=True), mode="r")[CLASS.name]

    def read(self, layer: Any, place: ROI) -> UInt8Array:
        """Read a region of :meth:`open_layer`; names a shard that is damaged."""
        return read_region(layer, place, path=self.path)


def open_grids(path: str) -> list[MapGrid]:
    """Open a map of classes: one grid, or one for each UTM zone that has a map.

    Raises
    ------
    OutputError
        If there is no map, or it has no classes.
    """
    opened = open_map(path)
    attributes = {str(key): value for key, value in opened.attrs.items()}
    if isinstance(opened, xr.DataTree):
        return [
            _read_grid(f"{path}/{name}", node.to_dataset(), attributes)
            for name, node in opened.children.items()
        ]
    return [_read_grid(path, opened, attributes)]


def _read_grid(path: str, dataset: xr.Dataset, attributes: dict[str, Any]) -> MapGrid:
    if CLASS.name not in dataset:
        raise OutputError(
            f"--map {path}: has no layer {CLASS.name}, only {', '.join(map(str, dataset))}; "
            "images are scored on chips"
        )
    layer = dataset[CLASS.name]
    values = layer.attrs["flag_values"]
    names = [name.replace("_", " ") for name in layer.attrs["flag_meanings"].split()]
    colours = layer.attrs.get("flag_colors", "").split() or ["#808080"] * len(names)
    legend = tuple(
        ClassEntry(int(value), name, colour)
        for value, name, colour in zip(np.atleast_1d(values), names, colours, strict=True)
    )
    step = layer.encoding.get("shards") or layer.encoding["chunks"]
    height, width = layer.shape
    crs = dataset.rio.crs
    return MapGrid(
        path=path,
        crs=f"EPSG:{code}" if (code := crs.to_epsg()) else crs.to_wkt(),
        transform=dataset.rio.transform(),
        shape=(height, width),
        shard_px=tuple(step),
        legend=legend,
        nodata=int(layer.attrs["nodata"]),
        attributes=attributes,
    )


@dataclass
class MapCounts:
    """What was counted of a map; the sum of two is that of both."""

    class_px: IntArray
    """Mapped pixels of each class of the legend."""
    matrix: ConfusionMatrix
    instances: InstanceParts | None = None

    def merge(self, other: MapCounts) -> None:
        """Add what was counted elsewhere."""
        self.class_px += other.class_px
        self.matrix.merge(other.matrix)
        if self.instances is not None and other.instances is not None:
            self.instances.merge(other.instances)


@dataclass(frozen=True)
class CountTask:
    """Counts the pixels of one block; what a worker does."""

    grid: MapGrid
    area: Area | None = None
    """Only pixels whose centre lies inside count."""
    labels: LabelReader | None = None
    """Without any only the map's own classes are counted."""
    with_instances: bool = False

    def empty(self) -> MapCounts:
        """Return counts of nothing."""
        values = [entry.value for entry in self.grid.legend]
        return MapCounts(
            np.zeros(len(values), dtype=np.int64),
            ConfusionMatrix(values, nodata=self.grid.nodata),
            InstanceParts() if self.with_instances else None,
        )

    def __call__(self, place: ROI) -> MapCounts:
        """Count a block, which is whole shards."""
        counts = self.empty()
        layer = self.grid.open_layer()
        for shard in self.grid.tiles(place):
            self._add_shard(counts, self.grid.read(layer, shard), shard)
        return counts

    def _add_shard(self, counts: MapCounts, classes: UInt8Array, shard: ROI) -> None:
        if self.area is not None:
            classes = np.where(self._mask(self.area, shard), classes, self.grid.nodata)
        number = np.bincount(classes.ravel(), minlength=LEVELS)
        if number[self.grid.nodata] == classes.size:
            return
        values = [entry.value for entry in self.grid.legend]
        unknown = np.setdiff1d(np.flatnonzero(number), [*values, self.grid.nodata])
        if unknown.size:
            raise OutputError(
                f"--map {self.grid.path}: holds the value {unknown[0]}, which is none of its "
                "legend's; it is damaged, or not of bigmap"
            )
        counts.class_px += number[values]
        if self.labels is None:
            return
        reader = self.labels.near(self.grid.bounds_of(shard))
        truth = reader.read(self.grid.geobox(shard))
        for row in range(0, len(classes), STRIP_PX):
            strip = slice(row, row + STRIP_PX)
            counts.matrix.update(classes[strip], truth[strip])
        if counts.instances is not None:
            second = values[1]
            counts.instances.update(
                classes == second,
                truth == second,
                origin=(shard[0].start, shard[1].start),
                valid=(classes != self.grid.nodata) & (truth != self.grid.nodata),
            )

    def _mask(self, area: Area, shard: ROI) -> npt.NDArray[np.bool_]:
        """Rasterise the area on one shard, (y, x)."""
        geobox = self.grid.geobox(shard)
        box = shapely.box(*self.grid.bounds_of(shard))
        mask = np.ones(shape_of(shard), dtype=bool)
        for part in area.parts:
            if part.covers(box):
                continue
            if not part.intersects(box):
                return np.zeros(mask.shape, dtype=bool)
            mask &= rasterio.features.geometry_mask(
                [part], mask.shape, geobox.transform, invert=True
            )
        return mask


def count_map(
    task: CountTask,
    run: BlockMapper,
    *,
    block_shards: int = 1,
    advance: Callable[[int, int], None] | None = None,
) -> MapCounts:
    """Count one grid of a map.

    Parameters
    ----------
    task
        What is done with each block.
    run
        Does it, such as :func:`bigmap.clusters.mapping.map_on` of a cluster, or ``map``.
    block_shards
        Side of a block, in shards; it changes no count.
    advance
        Told how many blocks are done, and of how many.
    """
    blocks = list_blocks(task.grid, task.area, block_shards=block_shards)
    total = task.empty()
    for done, counts in enumerate(run(task, blocks), start=1):
        total.merge(counts)
        if advance is not None:
            advance(done, len(blocks))
    return total


def list_blocks(grid: MapGrid, area: Area | None, *, block_shards: int = 1) -> list[ROI]:
    """Return the blocks of a map that an area meets, row by row."""
    blocks = list(grid.tiles(shards=block_shards))
    if area is None or not blocks:
        return blocks
    meets = area.meets(np.array([grid.bounds_of(block) for block in blocks]))
    return [block for block, is_met in zip(blocks, meets, strict=True) if is_met]


def join_area(area: Area | None, geometry: BaseGeometry | None) -> Area | None:
    """Return the pixels of both an area and a geometry in the same CRS; None is everywhere."""
    parts: Sequence[BaseGeometry] = (*(area.parts if area else ()),)
    if geometry is not None:
        parts = (*parts, geometry)
    return Area(tuple(parts)) if parts else None
