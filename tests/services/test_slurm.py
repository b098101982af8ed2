"""Runs on a real SLURM: the same bytes through cancelled jobs, walltimes and stopped drivers.

What interrupts a run waits for the moment to do so, while the run's blocks wait at a gate: nothing
here depends on how fast the machine is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.running import run_plan
from bigmap.mapping.status import read_status
from tests.integration.gated_model import Gate, install_gated_model
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.services.faults import count_records
from tests.services.slurm import Slurm
from tests.services.test_run import digest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SMALL_JOBS = {
    "interface": "lo", "cpus_per_worker": 1, "memory_gb": 3, "min_jobs": 2, "max_jobs": 2,
    "walltime_minutes": 10,
}  # fmt: skip
"""What this machine's SLURM has instead of a centre's."""


@dataclass(frozen=True)
class World:
    """A folder with scenes, and what a map of them holds when nothing is disturbed."""

    folder: Path
    blocks: int
    expected: dict[str, str]

    def recipe(self, output: str, gate: Gate) -> str:
        raw = make_raw(self.folder, output) | {"model": gate.model}
        file = self.folder / f"{output}.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file.name

    def digest(self, output: str) -> dict[str, str]:
        return digest(str(self.folder / f"{output}.zarr"))


def make_raw(folder: Path, output: str) -> dict:
    return {
        "name": "gated", "area": {"bbox": [2.05, 41.7, 2.6, 42.0]},
        "grid": {
            "crs": "EPSG:3035", "gsd_m": 250, "core_px": 64, "cell_px": 64, "block_px": 64,
            "shard_px": 128, "chunk_px": 64,
        },
        "source": {
            "kind": "files", "files": [str(folder / "scenes" / "items.json")],
            "start": "2024-05-01", "end": "2024-05-31",
        },
        "model": {"name": "small-conv", "options": {"upscale": 2}},
        "output": {"path": f"{output}.zarr", "overviews": 1},
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("slurm-world")
    write_tiny_scenes(folder / "scenes", pixel_m=300)
    install_gated_model(folder / "packages")
    plan = bigmap.plan(parse_recipe(make_raw(folder, str(folder / "local"))))
    with start_cluster() as (_, client):
        assert run_plan(plan, client).exit_code == 0
    expected = digest(str(folder / "local.zarr"))
    assert len(expected) > 10
    return World(folder, len(plan.only.blocks), expected)


def environment(world: World, slurm: Slurm) -> dict[str, str]:
    places = [str(ROOT), str(world.folder / "packages")]
    return {**os.environ, **slurm.env, "PYTHONPATH": os.pathsep.join(places)}


def command_of(recipe: str, *, cluster: str = "slurm-cpu", **changes) -> list[str]:
    settings = [
        f"--set=cluster.{key}={value}"
        for key, value in (SMALL_JOBS | changes).items()
    ]  # fmt: skip
    run = [sys.executable, "-m", "bigmap.cli", "run", recipe, "--resume"]
    return [*run, f"--cluster={CLUSTER / cluster}.yaml", *settings]


class Driver:
    """``bigmap run`` as a process, whose blocks wait at its gate."""

    def __init__(self, world: World, slurm: Slurm, output: str, **changes):
        self.world, self.slurm = world, slurm
        self.output = str(world.folder / f"{output}.zarr")
        self.log = world.folder / f"{output}.log"
        self.gate = Gate(world.folder / f"{output}.gate")
        self.command = command_of(world.recipe(output, self.gate), **changes)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=world.folder, stdout=log, stderr=log,
                env=environment(world, slurm),
            )  # fmt: skip

    def wait_until(self, is_so: Callable[[], bool], *, limit_s: float = 600) -> None:
        deadline = time.monotonic() + limit_s
        while not is_so():
            assert self.process.poll() is None, self.explain()
            assert time.monotonic() < deadline, self.explain()
            time.sleep(0.1)

    def recorded(self) -> int:
        return count_records(self.output)

    def finish(self, *, limit_s: float = 600) -> int:
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(self.explain()) from None

    def explain(self) -> str:
        logs = sorted((self.world.folder / "slurm-logs").glob("*.err"))
        said = "\n".join(f"{log.name}: {log.read_text()[-800:]}" for log in logs[-4:])
        return f"{self.log.read_text()}\n{said}\n{self.slurm.explain()}"


def test_a_run_on_slurm_has_the_bytes_of_a_local_one(world, slurm):
    driver = Driver(world, slurm, "plain", min_jobs=1, max_jobs=2)
    driver.wait_until(lambda: bool(driver.gate.waiting_jobs()))
    (folder,) = world.folder.glob(".bigmap-tls-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    driver.wait_until(lambda: len(slurm.jobs()) == 2)  # The work asks for more than one job.
    driver.gate.open()
    assert driver.finish() == 0, driver.explain()
    assert world.digest("plain") == world.expected
    assert not list(world.folder.glob(".bigmap-tls-*")), "certificates go with the run"
    slurm.wait_for_no_jobs()


def test_a_cancelled_job_costs_time_only(world, slurm):
    driver = Driver(world, slurm, "cancelled")
    driver.gate.let(3)
    driver.wait_until(lambda: driver.recorded() > 2 and len(driver.gate.waiting_jobs()) == 2)
    first = slurm.jobs()
    assert set(first) == driver.gate.waiting_jobs(), "each has a block in hand"
    slurm.call("scancel", first[0])
    driver.wait_until(lambda: bool(driver.gate.waiting_jobs() - set(first)))
    driver.gate.open()
    assert driver.finish() == 0, driver.explain()
    assert world.digest("cancelled") == world.expected
    assert read_status(driver.output).states.total() == world.blocks


def test_workers_leave_before_their_walltime(world, slurm):
    # The longest of their lives ends 105 s before the two minutes of the job do.
    driver = Driver(world, slurm, "leaving", walltime_minutes=2, leave_before_s=105)
    driver.gate.let(3)
    # Workers leave with their blocks, and those of other jobs get them.
    driver.wait_until(lambda: len(driver.gate.waiting_jobs()) > 2)
    driver.gate.open()
    assert driver.finish() == 0, driver.explain()
    assert world.digest("leaving") == world.expected
    jobs = driver.gate.waiting_jobs()
    logs = [(world.folder / "slurm-logs" / f"bigmap-worker-{job}.err").read_text() for job in jobs]
    assert any("worker-lifetime-reached" in log for log in logs)
    assert not any("DUE TO TIME LIMIT" in log for log in logs)


@pytest.mark.long
def test_walltimes_of_a_minute_under_a_run_of_three(world, slurm):
    """Workers take no notice of their limit here: SLURM kills their jobs, blocks and all."""
    driver = Driver(
        world, slurm, "killed", walltime_minutes=1, leave_before_s=0,
        prologue='["export DASK_DISTRIBUTED__WORKER__LIFETIME__DURATION=1h"]',
    )  # fmt: skip

    def count_killed() -> int:
        logs = [world.folder / "slurm-logs" / f"bigmap-worker-{job}.err"
                for job in driver.gate.waiting_jobs()]  # fmt: skip
        return sum("DUE TO TIME LIMIT" in log.read_text() for log in logs if log.exists())

    driver.gate.let(3)
    # There are two jobs at a time, so that five have taken three minutes.
    driver.wait_until(lambda: count_killed() >= 5, limit_s=1200)
    driver.gate.open()
    assert driver.finish() == 0, driver.explain()
    assert world.digest("killed") == world.expected
    slurm.wait_for_no_jobs()


def test_a_driver_that_waits_in_the_queue_stops_in_order(world, slurm):
    driver = Driver(world, slurm, "held", directives="[--hold]")
    driver.wait_until(lambda: "waiting for the first worker of SLURM job" in driver.log.read_text())
    assert len(slurm.jobs("PENDING")) == 2
    driver.process.send_signal(signal.SIGUSR1)
    assert driver.finish() == 75, driver.explain()
    assert "stopped by SIGUSR1: go on with the same command and --resume" in driver.log.read_text()
    assert not list(world.folder.glob(".bigmap-tls-*"))
    slurm.wait_for_no_jobs()


def submit_driver(world: World, slurm: Slurm, output: str, gate: Gate) -> str:
    env = environment(world, slurm) | {"BIGMAP": f"{sys.executable} -m bigmap.cli"}
    arguments = command_of(world.recipe(output, gate))[4:]
    arguments.remove("--resume")
    command = [
        "sbatch", "--parsable", "--mem=1500M", "--cpus-per-task=1", f"--chdir={world.folder}",
        f"--output={output}.log", str(CLUSTER / "bigmap.sbatch"), *arguments,
    ]  # fmt: skip
    return subprocess.check_output(command, env=env, text=True).strip()


@pytest.mark.parametrize("how", ["signalled", pytest.param("requeued", marks=pytest.mark.long)])
def test_the_driver_as_a_job_resumes_by_itself(world, slurm, how):
    gate = Gate(world.folder / f"{how}.gate")
    job = submit_driver(world, slurm, how, gate)
    log, output = world.folder / f"{how}.log", str(world.folder / f"{how}.zarr")

    def wait_until(is_so: Callable[[], bool], limit_s: float = 600) -> None:
        deadline = time.monotonic() + limit_s
        while not is_so():
            assert time.monotonic() < deadline, f"{log.read_text()}\n{slurm.explain()}"
            time.sleep(0.2)

    gate.let(3)
    wait_until(lambda: count_records(output) > 2)
    if how == "signalled":  # what SLURM sends before the time limit, to the script alone
        slurm.call("scancel", "--batch", "--signal=USR1", job)
        wait_until(lambda: "ended with 75" in log.read_text())
    else:
        slurm.call("scontrol", "requeue", job)
    wait_until(lambda: "Restarts=1" in slurm.call("scontrol", "show", "job", job))
    gate.open()
    wait_until(lambda: "JobState=COMPLETED" in slurm.call("scontrol", "show", "job", job))
    text = log.read_text()
    assert "start 1" in text
    assert "recorded before" in text, "the second start goes on where the first stopped"
    assert world.digest(how) == world.expected
    slurm.wait_for_no_jobs()
