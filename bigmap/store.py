"""The map: a Zarr v3 template, shards that one task writes, overviews, and opening it.

Level 0 lies at the root, so that ``xarray.open_zarr`` opens the map with its CRS, transform
and class names; overviews lie in the groups ``1``, ``2``, ... below. Attributes follow CF
(``flag_values``, ``grid_mapping``) and the Zarr conventions for projection, spatial
coordinates and multiscales.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rioxarray  # noqa: F401 - gives datasets their .rio
import xarray as xr
import zarr
from numcodecs import Zstd
from pyproj import CRS
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from bigmap import grid
from bigmap.errors import BigmapError, OutputError
from bigmap.files import (
    is_local,
    list_names,
    locate,
    parse_json,
    storage_errors,
    write_atomically,
)
from bigmap.grid import ROI, Lattice

COMPRESSOR = ZstdCodec(level=3, checksum=True)
"""Of all arrays: a bit that flips is an error, not another value."""
CATEGORICAL = "class"
METADATA = "zarr.json"
DAMAGE = (ValueError, TypeError, RuntimeError)
"""What Zarr and its codecs raise where a shard is not what was written."""
MOST_BYTES = 2**31
"""Of what is read at once; no codec writes more as one chunk."""
MOST_CHUNKS = 2**22
"""Along an axis of an array."""
NO_MAP = "there is no map here"
ZONES = "bigmap:zones"
"""Attribute of a map of several UTM zones: the names of its groups."""
CONVENTIONS = (
    ("multiscales", "d35379db-88df-4056-af3a-620245f8e347", "multiscales"),
    ("proj:", "f17cb550-5864-4468-aeb7-f3180cfb622f", "proj"),
    ("spatial:", "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial"),
)


@dataclass(frozen=True)
class LayerTemplate:
    """How one layer is stored; built from a model's layers."""

    name: str
    dtype: str
    nodata: int
    attributes: Mapping[str, Any]
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class MapTemplate:
    """Everything that decides the shape and the metadata of a map."""

    lattice: Lattice
    extent: ROI
    """In global pixel indices of the input grid, snapped to whole cells and shards."""
    layers: tuple[LayerTemplate, ...]
    overviews: int
    attributes: Mapping[str, Any]

    def shape(self, level: int = 0) -> tuple[int, int]:
        """Return the (y, x) size of a level, in pixels."""
        height, width = grid.shape_of(grid.scale(self.extent, self.lattice.upscale))
        return math.ceil(height / 2**level), math.ceil(width / 2**level)

    def transform(self, level: int = 0) -> tuple[float, float, float, float, float, float]:
        """Return the affine coefficients a, b, c, d, e, f of a level, in metres."""
        gsd_m = self.lattice.output_gsd_m * 2**level
        left, _, _, top = self.lattice.bounds(self.extent)
        return gsd_m, 0.0, left, 0.0, -gsd_m, top


def open_store(path: str, *, read_only: bool = False) -> LocalStore | FsspecStore:
    """Open a folder or an object-store URL as a Zarr store."""
    filesystem, root = locate(path)
    if is_local(filesystem):
        # Where a link leads: Zarr replaces what it is given.
        return LocalStore(os.path.realpath(root), read_only=read_only)
    return FsspecStore.from_url(path, read_only=read_only)


@contextmanager
def tell_damage(
    place: str, *, missing: str, error: type[BigmapError] = OutputError
) -> Iterator[None]:
    """Turn whatever Zarr and xarray raise on metadata that are damaged or gone into one sentence.

    Parameters
    ----------
    place
        What the sentence names, such as the path of a map.
    missing
        What it says where nothing is there.
    error
        Type of the error.
    """
    try:
        yield
    except FileNotFoundError:
        raise error(f"{place}: {missing}") from None
    except _damage_errors() as failure:
        reason = str(failure).partition("\n")[0][:200] or type(failure).__name__
        raise error(
            f"{place}: is damaged or cannot be read ({reason}); put it back from a copy, or make "
            "it again"
        ) from None


