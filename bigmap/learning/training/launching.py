"""Several processes on this machine: started, watched, and ended together.

PyTorch's torchrun does as much, but it listens on all interfaces, passes no SIGUSR1 on, and has
one exit code for all failures; where a user starts training by it, that works too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from bigmap import errors
from bigmap.clusters.ranks import LOOPBACK
from bigmap.config import Recipe
from bigmap.errors import BigmapError, LostRankError, TrainingError
from bigmap.learning.training.progress import TrainingReporter
from bigmap.learning.training.ranks import STORE_VARIABLE
from bigmap.learning.training.relaying import relay
from bigmap.learning.training.standing import TrainingSummary
from bigmap.machine import ALLOCATOR, count_cores

POLL_S = 0.1
GRACE_S = 3.0
"""For which the others may still say what has happened, once one process has gone."""


@dataclass
class Child:
    """One process."""

    rank: int
    process: subprocess.Popen[str]
    error: tuple[str, str] | None = None
    """Kind and message, where it ended by an error that a user can act on."""
    is_killed: bool = False
    """Whether we ended it."""

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self.process.poll()


@dataclass
class Group:
    """All processes and what they have said."""

    reporter: TrainingReporter
    children: list[Child] = field(default_factory=list)
    lines: queue.SimpleQueue[tuple[Child, str]] = field(default_factory=queue.SimpleQueue)
    readers: list[threading.Thread] = field(default_factory=list)
    summary: TrainingSummary | None = None

    def add(self, child: Child) -> None:
        """Watch a process."""
        assert child.process.stdout is not None
        reader = threading.Thread(
            target=self._read, args=(child, child.process.stdout), daemon=True
        )
        self.children.append(child)
        self.readers.append(reader)
        reader.start()

    def _read(self, child: Child, stream: IO[str]) -> None:
        for line in stream:
            self.lines.put((child, line))

    def listen(self) -> None:
        """Take what processes have said since."""
        while not self.lines.empty():
            child, line = self.lines.get()
            try:
                message = json.loads(line)
            except ValueError:
                self.reporter.note(line.rstrip())
                continue
            if "error" in message:
                child.error = (message["error"]["kind"], message["error"]["message"])
            elif "summary" in message:
                self.summary = TrainingSummary(**message["summary"])
            else:
                relay(message, self.reporter)

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Wait until all have ended; when one fails, end the others."""
        told, failed_at = False, 0.0
        while any(child.code is None for child in self.children):
            self.listen()
            if should_stop() and not told:
                told = True
                self._send(signal.SIGTERM)
            if not failed_at and any(child.code not in (None, 0, 75) for child in self.children):
                failed_at = time.monotonic()
            if failed_at and time.monotonic() - failed_at > GRACE_S:
                self.kill()
            time.sleep(POLL_S)
        for reader in self.readers:
            reader.join(GRACE_S)
        self.listen()

    def _send(self, number: signal.Signals) -> None:
        for child in self.children:
            if child.code is None:
                child.process.send_signal(number)

    def kill(self) -> None:
        """End what still runs."""
        for child in self.children:
            if child.code is None:
                child.is_killed = True
                child.process.kill()

    def explain(self) -> TrainingSummary:
        """Return the summary, or raise what ended the processes.

        Raises
        ------
        BigmapError
            What one of them said.
        LostRankError
            If one was killed.
        RuntimeError
            If one failed in a way that is a fault of bigmap.
        """
        world = len(self.children)
        for child in self.children:
            code = child.code
            if code is not None and code < 0 and not child.is_killed:
                raise LostRankError(
                    f"process {child.rank} of {world} was ended by {signal.Signals(-code).name}; "
                    "go on with the same command and --resume"
                )
        said = [child.error for child in self.children if child.error is not None]
        said.sort(key=lambda each: each[0] == LostRankError.__name__)
        if said and not all(child.code in (0, 75) for child in self.children):
            kind, message = said[0]
            raise find_error(kind)(message)
        failed = [child.rank for child in self.children if child.code not in (0, 75)]
        if failed:
            raise RuntimeError(f"process {failed[0]} of {world} failed; it said why above")
        if self.summary is None:
            raise RuntimeError("no process has said what training came to")
        return self.summary


def find_error(kind: str) -> type[BigmapError]:
    """Return an error of ours by its name."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, BigmapError):
        return found
    return TrainingError


def launch(
    recipe: Recipe,
    *,
    processes: int,
    resume: bool,
    overwrite: bool,
    reporter: TrainingReporter,
    should_stop: Callable[[], bool],
) -> TrainingSummary:
    """Train by several processes on this machine; they meet on loopback.

    A process that is lost ends the others; all of them end with this one.

    Raises
    ------
    LostRankError
        If one of them is lost; the run can be resumed.
    BigmapError
        What one of them says.
    """
    job = {"recipe": recipe.model_dump(mode="json"), "resume": resume, "overwrite": overwrite}
    group = Group(reporter)
    try:
        with socket.create_server((LOOPBACK, 0)) as listener:
            for rank in range(processes):
                group.add(Child(rank, _start(rank, processes, listener, json.dumps(job))))
        group.wait(should_stop)
    finally:
        group.kill()
        for child in group.children:
            child.process.wait()
            for stream in (child.process.stdin, child.process.stdout):
                if stream is not None:
                    stream.close()
        reporter.finish()
    return group.explain()


def _start(rank: int, world: int, listener: socket.socket, job: str) -> subprocess.Popen[str]:
    environment = (
        ALLOCATOR
        | os.environ
        | {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(listener.getsockname()[1]),
            STORE_VARIABLE: str(listener.fileno()),
        }
    )
    environment.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // world)))
    process = subprocess.Popen(
        [sys.executable, "-m", "bigmap.learning.training"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        pass_fds=(listener.fileno(),) if rank == 0 else (),
    )  # fmt: skip
    assert process.stdin is not None
    # The pipe stays open: its end tells the process that this one has gone.
    # If it has gone already, its exit code says so.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job + "\n")
        process.stdin.flush()
    return process
