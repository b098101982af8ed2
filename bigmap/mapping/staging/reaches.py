"""What the blocks of a plan read, as files to stage."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from affine import Affine

from bigmap import grid
from bigmap.mapping.engine import Engine
from bigmap.mapping.plans import Part
from bigmap.redaction import clean_href
from bigmap.scenes.cube.resampling import FileGrid, TargetGrid
from bigmap.scenes.cube.staging import Reach
from bigmap.scenes.items import AssetRow, ItemRow

SCENES = "scenes"


@dataclass(frozen=True)
class SceneFile:
    """One file to stage."""

    name: str
    """Path in the folder."""
    asset: AssetRow
    grid: FileGrid
    """Where its pixels lie, as the item says."""
    pixel_bytes: int
    reach: Reach


def key_of(row: ItemRow) -> tuple[str, str, Any]:
    """Return what tells items of one catalogue apart."""
    return row.collection, row.id, row.datetime


def list_used_rows(part: Part) -> list[ItemRow]:
    """Return the items that are handed to any block, in the order of the catalogue."""
    used = {key_of(row) for block in part.blocks for row in part.rows_of(block)}
    return [row for row in part.catalogue.rows if key_of(row) in used]


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


def list_files(part: Part, rows: list[ItemRow], *, whole: bool) -> list[SceneFile]:
    """List the files of the bands and the mask of all items."""
    of_bands, of_masks = list_reaches(part)
    mask = part.reading.mask.asset
    return [
        SceneFile(
            _name_file(row, name, whole=whole),
            row.assets[name],
            FileGrid(f"EPSG:{row.epsg}", Affine(*row.assets[name].transform),
                     row.assets[name].shape),
            1 if name == mask else 2,
            of_masks if name == mask else of_bands,
        )
        for row in rows
        for name in list_assets(part)
    ]  # fmt: skip


def list_assets(part: Part) -> list[str]:
    """Return the names of the bands and of the mask that a part reads."""
    mask = part.reading.mask.asset
    return [*part.model.spec.bands, *([mask] if mask else [])]


def _name_file(row: ItemRow, asset: str, *, whole: bool) -> str:
    """Name a file by item, asset and origin: ids differ between catalogues in more than names."""
    href = clean_href(row.assets[asset].href)
    suffix = PurePosixPath(urlsplit(href).path).suffix if whole else ".tif"
    origin = hashlib.sha256(f"{row.collection} {href}".encode()).hexdigest()[:8]
    item, name = (re.sub(r"[^A-Za-z0-9_-]", "_", text) for text in (row.id, asset))
    return f"{SCENES}/{item}/{name}-{origin}{suffix}"
