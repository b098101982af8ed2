"""Workers that go away under a run: whose fault it is."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.comm import CommClosedError

from bigmap.clusters import open_cluster
from bigmap.clusters.driving import _Driver
from bigmap.clusters.local import start_local
from bigmap.clusters.tasks import Policy, Work
from bigmap.config import parse_recipe
from bigmap.mapping.ledger import Ledger
from bigmap.mapping.places import Attempt
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from tests.integration.local import find_workers, wait_until
from tests.integration.test_bounded import do_nothing, make_plan

pytestmark = pytest.mark.slow


def kill_own_worker(job, block, rows):
    """Kill the worker the first few times that any block is tried, as a count in a file says."""
    count = Path(job.run_folder) / "kills"
    kills = int(count.read_text()) if count.exists() else 0
    if kills < int(os.environ["BIGMAP_TEST_KILLS"]):
        count.write_text(str(kills + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return do_nothing(job, block, rows)


@pytest.mark.parametrize(("kills", "state"), [(1, "empty"), (2, "failed")])
def test_a_lost_worker_is_no_failure_of_its_block(tmp_path, monkeypatch, kills, state):
    # One failure would be too much here, and so would two lost workers.
    monkeypatch.setattr("bigmap.clusters.tasks.MAX_ATTEMPTS", 1)
    monkeypatch.setattr("bigmap.clusters.tasks.MAX_LOSSES", 2)
    monkeypatch.setenv("BIGMAP_TEST_KILLS", str(kills))
    plan = make_plan(tmp_path, 64)
    raw = {"kind": "local", "workers": 1, "blocks_per_worker": 1, "memory_gb": 4}
    recipe = parse_recipe(plan.recipe.model_dump(mode="json") | {"cluster": raw})
    with open_cluster(recipe.cluster) as client:
        summary = run_plan(plan, client, Attempt(limit=1), task=kill_own_worker)
    assert summary.states == {state: 1}
    (record,) = Ledger(RunFolder(plan.recipe.output.path).path).latest().values()
    assert record.attempts == 1
    if state == "failed":
        assert "2 workers were lost while they had it" in record.error


class LosesAWorker:
    """A client one of whose workers is lost whenever a plugin is brought, so often."""

    def __init__(self, losses: int, status: str = "running") -> None:
        self.losses, self.status, self.calls = losses, status, 0

    def register_plugin(self, plugin) -> None:
        self.calls += 1
        if self.calls <= self.losses:
            raise CommClosedError("in <TCP (closed)>: Stream is closed")


@pytest.mark.parametrize(
    ("losses", "status", "calls"), [(2, "running", 3), (99, "running", 11), (99, "closed", 1)]
)
def test_a_worker_lost_while_the_job_is_brought_is_no_lost_cluster(tmp_path, losses, status, calls):
    client = LosesAWorker(losses, status)
    driver = _Driver(client, Work(), Policy(), print, print)
    if losses < calls:
        driver.bring()
    else:
        with pytest.raises(CommClosedError):
            driver.bring()
    assert client.calls == calls


def hang(job, block, rows):
    """Never end, if the block is the first, the first few times that it is tried."""
    record = do_nothing(job, block, rows)
    folder = Path(job.run_folder)
    if record.block == (folder / "hangs").read_text():
        tried = len(list(folder.glob("tried-*")))
        if tried < int(os.environ["BIGMAP_TEST_HANGS"]):
            (folder / f"tried-{tried}").touch()
            threading.Event().wait()
    return record


class NotesAll(SilentReporter):
    """Keeps what it is told; names the block that hangs when the run starts."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, plan, todo, recorded) -> None:
        (Path(RunFolder(plan.recipe.output.path).path) / "hangs").write_text(
            plan.name_block(plan.blocks[0])
        )

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(("hangs", "state"), [(2, "empty"), (99, "failed")])
def test_a_block_that_hangs_is_given_up_and_those_behind_it_are_not(
    tmp_path, monkeypatch, hangs, state
):
    monkeypatch.setattr("bigmap.clusters.driving.RETRY_DELAY_S", 0.01)
    monkeypatch.setattr("bigmap.clusters.tasks.TICK_S", 0.2)
    # Those behind it lose their worker too, which no block may here but for a block that hung.
    monkeypatch.setattr("bigmap.clusters.tasks.MAX_LOSSES", 1)
    monkeypatch.setattr("bigmap.clusters.tasks.IN_FLIGHT_PER_SLOT", 8)
    monkeypatch.setenv("BIGMAP_TEST_HANGS", str(hangs))
    plan = make_plan(tmp_path, 64)
    raw = plan.recipe.model_dump(mode="json") | {
        "cluster": {"kind": "local", "workers": 1, "blocks_per_worker": 1, "memory_gb": 4},
        "run": {"block_timeout_s": 3},
    }
    recipe = parse_recipe(raw)
    plan = replace(plan, recipe=recipe, parts=(replace(plan.only, recipe=recipe),))
    reporter = NotesAll()
    with open_cluster(plan.recipe.cluster) as client:
        summary = run_plan(plan, client, Attempt(limit=8), task=hang, reporter=reporter)
    records = Ledger(RunFolder(plan.recipe.output.path).path).latest()
    first = records.pop(plan.only.name_block(plan.only.blocks[0]))
    assert (first.state, first.attempts) == (state, 3)
    # They were sent with it, and waited on its worker as long as it ran.
    assert {(record.state, record.attempts) for record in records.values()} == {("empty", 1)}
    assert len(records) == 7
    said = "took longer than run.block_timeout_s (3 s), so its worker was ended; raise it if"
    assert sum(said in note for note in reporter.notes) == 2
    assert summary.exit_code == (3 if state == "failed" else 0)
    assert (said in (first.error or "")) == (state == "failed")


def test_a_worker_that_its_nanny_lost_sight_of_ends_with_its_cluster(monkeypatch):
    monkeypatch.setattr("bigmap.clusters.local.CLOSE_TIMEOUT_S", 5)
    with start_local(workers=1, blocks=1, memory_gb=4) as cluster, Client(cluster) as client:
        known = set(client.run(os.getpid).values())
        # Killed at work, and the next one as soon as it is born.
        for _ in range(2):
            before = find_workers()
            for process in before:
                process.kill()
            psutil.wait_procs(before)
            wait_until(find_workers)
        wait_until(lambda: set(client.run(os.getpid).values()) - known)
        workers = find_workers()
    _gone, alive = psutil.wait_procs(workers, timeout=5)
    assert workers
    assert not alive
