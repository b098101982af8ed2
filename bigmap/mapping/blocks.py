"""One block, on a worker: read, choose dates, predict, write, and a small record of it."""

from __future__ import annotations

import datetime as dt
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bigmap import grid
from bigmap.errors import ReadError
from bigmap.grid import ROI, Area, Lattice, area_mask
from bigmap.lease import check_lease
from bigmap.mapping.engine import CellData, Engine, optimise
from bigmap.mapping.ledger import NO_SCENE, TOO_CLOUDY, UNREAD, BlockRecord, BlockState
from bigmap.mapping.store.shards import MapWriter
from bigmap.mapping.windows import Windowing
from bigmap.models import LayerSpec, MapModel, ModelChoice
from bigmap.scenes.cube.reader import BoolArray, CubeReader, DayMasks, SceneReading, UInt16Array
from bigmap.scenes.items import ItemRow
from bigmap.scenes.quality import DateRule, choose_dates
from bigmap.timings import Timings


@dataclass(frozen=True)
class BlockJob:
    """What all blocks of a run have in common; it travels to each worker once."""

    output: str
    run_folder: str
    lease_owner: str | None
    """Owner of the run's lease; a worker whose driver has lost it must not write."""
    reading: SceneReading
    extent: ROI
    area: Area
    model: ModelChoice
    layers: tuple[str, ...]
    windowing: Windowing
    dates: DateRule

    @property
    def lattice(self) -> Lattice:
        """The grid and its partition."""
        return self.reading.lattice

    @property
    def engine(self) -> Engine:
        """The model and how it is cut into windows; the model is built once per process."""
        model = _build_once(self.model)
        layers = tuple(layer for layer in model.spec.layers if layer.name in self.layers)
        return Engine(model, self.lattice, self.windowing, layers)

    def check_lease(self) -> None:
        """Refuse to write for a driver that has been taken over.

        Raises
        ------
        LeaseError
            If the run belongs to another driver by now.
        """
        check_lease(self.run_folder, self.lease_owner)


@lru_cache(maxsize=4)
def _build_once(choice: ModelChoice) -> MapModel:
    return optimise(choice.build())


def name_block(lattice: Lattice, block: ROI) -> str:
    """Return the name of a block: its row and column on the lattice of blocks."""
    rows, cols = block
    return f"r{rows.start // lattice.block_px}c{cols.start // lattice.block_px}"


def run_block(job: BlockJob, block: ROI, rows: Sequence[ItemRow]) -> BlockRecord:
    """Map one block.

    Parameters
    ----------
    job
        What the run's blocks have in common.
    block
        Whole cells and shards, in global pixel indices.
    rows
        The items that have pixels in the block or its context.

    Returns
    -------
    BlockRecord
        ``empty`` if no pixel of the area has a value, ``degraded`` if a date was dropped.

    Raises
    ------
    ReadError
        If a file cannot be read and the recipe does not allow dropping its date.
    OutputError
        If a shard cannot be written.
    LeaseError
        If the run belongs to another driver by now.
    """
    timings = Timings()
    reader = CubeReader.of(job.reading, rows)
    cells = _CellReads(job, reader, timings, block)
    layers = job.engine.predict(
        block,
        cells,
        is_wanted=lambda roi: job.area.intersects(job.lattice.bounds(roi)),
        timings=timings,
    )
    with timings.measure("write"):
        inside = area_mask(job.area, job.lattice, block)
        for spec in job.engine.layers:
            layers[spec.name][..., ~inside] = spec.nodata
        mapped = _find_mapped(layers, job.engine.layers)
        job.check_lease()
        place = grid.scale(grid.relative(block, job.extent), job.lattice.upscale)
        shards = MapWriter(job.output).write(layers, place)
    state: BlockState = "degraded" if cells.dropped else "done" if shards else "empty"
    pixel_km2 = job.lattice.output_gsd_m**2 / 1e6
    return BlockRecord(
        block=name_block(job.lattice, block),
        state=state,
        dates=tuple(day.isoformat() for day in sorted(cells.used)),
        dropped=tuple(f"{day}: {why}" for day, why in sorted(cells.dropped.items())),
        device=job.windowing.device,
        seconds={stage: round(spent, 4) for stage, spent in timings.seconds.items()},
        shards=tuple((shard.key, shard.size_bytes) for shard in shards),
        mapped_km2=float(mapped.sum()) * pixel_km2,
        without_data_km2={
            reason: count * pixel_km2 for reason, count in cells.explain(inside & ~mapped).items()
        },
        worker=socket.gethostname(),
        finished=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=reader.sum_up_versions(),
    )


def _find_mapped(layers: Mapping[str, npt.NDArray[Any]], specs: Sequence[LayerSpec]) -> BoolArray:
    """Return which output pixels have a value in any layer, (y, x)."""
    mapped = np.zeros(layers[specs[0].name].shape[-2:], dtype=bool)
    for spec in specs:
        has_value = layers[spec.name] != spec.nodata
        mapped |= has_value.any(axis=0) if spec.channels else has_value
    return mapped


