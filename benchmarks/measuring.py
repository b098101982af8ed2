"""What all benchmarks share: measured processes, the machine, and files of results."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import rasterio

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "maps" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"
QUICK_RESULTS = ROOT / "build" / "benchmarks"
SAMPLE_S = 0.2
PACKAGES = (
    "bigmap", "dask", "distributed", "numpy", "pyproj", "rasterio", "scipy", "stackstac", "torch",
    "xarray", "zarr",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One finished process."""

    seconds: float
    """From start to end, imports included."""
    peak_bytes: int
    """Most memory of it and all its children together, shared pages counted once."""
    output: str
    """What it wrote to standard output."""
    user_s: float
    """Processor time of it and all its children, in the program."""
    system_s: float
    """The same, in the system."""


def run_measured(command: Sequence[str], log: Path) -> Measured:
    """Run a command and watch its memory.

    Raises
    ------
    RuntimeError
        If it fails; its messages are in the log.
    """
    with log.open("w") as errors, log.with_suffix(".out").open("w+") as output:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = psutil.Popen(command, stdout=output, stderr=errors, cwd=ROOT)
        peak = 0
        while True:
            peak = max(peak, count_tree_bytes(process))
            try:
                process.wait(SAMPLE_S)
                break
            except psutil.TimeoutExpired:
                continue
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, see {log}")
        user_s, system_s = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        return Measured(seconds, peak, output.read(), user_s, system_s)


def run_in_turn(
    commands: Mapping[str, Sequence[str]], folder: Path, *, pairs: int
) -> dict[str, list[Measured]]:
    """Run commands in turn (A B A B ...), once unmeasured: then files lie in memory.

    Parameters
    ----------
    commands
        By who they are; logs in the folder have their names.
    folder
        For the logs.
    pairs
        Measured runs of each.
    """
    runs: dict[str, list[Measured]] = {who: [] for who in commands}
    for number in range(pairs + 1):
        for who, command in commands.items():
            measured = run_measured(command, folder / f"{who}.log")
            sys.stderr.write(f"{folder.name} {who} {number}: {measured.seconds:.1f} s\n")
            if number:
                runs[who].append(measured)
    return runs


def count_tree_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and all its children, shared pages counted once."""
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += _own_bytes(member)
    except psutil.Error:
        pass
    return total


def _own_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
    except psutil.Error:
        return 0
    # Only Linux divides shared pages among those who share them.
    return int(getattr(memory, "pss", memory.rss))


@contextmanager
def watch_memory() -> Iterator[list[int]]:
    """Watch the memory of this process and its children; yields a list of one number, the peak."""
    peak, stop = [0], threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak[0] = max(peak[0], count_tree_bytes(psutil.Process()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def describe_machine() -> dict[str, Any]:
    """Return hardware, system, versions and commit, without the name of machine or user."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "python": platform.python_version(),
        "versions": versions | {"gdal": rasterio.__gdal_version__},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed_files": len(
            _git("status", "--porcelain", "--", "bigmap", "benchmarks/*.py").splitlines()
        ),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return platform.platform(terse=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def machine_kind(machine: Mapping[str, Any]) -> str:
    """Return a name for files, such as ``2-core-amd-epyc``."""
    words = re.sub(r"\(.*?\)|@.*|\b\d+-core\b|\bprocessor\b|\bcpu\b", " ", machine["cpu"].lower())
    return f"{machine['cores']}-core-" + "-".join(re.findall(r"[a-z0-9]+", words))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and greatest of some values."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return, for each pair of runs, how many times as long theirs took as ours."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a Markdown table; all but the first column are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def format_spread(values: Mapping[str, float], digits: int = 1) -> str:
    """Write a median with its least and greatest value."""
    return "{median:,.{d}f} ({min:,.{d}f} to {max:,.{d}f})".format(**values, d=digits)


def describe_in_words(machine: Mapping[str, Any]) -> str:
    """Write the machine as lines of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    changed = machine["changed_files"]
    return (
        f"- {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB of memory; "
        f"load before the start {machine['load_before']}\n"
        f"- {machine['distribution']}, {machine['system']}, Python {machine['python']}\n"
        f"- {versions}\n"
        f"- commit {machine['commit']}" + (" with uncommitted changes" if changed else "")
    )


def write_results(
    name: str, title: str, body: str, results: Mapping[str, Any], *, quick: bool
) -> Path:
    """Write the results of one benchmark as JSON and Markdown; return the latter.

    A quick trial goes elsewhere, so that nobody takes it for a measurement.
    """
    folder = QUICK_RESULTS if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    machine = results["machine"]
    today = dt.datetime.now(dt.UTC).date()
    stem = folder / f"{name}-{today}-{machine_kind(machine)}"
    text = f"# {title}, {today}\n\n{describe_in_words(machine)}\n\n{body}\n"
    Path(f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = Path(f"{stem}.md")
    page.write_text(text)
    sys.stdout.write(f"{text}\n{page.relative_to(ROOT)}\n")
    return page
