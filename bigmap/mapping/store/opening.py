"""Opening a map, whole or a region of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import rioxarray  # noqa: F401 - gives datasets their .rio
import xarray as xr
import zarr

from bigmap.errors import OutputError
from bigmap.files import list_names, locate
from bigmap.mapping.store.shards import MOST_CHUNKS
from bigmap.mapping.store.template import ZONES, spatial_dims
from bigmap.mapping.store.zarr_stores import NO_MAP, check_size, open_store, tell_damage


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
