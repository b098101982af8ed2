"""Scenes of a plan -> a folder that a run reads instead, where compute nodes have no network.

The folder holds ``scenes/`` with a folder per item; ``items.parquet``, the plan's catalogue with
its decisions and with hrefs relative to itself; ``manifest.jsonl`` with size and SHA-256 of each
file; and ``stage.json``, which says what was staged. It can be moved as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import shapely
from affine import Affine
from rasterio.errors import RasterioError
from rich.console import Console
from shapely.errors import ShapelyError

from bigmap import grid
from bigmap.catalog import Catalogue, load_items, save_items
from bigmap.config.sources import Access
from bigmap.cube.resampling import FileGrid, TargetGrid
from bigmap.cube.staging import (
    Reach,
    bound_bytes,
    copy_parts,
    copy_whole,
    free_bytes,
    holds_what_is_read,
)
from bigmap.engine import Engine
from bigmap.errors import (
    BigmapError,
    CatalogError,
    LeaseError,
    OutputError,
    PlanError,
    StoppedError,
)
from bigmap.files import parse_json
from bigmap.items import AssetRow, ItemRow, ItemTable
from bigmap.lease import Lease
from bigmap.plans import Part, Plan
from bigmap.progress import StageProgress
from bigmap.redaction import clean_href
from bigmap.zones import all_zones

ITEMS, MANIFEST, NOTE, SCENES = "items.parquet", "manifest.jsonl", "stage.json", "scenes"
JOBS = 8
"""Files that are fetched at once, by default; our choice."""
PARTIAL = ".partial"
FREE_SOURCE_FIELDS = {"access", "cache", "cache_gb"}
"""Settings of a source that decide no value."""
ROUNDING_M = 1.0
"""By how much the area of a run may lie outside of what was staged."""


@dataclass(frozen=True)
class StageSummary:
    """What staging did."""

    items: int
    files: int
    """Files that the run reads."""
    kept: int
    """Files that were there already, whole and unchanged."""
    fetched: int
    fetched_bytes: int
    failures: tuple[tuple[str, str], ...]
    """File and reason."""

    @property
    def exit_code(self) -> int:
        """0 done, 3 some files failed."""
        return 3 if self.failures else 0

    @classmethod
    def add(cls, parts: Mapping[str, StageSummary]) -> StageSummary:
        """Add up what was done in several folders, by their names."""
        counts = ("items", "files", "kept", "fetched", "fetched_bytes")
        sums = {name: sum(getattr(part, name) for part in parts.values()) for name in counts}
        failures = tuple(
            (f"{folder}/{file}" if folder else file, reason)
            for folder, part in parts.items()
            for file, reason in part.failures
        )
        return cls(**sums, failures=failures)


@dataclass(frozen=True)
class _File:
    """One file to stage."""

    name: str
    """Path in the folder."""
    asset: AssetRow
    grid: FileGrid
    """Where its pixels lie, as the item says."""
    pixel_bytes: int
    reach: Reach


@dataclass(frozen=True)
class _Entry:
    """A staged file as it was when it was written."""

    file: str
    size: int
    sha256: str
    whole: bool
    source: str
    """Where it came from, without signature or password."""


def stage_plan(
    plan: Plan,
    folder: Path,
    *,
    whole: bool = False,
    jobs: int = JOBS,
    reporter: StageProgress | None = None,
) -> StageSummary:
    """Fetch what the blocks of a plan read.

    What is there already, of the size and SHA-256 that were noted, is kept, so that an
    interrupted staging goes on.

    Parameters
    ----------
    plan
        Its blocks and items decide what is fetched.
    folder
        Where to; made where it is missing. It holds the scenes of one recipe: what another one
        staged here stays, but its catalogue is replaced.
    whole
        Copy files byte by byte, and not only the tiles that are read.
    jobs
        Files fetched at once.
    reporter
        Shows progress; by default nothing is shown.

    Returns
    -------
    StageSummary
        Files that could not be fetched are its failures; the others are staged.

    Raises
    ------
    OutputError
        If the folder cannot be written or has not enough room.
    LeaseError
        If another process stages into this folder.
    PlanError
        As :meth:`bigmap.plans.Plan.check_rendered`.
    """
    plan.check_rendered()
    reporter = reporter or StageProgress(Console(quiet=True))
    return StageSummary.add(
        {
            part.name: _stage_part(part, folder / part.name, whole, jobs, reporter)
            for part in plan.parts
        }
    )


def _stage_part(
    part: Part, folder: Path, whole: bool, jobs: int, reporter: StageProgress
) -> StageSummary:
    """Fetch what the blocks of one part read, into a folder of its own."""
    _make_folder(folder)
    lease = Lease(str(folder))
    try:
        lease.acquire()
    except LeaseError:
        raise LeaseError(f"--out {folder}: another process stages there; wait for it") from None
    try:
        for left in folder.glob(f"{SCENES}/*/*{PARTIAL}"):
            left.unlink()
        rows = list_used_rows(part)
        files = _list_files(part, rows, whole=whole)
        fetch = _Fetch(folder, part.recipe.source.access, whole=whole)
        reporter.note(f"{len(rows)} items, {len(files)} files; looking for what is there already")
        todo = fetch.choose(files, jobs)
        most_bytes = sum(
            bound_bytes(file.reach, file.grid, whole=whole, pixel_bytes=file.pixel_bytes)
            for file in todo
        )
        _check_room(folder, most_bytes)
        _write_catalogue(part, rows, files, folder)
        reporter.start(len(todo), len(files) - len(todo), most_bytes)
        sizes, failures = fetch.run(todo, jobs, reporter)
        return StageSummary(
            items=len(rows),
            files=len(files),
            kept=len(files) - len(todo),
            fetched=len(sizes),
            fetched_bytes=sum(sizes),
            failures=tuple(sorted(failures)),
        )
    except StoppedError:
        raise StoppedError("staging was stopped: go on with the same command") from None
    finally:
        reporter.finish()
        lease.release()


def verify_stage(folder: Path, *, jobs: int = JOBS) -> StageSummary:
    """Compare all staged files with the sizes and checksums noted; fetch nothing.

    Parts of a plan that have folders of their own are compared one after the other.

    Raises
    ------
    CatalogError
        If nothing was staged there, or the catalogue names files elsewhere.
    """
    parts = [zone.group for zone in all_zones() if (folder / zone.group).is_dir()]
    if parts:
        return StageSummary.add({name: verify_stage(folder / name, jobs=jobs) for name in parts})
    hrefs = [asset.href for row in read_staged(folder).rows for asset in row.assets.values()]
    inside = f"{folder.absolute()}/"
    if strange := [href for href in hrefs if not href.startswith(inside)]:
        raise CatalogError(
            f"{folder / ITEMS}: names {strange[0]}, which is not in its folder; run bigmap stage "
            "again"
        )
    names = [href.removeprefix(inside) for href in hrefs]
    entries = _read_manifest(folder)
    with _run_threads(jobs) as (pool, _):
        faults = list(pool.map(lambda name: _find_fault(folder, name, entries.get(name)), names))
    failures = tuple((name, why) for name, why in zip(names, faults, strict=True) if why)
    items = len({Path(name).parent for name in names})
    return StageSummary(items, len(names), len(names) - len(failures), 0, 0, failures)


def read_staged(folder: Path) -> Catalogue:
    """Return the catalogue of a folder, its hrefs absolute.

    Raises
    ------
    CatalogError
        If nothing was staged there.
    """
    if not (folder / ITEMS).is_file() or not (folder / NOTE).is_file():
        raise CatalogError(f"{folder}: holds no staged scenes; make them with bigmap stage")
    return load_items(str((folder / ITEMS).absolute()))


def use_staged(part: Part, folder: Path) -> Part:
    """Return a part of a plan that reads staged files and nothing else.

    Parameters
    ----------
    part
        Of the staged catalogue, or of that of a run that was started elsewhere and goes on.
    folder
        Of :func:`stage_plan`.

    Raises
    ------
    PlanError
        If the folder was staged for another source, other bands or another area, or its
        ``stage.json`` is damaged.
    """
    noted, wanted = _read_note(folder), _describe(part)
    for key in ("source", "mask", "crs"):
        if noted[key] != wanted[key]:
            raise _refuse(folder, f"another {key}")
    if missing := set(wanted["bands"]) - noted["bands"]:
        raise _refuse(folder, f"a model without the bands {', '.join(sorted(missing))}")
    if not noted["reach"].covers(shapely.from_wkt(wanted["covers"])):
        raise _refuse(folder, "a smaller area, or one elsewhere")
    staged = {_key(row): row.assets for row in read_staged(folder).rows}
    rows = []
    for row in list_used_rows(part):
        if _key(row) not in staged:
            raise _refuse(folder, f"a catalogue without {row.id}")
        rows.append(replace(row, assets=staged[_key(row)]))
    staged_catalogue = replace(part.catalogue, rows=ItemTable.of(rows))
    return replace(part, catalogue=staged_catalogue, scenes=None)


def _read_note(folder: Path) -> dict[str, Any]:
    """Return what was staged, its bands as a set and what it covers as a geometry."""
    file = folder / NOTE
    try:
        note = parse_json(file.read_bytes())
        reach = shapely.from_wkt(note["covers"]).buffer(ROUNDING_M, join_style="mitre")
        plain = {key: note[key] for key in ("source", "mask", "crs")}
        return plain | {"bands": set(note["bands"]), "reach": reach}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ShapelyError) as error:
        raise PlanError(f"{file}: is damaged ({error}); run bigmap stage again") from None


def _refuse(folder: Path, what: str) -> PlanError:
    return PlanError(f"{folder} was staged for {what}; run bigmap stage with this recipe")


def _key(row: ItemRow) -> tuple[str, str, Any]:
    return row.collection, row.id, row.datetime


def list_used_rows(part: Part) -> list[ItemRow]:
    """Return the items that are handed to any block, in the order of the catalogue."""
    used = {_key(row) for block in part.blocks for row in part.rows_of(block)}
    return [row for row in part.catalogue.rows if _key(row) in used]


def list_reaches(part: Part) -> tuple[Reach, Reach]:
    """Return what the blocks of a part read of a file of bands, and of one of masks."""
    engine = Engine(part.model, part.lattice, part.windowing, part.layers)
    margin = part.reading.mask.dilate_px
    regions = {}
    for block in part.blocks:
        for cell, _, window in engine.list_reads(block, is_wanted=part.is_wanted):
            region = grid.grow(grid.hull([cell, window]), margin)
            regions[tuple((part.start, part.stop) for part in region)] = region
    lattice, found = part.lattice, tuple(regions.values())
    target = TargetGrid(lattice.crs, lattice.gsd_m, lattice.anchor_m)
    return Reach(target, found, part.recipe.reading.resampling), Reach(target, found, "nearest")


def _list_files(part: Part, rows: list[ItemRow], *, whole: bool) -> list[_File]:
    """List the files of the bands and the mask of all items."""
    of_bands, of_masks = list_reaches(part)
    mask = part.reading.mask.asset
    return [
        _File(
            _name_file(row, name, whole=whole),
            row.assets[name],
            FileGrid(f"EPSG:{row.epsg}", Affine(*row.assets[name].transform),
                     row.assets[name].shape),
            1 if name == mask else 2,
            of_masks if name == mask else of_bands,
        )
        for row in rows
        for name in _list_assets(part)
    ]  # fmt: skip


def _list_assets(part: Part) -> list[str]:
    mask = part.reading.mask.asset
    return [*part.model.spec.bands, *([mask] if mask else [])]


def _name_file(row: ItemRow, asset: str, *, whole: bool) -> str:
    """Name a file by item, asset and origin: ids differ between catalogues in more than names."""
    href = clean_href(row.assets[asset].href)
    suffix = PurePosixPath(urlsplit(href).path).suffix if whole else ".tif"
    origin = hashlib.sha256(f"{row.collection} {href}".encode()).hexdigest()[:8]
    item, name = (re.sub(r"[^A-Za-z0-9_-]", "_", text) for text in (row.id, asset))
    return f"{SCENES}/{item}/{name}-{origin}{suffix}"


def _make_folder(folder: Path) -> None:
    if re.match(r"[a-z][a-z0-9+]+:/", str(folder)):
        raise OutputError(f"--out {folder}: is a URL; choose a folder of a shared file system")
    try:
        (folder / SCENES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {folder}: cannot be written ({error.strerror})") from None


def _check_room(folder: Path, most_bytes: int) -> None:
    free = free_bytes(folder)
    if most_bytes > free:
        raise OutputError(
            f"--out {folder}: {free / 1e9:,.1f} GB are free, but up to {most_bytes / 1e9:,.1f} GB "
            "are needed; make room, choose another folder or a smaller area"
        )


def _write_catalogue(part: Part, rows: list[ItemRow], files: list[_File], folder: Path) -> None:
    """Write the items with the places of their staged files, then what they were staged for."""
    names, waiting = _list_assets(part), iter(files)
    staged = [
        replace(
            row,
            assets={
                name: replace(row.assets[name], href=f"./{next(waiting).name}") for name in names
            },
        )
        for row in rows
    ]
    audit = replace(part.catalogue.audit, kept=len(rows))
    save_items(Catalogue(ItemTable.of(staged), audit), str(folder / ITEMS))
    partial = folder / f"{NOTE}{PARTIAL}"
    partial.write_text(json.dumps(_describe(part), indent=1))
    partial.replace(folder / NOTE)


def _describe(part: Part) -> dict[str, Any]:
    """Tell what is staged for a part: a run may want the same or less."""
    reach_px = part.lattice.cell_px + part.halo_px
    boxes = [shapely.box(*part.lattice.bounds(grid.grow(block, reach_px))) for block in part.blocks]
    source = part.recipe.source.model_dump(mode="json", exclude=FREE_SOURCE_FIELDS)
    return {
        "source": source,
        "mask": part.reading.mask.asset,
        "bands": list(part.model.spec.bands),
        "crs": part.lattice.crs,
        "covers": shapely.union_all(boxes).wkt,
    }


class _Fetch:
    """Fetches files into a folder and notes each."""

    def __init__(self, folder: Path, access: Access, *, whole: bool) -> None:
        self.folder = folder
        self.access = access
        self.whole = whole
        self.entries = _read_manifest(folder)
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def choose(self, files: list[_File], jobs: int) -> list[_File]:
        """Return the files that are not there yet, or not as they should be."""
        with _run_threads(jobs) as (pool, _):
            kept = list(pool.map(self._is_kept, files))
        return [file for file, is_kept in zip(files, kept, strict=True) if not is_kept]

    def _is_kept(self, file: _File) -> bool:
        entry = self.entries.get(file.name)
        if entry is None or (self.whole and not entry.whole):
            return False
        if _find_fault(self.folder, file.name, entry):
            return False
        return entry.whole or holds_what_is_read(self.folder / file.name, file.reach)

    def run(
        self, todo: list[_File], jobs: int, reporter: StageProgress
    ) -> tuple[list[int], list[tuple[str, str]]]:
        """Fetch files, and return the sizes of those that came and the others with the reason."""
        sizes: list[int] = []
        failures: list[tuple[str, str]] = []
        with _run_threads(jobs) as (pool, self.stop):
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

    def fetch(self, file: _File) -> int:
        """Fetch one file under another name first, note it, and return its size in bytes."""
        target = self.folder / file.name
        partial = target.with_name(target.name + PARTIAL)
        target.parent.mkdir(exist_ok=True)
        how: dict[str, Any] = {"access": self.access, "check": self._check}
        try:
            if self.whole:
                copy_whole(file.asset.href, partial, file.asset.shape, **how)
            else:
                copy_parts(file.asset.href, partial, file.reach, **how)
            size, digest = _seal(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        entry = _Entry(file.name, size, digest, self.whole, clean_href(file.asset.href))
        with self.lock, (self.folder / MANIFEST).open("a") as manifest:
            manifest.write(json.dumps(asdict(entry)) + "\n")
        return size

    def _check(self) -> None:
        if self.stop.is_set():
            raise StoppedError("staging was stopped")


@contextmanager
def _run_threads(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Run threads; where an exception ends the block, they are told to stop and waited for."""
    pool, stop = ThreadPoolExecutor(jobs, thread_name_prefix="bigmap-stage"), threading.Event()
    try:
        yield pool, stop
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _seal(path: Path) -> tuple[int, str]:
    """Bring a file to the disk, and return its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> dict[str, _Entry]:
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


def _find_fault(folder: Path, name: str, entry: _Entry | None) -> str:
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
