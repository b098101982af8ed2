"""``bigmap evaluate RECIPE --map MAP.zarr --reference POINTS``: accuracy and area by a sample.

Rules: points outside the map or the area, on nodata, or without a class are left out and counted;
a class that the map does not know is refused. A stratum with less than two points left is refused.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from bigmap.config import Recipe
from bigmap.errors import SamplesError
from bigmap.grid import Area
from bigmap.learning.evaluation.design import LEAST_POINTS, DesignScores, estimate_accuracy
from bigmap.learning.evaluation.map_scores import (
    Advance,
    FindGeometry,
    check_legend,
    count_grids,
    find_areas,
)
from bigmap.learning.evaluation.maps import BlockMapper, CountTask, MapCounts, MapGrid, open_grids
from bigmap.learning.evaluation.results import Evaluation, ModelScores, SampleScores
from bigmap.models import ClassEntry
from bigmap.vectors import name_values, normalise, open_vector

M2_PER_HA = 10_000.0
NONE = -1
"""Class of a point where the map has none, or the sample."""
OUTSIDE = -2
"""Class of a point that is not in the map, or not in the area."""
SHOWN = 5

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReferenceSample:
    """Where a sample lies and what its columns are."""

    file: str
    """Points, in any vector format and CRS."""
    attribute: str
    """Reference class: name or value."""
    stratum: str | None = None
    """Stratum that each point was drawn in; by default the class that the map has there."""
    stratum_areas: str | None = None
    """CSV with the columns ``stratum`` and ``area_ha``, where strata are not the map's classes."""
    layer: str | None = None
    """Of a file with several layers."""


def score_reference(
    recipe: Recipe,
    path: str,
    sample: ReferenceSample,
    *,
    run: BlockMapper,
    area_file: str | None = None,
    find_geometry: FindGeometry | None = None,
    advance: Advance | None = None,
) -> Evaluation:
    """Estimate the accuracy of a map, and the area of its classes, from a reference sample.

    Parameters
    ----------
    recipe
        Its model has the legend of the map.
    path
        Of the map.
    sample
        The points.
    run
        Counts the map's pixels shard by shard: the sizes of strata.
    area_file, find_geometry
        As for :func:`~bigmap.learning.evaluation.map_scores.score_map`: what the sample was drawn
        from.
    advance
        Told of progress, in shards.

    Raises
    ------
    BigmapError
        If the sample cannot be read or does not fit the map; the message names the option.
    """
    grids = open_grids(path)
    notes = check_legend(recipe, grids)
    legend = grids[0].legend
    frame = read_points(sample)
    reference = find_classes(frame[sample.attribute], legend, sample)
    areas = find_areas(grids, area_file, find_geometry)
    mapped = sample_grids(frame.geometry, grids, areas)
    used = (mapped >= 0) & (reference >= 0)
    left_out = _count_left_out(mapped, reference)
    if not used.any():
        raise SamplesError(
            f"--reference {sample.file}: of {len(frame)} points none can be compared: "
            f"{_list_counts(left_out)}"
        )
    strata = _find_strata(frame[used], mapped[used], legend, sample)
    tasks = [CountTask(grid, area) for grid, area in zip(grids, areas, strict=True)]
    counts = count_grids(tasks, run, advance=advance)
    mapped_ha = _to_ha(counts, grids)
    weights = _find_weights(strata, mapped_ha, legend, sample)
    scores = estimate_accuracy(
        mapped[used], reference[used], strata, weights=weights, classes=len(legend)
    )
    found = SampleScores(
        design=scores,
        area_ha=sum(weights.values()),
        mapped_ha=tuple(mapped_ha.tolist()),
        points=int(used.sum()),
        left_out=left_out,
    )
    return Evaluation(
        title=f"{recipe.title or recipe.name}, {path}",
        models=(ModelScores(recipe.model.name, sample=found, facts={"map": path}),),
        legend=legend,
        method=_describe_method(sample, found, scores, grids),
        notes=notes,
    )


def read_points(sample: ReferenceSample) -> gpd.GeoDataFrame:
    """Read the points of a sample.

    Raises
    ------
    SamplesError
        If the file cannot be read, holds other things than points, or lacks CRS or attributes.
    """
    file, where = sample.file, f"--reference {sample.file}"
    source = open_vector(
        file, sample.layer, where=where, choose="give --layer", error=SamplesError, kind="points"
    )
    stored = {}
    for option, name in (("--attribute", sample.attribute), ("--stratum", sample.stratum)):
        column = source.find_column(name) if name is not None else None
        if name is not None and column is None:
            columns = ", ".join(source.columns)
            raise SamplesError(f"{option} {name}: {file} has no such attribute; it has {columns}")
        stored[column] = name
    frame = source.read().rename(columns=stored)
    if not (frame.geom_type == "Point").all() or not 0 < len(frame) == source.features:
        raise SamplesError(f"{where}: a sample is points, one a row, and this holds others or none")
    return frame


