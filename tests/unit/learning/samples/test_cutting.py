"""Chips of one block: the pixels of their places, their dates, and why candidates are refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import shapely

from bigmap import grid
from bigmap.errors import LeaseError, ReadError
from bigmap.learning.chips import NO_DATE, stack_days
from bigmap.learning.samples.cutting import cut_block
from bigmap.learning.samples.splits import SplitAreas
from bigmap.lease import Lease
from bigmap.scenes.quality import DateRule
from tests.unit.learning.samples.chip_world import (
    BLOCK,
    CHIP_PX,
    DAYS,
    LATTICE,
    Labels,
    Scenes,
    dn_at,
    make_job,
    make_lattice,
    make_template,
    read_parts,
)

FIRST, SECOND, THIRD = DAYS
NAME = "r-1c1"


@pytest.fixture(autouse=True)
def _scenes_for_rows(monkeypatch):
    """Take what is given as a block's rows for the reader of its cube."""
    monkeypatch.setattr(
        "bigmap.learning.samples.cutting.CubeReader",
        SimpleNamespace(of=lambda reading, scenes: scenes),
    )


def roi_of(chip, span_px=CHIP_PX):
    row, col = chip["row"], chip["col"]
    return slice(row, row + span_px), slice(col, col + span_px)


def cut(job, folder, scenes=None, block=BLOCK, name=NAME):
    record = cut_block(job, block, scenes or Scenes())
    chips, refused = read_parts(folder, name)
    return record, chips, refused


def test_chips_hold_the_pixels_and_the_labels_of_their_places(tmp_path):
    cloud = Scenes(clouds={SECOND: lambda rows, cols: (rows + cols) % 3 == 0})
    _, chips, refused = cut(make_job(tmp_path), tmp_path, cloud)
    places = [(row, col) for row in range(-32, 0, 8) for col in range(32, 64, 8)]
    assert [(chip["row"], chip["col"]) for chip in chips] == places
    assert [chip["position"] for chip in chips] == list(range(16))
    assert refused == {}
    for chip in chips:
        roi, arrays = roi_of(chip), chip["arrays"]
        assert set(arrays) == {"images", "clear", "days", "labels"}
        for index, day in enumerate(DAYS):
            np.testing.assert_array_equal(arrays["images"][index], dn_at(day, roi))
            np.testing.assert_array_equal(arrays["clear"][index], cloud.clear_at(day, roi))
        np.testing.assert_array_equal(arrays["days"], stack_days(DAYS, 3))
        labels = Labels().at(grid.scale(roi, 2))
        np.testing.assert_array_equal(arrays["labels"], labels)
        assert chip["class_px"] == [int((labels == value).sum()) for value in (0, 1)]
        assert (chip["tile"], chip["tile_row"], chip["tile_col"]) == ("r-32c32", -32, 32)
        assert (chip["split"], chip["dates"]) == (0, 3)
        seen = arrays["images"].transpose(0, 2, 3, 1)[arrays["clear"]] * 1e-4 - 0.1
        assert chip["clear_px"] == len(seen) < 3 * 64
        np.testing.assert_allclose(chip["band_sum"], seen.sum(axis=0))
        np.testing.assert_allclose(chip["band_squares"], (seen**2).sum(axis=0))


def test_the_record_tells_the_chips_and_the_objects_of_a_block(tmp_path):
    record, chips, _ = cut(make_job(tmp_path, dates=DateRule(2, 50)), tmp_path)
    assert (record.block, record.state, record.dropped) == (NAME, "done", ())
    assert record.dates == ("2024-05-03", "2024-05-08")
    assert record.mapped_km2 == pytest.approx(len(chips) * 0.08**2)
    files = {str(f.relative_to(tmp_path)): f.stat().st_size for f in tmp_path.rglob("*.*")}
    assert dict(record.shards) == files
    assert set(files) == {"parts/r-32c32.npz", f"parts/{NAME}.parquet"}
    assert {"labels", "mask", "read", "write"} <= set(record.seconds)


def test_a_block_without_a_chip_is_empty_and_says_why(tmp_path):
    job = make_job(tmp_path, labels=Labels(first_col=10**6))
    record, chips, refused = cut(job, tmp_path)
    assert (record.state, record.mapped_km2, chips) == ("empty", 0, [])
    assert refused == {"too few labels": 16}
    assert [key for key, _ in record.shards] == [f"parts/{NAME}.parquet"]


