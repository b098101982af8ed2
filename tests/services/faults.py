"""A small world to break runs in: real drivers and workers as processes, and their pixels."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.ledger import Ledger
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from tests.integration.gated_model import Gate, install_gated_model
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.services.processes import accepts_connections, free_port, running
from tests.services.test_run import digest

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
import time
from pathlib import Path
import torch
from bigmap.models.networks.small_conv import SmallConvModel

class HungryModel(SmallConvModel):
    """small-conv, which takes memory until it is killed while a file holds a number above 0."""

    def __init__(self, *, upscale: int = 2, meals: str = "") -> None:
        super().__init__(upscale=upscale)
        self.meals = Path(meals)

    def forward(self, reflectance, dates, clear):
        meals = int(self.meals.read_text())
        if meals and type(reflectance) is torch.Tensor:  # planning passes one without values
            self.meals.write_text(str(meals - 1))
            eaten = [torch.ones(25_000_000) for _ in range(25)]
            while True:  # more than its worker may have, until that is seen
                time.sleep(0.05)
        return super().forward(reflectance, dates, clear)
'''
PATIENCE_S = 10
START = f"""
import os
import bigmap.clusters.settings as settings
from distributed import Scheduler
settings.SCHEDULER["distributed.scheduler.worker-ttl"] = "{PATIENCE_S}s"
check = Scheduler.check_worker_ttl

async def check_when_told(self):
    if os.path.exists(os.environ["BIGMAP_TEST_IMPATIENT"]):
        await check(self)

Scheduler.check_worker_ttl = check_when_told
from bigmap.cli import main
main()
"""
"""``bigmap`` with less patience for workers that hang, once a file is there: on a busy machine a
healthy worker is not heard of for that long while it starts."""
START_SUCCESSOR = """
import bigmap.lease as lease
lease.LEASE_LOST_S = 3.0
from bigmap.cli import main
main()
"""
"""``bigmap`` with less patience for a driver that does not renew its lease."""

START_LATE = """
import os, time
from bigmap.lease import Lease
acquire = Lease.acquire

def acquire_late(self, note=None):
    open(os.environ["BIGMAP_TEST_LATE"], "w").close()
    while os.path.exists(os.environ["BIGMAP_TEST_LATE"]):
        time.sleep(0.1)
    acquire(self, note)

