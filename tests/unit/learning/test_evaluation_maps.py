"""Counting a map: each pixel once, whatever the shards; areas, zones, legends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigmap.config import parse_recipe
from bigmap.errors import OutputError, RecipeError, SamplesError
from bigmap.grid import Area
from bigmap.learning.evaluation.map_scores import score_map, split_geometry
from bigmap.learning.evaluation.maps import CountTask, count_map, join_area, list_shards, open_grids
from bigmap.learning.metrics import ConfusionMatrix, InstanceParts
from tests.integration.small_world import raw_recipe
from tests.unit.learning.evaluation_maps import PlaceLabels, write_map, write_zones

LABELS = {"path": "chips.zarr", "labels": {"kind": "simulated"}}


def draw_classes(shape=(96, 128), seed=0) -> Any:
    return np.random.default_rng(seed).choice(
        np.array([0, 1, 255], dtype=np.uint8), shape, p=[0.5, 0.4, 0.1]
    )


def make_recipe(**changes: Any):
    return parse_recipe(raw_recipe(samples=LABELS, **changes))


def expect(classes: Any, path: str) -> Any:
    """Count the whole map at once."""
    (grid,) = open_grids(path)
    truth = PlaceLabels().read(grid.lattice.geobox(grid.extent))
    matrix = ConfusionMatrix((0, 1))
    matrix.update(classes, truth)
    instances = InstanceParts()
    valid = (classes != 255) & (truth != 255)
    instances.update(classes == 1, truth == 1, origin=(0, 0), valid=valid)
    return matrix.counts, instances.compute()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    classes = draw_classes()
    path = write_map(tmp_path_factory.mktemp("map") / "map.zarr", classes)
    return classes, path, expect(classes, path)


@pytest.fixture(scope="module")
def finer(tmp_path_factory):
    """The same map in shards of half the side."""
    return write_map(tmp_path_factory.mktemp("finer") / "map.zarr", draw_classes(), shard_px=16)


def test_a_map_is_counted_once_at_its_place(whole) -> None:
    classes, path, (expected, _) = whole
    scores = score_map(make_recipe(), path, open_reader=lambda grid: PlaceLabels(), run=map)
    (model,) = scores.models
    assert model.classes is not None
    np.testing.assert_array_equal(model.classes.confusion, expected)
    assert model.facts["mapped_px"] == (classes != 255).sum()
    assert "The labels are simulated" in scores.notes[-1]
    assert 0 < model.classes.pixels < classes.size * 0.7


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    order=st.randoms(use_true_random=False),
    box=st.none() | st.tuples(*[st.floats(-30, 700)] * 4),
)
def test_counts_do_not_depend_on_shards_or_their_order(whole, finer, order, box) -> None:
    _, path, _ = whole
    (grid,), (other_grid,) = open_grids(path), open_grids(finer)
    left, bottom, _, _ = grid.bounds
    area = None
    if box is not None:
        xs, ys = sorted(box[::2]), sorted(box[1::2])
        area = Area((shapely.box(left + xs[0], bottom + ys[0], left + xs[1], bottom + ys[1]),))
    task = CountTask(grid, area, PlaceLabels(), with_instances=True)

    def shuffled(function, items):
        items = list(items)
        order.shuffle(items)
        return map(function, items)

    one = count_map(task, shuffled)
    other = count_map(replace(task, grid=other_grid), map)
    np.testing.assert_array_equal(one.matrix.counts, other.matrix.counts)
    np.testing.assert_array_equal(one.class_px, other.class_px)
    assert one.instances is not None
    assert other.instances is not None
    assert one.instances.compute() == other.instances.compute()


def test_shards_find_the_whole_map_s_instances(whole) -> None:
    _, path, (counts, instances) = whole
    (grid,) = open_grids(path)
    found = count_map(CountTask(grid, None, PlaceLabels(), with_instances=True), map)
    np.testing.assert_array_equal(found.matrix.counts, counts)
    assert found.instances is not None
    assert found.instances.compute() == instances


def test_only_pixels_inside_an_area_count(whole, tmp_path) -> None:
    classes, path, _ = whole
    (grid,) = open_grids(path)
    # Pixel centres lie at half pixels: a box from 10.4 to 20.6 px holds the pixels 10 to 20.
    west, _, _, north = grid.bounds
    left, top, right, bottom = west + 52, north - 202, west + 103, north - 253
    outline = shapely.box(left, bottom, right, top)
    file = tmp_path / "area.gpkg"
    gpd.GeoSeries([outline], crs="EPSG:25831").to_file(file)
    scores = score_map(
        make_recipe(), path, open_reader=lambda grid: PlaceLabels(), run=map, area_file=str(file)
    )
    (model,) = scores.models
    cut = classes[40:51, 10:21]
    assert model.facts["mapped_px"] == (cut != 255).sum()
    assert len(list_shards(grid, Area((outline,)))) == 1
    # A split's geometry cuts it further.
    half = shapely.box(left, bottom, west + 76, top)
    scores = score_map(
        make_recipe(), path, open_reader=lambda grid: PlaceLabels(), run=map,
        area_file=str(file), find_geometry=lambda grid: half,
    )  # fmt: skip
    assert scores.models[0].facts["mapped_px"] == (classes[40:51, 10:15] != 255).sum()


def test_what_meets_no_map_is_refused(whole, tmp_path) -> None:
    _, path, _ = whole
    file = tmp_path / "area.gpkg"
    gpd.GeoSeries([shapely.box(3e5, 46e5, 301e3, 4601e3)], crs="EPSG:25831").to_file(file)
    common = {"open_reader": lambda grid: PlaceLabels(), "run": map}
    with pytest.raises(RecipeError, match=r"--area .*area.gpkg: does not meet the map"):
        score_map(make_recipe(), path, area_file=str(file), **common)
    with pytest.raises(RecipeError, match=r"^--area /nowhere.gpkg: no such file"):
        score_map(make_recipe(), path, area_file="/nowhere.gpkg", **common)


def test_zones_are_added_up(tmp_path) -> None:
    maps = {"31n": draw_classes((32, 64), 1), "32n": draw_classes((64, 32), 2)}
    path = write_zones(tmp_path / "zones.zarr", maps)
    seen = []

    def open_labels(grid):
        seen.append(grid.lattice.crs)
        return PlaceLabels()

    scores = score_map(make_recipe(), path, open_reader=open_labels, run=map)
    expected = sum(expect(maps[zone], f"{path}/utm{zone}")[0] for zone in maps)
    assert scores.models[0].classes is not None
    np.testing.assert_array_equal(scores.models[0].classes.confusion, expected)
    assert seen == ["EPSG:32631", "EPSG:32632"]


def test_maps_and_recipes_that_do_not_fit(whole, tmp_path) -> None:
    _, path, _ = whole
    common = {"open_reader": lambda grid: PlaceLabels(), "run": map}
    with pytest.raises(SamplesError, match=r"samples.labels: is missing from the recipe"):
        score_map(parse_recipe(raw_recipe()), path, **common)
    with pytest.raises(OutputError, match="there is no map here"):
        score_map(make_recipe(), str(tmp_path / "nothing.zarr"), **common)
    legend = {"flag_values": [0, 1], "flag_meanings": "other building"}
    other = write_map(tmp_path / "other.zarr", draw_classes((32, 32)), legend=legend)
    with pytest.raises(OutputError, match="has the classes 0 other, 1 building, but the recipe's"):
        score_map(make_recipe(), other, **common)
    damaged = draw_classes((32, 32))
    damaged[3, 3] = 9
    broken = write_map(tmp_path / "broken.zarr", damaged)
    with pytest.raises(OutputError, match="holds the value 9, which is none of its legend's"):
        score_map(make_recipe(), broken, **common)
    empty = write_map(tmp_path / "empty.zarr", np.full((32, 32), 255, dtype=np.uint8))
    with pytest.raises(SamplesError, match=r"no labelled pixel lies on one that .* has mapped"):
        score_map(make_recipe(), empty, **common)


def test_only_pixels_inside_a_split_count(whole, tmp_path) -> None:
    classes, path, _ = whole
    west, _, _, north = open_grids(path)[0].bounds
    halves = [
        shapely.box(west, north - 480, west + 320, north),
        shapely.box(west + 300, north - 480, west + 640, north),
    ]
    file = tmp_path / "splits.gpkg"
    gpd.GeoDataFrame({"split": ["train", "test"]}, geometry=halves, crs=25831).to_file(file)
    samples = {**LABELS, "split": {"kind": "polygons", "file": str(file)}}
    recipe = parse_recipe(raw_recipe(samples=samples))
    found = [
        score_map(
            recipe, path, open_reader=lambda grid: PlaceLabels(), run=map,
            find_geometry=split_geometry(recipe, split),
        ).models[0].facts["mapped_px"]
        for split in ("train", "test")
    ]  # fmt: skip
    # Where the two overlap, the later split counts.
    assert found == [(classes[:, :60] != 255).sum(), (classes[:, 60:] != 255).sum()]
    with pytest.raises(RecipeError, match="--split: does not meet the map"):
        score_map(
            recipe, path, open_reader=lambda grid: PlaceLabels(), run=map,
            find_geometry=split_geometry(recipe, "validation"),
        )  # fmt: skip
    with pytest.raises(SamplesError, match="samples: is missing"):
        split_geometry(parse_recipe(raw_recipe()), "test")


def test_a_zone_that_labels_miss_is_told(tmp_path) -> None:
    maps = {"31n": draw_classes((32, 64), 1), "32n": draw_classes((64, 32), 2)}
    path = write_zones(tmp_path / "zones.zarr", maps)

    def open_reader(grid):
        if grid.lattice.crs == "EPSG:32632":
            raise SamplesError("samples.labels.file: x.gpkg: does not meet the area")
        return PlaceLabels()

    scores = score_map(make_recipe(), path, open_reader=open_reader, run=map)
    expected = expect(maps["31n"], f"{path}/utm31n")[0]
    assert scores.models[0].classes is not None
    np.testing.assert_array_equal(scores.models[0].classes.confusion, expected)
    assert scores.notes[-1].startswith(f"Not scored: {path}/utm32n (samples.labels.file: x.gpkg")


def test_notes_tell_of_simulated_scenes(tmp_path) -> None:
    attributes = {
        "bigmap:recipe": {"source": {"kind": "simulated"}},
        "bigmap:model": {"name": "ndvi", "weights": None},
    }
    path = write_map(tmp_path / "map.zarr", draw_classes((32, 32)), attributes=attributes)
    scores = score_map(make_recipe(), path, open_reader=lambda grid: PlaceLabels(), run=map)
    text = " ".join(scores.notes)
    assert "made from simulated scenes" in text
    assert "takes every green surface for cropland" in text


def test_areas_join() -> None:
    outline, split = shapely.box(0, 0, 2, 2), shapely.box(1, 1, 3, 3)
    assert join_area(None, None) is None
    joined = join_area(Area((outline,)), split)
    assert joined is not None
    assert joined.bounds == (1, 1, 2, 2)