def test_chips_outside_the_area_are_no_candidates_and_are_not_counted_as_refused(tmp_path):
    # In metres: the left half of the block, and the middles of one more column of chips.
    area = shapely.box(320, -1000, 520 + 1, 1000)
    chips_at = make_lattice(area=area)
    _, chips, refused = cut(make_job(tmp_path, chips=chips_at), tmp_path)
    assert sorted({chip["col"] for chip in chips}) == [32, 40, 48]
    assert refused == {}


@pytest.mark.parametrize(("percent", "cols", "refused"), [
    (0, [32, 40, 48, 56], {}),
    (25, [40, 48, 56], {"too few labels": 4}),
    (25.1, [48, 56], {"too few labels": 8}),
    (100, [48, 56], {"too few labels": 8}),
])  # fmt: skip
def test_chips_need_so_many_labels(tmp_path, percent, cols, refused):
    """Labels begin with the last quarter of the second column of chips."""
    job = make_job(tmp_path, labels=Labels(first_col=2 * 46), min_labelled_percent=percent)
    _, chips, found = cut(job, tmp_path)
    assert sorted({chip["col"] for chip in chips}) == cols
    assert found == refused
    half = [chip for chip in chips if chip["col"] == 40]
    assert all((chip["arrays"]["labels"] != 255).mean() == 0.25 for chip in half)


def test_dates_are_chosen_by_the_mask_of_each_chip(tmp_path):
    clouds = {
        FIRST: lambda rows, cols: cols < 40,
        # Half of each chip: enough, but less than others.
        SECOND: lambda rows, cols: rows % 8 < 4,
        THIRD: lambda rows, cols: cols >= 48,
    }
    job = make_job(tmp_path, dates=DateRule(2, 50))
    record, chips, _ = cut(job, tmp_path, Scenes(clouds=clouds))
    expected = {32: (SECOND, THIRD), 40: (FIRST, THIRD), 48: (FIRST, SECOND), 56: (FIRST, SECOND)}
    for chip in chips:
        days = expected[chip["col"]]
        np.testing.assert_array_equal(chip["arrays"]["days"], stack_days(days, 3))
        for index, day in enumerate(days):
            np.testing.assert_array_equal(chip["arrays"]["images"][index], dn_at(day, roi_of(chip)))
        assert chip["dates"] == 2
        # What is padded is nowhere clear.
        assert chip["arrays"]["days"][2] == NO_DATE
        assert not chip["arrays"]["images"][2].any()
        assert not chip["arrays"]["clear"][2].any()
    assert len(chips) == 16
    assert record.dates == tuple(day.isoformat() for day in DAYS)


@pytest.mark.parametrize(("min_dates", "cols"), [(1, [32, 40, 48]), (2, [40, 48]), (3, [48])])
def test_chips_need_so_many_clear_dates(tmp_path, min_dates, cols):
    clouds = {
        FIRST: lambda rows, cols: cols >= 56,
        SECOND: lambda rows, cols: (cols < 40) | (cols >= 56),
        THIRD: lambda rows, cols: (cols < 48) | (cols >= 56),
    }
    job = make_job(tmp_path, min_dates=min_dates)
    _, chips, refused = cut(job, tmp_path, Scenes(clouds=clouds))
    assert sorted({chip["col"] for chip in chips}) == cols
    assert refused == {"too few clear dates": 16 - 4 * len(cols)}


def test_a_date_that_cannot_be_read_fails_the_block(tmp_path):
    with pytest.raises(ReadError, match=r"2024-05-08\.tif: is cut"):
        cut_block(make_job(tmp_path), BLOCK, Scenes(unread=[SECOND]))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_date_may_be_dropped_and_what_had_no_other_is_refused(tmp_path):
    clouds = {FIRST: lambda rows, cols: cols >= 56, THIRD: lambda rows, cols: cols >= 56}
    scenes = Scenes(clouds=clouds, unread=[SECOND])
    job = make_job(tmp_path, reading=SimpleNamespace(on_error="drop-date"))
    record, chips, refused = cut(job, tmp_path, scenes)
    assert record.state == "degraded"
    assert record.dropped == ("2024-05-08: 2024-05-08.tif: is cut",)
    assert record.dates == ("2024-05-03", "2024-06-02")
    assert sorted({chip["col"] for chip in chips}) == [32, 40, 48]
    assert refused == {"too few clear dates": 4}
    # Positions have no gaps where a chip was left out.
    assert [chip["position"] for chip in chips] == list(range(12))
    for chip in chips:
        for index, day in enumerate((FIRST, THIRD)):
            np.testing.assert_array_equal(chip["arrays"]["images"][index], dn_at(day, roi_of(chip)))


