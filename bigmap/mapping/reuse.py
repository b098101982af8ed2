"""Blocks of an earlier run that a new run would make alike: their objects are copied.

A block is alike where everything that decides its bytes is: grid, model and weights, layers,
dates, mask, resampling and versions of the whole run; its state, device and place; the items it
reads; and the part of the area inside it. A larger area or new dates so compute what is new only.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from bigmap import grid
from bigmap.config import Recipe
from bigmap.errors import OutputError
from bigmap.files import is_local, locate, make_folder
from bigmap.grid import ROI, Area, area_mask
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.places import list_changes
from bigmap.mapping.plans import Part
from bigmap.mapping.run_folder import PartFolder, RunFolder
from bigmap.mapping.store.shards import list_shard_keys, max_shard_bytes
from bigmap.scenes.items import ItemTable

COPIES = 8
"""Blocks copied at once."""
PER_BLOCK = ("area", "source", "name", "output.path", "output.overviews", "inference.device")
"""Settings that may differ: they decide no value, or are compared block by block."""


@dataclass(frozen=True)
class _Reusable:
    """A block of the earlier run."""

    block: ROI
    record: BlockRecord


@dataclass(frozen=True)
class _Earlier:
    """One part of an earlier run, as far as it decides bytes of blocks."""

    part: Part
    """That of the new run, with the extent, the area and the items of the earlier one."""
    folder: PartFolder


def copy_unchanged(part: Part, blocks: Collection[ROI], old: RunFolder) -> Iterator[BlockRecord]:
    """Copy the objects of blocks that an earlier run has made alike.

    Parameters
    ----------
    part
        Of the new run, whose map has been created.
    blocks
        Those still to be done.
    old
        Of the earlier run; a part that it does not have gives no block.

    Yields
    ------
    BlockRecord
        Of each copied block, with ``reused`` set.

    Raises
    ------
    OutputError
        If there is no run at ``old``, one is at work there, or its settings differ.
    """
    if part.purpose.path == old.output:
        raise OutputError(f"--reuse {old.output}: is the output itself; use --resume")
    stored, _ = old.read_recipe()
    lease = old.read_lease()
    if lease is not None and lease.is_alive:
        raise OutputError(f"--reuse {old.output}: a run is at work there; wait for its end")
    parts = old.parts()
    if ("" in parts) != (part.name == ""):
        kind = "is not a map" if part.name else "is a map"
        raise OutputError(f"--reuse {old.output}: {kind} with grid.crs utm")
    if part.name not in parts:
        return
    before = _open_earlier(part, old.part(part.name), stored)
    alike = _find_alike(part, before, blocks)
    with ThreadPoolExecutor(COPIES) as pool:
        for record in pool.map(lambda each: _copy(part, before, each), alike):
            if record is not None:
                yield record


def _open_earlier(part: Part, folder: PartFolder, stored: Recipe) -> _Earlier:
    """Refuse an earlier run that cannot be used for the new one."""
    extent, area, facts = folder.read_plan()
    new = part.fingerprint()
    changed = list_changes(stored, part.recipe, (*part.purpose.free_fields, *PER_BLOCK))
    if stored.source.mask != part.recipe.source.mask:
        changed.append("source.mask")
    names = {"weights": "model.weights", "windows": "grid.core_px", "versions": "versions"}
    changed += [name for key, name in names.items() if facts.get(key) != new[key]]
    if changed:
        raise OutputError(
            f"--reuse {folder.run.output}: was made with another {', '.join(changed)}, so no block "
            "of it can be used; set it back, or run without --reuse"
        )
    catalogue = folder.read_items()
    return _Earlier(replace(part, extent=extent, area=area, catalogue=catalogue), folder)


def _find_alike(part: Part, earlier: _Earlier, blocks: Collection[ROI]) -> Iterator[_Reusable]:
    records, before = earlier.folder.ledger.latest(), earlier.part
    recorded = [
        block
        for block in blocks
        if _is_good(records.get(part.name_block(block)), part)
        and grid.intersect(_whole(block, part), before.extent) == block
    ]
    if not recorded:
        return
    new_codes, old_codes = _encode_rows(part.catalogue.rows, before.catalogue.rows)
    around = [part.context_of(block) for block in recorded]
    boxes = part.lattice.bounds_of(around)
    inside = _covered(part.area, boxes) & _covered(before.area, boxes)
    for block, context, is_inside in zip(recorded, around, inside, strict=True):
        now, then = new_codes[part.indices_of(block)], old_codes[before.indices_of(block)]
        if np.array_equal(now, then) and (
            is_inside or _have_one_area(part, before, block, context)
        ):
            yield _Reusable(block, records[part.name_block(block)])


def _have_one_area(part: Part, before: Part, block: ROI, context: ROI) -> bool:
    """Tell whether two runs map the same pixels of a block, and choose dates by the same ones."""
    masks = [
        (
            area_mask(each.area, part.lattice, block),
            area_mask(each.area.outline, part.lattice, context),
        )
        for each in (part, before)
    ]
    return all(np.array_equal(*pair) for pair in zip(*masks, strict=True))


def _is_good(record: BlockRecord | None, part: Part) -> bool:
    if record is None or record.state not in ("done", "empty"):
        return False
    return record.device == part.windowing.device


def _whole(block: ROI, part: Part) -> ROI:
    """Return a block before it was clipped to an extent."""
    side = part.lattice.block_px
    rows, cols = (slice(p.start // side * side, p.start // side * side + side) for p in block)
    return rows, cols


def _covered(area: Area, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    shapes = shapely.box(*boxes.T)
    covered = np.ones(len(boxes), dtype=bool)
    for part in area.parts:
        shapely.prepare(part)
        covered &= shapely.covers(part, shapes)
    return covered


def _encode_rows(
    new: ItemTable, old: ItemTable
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Give equal rows of two tables the same number."""
    texts = np.concatenate([_texts_of(new), _texts_of(old)])
    _, codes = np.unique(texts, return_inverse=True)
    return codes[: len(new)], codes[len(new) :]


