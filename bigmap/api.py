"""The public functions: a few lines each over the modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from bigmap import simulate
from bigmap.chips import Split
from bigmap.clusters import Cluster
from bigmap.clusters.mapping import map_on
from bigmap.config import Recipe, load_recipe, parse_recipe
from bigmap.cube import open_cube_of
from bigmap.errors import OutputError, RecipeError
from bigmap.evaluation import (
    BlockMapper,
    Evaluation,
    ReferenceSample,
    ScoringOptions,
    score_map,
    score_models,
    score_reference,
    split_geometry,
)
from bigmap.grid import intersect, is_empty, shape_of
from bigmap.inference import predict
from bigmap.planning import Plan, make_plan, use_trained_weights
from bigmap.progress import StageProgress
from bigmap.runner import Reporter, RunSummary, SilentReporter, run_plan
from bigmap.runs import RunFolder, check_output
from bigmap.samples import (
    ExtractSummary,
    check_place,
    extract_chips,
    plan_samples,
    recipe_of_samples,
)
from bigmap.staging import JOBS, StageSummary, read_staged, stage_plan, use_staged
from bigmap.store import open_map
from bigmap.training import TrainingReporter, TrainingSummary, train_on_cluster, train_recipe
from bigmap.zones import ZonePlans, is_utm, plan_zones, run_zones, stage_zones

__all__ = [
    "estimate_areas",
    "evaluate_map",
    "evaluate_model",
    "extract",
    "load_recipe",
    "open_cube",
    "open_map",
    "plan",
    "predict",
    "prepare_source",
    "run",
    "stage",
    "train",
]

SMALLEST_CUBE_PX = 1

P = TypeVar("P", Plan, ZonePlans)


def plan(recipe: Recipe) -> Plan | ZonePlans:
    """Plan a map without mapping anything; nothing is written.

    Returns
    -------
    Plan or ZonePlans
        With ``grid.crs: utm`` the plans of all zones, else one. Its ``scenes`` say what of a
        simulated source must be rendered before it can be run: see :func:`prepare_source`.

    Raises
    ------
    BigmapError
        If the recipe cannot work; the message names the field.
    """
    recipe = use_trained_weights(recipe)
    return plan_zones(recipe) if is_utm(recipe) else make_plan(recipe)


def prepare_source(recipe: Recipe) -> None:
    """Render what a simulated source lacks, on the cores of this machine; others lack nothing.

    :func:`run`, :func:`stage`, :func:`extract` and :func:`open_cube` do so themselves; whoever
    runs a plan of :func:`plan` calls this before it is made.

    Raises
    ------
    BigmapError
        If the recipe cannot work; then nothing is rendered.
    """
    _render(plan(recipe), simulate.render_here)


def _plan_rendered(make: Callable[[], P], render: simulate.Renderer) -> P:
    """Plan, render what the plan lacks, and plan again with what was rendered."""
    prepared = make()
    return make() if _render(prepared, render) else prepared


def _render(prepared: Plan | ZonePlans, render: simulate.Renderer) -> bool:
    """Turn a simulated source into files; tell whether any were missing."""
    stock = prepared.scenes
    if stock is None:
        return False
    # Also where all are there: they count as used from now on, so that none is removed.
    for request in stock.requests:
        simulate.write_scenes(request, stock.cache, max_bytes=stock.max_bytes, render=render)
    return stock.lacking > 0


def run(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    staged: str | Path | None = None,
    redo: Collection[str] | None = None,
    reuse: str | None = None,
    allow_random_weights: bool = False,
    reporter: Reporter | None = None,
) -> RunSummary:
    """Make a map on the recipe's cluster.

    Parameters
    ----------
    recipe
        What to map. Where ``model.weights`` names none, what training wrote to
        ``training.weights`` counts.
    resume
        Go on with the run at ``output.path`` if there is one.
    overwrite
        Start anew even if ``output.path`` exists.
    limit
        Map so many blocks only, for a trial.
    staged
        Folder of :func:`stage`: its scenes are read, and nothing else.
    redo
        Do these blocks of the run at ``output.path`` again, and no others: their names, or
        ``failed`` or ``degraded`` for all in that state.
    reuse
        An earlier map: blocks of it that would be the same here are copied.
    allow_random_weights
        Map even by a network that has learnt nothing, which is refused otherwise.
    reporter
        Shows progress; by default nothing is shown.

    Returns
    -------
    RunSummary
        Blocks by state, times, and the audit; ``exit_code`` is that of ``bigmap run``.

    Raises
    ------
    BigmapError
        If the recipe cannot work, or the output is taken.
    """
    recipe = use_trained_weights(recipe)
    resuming = check_output(recipe, resume=resume or redo is not None, overwrite=overwrite)
    if redo is not None and not resuming:
        raise OutputError(f"--redo: there is no run at {recipe.output.path} to do blocks of again")
    if is_utm(recipe):
        with Cluster(recipe, note=(reporter or SilentReporter()).note) as cluster:
            make = partial(
                plan_zones,
                recipe,
                resume=resuming,
                staged=Path(staged) if staged is not None else None,
                needs_weights=not allow_random_weights,
            )
            return run_zones(
                _plan_rendered(make, cluster.render),
                partial(run_plan, client=cluster.client),
                resume=resuming,
                limit=limit,
                reporter=reporter or SilentReporter(),
                redo=redo,
                reuse=reuse,
                overwrite=overwrite,
            )
    items = RunFolder(recipe.output.path).read_items() if resuming else None
    if staged is not None and not resuming:
        items = read_staged(Path(staged))
    reporter = reporter or SilentReporter()

    def make_own() -> Plan:
        prepared = make_plan(recipe, catalogue=items, needs_weights=not allow_random_weights)
        if resuming:
            RunFolder(recipe.output.path).check_plan(prepared)
        return use_staged(prepared, Path(staged)) if staged is not None else prepared

    with Cluster(recipe, note=reporter.note) as cluster:
        return run_plan(
            _plan_rendered(make_own, cluster.render),
            cluster.client,
            resume=resuming,
            limit=limit,
            reporter=reporter,
            redo=redo,
            reuse=reuse,
            overwrite=overwrite,
        )


def stage(
    recipe: Recipe,
    folder: str | Path,
    *,
    whole: bool = False,
    jobs: int = JOBS,
    reporter: StageProgress | None = None,
) -> StageSummary:
    """Fetch the scenes of a recipe into a folder, for compute nodes without network.

    Parameters
    ----------
    recipe
        What is to be mapped.
    folder
        Where to; what is there already and unchanged is kept. With ``grid.crs: utm`` each zone
        has a folder of its name in it.
    whole
        Copy whole files, and not only the tiles that the run reads.
    jobs
        Files fetched at once.
    reporter
        Shows progress; by default nothing is shown.

    Raises
    ------
    BigmapError
        If the recipe cannot work, or the folder cannot hold the scenes.
    """
    if is_utm(recipe):
        zones = _plan_rendered(partial(plan_zones, recipe), simulate.render_here)
        return stage_zones(zones, Path(folder), whole=whole, jobs=jobs, reporter=reporter)
    prepared = _plan_rendered(partial(make_plan, recipe), simulate.render_here)
    return stage_plan(prepared, Path(folder), whole=whole, jobs=jobs, reporter=reporter)


def extract(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    reporter: Reporter | None = None,
) -> ExtractSummary:
    """Cut the training chips of a recipe on its cluster.

    Parameters
    ----------
    recipe
        Its ``samples`` say what to cut; area, grid, source and model's bands are those of the map.
    resume
        Go on with the extraction at ``samples.path`` if there is one.
    overwrite
        Start anew even if ``samples.path`` exists.
    limit
        Cut so many blocks only, for a trial.
    reporter
        Shows progress; by default nothing is shown.

    Raises
    ------
    BigmapError
        If the recipe cannot work, labels cannot be used, or the place is taken.
    """
    reporter = reporter or SilentReporter()
    of_samples = recipe_of_samples(recipe)
    resuming = check_place(of_samples, resume=resume, overwrite=overwrite)
    items = RunFolder(of_samples.output.path).read_items() if resuming else None
    with Cluster(of_samples, note=reporter.note) as cluster:
        make = partial(make_plan, of_samples, catalogue=items)
        return extract_chips(
            plan_samples(_plan_rendered(make, cluster.render)),
            cluster.client,
            resume=resuming,
            limit=limit,
            threads=cluster.sizes.threads,
            reporter=reporter,
            overwrite=overwrite,
        )


def train(
    recipe: Recipe,
    *,
    processes: int | None = None,
    on_cluster: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    reporter: TrainingReporter | None = None,
) -> TrainingSummary:
    """Train the recipe's model on its samples.

    Parameters
    ----------
    recipe
        Its ``model``, ``samples`` and ``training`` count.
    processes
        On this machine; by default one for each GPU, or one.
    on_cluster
        Train by one process on each worker of the recipe's cluster instead.
    resume
        Go on with the run beside ``training.weights`` if there is one.
    overwrite
        Start anew even if there are weights or a run.
    reporter
        Shows progress; by default nothing is shown.

    Returns
    -------
    TrainingSummary
        Scores and speed; ``exit_code`` is that of ``bigmap train``.

    Raises
    ------
    BigmapError
        If the recipe cannot work, or the place of the weights is taken.
    """
    if on_cluster:
        return train_on_cluster(recipe, resume=resume, overwrite=overwrite, reporter=reporter)
    return train_recipe(
        recipe, processes=processes, resume=resume, overwrite=overwrite, reporter=reporter
    )


def open_cube(
    recipe: Recipe, bbox: Sequence[float] | None = None, *, chunk_px: int = 1024
) -> xr.DataArray:
    """Open the recipe's scenes as a lazy cube.

    Parameters
    ----------
    recipe
        Its area, grid, source, reading and model's bands decide the cube.
    bbox
        West, south, east, north in degrees; by default the whole area. The cube is the bounding
        box of the area inside it, snapped outwards to pixels.
    chunk_px
        Side of a chunk, in pixels; it changes no value.

    Returns
    -------
    xarray.DataArray
        uint16 (time, band, y, x), one time per solar day; reflectance is
        ``dn_scale * DN + dn_offset`` from ``attrs``, 0 is nodata; coordinate ``clear``
        (time, y, x) marks clear pixels. Nothing is read before it is computed.

    Raises
    ------
    BigmapError
        If the recipe cannot work, or ``bbox`` does not meet its area.
    """
    if bbox is not None:
        raw = recipe.model_dump(mode="json")
        raw["area"]["clip_bbox"] = np.asarray(bbox).tolist()
        recipe = parse_recipe(raw, origin="open_cube")
    prepared = _plan_rendered(partial(make_plan, recipe), simulate.render_here)
    roi = intersect(prepared.lattice.snap(prepared.area.bounds, SMALLEST_CUBE_PX), prepared.extent)
    if is_empty(roi) or 0 in shape_of(roi):
        raise RecipeError("area: holds no pixel of the grid")
    job = prepared.job(recipe.output.path, None)
    return open_cube_of(job.reader(prepared.catalogue.rows).near(roi), roi, chunk_px=chunk_px)


def evaluate_model(
    recipe: Recipe, *, advance: Callable[[int, int], None] | None = None, **options: Any
) -> Evaluation:
    """Score the recipe's model, and baselines beside it, on a split of its samples.

    Parameters
    ----------
    recipe
        With ``samples``.
    advance
        Told of progress: chips done, and of how many.
    **options
        Fields of :class:`bigmap.evaluation.ScoringOptions`: ``split``, ``weights``,
        ``baselines``, ``max_dates``, ``instances``, ``register``.

    Raises
    ------
    BigmapError
        If there are no such chips, or a model does not fit them.
    """
    return score_models(recipe, ScoringOptions(**options), advance=advance)


def evaluate_map(
    recipe: Recipe,
    path: str,
    *,
    area_file: str | None = None,
    split: Split | None = None,
    instances: bool = False,
    advance: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score a finished map against the recipe's labels, on the recipe's cluster.

    Parameters
    ----------
    recipe
        With ``samples.labels``.
    path
        Of the map.
    area_file, split
        Polygons, or a split of the recipe's samples, outside of which no pixel counts.
    instances
        Score connected areas of the second of two classes too.
    advance
        Told of progress: blocks done, and of how many.

    Raises
    ------
    BigmapError
        If the map or the labels do not fit the recipe.
    """
    with Cluster(recipe) as cluster:
        return score_map(
            recipe,
            path,
            run=_map_on(cluster),
            area_file=area_file,
            find_geometry=split_geometry(recipe, split) if split else None,
            instances=instances,
            advance=advance,
        )


def estimate_areas(
    recipe: Recipe,
    path: str,
    sample: ReferenceSample,
    *,
    area_file: str | None = None,
    split: Split | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Estimate a map's accuracy and the area of its classes from a reference sample.

    Parameters
    ----------
    recipe
        Its model has the map's legend; its cluster counts the map's pixels.
    path
        Of the map.
    sample
        The points.
    area_file, split, advance
        As for :func:`evaluate_map`.

    Raises
    ------
    BigmapError
        If the sample cannot be read, or does not fit the map.
    """
    with Cluster(recipe) as cluster:
        return score_reference(
            recipe,
            path,
            sample,
            run=_map_on(cluster),
            area_file=area_file,
            find_geometry=split_geometry(recipe, split) if split else None,
            advance=advance,
        )


def _map_on(cluster: Cluster) -> BlockMapper:
    """Return what does tasks on a cluster, which starts with the first."""
    return lambda task, items: map_on(cluster.client, task, items)
