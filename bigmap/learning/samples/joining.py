"""The parts of all blocks -> one set: chips chosen, ordered by place, written shard by shard."""

from __future__ import annotations

import io
import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bigmap.clusters.driving import map_on
from bigmap.clusters.tasks import Policy
from bigmap.config.training import SamplesConfig
from bigmap.errors import SamplesError
from bigmap.files import parse_json, write_atomically
from bigmap.learning.chips import (
    SPLITS,
    ChipPlaces,
    ChipSet,
    ChipTemplate,
    complete_chips,
    create_chips,
    write_chips,
)
from bigmap.learning.samples.candidates import ChipLattice, choose_chips
from bigmap.learning.samples.cutting import PARTS
from bigmap.mapping.run_folder import RunFolder

COUNTS_FILE = "counts.json"


@dataclass(frozen=True)
class Counts:
    """What a set of chips holds."""

    chips: Mapping[str, int]
    """By split."""
    class_px: Mapping[str, Mapping[str, int]]
    """Labelled pixels by split and class."""
    unlabelled_px: Mapping[str, int]
    """By split."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Candidates that became no chips, by the reason."""
    left_out: int = 0
    """Chips that were cut, but not drawn for the set."""


def join_chips(
    template: ChipTemplate,
    chips: ChipLattice,
    samples: SamplesConfig,
    client: Any,
    folder: RunFolder,
    index_keys: Sequence[str],
    *,
    keep_parts: bool,
) -> Counts:
    """Choose chips among those that were cut and write them as one set.

    Chips lie in the order of their tiles, and within a tile in row-major order, so that the set's
    bytes depend neither on blocks nor on the number of workers.

    Parameters
    ----------
    template, chips, samples
        Of the plan.
    client
        ``distributed.Client`` of the cluster that works.
    folder
        Of the extraction.
    index_keys
        Of the blocks' indices, below ``folder``.
    keep_parts
        Whether the parts stay, for an extraction that goes on.

    Raises
    ------
    SamplesError
        If no chip is left, or the labels of the training split are all of one class.
    """
    table, refused = _read_index(folder, index_keys)
    places, order, left_out = _choose(table, chips, samples)
    counts = _count(template, places, refused, left_out)
    if not keep_parts:  # A trial of some blocks may lack a split.
        _check(template, counts, chips)
    tiles, positions = table["tile"][order], table["position"][order]
    facts = {
        "complete": False,
        "statistics": _statistics(table, order, places),
        "counts": asdict(counts),
        "samples": samples.model_dump(mode="json"),
    }
    create_chips(folder.output, template, places, facts=facts)
    step = template.shard_chips
    shards = [
        (first, tiles[first : first + step].tolist(), positions[first : first + step])
        for first in range(0, len(order), step)
    ]
    join = _ShardJoin(folder.path, folder.output, template)
    policy = Policy(advice="go on with --resume")
    deque(
        map_on(client, join, shards, policy=policy, name=lambda shard: f"chips from {shard[0]}"),
        maxlen=0,
    )
    complete_chips(folder.output)
    filesystem, root = fsspec.core.url_to_fs(folder.path)
    text = json.dumps(asdict(counts), indent=2) + "\n"
    write_atomically(filesystem, f"{root}/{COUNTS_FILE}", text.encode())
    if not keep_parts and filesystem.exists(f"{root}/{PARTS}"):
        filesystem.rm(f"{root}/{PARTS}", recursive=True)
    return counts


def read_counts(path: str) -> Counts:
    """Return what a finished set holds."""
    return Counts(**ChipSet(path).facts["counts"])


def _read_index(
    folder: RunFolder, keys: Sequence[str]
) -> tuple[dict[str, npt.NDArray[Any]], Counter[str]]:
    """Return the columns of all blocks' indices, and how many candidates were refused and why."""
    filesystem, root = fsspec.core.url_to_fs(folder.path)
    tables: list[pa.Table] = []
    refused: Counter[str] = Counter()
    for key in sorted(keys):
        table = pq.read_table(io.BytesIO(filesystem.cat_file(f"{root}/{key}")))
        refused.update(parse_json((table.schema.metadata or {}).get(b"refused", b"{}")))
        tables.append(table.replace_schema_metadata(None))
    if not sum(len(table) for table in tables):
        reasons = ", ".join(f"{count} with {why}" for why, count in refused.items())
        raise SamplesError(
            f"samples: no chip was cut; {reasons or 'there were no candidates'}; lower "
            "samples.min_labelled_percent, min_clear_percent or min_dates, or use more scenes"
        )
    joined = pa.concat_tables(tables)
    columns = {}
    for name in joined.column_names:
        column = joined.column(name).combine_chunks()
        if pa.types.is_list(column.type):
            columns[name] = np.array(column.to_pylist()).reshape(len(column), -1)
        else:
            columns[name] = np.array(column.to_pylist())
    return columns, refused


