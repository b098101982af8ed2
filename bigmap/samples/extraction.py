"""Recipe -> chips: planned, cut block by block by the runner, then joined into one set."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from bigmap import grid
from bigmap.chips import SPLITS, ChipTemplate, is_complete
from bigmap.config import (
    DownsampledImage,
    InferenceConfig,
    OutputConfig,
    Recipe,
    SamplesConfig,
    SensorImage,
    SimulatedLabels,
    SimulatedSource,
)
from bigmap.cube import Access
from bigmap.errors import RecipeError, SamplesError, StoppedError
from bigmap.grid import ROI
from bigmap.labels import open_labels
from bigmap.lease import Lease
from bigmap.ledger import BlockRecord
from bigmap.models import ModelSpec
from bigmap.planning import Plan, mask_rule
from bigmap.quality import DateRule
from bigmap.runner import BlockDriver, Reporter, RunSummary, SilentReporter, stop_on_signals
from bigmap.runs import RunFolder, check_location, differing_fields
from bigmap.samples.candidates import ChipLattice
from bigmap.samples.cutting import PARTS, ChipJob, cut_block
from bigmap.samples.drawing import draw_chips
from bigmap.samples.joining import Counts, join_chips, read_counts
from bigmap.samples.splits import make_splits
from bigmap.samples.targets import open_sensor
from bigmap.store import ShardKey, check_shards

OVERDRAW = 3
"""With ``max_chips``, so many times as many candidates are looked at: some have too few labels or
dates, and a balanced choice needs some to choose from."""
MOST_CANDIDATES = 20_000_000
FINAL_STATES = ("done", "empty")


@dataclass(frozen=True)
class SamplesPlan:
    """Everything an extraction needs to know."""

    plan: Plan
    """Of the recipe's scenes; its blocks are those with candidates."""
    samples: SamplesConfig
    chips: ChipLattice
    template: ChipTemplate
    candidates: tuple[int, int, int]
    """Places where chips may lie, by split."""

    def job(self, run_folder: str, lease_owner: str | None) -> ChipJob:
        """Return what all blocks have in common.

        Raises
        ------
        ReadError
            If a file of labels or targets cannot be read after all retries.
        SamplesError
            If labels or targets cannot be used.
        """
        recipe, samples = self.plan.recipe, self.samples
        access = Access(**recipe.source.access.model_dump())
        bounds = self.chips.area.bounds
        labels, target = samples.labels, samples.target
        return ChipJob(
            run_folder=run_folder,
            lease_owner=lease_owner,
            chips=self.chips,
            template=self.template,
            mask=mask_rule(recipe.source.mask),
            dates=DateRule(samples.max_dates, samples.min_clear_percent),
            min_dates=samples.min_dates,
            min_labelled_percent=samples.min_labelled_percent,
            labels=None
            if labels is None
            else open_labels(
                labels,
                crs=recipe.grid.crs,
                class_values=self.template.class_values,
                bounds=bounds,
                seed=_seed_of(recipe),
                # A set for tests alone may hold one class.
                least_classes=1 if self.chips.splits.areas[0].is_empty else 2,
                access=access,
            ),
            target=open_sensor(
                target.files, self.template.target_bands, scale=target.scale, offset=target.offset,
                seed=_seed_of(recipe), access=access,
            )
            if isinstance(target, SensorImage)
            else None,
            reduction=target.method if isinstance(target, DownsampledImage) else None,
            resampling=recipe.reading.resampling,
            loader=recipe.reading.loader,
            on_error=recipe.reading.on_error,
            access=access,
        )  # fmt: skip


@dataclass
class ExtractSummary:
    """What an extraction did and what its set holds."""

    path: str
    planned: int
    states: Counter[str] = field(default_factory=Counter)
    counts: Counts | None = None
    """None where the set is not joined yet."""
    candidates: Mapping[str, int] = field(default_factory=dict)
    elapsed_s: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)
    stopped: bool = False
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def exit_code(self) -> int:
        """0 done, 3 some blocks failed, 75 stopped early and can be resumed."""
        if self.stopped:
            return 75
        return 3 if self.failures or self.counts is None else 0