def _texts_of(rows: ItemTable) -> npt.NDArray[Any]:
    """Write each row as one text, its layout as a checksum."""
    columns = []
    for name in rows.columns.column_names:
        column = rows.columns[name]
        if name == "layout":
            codes = column.cast(pa.string()).combine_chunks().dictionary_encode()
            sums = [hashlib.sha256(t.encode()).hexdigest() for t in codes.dictionary.to_pylist()]
            column = pa.DictionaryArray.from_arrays(codes.indices, sums).cast(pa.string())
        columns.append(pc.fill_null(column.cast(pa.string()), ""))
    joined = pc.binary_join_element_wise(*columns, "\n")
    texts: npt.NDArray[Any] = joined.to_numpy().astype(object)
    return texts


def _copy(part: Part, earlier: _Earlier, reusable: _Reusable) -> BlockRecord | None:
    """Copy the objects of one block; None where they are not as the ledger says.

    The earlier map may be anybody's: its ledger names no object but those of the block, and what
    lies there is no larger than such an object can be, nor a link to somewhere else.
    """
    before = earlier.part
    # It may have been moved since, and lies where it was found.
    source, old_root = locate(earlier.folder.store)
    target, new_root = locate(part.store)
    expected = set(list_shard_keys(before.template(), reusable.block))
    most_bytes = 2 * max_shard_bytes(part.template())
    shards = []
    for key, size in reusable.record.shards:
        if key not in expected or not _is_inside(source, old_root, key):
            return None
        try:
            if source.size(f"{old_root}/{key}") != size or size > most_bytes:
                return None
            content = source.cat_file(f"{old_root}/{key}")
        except FileNotFoundError:
            return None
        moved = _move_key(key, part, before)
        try:
            make_folder(target, f"{new_root}/{moved}".rpartition("/")[0])
            target.pipe_file(f"{new_root}/{moved}", content)
        except OSError as error:
            raise OutputError(f"{new_root}/{moved}: cannot be written ({error})") from error
        shards.append((moved, size))
    return replace(
        reusable.record,
        shards=tuple(shards),
        seconds={},
        reused=earlier.folder.store,
        finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def _is_inside(filesystem: Any, root: str, key: str) -> bool:
    """Tell whether an object lies in its store, and not behind a link out of it."""
    if not is_local(filesystem):
        return True
    return Path(f"{root}/{key}").resolve().is_relative_to(Path(root).resolve())


def _move_key(key: str, part: Part, before: Part) -> str:
    """Return the key of a shard in the new map, whose extent starts elsewhere."""
    lattice = part.lattice
    head, row, col = key.rsplit("/", 2)
    moved = [
        int(index) + (old.start - new.start) * lattice.upscale // lattice.shard_px
        for index, old, new in zip((row, col), before.extent, part.extent, strict=True)
    ]
    return "/".join([head, *map(str, moved)])