@dataclass
class _CellReads:
    """Reads cells of one block: masks of all dates first, then the bands of the chosen ones."""

    job: BlockJob
    reader: CubeReader
    timings: Timings
    block: ROI
    used: set[dt.date] = field(default_factory=set)
    dropped: dict[dt.date, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = grid.shape_of(self.block)
        self.seen = np.zeros(shape, dtype=bool)
        """Input pixels of the block that any date has seen, clear or not."""
        self.unread = np.zeros(shape, dtype=bool)
        """Input pixels of cells that lack a date that could not be read."""

    def explain(self, missing: BoolArray) -> dict[str, int]:
        """Count output pixels without a value, (y, x) of the block, by the reason."""
        upscale = self.job.lattice.upscale
        seen, unread = (
            each.repeat(upscale, axis=0).repeat(upscale, axis=1)
            for each in (self.seen, self.unread)
        )
        counts = {
            NO_SCENE: int((missing & ~unread & ~seen).sum()),
            TOO_CLOUDY: int((missing & ~unread & seen).sum()),
            UNREAD: int((missing & unread).sum()),
        }
        return {reason: count for reason, count in counts.items() if count}

    def __call__(self, cell: ROI, window: ROI) -> CellData:
        """Choose the dates of a cell and read them on a window.

        A date that cannot be read fails the block; where the recipe allows it, it is dropped
        instead, and the cell chooses again without it.
        """
        both = grid.hull([cell, window])
        reader = self.reader.near(both)
        with self.timings.measure("mask"):
            masks = self._read_masks(reader, both)
        inside, cut = grid.relative(cell, both), grid.relative(window, both)
        own = {day: mask.cut(inside) for day, mask in masks.items()}
        shares = self._measure_clear(cell, own)
        with self.timings.measure("read"):
            pixels = self._read_bands(
                reader, {d: m.cut(cut) for d, m in masks.items()}, shares, window
            )
        lost = self.dropped.keys() & set(reader.days)
        if lost and not pixels:
            raise ReadError(f"no date could be read; {self.dropped[min(lost)]}")
        self._note(cell, own.values(), is_whole=not lost)
        self.used.update(pixels)
        shape = grid.shape_of(window)
        if not pixels:
            bands = len(reader.reading.bands)
            return CellData(np.zeros((0, bands, *shape), np.uint16), np.zeros((0, *shape), bool))
        days = sorted(pixels)
        return CellData(
            [pixels[day][0] for day in days], np.stack([pixels[day][1] for day in days])
        )

    def _measure_clear(
        self, cell: ROI, masks: Mapping[dt.date, DayMasks]
    ) -> dict[dt.date, tuple[float, float]]:
        """Return how clear each date is, in percent: of the cell, and of what it shows of the area.

        The first ranks dates and is the same for every area. The second tells whether a date is
        worth taking: what lies outside the area or beyond the edge of a scene is no cloud. A cell
        beside the area, of which blending sees a margin, counts whole.
        """
        lattice = replace(self.job.lattice, upscale=1)
        wanted = area_mask(self.job.area.outline, lattice, cell)
        wanted = wanted if wanted.any() else np.ones_like(wanted)
        shares = {}
        for day, mask in masks.items():
            clear, seen = mask.mosaic(), mask.has_data.any(axis=0)
            worth = 100 * (clear & wanted).sum() / max(1, (seen & wanted).sum())
            shares[day] = 100 * float(clear.mean()), float(worth)
        return shares

    def _note(self, cell: ROI, masks: Iterable[DayMasks], *, is_whole: bool) -> None:
        """Remember what dates show of a cell, and whether all could be read."""
        part = grid.intersect(cell, self.block)
        if grid.is_empty(part):  # a neighbour, of which blending sees a margin
            return
        place, cut = grid.relative(part, self.block), grid.relative(part, cell)
        for mask in masks:
            self.seen[place] |= mask.cut(cut).has_data.any(axis=0)
        self.unread[place] = not is_whole

    def _read_bands(
        self,
        reader: CubeReader,
        masks: dict[dt.date, DayMasks],
        shares: dict[dt.date, tuple[float, float]],
        window: ROI,
    ) -> dict[dt.date, tuple[UInt16Array, BoolArray]]:
        try:
            return reader.read_days({day: masks[day] for day in self._choose(shares)}, window)
        except ReadError:
            if self.job.reading.on_error == "fail":
                raise
        # As with the masks: one by one, a broken file costs its day, and the next best is read.
        pixels: dict[dt.date, tuple[UInt16Array, BoolArray]] = {}
        while missing := sorted(set(self._choose(shares)) - set(pixels)):
            try:
                pixels |= reader.read_days({missing[0]: masks[missing[0]]}, window)
            except ReadError as error:
                self._drop(missing[0], error)
        return {day: pixels[day] for day in self._choose(shares)}

    def _choose(self, shares: dict[dt.date, tuple[float, float]]) -> list[dt.date]:
        days = [day for day in sorted(shares) if day not in self.dropped]
        clear, worth = np.array([shares[day] for day in days]).reshape(-1, 2).T
        chosen = choose_dates(clear, self.job.dates, worth_percent=worth)
        return [days[index] for index in chosen]

    def _read_masks(self, reader: CubeReader, roi: ROI) -> dict[dt.date, DayMasks]:
        days = [day for day in reader.days if day not in self.dropped]
        try:
            return reader.read_masks(days, roi)
        except ReadError:
            if self.job.reading.on_error == "fail":
                raise
        # One file broke the whole read; one by one, only its day is lost.
        masks: dict[dt.date, DayMasks] = {}
        for day in days:
            try:
                masks |= reader.read_masks([day], roi)
            except ReadError as error:
                self._drop(day, error)
        return masks

    def _drop(self, day: dt.date, error: ReadError) -> None:
        if self.job.reading.on_error == "fail":
            raise error
        self.dropped[day] = str(error)