def recipe_of_samples(recipe: Recipe) -> Recipe:
    """Return the recipe by which chips are cut: that of the map, less what they do not need.

    Raises
    ------
    RecipeError
        If it has no samples, or samples that cannot be cut from its source.
    """
    samples = recipe.samples
    if samples is None:
        raise RecipeError("samples: the recipe has no such section; it says what chips to cut")
    if not isinstance(recipe.source, SimulatedSource):
        for name, is_simulated in (
            ("labels", isinstance(samples.labels, SimulatedLabels)),
            ("target", isinstance(samples.target, SensorImage) and not samples.target.files),
        ):
            if is_simulated:
                raise RecipeError(
                    f"samples.{name}: is of the simulated world, but the scenes are real; give "
                    f"your own, or add --source simulated"
                )
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"weights": None}),
            "dates": recipe.dates.model_copy(update={"max_per_cell": samples.max_dates}),
            "inference": InferenceConfig(batch_windows=1),
            "output": OutputConfig(path=samples.path, overviews=0),
            "training": None,
        }
    )


def plan_samples(plan: Plan) -> SamplesPlan:
    """Find the places where chips may lie.

    Parameters
    ----------
    plan
        Of :func:`recipe_of_samples`.

    Raises
    ------
    SamplesError
        If chips do not fit the grid or the model, or no place is left for them.
    """
    recipe, lattice, spec = plan.recipe, plan.lattice, plan.model.spec
    samples = recipe.samples
    assert samples is not None
    is_reduced = isinstance(samples.target, DownsampledImage)
    span_px = samples.chip_px * (spec.upscale if is_reduced else 1)
    _check_chips(samples, spec, span_px, lattice.cell_px)
    bounds = plan.area.bounds
    splits = make_splits(samples.split, crs=recipe.grid.crs, bounds=bounds, seed=samples.seed)
    chips = ChipLattice(lattice, span_px, plan.area, splits, samples.seed, (1.0, 1.0, 1.0))
    tiles, split, draw = _list_candidates(chips)
    counts = np.bincount(split, minlength=len(SPLITS))
    if not counts.sum():
        raise SamplesError(
            f"samples: no chip of {samples.chip_px} px has a place inside the area and a split; "
            "make the area or the cells larger, or chips or buffer smaller"
        )
    most = np.inf if samples.max_chips is None else OVERDRAW * samples.max_chips
    train, validation, test = (float(min(1.0, most / max(1, count))) for count in counts)
    shares = train, validation, test
    drawn = tiles[draw < np.array(shares)[split]]
    blocks = _blocks_of(drawn, lattice.block_px)
    return SamplesPlan(
        plan=replace(plan, blocks=blocks),
        samples=samples,
        chips=replace(chips, shares=shares),
        template=_make_template(recipe, spec, is_reduced=is_reduced),
        candidates=(int(counts[0]), int(counts[1]), int(counts[2])),
    )


def _check_chips(samples: SamplesConfig, spec: ModelSpec, span_px: int, cell_px: int) -> None:
    if span_px > cell_px:
        raise SamplesError(
            f"samples.chip_px: a chip covers {span_px} px of the grid, more than grid.cell_px "
            f"{cell_px}; make it smaller"
        )
    if samples.chip_px % spec.multiple_px:
        raise SamplesError(
            f"samples.chip_px: {samples.chip_px} is not a multiple of {spec.multiple_px}, which "
            f"{spec.name} needs"
        )
    if samples.labels is not None and not spec.legend:
        raise SamplesError(f"samples.labels: {spec.name} has no classes; leave the labels out")
    if isinstance(samples.target, SensorImage) and not _image_bands(spec):
        raise SamplesError(f"samples.target: {spec.name} makes no image; leave it out")


def _image_bands(spec: ModelSpec) -> tuple[str, ...]:
    return next((layer.channels for layer in spec.extra_layers if layer.name == "image"), ())


