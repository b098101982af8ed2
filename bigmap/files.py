"""Files and folders wherever they lie: a place is found, a small file is written whole."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

from bigmap.errors import OutputError

PARTIAL = ".partial"
"""How the name of a file ends that is not whole yet."""


def locate(place: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the place within it.

    Raises
    ------
    OutputError
        If it names no place; fsspec would take ``::`` for a chain of URLs.
    """
    if "::" in place:
        raise OutputError(f"{place}: holds '::', which no path here may; choose another name")
    try:
        filesystem, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise OutputError(f"{place}: is no place that can be read or written ({error})") from None
    return filesystem, str(root)


def is_local(filesystem: Any) -> bool:
    """Tell whether a file system is one of the operating system, with folders and links."""
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else tuple(protocol))


def make_folder(filesystem: Any, path: str) -> None:
    """Make a folder where there are folders: in object stores this would make buckets."""
    if is_local(filesystem):
        filesystem.makedirs(path, exist_ok=True)


def list_names(filesystem: Any, folder: str) -> list[str]:
    """Return the names in a folder as they are now; none where it is missing."""
    filesystem.invalidate_cache(folder)
    try:
        found = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return []  # nothing can be there
    names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
    return sorted(name for name in names if name)


def list_numbered(filesystem: Any, folder: str) -> list[tuple[int, str]]:
    """Return the files of a folder whose names are numbers, ``000000007.json``, rising."""
    numbers = [(name.partition(".")[0], f"{folder}/{name}") for name in list_names(
        filesystem, folder) if name.endswith(".json")]  # fmt: skip
    return sorted((int(number), path) for number, path in numbers if number.isdecimal())


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what file systems raise; some let through their clients' errors, such as no keys."""
    found: list[type[Exception]] = [OSError, ValueError, ImportError]
    with suppress(ImportError):
        from aiohttp import ClientError  # noqa: PLC0415

        found.append(ClientError)
    with suppress(ImportError):
        from botocore.exceptions import (  # type: ignore[import-untyped]  # noqa: PLC0415
            BotoCoreError,
        )

        found.append(BotoCoreError)
    return tuple(found)


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that others may have written or damaged.

    Raises
    ------
    ValueError
        If it is none, whatever is wrong with it; nested too deep is wrong, too.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def write_atomically(filesystem: Any, path: str, data: bytes | memoryview) -> None:
    """Write a small object so that a reader sees all of it or nothing, also after a power cut.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        if is_local(filesystem):
            write_and_sync(Path(path), data)
        else:
            filesystem.pipe_file(path, bytes(data))
    except storage_errors() as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason})") from None


def write_and_sync(path: Path, data: bytes | memoryview) -> None:
    """Write a file of this machine as :func:`replace_whole` does.

    Raises
    ------
    OSError
        If it cannot be written; no half of it is left.
    """
    with replace_whole(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def replace_whole(path: Path) -> Iterator[Path]:
    """Give a place beside a file to write to; what lies there takes the file's name at the end.

    Its folder is created. A reader sees all of the new file or what was there before, also after a
    power cut: the file and its folder are on the disk when it has its name. After an error nothing
    is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
