"""Which blocks of a run are done, what is recorded of each, and how a run comes to its end."""

from __future__ import annotations

import datetime as dt
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import LeaseError, LostClusterError, OutputError, ReadError, RunError
from bigmap.mapping.blocks import name_block
from bigmap.mapping.ledger import FAILED, TOO_CLOUDY, UNREAD, BlockRecord
from bigmap.mapping.places import Attempt, Taken
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import PartRun, _split_redo, alternate, run_plan
from bigmap.mapping.status import read_status
from bigmap.scenes.items import ItemTable
from tests.integration.small_world import raw_recipe
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.unit.mapping.small_runs import do_here, map_here, start_run


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    monkeypatch.setattr("bigmap.mapping.running.drive", do_here)
    monkeypatch.setattr("bigmap.mapping.running.map_on", map_here)


@pytest.fixture
def run(plan, tmp_path):
    """One part of a run that has begun, and the lease under which it is made."""
    plan, folder, lease = start_run(plan, tmp_path)
    yield PartRun(plan.only, Taken(folder, lease), None, SilentReporter())
    lease.release()


def map_nothing(job, block, rows):
    """What a block comes to here: a square kilometre mapped, half of one too cloudy."""
    return BlockRecord(
        name_block(job.lattice, block), "empty", mapped_km2=1.0, seconds={"read": 2.0},
        without_data_km2={TOO_CLOUDY: 0.5}, finished="2024-05-01T00:00:00+00:00",
    )  # fmt: skip


def fail_at(*names, error):
    """Return what fails at some blocks and maps nothing elsewhere."""

    def do(job, block, rows):
        if name_block(job.lattice, block) in names:
            raise error
        return map_nothing(job, block, rows)

    return do


def names_of(part, blocks=None):
    return [part.name_block(block) for block in (part.blocks if blocks is None else blocks)]


def record(run, states, **facts):
    """Record a state for each of the first blocks."""
    for block, state in zip(run.part.blocks, states, strict=False):
        run.ledger.append(BlockRecord(run.part.name_block(block), state, **facts))
    run.ledger.flush()
    return PartRun(run.part, run.taken, None, SilentReporter())


def test_open_are_blocks_without_a_record_or_with_one_that_may_become_better(run):
    assert run.choose() == list(run.part.blocks)
    run = record(run, ["done", "failed", "empty", "degraded"])
    assert run.summary.planned == 4
    assert run.choose() == [run.part.blocks[number] for number in (1, 3, 4, 5)]


@pytest.mark.parametrize(("size", "is_open"), [(9, False), (8, True), (None, True)])
def test_open_are_blocks_whose_objects_are_not_as_they_were_written(run, size, is_open):
    file = Path(run.objects, "class/c/0/0")
    file.parent.mkdir(parents=True)
    if size is not None:
        file.write_bytes(bytes(size))
    run = record(run, ["done"] * 6)
    assert run.choose() == []
    run = record(run, ["done"], shards=(("class/c/0/0", 9),))
    assert run.choose() == [run.part.blocks[0]] * is_open


def test_named_blocks_are_done_again_and_no_others(run):
    run = record(run, ["done", "failed", "degraded", "failed"])
    names = names_of(run.part)

    def redo(*asked):
        return [names.index(name) for name in names_of(run.part, run.choose(asked))]

    assert redo("failed") == [1, 3]
    assert redo("degraded") == [2]
    assert redo("failed", "degraded", names[5], names[0]) == [0, 1, 2, 3, 5]
    assert redo() == []
    with pytest.raises(OutputError, match=rf"^--redo r0c0, r9c9: .* as in {names[0]}, or give fa"):
        redo("r9c9", names[0], "failed", "r0c0")


def split(redo, *names):
    return _split_redo(SimpleNamespace(parts=[SimpleNamespace(name=n) for n in names]), redo)


