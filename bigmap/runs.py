"""The folder of a run, beside its map: recipe, items, ledger and lease."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import yaml

from bigmap.catalog import Catalogue, load_items, save_items
from bigmap.config import Recipe, parse_recipe
from bigmap.errors import OutputError
from bigmap.ledger import LeaseState, Ledger, read_lease, write_atomically
from bigmap.planning import Plan

FREE_FIELDS = (
    "cluster",
    "title",
    "inference.batch_windows",
    "reading.on_error",
    "source.access",
    "source.cache",
)
"""Settings that a resumed run may change: they decide no value of the map."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it must not forget."""

    output: str
    """Path or URL of the map."""

    @property
    def path(self) -> str:
        """Path or URL of the folder: the map's, with ``.run`` for ``.zarr``."""
        return self.output.removesuffix(".zarr") + ".run"

    @property
    def ledger(self) -> Ledger:
        """The ledger on disk."""
        return Ledger(self.path)

    def exists(self) -> bool:
        """Tell whether a run has been started here."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        return bool(filesystem.exists(f"{root}/recipe.yaml"))

    def create(self, plan: Plan) -> None:
        """Write what a resumed run needs; the recipe last, as it says that all is there."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        filesystem.makedirs(root, exist_ok=True)
        save_items(plan.catalogue, f"{self.path}/items.parquet")
        text = plan.recipe.to_yaml() + f"# planned blocks: {len(plan.blocks)}\n"
        write_atomically(filesystem, f"{root}/recipe.yaml", text.encode())

    def clear(self) -> None:
        """Remove the map and all that belongs to it.

        Raises
        ------
        OutputError
            If what lies there is not a map.
        """
        filesystem, root = fsspec.core.url_to_fs(self.output)
        if filesystem.exists(root):
            is_map = filesystem.exists(f"{root}/zarr.json")
            if not is_map and (filesystem.isfile(root) or filesystem.ls(root)):
                raise OutputError(f"output.path: {self.output}: exists and is not a map of bigmap")
            filesystem.rm(root, recursive=True)
        filesystem, root = fsspec.core.url_to_fs(self.path)
        for name in ("recipe.yaml", "items.parquet", "ledger"):
            if filesystem.exists(f"{root}/{name}"):
                filesystem.rm(f"{root}/{name}", recursive=True)

    def read_recipe(self) -> tuple[Recipe, int]:
        """Return the recipe of the run and its number of blocks."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        try:
            text = filesystem.cat_file(f"{root}/recipe.yaml").decode()
        except FileNotFoundError:
            raise OutputError(f"{self.output}: there is no run here") from None
        blocks = int(text.rsplit("# planned blocks:", 1)[1])
        return parse_recipe(yaml.safe_load(text), origin=f"{root}/recipe.yaml"), blocks

    def read_items(self) -> Catalogue:
        """Return the items of the run, as they were found when it started."""
        return load_items(f"{self.path}/items.parquet")

    def read_lease(self) -> LeaseState | None:
        """Return who drives the run at this moment."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        return read_lease(filesystem, f"{root}/lease.json")


def check_output(recipe: Recipe, *, resume: bool, overwrite: bool) -> bool:
    """Tell whether to resume, and refuse an output that is taken or cannot be written.

    Returns
    -------
    bool
        True if a run is there and shall go on.

    Raises
    ------
    OutputError
        If the output exists and neither flag is given, belongs to another recipe, or lies where
        nothing can be written.
    """
    folder = RunFolder(recipe.output.path)
    filesystem, root = fsspec.core.url_to_fs(recipe.output.path)
    taken = folder.exists() or filesystem.exists(root)
    if taken and not (resume or overwrite):
        raise OutputError(
            f"output.path: {recipe.output.path} exists; add --resume to go on with it or "
            "--overwrite to start again"
        )
    if "://" not in recipe.output.path:
        _check_writable(Path(recipe.output.path))
    if overwrite or not taken:
        return False
    if not folder.exists():
        raise OutputError(
            f"output.path: {recipe.output.path} exists without its run folder {folder.path}, so "
            "it cannot be resumed; add --overwrite to start again"
        )
    stored, _ = folder.read_recipe()
    changed = differing_fields(stored.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changed:
        raise OutputError(
            f"output.path: {recipe.output.path} was started with another {', '.join(changed)}; "
            "set it back, or choose another output.path"
        )
    return True


def differing_fields(
    stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Return the dotted names of settings that differ and decide values of the map."""
    changed = []
    for key in sorted({*stored, *given}):
        name = f"{prefix}{key}"
        old, new = stored.get(key), given.get(key)
        if name in FREE_FIELDS or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed += differing_fields(old, new, f"{name}.")
        else:
            changed.append(name)
    return changed


def _check_writable(path: Path) -> None:
    parent = path.absolute()
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"output.path: {path}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"output.path: {path}: no permission to write in {parent}")
    if os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise OutputError(f"output.path: {path}: {parent} is mounted read-only")


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, read from its ledger by anyone."""

    output: str
    planned: int
    states: Counter[str]
    mapped_km2: float
    seconds: Mapping[str, float]
    """Time of each stage, added up over blocks."""
    last: str
    """When the last block was finished, UTC; empty before the first."""
    failures: tuple[tuple[str, str], ...]
    """Failed blocks with their errors."""
    lease: LeaseState | None

    @property
    def missing(self) -> int:
        """Blocks without a record."""
        return self.planned - sum(self.states.values())


def read_status(output: str) -> RunStatus:
    """Read how far a run is.

    Raises
    ------
    OutputError
        If there is no run at this place.
    """
    folder = RunFolder(output.rstrip("/").removesuffix(".run").removesuffix(".zarr") + ".zarr")
    _, planned = folder.read_recipe()
    records = folder.ledger.latest().values()
    seconds: Counter[str] = Counter()
    for record in records:
        seconds.update(record.seconds)
    return RunStatus(
        output=folder.output,
        planned=planned,
        states=Counter(record.state for record in records),
        mapped_km2=sum(record.mapped_km2 for record in records if record.state != "failed"),
        seconds=dict(seconds),
        last=max((record.finished for record in records), default=""),
        failures=tuple((r.block, r.error or "") for r in records if r.state == "failed"),
        lease=folder.read_lease(),
    )
