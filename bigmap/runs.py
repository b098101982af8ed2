"""The folder of a run, beside its map: recipe, items, ledger and lease."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import shapely

from bigmap.catalog import Catalogue, is_saved_catalogue, load_items, save_items
from bigmap.config import ZONE_GROUP, Recipe, parse_recipe, parse_yaml
from bigmap.errors import CatalogError, OutputError, RecipeError
from bigmap.files import is_local, list_names, list_numbered, locate, parse_json, storage_errors
from bigmap.grid import ROI, Area
from bigmap.lease import LEASE_FILE, LEASE_FOLDER, Lease, LeaseState, read_lease
from bigmap.ledger import BlockRecord, Ledger, add_km2, list_replaced
from bigmap.planning import Plan
from bigmap.store import METADATA, ShardKey, check_shards, has_map, remove_store

T = TypeVar("T")

AUDIT = "audit.txt"
"""What the search found, kept and left out, item by item, for people."""
MARK = "bigmap.json"
"""File of a run folder that says so: another folder may have the name by chance."""
OVERVIEWS = "overviews"
OWN_NAMES = (
    "recipe.yaml", "plan.json", "area.json", "items.parquet", AUDIT, f"{OVERVIEWS}.json", OVERVIEWS,
    "ledger", "parts", MARK,
)  # fmt: skip
RESTORE = "put it back from a copy, or start again with --overwrite"

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
        return self.open_ledger()

    def open_ledger(self, lease: Lease | None = None) -> Ledger:
        """Open the ledger, for writing under a lease.

        Raises
        ------
        OutputError
            If it cannot be told which of its segments are of this run.
        """
        return Ledger(self.path, lease, first_term=self._read_fingerprint()["term"])

    def exists(self) -> bool:
        """Tell whether a run has been started here.

        Raises
        ------
        OutputError
            If the place cannot be reached.
        """
        return _exists(f"{self.path}/recipe.yaml")

    def check_own(self) -> None:
        """Refuse a run folder that is not of a map or of samples.

        Raises
        ------
        OutputError
            If it holds something else.
        """
        check_run_folder(self.path, "map", signs=("recipe.yaml", "plan.json"))

    def create(self, plan: Plan, lease: Lease) -> None:
        """Write what a resumed run needs; the recipe last, as it says that all is there."""
        _, root = locate(self.path)
        mark_run_folder(self.path, "map", lease)
        lease.check()
        save_items(plan.catalogue, f"{self.path}/items.parquet")
        audit = "\n".join(plan.catalogue.audit.lines(examples=None)) + "\n"
        lease.write(f"{root}/{AUDIT}", audit.encode())
        self._write_area(plan, lease)
        self._write_fingerprint(plan, lease, first_term=lease.term)
        lease.write(f"{root}/recipe.yaml", plan.recipe.to_yaml().encode())

    def mend(self, plan: Plan, lease: Lease) -> list[str]:
        """Make anew what is damaged and follows from the plan; returns what, for people."""
        _, root = locate(self.path)
        mended = []
        try:
            self._read_fingerprint()
        except OutputError:
            self._write_fingerprint(plan, lease, first_term=0)
            mended.append(f"{root}/plan.json: was missing or damaged, and is made anew")
        try:
            self._read_area()
        except OutputError:
            self._write_area(plan, lease)
            mended.append(f"{root}/area.json: was missing or damaged, and is made anew")
        return mended + self.open_ledger(lease).mend()

    def _write_area(self, plan: Plan, lease: Lease) -> None:
        # The area itself, since its file may have been changed when blocks are to be reused.
        parts = [shapely.to_wkb(part).hex() for part in plan.area.parts]
        lease.write(f"{locate(self.path)[1]}/area.json", json.dumps(parts).encode())

    def _write_fingerprint(self, plan: Plan, lease: Lease, *, first_term: int) -> None:
        content = plan.fingerprint() | {"term": first_term}
        lease.write(f"{locate(self.path)[1]}/plan.json", json.dumps(content).encode())

    def create_zones(self, recipe: Recipe, blocks: Mapping[str, int], lease: Lease) -> None:
        """Write the recipe of a map of several UTM zones and the blocks of each group."""
        _, root = locate(self.path)
        mark_run_folder(self.path, "map", lease)
        content = {"blocks": sum(blocks.values()), "zones": dict(blocks)}
        lease.write(f"{root}/plan.json", json.dumps(content).encode())
        lease.write(f"{root}/recipe.yaml", recipe.to_yaml().encode())

    def zones(self) -> dict[str, int]:
        """Return the groups of a map of several UTM zones, with their blocks; else nothing."""
        return dict(self._read_fingerprint()["zones"])

    def read_plan(self) -> tuple[ROI, Area, dict[str, Any]]:
        """Return the extent, the area and the other facts that the run was started with.

        Raises
        ------
        OutputError
            If they are not there.
        """
        stored = self._read_fingerprint()
        try:
            rows, cols = (slice(int(start), int(stop)) for start, stop in stored["extent"])
        except (ValueError, TypeError, KeyError, OverflowError):
            raise OutputError(
                f"{self.path}: does not hold the area of its run, so its blocks cannot be reused"
            ) from None
        return (rows, cols), self._read_area(), stored

    def check_plan(self, plan: Plan) -> None:
        """Refuse to go on with a run whose area or weights have changed under the same name.

        Raises
        ------
        OutputError
            If they have; names the field.
        """
        given = plan.fingerprint()
        try:
            stored = self._read_fingerprint()
        except OutputError:
            stored = self._tell_fingerprint(plan)
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

    def _tell_fingerprint(self, plan: Plan) -> dict[str, Any]:
        """Tell from the map and from ``area.json`` what a damaged ``plan.json`` would say.

        Raises
        ------
        OutputError
            If they are damaged too.
        """
        given, template = plan.fingerprint(), plan.template()
        area = b"".join(shapely.to_wkb(part) for part in self._read_area().parts)
        _, root = locate(self.output)
        attributes = read_file(f"{root}/zarr.json", self.output, _parse_attributes)
        place = attributes.get("spatial:transform"), attributes.get("spatial:shape")
        model = attributes.get("bigmap:model")
        is_alike = place == (list(template.transform()), list(template.shape()))
        return {
            "area": hashlib.sha256(area).hexdigest(),
            "weights": model.get("weights") if isinstance(model, dict) else None,
            **{key: given[key] if is_alike else None for key in ("extent", "blocks")},
        }

    def _read_fingerprint(self) -> dict[str, Any]:
        return self._read("plan.json", _parse_fingerprint)

    def _read_area(self) -> Area:
        return self._read(
            "area.json",
            lambda content: Area(tuple(shapely.from_wkb(part) for part in parse_json(content))),
        )

    def _read(self, name: str, parse: Callable[[bytes], T]) -> T:
        return read_file(f"{locate(self.path)[1]}/{name}", self.path, parse)

    def has_overviews(self) -> bool:
        """Tell whether the overviews show the map as it is."""
        filesystem, root = locate(self.path)
        marks = list_numbered(filesystem, f"{root}/{OVERVIEWS}")
        first = self._read_fingerprint()["term"]
        if not marks:
            return first == 0 and bool(filesystem.exists(f"{root}/{OVERVIEWS}.json"))
        term, path = marks[-1]
        try:
            mark = parse_json(filesystem.cat_file(path))
        except (OSError, ValueError):
            return False
        return bool(term >= first and mark == {"complete": True})

    def mark_overviews(self, lease: Lease, *, complete: bool) -> None:
        """Note that the overviews are complete, or that a block may change what they show.

        Each lease has a mark of its own, and the newest counts: a driver that was taken over
        cannot call those complete that its successor makes.
        """
        path = f"{locate(self.path)[1]}/{OVERVIEWS}/{lease.term:09d}.json"
        lease.write(path, json.dumps({"complete": complete}).encode())

    def check_removable(self) -> None:
        """Refuse to remove what is no map of bigmap.

        Raises
        ------
        OutputError
            If something else lies at the output.
        """
        filesystem, root = locate(self.output)
        if not filesystem.exists(root) or (filesystem.isdir(root) and not filesystem.ls(root)):
            return
        try:
            attributes = _parse_attributes(filesystem.cat_file(f"{root}/zarr.json"))
            is_map = any(name.startswith("bigmap:") for name in attributes)
        except (OSError, ValueError, KeyError, TypeError):
            # Its metadata may be lost, or not written yet, but not its run folder.
            is_map = self.exists()
        if not is_map:
            raise OutputError(
                f"output.path: {self.output} exists and is not a map of bigmap, so it is not "
                "overwritten; remove it yourself, or choose another place"
            )

    def clear(self, lease: Lease) -> None:
        """Remove the map and all that belongs to it but its lease.

        Raises
        ------
        OutputError
            If what lies there is not a map, or the run folder not that of one.
        """
        self.check_removable()
        self.check_own()
        lease.check()
        remove_store(self.output)
        filesystem, root = locate(self.path)
        for name in [*OWN_NAMES, *self._zone_folders()]:
            if filesystem.exists(f"{root}/{name}"):
                filesystem.rm(f"{root}/{name}", recursive=True)

    def _zone_folders(self) -> list[str]:
        filesystem, root = locate(self.path)
        return [name for name in list_names(filesystem, root) if ZONE_GROUP.search(f"/{name}")]

    def read_recipe(self) -> tuple[Recipe, int]:
        """Return the recipe of the run and its number of blocks."""
        filesystem, root = locate(self.path)
        if not self.exists() and not filesystem.exists(f"{root}/{MARK}"):
            raise OutputError(f"{self.output}: there is no run here")
        file = f"{root}/recipe.yaml"
        recipe = self._read("recipe.yaml", partial(_parse_recipe, file=file))
        return recipe, int(self._read_fingerprint()["blocks"])

    def read_items(self) -> Catalogue:
        """Return the items of the run, as they were found when it started.

        Raises
        ------
        OutputError
            If they cannot be read.
        """
        try:
            return load_items(f"{self.path}/items.parquet")
        except CatalogError as error:
            raise OutputError(f"{error}; {RESTORE}") from None

    def check_items(self) -> None:
        """Refuse a run whose items cannot be read, as far as the file's end tells.

        Raises
        ------
        OutputError
            If it cannot be resumed without them.
        """
        if not is_saved_catalogue(f"{self.path}/items.parquet"):
            raise OutputError(f"{self.path}/items.parquet: is missing or damaged; {RESTORE}")

    def read_lease(self) -> LeaseState | None:
        """Return who drives the run at this moment."""
        return read_lease(self.path)


def read_file(path: str, folder: str, parse: Callable[[bytes], T]) -> T:
    """Read a file on which a run depends.

    Parameters
    ----------
    path
        Within the file system of ``folder``.
    folder
        Path or URL of the run folder or the map.
    parse
        Turns the content into what it stands for.

    Raises
    ------
    OutputError
        If it is missing or damaged, in one sentence that says what to do.
    """
    filesystem, _ = locate(folder)
    try:
        return parse(bytes(filesystem.cat_file(path)))
    except FileNotFoundError:
        raise OutputError(f"{path}: is missing; {RESTORE}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecipeError,
            shapely.GEOSException) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:200]
        raise OutputError(f"{path}: is damaged ({reason}); {RESTORE}") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None


def _parse_recipe(content: bytes, *, file: str) -> Recipe:
    return parse_recipe(parse_yaml(content, origin=file), origin=file)


def _parse_fingerprint(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"zones": {}, "term": 0} | parse_json(content)
    for key, kind in (("blocks", int), ("zones", dict), ("term", int)):
        if not isinstance(found[key], kind):
            raise TypeError(f"its {key} are not of the kind {kind.__name__}")
    if not all(isinstance(count, int) for count in found["zones"].values()):
        raise TypeError("its zones do not tell their blocks")
    return found


def _parse_attributes(content: bytes) -> dict[str, Any]:
    found = parse_json(content)["attributes"]
    if not isinstance(found, dict):
        raise TypeError("its attributes are no object")
    return found


def check_run_folder(path: str, kind: str, *, signs: Collection[str]) -> None:
    """Refuse a folder beside an output that bigmap did not make for one of its kind.

    Parameters
    ----------
    path
        Of the folder, which ends in ``.run``.
    kind
        What its run makes: ``map`` or ``training``.
    signs
        Files by which a folder of a version that did not mark them is known.

    Raises
    ------
    OutputError
        If something else lies there.
    """
    filesystem, root = locate(path)
    names = set(list_names(filesystem, root))
    if names <= {LEASE_FOLDER, LEASE_FILE}:
        return
    if MARK in names:
        found = read_file(f"{root}/{MARK}", path, parse_json)
        is_own = isinstance(found, dict) and found.get("kind") == kind
    else:
        is_own = set(signs) <= names
    if not is_own:
        raise OutputError(
            f"{path}: exists and is not the run folder of a {kind}, so nothing is written there; "
            "move it away, or choose another place"
        )


def mark_run_folder(path: str, kind: str, lease: Lease) -> None:
    """Say in a run folder that it is one, and of what."""
    lease.write(f"{locate(path)[1]}/{MARK}", json.dumps({"kind": kind}).encode())


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
    check_location(output, field="output.path")
    taken = folder.exists() or _exists(output)
    if taken and not (resume or overwrite):
        raise OutputError(
            f"output.path: {output} exists; add --resume to go on with it or --overwrite to start "
            "again"
        )
    folder.check_own()
    if overwrite:
        folder.check_removable()
    if "://" not in output:
        _check_writable(Path(output))
    if overwrite or not taken:
        return False
    if not folder.exists():
        raise OutputError(
            f"output.path: {recipe.output.path} exists without {folder.path}/recipe.yaml, so it "
            f"cannot be resumed; {RESTORE}"
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
    filesystem, root = locate(place)
    try:
        return bool(filesystem.exists(root))
    except storage_errors() as error:
        raise OutputError(f"{place} cannot be reached ({error})") from None


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
    for parent in PurePosixPath(ZONE_GROUP.sub("", root)).parents:
        if any(filesystem.exists(f"{parent}/{name}") for name in (METADATA, MARK)):
            raise OutputError(
                f"{field}: {output} lies inside another map or run, {parent}; choose a place "
                "beside it"
            )


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
    has_map: bool = True
    lost: tuple[str, ...] = ()
    """Blocks that are recorded, but whose objects are not there as they were written."""
    damage: tuple[str, ...] = ()
    """Sentences about segments of the ledger that cannot be read whole."""
    replaced: tuple[str, ...] = ()
    """Items whose files were replaced since the run began."""

    @property
    def missing(self) -> int:
        """Blocks without a record."""
        return self.planned - sum(self.states.values())

    @property
    def is_running(self) -> bool:
        """Tell whether a driver seems to be at work."""
        return self.lease is not None and self.lease.is_alive

    @property
    def is_whole(self) -> bool:
        """Tell whether there is nothing that a resumed run would do."""
        is_open = self.missing or self.failures or self.states["degraded"] or self.lost
        return self.has_map and self.has_overviews and not is_open


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
    folder.check_items()
    ledger = folder.ledger
    records = ledger.latest().values()
    mapped_km2, without_data_km2 = add_km2(records)
    lease = folder.read_lease()
    # While a run goes on, its objects change; the run itself looks after them.
    is_running = lease is not None and lease.is_alive
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
        lease=lease,
        has_overviews=folder.has_overviews(),
        has_map=is_running or has_map(folder.output, _list_arrays(records)),
        lost=() if is_running else list_lost_blocks(folder.output, records),
        damage=tuple(ledger.damage),
        replaced=list_replaced(records),
    )


def _list_arrays(records: Collection[BlockRecord]) -> set[str]:
    return {key.partition("/c/")[0] for record in records for key, _ in record.shards}


def list_lost_blocks(place: str, records: Collection[BlockRecord]) -> tuple[str, ...]:
    """Return the blocks whose objects are missing or have another size.

    Parameters
    ----------
    place
        Of the objects: the map, or the run folder of samples.
    """
    keys = (ShardKey(*shard) for record in records for shard in record.shards)
    lost = set(check_shards(place, keys))
    return tuple(record.block for record in records if any(key in lost for key, _ in record.shards))


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
        has_map=all(status.has_map for status in found.values()),
        lost=tuple(f"{group}/{name}" for group, status in found.items() for name in status.lost),
        damage=tuple(each for status in found.values() for each in status.damage),
        replaced=tuple(sorted({each for status in found.values() for each in status.replaced})),
    )
