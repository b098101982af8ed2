"""One block of chips, on a worker: labels first, then masks, then the bands of chosen dates."""

from __future__ import annotations

import datetime as dt
import io
import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bigmap import grid
from bigmap.errors import ReadError
from bigmap.files import locate, write_atomically
from bigmap.grid import ROI
from bigmap.learning.chips import UNLABELLED, ChipTemplate, stack_days
from bigmap.learning.labels.reader import LabelReader
from bigmap.learning.samples.candidates import ChipLattice, name_tile
from bigmap.learning.samples.targets import SensorReader, reduce_date
from bigmap.lease import check_lease
from bigmap.mapping.blocks import name_block
from bigmap.mapping.ledger import BlockRecord, BlockState
from bigmap.scenes.cube.reader import CubeReader, SceneReading
from bigmap.scenes.items import ItemRow
from bigmap.scenes.quality import DateRule, choose_dates
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE
from bigmap.timings import Timings

PARTS = "parts"
"""Folder of what blocks have cut, in the run folder; it goes when the chips are joined."""


_NO_LABELS = np.zeros(0, dtype=np.uint8)


@dataclass(frozen=True)
class ChipJob:
    """What all blocks of an extraction have in common; it travels to each worker once."""

    run_folder: str
    lease_owner: str | None
    chips: ChipLattice
    template: ChipTemplate
    reading: SceneReading
    dates: DateRule
    min_dates: int
    min_labelled_percent: float
    labels: LabelReader | None
    target: SensorReader | None
    reduction: Literal["average", "bicubic"] | None
    """How chips are degraded, whose own image is their target; None leaves them as they are."""


@dataclass(frozen=True)
class _Draft:
    """A chip whose labels and dates are settled."""

    roi: ROI
    split: int
    labels: npt.NDArray[np.uint8] | None
    days: tuple[dt.date, ...]
    clearest: dt.date