def test_blocks_that_are_done_again_are_told_by_zone():
    zones = ("utm31n", "utm32n")
    assert split(["failed", "r1c2"], "") == {"": {"failed", "r1c2"}}
    assert split(None, *zones) == {"utm31n": None, "utm32n": None}
    assert split(["utm31n/r1c2", "utm31n/r-3c4", "degraded"], *zones) == {
        "utm31n": {"r1c2", "r-3c4", "degraded"},
        "utm32n": {"degraded"},
    }
    # What was asked of one zone leaves the other as it is, and is not the same as None.
    assert split(["utm32n/r1c2"], *zones) == {"utm31n": set(), "utm32n": {"r1c2"}}
    with pytest.raises(OutputError, match=r"^--redo utm33n/r1c2: there is no such zone; .*utm31n"):
        split(["utm33n/r1c2"], *zones)
    with pytest.raises(OutputError, match=r"^--redo r1c2: name its zone too, as in utm31n/r1c2$"):
        split(["r1c2"], *zones)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ReadError("B04.tif: is cut"), UNREAD), (RunError("out of memory"), FAILED)],
)
def test_a_failed_block_is_recorded_with_its_reason_and_its_area(run, error, reason):
    part = run.part
    run.do(
        part.blocks[:2], part.job("", None), fail_at(part.name_block(part.blocks[1]), error=error)
    )
    run.audit()
    first, second = (run.records[name] for name in names_of(part)[:2])
    assert (first.state, first.attempts, first.error) == ("empty", 1, None)
    assert (second.state, second.attempts, second.error) == ("failed", 3, str(error))
    km2 = part.count_km2(part.blocks[1])
    assert second.without_data_km2 == {reason: pytest.approx(km2)}
    assert 0 < km2 < 0.64**2
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(second.finished)
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=1)
    summary = run.summary
    assert summary.failures == ((second.block, str(error)),)
    assert (summary.sent, summary.states) == (2, {"empty": 1, "failed": 1})
    assert summary.without_data_km2 == {TOO_CLOUDY: 0.5, reason: pytest.approx(km2)}
    summary.planned = 2
    assert summary.exit_code == 3


@pytest.mark.parametrize(
    ("workers", "order"),
    [(1, "abcdefg"), (2, "aebfcgd"), (3, "adgbecf"), (7, "abcdefg"), (9, "abcdefg")],
)
def test_workers_that_take_turns_go_along_neighbours(workers, order):
    assert "".join(alternate("abcdefg", workers)) == order


def test_each_block_comes_with_its_own_items(run):
    seen = {}

    def look(job, block, rows):
        seen[name_block(job.lattice, block)] = rows
        return map_nothing(job, block, rows)

    part = run.part
    rows = part.catalogue.rows.take([2, 0])
    run.part = replace(part, catalogue=replace(part.catalogue, rows=rows))
    run.do(part.blocks[:1], part.job("", None), look)
    ((name, found),) = seen.items()
    assert name == part.name_block(part.blocks[0])
    assert isinstance(found, ItemTable)
    assert [row.id for row in found] == [row.id for row in rows]


def test_the_limits_of_a_recipe_are_those_of_its_blocks(run, monkeypatch):
    asked = {}

    def drive(client, work, tasks, *, policy, **_):
        asked.update(policy=policy, names=[task.name for task in tasks])
        yield from ()

    monkeypatch.setattr("bigmap.mapping.running.drive", drive)
    recipe = run.part.recipe
    limited = recipe.run.model_copy(update={"block_timeout_s": 90.0})
    run.part = replace(run.part, recipe=recipe.model_copy(update={"run": limited}))
    run.do(run.part.blocks[:2], None, map_nothing)
    assert asked["policy"].timeout_s == 90
    assert asked["policy"].timeout_advice.startswith("run.block_timeout_s (90 s), so")
    assert asked["names"] == [f"block {name}" for name in names_of(run.part)[:2]]


def test_a_cluster_that_was_lost_to_another_driver_is_told_so(run, monkeypatch):
    def lose(*_, **__):
        raise LostClusterError("the cluster was lost")
        yield

    monkeypatch.setattr("bigmap.mapping.running.drive", lose)
    with pytest.raises(LostClusterError, match="the cluster was lost"):
        run.do(run.part.blocks, None, map_nothing)
    run.lease.is_lost = True
    with pytest.raises(LeaseError, match="lease cannot be found any more"):
        run.do(run.part.blocks, None, map_nothing)
    with pytest.raises(LeaseError, match="lease cannot be found any more"):
        run.watch()


@pytest.fixture
def place(plan, tmp_path):
    """The plan at a place that is free."""
    purpose = replace(plan.purpose, path=str(tmp_path / "map.zarr"))
    return replace(plan, purpose=purpose, parts=(replace(plan.only, purpose=purpose),))


def test_a_limited_run_goes_on_where_it_ended_and_sums_up_all_attempts(place):
    first = run_plan(place, None, Attempt(limit=2), task=map_nothing)
    assert (first.planned, first.sent, first.exit_code) == (2, 2, 0)
    assert (first.mapped_km2, first.whole_mapped_km2) == (2, 2)
    sent = []

    def note(job, block, rows):
        sent.append(place.only.name_block(block))
        return map_nothing(job, block, rows)

    second = run_plan(place, None, Attempt(resume=True), task=note)
    assert sent == names_of(place.only)[2:]
    assert (second.planned, second.sent, second.exit_code) == (6, 4, 0)
    assert (second.mapped_km2, second.whole_mapped_km2) == (4, 6)
    assert second.seconds == {"read": 8.0}
    assert second.without_data_km2 == {TOO_CLOUDY: 3.0}
    assert second.has_overviews