def _make_template(recipe: Recipe, spec: ModelSpec, *, is_reduced: bool) -> ChipTemplate:
    samples, gsd_m = recipe.samples, recipe.grid.gsd_m
    assert samples is not None
    source = recipe.source
    target_bands: tuple[str, ...] = ()
    target_px = 0
    if is_reduced:
        target_bands, target_px = _image_bands(spec) or spec.bands, samples.chip_px * spec.upscale
    elif isinstance(samples.target, SensorImage):
        target_bands = _image_bands(spec)
        sensor = open_sensor(
            samples.target.files, target_bands, scale=1, offset=0, seed=_seed_of(recipe),
            access=Access(**source.access.model_dump()),
        )  # fmt: skip
        target_px = max(1, round(samples.chip_px * gsd_m / sensor.gsd_m))
    has_labels = samples.labels is not None
    return ChipTemplate(
        crs=recipe.grid.crs,
        gsd_m=gsd_m * (spec.upscale if is_reduced else 1),
        chip_px=samples.chip_px,
        max_dates=samples.max_dates,
        bands=spec.bands,
        upscale=spec.upscale,
        class_values=tuple(entry.value for entry in spec.legend) if has_labels else (),
        class_names=tuple(entry.name for entry in spec.legend) if has_labels else (),
        target_bands=target_bands,
        target_px=target_px,
        is_simulated=isinstance(source, SimulatedSource),
        source=f"{source.kind} scenes of {source.start} to {source.end}, recipe {recipe.name}",
    )


def _seed_of(recipe: Recipe) -> int:
    return recipe.source.seed if isinstance(recipe.source, SimulatedSource) else 0


def _list_candidates(
    chips: ChipLattice,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.float64]]:
    """Return the corner of its tile, the split and the draw of every candidate of the area."""
    extent = chips.lattice.snap(chips.area.bounds, chips.tile_px)
    if np.prod(grid.shape_of(extent), dtype=float) / chips.span_px**2 > MOST_CANDIDATES:
        raise SamplesError("samples.chip_px: the area holds too many chips; cut it by --bbox")
    step = chips.tile_px * max(1, 4096 // chips.tile_px)
    corners, splits = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int8)]
    for region in grid.tiles_of(extent, step):
        inside = grid.intersect(region, extent)
        if not chips.area.intersects(chips.lattice.bounds(inside)):
            continue
        found, split = chips.list_chips(inside)
        corners.append(found)
        splits.append(split)
    joined = np.concatenate(corners)
    return joined // chips.tile_px * chips.tile_px, np.concatenate(splits), chips.draw(joined)


