"""The folder of a run, beside its map: recipe, items, ledger and lease."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import shapely

from bigmap.catalog import Catalogue, load_items, save_items
from bigmap.config import ZONE_GROUP, Recipe, parse_recipe, parse_yaml
from bigmap.errors import OutputError
from bigmap.grid import ROI, Area
from bigmap.ledger import LEASE_FILE, LeaseState, Ledger, add_km2, read_lease, write_atomically
from bigmap.planning import Plan

AUDIT_FILE = "audit.txt"
"""What the search found, kept and left out, item by item, for people."""
FREE_FIELDS = (
    "cluster",
    "title",
    "inference.batch_windows",
    "reading.on_error",
    "run.block_timeout_s",
    "source.access",
    "source.cache",
    "source.cache_gb",
)
"""Settings that a resumed run may change: they decide no value of the map."""


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it must not forget."""

    output: str
    """Path or URL of the map."""

    @property
    def path(self) -> str:
        """Path or URL of the folder: the map's, with ``.run`` for ``.zarr``.

        That of a zone's group lies in that of its map.
        """
        group = ZONE_GROUP.search(self.output)
        below = group.group() if group else ""
        return self.output.removesuffix(below).removesuffix(".zarr") + ".run" + below

    @property
    def ledger(self) -> Ledger:
        """The ledger on disk."""
        return Ledger(self.path)

    def exists(self) -> bool:
        """Tell whether a run has been started here.

        Raises
        ------
        OutputError
            If the place cannot be reached.
        """
        return _exists(f"{self.path}/recipe.yaml")

    def create(self, plan: Plan) -> None:
        """Write what a resumed run needs; the recipe last, as it says that all is there."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        filesystem.makedirs(root, exist_ok=True)
        save_items(plan.catalogue, f"{self.path}/items.parquet")
        audit = "\n".join(plan.catalogue.audit.lines(examples=None)) + "\n"
        write_atomically(filesystem, f"{root}/{AUDIT_FILE}", audit.encode())
        # The area itself, since its file may have been changed when blocks are to be reused.
        parts = [shapely.to_wkb(part).hex() for part in plan.area.parts]
        write_atomically(filesystem, f"{root}/area.json", json.dumps(parts).encode())
        fingerprint = json.dumps(plan.fingerprint())
        write_atomically(filesystem, f"{root}/plan.json", fingerprint.encode())
        write_atomically(filesystem, f"{root}/recipe.yaml", plan.recipe.to_yaml().encode())

    def create_zones(self, recipe: Recipe, blocks: Mapping[str, int]) -> None:
        """Write the recipe of a map of several UTM zones and the blocks of each group."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        filesystem.makedirs(root, exist_ok=True)
        content = {"blocks": sum(blocks.values()), "zones": dict(blocks)}
        write_atomically(filesystem, f"{root}/plan.json", json.dumps(content).encode())
        write_atomically(filesystem, f"{root}/recipe.yaml", recipe.to_yaml().encode())

    def zones(self) -> dict[str, int]:
        """Return the groups of a map of several UTM zones, with their blocks; else nothing."""
        return dict(self._read_fingerprint().get("zones", {}))

    def read_plan(self) -> tuple[ROI, Area, dict[str, Any]]:
        """Return the extent, the area and the other facts that the run was started with.

        Raises
        ------
        OutputError
            If they are not there.
        """
        stored = self._read_fingerprint()
        filesystem, root = fsspec.core.url_to_fs(self.path)
        try:
            parts = json.loads(filesystem.cat_file(f"{root}/area.json"))
            rows, cols = (slice(*part) for part in stored["extent"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError):
            raise OutputError(
                f"{self.path}: does not hold the area of its run, so its blocks cannot be reused"
            ) from None
        return (rows, cols), Area(tuple(shapely.from_wkb(part) for part in parts)), stored

    def check_plan(self, plan: Plan) -> None:
        """Refuse to go on with a run whose area or weights have changed under the same name.

        Raises
        ------
        OutputError
            If they have; names the field.
        """
        stored, given = self._read_fingerprint(), plan.fingerprint()
        for key, field in (
            ("weights", "model.weights"),
            ("area", "area.file"),
            ("extent", "area"),
            ("blocks", "area"),
        ):
            if stored.get(key) != given[key]:
                raise OutputError(
                    f"{field}: its content is not what {self.output} was started with; set it "
                    "back, or choose another output.path"
                )

    def _read_fingerprint(self) -> dict[str, Any]:
        filesystem, root = fsspec.core.url_to_fs(self.path)
        try:
            stored: dict[str, Any] = json.loads(filesystem.cat_file(f"{root}/plan.json"))
        except (FileNotFoundError, json.JSONDecodeError):
            raise OutputError(
                f"{root}/plan.json: is missing or damaged; start again with --overwrite"
            ) from None
        return stored

    def has_overviews(self) -> bool:
        """Tell whether the overviews show the map as it is."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        filesystem.invalidate_cache(root)
        return bool(filesystem.exists(f"{root}/overviews.json"))

    def mark_overviews(self, *, complete: bool) -> None:
        """Note that the overviews are complete, or that a block may change what they show."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        path = f"{root}/overviews.json"
        if complete:
            write_atomically(filesystem, path, b'{"complete": true}')
        elif filesystem.exists(path):
            filesystem.rm_file(path)

    def check_removable(self) -> None:
        """Refuse to remove what is no map of bigmap.

        Raises
        ------
        OutputError
            If something else lies at the output.
        """
        filesystem, root = fsspec.core.url_to_fs(self.output)
        if not filesystem.exists(root) or (filesystem.isdir(root) and not filesystem.ls(root)):
            return
        try:
            attributes = json.loads(filesystem.cat_file(f"{root}/zarr.json"))["attributes"]
            is_map = any(name.startswith("bigmap:") for name in attributes)
        except (OSError, ValueError, KeyError, TypeError):
            is_map = False
        if not is_map:
            raise OutputError(
                f"output.path: {self.output} exists and is not a map of bigmap, so it is not "
                "overwritten; remove it yourself, or choose another place"
            )

    def clear(self) -> None:
        """Remove the map and all that belongs to it.

        Raises
        ------
        OutputError
            If what lies there is not a map.
        """
        self.check_removable()
        filesystem, root = fsspec.core.url_to_fs(self.output)
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)
        filesystem, root = fsspec.core.url_to_fs(self.path)
        names = ["recipe.yaml", "plan.json", "area.json", "items.parquet", AUDIT_FILE]
        names += ["overviews.json"]
        for name in [*names, "ledger", "parts", *self._zone_folders()]:
            if filesystem.exists(f"{root}/{name}"):
                filesystem.rm(f"{root}/{name}", recursive=True)

    def _zone_folders(self) -> list[str]:
        filesystem, root = fsspec.core.url_to_fs(self.path)
        if not filesystem.exists(root):
            return []
        places = [str(place).rstrip("/") for place in filesystem.ls(root, detail=False)]
        return [place.rpartition("/")[2] for place in places if ZONE_GROUP.search(place)]

    def read_recipe(self) -> tuple[Recipe, int]:
        """Return the recipe of the run and its number of blocks."""
        if not self.exists():
            raise OutputError(f"{self.output}: there is no run here")
        filesystem, root = fsspec.core.url_to_fs(self.path)
        file = f"{root}/recipe.yaml"
        content = filesystem.cat_file(file)
        blocks = int(self._read_fingerprint()["blocks"])
        return parse_recipe(parse_yaml(content, origin=file), origin=file), blocks

    def read_items(self) -> Catalogue:
        """Return the items of the run, as they were found when it started."""
        return load_items(f"{self.path}/items.parquet")

    def read_lease(self) -> LeaseState | None:
        """Return who drives the run at this moment."""
        filesystem, root = fsspec.core.url_to_fs(self.path)
        return read_lease(filesystem, f"{root}/{LEASE_FILE}")


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
    output = recipe.output.path
    if resume and overwrite:
        raise OutputError("--resume and --overwrite contradict each other; give one")
    folder = RunFolder(output)
    taken = folder.exists() or _exists(output)
    if taken and not (resume or overwrite):
        raise OutputError(
            f"output.path: {output} exists; add --resume to go on with it or --overwrite to start "
            "again"
        )
    if overwrite:
        folder.check_removable()
    if "://" not in output:
        _check_writable(Path(output))
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