def _damage_errors() -> tuple[type[Exception], ...]:
    return (
        *storage_errors(), ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError,
        TypeError,
    )  # fmt: skip


def check_size(array: zarr.Array[Any]) -> None:
    """Refuse an array that is read whole, before memory is taken for it.

    Raises
    ------
    ValueError
        If it is declared larger than what can have been written.
    """
    if array.nbytes > MOST_BYTES:
        raise ValueError(f"its array {array.path} is declared with {array.nbytes} bytes")


def remove_store(path: str) -> None:
    """Remove a store, or empty the folder that a link leads to.

    Its metadata go first: who has read an object that is gone, as nodata, finds none afterwards.
    """
    filesystem, root = locate(path)
    if not filesystem.exists(root):
        return
    names = list_names(filesystem, root)
    if METADATA in names:
        filesystem.rm_file(f"{root}/{METADATA}")
    if is_local(filesystem) and Path(root).is_symlink():
        for name in set(names) - {METADATA}:
            filesystem.rm(f"{root}/{name}", recursive=True)
    elif filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def create_map(path: str, template: MapTemplate) -> None:
    """Write the metadata of an empty map, replacing what lies there.

    Raises
    ------
    OutputError
        If the place cannot be written.
    """
    remove_store(path)
    complete_map(path, template)


def complete_map(path: str, template: MapTemplate) -> list[str]:
    """Write what is missing or damaged of the metadata of a map; its shards stay.

    Returns
    -------
    list of str
        Keys of what was written; the last is that of the root, which says that all is there.

    Raises
    ------
    OutputError
        If the place cannot be written.
    """
    filesystem, root = locate(path)
    written = []
    for key, content in _describe_map(template).items():
        try:
            stored = filesystem.cat_file(f"{root}/{key}")
        except FileNotFoundError:
            stored = b""
        if not _is_intact(key, stored, content):
            write_atomically(filesystem, f"{root}/{key}", content)
            written.append(key)
    return written


def _describe_map(template: MapTemplate) -> dict[str, bytes]:
    """Return all objects of an empty map by their keys, that of the root last."""
    objects: dict[str, Any] = {}
    root = zarr.open_group(MemoryStore(objects), mode="w", zarr_format=3)
    for level in range(template.overviews + 1):
        group = root if level == 0 else root.create_group(str(level))
        _create_level(group, template, level)
    root.attrs.update(dict(template.attributes) | _multiscales(template))
    objects[METADATA] = objects.pop(METADATA)
    return {key: value.to_bytes() for key, value in objects.items()}


def _is_intact(key: str, stored: bytes, expected: bytes) -> bool:
    """Tell whether metadata can be read, or coordinates are as they should be.

    An older version may have worded the metadata otherwise, and they fit its shards.
    """
    try:
        if key.endswith(METADATA):
            found = parse_json(stored)
            has_end = key != METADATA or "multiscales" in found["attributes"]
            return bool(found["zarr_format"] == 3 and has_end)
        return bool(Zstd().decode(stored) == Zstd().decode(expected))
    except (ValueError, TypeError, KeyError, RuntimeError):
        return False


def create_root(path: str, attributes: Mapping[str, Any], groups: Sequence[str]) -> None:
    """Write the group above the maps of UTM zones; what lies there stays.

    Raises
    ------
    OutputError
        If the place cannot be written.
    """
    try:
        root = zarr.open_group(open_store(path), mode="a", zarr_format=3)
        root.attrs.update(dict(attributes) | {ZONES: list(groups)})
    except OSError as error:
        raise OutputError(f"output.path: {path}: cannot be written ({error})") from None


def has_map(path: str, arrays: Iterable[str] = ()) -> bool:
    """Tell whether a map has been created at a place, to the last of its metadata.

    Parameters
    ----------
    path
        Of the map.
    arrays
        Names of arrays whose metadata must be there too.
    """
    filesystem, root = locate(path)
    for key in (METADATA, *(f"{name}/{METADATA}" for name in arrays)):
        try:
            if not _is_intact(key, filesystem.cat_file(f"{root}/{key}"), b""):
                return False
        except OSError:
            return False
    return True


