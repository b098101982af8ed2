"""What the driver and its scheduler cost per block, and how soon a killed run works again."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

import bigmap
from benchmarks.measuring import ROOT, WORK, describe_machine, table, write_results
from bigmap.clusters import open_cluster
from bigmap.config import parse_recipe
from bigmap.config.cluster import LocalCluster
from bigmap.grid import ROI
from bigmap.mapping.blocks import BlockJob, name_block
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.places import Attempt
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.running import run_plan
from bigmap.scenes.items import ItemRow
from tests.integration.tiny_scenes import write_tiny_scenes

SIZES = (1_000, 10_000, 100_000)
KILL_SHARE = 0.6
SLOTS = 16
"""Blocks that the one worker has in hand: with more than a laptop's, as a continent would have."""
MARK_EVERY = 500


def do_nothing(job: BlockJob, block: ROI, rows: Sequence[ItemRow]) -> BlockRecord:
    """Write one object of a few bytes, so that a resumed run has as many to look for."""
    assert len(rows) >= 0
    name = name_block(job.lattice, block)
    row, _, column = name[1:].partition("c")
    key = f"class/c/{row}/{column}"
    file = Path(job.output, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"nothing")
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    seconds = {"mask": 0.0, "read": 0.0, "predict": 0.0, "write": 0.0}
    return BlockRecord(name, "done", ("2024-05-03", "2024-05-08"), seconds=seconds,
                       shards=((key, 7),), finished=now)  # fmt: skip


class Marks(SilentReporter):
    """Notes time, processor time and memory of this process as blocks finish; may kill it."""

    def __init__(self, out: Path, kill_at: int) -> None:
        self.out, self.kill_at = out, kill_at
        self.process = psutil.Process()
        self.finished = 0
        self.marks: list[dict[str, float]] = []

    def start(self, part: Part, todo: int, recorded: Any) -> None:
        """Note when the driver is about to send blocks."""
        del part, recorded
        self.mark(todo=todo)

    def add(self, record: BlockRecord) -> None:
        """Note every so many blocks; kill this process when its time has come."""
        del record
        self.finished += 1
        is_last = self.finished == self.kill_at
        if self.finished == 1 or self.finished % MARK_EVERY == 0 or is_last:
            self.mark()
        if is_last:
            self.save()
            os.kill(os.getpid(), signal.SIGKILL)

    def mark(self, **more: float) -> None:
        """Note this moment."""
        age_s = time.time() - self.process.create_time()
        rss = self.process.memory_info().rss
        self.marks.append({"blocks": self.finished, "age_s": age_s, "cpu_s": time.process_time(),
                           "rss_mb": rss / 1e6, **more})  # fmt: skip

    def save(self) -> None:
        """Write what was noted."""
        self.out.write_text(json.dumps(self.marks))


def make_plan(folder: Path) -> Plan:
    """Plan a map of tiny blocks, more than are wanted."""
    items = folder / "scenes" / "items.json"
    if not items.exists():
        write_tiny_scenes(items.parent)
    return bigmap.plan(parse_recipe({
        "name": "scale", "area": {"bbox": [2.0, 41.0, 3.5, 42.1]},
        "grid": {"crs": "EPSG:25831", "gsd_m": 10, "core_px": 8, "cell_px": 8,
                 "block_px": 32, "shard_px": 8, "chunk_px": 8},
        "source": {"kind": "files", "files": [str(items)], "start": "2024-05-01",
                   "end": "2024-05-31"},
        "model": {"name": "ndvi", "options": {"upscale": 1}},
        "output": {"path": str(folder / "map.zarr"), "overviews": 0},
    }))  # fmt: skip


def drive(folder: str, blocks: int, kill_at: int, *, resume: bool) -> None:
    """Run in this process, which is driver and scheduler, with one worker process."""
    plan = make_plan(Path(folder))
    marks = Marks(Path(folder) / "marks.json", kill_at)
    with open_cluster(LocalCluster(workers=1, blocks_per_worker=SLOTS, memory_gb=4)) as client:
        summary = run_plan(
            plan, client, Attempt(limit=blocks, resume=resume), reporter=marks, task=do_nothing
        )
    marks.save()
    assert not summary.missing_shards
    assert summary.states["done"] == summary.planned