def test_splits_are_those_of_the_places(tmp_path):
    # Of train, validation and test, in metres: the test area begins with the last column.
    areas = shapely.box(0, -1e4, 480, 1e4), shapely.box(480, -1e4, 560, 1e4)
    splits = SplitAreas((*areas, shapely.box(560, -1e4, 1e4, 1e4)), 0)
    _, chips, _ = cut(make_job(tmp_path, chips=make_lattice(splits=splits)), tmp_path)
    found = {chip["col"]: chip["split"] for chip in chips}
    assert found == {32: 0, 40: 0, 48: 1, 56: 2}


def test_tiles_of_a_block_are_parts_of_their_own(tmp_path):
    lattice = replace(LATTICE, block_px=64)
    chips_at = replace(make_lattice(), lattice=lattice)
    block = (slice(-64, 0), slice(0, 64))
    record, chips, _ = cut(make_job(tmp_path, chips=chips_at), tmp_path, block=block, name="r-1c0")
    parts = [key for key, _ in record.shards if key.endswith(".npz")]
    assert parts == [f"parts/{name}.npz" for name in ("r-64c0", "r-64c32", "r-32c0", "r-32c32")]
    assert len(chips) == 64
    for chip in chips:
        np.testing.assert_array_equal(chip["arrays"]["images"][1], dn_at(SECOND, roi_of(chip)))


def test_a_degraded_chip_has_its_own_clearest_date_for_a_target(tmp_path):
    """Every date has clouds; the second has the fewest, and they leave holes in the target."""
    clouds = {
        FIRST: lambda rows, cols: rows % 16 < 4,
        SECOND: lambda rows, cols: (rows % 16 == 0) & (cols % 16 == 0),
        THIRD: lambda rows, cols: rows % 16 < 8,
    }
    scenes = Scenes(clouds=clouds)
    job = make_job(
        tmp_path, chips=make_lattice(span_px=16), labels=None, reduction="average",
        template=make_template(class_values=(), class_names=(), target_bands=("nir",),
                               target_px=16),
    )  # fmt: skip
    _, chips, _ = cut(job, tmp_path, scenes)
    assert len(chips) == 4
    for chip in chips:
        roi = roi_of(chip, 16)
        assert set(chip["arrays"]) == {"images", "clear", "days", "target"}
        whole = dn_at(SECOND, roi)
        clear = scenes.clear_at(SECOND, roi)
        np.testing.assert_array_equal(chip["arrays"]["target"], np.where(clear, whole[1:], 0))
        means = whole.reshape(2, 8, 2, 8, 2).mean(axis=(2, 4))
        np.testing.assert_array_equal(chip["arrays"]["images"][1], np.rint(means))
        squares = clear.reshape(8, 2, 8, 2).all(axis=(1, 3))
        np.testing.assert_array_equal(chip["arrays"]["clear"][1], squares)
        assert squares.sum() == 63


def test_an_image_of_a_second_sensor_is_asked_for_the_place_and_the_clearest_date(tmp_path):
    asked = []

    def read(crs, bounds, side_px, day):
        asked.append((crs, bounds, side_px, day))
        return np.full((1, side_px, side_px), len(asked), np.uint16)

    clouds = {FIRST: lambda rows, cols: rows % 8 < 2, SECOND: lambda rows, cols: rows % 8 < 1}
    template = make_template(target_bands=("nir",), target_px=32)
    job = make_job(tmp_path, template=template, target=SimpleNamespace(read=read),
                   dates=DateRule(2, 50))  # fmt: skip
    _, chips, _ = cut(job, tmp_path, Scenes(clouds=clouds))
    assert [each[1] for each in asked] == [LATTICE.bounds(roi_of(chip)) for chip in chips]
    assert {(crs, side, day) for crs, _, side, day in asked} == {("EPSG:32631", 32, THIRD)}
    for number, chip in enumerate(chips, 1):
        assert (chip["arrays"]["target"] == number).all()


def test_a_block_of_a_driver_that_was_taken_over_has_no_index(tmp_path):
    lease = Lease(str(tmp_path))
    lease.acquire()
    try:
        with pytest.raises(LeaseError, match="belongs to another driver"):
            cut_block(make_job(tmp_path, lease_owner="another"), BLOCK, Scenes())
        assert not list(tmp_path.rglob("*.parquet"))
        cut_block(make_job(tmp_path, lease_owner=lease.state.owner), BLOCK, Scenes())
    finally:
        lease.release()
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