def _create_level(group: zarr.Group, template: MapTemplate, level: int) -> None:
    lattice = template.lattice
    height, width = template.shape(level)
    transform = template.transform(level)
    group.attrs.update(_spatial(template, level))
    for dim, size, step, start in zip(
        spatial_dims(level), (height, width), transform[4::-4], transform[5::-3], strict=True
    ):
        centres = start + (np.arange(size) + 0.5) * step
        axis = group.create_array(
            dim, shape=(size,), dtype="float64", chunks=(size,), dimension_names=(dim,),
            compressors=COMPRESSOR,
        )  # fmt: skip
        axis[:] = centres
        axis.attrs.update(
            {
                "units": "metre",
                "axis": dim[0].upper(),
                "standard_name": f"projection_{dim[0]}_coordinate",
            }
        )
    reference = group.create_array(
        "spatial_ref", shape=(), dtype="int64", dimension_names=(), compressors=COMPRESSOR
    )
    reference[...] = 0
    reference.attrs.update(_grid_mapping(lattice.crs, transform))
    for layer in template.layers:
        _create_layer(group, layer, template, level)


def spatial_dims(level: int) -> tuple[str, str]:
    """Return the names of the axes y and x of a level.

    An xarray.DataTree passes the axes of a group on to those below, so overviews have others.
    """
    return ("y", "x") if level == 0 else (f"y_{level}", f"x_{level}")


def _create_layer(
    group: zarr.Group, layer: LayerTemplate, template: MapTemplate, level: int
) -> None:
    lattice, count = template.lattice, len(layer.channels)
    shape = template.shape(level)
    lead = (count,) if count else ()
    array = group.create_array(
        layer.name,
        shape=(*lead, *shape),
        dtype=layer.dtype,
        chunks=(*lead, lattice.chunk_px, lattice.chunk_px),
        shards=(*lead, lattice.shard_px, lattice.shard_px),
        fill_value=layer.nodata,
        compressors=COMPRESSOR,
        dimension_names=(
            *((channel_dim(layer.name),) if count else ()),
            *spatial_dims(level),
        ),
    )
    # By `coordinates` xarray opens the CRS as a coordinate, where rioxarray looks for it.
    array.attrs.update(
        dict(layer.attributes)
        | {
            "nodata": layer.nodata,
            "_FillValue": layer.nodata,
            "grid_mapping": "spatial_ref",
            "coordinates": "spatial_ref",
        }
    )
    if count:
        names = group.create_array(
            channel_dim(layer.name), shape=(count,), chunks=(count,), dtype="int64",
            dimension_names=(channel_dim(layer.name),), compressors=COMPRESSOR,
        )  # fmt: skip
        names[:] = np.arange(count)
        names.attrs.update({"channel_names": list(layer.channels)})


def channel_dim(layer: str) -> str:
    """Return the name of a layer's leading axis."""
    return f"{layer}_channel"


def _grid_mapping(crs: str, transform: Sequence[float]) -> dict[str, Any]:
    a, b, c, d, e, f = transform
    attributes = dict(CRS.from_user_input(crs).to_cf())
    attributes["spatial_ref"] = attributes["crs_wkt"]
    attributes["GeoTransform"] = " ".join(repr(value) for value in (c, a, b, f, d, e))
    return attributes


def _spatial(template: MapTemplate, level: int) -> dict[str, Any]:
    height, width = template.shape(level)
    a, _, left, _, e, top = template.transform(level)
    code = CRS.from_user_input(template.lattice.crs).to_authority()
    attributes: dict[str, Any] = {
        "zarr_conventions": [
            {
                "name": name,
                "uuid": uuid,
                "spec_url": f"https://github.com/zarr-conventions/{repository}",
            }
            for name, uuid, repository in CONVENTIONS[0 if level == 0 else 1 :]
        ],
        "proj:wkt2": CRS.from_user_input(template.lattice.crs).to_wkt(),
        "spatial:dimensions": list(spatial_dims(level)),
        "spatial:transform_type": "affine",
        "spatial:registration": "pixel",
        "spatial:transform": list(template.transform(level)),
        "spatial:shape": [height, width],
        "spatial:bbox": [left, top + e * height, left + a * width, top],
    }
    if code:
        attributes["proj:code"] = ":".join(code)
    return attributes


