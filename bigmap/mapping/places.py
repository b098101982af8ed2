"""Who may write at a place: what is there is looked at, and taken under a lease."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bigmap.config import Recipe
from bigmap.errors import OutputError
from bigmap.files import is_local, locate, storage_errors
from bigmap.lease import Lease
from bigmap.mapping.plans import Plan
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.run_folder import MARK, RESTORE, RunFolder, exists
from bigmap.mapping.store.zarr_stores import METADATA


@dataclass(frozen=True)
class Attempt:
    """How a command goes about a place, and how much of the run it does."""

    resume: bool = False
    """Go on with the run that is there; otherwise the place is started anew."""
    overwrite: bool = False
    """Without ``resume``: remove what lies at the place, also if another run has put it there
    since it was looked at."""
    limit: int | None = None
    """Do so many blocks only."""
    redo: Collection[str] | None = None
    """With ``resume``: do these blocks again and no others, by name; ``failed`` and ``degraded``
    stand for all in that state. Blocks of a zone are named as in ``utm31n/r12c34``."""
    reuse: str | None = None
    """An earlier map, from which blocks that would be alike are copied."""


@dataclass(frozen=True)
class Taken:
    """A place that is ours to write at, as long as the lease holds."""

    folder: RunFolder
    lease: Lease


@contextmanager
def take_place(plan: Plan, attempt: Attempt, note: Callable[[str], None]) -> Iterator[Taken]:
    """Take the place of a run, and start it anew or see that it can go on.

    Raises
    ------
    OutputError
        If the place is taken, or the run there cannot be resumed.
    LeaseError
        If another driver writes there.
    """
    folder = RunFolder(plan.output)
    lease = Lease(folder.path)
    lease.acquire(note)
    try:
        # Another run may have had the lease since the place was looked at.
        if check_place(plan.recipe, plan.purpose, attempt):
            folder.check_plan(plan)
            for each in folder.mend(plan, lease):
                note(each)
        elif attempt.resume:
            raise OutputError(
                f"{plan.purpose.field}: {folder.output}: its run was removed; start it again"
            )
        else:
            folder.clear(lease, plan.purpose.field)
            folder.create(plan, lease)
        lease.check()
        yield Taken(folder, lease)
    finally:
        lease.release()


def check_place(recipe: Recipe, purpose: Purpose, attempt: Attempt) -> bool:
    """Tell whether to resume, and refuse a place that is taken or cannot be written.

    Returns
    -------
    bool
        True if a run is there and shall go on.

    Raises
    ------
    OutputError
        If something is there and the attempt neither resumes nor overwrites, it belongs to another
        recipe, or lies where nothing can be written.
    """
    output, field = purpose.path, purpose.field
    if attempt.resume and attempt.overwrite:
        raise OutputError("--resume and --overwrite contradict each other; give one")
    folder = RunFolder(output)
    check_location(output, field=field)
    taken = folder.exists() or exists(output)
    if taken and not (attempt.resume or attempt.overwrite):
        raise OutputError(
            f"{field}: {output} exists; add --resume to go on with it or --overwrite to start again"
        )
    folder.check_own()
    if attempt.overwrite:
        folder.check_removable(field)
    if "://" not in output:
        _check_writable(Path(output), field)
    if attempt.overwrite or not taken:
        return False
    if not folder.exists():
        raise OutputError(
            f"{field}: {output} exists without {folder.path}/recipe.yaml, so it cannot be resumed; "
            f"{RESTORE}"
        )
    stored, _ = folder.read_recipe()
    changed = list_changes(stored, recipe, purpose.free_fields)
    if changed:
        raise OutputError(
            f"{field}: {output} was started with another {', '.join(changed)}; set it back, or "
            f"choose another {field}"
        )
    return True


def list_changes(stored: Recipe, given: Recipe, free: Collection[str]) -> list[str]:
    """Return the dotted names of settings that differ and decide values.

    Parameters
    ----------
    free
        Settings, or sections of them, that may differ.
    """
    pair = [each.model_dump(mode="json") for each in (stored, given)]
    return list(list_differing(*pair, free=free))


def list_differing(
    stored: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    prefix: str = "",
) -> Iterator[str]:
    """Yield the dotted names of values that differ between two trees, but for those that may."""
    for key in sorted({*stored, *given}):
        name = f"{prefix}{key}"
        old, new = stored.get(key), given.get(key)
        if name in free or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from list_differing(old, new, free=free, prefix=f"{name}.")
        else:
            yield name


def _has_bucket(bucket: str) -> bool:
    """Tell whether a bucket is there, which s3fs denies of one that it cannot reach."""
    filesystem, root = locate(bucket)
    try:
        filesystem.info(root)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # its list is not ours to see
    except storage_errors() as error:
        raise OutputError(f"{bucket} cannot be reached ({error})") from None
    return True


def check_location(output: str, *, field: str) -> None:
    """Refuse a place where no map can be, or where it would be part of something else.

    Parameters
    ----------
    output
        Path or URL of a map or of samples.
    field
        Of the recipe, for messages.

    Raises
    ------
    OutputError
        If a link leads nowhere, there is no such bucket, or another store is around it.
    """
    filesystem, root = locate(output)
    if is_local(filesystem):
        path = Path(root)
        for part in (path, *path.parents):
            # Unlike those of pathlib, these take names that are too long for names of nothing.
            if os.path.islink(part) and not os.path.exists(part):  # noqa: PTH110, PTH114
                raise OutputError(
                    f"{field}: {part} is a link to {part.readlink()}, which does not exist; "
                    "make that folder, or remove the link"
                )
        root = os.path.realpath(root)
    elif not _has_bucket(bucket := f"{output.partition('://')[0]}://{root.split('/')[0]}"):
        raise OutputError(f"{field}: {output}: there is no bucket {bucket}; make it first")
    for parent in PurePosixPath(root).parents:
        if any(filesystem.exists(f"{parent}/{name}") for name in (METADATA, MARK)):
            raise OutputError(
                f"{field}: {output} lies inside another map or run, {parent}; choose a place "
                "beside it"
            )


def _check_writable(path: Path, field: str) -> None:
    """Try to write beside it: permissions alone do not tell, least of all those of root."""
    parent = path.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
        with tempfile.TemporaryDirectory(dir=parent, prefix=".bigmap-"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{field}: {path}: {parent} cannot be written ({reason})") from None
