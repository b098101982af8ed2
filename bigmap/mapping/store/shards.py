"""Shards: what one task writes whole, and what a map must hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from bigmap import grid
from bigmap.errors import OutputError
from bigmap.files import locate
from bigmap.grid import ROI
from bigmap.mapping.store.template import MapTemplate
from bigmap.mapping.store.zarr_stores import DAMAGE, NO_MAP, open_store, tell_damage

MOST_CHUNKS = 2**22
"""Along an axis of an array."""


@dataclass(frozen=True)
class ShardKey:
    """One object of the map: its key in the store and its size in bytes."""

    key: str
    size_bytes: int


class MapWriter:
    """Writes regions of whole shards of one level and reads them back."""

    def __init__(self, path: str, *, level: int = 0) -> None:
        self.path = path
        self.level = level
        self.prefix = f"{level}/" if level else ""
        with tell_damage(path, missing=NO_MAP):
            root = zarr.open_group(open_store(path), mode="r+")
            group = root[str(level)] if level else root
        assert isinstance(group, zarr.Group)
        self.group = group

    def write(self, layers: Mapping[str, npt.NDArray[Any]], place: ROI) -> list[ShardKey]:
        """Write all layers of a region and check what was written.

        Parameters
        ----------
        layers
            By name, (y, x) or (channel, y, x).
        place
            ``(rows, cols)`` in pixels of the level: whole shards, or up to the map's edge.

        Returns
        -------
        list of ShardKey
            The objects that hold the region; a shard that is all nodata has none.

        Raises
        ------
        OutputError
            If an object cannot be written, or does not read back as it was written.
        """
        try:
            for name, values in layers.items():
                array = self._array(name)
                self._check_place(array, place)
                try:
                    array[(..., *place)] = values
                except DAMAGE:
                    # Zarr reads a shard before it replaces it, and cannot where it is damaged.
                    self._remove_shards(name, place)
                    array[(..., *place)] = values
            for name, values in layers.items():
                if not np.array_equal(np.asarray(self._array(name)[(..., *place)]), values):
                    raise OutputError(f"{self.path}: {name} does not read back as written")
            return list(self._find_shards(layers, place))
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error})") from error

    def read(self, name: str, place: ROI) -> npt.NDArray[Any]:
        """Read a region of a layer, (..., y, x)."""
        return read_region(self._array(name), place, path=self.path)

    def _array(self, name: str) -> zarr.Array[Any]:
        with tell_damage(f"{self.path}/{self.prefix}{name}", missing=NO_MAP):
            array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _check_place(self, array: zarr.Array[Any], place: ROI) -> None:
        assert array.shards is not None
        for part, step, size in zip(place, array.shards[-2:], array.shape[-2:], strict=True):
            whole = part.start % step == 0 and (part.stop % step == 0 or part.stop == size)
            assert whole, f"{place} is not made of whole shards of {step} px"

    def _remove_shards(self, name: str, place: ROI) -> None:
        filesystem, root = locate(self.path)
        for shard in self._find_shards({name: None}, place):
            filesystem.rm_file(f"{root}/{shard.key}")

    def _find_shards(self, names: Mapping[str, Any], place: ROI) -> Iterator[ShardKey]:
        filesystem, root = locate(self.path)
        for name in names:
            array = self._array(name)
            assert array.shards is not None
            for below in keys_of(name, place, shard_px=array.shards[-1], lead=array.ndim - 2):
                key = f"{self.prefix}{below}"
                try:
                    yield ShardKey(key, int(filesystem.size(f"{root}/{key}")))
                except FileNotFoundError:
                    continue


def keys_of(name: str, place: ROI, *, shard_px: int, lead: int) -> Iterator[str]:
    """Yield the keys of an array's shards in a region, in pixels of the array."""
    rows, cols = (range(part.start // shard_px, math.ceil(part.stop / shard_px)) for part in place)
    for row in rows:
        for col in cols:
            yield f"{name}/c/{'0/' * lead}{row}/{col}"


def list_shard_keys(template: MapTemplate, block: ROI) -> Iterator[str]:
    """Yield the keys of the objects that a block of the input grid may have."""
    place = grid.scale(grid.relative(block, template.extent), template.lattice.upscale)
    for layer in template.layers:
        yield from keys_of(
            layer.name, place, shard_px=template.lattice.shard_px, lead=int(bool(layer.channels))
        )


def max_shard_bytes(template: MapTemplate) -> int:
    """Return the size of the largest shard before compression."""
    pixels = template.lattice.shard_px**2
    return max(
        pixels * max(1, len(layer.channels)) * np.dtype(layer.dtype).itemsize
        for layer in template.layers
    )


def check_shards(path: str, shards: Iterable[ShardKey]) -> list[str]:
    """Return the keys of recorded objects that are missing or have another size."""
    filesystem, root = locate(path)
    filesystem.invalidate_cache()
    shards = list(shards)
    if not shards:
        return []
    found = filesystem.find(root, detail=True)
    sizes = {name[len(root) :].lstrip("/"): entry["size"] for name, entry in found.items()}
    return [shard.key for shard in shards if sizes.get(shard.key) != shard.size_bytes]


def read_region(array: zarr.Array[Any], place: ROI, *, path: str) -> npt.NDArray[Any]:
    """Read a region of an array of a map, (..., y, x).

    Raises
    ------
    OutputError
        If a shard is damaged; names it.
    """
    try:
        return np.asarray(array[(..., *place)])
    except DAMAGE as error:
        reason, shard = error, f"{array.path} at {place}"
    assert array.shards is not None
    step = array.shards[-1]
    for key in keys_of(array.path, place, shard_px=step, lead=array.ndim - 2):
        row, col = (int(index) * step for index in key.split("/")[-2:])
        try:
            array[..., row : row + step, col : col + step]
        except DAMAGE as error:
            reason, shard = error, key
            break
    raise OutputError(
        f"{path}/{shard}: is damaged ({reason}); remove it, and make it again with --resume"
    )