def _multiscales(template: MapTemplate) -> dict[str, Any]:
    layout: list[dict[str, Any]] = []
    for level in range(template.overviews + 1):
        entry: dict[str, Any] = {
            "asset": str(level) if level else ".",
            "spatial:transform": list(template.transform(level)),
            "spatial:shape": list(template.shape(level)),
        }
        if level:
            entry["derived_from"] = layout[-1]["asset"]
            entry["transform"] = {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}
        layout.append(entry)
    return {"multiscales": {"layout": layout, "resampling_method": "mode or average by layer"}}


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
            for below in _keys_of(name, place, shard_px=array.shards[-1], lead=array.ndim - 2):
                key = f"{self.prefix}{below}"
                try:
                    yield ShardKey(key, int(filesystem.size(f"{root}/{key}")))
                except FileNotFoundError:
                    continue


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
    for key in _keys_of(array.path, place, shard_px=step, lead=array.ndim - 2):
        row, col = (int(index) * step for index in key.split("/")[-2:])
        try:
            array[..., row : row + step, col : col + step]
        except DAMAGE as error:
            reason, shard = error, key
            break
    raise OutputError(
        f"{path}/{shard}: is damaged ({reason}); remove it, and make it again with --resume"
    )


def _keys_of(name: str, place: ROI, *, shard_px: int, lead: int) -> Iterator[str]:
    """Yield the keys of an array's shards in a region, in pixels of the array."""
    rows, cols = (range(part.start // shard_px, math.ceil(part.stop / shard_px)) for part in place)
    for row in rows:
        for col in cols:
            yield f"{name}/c/{'0/' * lead}{row}/{col}"


def list_shard_keys(template: MapTemplate, block: ROI) -> Iterator[str]:
    """Yield the keys of the objects that a block of the input grid may have."""
    place = grid.scale(grid.relative(block, template.extent), template.lattice.upscale)
    for layer in template.layers:
        yield from _keys_of(
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


def overview_places(template: MapTemplate, level: int) -> Iterator[ROI]:
    """Yield the shards of an overview level, in pixels of that level."""
    height, width = template.shape(level)
    step = template.lattice.shard_px
    for row in range(0, height, step):
        for col in range(0, width, step):
            yield slice(row, min(row + step, height)), slice(col, min(col + step, width))


def write_overview(path: str, template: MapTemplate, *, level: int, place: ROI) -> None:
    """Halve one shard's worth of the level above.

    Classes take the most frequent of four pixels, the smaller value where two are equally
    frequent; other layers the mean of those that are not nodata.
    """
    source = MapWriter(path, level=level - 1)
    target = MapWriter(path, level=level)
    height, width = template.shape(level - 1)
    rows, cols = (
        slice(2 * part.start, min(2 * part.stop, size))
        for part, size in zip(place, (height, width), strict=True)
    )
    halved = {
        layer.name: _halve_in_strips(source, layer, (rows, cols), template.lattice.chunk_px)
        for layer in template.layers
    }
    target.write(halved, place)


def _halve_in_strips(
    source: MapWriter, layer: LayerTemplate, place: ROI, strip_px: int
) -> npt.NDArray[Any]:
    """Halve a region a few rows at a time: halving takes several times the room of its result."""
    halve = halve_classes if layer.name == CATEGORICAL else halve_values
    rows, cols = place
    strips = [
        halve(
            source.read(layer.name, (slice(row, min(row + 2 * strip_px, rows.stop)), cols)),
            layer.nodata,
        )
        for row in range(rows.start, rows.stop, 2 * strip_px)
    ]
    return np.concatenate(strips, axis=-2)


def _quarters(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Return the four pixels below each pixel of the next level, (4, ..., y, x)."""
    odd = [(0, 0)] * (values.ndim - 2) + [(0, size % 2) for size in values.shape[-2:]]
    padded = np.pad(values, odd, constant_values=nodata)
    return np.stack([padded[..., row::2, col::2] for row in (0, 1) for col in (0, 1)])


def halve_classes(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Halve a layer of classes by the most frequent of four pixels that are not nodata."""
    four = np.sort(_quarters(values, nodata), axis=0)
    counts = np.stack([(four == one).sum(axis=0, dtype=np.uint8) for one in four])
    counts = np.where(four == nodata, 0, counts)
    winner = np.take_along_axis(four, counts.argmax(axis=0)[np.newaxis], axis=0)[0]
    return np.where(counts.max(axis=0) == 0, nodata, winner).astype(values.dtype)


def halve_values(values: npt.NDArray[Any], nodata: int) -> npt.NDArray[Any]:
    """Halve a layer of measured values by the mean of four pixels that are not nodata."""
    four = _quarters(values, nodata)
    known = four != nodata
    count = known.sum(axis=0)
    total = np.where(known, four, 0).sum(axis=0, dtype=np.int64)
    mean = np.rint(total / np.maximum(count, 1))
    return np.where(count == 0, nodata, mean).astype(values.dtype)


def open_map(path: str, *, level: int = 0) -> xr.Dataset | xr.DataTree:
    """Open a map lazily.

    Parameters
    ----------
    path
        Folder or URL of the map.
    level
        0 for the map itself, higher for its overviews.

    Returns
    -------
    xarray.Dataset
        One variable per layer with ``x``, ``y`` and the CRS (``ds.rio.crs``); values as stored,
        with ``nodata``, ``scale`` and ``offset`` in their attributes.
    xarray.DataTree
        Of a map with ``grid.crs: utm``: one such dataset for each zone, by the name of its group,
        for example ``tree["utm31n"]``.

    Raises
    ------
    OutputError
        If there is no map at this place, or no such level, or it is damaged.
    """
    with tell_damage(path, missing=NO_MAP):
        root, members = _open_members(path)
    names = root.attrs.get(ZONES)
    if not isinstance(names, Sequence):
        return _open_grid(path, level)
    # A zone that a trial did not reach has no map yet.
    made = {name for name, member in members.items() if isinstance(member, zarr.Group)}
    zones = {name: _open_grid(f"{path}/{name}", level) for name in map(str, names) if name in made}
    if not zones:
        raise OutputError(f"{path}: no zone has a map yet")
    tree = xr.DataTree.from_dict(zones)
    tree.attrs.update(root.attrs.asdict())
    return tree


def _open_grid(path: str, level: int) -> xr.Dataset:
    place = f"{path}/{level}" if level else path
    with tell_damage(place, missing=f"{NO_MAP}, or it has no level {level}"):
        _, members = _open_members(place)
        for array in members.values():
            if isinstance(array, zarr.Array):
                _check_axes(array)
        # Values as stored: masked, classes would be floats.
        dataset = xr.open_zarr(
            open_store(place, read_only=True), consolidated=False, mask_and_scale=False
        )
        names = zip(spatial_dims(level), ("y", "x"), strict=True)
        dataset = dataset.rename({own: name for own, name in names if own in dataset.dims})
        opened: xr.Dataset = dataset.set_coords("spatial_ref")
    return opened


def _open_members(path: str) -> tuple[zarr.Group, dict[str, zarr.Array[Any] | zarr.Group]]:
    """Open a group and what lies in it, one after the other.

    Zarr would open all at once, and Python would print failures of others than the first.
    """
    root = zarr.open_group(open_store(path, read_only=True), mode="r")
    members = {}
    for name in list_names(*locate(path)):
        with suppress(KeyError):  # not of Zarr
            members[name] = root[name]
    return root, members


def _check_axes(array: zarr.Array[Any]) -> None:
    """Refuse an array of a map whose coordinates or chunks would not fit in memory."""
    if array.ndim == 1:
        check_size(array)
    for size, step in zip(array.shape, array.chunks, strict=True):
        if size > step * MOST_CHUNKS:
            raise ValueError(f"its array {array.path} is declared with {size // step} chunks")
