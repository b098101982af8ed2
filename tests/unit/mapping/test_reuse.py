"""Blocks of an earlier map: which of them a new run takes, and nothing else of it."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from pyproj import Transformer

import bigmap
from bigmap import grid
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.lease import Lease
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.reuse import _copy, _Earlier, _Reusable, copy_unchanged
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.store.shards import MapWriter
from tests.integration.small_world import TRANSFORM, raw_recipe, write_scenes
from tests.unit.mapping.small_runs import move_scene, start_run, write_area


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A working folder with three scenes, which four by four blocks cover."""
    write_scenes(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_plan(folder, shape=shapely.box(10, 10, 1900, 1270), **changes):
    """Plan an area in metres right of and below the scenes' upper left corner."""
    area = write_area(folder, shape) | changes.pop("area", {})
    return bigmap.plan(
        parse_recipe(raw_recipe(area=area, grid__anchor_m=[TRANSFORM.c, TRANSFORM.f], **changes))
    )


def make_run(folder, plan, *, state="done", **facts):
    """Record all blocks of a plan as done, each with its own number as its class."""
    folder.mkdir()
    plan, run, lease = start_run(plan, folder)
    part = plan.only
    ledger = run.part("").open_ledger(lease)
    for number, block in enumerate(part.blocks):
        values = np.full(grid.shape_of(block), number, np.uint8)
        shards = MapWriter(run.output).write({"class": values}, grid.relative(block, part.extent))
        written = tuple((shard.key, shard.size_bytes) for shard in shards)
        ledger.append(BlockRecord(part.name_block(block), state, shards=written,
                                  seconds={"read": 1.0}, mapped_km2=0.25, **facts))  # fmt: skip
    ledger.flush()
    lease.release()
    return run


def reuse(folder, plan, run):
    """Copy what a new run may take; returns its records by the name of their blocks."""
    folder.mkdir()
    plan, new, lease = start_run(plan, folder)
    records = list(copy_unchanged(plan.only, plan.only.blocks, run))
    lease.release()
    assert len({record.block for record in records}) == len(records)
    return {record.block: record for record in records}, new


def test_blocks_that_nothing_has_changed_are_copied_with_their_records(world):
    run = make_run(world / "old", make_plan(world))
    # Whatever decides no value may be another.
    changes = {"title": "again", "output__overviews": 0, "name": "other", "cluster__workers": 2}
    plan = make_plan(world, **changes)
    records, new = reuse(world / "new", plan, run)
    assert list(records) == ["r0c0", "r0c1", "r0c2", "r1c0", "r1c1", "r1c2"]
    before = run.part("").ledger.latest()
    for name, record in records.items():
        assert record.reused == run.output
        assert record.seconds == {}
        assert record.finished
        assert record.shards == before[name].shards
        assert record.mapped_km2 == 0.25
        for key, _ in record.shards:
            assert Path(new.output, key).read_bytes() == Path(run.output, key).read_bytes()
    assert sum(len(record.shards) for record in records.values()) == 6


@pytest.mark.parametrize(
    ("facts", "is_copied"),
    [
        ({"state": "done"}, True),
        ({"state": "empty"}, True),
        ({"state": "degraded"}, False),
        ({"state": "failed"}, False),
        ({"device": "cuda"}, False),
    ],
)
def test_only_good_blocks_of_the_same_device_are_copied(world, facts, is_copied):
    run = make_run(world / "old", make_plan(world), **facts)
    records, _ = reuse(world / "new", make_plan(world), run)
    assert len(records) == 6 * is_copied


def test_blocks_that_a_new_item_may_reach_are_made_anew(world):
    """It lies right of the area: a cell, and the 500 m given to footprints, reach it alone."""
    run = make_run(world / "old", make_plan(world))

    def add(content):
        item = copy.deepcopy(content["features"][0])
        item["id"] = item["id"].replace("20240401", "20240611")
        item["properties"]["datetime"] = "2024-06-11T10:50:00Z"
        move_scene(item, 2500)
        content["features"].append(item)

    edit_list(world, add)
    plan = make_plan(world)
    assert len(plan.only.catalogue.rows) == 4
    records, _ = reuse(world / "new", plan, run)
    assert list(records) == ["r0c0", "r0c1", "r1c0", "r1c1"]


@pytest.mark.parametrize(
    ("edit", "is_copied"),
    [
        (lambda content: content["features"].reverse(), True),
        (lambda content: content["features"].pop(), False),
        (lambda content: content["features"][0]["assets"]["red"].update(href="./other.tif"), False),
        (
            lambda content: content["features"][0]["properties"].update(
                datetime="2024-04-02T10:50:00Z"
            ),
            False,
        ),
        (
            lambda content: content["features"][0]["properties"].update(
                {"earthsearch:boa_offset_applied": False}
            ),
            False,
        ),
    ],
    ids=["order", "fewer", "file", "day", "offset"],
)
def test_items_are_alike_if_all_that_decides_a_pixel_is(world, edit, is_copied):
    run = make_run(world / "old", make_plan(world))
    edit_list(world, edit)
    records, _ = reuse(world / "new", make_plan(world), run)
    assert len(records) == 6 * is_copied


def edit_list(folder, edit):
    """Change the list of items."""
    file = folder / "scenes" / "items.json"
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_a_larger_area_takes_the_blocks_whose_cells_and_neighbours_it_leaves_alone(world):
    """The right edge moves. The middle column is whole in both, but its neighbours choose anew."""
    run = make_run(world / "old", make_plan(world))
    records, _ = reuse(world / "new", make_plan(world, shapely.box(10, 10, 2500, 1270)), run)
    assert list(records) == ["r0c0", "r1c0"]


def test_the_box_of_a_trial_changes_the_blocks_that_it_cuts_alone(world):
    to_lonlat = Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    east, _ = to_lonlat.transform(TRANSFORM.c + 1600, TRANSFORM.f)
    run = make_run(world / "old", make_plan(world, area={"clip_bbox": [0.5, 41.6, east, 41.8]}))
    records, _ = reuse(world / "new", make_plan(world), run)
    assert list(records) == ["r0c0", "r0c1", "r1c0", "r1c1"]


def test_objects_move_with_the_extent_of_the_map(world):
    """The new map begins one block to the left and above; two of its blocks are as before."""
    run = make_run(world / "old", make_plan(world, shapely.box(650, 650, 2550, 2550)))
    plan = make_plan(world, shapely.box(10, 10, 2550, 2550))
    records, new = reuse(world / "new", plan, run)
    assert list(records) == ["r3c3"]
    assert [key for key, _ in records["r3c3"].shards] == ["class/c/3/3"]
    assert run.part("").ledger.latest()["r3c3"].shards[0][0] == "class/c/2/2"
    values = bigmap.open_map(new.output)["class"].values
    assert (values[192:, 192:] == 8).all()
    assert (values[:192] == 255).all()


def test_a_block_that_the_edge_of_the_map_has_cut_is_not_the_whole_one(world):
    """A sliver without a pixel draws the map's edge one cell out; the area has the same pixels."""
    small = shapely.box(10, 10, 600, 600)
    changes = {"grid__block_px": 128}
    run = make_run(world / "old", make_plan(world, small, **changes))
    plan = make_plan(world, small.union(shapely.box(10, 10, 641, 12)), **changes)
    (block,) = plan.only.blocks
    assert grid.shape_of(block) == (64, 128)
    records, _ = reuse(world / "new", plan, run)
    assert records == {}
    again, _ = reuse(world / "again", make_plan(world, small, **changes), run)
    assert list(again) == ["r0c0"]


@pytest.mark.parametrize(
    ("key", "field"), [("versions", "versions"), ("weights", r"model\.weights")]
)
def test_a_map_of_other_versions_or_weights_gives_no_block(world, key, field):
    run = make_run(world / "old", make_plan(world))
    file = Path(run.path, "plan.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: "others"}))
    with pytest.raises(OutputError, match=rf"was made with another (model\.)?{key}, so no block"):
        reuse(world / "new", make_plan(world), run)


def test_a_map_takes_nothing_of_itself_nor_of_one_that_is_being_made(world):
    plan = make_plan(world)
    run = make_run(world / "old", plan)
    own = replace(plan.only, purpose=replace(plan.purpose, path=run.output))
    with pytest.raises(OutputError, match="is the output itself; use --resume"):
        list(copy_unchanged(own, plan.only.blocks, run))
    lease = Lease(run.path)
    lease.acquire()
    try:
        with pytest.raises(OutputError, match="a run is at work there; wait for its end"):
            list(copy_unchanged(plan.only, plan.only.blocks, run))
    finally:
        lease.release()


def test_a_map_of_zones_and_a_map_of_one_grid_share_no_block(world):
    run = make_run(world / "old", make_plan(world))
    utm = make_plan(world, grid__crs="utm").parts[0]
    assert utm.name == "utm31n"
    with pytest.raises(OutputError, match=r"is not a map with grid\.crs utm"):
        list(copy_unchanged(utm, utm.blocks, run))
    zones = RunFolder(str(world / "zones.zarr"))
    lease = Lease(zones.path)
    lease.acquire()
    plan = make_plan(world, grid__crs="utm", output__path=zones.output)
    zones.create(plan, lease)
    lease.release()
    one = make_plan(world).only
    with pytest.raises(OutputError, match=r"is a map with grid\.crs utm"):
        list(copy_unchanged(one, one.blocks, zones))
    # A zone that the earlier map does not have gives no block.
    other = replace(utm, zone=replace(utm.zone, number=32))
    assert list(copy_unchanged(other, utm.blocks, zones)) == []


@pytest.mark.parametrize(
    "key",
    ["../secret", "/etc/hostname", "class/c/0/../../../../secret", "class/c/9/9", "zarr.json", ""],
)
def test_nothing_but_objects_of_its_block_is_taken_from_an_earlier_map(
    finished, plan, tmp_path, key
):
    before, run = finished
    earlier = _Earlier(before.only, run.part(""))
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "new").mkdir()
    plan, _, lease = start_run(plan, tmp_path / "new")
    record = BlockRecord(plan.only.name_block(plan.only.blocks[0]), "done", shards=((key, 6),))
    files = set((tmp_path / "new").rglob("*"))
    assert _copy(plan.only, earlier, _Reusable(plan.only.blocks[0], record)) is None
    assert set((tmp_path / "new").rglob("*")) == files
    lease.release()


def test_a_link_out_of_an_earlier_map_is_not_followed(finished, plan, tmp_path):
    before, run = finished
    earlier = _Earlier(before.only, run.part(""))
    (record,) = (each for each in run.part("").ledger.latest().values() if each.shards)
    (tmp_path / "new").mkdir()
    plan, _, lease = start_run(plan, tmp_path / "new")
    reusable = _Reusable(plan.only.blocks[0], record)
    assert _copy(plan.only, earlier, reusable).shards == record.shards
    file = Path(run.output) / record.shards[0][0]
    shutil.move(file, tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    assert _copy(plan.only, earlier, reusable) is None
    lease.release()