def test_an_object_that_is_not_there_at_the_end_is_told(place):
    def lie(job, block, rows):
        return replace(map_nothing(job, block, rows), state="done", shards=(("class/c/0/0", 7),))

    summary = run_plan(place, None, Attempt(limit=1), task=lie)
    assert summary.missing_shards == ("class/c/0/0",)
    assert summary.exit_code == 3


class Stops(SilentReporter):
    """Stops the run after some blocks."""

    def __init__(self, blocks):
        self.left = blocks
        self.is_finished = False

    def add(self, record):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)

    def finish(self):
        self.is_finished = True


def test_a_run_that_is_stopped_keeps_what_it_has_and_can_go_on(place):
    reporter = Stops(2)
    summary = run_plan(place, None, reporter=reporter, task=map_nothing)
    assert (summary.stopped, summary.exit_code, summary.sent) == (True, 75, 2)
    assert (summary.planned, summary.missing, summary.has_overviews) == (6, 4, False)
    assert reporter.is_finished
    status = read_status(place.output)
    assert (status.missing, status.lease, status.has_overviews) == (4, None, False)
    again = run_plan(place, None, Attempt(resume=True), task=map_nothing)
    assert (again.sent, again.planned, again.exit_code) == (4, 6, 0)
    assert read_status(place.output).is_whole


def test_overviews_that_cannot_be_written_end_the_run_and_stay_to_be_made(place, monkeypatch):
    def fail(*_, **__):
        raise RunError("0 to 64: failed in 3 attempts (disk full)")

    with monkeypatch.context() as patch:
        patch.setattr("bigmap.mapping.running.map_on", fail)
        with pytest.raises(OutputError, match=r"map\.zarr: overview 1: .*disk full"):
            run_plan(place, None, task=map_nothing)
    assert not read_status(place.output).has_overviews
    again = run_plan(place, None, Attempt(resume=True), task=map_nothing)
    assert (again.sent, again.has_overviews, again.exit_code) == (0, True, 0)


@pytest.fixture
def zones(tmp_path):
    """A plan of two zones."""
    items = write_tiny_scenes(tmp_path / "scenes", left=700_000)
    changes = {
        "area__bbox": [5.95, 41.6, 6.05, 41.65], "grid__crs": "utm", "grid__gsd_m": 100,
        "source__files": [str(items)], "source__start": "2024-05-01",
        "output__path": str(tmp_path / "map.zarr"),
    }  # fmt: skip
    return bigmap.plan(parse_recipe(raw_recipe(**changes)))


def test_a_limit_counts_the_blocks_of_all_parts(zones):
    west, east = (names_of(part) for part in zones.parts)
    assert len(east) > 1
    error = ReadError("B04.tif: is cut")
    attempt = Attempt(limit=len(west) + 1)
    summary = run_plan(zones, None, attempt, task=fail_at(east[0], error=error))
    assert summary.sent == summary.planned == len(west) + 1
    assert summary.states == {"empty": len(west), "failed": 1}
    assert summary.failures == ((f"utm32n/{east[0]}", "B04.tif: is cut"),)
    folder = RunFolder(zones.output)
    assert list(folder.part("utm31n").ledger.latest()) == west
    assert list(folder.part("utm32n").ledger.latest()) == east[:1]
    redo = Attempt(resume=True, redo=["failed"])
    summary = run_plan(zones, None, redo, task=map_nothing)
    assert (summary.sent, summary.states) == (1, {"empty": len(west) + 1})
    summary = run_plan(zones, None, Attempt(resume=True), task=map_nothing)
    assert (summary.sent, summary.exit_code) == (len(east) - 1, 0)
    assert summary.whole_mapped_km2 == len(west) + len(east)


def test_a_limit_that_one_part_uses_up_leaves_the_next_untouched(zones):
    summary = run_plan(zones, None, Attempt(limit=1), task=map_nothing)
    assert (summary.planned, summary.sent, summary.exit_code) == (1, 1, 0)
    assert not RunFolder(zones.output).part("utm32n").ledger.latest()


def test_a_stop_leaves_the_parts_that_follow(zones):
    reporter = Stops(1)
    summary = run_plan(zones, None, reporter=reporter, task=map_nothing)
    assert (summary.exit_code, summary.sent) == (75, 1)
    assert not RunFolder(zones.output).part("utm32n").ledger.latest()