Lease.acquire = acquire_late
from bigmap.cli import main
main()
"""
"""``bigmap`` that found its output free, and is slow to take it: it waits while a file is there."""


def count_records(output: str) -> int:
    """Return how many blocks of a map are recorded."""
    folder = RunFolder(output)
    if not folder.exists():
        return 0
    return len(Ledger(folder.path).latest())


def make_raw(folder: Path, output: Path, **changes) -> dict:
    return {
        "name": "faults", "area": {"bbox": [2.05, 41.7, 2.6, 42.0]},
        "grid": {
            "crs": "EPSG:3035", "gsd_m": 100, "core_px": 64, "cell_px": 64, "block_px": 64,
            "shard_px": 128, "chunk_px": 64,
        },
        "source": {
            "kind": "files", "files": [str(folder / "scenes" / "items.json")],
            "start": "2024-05-01", "end": "2024-05-31",
        },
        "model": {"name": "small-conv", "options": {"upscale": 2}},
        "output": {"path": str(output), "overviews": 1},
        "cluster": {"workers": 2, "blocks_per_worker": 1, "memory_gb": 3}, **changes,
    }  # fmt: skip


@dataclass
class World:
    """A folder with scenes, and what a map of them holds when nothing is disturbed."""

    folder: Path
    expected: dict[str, str] = field(default_factory=dict)
    blocks: int = 0
    mapped: int = 0
    """Blocks that the model is asked about, once each; the others are empty."""
    first_mapped: int = 0
    """How many blocks a run needs to have one of them."""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    """Of the table: fault, how often, blocks, how it ended, same bytes, seconds."""

    @classmethod
    def make(cls, folder: Path) -> World:
        write_tiny_scenes(folder / "scenes", pixel_m=300)
        metadata = folder / "packages" / "bigmap_hungry-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata.parent / "bigmap_hungry.py").write_text(MODULE)
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: bigmap-hungry\nVersion: 1.0\n"
        )
        (metadata / "entry_points.txt").write_text(
            "[bigmap.models]\nhungry = bigmap_hungry:HungryModel\n"
        )
        install_gated_model(folder / "packages")
        world = cls(folder)
        plan = bigmap.plan(parse_recipe(make_raw(folder, folder / "undisturbed.zarr")))
        with start_cluster() as (_, client):
            summary = run_plan(plan, client)
        assert summary.exit_code == 0
        records = Ledger(RunFolder(plan.recipe.output.path).path).latest()
        states = [records[plan.only.name_block(block)].state for block in plan.only.blocks]
        world.first_mapped = 1 + states.index("done")
        world.expected = digest(str(folder / "undisturbed.zarr"))
        world.blocks, world.mapped = summary.planned, summary.states["done"]
        return world

    def tell(self, fault: str, times: int, end: str, seconds: float) -> None:
        """Add a line to the table, of runs that :meth:`Driver.check` has passed."""
        self.rows.append((fault, str(times), str(self.blocks), end, "yes", f"{seconds:.0f}"))


class Driver:
    """``bigmap run --resume`` as a process; its blocks wait at its gate if it has one."""

    def __init__(self, world: World, output: Path, gate: Gate | None = None, **changes) -> None:
        self.world, self.output = world, output
        if gate is not None:
            changes["model"] = gate.model
        recipe = world.folder / f"{output.stem}.yaml"
        recipe.write_text(yaml.safe_dump(make_raw(world.folder, output, **changes)))
        self.log = world.folder / f"{output.stem}.log"
        self.bigmap = ["-m", "bigmap.cli"]
        self.options = ["run", str(recipe), "--resume"]

    def start(self, *options: str) -> Driver:
        path = f"{self.world.folder / 'packages'}:{ROOT}"
        impatient, late = (str(self.world.folder / name) for name in ("impatient", "late"))
        with self.log.open("a") as log:
            self.process = psutil.Popen(
                [sys.executable, *self.bigmap, *self.options, *options],
                cwd=self.world.folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": path, "BIGMAP_TEST_IMPATIENT": impatient,
                     "BIGMAP_TEST_LATE": late},
            )  # fmt: skip
        return self

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes of a local cluster."""
        found = []
        for child in self.process.children(recursive=True):
            try:
                words = " ".join(child.cmdline())
            except psutil.NoSuchProcess:
                continue
            # The dask worker's own children, if any, are none.
            if "spawn_main" in words and child.ppid() == self.process.pid:
                found.append(child)
        return found

    def recorded(self) -> int:
        return count_records(str(self.output))

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_until(self, is_so: Callable[[], bool], *, limit_s: float = 600) -> None:
        deadline = time.monotonic() + limit_s
        while not is_so():
            assert self.is_running(), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def finish(self, *, limit_s: float = 600) -> int:
        try:
            return self.process.wait(limit_s)
        except psutil.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still running\n{self.said()}") from None

    def said(self) -> str:
        return self.log.read_text()

    def last_line(self) -> str:
        return self.said().strip().splitlines()[-1]

    def check(self) -> None:
        """See that the map is that of an undisturbed run, with nothing lost and nothing left."""
        assert digest(str(self.output)) == self.world.expected
        records = Ledger(RunFolder(str(self.output)).path).latest()
        assert len(records) == self.world.blocks
        assert {record.state for record in records.values()} <= {"done", "empty"}
        left = [file for file in self.output.rglob("*") if "partial" in file.name]
        assert not left, left


