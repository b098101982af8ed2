"""Staging a plan, and verifying what was staged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bigmap.errors import CatalogError, LeaseError, OutputError, StoppedError
from bigmap.files import PARTIAL
from bigmap.lease import Lease
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.progress import StageProgress
from bigmap.mapping.staging.fetching import Fetch, find_fault, read_manifest, run_threads
from bigmap.mapping.staging.folder import ITEMS, read_staged, write_catalogue
from bigmap.mapping.staging.reaches import SCENES, list_files, list_used_rows
from bigmap.scenes.cube.staging import bound_bytes, free_bytes
from bigmap.zones import all_zones

JOBS = 8
"""Files that are fetched at once, by default; our choice."""


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
        As :meth:`bigmap.mapping.plans.Plan.check_rendered`.
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
        files = list_files(part, rows, whole=whole)
        fetch = Fetch(folder, part.recipe.source.access, whole=whole)
        reporter.note(f"{len(rows)} items, {len(files)} files; looking for what is there already")
        todo = fetch.choose(files, jobs)
        most_bytes = sum(
            bound_bytes(file.reach, file.grid, whole=whole, pixel_bytes=file.pixel_bytes)
            for file in todo
        )
        _check_room(folder, most_bytes)
        write_catalogue(part, rows, files, folder)
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
    entries = read_manifest(folder)
    with run_threads(jobs) as (pool, _):
        faults = list(pool.map(lambda name: find_fault(folder, name, entries.get(name)), names))
    failures = tuple((name, why) for name, why in zip(names, faults, strict=True) if why)
    items = len({Path(name).parent for name in names})
    return StageSummary(items, len(names), len(names) - len(failures), 0, 0, failures)


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
