"""Workers that go away under a run: whose fault it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from distributed.comm import CommClosedError

from bigmap.clusters import open_cluster
from bigmap.config import parse_recipe
from bigmap.ledger import Ledger
from bigmap.runner import _Driver, run_plan
from bigmap.runs import RunFolder
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
    monkeypatch.setattr("bigmap.runner.MAX_ATTEMPTS", 1)
    monkeypatch.setattr("bigmap.runner.MAX_LOSSES", 2)
    monkeypatch.setenv("BIGMAP_TEST_KILLS", str(kills))
    plan = make_plan(tmp_path, 64)
    raw = {"kind": "local", "workers": 1, "blocks_per_worker": 1, "memory_gb": 4}
    recipe = parse_recipe(plan.recipe.model_dump(mode="json") | {"cluster": raw})
    with open_cluster(recipe.cluster) as client:
        summary = run_plan(plan, client, limit=1, task=kill_own_worker)
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
    driver = _Driver(make_plan(tmp_path, 64), client, None, None, None, None)
    if losses < calls:
        driver._bring(None)
    else:
        with pytest.raises(CommClosedError):
            driver._bring(None)
    assert client.calls == calls
