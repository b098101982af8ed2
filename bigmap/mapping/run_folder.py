"""The folder of a run, beside what it makes: recipe, items, ledger and lease.

What is one for the run lies in the folder itself; what each part has of its own lies there too, or,
where there are several, in folders of their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import shapely

from bigmap.config import Recipe, parse_recipe
from bigmap.config.strict_yaml import parse_yaml
from bigmap.errors import CatalogError, OutputError, RecipeError
from bigmap.files import list_names, list_numbered, locate, parse_json, storage_errors
from bigmap.grid import ROI, Area
from bigmap.lease import LEASE_FILE, LEASE_FOLDER, Lease, LeaseState, read_lease
from bigmap.mapping.ledger import Ledger
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.store.zarr_stores import METADATA, remove_store
from bigmap.scenes.catalog import Catalogue, is_saved_catalogue, load_items, save_items
from bigmap.zones import all_zones

T = TypeVar("T")

RECIPE, PLAN, AREA, ITEMS = "recipe.yaml", "plan.json", "area.json", "items.parquet"
AUDIT = "audit.txt"
"""What the search found, kept and left out, item by item, for people."""
MARK = "bigmap.json"
"""File of a run folder that says so: another folder may have the name by chance."""
OVERVIEWS = "overviews"
OWN_NAMES = (
    RECIPE, PLAN, AREA, ITEMS, AUDIT, f"{OVERVIEWS}.json", OVERVIEWS, "ledger", "parts", MARK,
    *(zone.group for zone in all_zones()),
)  # fmt: skip
RESTORE = "put it back from a copy, or start again with --overwrite"


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it must not forget."""

    output: str
    """Path or URL of what it makes."""

    @property
    def path(self) -> str:
        """Path or URL of the folder: that of what is made, with ``.run`` for ``.zarr``."""
        return f"{self.output.removesuffix('.zarr')}.run"

    def part(self, name: str) -> PartFolder:
        """Return what one part keeps; see :attr:`bigmap.mapping.plans.Part.name`."""
        return PartFolder(self, name)

    def exists(self) -> bool:
        """Tell whether a run has been started here.

        Raises
        ------
        OutputError
            If the place cannot be reached.
        """
        return exists(f"{self.path}/{RECIPE}")

    def check_own(self) -> None:
        """Refuse a run folder that is not of a map or of samples.

        Raises
        ------
        OutputError
            If it holds something else.
        """
        check_run_folder(self.path, "map", signs=(RECIPE, PLAN))

    def create(self, plan: Plan, lease: Lease) -> None:
        """Write what a resumed run needs; the recipe last, as it says that all is there."""
        _, root = locate(self.path)
        mark_run_folder(self.path, "map", lease)
        for part in plan.parts:
            self.part(part.name).create(part, lease)
        self._write_parts(plan, lease, first_term=lease.term)
        lease.write(f"{root}/{RECIPE}", plan.recipe.to_yaml().encode())

    def mend(self, plan: Plan, lease: Lease) -> list[str]:
        """Make anew what is damaged and follows from the plan; returns what, for people."""
        mended = [each for part in plan.parts for each in self.part(part.name).mend(part, lease)]
        try:
            self.parts()
        except OutputError:
            self._write_parts(plan, lease, first_term=0)
            mended.append(
                f"{locate(self.path)[1]}/{PLAN}: was missing or damaged, and is made anew"
            )
        return mended

    def _write_parts(self, plan: Plan, lease: Lease, *, first_term: int) -> None:
        """Write the names of several parts; a single one has written its own facts."""
        blocks = {part.name: len(part.blocks) for part in plan.parts if part.name}
        if blocks:
            content = {"blocks": sum(blocks.values()), "zones": blocks, "term": first_term}
            lease.write(f"{locate(self.path)[1]}/{PLAN}", json.dumps(content).encode())

    def parts(self) -> dict[str, int]:
        """Return the names of the parts with their blocks; one without a name is the whole.

        Raises
        ------
        OutputError
            If they cannot be read.
        """
        stored = self.read_facts()
        return dict(stored["zones"]) or {"": int(stored["blocks"])}

    def check_plan(self, plan: Plan) -> None:
        """Refuse to go on with a run whose area or weights have changed under the same name.

        Raises
        ------
        OutputError
            If they have; names the field.
        """
        for part in plan.parts:
            self.part(part.name).check_plan(part)

    def read_facts(self) -> dict[str, Any]:
        """Return what ``plan.json`` says."""
        return self.read(PLAN, _parse_facts)

    def read(self, name: str, parse: Callable[[bytes], T]) -> T:
        """Read a file of the folder; see :func:`read_file`."""
        return read_file(f"{locate(self.path)[1]}/{name}", self.path, parse)

    def check_removable(self, field: str) -> None:
        """Refuse to remove what bigmap has not made.

        Parameters
        ----------
        field
            Of the recipe that names the output.

        Raises
        ------
        OutputError
            If something else lies at the output.
        """
        filesystem, root = locate(self.output)
        if not filesystem.exists(root) or (filesystem.isdir(root) and not filesystem.ls(root)):
            return
        try:
            attributes = _parse_attributes(filesystem.cat_file(f"{root}/{METADATA}"))
            is_own = any(name.startswith("bigmap:") for name in attributes)
        except (OSError, ValueError, KeyError, TypeError):
            # Its metadata may be lost, or not written yet, but not its run folder.
            is_own = self.exists()
        if not is_own:
            raise OutputError(
                f"{field}: {self.output} exists and was not made by bigmap, so it is not "
                "overwritten; remove it yourself, or choose another place"
            )

    def clear(self, lease: Lease, field: str) -> None:
        """Remove the output and all that belongs to it but its lease.

        Parameters
        ----------
        lease
            Which this driver holds.
        field
            As for :meth:`check_removable`.

        Raises
        ------
        OutputError
            If what lies there is not of bigmap, or the run folder not that of such a run.
        """
        self.check_removable(field)
        self.check_own()
        lease.check()
        # The output first: what is killed in between can be resumed.
        remove_store(self.output)
        filesystem, root = locate(self.path)
        for name in set(OWN_NAMES) & set(list_names(filesystem, root)):
            filesystem.rm(f"{root}/{name}", recursive=True)

    def read_recipe(self) -> tuple[Recipe, int]:
        """Return the recipe of the run and its number of blocks."""
        filesystem, root = locate(self.path)
        if not self.exists() and not filesystem.exists(f"{root}/{MARK}"):
            raise OutputError(f"{self.output}: there is no run here")
        recipe = self.read(RECIPE, partial(_parse_recipe, file=f"{root}/{RECIPE}"))
        return recipe, sum(self.parts().values())

    def read_lease(self) -> LeaseState | None:
        """Return who drives the run at this moment."""
        return read_lease(self.path)