def measure(folder: Path, blocks: int, *, kill_at: int = 0, resume: bool = False) -> list[Any]:
    """Run so many blocks in a process of its own; return its marks."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"drive({str(folder)!r}, {blocks}, {kill_at}, resume={resume})"
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks.scale import drive; {code}"], check=False, cwd=ROOT
    )
    expected = -signal.SIGKILL if kill_at else 0
    if done.returncode != expected:
        raise RuntimeError(f"{blocks} blocks ended with {done.returncode}, not {expected}")
    marks: list[Any] = json.loads((folder / "marks.json").read_text())
    return marks


def per_block_ms(marks: Sequence[Any], key: str, first: int, last: int) -> float:
    """Return the milliseconds per block between two counts of blocks."""
    by_count = {mark["blocks"]: mark[key] for mark in marks}
    return 1000 * float(by_count[last] - by_count[first]) / (last - first)


def summarise(marks: Sequence[Any]) -> dict[str, float]:
    """Return the figures of an undisturbed run."""
    counts = [mark["blocks"] for mark in marks]
    memory = {mark["blocks"]: mark["rss_mb"] for mark in marks}
    last, step = counts[-1], min(1000, counts[-1] // 2)
    settled = [memory[count] for count in counts if count >= min(1000, last)]
    return {
        "blocks": last,
        "early_ms": per_block_ms(marks, "age_s", step, 2 * step),
        "late_ms": per_block_ms(marks, "age_s", last - step, last),
        "mean_ms": per_block_ms(marks, "age_s", counts[1], last),
        "early_cpu_ms": per_block_ms(marks, "cpu_s", step, 2 * step),
        "late_cpu_ms": per_block_ms(marks, "cpu_s", last - step, last),
        "mean_cpu_ms": per_block_ms(marks, "cpu_s", counts[1], last),
        "rss_mb": settled[0],
        "growth_mb": max(settled) - settled[0],
    }


def measure_resume(folder: Path, blocks: int) -> dict[str, float]:
    """Kill a run, resume it for as many blocks as a mark needs, and time its start."""
    kill_at = int(KILL_SHARE * blocks)
    measure(folder, blocks, kill_at=kill_at)
    marks = measure(folder, MARK_EVERY, resume=True)
    first = next(mark for mark in marks if mark["blocks"] == 1)
    return {"killed_at": kill_at, "first_block_s": first["age_s"], "rss_mb": marks[-1]["rss_mb"]}


def main(arguments: list[str]) -> None:
    """Run more and more blocks, once undisturbed and once killed and resumed."""
    parser = argparse.ArgumentParser(prog="scale")
    parser.add_argument("--quick", action="store_true", help="a trial, not a result")
    options, _ = parser.parse_known_args(arguments)
    machine = describe_machine()
    runs = []
    for blocks in SIZES[:2] if options.quick else SIZES:
        folder = WORK / f"scale-{blocks}"
        shutil.rmtree(folder, ignore_errors=True)
        whole = summarise(measure(folder, blocks))
        shutil.rmtree(folder, ignore_errors=True)
        runs.append(whole | {"resume": measure_resume(folder, blocks)})
        shutil.rmtree(folder, ignore_errors=True)
    load = os.getloadavg()[1]
    body = describe(runs, load)
    write_results("scale", "Blocks by the hundred thousand", body,
                  {"machine": machine, "load_5min": load, "runs": runs},
                  quick=options.quick)  # fmt: skip


def describe(runs: Sequence[Any], load: float) -> str:
    """Write the figures as text and a table."""
    rows = [
        (f"{run['blocks']:,}", f"{run['mean_cpu_ms']:.1f}",
         f"{run['early_cpu_ms']:.1f} / {run['late_cpu_ms']:.1f}", f"{run['mean_ms']:.1f}",
         f"{run['rss_mb']:.0f}", f"{run['growth_mb']:.0f}",
         f"{run['resume']['killed_at']:,}", f"{run['resume']['first_block_s']:.1f}")
        for run in runs
    ]  # fmt: skip
    header = ("blocks", "CPU ms per block", "second / last thousand", "ms per block",
              "MB at 1,000", "MB more at most", "killed at", "first block again, s")  # fmt: skip
    return (
        "A task that writes one object of seven bytes and nothing else. One process is driver and "
        f"scheduler, one more the worker, with {SLOTS} blocks in hand; once each. CPU time is that "
        "of driver and scheduler together; the time per block includes the worker's share and "
        f"whatever else ran: the machine's load was {load:.1f} at the end. Memory is the driver's "
        "process. After SIGKILL at the block given, the time from the start of the new process, "
        "imports and planning included, to the first block that is done.\n\n" + table(header, rows)
    )
