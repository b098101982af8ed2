"""Hand work to processes of this machine, one task at a time to each.

Threads gain little here, as much of the work holds the interpreter. ``multiprocessing`` would
import the caller's main module again, and so run a script without a guard once more in every
process; these processes know nothing of their caller. They take pickled tasks and answer each
with a line of JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO

import bigmap.errors
from bigmap.errors import RunError
from bigmap.machine import ALLOCATOR

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
_ENVIRONMENT = (
    dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | ALLOCATOR
)


def run_tasks(setup: object, tasks: Sequence[object], *, processes: int) -> None:
    """Let processes do tasks, each the next one when it has finished its last.

    Parameters
    ----------
    setup
        What all tasks have in common; see :mod:`bigmap.simulate.worker`.
    tasks
        What :mod:`bigmap.simulate.worker` takes.
    processes
        How many processes to start, each of one thread.

    Raises
    ------
    BigmapError
        The first that a task has raised; the rest is given up, and no process stays behind.
    """
    with start_pool(setup, processes) as pool, ThreadPoolExecutor(processes) as threads:
        futures = [threads.submit(pool.do, task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            pool.stop()  # a thread waits for each process
            raise


class Pool:
    """Processes that wait for tasks."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes = processes
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in processes:
            self._idle.put(process)

    def do(self, task: object) -> None:
        """Let the first process that is idle do a task; any thread may call this.

        Raises
        ------
        BigmapError
            What the task has raised, or that the process has ended.
        """
        process = self._idle.get()
        try:
            _ask(process, task)
        finally:
            self._idle.put(process)

    def stop(self) -> None:
        """Ask the processes to end; they remove what they have half written."""
        for process in self._processes:
            process.terminate()


@contextmanager
def start_pool(setup: object, processes: int) -> Iterator[Pool]:
    """Start processes and end them; for arguments see :func:`run_tasks`.

    At the end they are waited for; after an error they are asked to end at once.
    """
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            process = _start_process()
            started.append(process)
            _send(process.stdin, setup)
        yield Pool(started)
    except BaseException:
        Pool(started).stop()
        raise
    finally:
        for process in started:
            process.communicate()


def _start_process() -> subprocess.Popen[bytes]:
    package = Path(bigmap.errors.__file__).parent
    # -P: modules in the current folder must not stand in for those of the library.
    return subprocess.Popen(  # noqa: S603 - a program of our own
        [sys.executable, "-P", "-c", _PROGRAM, str(package), str(package / "simulate")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | _ENVIRONMENT,
    )


def _ask(process: subprocess.Popen[bytes], task: object) -> None:
    """Let a process do a task; raise here what it raised there."""
    _send(process.stdin, task)
    answer = process.stdout.readline() if process.stdout else b""
    if not answer:
        raise RunError(
            f"a process that simulates scenes ended with code {process.wait()}, perhaps for lack "
            "of memory; start again, what it has written is kept"
        )
    error = json.loads(answer)
    if error is not None:
        raise getattr(bigmap.errors, error["kind"])(error["message"])


def _send(stream: IO[bytes] | None, content: object) -> None:
    assert stream is not None
    try:
        stream.write(pickle.dumps(content))
        stream.flush()
    except BrokenPipeError:
        return  # it has ended, which the missing answer tells
