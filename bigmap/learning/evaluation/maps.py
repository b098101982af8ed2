"""A finished map, counted shard by shard: small counts come back, none of its pixels twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from shapely.geometry.base import BaseGeometry

from bigmap.errors import OutputError
from bigmap.grid import ROI, Area, Lattice, area_mask
from bigmap.learning.labels.reader import LabelReader
from bigmap.learning.metrics import ConfusionMatrix, InstanceParts
from bigmap.mapping.store.opening import open_map
from bigmap.mapping.store.shards import read_region
from bigmap.mapping.store.zarr_stores import NO_MAP, open_store, tell_damage
from bigmap.models import ClassEntry
from bigmap.models.base import CLASS

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
    lattice: Lattice
    """Of its pixels, anchored at its upper left corner; cells and blocks are its shards."""
    shape: tuple[int, int]
    """(y, x) in pixels."""
    legend: tuple[ClassEntry, ...]
    nodata: int
    attributes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Of the whole map."""

    @property
    def extent(self) -> ROI:
        """All of its pixels."""
        return slice(0, self.shape[0]), slice(0, self.shape[1])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        return self.lattice.bounds(self.extent)

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
    shard_px, other_px = layer.encoding.get("shards") or layer.encoding["chunks"]
    assert shard_px == other_px, "shards of a map are squares"
    height, width = layer.shape
    crs, transform = dataset.rio.crs, dataset.rio.transform()
    return MapGrid(
        path=path,
        lattice=Lattice(
            crs=f"EPSG:{code}" if (code := crs.to_epsg()) else crs.to_wkt(),
            gsd_m=transform.a,
            core_px=shard_px,
            cell_px=shard_px,
            block_px=shard_px,
            upscale=1,
            shard_px=shard_px,
            chunk_px=shard_px,
            anchor_m=(transform.c, transform.f),
        ),
        shape=(height, width),
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
    """Counts the pixels of one shard; what a worker does."""

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

    def __call__(self, shard: ROI) -> MapCounts:
        """Count a shard of the map."""
        counts = self.empty()
        self._add(counts, self.grid.read(self.grid.open_layer(), shard), shard)
        return counts

    def _add(self, counts: MapCounts, classes: UInt8Array, shard: ROI) -> None:
        if self.area is not None:
            mask = area_mask(self.area, self.grid.lattice, shard)
            classes = np.where(mask, classes, self.grid.nodata)
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
        reader = self.labels.near(self.grid.lattice.bounds(shard))
        truth = reader.read(self.grid.lattice.geobox(shard))
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


def count_map(
    task: CountTask,
    run: BlockMapper,
    *,
    advance: Callable[[int, int], None] | None = None,
) -> MapCounts:
    """Count one grid of a map.

    Parameters
    ----------
    task
        What is done with each shard.
    run
        Does it, such as :func:`bigmap.clusters.mapping.map_on` of a cluster, or ``map``.
    advance
        Told how many shards are done, and of how many.
    """
    shards = list_shards(task.grid, task.area)
    total = task.empty()
    for done, counts in enumerate(run(task, shards), start=1):
        total.merge(counts)
        if advance is not None:
            advance(done, len(shards))
    return total


def list_shards(grid: MapGrid, area: Area | None) -> list[ROI]:
    """Return the shards of a map that an area meets, row by row."""
    shards = list(grid.lattice.blocks(grid.extent))
    if area is None:
        return shards
    return list(compress(shards, area.meets(grid.lattice.bounds_of(shards))))


def join_area(area: Area | None, geometry: BaseGeometry | None) -> Area | None:
    """Return the pixels of both an area and a geometry in the same CRS; None is everywhere."""
    parts: Sequence[BaseGeometry] = (*(area.parts if area else ()),)
    if geometry is not None:
        parts = (*parts, geometry)
    return Area(tuple(parts)) if parts else None
