"""Ten thousand tiny blocks: one task each, and a driver that does not grow."""

from __future__ import annotations

import datetime as dt
import time

import psutil
import pytest
import yaml
from distributed.diagnostics.plugin import SchedulerPlugin

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.lease import Lease
from bigmap.mapping.ledger import BlockRecord, Ledger
from bigmap.mapping.places import Attempt
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes

BLOCKS = 10_000


def do_nothing(job, block, rows):
    """What a worker does here with a block."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    name = f"r{block[0].start // job.lattice.block_px}c{block[1].start // job.lattice.block_px}"
    # It writes no object, but counts as mapped: a run without a single pixel is no success.
    return BlockRecord(
        name, "empty", finished=now, seconds={"read": 0.0, "predict": 0.0}, mapped_km2=1.0
    )


class MemoryWatch(SilentReporter):
    """Notes the driver's memory at some counts of finished blocks."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.finished = 0
        self.megabytes: dict[int, float] = {}
        self.times: dict[int, float] = {}

    def add(self, record) -> None:
        self.finished += 1
        if self.finished % 1000 == 0:
            self.megabytes[self.finished] = self.process.memory_info().rss / 1e6
            self.times[self.finished] = time.perf_counter()


class CountsTasks(SchedulerPlugin):
    """Counts tasks that were sent and how many waited at once."""

    name = "counts-tasks"

    def __init__(self) -> None:
        self.sent = 0
        self.most = 0

    def update_graph(self, scheduler, **kwargs) -> None:
        self.sent += len(kwargs["keys"])
        self.most = max(self.most, len(scheduler.tasks))


def make_plan(tmp_path, side_px):
    items = write_tiny_scenes(tmp_path / "scenes")
    raw = {
        "name": "tiny", "area": {"bbox": [2.0, 41.0, 3.5, 42.1]},
        "grid": {
            "crs": "EPSG:25831", "gsd_m": 10, "core_px": 8, "cell_px": 8, "block_px": side_px,
            "shard_px": 8, "chunk_px": 8,
        },
        "source": {
            "kind": "files", "files": [str(items)], "start": "2024-05-01", "end": "2024-05-31",
        },
        "model": {"name": "ndvi", "options": {"upscale": 1}},
        "output": {"path": str(tmp_path / "map.zarr"), "overviews": 0},
    }  # fmt: skip
    return bigmap.plan(parse_recipe(raw))


@pytest.mark.slow
def test_ten_thousand_blocks(tmp_path, record_property, capsys):
    plan = make_plan(tmp_path, 64)
    assert len(plan.only.blocks) > BLOCKS
    watch, counter = MemoryWatch(), CountsTasks()
    with start_cluster() as (cluster, client):
        cluster.scheduler.add_plugin(counter)
        summary = run_plan(plan, client, Attempt(limit=BLOCKS), reporter=watch, task=do_nothing)
    assert summary.exit_code == 0
    assert summary.states == {"empty": BLOCKS}
    assert counter.sent == BLOCKS, "one task a block"
    # Twice what is in flight, and those of the batch before that it has not forgotten yet.
    assert counter.most <= 16, "the scheduler holds what is in flight, and no more"
    growth = watch.megabytes[BLOCKS] - watch.megabytes[1000]
    early = (watch.times[2000] - watch.times[1000]) * 1.0
    late = (watch.times[BLOCKS] - watch.times[BLOCKS - 1000]) * 1.0
    figures = (
        f"{BLOCKS} blocks: {1000 * summary.elapsed_s / BLOCKS:.1f} ms per block, the second "
        f"thousand {early:.1f} s, the last {late:.1f} s; the driver grew by {growth:.0f} MB after "
        f"the first thousand, from {watch.megabytes[1000]:.0f} MB"
    )
    record_property("figures", figures)
    with capsys.disabled():
        print(f"\n{figures}")
    assert growth < 100
    assert len(Ledger(RunFolder(plan.recipe.output.path).path).latest()) == BLOCKS


def test_a_failing_block_is_tried_again_and_then_recorded(tmp_path):
    plan = make_plan(tmp_path, 64)
    with (
        start_cluster(threads=1) as (_, client),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("bigmap.clusters.driving.RETRY_DELAY_S", 0.01)
        summary = run_plan(plan, client, Attempt(limit=3), task=fail_in_the_middle)
        assert summary.exit_code == 3
        assert summary.states == {"empty": 2, "failed": 1}
        ((name, error),) = summary.failures
        assert error == "B04.tif: is broken"
        record = Ledger(RunFolder(plan.recipe.output.path).path).latest()[name]
        assert record.attempts == 3
        # Resuming does the failed block again and leaves the others.
        again = run_plan(plan, client, Attempt(limit=1, resume=True), task=do_nothing)
        assert again.exit_code == 0
        assert again.sent == 1
        assert again.states == {"empty": 3}


def fail_in_the_middle(job, block, rows):
    from bigmap.errors import ReadError

    record = do_nothing(job, block, rows)
    if record.block == FAILING.setdefault("block", record.block):
        raise ReadError("B04.tif: is broken")
    return record


FAILING: dict[str, str] = {}


def find_another_dtype(job, block, rows):
    from bigmap.errors import UnfitFileError

    raise UnfitFileError("B04.tif: holds float32")


def test_what_trying_again_cannot_help_is_not_tried_again(tmp_path):
    plan = make_plan(tmp_path, 64)
    with start_cluster(threads=1) as (_, client):
        summary = run_plan(plan, client, Attempt(limit=1), task=find_another_dtype)
    ((name, error),) = summary.failures
    assert error == "B04.tif: holds float32"
    record = Ledger(RunFolder(plan.recipe.output.path).path).latest()[name]
    assert record.attempts == 1
    assert list(record.without_data_km2) == ["could not be read"]


def test_a_second_driver_is_refused(tmp_path):
    from bigmap.errors import LeaseError

    plan = make_plan(tmp_path, 64)
    folder = RunFolder(plan.recipe.output.path)
    lease = Lease(folder.path)
    lease.acquire()
    try:
        with pytest.raises(LeaseError, match="another run"):
            run_plan(plan, None, Attempt(limit=1))
    finally:
        lease.release()
    assert not folder.exists()


def test_a_map_that_another_run_finished_meanwhile_stays(tmp_path):
    slow, fast = make_plan(tmp_path, 64), make_plan(tmp_path, 64)
    with start_cluster(threads=1) as (_, client):
        run_plan(fast, client, Attempt(limit=2), task=do_nothing)
        folder = RunFolder(fast.recipe.output.path)
        before = Ledger(folder.path).latest()
        with pytest.raises(OutputError, match="exists; add --resume to go on with it or --overw"):
            run_plan(slow, client, Attempt(limit=1), task=do_nothing)
    assert Ledger(folder.path).latest() == before
    assert len(before) == 2


def test_the_stored_recipe_is_read_back(tmp_path):
    plan = make_plan(tmp_path, 64)
    folder = RunFolder(plan.recipe.output.path)
    lease = Lease(folder.path)
    lease.acquire()
    folder.create(plan, lease)
    lease.release()
    stored, blocks = folder.read_recipe()
    assert stored == plan.recipe
    assert blocks == len(plan.only.blocks)
    assert folder.part("").read_items().rows == plan.only.catalogue.rows
    assert yaml.safe_load(plan.recipe.to_yaml())["name"] == "tiny"
