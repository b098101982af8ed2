"""``bigmap evaluate RECIPE --map MAP.zarr``: a finished map against labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.area import CHOOSE_LAYER, read_area
from bigmap.config import Recipe
from bigmap.config.sources import SimulatedSource
from bigmap.errors import OutputError, RecipeError, SamplesError
from bigmap.grid import Area
from bigmap.learning.chips import SPLITS, Split
from bigmap.learning.evaluation.maps import (
    BlockMapper,
    CountTask,
    MapCounts,
    MapGrid,
    count_map,
    join_area,
    list_shards,
    open_grids,
)
from bigmap.learning.evaluation.results import Evaluation, ModelScores
from bigmap.learning.labels.opening import open_labels
from bigmap.learning.labels.reader import LabelReader
from bigmap.learning.samples import make_splits
from bigmap.models import ClassEntry
from bigmap.models.choosing import choose_model, use_trained_weights

Advance = Callable[[int, int], None]
OpenLabels = Callable[[MapGrid], LabelReader]
"""Gives the labels on the grid of a map, or of one of its zones."""
FindGeometry = Callable[[MapGrid], BaseGeometry]
"""Gives what a split covers, in the CRS of a grid."""


def score_map(
    recipe: Recipe,
    path: str,
    *,
    run: BlockMapper,
    area_file: str | None = None,
    find_geometry: FindGeometry | None = None,
    instances: bool = False,
    advance: Advance | None = None,
    open_reader: OpenLabels | None = None,
) -> Evaluation:
    """Score a finished map against the recipe's labels.

    Parameters
    ----------
    recipe
        With ``samples.labels``; its model has the legend of the map.
    path
        Of the map.
    run
        Counts the shards.
    area_file
        Polygons outside of which no pixel counts.
    find_geometry
        The same as a geometry in the CRS of a grid, such as that of a split.
    instances
        Score connected areas of the second class too.
    advance
        Told of progress, in shards.
    open_reader
        Opens the labels on a grid; by default those of the recipe.

    Raises
    ------
    BigmapError
        If the map or the labels do not fit the recipe; the message names the field.
    """
    labels_kind = _find_labels(recipe)
    grids = open_grids(path)
    notes = check_legend(recipe, grids)
    if instances:
        _refuse_instances(grids[0].legend)
    areas = find_areas(grids, area_file, find_geometry)
    readers, unlabelled = _open_readers(grids, open_reader or partial(open_map_labels, recipe))
    tasks = [
        CountTask(grid, area, reader, with_instances=instances)
        for grid, area, reader in zip(grids, areas, readers, strict=True)
    ]
    counts = count_grids(tasks, run, advance=advance)
    if not counts.matrix.counts.any():
        raise SamplesError(
            f"samples.labels: no labelled pixel lies on one that {path} has mapped"
            f"{' inside the area asked for' if area_file or find_geometry else ''}"
        )
    if labels_kind == "simulated":
        notes = (*notes, "The labels are simulated: these scores say nothing about real ground.")
    scores = ModelScores(
        label=recipe.model.name,
        classes=counts.matrix.compute(),
        instances=counts.instances.compute() if counts.instances is not None else None,
        facts={"map": path, "mapped_px": int(counts.class_px.sum())},
    )
    return Evaluation(
        title=f"{recipe.title or recipe.name}, {path}",
        models=(scores,),
        legend=grids[0].legend,
        method=_describe_method(grids, labels_kind, area_file, find_geometry is not None),
        notes=(*notes, *unlabelled),
    )


def _find_labels(recipe: Recipe) -> str:
    """Return the kind of a recipe's labels, without which a map cannot be scored."""
    if recipe.samples is None or recipe.samples.labels is None:
        raise SamplesError(
            "samples.labels: is missing from the recipe; a map is scored against labels"
        )
    return recipe.samples.labels.kind


def _refuse_instances(legend: Sequence[ClassEntry]) -> None:
    if len(legend) != 2:
        raise SamplesError(
            "--instances: instances are those of the second of two classes, but the map has "
            f"{len(legend)}"
        )


def _open_readers(
    grids: Sequence[MapGrid], open_reader: OpenLabels
) -> tuple[list[LabelReader | None], list[str]]:
    """Open labels on each grid and tell of zones that they miss; one that all miss is refused."""
    readers: list[LabelReader | None] = []
    missed: list[SamplesError] = []
    notes = []
    for grid in grids:
        try:
            readers.append(open_reader(grid))
        except SamplesError as error:
            missed.append(error)
            readers.append(None)
            notes.append(f"Not scored: {grid.path} ({error})")
    if len(missed) == len(grids):
        raise missed[0]
    return readers, notes


