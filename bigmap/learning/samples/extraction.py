"""Recipe -> chips: planned, cut block by block by the runner, then joined into one set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from bigmap import grid
from bigmap.config import Recipe
from bigmap.config.recipe import InferenceConfig
from bigmap.config.sources import SimulatedSource
from bigmap.config.training import DownsampledImage, SamplesConfig, SensorImage, SimulatedLabels
from bigmap.errors import RecipeError, SamplesError
from bigmap.grid import ROI
from bigmap.learning.chips import SPLITS, ChipTemplate, is_complete
from bigmap.learning.labels.opening import open_labels
from bigmap.learning.samples.candidates import ChipLattice
from bigmap.learning.samples.cutting import PARTS, ChipJob, cut_block
from bigmap.learning.samples.drawing import draw_chips
from bigmap.learning.samples.joining import Counts, join_chips, read_counts
from bigmap.learning.samples.splits import make_splits
from bigmap.learning.samples.targets import open_sensor
from bigmap.mapping.places import Attempt, take_place
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.purpose import FREE_FIELDS, Purpose
from bigmap.mapping.reporting import Reporter, RunSummary, SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import PartRun
from bigmap.models import ModelSpec
from bigmap.scenes.quality import DateRule

OVERDRAW = 3
"""With ``max_chips``, so many times as many candidates are looked at: some have too few labels or
dates, and a balanced choice needs some to choose from."""
MOST_CANDIDATES = 20_000_000


@dataclass(frozen=True)
class SamplesPlan:
    """Everything an extraction needs to know."""

    plan: Plan
    """Of the recipe's scenes; the blocks of its only part are those with candidates."""
    samples: SamplesConfig
    chips: ChipLattice
    template: ChipTemplate
    candidates: tuple[int, int, int]
    """Places where chips may lie, by split."""

    @property
    def part(self) -> Part:
        """The only part of the plan."""
        return self.plan.only

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
        # Chips are cut in one go, and joined to one set.
        reading = replace(self.part.reading, watch_versions=False)
        bounds = self.chips.area.bounds
        labels, target = samples.labels, samples.target
        return ChipJob(
            run_folder=run_folder,
            lease_owner=lease_owner,
            chips=self.chips,
            template=self.template,
            reading=reading,
            dates=self.plan.purpose.dates,
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
                access=reading.access,
            ),
            target=open_sensor(
                target.files, self.template.target_bands, scale=target.scale, offset=target.offset,
                seed=_seed_of(recipe), access=reading.access,
            )
            if isinstance(target, SensorImage)
            else None,
            reduction=target.method if isinstance(target, DownsampledImage) else None,
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


def purpose_of_samples(recipe: Recipe) -> Purpose:
    """Return what chips need of a recipe, whose area, grid, source and bands are those of its map.

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
    return Purpose(
        samples.path,
        "samples.path",
        DateRule(samples.max_dates, samples.min_clear_percent),
        InferenceConfig(batch_windows=1),
        None,
        (*FREE_FIELDS, "dates", "inference", "output", "model.weights"),
    )


def plan_samples(plan: Plan) -> SamplesPlan:
    """Find the places where chips may lie.

    Parameters
    ----------
    plan
        For :func:`purpose_of_samples`.

    Raises
    ------
    RecipeError
        If it has several grids.
    SamplesError
        If chips do not fit the grid or the model, or no place is left for them.
    """
    part = plan.only
    recipe, lattice, spec = plan.recipe, part.lattice, part.model.spec
    samples = recipe.samples
    assert samples is not None
    is_reduced = isinstance(samples.target, DownsampledImage)
    span_px = samples.chip_px * (spec.upscale if is_reduced else 1)
    _check_chips(samples, spec, span_px, lattice.cell_px)
    bounds = part.area.bounds
    splits = make_splits(samples.split, crs=recipe.grid.crs, bounds=bounds, seed=samples.seed)
    chips = ChipLattice(lattice, span_px, part.area, splits, samples.seed, (1.0, 1.0, 1.0))
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
        plan=replace(plan, parts=(replace(part, blocks=blocks),)),
        samples=samples,
        chips=replace(chips, shares=shares),
        template=_make_template(part, is_reduced=is_reduced),
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


def _make_template(part: Part, *, is_reduced: bool) -> ChipTemplate:
    recipe, spec = part.recipe, part.model.spec
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
            access=part.reading.access,
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


def extract_chips(
    prepared: SamplesPlan,
    client: Any,
    attempt: Attempt | None = None,
    *,
    reporter: Reporter | None = None,
) -> ExtractSummary:
    """Cut the chips of a plan and join them.

    Parameters
    ----------
    prepared
        From :func:`plan_samples`.
    client
        ``distributed.Client`` of the cluster that works.
    attempt
        How to go about the place of the samples; by default it must be free.
    reporter
        Shows progress.

    Raises
    ------
    SamplesError
        If labels are refused by a rule of the recipe, or no chip is left.
    LeaseError
        If another extraction writes here.
    LostClusterError
        If the cluster is lost; the extraction can be resumed.
    """
    plan, part = prepared.plan, prepared.part
    attempt, reporter = attempt or Attempt(), reporter or SilentReporter()
    folder = RunFolder(plan.output)
    job = prepared.job(folder.path, None)  # what is wrong with labels is found before any work
    with take_place(plan, attempt, reporter.note) as taken:
        run = PartRun(part, taken, client, reporter, objects=folder.path)
        if _is_finished(folder):
            run.audit()
            return _sum_up(prepared, run.summary, read_counts(folder.output))
        todo = run.choose()[: attempt.limit]
        counts = None
        with run.going(todo):
            run.do(todo, replace(job, lease_owner=taken.lease.state.owner), cut_block)
            run.audit()
            if not run.summary.failures:
                counts = _join(prepared, run)
        if run.summary.stopped:
            run.audit()
        return _sum_up(prepared, run.summary, counts)


def _join(prepared: SamplesPlan, run: PartRun) -> Counts:
    """Make one set of what blocks have cut."""
    folder = run.taken.folder
    run.reporter.note("joining the chips")
    run.lease.check()
    keys = [key for record in run.records.values() for key, _ in record.shards]
    is_whole = len(run.records) == len(run.part.blocks) and not run.summary.states["degraded"]
    counts = join_chips(
        prepared.template, prepared.chips, prepared.samples, run.client, folder,
        [key for key in keys if key.endswith(".parquet")], keep_parts=not is_whole,
    )  # fmt: skip
    draw_chips(folder.path, folder.output, prepared.chips)
    return counts


def _sum_up(prepared: SamplesPlan, run: RunSummary, counts: Counts | None) -> ExtractSummary:
    return ExtractSummary(
        prepared.plan.output,
        len(prepared.part.blocks),
        states=run.states,
        counts=counts,
        candidates=dict(zip(SPLITS, prepared.candidates, strict=True)),
        elapsed_s=run.elapsed_s,
        seconds=run.seconds,
        stopped=run.stopped,
        failures=run.failures,
    )


def _is_finished(folder: RunFolder) -> bool:
    """Tell whether the chips are joined and the parts, which more blocks would need, are gone."""
    filesystem, root = fsspec.core.url_to_fs(folder.path)
    return is_complete(folder.output) and not filesystem.exists(f"{root}/{PARTS}")
