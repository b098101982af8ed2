"""A run extended: blocks that nothing has changed are copied, and the bytes are those of a new run;
and single blocks done again."""

import json
from pathlib import Path

import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.mapping.places import Attempt
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes

SMALL, LARGE = [2.1, 41.3, 2.5, 41.6], [1.95, 41.3, 2.5, 41.75]


@pytest.fixture(scope="module")
def client():
    with start_cluster() as (_, client):
        yield client


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extend")
    return write_tiny_scenes(folder / "scenes", days=("2024-05-03", "2024-05-08", "2024-06-02"))


def make_plan(path, items, bbox, *, end="2024-06-30", **changes):
    raw = {
        "name": "tiny", "area": {"bbox": bbox},
        "grid": {
            "crs": "EPSG:32631", "gsd_m": 600, "core_px": 8, "cell_px": 8, "block_px": 16,
            "shard_px": 16, "chunk_px": 8,
        },
        "source": {"kind": "files", "files": [str(items)], "start": "2024-05-01", "end": end},
        "model": {"name": "ndvi", "options": {"upscale": 2}},
        "output": {"path": str(path), "overviews": 1},
        "cluster": {"kind": "local", "workers": 1},
    }  # fmt: skip
    return bigmap.plan(parse_recipe(raw | changes))


def files_of(path):
    """The bytes of all objects of a map; its attributes hold its own path."""
    root = Path(path)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def small(client, items, tmp_path_factory):
    plan = make_plan(tmp_path_factory.mktemp("small") / "small.zarr", items, SMALL)
    assert run_plan(plan, client).exit_code == 0
    return plan


def test_a_larger_area_reuses_what_lies_inside(client, items, small, tmp_path):
    fresh = make_plan(tmp_path / "fresh.zarr", items, LARGE)
    larger = make_plan(tmp_path / "larger.zarr", items, LARGE)
    assert run_plan(fresh, client).exit_code == 0
    summary = run_plan(larger, client, Attempt(reuse=small.recipe.output.path))
    assert summary.exit_code == 0
    records = RunFolder(larger.recipe.output.path).part("").ledger.latest()
    reused = {name for name, record in records.items() if record.reused}
    assert 0 < len(reused) < len(records)
    assert summary.sent == len(records) - len(reused)
    # Blocks at the old edge have more of the area in them now.
    assert len(reused) < len(small.only.blocks)
    assert files_of(larger.recipe.output.path) == files_of(fresh.recipe.output.path)
    assert larger.only.extent != small.only.extent


def test_new_dates_change_every_block_that_they_touch(client, items, small, tmp_path):
    plan = make_plan(tmp_path / "may.zarr", items, SMALL, end="2024-05-31")
    summary = run_plan(plan, client, Attempt(limit=1, reuse=small.recipe.output.path))
    assert (summary.sent, summary.planned) == (1, 1)


def test_the_same_again_copies_all_but_what_is_lost(client, items, small, tmp_path):
    plan = make_plan(tmp_path / "again.zarr", items, SMALL)
    summary = run_plan(plan, client, Attempt(reuse=small.recipe.output.path))
    assert (summary.sent, summary.planned, summary.exit_code) == (0, len(small.only.blocks), 0)
    assert files_of(plan.recipe.output.path) == files_of(small.recipe.output.path)
    # A copied map can be copied in turn, without an object that it has lost.
    next(file for file in Path(plan.recipe.output.path, "class", "c").rglob("*") if
         file.is_file()).unlink()  # fmt: skip
    third = make_plan(tmp_path / "third.zarr", items, SMALL)
    summary = run_plan(third, client, Attempt(reuse=plan.recipe.output.path))
    assert (summary.sent, summary.exit_code) == (1, 0)
    assert files_of(third.recipe.output.path) == files_of(small.recipe.output.path)


def test_another_model_mask_or_grid_is_refused(client, items, small, tmp_path):
    old = small.recipe.output.path
    for change, field in (
        ({"model": {"name": "ndvi", "options": {"upscale": 2, "threshold": 0.3}}}, "threshold"),
        ({"dates": {"max_per_cell": 2}}, "dates.max_per_cell"),
        ({"inference": {"precision": "bfloat16"}}, "inference.precision"),
    ):
        plan = make_plan(tmp_path / f"{field}.zarr", items, SMALL, **change)
        with pytest.raises(OutputError, match=field):
            run_plan(plan, client, Attempt(reuse=old))
    mask = {**small.recipe.source.model_dump(mode="json"), "mask": {"kind": "scl", "dilate_px": 1}}
    plan = make_plan(tmp_path / "mask.zarr", items, SMALL, source=mask)
    with pytest.raises(OutputError, match=r"source\.mask"):
        run_plan(plan, client, Attempt(reuse=old))
    with pytest.raises(OutputError, match="there is no run"):
        run_plan(plan, client, Attempt(overwrite=True, reuse=str(tmp_path / "nothing.zarr")))


def test_single_blocks_are_done_again(client, items, tmp_path):
    plan = make_plan(tmp_path / "redo.zarr", items, SMALL)
    before = run_plan(plan, client, Attempt(limit=3))
    assert before.sent == 3
    path = plan.recipe.output.path
    whole = files_of(path)
    names = [plan.only.name_block(block) for block in plan.only.blocks]
    key = RunFolder(path).part("").ledger.latest()[names[1]].shards[0][0]
    Path(path, key).write_bytes(b"spoilt")
    summary = run_plan(plan, client, Attempt(resume=True, redo=[names[1]]))
    assert (summary.sent, summary.planned) == (1, 3)
    assert files_of(path) == whole
    assert run_plan(plan, client, Attempt(resume=True, redo=["failed"])).sent == 0
    with pytest.raises(OutputError, match="no such block"):
        run_plan(plan, client, Attempt(resume=True, redo=["r99999c0"]))
    with pytest.raises(OutputError, match="--redo utm31n/r0c0: this map has no such block"):
        run_plan(plan, client, Attempt(resume=True, redo=["utm31n/r0c0"]))


def test_a_run_without_its_area_is_not_reused(client, items, small, tmp_path):
    plan = make_plan(tmp_path / "old.zarr", items, SMALL)
    assert run_plan(plan, client, Attempt(limit=1)).exit_code == 0
    (tmp_path / "old.run" / "area.json").unlink()
    other = make_plan(tmp_path / "new.zarr", items, SMALL)
    with pytest.raises(OutputError, match=r"area\.json: is missing; put it back"):
        run_plan(other, client, Attempt(reuse=plan.recipe.output.path))
    assert json.loads((tmp_path / "old.run" / "plan.json").read_text())["versions"]
