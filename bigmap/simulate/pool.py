"""Hand work to processes of this machine, one task at a time to each.

Threads gain little here, as much of the work holds the interpreter. ``multiprocessing`` would
import the caller's main module again, and so run a script without a guard once more in every
process; these processes know nothing of their caller. They take lines of JSON and answer each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

import bigmap.errors
from bigmap.errors import RunError

# Ctrl-C reaches the whole group of processes; the caller alone then ends the others. The public
# names of the packages would load torch and pandas, which takes longer than a small request, so
# the packages stay without them.
_PROGRAM = """\
import signal, sys, types
signal.signal(signal.SIGINT, signal.SIG_IGN)
for name, folder in zip(("bigmap", "bigmap.simulate"), sys.argv[1:]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from bigmap.simulate.worker import serve_tasks
serve_tasks()
"""
_ENVIRONMENT = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
) | {
    # Arrays of 10 MB come and go. By default glibc returns each to the system, and processes
    # then wait for each other's page faults: two of them took half as long again for a part.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_tasks(setup: dict[str, Any], tasks: Sequence[Any], *, processes: int) -> None:
    """Let processes do tasks, each the next one when it has finished its last.

    Parameters
    ----------
    setup
        What all tasks have in common, as JSON holds it; see :mod:`bigmap.simulate.worker`.
    tasks
        As JSON holds them.
    processes
        How many processes to start, each of one thread.

    Raises
    ------
    BigmapError
        The first that a task has raised; the rest is given up, and no process stays behind.
    """
    with _start_processes(setup, processes) as started, ThreadPoolExecutor(processes) as pool:
        idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for process in started:
            idle.put(process)

        def run(task: object) -> None:
            process = idle.get()
            try:
                _ask(process, task)
            finally:
                idle.put(process)

        futures = [pool.submit(run, task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _end(started)  # a thread waits for each of them
            raise


@contextmanager
def _start_processes(setup: dict[str, Any], count: int) -> Iterator[list[subprocess.Popen[str]]]:
    package = Path(bigmap.errors.__file__).parent
    # -P: modules in the current folder must not stand in for those of the library.
    folders = [str(package), str(package / "simulate")]
    command = [sys.executable, "-P", "-c", _PROGRAM, *folders]
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen(  # noqa: S603 - a program of our own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | _ENVIRONMENT,
            )
            started.append(process)
            _write_line(process.stdin, setup)
        yield started
    finally:
        _end(started)
        for process in started:
            process.communicate()


def _ask(process: subprocess.Popen[str], task: object) -> None:
    """Let a process do a task; raise here what it raised there."""
    _write_line(process.stdin, task)
    answer = process.stdout.readline() if process.stdout else ""
    if not answer:
        raise RunError(
            f"a process that simulates scenes ended with code {process.wait()}, perhaps for lack "
            "of memory; start again, what it has written is kept"
        )
    error = json.loads(answer)
    if error is not None:
        raise getattr(bigmap.errors, error["kind"])(error["message"])


def _write_line(stream: IO[str] | None, content: object) -> None:
    assert stream is not None
    try:
        stream.write(json.dumps(content) + "\n")
        stream.flush()
    except BrokenPipeError:
        return  # it has ended, which the missing answer tells


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ask processes to end; they remove what they have half written."""
    for process in processes:
        process.terminate()