def kill_workers(world: World, times: int, rng: random.Random, *, most: int = 5) -> None:
    """Kill workers at random moments, a few in each run."""
    start, left, runs = time.monotonic(), times, 0
    while left:
        gate = Gate(world.folder / f"{times}-workers-{runs}.gate")
        driver = Driver(world, world.folder / f"{times}-workers-{runs}.zarr", gate).start()
        runs += 1
        kills = min(left, most)
        driver.wait_until(lambda gate=gate: bool(gate.waiting_pids()))
        for _ in range(kills):
            # Some blocks more may pass before each kill, and the last ones after all of them, so
            # that no run ends before its last kill.
            gate.let(world.mapped // (kills + 1))
            driver.wait_until(lambda driver=driver: bool(driver.workers()))
            time.sleep(rng.uniform(0, 2))
            driver.wait_until(lambda driver=driver: bool(driver.workers()))
            rng.choice(driver.workers()).kill()
        left -= kills
        gate.open()
        assert driver.finish() == 0, driver.said()
        driver.check()
    world.tell("SIGKILL of a worker", times, f"done, in {runs} runs", time.monotonic() - start)


def kill_drivers(world: World, times: int, rng: random.Random, *, most: int = 5) -> None:
    """Kill drivers at random moments, and resume each time."""
    start, left, maps = time.monotonic(), times, 0
    while left:
        gate = Gate(world.folder / f"{times}-drivers-{maps}.gate")
        driver = Driver(world, world.folder / f"{times}-drivers-{maps}.zarr", gate)
        maps += 1
        kills = min(left, most)
        for number in range(kills):
            before = driver.recorded()
            driver.start()
            # Every third one soon after its start: while it plans or makes the map.
            if number % 3:
                gate.let(world.mapped // (kills + 1))
                driver.wait_until(lambda driver=driver, before=before: driver.recorded() > before)
                time.sleep(rng.uniform(0, 0.5))
            else:
                time.sleep(rng.uniform(1, 6))
            assert driver.is_running(), driver.said()
            workers = driver.workers()
            driver.process.send_signal(signal.SIGKILL)
            driver.process.wait()
            _gone, alive = psutil.wait_procs(workers, timeout=120)
            assert not alive, "workers of a dead driver go too"
        left -= kills
        gate.open()
        assert driver.start().finish() == 0, driver.said()
        driver.check()
    world.tell("SIGKILL of the driver, then --resume", times, f"done, in {maps} maps",
               time.monotonic() - start)  # fmt: skip


@contextmanager
def start_scheduler(world: World) -> Iterator[tuple[str, int]]:
    """Start a scheduler and two workers, each a process; yields address and the former's id."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    env = {"PYTHONPATH": f"{world.folder / 'packages'}:{ROOT}"}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1",
              "--memory-limit", "3GB", "--host", "127.0.0.1", "--no-dashboard",
              "--death-timeout", "20"]  # fmt: skip
    with ExitStack() as stack:
        scheduler = stack.enter_context(
            running([*dask, "--port", str(port), "--no-dashboard"], env=env, log=world.folder / "s",
                    ready=lambda: accepts_connections(port))
        )  # fmt: skip
        for name in "ab":
            stack.enter_context(
                running(worker, log=world.folder / name, ready=lambda: True, env=env)
            )
        yield address, scheduler.pid


def kill_scheduler(world: World, rng: random.Random) -> None:
    """Kill the scheduler of an existing cluster, and go on with another one."""
    start = time.monotonic()
    output = world.folder / "scheduler.zarr"
    gate = Gate(world.folder / "scheduler.gate")
    gate.let(world.mapped // 2)
    for is_first in (True, False):
        with start_scheduler(world) as (address, pid):
            place = {"kind": "existing", "address": address}
            driver = Driver(world, output, gate, cluster=place).start()
            if is_first:
                driver.wait_until(lambda driver=driver: driver.recorded() > 0)
                time.sleep(rng.uniform(0, 1))
                os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                assert driver.finish() == 75, driver.said()
                ended_s = time.monotonic() - killed
                assert "Traceback" not in driver.said()
                assert "bigmap: the cluster was lost" in driver.last_line()
                assert 0 < driver.recorded() < world.blocks
            else:
                gate.open()
                assert driver.finish() == 0, driver.said()
    driver.check()
    world.tell("SIGKILL of the scheduler of an existing cluster", 1,
               f"exit 75 after {ended_s:.0f} s; resumed on a new one",
               time.monotonic() - start)  # fmt: skip


def starve_worker(world: World, *, meals: int, name: str) -> None:
    """Have blocks take all the memory of their workers, so often."""
    start = time.monotonic()
    file = world.folder / name
    file.write_text(str(meals))
    driver = Driver(
        world, world.folder / f"{name}.zarr",
        model={"name": "hungry", "options": {"upscale": 2, "meals": str(file)}},
        cluster={"workers": 1, "blocks_per_worker": 1, "memory_gb": 1.5},
    )  # fmt: skip
    if meals < 10:
        assert driver.start().finish() == 0, driver.said()
        assert "its worker has left or was lost; sent again" in driver.said()
        end = "done again"
    else:
        assert driver.start("--limit", str(world.first_mapped)).finish() == 3, driver.said()
        assert "workers were lost while they had it; raise cluster.memory_gb" in driver.said()
        assert int(file.read_text()) == meals - 10
        file.write_text("0")
        assert driver.start().finish() == 0, driver.said()
        end = "exit 3 naming the block and cluster.memory_gb; done with --resume"
    assert int(file.read_text()) == 0
    driver.check()
    world.tell("worker out of memory", min(meals, 10), end, time.monotonic() - start)


def stop_worker(world: World, rng: random.Random) -> None:
    """Let a worker hang, as SIGSTOP does."""
    start = time.monotonic()
    gate = Gate(world.folder / "hangs.gate")
    driver = Driver(world, world.folder / "hangs.zarr", gate)
    driver.bigmap = ["-c", START]
    driver.start()
    driver.wait_until(lambda: len(gate.waiting_pids()) == 2)
    workers = driver.workers()
    assert {worker.pid for worker in workers} == gate.waiting_pids(), "each has a block in hand"
    worker = rng.choice(workers)
    worker.send_signal(signal.SIGSTOP)
    (world.folder / "impatient").touch()
    driver.wait_until(lambda: not worker.is_running())
    (world.folder / "impatient").unlink()
    gate.open()
    assert driver.finish() == 0, driver.said()
    driver.check()
    world.tell(f"worker that hangs (SIGSTOP; waited for {PATIENCE_S} s, not 120)", 1,
               "ended and replaced", time.monotonic() - start)  # fmt: skip


def read_records(folder: Path) -> dict[Path, bytes]:
    """Return all files of a run folder but the leases, each of which is its holder's own."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent.name != "lease"]
    return {file: file.read_bytes() for file in files}


def stop_driver(world: World) -> None:
    """Stop a driver, as SIGSTOP or a lost network does, and let it go on after its successor."""
    start = time.monotonic()
    gate = Gate(world.folder / "stopped.gate")
    output = world.folder / "stopped.zarr"
    driver = Driver(world, output, gate).start()
    gate.let(world.mapped // 2)
    driver.wait_until(lambda: driver.recorded() > 0 and bool(gate.waiting_pids()))
    driver.process.send_signal(signal.SIGSTOP)
    gate.open()  # Its workers go on with what they have, and may not write it.
    other = Driver(world, output, gate)
    other.log, other.bigmap = world.folder / "successor.log", ["-c", START_SUCCESSOR]
    assert other.start().finish() == 0, other.said()
    assert f"process {driver.process.pid} on" in other.said()
    assert "may still write here; watching it for 3 s" in other.said()
    folder = Path(RunFolder(str(output)).path)
    before = read_records(folder)
    driver.process.send_signal(signal.SIGCONT)
    assert driver.finish() == 2, driver.said()
    assert "Traceback" not in driver.said()
    last = driver.last_line()
    assert "took this output over" in last or "belongs to another driver by now" in last, last
    assert read_records(folder) == before, "nothing of the run folder is the old one's"
    assert RunFolder(str(output)).part("").has_overviews()
    driver.check()
    world.tell("driver stopped (SIGSTOP), continued after its successor", 1,
               "the successor's map; the old one ends with exit 2",
               time.monotonic() - start)  # fmt: skip


def fill_disk(world: World) -> None:
    """Let the disk of the output be too small, then larger."""
    start = time.monotonic()
    place = world.folder / "disk"
    place.mkdir()
    mount = shutil.which("mount") or "/usr/bin/mount"
    subprocess.run([mount, "-t", "tmpfs", "-o", "size=900k", "tmpfs", place], check=True)
    try:
        driver = Driver(world, place / "full.zarr").start()
        code = driver.finish()
        assert code in {2, 3}, driver.said()
        assert "No space left on device" in driver.said()
        assert "Traceback" not in driver.said()
        assert driver.recorded() < world.blocks
        subprocess.run([mount, "-o", "remount,size=64m", place], check=True)
        assert driver.start().finish() == 0, driver.said()
        driver.check()
    finally:
        subprocess.run(["umount", place], check=True)
    world.tell("disk full at the output, then freed", 1, f"exit {code} with its reason; resumed",
               time.monotonic() - start)  # fmt: skip


def start_second_driver(world: World) -> None:
    """Start another driver on an output that is being written."""
    start = time.monotonic()
    gate = Gate(world.folder / "two.gate")
    driver = Driver(world, world.folder / "two.zarr", gate).start()
    driver.wait_until(lambda: bool(gate.waiting_pids()))
    other = Driver(world, world.folder / "two.zarr", gate)
    other.log = world.folder / "second.log"
    code = other.start().finish()
    gate.open()
    assert code == 2, other.said()
    assert f"another run (process {driver.process.pid} on" in other.last_line()
    assert driver.finish() == 0, driver.said()
    driver.check()
    world.tell("second driver on one output", 1, "refused with exit 2; the first goes on",
               time.monotonic() - start)  # fmt: skip


def overtake_driver(world: World) -> None:
    """Let a driver that found its output free be slower than another, which finishes its map."""
    start = time.monotonic()
    output, late = world.folder / "overtaken.zarr", world.folder / "late"
    driver = Driver(world, output)
    driver.bigmap, driver.options = ["-c", START_LATE], driver.options[:-1]
    driver.start()
    driver.wait_until(late.exists)
    other = Driver(world, output)
    other.log, other.options = world.folder / "overtaking.log", driver.options
    assert other.start().finish() == 0, other.said()
    folder = Path(RunFolder(str(output)).path)
    before = read_records(folder)
    late.unlink()
    assert driver.finish() == 2, driver.said()
    assert "exists; add --resume to go on with it or --overwrite" in driver.last_line()
    assert read_records(folder) == before
    driver.check()
    world.tell("another driver finishes the map before the first has its lease", 1,
               "the faster one's map; the slower is refused with exit 2",
               time.monotonic() - start)  # fmt: skip
