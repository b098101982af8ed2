"""Which dates a block takes, how much of the area it maps, why the rest is empty; its record."""

from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import LeaseError, ReadError
from bigmap.lease import Lease
from bigmap.mapping.blocks import run_block
from bigmap.mapping.ledger import NO_SCENE, TOO_CLOUDY, UNREAD
from bigmap.mapping.store.template import complete_map
from tests.integration.small_world import SIDE_PX, raw_recipe, write_scenes

LEFT, TOP, SIDE_M = 300_000, 4_620_000, 10 * SIDE_PX
CLOUD, CLEAR, UNSEEN = 9, 4, 0
PIXEL_KM2 = 1e-4


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Three scenes of 256 px in a corner of one cell of 512 px."""
    write_scenes(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_scl(folder, value, *, days=("0401", "0501", "0601"), rows=slice(None), cols=slice(None)):
    for day in days:
        (file,) = folder.glob(f"scenes/*2024{day}*/scl.tif")
        with rasterio.open(file, "r+") as target:
            values = target.read(1)
            values[rows, cols] = value
            target.write(values, 1)


def write_area(folder, left_px, top_px, right_px, bottom_px):
    """Write a rectangle in pixels of the scenes."""
    box = shapely.box(
        LEFT + 10 * left_px, TOP - 10 * bottom_px, LEFT + 10 * right_px, TOP - 10 * top_px
    )
    gpd.GeoSeries([box], crs="EPSG:32631").to_file(folder / "area.gpkg")
    return {"file": "area.gpkg"}


def map_block(area, *, min_clear_percent=25, **changes):
    """Map the one block of an area; returns the plan, the record and the map."""
    plan = bigmap.plan(
        parse_recipe(
            raw_recipe(
                area=area, grid__cell_px=512, grid__block_px=512, grid__shard_px=512,
                grid__anchor_m=[LEFT, TOP], dates__min_clear_percent=min_clear_percent, **changes,
            )
        )
    )  # fmt: skip
    (block,) = plan.only.blocks
    complete_map("map.zarr", plan.only.template())
    record = run_block(plan.only.job("map.run", None), block, plan.only.rows_of(block))
    return plan, record, bigmap.open_map("map.zarr").load()


def test_the_edge_of_a_scene_is_no_cloud(world):
    """The scenes fill 256 of 512 rows: a quarter of the cell, and all of them is clear."""
    set_scl(world, UNSEEN, rows=slice(0, 128))
    _, record, mapped = map_block(write_area(world, 0, 128, 256, 256))
    assert record.state == "done"
    assert record.mapped_km2 == pytest.approx(256 * 128 * PIXEL_KM2)
    assert record.without_data_km2 == {}
    assert (mapped["observations"].values == 3).sum() == 256 * 128


def test_what_lies_beyond_the_scenes_counts_as_without_a_scene(world):
    _, record, mapped = map_block(write_area(world, 100, 100, 356, 300))
    seen = 156 * 156
    assert record.mapped_km2 == pytest.approx(seen * PIXEL_KM2)
    assert record.without_data_km2 == {NO_SCENE: pytest.approx((256 * 200 - seen) * PIXEL_KM2)}
    assert (mapped["observations"].values != 255).sum() == seen


def test_clouds_beside_the_area_cost_no_date_and_clouds_over_it_do(world):
    set_scl(world, CLOUD, cols=slice(64, None))
    _, record, _ = map_block(write_area(world, 0, 0, 64, 64), min_clear_percent=90)
    assert record.mapped_km2 == pytest.approx(64 * 64 * PIXEL_KM2)
    # One column in four of this one is clear, which is too little.
    _, record, _ = map_block(write_area(world, 48, 0, 112, 64), min_clear_percent=90)
    assert record.state == "empty"
    assert record.without_data_km2 == {TOO_CLOUDY: pytest.approx(64 * 64 * PIXEL_KM2)}
    # Where any clear pixel will do, the cloudy ones alone are left.
    _, record, _ = map_block(write_area(world, 48, 0, 112, 64), min_clear_percent=0)
    assert record.mapped_km2 == pytest.approx(16 * 64 * PIXEL_KM2)
    assert record.without_data_km2 == {TOO_CLOUDY: pytest.approx(48 * 64 * PIXEL_KM2)}


def test_a_trial_takes_the_dates_of_the_whole_area(world):
    """A box of ``--bbox`` cuts the map, not what its cells are chosen by."""
    set_scl(world, CLOUD, days=["0401"], cols=slice(100, None))
    area = write_area(world, 0, 0, 256, 256)
    _, record, everything = map_block(area, min_clear_percent=50)
    assert record.dates == ("2024-05-01", "2024-06-01")
    box = area | {"clip_bbox": [0.59, 41.6, 0.604, 41.8]}
    _, cut_record, cut = map_block(box, min_clear_percent=50)
    assert cut_record.dates == record.dates
    inside = cut["observations"].values != 255
    assert 10_000 < inside.sum() < 40_000
    same_place = everything.sel(x=cut.x, y=cut.y)
    for layer in cut.data_vars:
        assert np.array_equal(cut[layer].values[inside], same_place[layer].values[inside])


def test_a_date_that_cannot_be_read_is_the_reason_of_its_holes(world):
    set_scl(world, CLOUD, days=["0501", "0601"], cols=slice(0, 128))
    (lost,) = world.glob("scenes/*20240401*/red.tif")
    lost.write_bytes(b"not a picture")
    _, record, _ = map_block(
        write_area(world, 0, 0, 256, 256), min_clear_percent=0, reading__on_error="drop-date",
        source__access__retries=0,
    )  # fmt: skip
    assert record.state == "degraded"
    assert record.mapped_km2 == pytest.approx(256 * 128 * PIXEL_KM2)
    assert record.without_data_km2 == {UNREAD: pytest.approx(256 * 128 * PIXEL_KM2)}


@pytest.fixture
def first(world):
    """Six blocks of 64 px; returns what does the first of them with a job that may be changed."""
    plan = bigmap.plan(parse_recipe(raw_recipe(dates__max_per_cell=2, source__access__retries=0)))
    part, block = plan.only, plan.only.blocks[0]
    complete_map("map.zarr", part.template())

    def do(*, lease_owner=None, on_error="fail"):
        job = part.job("map.run", lease_owner)
        job = replace(job, reading=replace(job.reading, on_error=on_error))
        return run_block(job, block, part.rows_of(block))

    return do


def test_a_record_tells_what_was_read_and_what_was_written(first, world):
    record = first()
    assert (record.block, record.state, record.device) == ("r-7218c469", "done", "cpu")
    # Equally clear, so the earliest two of three.
    assert record.dates == ("2024-04-01", "2024-05-01")
    files = {str(file.relative_to("map.zarr")): file.stat().st_size
             for file in Path("map.zarr").rglob("c/*/*")}  # fmt: skip
    assert dict(record.shards) == files
    assert {key.partition("/")[0] for key in files} == {
        "class", "confidence", "observations", "ndvi",
    }  # fmt: skip
    assert {"mask", "read", "predict", "write"} <= set(record.seconds)
    assert record.versions
    assert (record.attempts, record.dropped, record.error) == (1, (), None)


def test_a_file_that_cannot_be_read_fails_its_block_and_no_shard_is_written(first, world):
    (lost,) = world.glob("scenes/*20240501*/red.tif")
    lost.unlink()
    with pytest.raises(ReadError, match=r"20240501.*red\.tif"):
        first()
    assert not list(Path("map.zarr").rglob("c/*/*"))
    assert first(on_error="drop-date").dates == ("2024-04-01", "2024-06-01")


@pytest.mark.parametrize("band", ["scl", "red"])
def test_a_block_none_of_whose_dates_can_be_read_fails_though_dates_may_be_dropped(
    first, world, band
):
    for lost in world.glob(f"scenes/*/{band}.tif"):
        lost.unlink()
    with pytest.raises(ReadError, match=rf"^no date could be read; .*{band}\.tif"):
        first(on_error="drop-date")


def test_a_worker_whose_driver_was_taken_over_writes_nothing(first):
    lease = Lease("map.run")
    lease.acquire()
    try:
        with pytest.raises(LeaseError, match="belongs to another driver"):
            first(lease_owner="another")
        assert not list(Path("map.zarr").rglob("c/*/*"))
        assert first(lease_owner=lease.state.owner).state == "done"
    finally:
        lease.release()
