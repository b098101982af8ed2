"""What a folder was staged for, and the plan that reads it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import shapely
from shapely.errors import ShapelyError

from bigmap import grid
from bigmap.errors import CatalogError, PlanError
from bigmap.files import parse_json, write_and_sync
from bigmap.mapping.plans import Part
from bigmap.mapping.staging.reaches import SceneFile, key_of, list_assets, list_used_rows
from bigmap.scenes.catalog import Catalogue, load_items, save_items
from bigmap.scenes.items import ItemRow, ItemTable

ITEMS = "items.parquet"
NOTE = "stage.json"
FREE_SOURCE_FIELDS = {"access", "cache", "cache_gb"}
"""Settings of a source that decide no value."""
ROUNDING_M = 1.0
"""By how much the area of a run may lie outside of what was staged."""


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
    staged = {key_of(row): row.assets for row in read_staged(folder).rows}
    rows = []
    for row in list_used_rows(part):
        if key_of(row) not in staged:
            raise _refuse(folder, f"a catalogue without {row.id}")
        rows.append(replace(row, assets=staged[key_of(row)]))
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


def write_catalogue(part: Part, rows: list[ItemRow], files: list[SceneFile], folder: Path) -> None:
    """Write the items with the places of their staged files, then what they were staged for."""
    names, waiting = list_assets(part), iter(files)
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
    write_and_sync(folder / NOTE, json.dumps(_describe(part), indent=1).encode())


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