def _blocks_of(tiles: npt.NDArray[np.int64], block_px: int) -> tuple[ROI, ...]:
    """Return the blocks that hold the corners of tiles, in row-major order."""
    places = np.unique(tiles // block_px, axis=0) * block_px
    return tuple(
        (slice(int(row), int(row) + block_px), slice(int(col), int(col) + block_px))
        for row, col in places
    )


def check_place(recipe: Recipe, *, resume: bool, overwrite: bool) -> bool:
    """Tell whether to go on with an extraction, and refuse a place that is taken.

    Parameters
    ----------
    recipe
        Of :func:`recipe_of_samples`.

    Raises
    ------
    SamplesError
        If samples are there and neither flag is given, or they are of another recipe.
    """
    path = recipe.output.path
    folder = RunFolder(path)
    if resume and overwrite:
        raise SamplesError("--resume and --overwrite contradict each other; give one")
    check_location(path, field="samples.path")
    folder.check_own()
    if not folder.exists():
        if not overwrite and is_complete(path):
            raise SamplesError(f"samples.path: {path} exists; add --overwrite to start again")
        return False
    if not (resume or overwrite):
        raise SamplesError(
            f"samples.path: {path} exists; add --resume to go on with it or --overwrite to start "
            "again"
        )
    if overwrite:
        folder.check_removable()
        return False
    stored, _ = folder.read_recipe()
    changed = differing_fields(stored.model_dump(mode="json"), recipe.model_dump(mode="json"))
    if changed:
        raise SamplesError(
            f"samples.path: {path} was started with another {', '.join(changed)}; set it back, or "
            "choose another samples.path"
        )
    return True


def extract_chips(
    prepared: SamplesPlan,
    client: Any,
    *,
    resume: bool = False,
    limit: int | None = None,
    threads: int = 1,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> ExtractSummary:
    """Cut the chips of a plan and join them.

    Parameters
    ----------
    prepared
        From :func:`plan_samples`.
    client
        ``distributed.Client`` of the cluster that works.
    resume
        Go on with the extraction that is there; otherwise the place is started anew.
    limit
        Cut so many blocks only, for a trial.
    threads
        How many threads a worker may compute with.
    reporter
        Shows progress.
    overwrite
        Without ``resume``: remove what lies at the place, also if another extraction has put it
        there since it was looked at.

    Raises
    ------
    SamplesError
        If labels are refused by a rule of the recipe, or no chip is left.
    LeaseError
        If another extraction writes here.
    LostClusterError
        If the cluster is lost; the extraction can be resumed.
    """
    plan = prepared.plan
    reporter = reporter or SilentReporter()
    folder = RunFolder(plan.recipe.output.path)
    job = prepared.job(folder.path, None)  # what is wrong with labels is found before any work
    lease = Lease(folder.path)
    lease.acquire(reporter.note)
    try:
        if check_place(plan.recipe, resume=resume, overwrite=overwrite and not resume):
            folder.check_plan(plan)
            for each in folder.mend(plan, lease):
                reporter.note(each)
        else:
            folder.clear(lease)
            folder.create(plan, lease)
        started = time.perf_counter()
        summary = ExtractSummary(
            folder.output, len(plan.blocks),
            candidates=dict(zip(SPLITS, prepared.candidates, strict=True)),
        )  # fmt: skip
        if resume and _is_finished(folder):
            summary.states = Counter(r.state for r in folder.ledger.latest().values())
            summary.counts = read_counts(folder.output)
            return summary
        records = _cut_all(
            prepared, client, replace(job, lease_owner=lease.state.owner), lease, summary,
            resume=resume, limit=limit, threads=threads, reporter=reporter,
        )  # fmt: skip
        if not (summary.stopped or summary.failures):
            reporter.note("joining the chips")
            lease.check()
            keys = [key for record in records.values() for key, _ in record.shards]
            is_whole = len(records) == len(plan.blocks) and not summary.states["degraded"]
            summary.counts = join_chips(
                prepared.template, prepared.chips, prepared.samples, client, folder,
                [key for key in keys if key.endswith(".parquet")], keep_parts=not is_whole,
            )  # fmt: skip
            draw_chips(folder.path, folder.output, prepared.chips)
        summary.elapsed_s = time.perf_counter() - started
        return summary
    finally:
        lease.release()


def _cut_all(
    prepared: SamplesPlan, client: Any, job: ChipJob, lease: Lease, summary: ExtractSummary, *,
    resume: bool, limit: int | None, threads: int, reporter: Reporter,
) -> dict[str, BlockRecord]:  # fmt: skip
    """Cut what is not cut yet; returns the records of all blocks."""
    plan = prepared.plan
    folder = RunFolder(plan.recipe.output.path)
    ledger = folder.open_ledger(lease)
    recorded = ledger.latest() if resume else {}
    lost = set(check_shards(folder.path, _parts_of(recorded.values())))
    todo = [b for b in plan.blocks if _is_open(recorded.get(plan.name(b)), lost)][:limit]
    run = RunSummary(planned=len(plan.blocks))
    driver = BlockDriver(plan, client, ledger, lease, reporter, run)
    reporter.start(plan, len(todo), Counter(record.state for record in recorded.values()))
    try:
        with stop_on_signals():
            driver.drive(todo, job, cut_block, threads)
    except StoppedError:
        summary.stopped = True
    finally:
        ledger.flush()
        reporter.finish()
    records = ledger.latest()
    summary.states = Counter(record.state for record in records.values())
    summary.seconds = run.seconds
    summary.failures = tuple(
        (record.block, record.error or "") for record in records.values()
        if record.state == "failed"
    )  # fmt: skip
    return records


def _is_finished(folder: RunFolder) -> bool:
    """Tell whether the chips are joined and the parts, which more blocks would need, are gone."""
    filesystem, root = fsspec.core.url_to_fs(folder.path)
    return is_complete(folder.output) and not filesystem.exists(f"{root}/{PARTS}")


def _is_open(record: BlockRecord | None, lost: set[str]) -> bool:
    if record is None or record.state not in FINAL_STATES:
        return True
    return any(key in lost for key, _ in record.shards)


def _parts_of(records: Iterable[BlockRecord]) -> Iterator[ShardKey]:
    return (ShardKey(*shard) for record in records for shard in record.shards)