def open_map_labels(recipe: Recipe, grid: MapGrid) -> LabelReader:
    """Open the recipe's labels on the grid of a map.

    Raises
    ------
    ReadError
        If their files cannot be read after all retries.
    SamplesError
        If they cannot be used; names the field.
    """
    assert recipe.samples is not None
    assert recipe.samples.labels is not None
    return open_labels(
        recipe.samples.labels,
        crs=grid.lattice.crs,
        class_values=[entry.value for entry in grid.legend],
        bounds=grid.bounds,
        seed=recipe.source.seed if isinstance(recipe.source, SimulatedSource) else 0,
        access=recipe.source.access,
    )


def split_geometry(recipe: Recipe, split: Split) -> FindGeometry:
    """Return what gives the area of a split on a grid.

    Raises
    ------
    SamplesError
        If the recipe has no samples, or a file of its split cannot be used.
    """
    if recipe.samples is None:
        raise SamplesError("samples: is missing from the recipe, so that it has no splits")
    config, seed, index = recipe.samples.split, recipe.samples.seed, SPLITS.index(split)

    def find(grid: MapGrid) -> BaseGeometry:
        areas = make_splits(config, crs=grid.lattice.crs, bounds=grid.bounds, seed=seed).areas
        # Where two overlap, the later one counts.
        return areas[index].difference(shapely.union_all(areas[index + 1 :]))

    return find


def check_legend(recipe: Recipe, grids: Sequence[MapGrid]) -> tuple[str, ...]:
    """Refuse a map of another legend than the recipe's, and return what must be known of it.

    Raises
    ------
    OutputError
        Naming both legends.
    """
    grid = grids[0]
    spec = choose_model(use_trained_weights(recipe).model).build().spec
    if _name_legend(spec.legend) != _name_legend(grid.legend):
        raise OutputError(
            f"--map {grid.path}: has the classes {_name_legend(grid.legend)}, but the recipe's "
            f"model.legend has {_name_legend(spec.legend) or 'none'}"
        )
    model: dict[str, Any] = grid.attributes.get("bigmap:model", {})
    own = (recipe.model.name, spec.weights)
    notes: list[str] = []
    if spec.notice and own == (model.get("name"), model.get("weights")):
        notes.append(f"{spec.name}: {spec.notice}")
    source = grid.attributes.get("bigmap:recipe", {}).get("source", {})
    if source.get("kind") == "simulated":
        notes.append("The map was made from simulated scenes: it shows no real place.")
    return tuple(notes)


def _name_legend(legend: Sequence[ClassEntry]) -> str:
    # The map's attributes hold names without spaces.
    return ", ".join(f"{entry.value} {entry.name.replace('_', ' ')}" for entry in legend)


def find_areas(
    grids: Sequence[MapGrid], area_file: str | None, find_geometry: FindGeometry | None = None
) -> list[Area | None]:
    """Return what of each grid counts; None is all of it.

    Raises
    ------
    RecipeError
        If the file is wrong, or what it holds meets no grid.
    """
    if area_file is None and find_geometry is None:
        return [None] * len(grids)
    areas = []
    for grid in grids:
        geometry = find_geometry(grid) if find_geometry is not None else None
        areas.append(join_area(_read_area(area_file, grid), geometry))
    if not any(list_shards(grid, area) for grid, area in zip(grids, areas, strict=True)):
        what = f"--area {area_file}" if area_file is not None else "--split"
        raise RecipeError(f"{what}: does not meet the map {grids[0].path}")
    return areas


def _read_area(area_file: str | None, grid: MapGrid) -> Area | None:
    if area_file is None:
        return None
    try:
        return read_area(crs=grid.lattice.crs, file=area_file)
    except RecipeError as error:
        said = str(error).replace("area.file: ", "--area ", 1)
        raise RecipeError(said.replace(CHOOSE_LAYER, "save the one meant by itself")) from None


def count_grids(
    tasks: Sequence[CountTask], run: BlockMapper, *, advance: Advance | None = None
) -> MapCounts:
    """Count all grids of a map, whose legend they share."""
    total = tasks[0].empty()
    for task in tasks:
        total.merge(count_map(task, run, advance=advance))
    return total


def _describe_method(
    grids: Sequence[MapGrid], labels: str, area_file: str | None, has_split: bool
) -> tuple[str, ...]:
    lines = [f"Every pixel of {grids[0].lattice.gsd_m:g} m that is both mapped and labelled, once."]
    lines.append(f"Labels: {labels}, on the pixels of the map.")
    if area_file is not None:
        lines.append(f"Only pixels inside {area_file}.")
    if has_split:
        lines.append("Only pixels inside the split.")
    return tuple(lines)