@dataclass(frozen=True)
class PartFolder:
    """What a run keeps of one part."""

    run: RunFolder
    name: str
    """Empty where the run has one part."""

    @property
    def path(self) -> str:
        """Path or URL of the folder."""
        return f"{self.run.path}/{self.name}" if self.name else self.run.path

    @property
    def store(self) -> str:
        """Path or URL of what is made."""
        return f"{self.run.output}/{self.name}" if self.name else self.run.output

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
        return Ledger(self.path, lease, first_term=self._read_facts()["term"])

    def create(self, part: Part, lease: Lease) -> None:
        """Write what a resumed run needs of the part."""
        lease.check()
        save_items(part.catalogue, f"{self.path}/{ITEMS}")
        audit = "\n".join(part.catalogue.audit.lines(examples=None)) + "\n"
        self._write(AUDIT, audit, lease)
        self._write_area(part, lease)
        self._write_facts(part, lease, first_term=lease.term)

    def mend(self, part: Part, lease: Lease) -> list[str]:
        """Make anew what is damaged and follows from the plan; returns what, for people."""
        _, root = locate(self.path)
        mended = []
        try:
            self._read_facts()
        except OutputError:
            self._write_facts(part, lease, first_term=0)
            mended.append(f"{root}/{PLAN}: was missing or damaged, and is made anew")
        try:
            self._read_area()
        except OutputError:
            self._write_area(part, lease)
            mended.append(f"{root}/{AREA}: was missing or damaged, and is made anew")
        return mended + self.open_ledger(lease).mend()

    def _write_area(self, part: Part, lease: Lease) -> None:
        # The area itself, since its file may have been changed when blocks are to be reused.
        content = [shapely.to_wkb(each).hex() for each in part.area.parts]
        self._write(AREA, json.dumps(content), lease)

    def _write_facts(self, part: Part, lease: Lease, *, first_term: int) -> None:
        self._write(PLAN, json.dumps(part.fingerprint() | {"term": first_term}), lease)

    def _write(self, name: str, content: str, lease: Lease) -> None:
        lease.write(f"{locate(self.path)[1]}/{name}", content.encode())

    def read_plan(self) -> tuple[ROI, Area, dict[str, Any]]:
        """Return the extent, the area and the other facts that the run was started with.

        Raises
        ------
        OutputError
            If they are not there.
        """
        stored = self._read_facts()
        try:
            rows, cols = (slice(int(start), int(stop)) for start, stop in stored["extent"])
        except (ValueError, TypeError, KeyError, OverflowError):
            raise OutputError(
                f"{self.path}: does not hold the area of its run, so its blocks cannot be reused"
            ) from None
        return (rows, cols), self._read_area(), stored

    def check_plan(self, part: Part) -> None:
        """Refuse to go on with a part that has changed; see :meth:`RunFolder.check_plan`."""
        given = part.fingerprint()
        try:
            stored = self._read_facts()
        except OutputError:
            stored = self._tell_facts(part)
        for key, field in (
            ("weights", "model.weights"),
            ("area", "area.file"),
            ("extent", "area"),
            ("blocks", "area"),
        ):
            if stored.get(key) != given[key]:
                raise OutputError(
                    f"{field}: its content is not what {self.store} was started with; set it "
                    f"back, or choose another {part.purpose.field}"
                )
        if stored.get("windows") != given["windows"]:
            raise OutputError(
                f"{self.store}: was started with other windows than this version of bigmap cuts; "
                f"go on with that version, or choose another {part.purpose.field}"
            )

    def _tell_facts(self, part: Part) -> dict[str, Any]:
        """Tell from the map and from ``area.json`` what a damaged ``plan.json`` would say.

        Raises
        ------
        OutputError
            If they are damaged too.
        """
        given, template = part.fingerprint(), part.template()
        area = b"".join(shapely.to_wkb(each) for each in self._read_area().parts)
        _, root = locate(self.store)
        attributes = read_file(f"{root}/{METADATA}", self.store, _parse_attributes)
        place = attributes.get("spatial:transform"), attributes.get("spatial:shape")
        model = attributes.get("bigmap:model")
        is_alike = place == (list(template.transform()), list(template.shape()))
        return {
            "area": hashlib.sha256(area).hexdigest(),
            "weights": model.get("weights") if isinstance(model, dict) else None,
            "windows": given["windows"],
            **{key: given[key] if is_alike else None for key in ("extent", "blocks")},
        }

    def read_items(self) -> Catalogue:
        """Return the items of the part, as they were found when the run started.

        Raises
        ------
        OutputError
            If they cannot be read.
        """
        try:
            return load_items(f"{self.path}/{ITEMS}")
        except CatalogError as error:
            raise OutputError(f"{error}; {RESTORE}") from None

    def check_items(self) -> None:
        """Refuse a part whose items cannot be read, as far as the file's end tells.

        Raises
        ------
        OutputError
            If it cannot be resumed without them.
        """
        if not is_saved_catalogue(f"{self.path}/{ITEMS}"):
            raise OutputError(f"{self.path}/{ITEMS}: is missing or damaged; {RESTORE}")

    def has_overviews(self) -> bool:
        """Tell whether the overviews show the map as it is."""
        filesystem, root = locate(self.path)
        marks = list_numbered(filesystem, f"{root}/{OVERVIEWS}")
        first = self._read_facts()["term"]
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
        self._write(f"{OVERVIEWS}/{lease.term:09d}.json", json.dumps({"complete": complete}), lease)

    def _read_facts(self) -> dict[str, Any]:
        return self._read(PLAN, _parse_facts)

    def _read_area(self) -> Area:
        return self._read(
            AREA,
            lambda content: Area(tuple(shapely.from_wkb(each) for each in parse_json(content))),
        )

    def _read(self, name: str, parse: Callable[[bytes], T]) -> T:
        return read_file(f"{locate(self.path)[1]}/{name}", self.path, parse)


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


def exists(place: str) -> bool:
    """Tell whether something lies at a path or URL.

    Raises
    ------
    OutputError
        If it cannot be reached.
    """
    filesystem, root = locate(place)
    try:
        return bool(filesystem.exists(root))
    except storage_errors() as error:
        raise OutputError(f"{place} cannot be reached ({error})") from None


def _parse_recipe(content: bytes, *, file: str) -> Recipe:
    raw = parse_yaml(content, origin=file)
    if isinstance(raw.get("area"), dict):
        raw["area"].pop("utm_zone", None)  # which recipes of earlier versions had
    return parse_recipe(raw, origin=file)


def _parse_facts(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"zones": {}, "term": 0} | parse_json(content)
    for key, kind in (("blocks", int), ("zones", dict), ("term", int)):
        if not isinstance(found[key], kind):
            raise TypeError(f"its {key} are not of the kind {kind.__name__}")
    known = {zone.group for zone in all_zones()}
    if not all(name in known and isinstance(n, int) for name, n in found["zones"].items()):
        raise TypeError("its zones are none, or do not tell their blocks")
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
