"""Zarr stores at any place: opening, removing, and telling what is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import FsspecStore, LocalStore

from bigmap.errors import BigmapError, OutputError
from bigmap.files import is_local, list_names, locate, storage_errors

METADATA = "zarr.json"
DAMAGE = (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError)
"""What Zarr and its codecs raise where a shard is not what was written: ArithmeticError where
chunks have no size, MemoryError where an index asks for more than any memory holds."""
MOST_BYTES = 2**31
"""Of what is read at once; no codec writes more as one chunk."""
NO_MAP = "there is no map here"


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