def _choose(
    table: Mapping[str, npt.NDArray[Any]], chips: ChipLattice, samples: SamplesConfig
) -> tuple[ChipPlaces, npt.NDArray[np.intp], int]:
    """Return the places of the set's chips, their rows in the index, and how many stay out."""
    corners = np.stack([table["row"], table["col"]], axis=1).astype(np.int64)
    chosen = choose_chips(
        table["split"].astype(np.int8),
        chips.draw(corners),
        table["class_px"].astype(np.int64),
        max_chips=samples.max_chips,
        balanced=samples.balance == "classes",
    )
    by_place = np.lexsort((table["position"], table["tile_col"], table["tile_row"]))
    order = by_place[chosen[by_place]]
    places = ChipPlaces(
        split=table["split"][order].astype(np.uint8),
        row=corners[order, 0],
        col=corners[order, 1],
        dates=table["dates"][order].astype(np.int32),
        class_px=table["class_px"][order].astype(np.int64),
    )
    return places, order, int((~chosen).sum())


def _count(
    template: ChipTemplate, places: ChipPlaces, refused: Mapping[str, int], left_out: int
) -> Counts:
    by_split = {split: places.split == index for index, split in enumerate(SPLITS)}
    fine_px = template.fine_px**2 if template.class_values else 0
    return Counts(
        chips={split: int(own.sum()) for split, own in by_split.items()},
        class_px={
            split: {
                name: int(count)
                for name, count in zip(
                    template.class_names, places.class_px[own].sum(axis=0), strict=True
                )
            }
            for split, own in by_split.items()
        }
        if template.class_values
        else {},
        unlabelled_px={
            split: int(own.sum() * fine_px - places.class_px[own].sum())
            for split, own in by_split.items()
        },
        refused=dict(refused),
        left_out=left_out,
    )


def _check(template: ChipTemplate, counts: Counts, chips: ChipLattice) -> None:
    """Refuse a set that cannot be trained on, unless its split leaves training out by intent."""
    if chips.splits.areas[0].is_empty:
        return
    if not counts.chips["train"]:
        held = ", ".join(f"{count} {split}" for split, count in counts.chips.items() if count)
        raise SamplesError(
            f"samples.split: no chip is left for training ({held}); make the area larger, the "
            "cells or the buffer smaller, or choose another seed"
        )
    if template.class_values:
        found = [name for name, count in counts.class_px["train"].items() if count]
        if len(found) < 2:
            raise SamplesError(
                f"samples.labels: all labels of the training split are {found[0]!r}, from which "
                "nothing can be learnt; check samples.labels.classes and the split"
            )


def _statistics(
    table: Mapping[str, npt.NDArray[Any]], order: npt.NDArray[np.intp], places: ChipPlaces
) -> dict[str, list[float]]:
    """Return mean and deviation of each band over the clear pixels of the training split."""
    # A set for tests alone is described by all its chips; nothing is trained on it.
    train = order[places.split == 0] if (places.split == 0).any() else order
    pixels = max(1, int(table["clear_px"][train].sum()))
    mean = table["band_sum"][train].sum(axis=0) / pixels
    variance = table["band_squares"][train].sum(axis=0) / pixels - mean**2
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 1e-12)).tolist()}


@dataclass(frozen=True)
class _ShardJoin:
    """Gathers the chips of one shard from the parts of their tiles and writes it."""

    run_folder: str
    output: str
    template: ChipTemplate

    def __call__(self, shard: tuple[int, list[str], npt.NDArray[np.int32]]) -> None:
        """Write the shard: index of its first chip, and tile and position of each."""
        first, tiles, positions = shard
        filesystem, root = fsspec.core.url_to_fs(self.run_folder)
        names = np.array(tiles)
        arrays = {
            name: np.full((len(names), *shape), fill, dtype)
            for name, (shape, dtype, fill) in self.template.arrays().items()
        }
        for tile in dict.fromkeys(tiles):
            own = np.flatnonzero(names == tile)
            content = filesystem.cat_file(f"{root}/{PARTS}/{tile}.npz")
            with np.load(io.BytesIO(content), allow_pickle=False) as part:
                for name, array in arrays.items():
                    array[own] = part[name][positions[own]]
        write_chips(self.output, first, arrays)
