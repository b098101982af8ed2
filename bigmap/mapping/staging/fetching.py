"""Files come into a folder, each noted with its checksum."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rasterio.errors import RasterioError

from bigmap.config.sources import Access
from bigmap.errors import BigmapError, StoppedError
from bigmap.files import parse_json, replace_whole
from bigmap.mapping.progress import StageProgress
from bigmap.mapping.staging.reaches import SceneFile
from bigmap.redaction import clean_href
from bigmap.scenes.cube.staging import copy_parts, copy_whole, holds_what_is_read

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class _Entry:
    """A staged file as it was when it was written."""

    file: str
    size: int
    sha256: str
    whole: bool
    source: str
    """Where it came from, without signature or password."""


class Fetch:
    """Fetches files into a folder and notes each."""

    def __init__(self, folder: Path, access: Access, *, whole: bool) -> None:
        self.folder = folder
        self.access = access
        self.whole = whole
        self.entries = read_manifest(folder)
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def choose(self, files: list[SceneFile], jobs: int) -> list[SceneFile]:
        """Return the files that are not there yet, or not as they should be."""
        with run_threads(jobs) as (pool, _):
            kept = list(pool.map(self._is_kept, files))
        return [file for file, is_kept in zip(files, kept, strict=True) if not is_kept]

    def _is_kept(self, file: SceneFile) -> bool:
        entry = self.entries.get(file.name)
        if entry is None or (self.whole and not entry.whole):
            return False
        if find_fault(self.folder, file.name, entry):
            return False
        return entry.whole or holds_what_is_read(self.folder / file.name, file.reach)

    def run(
        self, todo: list[SceneFile], jobs: int, reporter: StageProgress
    ) -> tuple[list[int], list[tuple[str, str]]]:
        """Fetch files, and return the sizes of those that came and the others with the reason."""
        sizes: list[int] = []
        failures: list[tuple[str, str]] = []
        with run_threads(jobs) as (pool, self.stop):
            waiting = {pool.submit(self.fetch, file): file for file in todo}
            for future in as_completed(waiting):
                try:
                    sizes.append(future.result())
                    reporter.add(sizes[-1])
                except (BigmapError, OSError, RasterioError) as error:
                    name = waiting[future].name
                    failures.append((name, str(error)))
                    reporter.note(f"{name} failed: {error}")
                    reporter.add(0)
        return sizes, failures

    def fetch(self, file: SceneFile) -> int:
        """Fetch one file under another name first, note it, and return its size in bytes."""
        target = self.folder / file.name
        how: dict[str, Any] = {"access": self.access, "check": self._check}
        with replace_whole(target) as partial:
            if self.whole:
                copy_whole(file.asset.href, partial, file.asset.shape, **how)
            else:
                copy_parts(file.asset.href, partial, file.reach, **how)
            size, digest = _measure(partial)
        entry = _Entry(file.name, size, digest, self.whole, clean_href(file.asset.href))
        with self.lock, (self.folder / MANIFEST).open("a") as manifest:
            manifest.write(json.dumps(asdict(entry)) + "\n")
        return size

    def _check(self) -> None:
        if self.stop.is_set():
            raise StoppedError("staging was stopped")


@contextmanager
def run_threads(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Run threads; where an exception ends the block, they are told to stop and waited for."""
    pool, stop = ThreadPoolExecutor(jobs, thread_name_prefix="bigmap-stage"), threading.Event()
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _measure(path: Path) -> tuple[int, str]:
    """Return the size and SHA-256 of a file."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, _Entry]:
    """Return what was noted of each file; the last note counts."""
    path = folder / MANIFEST
    entries = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = _Entry(**parse_json(line))
            entries[entry.file] = entry
        except (ValueError, TypeError):
            continue  # cut short when the machine stopped: the file is fetched again
    return entries


def find_fault(folder: Path, name: str, entry: _Entry | None) -> str:
    """Tell what is wrong with a staged file, nothing where it is as it was noted."""
    if entry is None:
        return "was not fetched"
    path = folder / name
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.size:
        return f"has {path.stat().st_size} bytes instead of {entry.size}"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
            return "has another checksum"
    return ""