def find_classes(
    values: pd.Series[Any], legend: Sequence[ClassEntry], sample: ReferenceSample
) -> IntArray:
    """Return the index of the class that each value names, :data:`NONE` where it is empty.

    Raises
    ------
    SamplesError
        If a value is neither the name nor the value of a class.
    """
    known = _index_classes(legend)
    given = values.notna().to_numpy()
    names = np.array(name_values(values), dtype=object)
    unknown = sorted({name for name in names[given] if _plain(name) not in known})
    if unknown:
        raise SamplesError(
            f"--attribute {sample.attribute}: {sample.file} has {unknown[0]!r}, which is no class "
            f"of the map; there are {', '.join(f'{one.value} {one.name}' for one in legend)}"
        )
    return np.array(
        [known[_plain(name)] if is_given else NONE
         for name, is_given in zip(names, given, strict=True)], dtype=np.int64,
    )  # fmt: skip


def _index_classes(legend: Sequence[ClassEntry]) -> dict[str, int]:
    by_value = {str(entry.value): index for index, entry in enumerate(legend)}
    return {_plain(entry.name): index for index, entry in enumerate(legend)} | by_value


def _plain(name: str) -> str:
    """Return a name as it is compared: the attributes of maps hold names without spaces."""
    return normalise(name).strip().replace("_", " ")


def sample_grids(
    points: gpd.GeoSeries, grids: Sequence[MapGrid], areas: Sequence[Area | None]
) -> IntArray:
    """Return the index of the map's class at each point.

    Returns
    -------
    numpy.ndarray
        int64, (point,); :data:`NONE` where the map has no class, :data:`OUTSIDE` beyond the map or
        the area.
    """
    found = np.full(len(points), OUTSIDE, dtype=np.int64)
    for grid, area in zip(grids, areas, strict=True):
        own = _sample_grid(points.to_crs(grid.lattice.crs), grid, area)
        found = np.maximum(found, own)
    return found


def _sample_grid(points: gpd.GeoSeries, grid: MapGrid, area: Area | None) -> IntArray:
    (left, top), gsd_m = grid.lattice.anchor_m, grid.lattice.gsd_m
    with np.errstate(invalid="ignore"):
        col, row = np.floor((points.x - left) / gsd_m), np.floor((top - points.y) / gsd_m)
        inside = (row >= 0) & (row < grid.shape[0]) & (col >= 0) & (col < grid.shape[1])
    if area is not None:
        # A pixel counts by its centre, as in the sizes of strata.
        x, y = left + (col + 0.5) * gsd_m, top - (row + 0.5) * gsd_m
        for part in area.parts:
            shapely.prepare(part)
            inside &= shapely.contains_xy(part, x, y)
    found = np.full(len(points), OUTSIDE, dtype=np.int64)
    chosen = np.flatnonzero(inside)
    places = np.column_stack([row, col])[chosen].astype(np.int64)
    lookup = np.full(256, NONE, dtype=np.int64)
    lookup[[entry.value for entry in grid.legend]] = np.arange(len(grid.legend))
    found[chosen] = lookup[_read_pixels(grid, places)]
    return found