def cut_block(job: ChipJob, block: ROI, rows: Sequence[ItemRow]) -> BlockRecord:
    """Cut the chips of one block and store them in parts beside the set.

    Parameters
    ----------
    job
        What the blocks have in common.
    block
        In global pixel indices; chips belong to the block of their tile's corner.
    rows
        The items that have pixels in the block or near it.

    Raises
    ------
    ReadError
        If a file cannot be read and the recipe does not allow dropping its date; or one of labels
        or targets cannot.
    SamplesError
        If labels or targets are unfit, or refused by a rule of the recipe.
    OutputError
        If a part cannot be written.
    """
    cutter = _Cutter(job, CubeReader.of(job.reading, rows))
    name = name_block(job.chips.lattice, block)
    for tile in job.chips.tiles(block):
        cutter.cut(tile)
    check_lease(job.run_folder, job.lease_owner)
    cutter.write_index(name)
    chips = len(cutter.index["tile"])
    gsd_m = job.chips.lattice.gsd_m
    state: BlockState = "degraded" if cutter.dropped else "done" if chips else "empty"
    return BlockRecord(
        block=name,
        state=state,
        dates=tuple(day.isoformat() for day in sorted(cutter.used)),
        dropped=tuple(f"{day}: {why}" for day, why in sorted(cutter.dropped.items())),
        seconds={stage: round(s, 4) for stage, s in cutter.timings.seconds.items()},
        shards=tuple(cutter.written),
        mapped_km2=chips * (job.chips.span_px * gsd_m) ** 2 / 1e6,
        worker=socket.gethostname(),
        finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


class _Cutter:
    """Cuts tile by tile, so that memory is that of a tile."""

    def __init__(self, job: ChipJob, reader: CubeReader) -> None:
        self.job = job
        self.reader = reader
        self.timings = Timings()
        self.used: set[dt.date] = set()
        self.dropped: dict[dt.date, str] = {}
        self.refused: Counter[str] = Counter()
        """Candidates that became no chips, by the reason."""
        self.written: list[tuple[str, int]] = []
        self.index: dict[str, list[Any]] = {name: [] for name in INDEX}

    def cut(self, tile: ROI) -> None:
        """Cut the chips of a tile and write them as one part."""
        chips = self.job.chips
        corners, splits = chips.list_chips(tile)
        places = [(chips.roi(*corner), int(s)) for corner, s in zip(corners, splits, strict=True)]
        with self.timings.measure("labels"):
            labelled = self._label(places)
        if not labelled:
            return
        hull = grid.hull([roi for roi, _, _ in labelled])
        reader = self.reader.near(hull)
        with self.timings.measure("mask"):
            masks = self._read_each(reader.days, lambda days: reader.read_masks(days, hull))
        clear = {day: mask.mosaic() for day, mask in masks.items()}
        drafts = [
            draft
            for roi, split, labels in labelled
            if (draft := self._choose(roi, split, labels, clear, hull)) is not None
        ]
        if not drafts:
            return
        inner = grid.hull([draft.roi for draft in drafts])
        cut = grid.relative(inner, hull)
        days = sorted({day for draft in drafts for day in draft.days})
        with self.timings.measure("read"):
            pixels = self._read_each(
                days, lambda some: reader.read_days({d: masks[d].cut(cut) for d in some}, inner)
            )
        with self.timings.measure("write"):
            self._write(tile, drafts, pixels, inner)

    def _label(
        self, places: list[tuple[ROI, int]]
    ) -> list[tuple[ROI, int, npt.NDArray[np.uint8] | None]]:
        """Read labels and leave out the chips with too few."""
        job, lattice = self.job, self.job.chips.lattice
        if job.labels is None or not places:
            return [(roi, split, None) for roi, split in places]
        reader = job.labels.near(lattice.bounds(grid.hull([roi for roi, _ in places])))
        upscale = job.template.fine_px // job.chips.span_px
        kept: list[tuple[ROI, int, npt.NDArray[np.uint8] | None]] = []
        for roi, split in places:
            labels = reader.read(lattice.geobox(roi, upscale=upscale))
            if 100 * float((labels != UNLABELLED).mean()) < job.min_labelled_percent:
                self.refused["too few labels"] += 1
            else:
                kept.append((roi, split, labels))
        return kept

    def _choose(
        self,
        roi: ROI,
        split: int,
        labels: npt.NDArray[np.uint8] | None,
        clear: dict[dt.date, npt.NDArray[np.bool_]],
        hull: ROI,
    ) -> _Draft | None:
        """Choose the dates of a chip by its own mask."""
        inside = grid.relative(roi, hull)
        days = sorted(clear)
        percent = np.array([100 * float(clear[day][inside].mean()) for day in days])
        chosen = choose_dates(percent, self.job.dates)
        if len(chosen) < max(1, self.job.min_dates):
            self.refused["too few clear dates"] += 1
            return None
        clearest = max(chosen, key=lambda index: (percent[index], -index))
        return _Draft(roi, split, labels, tuple(days[index] for index in chosen), days[clearest])

    def _read_each(
        self, days: Sequence[dt.date], read: Callable[[Sequence[dt.date]], dict[dt.date, Any]]
    ) -> dict[dt.date, Any]:
        """Read days together; where one cannot be read and may be dropped, each by itself."""
        days = [day for day in days if day not in self.dropped]
        try:
            return read(days)
        except ReadError:
            if self.job.reading.on_error == "fail":
                raise
        found: dict[dt.date, Any] = {}
        for day in days:
            try:
                found |= read([day])
            except ReadError as error:
                self.dropped[day] = str(error)
        return found

    def _write(
        self, tile: ROI, drafts: list[_Draft], pixels: dict[dt.date, Any], inner: ROI
    ) -> None:
        """Write the chips of a tile and note them in the index."""
        template = self.job.template
        shapes = template.arrays()
        arrays = {
            name: np.full((len(drafts), *shape), fill, dtype)
            for name, (shape, dtype, fill) in shapes.items()
        }
        kept = 0
        for draft in drafts:
            days = tuple(day for day in draft.days if day in pixels)
            if len(days) < max(1, self.job.min_dates):
                self.refused["too few clear dates"] += 1
                continue
            self._fill({name: array[kept] for name, array in arrays.items()}, draft, days, pixels,
                       grid.relative(draft.roi, inner))  # fmt: skip
            self._note(tile, draft, kept, days, {k: v[kept] for k, v in arrays.items()})
            self.used.update(days)
            kept += 1
        if kept:
            stream = io.BytesIO()
            chips: dict[str, Any] = {name: array[:kept] for name, array in arrays.items()}
            np.savez(stream, **chips)
            self._store(f"{PARTS}/{name_tile(tile)}.npz", stream.getvalue())

    def _fill(
        self,
        chip: dict[str, npt.NDArray[Any]],
        draft: _Draft,
        days: Sequence[dt.date],
        pixels: dict[dt.date, Any],
        place: ROI,
    ) -> None:
        """Put the pixels of one chip into its arrays."""
        job = self.job
        factor = job.chips.span_px // job.template.chip_px
        clearest = draft.clearest if draft.clearest in days else days[0]
        for index, day in enumerate(days):
            dn, clear = (part[..., *place] for part in pixels[day])
            if day == clearest and job.reduction is not None and "target" in chip:
                bands = [job.template.bands.index(b) for b in job.template.target_bands]
                chip["target"][...] = np.where(clear, dn[bands], 0)
            if job.reduction is not None:
                dn, clear = reduce_date(dn, clear, factor, job.reduction)
            chip["images"][index], chip["clear"][index] = dn, clear
        chip["days"][...] = stack_days(days, job.template.max_dates)
        if draft.labels is not None:
            chip["labels"][...] = draft.labels
        if job.target is not None:
            lattice = job.chips.lattice
            chip["target"][...] = job.target.read(
                lattice.crs, lattice.bounds(draft.roi), job.template.target_px, clearest
            )

    def _note(
        self,
        tile: ROI,
        draft: _Draft,
        position: int,
        days: Sequence[dt.date],
        chip: dict[str, npt.NDArray[Any]],
    ) -> None:
        clear = chip["clear"]
        seen = chip["images"].astype(np.float64).transpose(0, 2, 3, 1)[clear]
        reflectance = seen * DN_SCALE + DN_OFFSET
        counts = np.bincount(chip.get("labels", _NO_LABELS).ravel(), minlength=256)
        entry = {
            "tile_row": tile[0].start,
            "tile_col": tile[1].start,
            "tile": name_tile(tile),
            "position": position,
            "row": draft.roi[0].start,
            "col": draft.roi[1].start,
            "split": draft.split,
            "dates": len(days),
            "class_px": [int(counts[value]) for value in self.job.template.class_values],
            "clear_px": len(seen),
            "band_sum": reflectance.sum(axis=0).tolist(),
            "band_squares": (reflectance**2).sum(axis=0).tolist(),
        }
        for name, value in entry.items():
            self.index[name].append(value)

    def write_index(self, block: str) -> None:
        """Write what is known of the block's chips beside their pixels."""
        table = pa.table(
            {name: pa.array(self.index[name], type=kind) for name, kind in INDEX.items()}
        ).replace_schema_metadata({"refused": json.dumps(self.refused)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        self._store(f"{PARTS}/{block}.parquet", sink.getvalue().to_pybytes())

    def _store(self, key: str, data: bytes) -> None:
        filesystem, root = locate(self.job.run_folder)
        write_atomically(filesystem, f"{root}/{key}", data)
        self.written.append((key, len(data)))


INDEX = {
    "tile_row": pa.int64(),
    "tile_col": pa.int64(),
    "tile": pa.string(),
    "position": pa.int32(),
    "row": pa.int64(),
    "col": pa.int64(),
    "split": pa.int8(),
    "dates": pa.int32(),
    "class_px": pa.list_(pa.int64()),
    "clear_px": pa.int64(),
    "band_sum": pa.list_(pa.float64()),
    "band_squares": pa.list_(pa.float64()),
}
"""Columns of the index of a block's chips."""
