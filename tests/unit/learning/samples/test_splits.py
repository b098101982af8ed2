"""Splits that are apart, draws that depend on place alone, targets and reductions."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmap.config.training import CellSplit, PolygonSplit, SceneSplit, WithinSceneSplit
from bigmap.errors import SamplesError
from bigmap.grid import Area, Lattice
from bigmap.learning.chips import SPLITS
from bigmap.learning.samples import make_splits
from bigmap.learning.samples.candidates import ChipLattice, choose_chips
from bigmap.learning.samples.targets import reduce_date

CRS = "EPSG:32631"
BOUNDS = (400_000, 4_600_000, 420_000, 4_615_000)


def chips_over(bounds, side_m=320):
    left, bottom, right, top = bounds
    x, y = np.meshgrid(np.arange(left, right, side_m), np.arange(bottom, top, side_m))
    x, y = x.ravel(), y.ravel()
    return np.stack([x, y, x + side_m, y + side_m], axis=1).astype(float)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 50),
    cell_km=st.sampled_from([0.64, 1.0, 2.5]),
    buffer_m=st.sampled_from([0.0, 50.0, 400.0]),
)
def test_chips_of_two_splits_are_never_closer_than_the_buffer(seed, cell_km, buffer_m):
    config = CellSplit(cell_km=cell_km, buffer_m=buffer_m, train=0.5, validation=0.25, test=0.25)
    boxes = chips_over((400_000, 4_600_000, 404_000, 4_603_000))
    splits = make_splits(config, crs=CRS, bounds=BOUNDS, seed=seed)
    split = splits.assign(boxes)
    shapes = shapely.box(*boxes.T)
    groups = [shapely.union_all(shapes[split == index]) for index in range(3)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        if not (groups[first].is_empty or groups[second].is_empty):
            assert shapely.distance(groups[first], groups[second]) >= buffer_m
            assert shapely.area(shapely.intersection(groups[first], groups[second])) == 0


def test_cells_keep_their_split_in_a_larger_area_and_follow_their_shares():
    config = CellSplit(cell_km=1, buffer_m=0, train=0.6, validation=0.3, test=0.1)
    boxes = chips_over(BOUNDS, 1000)
    small = make_splits(config, crs=CRS, bounds=BOUNDS, seed=4).assign(boxes)
    larger = (380_000, 4_590_000, 450_000, 4_640_000)
    np.testing.assert_array_equal(
        small, make_splits(config, crs=CRS, bounds=larger, seed=4).assign(boxes)
    )
    shares = np.bincount(small, minlength=3) / len(small)
    np.testing.assert_allclose(shares, (0.6, 0.3, 0.1), atol=0.06)
    other = make_splits(config, crs=CRS, bounds=BOUNDS, seed=5).assign(boxes)
    assert (other != small).any()


def test_scenes_are_cut_as_in_the_paper():
    config = WithinSceneSplit(kind="within-scene", scene_km=5)
    splits = make_splits(config, crs=CRS, bounds=(0, 0, 5000, 5000), seed=0)
    places = {"train": (100, 1100, 4900, 4900), "validation": (0, 0, 2400, 900),
              "test": (2600, 100, 4900, 1000)}  # fmt: skip
    for name, box in places.items():
        assert SPLITS[splits.assign(np.array([box], float))[0]] == name
    assert splits.assign(np.array([(2400, 0, 2600, 900)], float))[0] == -1, "across two"
    areas = [area.area for area in splits.areas]
    np.testing.assert_allclose(np.array(areas) / sum(areas), (0.8, 0.1, 0.1))


def write_areas(path, names, attribute):
    boxes = [shapely.box(x, 0, x + 1000, 1000) for x in range(0, 1000 * len(names), 1000)]
    gpd.GeoDataFrame({attribute: names}, geometry=boxes, crs=CRS).to_file(path)
    return str(path)


def test_polygons_and_scenes_of_a_file_name_the_split(tmp_path):
    boxes = np.array([(x, 0, x + 400, 400) for x in (0, 1000, 2000, 3000)], float)
    file = write_areas(tmp_path / "a.gpkg", ["train", "validation", "test"], "split")
    config = PolygonSplit(kind="polygons", file=file, buffer_m=0)
    assert list(make_splits(config, crs=CRS, bounds=BOUNDS, seed=0).assign(boxes)) == [0, 1, 2, -1]
    file = write_areas(tmp_path / "b.gpkg", ["a", "b", "c", "d"], "name")
    scenes = SceneSplit(kind="scenes", file=file, validation=("c",), test=("a",))
    assert list(make_splits(scenes, crs=CRS, bounds=BOUNDS, seed=0).assign(boxes)) == [2, 0, 1, 0]


def test_a_later_split_counts_where_polygons_overlap(tmp_path):
    frame = gpd.GeoDataFrame(
        {"split": ["train", "test"]},
        geometry=[shapely.box(0, 0, 3000, 1000), shapely.box(2000, 0, 3000, 1000)], crs=CRS,
    )  # fmt: skip
    frame.to_file(tmp_path / "a.gpkg")
    config = PolygonSplit(kind="polygons", file=str(tmp_path / "a.gpkg"), buffer_m=0)
    boxes = np.array([(0, 0, 400, 400), (1800, 0, 2200, 400), (2000, 0, 2400, 400)], float)
    assert list(make_splits(config, crs=CRS, bounds=BOUNDS, seed=0).assign(boxes)) == [0, -1, 2]


@pytest.mark.parametrize(
    ("names", "attribute", "message"),
    [
        (["train", "tset"], "split", "split is 'tset'; it names the split: train"),
        (["train"], "part", "has no attribute split"),
    ],
)
def test_bad_split_files_end_in_one_sentence(tmp_path, names, attribute, message):
    file = write_areas(tmp_path / "a.gpkg", names, attribute)
    with pytest.raises(SamplesError, match=message):
        make_splits(PolygonSplit(kind="polygons", file=file), crs=CRS, bounds=BOUNDS, seed=0)
    config = PolygonSplit(kind="polygons", file=str(tmp_path / "none.gpkg"))
    with pytest.raises(SamplesError, match="no such file"):
        make_splits(config, crs=CRS, bounds=BOUNDS, seed=0)


def test_unknown_and_doubled_scenes_are_refused(tmp_path):
    file = write_areas(tmp_path / "a.gpkg", ["a", "b"], "name")
    for fields, message in (
        ({"test": ("z",)}, "'z' is no name of"),
        ({"test": ("a",), "validation": ("a",)}, "'a' stands in both"),
    ):
        config = SceneSplit(kind="scenes", file=file, **fields)
        with pytest.raises(SamplesError, match=message):
            make_splits(config, crs=CRS, bounds=BOUNDS, seed=0)


def make_chips(*, block_px=512, span_px=32, shares=(1.0, 1.0, 1.0)):
    lattice = Lattice(CRS, 10, 32, 256, block_px, 1, block_px, 64)
    splits = make_splits(CellSplit(cell_km=1, buffer_m=0), crs=CRS, bounds=BOUNDS, seed=1)
    area = Area((shapely.box(400_700, 4_601_000, 410_300, 4_611_000),))
    return ChipLattice(lattice, span_px, area, splits, 7, shares)


@pytest.mark.parametrize("span_px", [32, 48, 200])
def test_every_candidate_belongs_to_one_tile_of_one_block(span_px):
    expected = None
    for block_px in (256, 512, 1024):
        chips = make_chips(block_px=block_px, span_px=span_px)
        extent = chips.lattice.snap(chips.area.bounds, 1024)
        extent = tuple(slice(part.start - 1024, part.stop) for part in extent)
        found = [
            tuple(corner)
            for block in chips.lattice.blocks(extent)
            for tile in chips.tiles(block)
            for corner in chips.list_chips(tile)[0]
        ]
        assert len(set(found)) == len(found)
        expected = expected or set(found)
        assert set(found) == expected
    assert all(row % span_px == 0 and col % span_px == 0 for row, col in expected)
    boxes = chips.boxes(np.array(sorted(expected)))
    middles = shapely.points((boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2)
    assert shapely.covers(chips.area.parts[0], middles).all()


def test_a_share_draws_the_same_chips_from_any_region():
    whole = make_chips()
    region = whole.lattice.snap(whole.area.bounds, whole.tile_px)
    corners, split = whole.list_chips(region)
    part = make_chips(shares=(0.3, 1.0, 0.5))
    drawn, drawn_split = part.list_chips(region)
    assert set(map(tuple, drawn)) < set(map(tuple, corners))
    counts, all_counts = np.bincount(drawn_split, minlength=3), np.bincount(split, minlength=3)
    assert counts[1] == all_counts[1]
    np.testing.assert_allclose(counts[[0, 2]] / all_counts[[0, 2]], (0.3, 0.5), atol=0.12)


def test_balanced_choices_take_rare_classes_more_often():
    rng = np.random.default_rng(0)
    rare = rng.random(4000) < 0.05
    class_px = np.where(rare[:, None], (50, 50), (100, 0))
    draw, split = rng.random(4000), np.zeros(4000, np.int8)
    split[3900:] = 2
    plain = choose_chips(split, draw, class_px, max_chips=300, balanced=False)
    assert plain[:3900].sum() == 300
    np.testing.assert_array_equal(
        np.flatnonzero(plain[:3900]), np.sort(np.argsort(draw[:3900])[:300])
    )
    balanced = choose_chips(split, draw, class_px, max_chips=300, balanced=True)
    assert balanced[:3900].sum() == 300
    assert rare[:3900][balanced[:3900]].mean() > 5 * rare[:3900][plain[:3900]].mean()
    # Test chips are never balanced.
    np.testing.assert_array_equal(balanced[3900:], plain[3900:])
    assert choose_chips(split, draw, class_px, max_chips=None, balanced=False).all()


def test_averages_and_bicubic_reductions_keep_levels_and_mark_what_lacks_data():
    rng = np.random.default_rng(2)
    dn = rng.integers(1, 5000, (2, 16, 24)).astype(np.uint16)
    dn[1, 5, 9] = 0
    clear = np.ones((16, 24), bool)
    clear[0, 0] = False
    reduced, seen = reduce_date(dn, clear, 4, "average")
    squares = dn.reshape(2, 4, 4, 6, 4).astype(float).mean(axis=(2, 4))
    expected = np.rint(squares)
    expected[:, 1, 2] = 0
    np.testing.assert_array_equal(reduced, expected)
    assert not seen[0, 0]
    assert not seen[1, 2]
    assert seen.sum() == 24 - 2
    flat, _ = reduce_date(
        np.full((1, 16, 16), 1234, np.uint16), np.ones((16, 16), bool), 2, "bicubic"
    )
    assert (flat == 1234).all()
    # A ramp stays a ramp away from the edges, at the centres of the larger pixels.
    ramp = np.broadcast_to(1000 + 10 * np.arange(40), (1, 40, 40)).astype(np.uint16)
    smooth, _ = reduce_date(ramp, np.ones((40, 40), bool), 4, "bicubic")
    np.testing.assert_array_equal(smooth[0, 5, 2:-2], 1000 + 10 * (4 * np.arange(2, 8) + 1.5))
