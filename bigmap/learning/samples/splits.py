"""Which chip is for training, validation or test: areas that are apart, never random pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.config.training import (
    CellSplit,
    PolygonSplit,
    SceneSplit,
    SplitConfig,
    WithinSceneSplit,
)
from bigmap.draws import derive_seed, hash_ints, to_uniform
from bigmap.errors import SamplesError
from bigmap.learning.chips import SPLITS
from bigmap.vectors import name_values, normalise, open_vector, take_polygons

Bounds = tuple[float, float, float, float]
UPPER_SHARE = 0.8
"""Of a scene, for training, in Razzak et al. (2021)."""
MOST_CELLS = 1_000_000


@dataclass(frozen=True)
class SplitAreas:
    """The areas of the splits, in metres of the grid's CRS, and how far chips of two stay apart."""

    areas: tuple[BaseGeometry, BaseGeometry, BaseGeometry]
    """Of train, validation and test; where they overlap, the later one counts."""
    buffer_m: float

    def assign(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
        """Return the split of each chip.

        A chip belongs to the split whose area holds it whole. One that comes closer than
        ``buffer_m`` to the area of a later split is left out: so validation and test stay whole,
        and two chips of different splits are never closer than that.

        Parameters
        ----------
        boxes
            (chip, 4): left, bottom, right, top in metres.

        Returns
        -------
        numpy.ndarray
            int8, (chip,): index into :data:`bigmap.learning.chips.SPLITS`, -1 for none.
        """
        chips = shapely.box(*boxes.T)
        split = np.full(len(chips), -1, dtype=np.int8)
        taken = np.zeros(len(chips), dtype=bool)
        for index in reversed(range(len(SPLITS))):
            area = self.areas[index]
            shapely.prepare(area)
            free = np.flatnonzero(~taken)
            inside = free[shapely.covers(area, chips[free])]
            split[inside] = index
            # Chips of this split are settled; others beside it are lost.
            if self.buffer_m > 0:
                near = shapely.dwithin(area, chips[free], self.buffer_m)
            else:  # Touching is no overlap.
                near = shapely.area(shapely.intersection(area, chips[free])) > 0
            taken[free[near]] = True
        return split


def make_splits(config: SplitConfig, *, crs: str, bounds: Bounds, seed: int) -> SplitAreas:
    """Derive the areas of the splits.

    Parameters
    ----------
    config
        ``samples.split`` of the recipe.
    crs
        Of the grid.
    bounds
        Left, bottom, right, top of what is to be split, in metres.
    seed
        Of the draw of cells.

    Raises
    ------
    SamplesError
        If a file cannot be read or names no split.
    """
    match config:
        case CellSplit():
            parts = _draw_cells(config, bounds, seed)
        case WithinSceneSplit():
            parts = _cut_scenes(config, bounds)
        case PolygonSplit():
            parts = _read_polygons(config, crs)
        case SceneSplit():
            parts = _read_scenes(config, crs)
    train, validation, test = (shapely.union_all(part) for part in parts)
    return SplitAreas((train, validation, test), config.buffer_m)


def _list_squares(bounds: Bounds, side_m: float) -> tuple[npt.NDArray[np.int64], ...]:
    """Return rows and columns of the squares of a lattice at the CRS origin that meet a box."""
    left, bottom, right, top = bounds
    columns = np.arange(np.floor(left / side_m), np.ceil(right / side_m), dtype=np.int64)
    rows = np.arange(np.floor(bottom / side_m), np.ceil(top / side_m), dtype=np.int64)
    if len(columns) * len(rows) > MOST_CELLS:
        raise SamplesError(
            f"samples.split: {len(columns) * len(rows):,} cells are too many; make them larger"
        )
    grid_rows, grid_columns = np.meshgrid(rows, columns, indexing="ij")
    return grid_rows.ravel(), grid_columns.ravel()


def _draw_cells(config: CellSplit, bounds: Bounds, seed: int) -> Sequence[npt.NDArray[np.object_]]:
    """Draw the split of each cell by its place, so that a larger area changes none."""
    side_m = config.cell_km * 1000
    rows, columns = _list_squares(bounds, side_m)
    draw = to_uniform(hash_ints(derive_seed(seed, "split"), rows, columns))
    split = np.searchsorted([config.train, config.train + config.validation], draw, side="right")
    cells = shapely.box(
        columns * side_m, rows * side_m, (columns + 1) * side_m, (rows + 1) * side_m
    )
    return [cells[split == index] for index in range(len(SPLITS))]


def _cut_scenes(config: WithinSceneSplit, bounds: Bounds) -> Sequence[npt.NDArray[np.object_]]:
    """Cut squares into the upper part and the two lower corners."""
    side_m = config.scene_km * 1000
    rows, columns = _list_squares(bounds, side_m)
    left, bottom = columns * side_m, rows * side_m
    middle, lower = left + side_m / 2, bottom + (1 - UPPER_SHARE) * side_m
    return (
        shapely.box(left, lower, left + side_m, bottom + side_m),
        shapely.box(left, bottom, middle, lower),
        shapely.box(middle, bottom, left + side_m, lower),
    )


def _read_polygons(config: PolygonSplit, crs: str) -> Sequence[npt.NDArray[np.object_]]:
    names, polygons = _read_file(config, crs)
    unknown = sorted(set(names.tolist()) - set(SPLITS))
    if unknown:
        raise SamplesError(
            f"samples.split.file: {config.file}: {config.attribute} is {unknown[0]!r}; it names "
            f"the split: {', '.join(SPLITS)}"
        )
    return [polygons[names == split] for split in SPLITS]


def _read_scenes(config: SceneSplit, crs: str) -> Sequence[npt.NDArray[np.object_]]:
    names, polygons = _read_file(config, crs)
    validation, test = ([normalise(name) for name in each]
                        for each in (config.validation, config.test))  # fmt: skip
    both = sorted(set(validation) & set(test))
    absent = sorted({*validation, *test} - set(names.tolist()))
    if both or absent:
        why = "stands in both" if both else f"is no {config.attribute} of {config.file}"
        raise SamplesError(f"samples.split.validation, test: {(both + absent)[0]!r} {why}")
    is_validation, is_test = np.isin(names, validation), np.isin(names, test)
    return [polygons[~is_validation & ~is_test], polygons[is_validation], polygons[is_test]]


def _read_file(
    config: PolygonSplit | SceneSplit, crs: str
) -> tuple[npt.NDArray[np.str_], npt.NDArray[np.object_]]:
    where = f"samples.split.file: {config.file}"
    source = open_vector(
        config.file, config.layer, where=where, choose="set samples.split.layer",
        error=SamplesError,
    )  # fmt: skip
    attribute = source.find_column(config.attribute)
    if attribute is None:
        raise SamplesError(
            f"{where}: has no attribute {config.attribute}; see samples.split.attribute"
        )
    frame = source.read(columns=[attribute])
    polygons = take_polygons(frame.geometry.to_numpy())
    has_area = ~shapely.is_empty(polygons)
    if not has_area.any():
        raise SamplesError(f"{where}: holds no polygons")
    projected = gpd.GeoSeries(polygons[has_area], crs=frame.crs).to_crs(crs).to_numpy()
    return np.array(name_values(frame[attribute]), dtype=str)[has_area], projected