def _exists(place: str) -> bool:
    try:
        filesystem, root = fsspec.core.url_to_fs(place)
        return bool(filesystem.exists(root))
    except _storage_errors() as error:
        raise OutputError(f"{place} cannot be reached ({error})") from None


def _storage_errors() -> tuple[type[Exception], ...]:
    """Return what file systems raise; s3fs lets through its client's errors, such as no keys."""
    try:
        from botocore.exceptions import (  # type: ignore[import-untyped]  # noqa: PLC0415
            BotoCoreError,
        )
    except ImportError:
        return OSError, ValueError, ImportError
    return OSError, ValueError, ImportError, BotoCoreError


def _check_writable(path: Path) -> None:
    """Try to write beside the map: permissions alone do not tell, least of all those of root."""
    parent = path.absolute()
    try:
        while not parent.exists():
            parent = parent.parent
        with tempfile.TemporaryDirectory(dir=parent, prefix=".bigmap-"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"output.path: {path}: {parent} cannot be written ({reason})") from None


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, read from its ledger by anyone."""

    output: str
    planned: int
    states: Counter[str]
    mapped_km2: float
    """Pixels with a value."""
    without_data_km2: Counter[str]
    """Pixels of the area without a value, by the reason."""
    seconds: Mapping[str, float]
    """Time of each stage, added up over blocks."""
    last: str
    """When the last block was finished, UTC; empty before the first."""
    failures: tuple[tuple[str, str], ...]
    """Failed blocks with their errors."""
    lease: LeaseState | None
    has_overviews: bool

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
    place = output.rstrip("/")
    group = ZONE_GROUP.search(place)
    below = group.group() if group else ""
    stem = place.removesuffix(below).removesuffix(".run").removesuffix(".zarr")
    folder = RunFolder(f"{stem}.zarr{below}")
    zones = folder.zones() if folder.exists() else {}
    if zones:
        return _read_zones(folder, zones)
    _, planned = folder.read_recipe()
    records = folder.ledger.latest().values()
    mapped_km2, without_data_km2 = add_km2(records)
    seconds: Counter[str] = Counter()
    for record in records:
        seconds.update(record.seconds)
    return RunStatus(
        output=folder.output,
        planned=planned,
        states=Counter(record.state for record in records),
        mapped_km2=mapped_km2,
        without_data_km2=without_data_km2,
        seconds=dict(seconds),
        last=max((record.finished for record in records), default=""),
        failures=tuple((r.block, r.error or "") for r in records if r.state == "failed"),
        lease=folder.read_lease(),
        has_overviews=folder.has_overviews(),
    )


def _read_zones(folder: RunFolder, zones: Mapping[str, int]) -> RunStatus:
    """Add up the status of all zones of a map; one without a run yet lacks all its blocks."""
    places = {group: f"{folder.output}/{group}" for group in zones}
    found = {
        group: read_status(place) for group, place in places.items() if RunFolder(place).exists()
    }
    seconds: Counter[str] = Counter()
    states: Counter[str] = Counter()
    without_data_km2: Counter[str] = Counter()
    for status in found.values():
        seconds.update(status.seconds)
        without_data_km2.update(status.without_data_km2)
        states.update(status.states)
    return RunStatus(
        output=folder.output,
        planned=sum(zones.values()),
        states=states,
        mapped_km2=sum(status.mapped_km2 for status in found.values()),
        without_data_km2=without_data_km2,
        seconds=dict(seconds),
        last=max((status.last for status in found.values()), default=""),
        failures=tuple(
            (f"{group}/{block}", error)
            for group, status in found.items()
            for block, error in status.failures
        ),
        lease=folder.read_lease(),
        has_overviews=all(group in found and found[group].has_overviews for group in zones),
    )
