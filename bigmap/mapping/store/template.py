"""A map before it has a pixel: its layers, extent and metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from pyproj import CRS
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from bigmap import grid
from bigmap.errors import OutputError
from bigmap.files import locate, parse_json, write_atomically
from bigmap.grid import ROI, Lattice
from bigmap.mapping.store.zarr_stores import METADATA, open_store

COMPRESSOR = ZstdCodec(level=3, checksum=True)
"""Of all arrays: a bit that flips is an error, not another value."""
CATEGORICAL = "class"
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
