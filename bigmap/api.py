"""The public functions: a few lines each over the modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from bigmap import simulate
from bigmap.clusters import Cluster
from bigmap.clusters.driving import map_on
from bigmap.config import Recipe, load_recipe, parse_recipe
from bigmap.errors import OutputError, RecipeError
from bigmap.grid import intersect, is_empty, shape_of
from bigmap.learning.chips import Split
from bigmap.learning.evaluation import (
    BlockMapper,
    Evaluation,
    ReferenceSample,
    ScoringOptions,
    score_map,
    score_models,
    score_reference,
    split_geometry,
)
from bigmap.learning.samples import ExtractSummary, extract_chips, plan_samples, purpose_of_samples
from bigmap.learning.training import (
    TrainingReporter,
    TrainingSummary,
    train_on_cluster,
    train_recipe,
)
from bigmap.mapping.lazy_predict import predict
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.planning import make_plan
from bigmap.mapping.plans import Plan
from bigmap.mapping.progress import StageProgress
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.reporting import Reporter, RunSummary, SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from bigmap.mapping.staging.stages import JOBS, StageSummary, stage_plan
from bigmap.mapping.store.opening import open_map
from bigmap.models.choosing import use_trained_weights
from bigmap.scenes.cube.lazy import open_cube_of
from bigmap.scenes.cube.reader import CubeReader

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


def plan(recipe: Recipe) -> Plan:
    """Plan a map without mapping anything; nothing is written.

    Returns
    -------
    Plan
        Its ``parts`` are one, or with ``grid.crs: utm`` one for each zone; its ``scenes`` say what
        of a simulated source must be rendered before it can be run: see :func:`prepare_source`.

    Raises
    ------
    BigmapError
        If the recipe cannot work; the message names the field.
    """
    return make_plan(use_trained_weights(recipe))


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


def _plan_rendered(make: Callable[[], Plan], render: simulate.Renderer) -> Plan:
    """Plan, render what the plan lacks, and plan again with what was rendered."""
    prepared = make()
    return make() if _render(prepared, render) else prepared


def _render(prepared: Plan, render: simulate.Renderer) -> bool:
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
    attempt = Attempt(resume or redo is not None, overwrite, limit, redo, reuse)
    resuming = check_place(recipe, Purpose.of_map(recipe), attempt)
    if redo is not None and not resuming:
        raise OutputError(f"--redo: there is no run at {recipe.output.path} to do blocks of again")
    reporter = reporter or SilentReporter()

    def make() -> Plan:
        prepared = make_plan(
            recipe,
            resume=resuming,
            staged=Path(staged) if staged is not None else None,
            needs_weights=not allow_random_weights,
        )
        if resuming:
            RunFolder(prepared.output).check_plan(prepared)
        return prepared

    with Cluster(recipe, note=reporter.note) as cluster:
        prepared = _plan_rendered(make, cluster.render)
        attempt = replace(attempt, resume=resuming)
        return run_plan(prepared, cluster.client, attempt, reporter=reporter)


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
    attempt, purpose = Attempt(resume, overwrite, limit), purpose_of_samples(recipe)
    resuming = check_place(recipe, purpose, attempt)
    make = partial(make_plan, recipe, purpose=purpose, resume=resuming)
    with Cluster(recipe, note=reporter.note) as cluster:
        prepared = plan_samples(_plan_rendered(make, cluster.render))
        attempt = replace(attempt, resume=resuming)
        return extract_chips(prepared, cluster.client, attempt, reporter=reporter)


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
    prepared = _plan_rendered(partial(make_plan, recipe), simulate.render_here).only
    roi = intersect(prepared.lattice.snap(prepared.area.bounds, SMALLEST_CUBE_PX), prepared.extent)
    if is_empty(roi) or 0 in shape_of(roi):
        raise RecipeError("area: holds no pixel of the grid")
    reader = CubeReader.of(prepared.reading, prepared.catalogue.rows).near(roi)
    return open_cube_of(reader, roi, chunk_px=chunk_px)


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
        Fields of :class:`bigmap.learning.evaluation.ScoringOptions`: ``split``, ``weights``,
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