def _read_pixels(grid: MapGrid, places: IntArray) -> npt.NDArray[np.uint8]:
    """Read single pixels, (point, 2) rows and columns, each chunk once."""
    layer = grid.open_layer()
    step = np.array(layer.chunks)
    values = np.full(len(places), grid.nodata, dtype=np.uint8)
    chunks, members = np.unique(places // step, axis=0, return_inverse=True)
    for number, corner in enumerate(chunks * step):
        own = np.flatnonzero(members == number)
        rows, cols = (slice(start, start + size) for start, size in zip(corner, step, strict=True))
        chunk = grid.read(layer, (rows, cols))
        values[own] = chunk[tuple((places[own] - corner).T)]
    return values


def _count_left_out(mapped: IntArray, reference: IntArray) -> dict[str, int]:
    outside, unmapped = mapped == OUTSIDE, mapped == NONE
    return {
        "outside the map or the area": int(outside.sum()),
        "where the map has no class": int(unmapped.sum()),
        "without a reference class": int((~outside & ~unmapped & (reference == NONE)).sum()),
    }


def _list_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "none"


def _find_strata(
    frame: gpd.GeoDataFrame, mapped: IntArray, legend: Sequence[ClassEntry], sample: ReferenceSample
) -> list[str]:
    """Return the stratum of each point; those of the map's classes bear their names."""
    names = [legend[index].name for index in mapped]
    if sample.stratum is None:
        return names
    if frame[sample.stratum].isna().any():
        raise SamplesError(
            f"--stratum {sample.stratum}: {int(frame[sample.stratum].isna().sum())} points of "
            f"{sample.file} have none; every point was drawn in one"
        )
    given = name_values(frame[sample.stratum])
    if sample.stratum_areas is not None:
        return given
    known = _index_classes(legend)
    differ = sum(known.get(_plain(one)) != own for one, own in zip(given, mapped, strict=True))
    if differ:
        raise SamplesError(
            f"--stratum {sample.stratum}: at {differ} of {len(given)} points the stratum is not "
            "the class that the map has there, so the sizes of strata are unknown; give "
            "--stratum-areas, a CSV with the columns stratum and area_ha"
        )
    return names


def _find_weights(
    strata: Sequence[str], mapped_ha: npt.NDArray[np.float64], legend: Sequence[ClassEntry],
    sample: ReferenceSample,
) -> dict[str, float]:  # fmt: skip
    """Return the area of each stratum in hectares, and refuse those that have too few points."""
    if sample.stratum is not None and sample.stratum_areas is not None:
        areas = read_areas(sample.stratum_areas)
    else:
        pairs = zip(legend, mapped_ha.tolist(), strict=True)
        areas = {entry.name: area for entry, area in pairs if area > 0}
    points = Counter(strata)
    absent = sorted(set(points) - set(areas))
    if absent:
        raise SamplesError(
            f"--stratum-areas {sample.stratum_areas}: has no area of the stratum {absent[0]!r}, in "
            f"which {points[absent[0]]} points lie"
        )
    few = [name for name in areas if points[name] < LEAST_POINTS]
    if few:
        whole = sum(areas.values())
        shown = ", ".join(
            f"{name} ({areas[name] / whole:.2%} of the area) {points[name]}" for name in few[:SHOWN]
        )
        raise SamplesError(
            f"--reference {sample.file}: a stratum needs at least {LEAST_POINTS} points that can "
            f"be compared, but there are of {shown}; add points there, or merge strata"
        )
    return areas


def read_areas(file: str) -> dict[str, float]:
    """Read the areas of strata from a CSV with the columns ``stratum`` and ``area_ha``.

    Raises
    ------
    SamplesError
        If it cannot be read, or an area is no number above 0.
    """
    where = f"--stratum-areas {file}"
    try:
        with Path(file).open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeError, csv.Error) as error:
        raise SamplesError(f"{where}: cannot be read ({error})") from None
    try:
        areas = {row["stratum"].strip(): float(row["area_ha"]) for row in rows}
    except (KeyError, ValueError, TypeError, AttributeError):
        raise SamplesError(
            f"{where}: each row needs a name in the column stratum and a number in area_ha"
        ) from None
    if not areas or len(areas) < len(rows) or not all(0 < area < np.inf for area in areas.values()):
        raise SamplesError(f"{where}: each stratum needs one row and an area above 0")
    return areas


def _to_ha(counts: MapCounts, grids: Sequence[MapGrid]) -> npt.NDArray[np.float64]:
    return np.asarray(counts.class_px * grids[0].lattice.gsd_m ** 2 / M2_PER_HA, dtype=np.float64)


def _describe_method(
    sample: ReferenceSample, found: SampleScores, scores: DesignScores, grids: Sequence[MapGrid]
) -> tuple[str, ...]:
    others = sample.stratum is not None and sample.stratum_areas is not None
    strata = f"those of {sample.stratum_areas}" if others else "the map's classes"
    sizes = ", ".join(
        f"{name} {weight:.2%} with {scores.stratum_points[name]} points"
        for name, weight in scores.stratum_weights.items()
    )
    lines = [
        (
            f"{found.points} points of {sample.file}, class {sample.attribute}, taken as a "
            "stratified random sample."
        ),
        f"Left out: {_list_counts(found.left_out)}.",
        f"Strata: {strata}; {sizes}.",
        "Estimators and 95 % confidence intervals: Olofsson et al. 2014 "
        "(doi:10.1016/j.rse.2014.02.015)"
        + (
            ", with strata that are not the map's classes Stehman 2014 "
            "(doi:10.1080/01431161.2014.930207)."
            if others
            else "."
        ),
        f"Areas are those of pixels of {grids[0].lattice.gsd_m:g} m on the map's grid.",
    ]
    return tuple(lines)
