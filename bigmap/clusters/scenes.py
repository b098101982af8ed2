"""Simulated scenes that a run's workers render."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distributed import Client

from bigmap.clusters.driving import drive
from bigmap.clusters.tasks import Policy, Task, Tell, Work
from bigmap.errors import RunError
from bigmap.simulate import SceneRequest, SceneTask, split_tasks, start_pool

RENDERING_BYTES = 0.9e9
"""Of a process that renders scenes, at most."""
KEPT = "start again, what is written is kept"


class _ScenePool(Work[None]):
    """Processes beside a worker that render simulated scenes.

    The work holds the interpreter, so that threads of the worker would wait for each other, and
    its memory goes back to the system with the processes.
    """

    def __init__(self, request: SceneRequest, cache: Path, processes: int) -> None:
        super().__init__()
        self.request = request
        self.cache = cache
        self.processes = processes
        self.stack = ExitStack()

    def setup(self, worker: Any) -> None:
        """Start as many processes as the worker has threads, if its memory allows."""
        most = min(self.processes, worker.state.nthreads)
        limit = worker.memory_manager.memory_limit
        if limit:
            most = min(most, max(1, int(limit / RENDERING_BYTES)))
        self.pool = self.stack.enter_context(start_pool((self.request, self.cache), most))

    def run(self, payload: SceneTask, tell: Tell) -> None:
        """Let the first process that is idle render."""
        del tell
        self.pool.do(payload)

    def teardown(self, worker: Any) -> None:
        """End the processes."""
        del worker
        self.pool.stop()  # a task may still go on
        self.stack.close()


def render_on(
    client: Client,
    request: SceneRequest,
    tasks: Sequence[SceneTask],
    cache: Path,
    *,
    threads: int,
) -> None:
    """Render simulated scenes on a cluster into a folder that all its workers see.

    Parameters
    ----------
    client
        Of the cluster.
    request, tasks, cache
        As for :func:`bigmap.simulate.render_here`.
    threads
        How many threads a worker may compute with: so many processes render beside it.

    Raises
    ------
    BigmapError
        The first for which a task cannot be done, or that the cluster is lost.
    """
    workers = client.ncores()
    slots = max(1, sum(min(threads, cores) for cores in workers.values()))
    tasks = split_tasks(request, tasks, slots)
    per_worker = math.ceil(len(tasks) / max(1, len(workers)))
    work = _ScenePool(request, cache.absolute(), min(threads, per_worker))
    # One in flight for each process: a task is long, and none should wait for a busy worker.
    policy = Policy(advice=KEPT, per_slot=1, most_per_worker=threads)
    named = (Task(task, f"scenes of {task.part.name}", task) for task in tasks)
    for outcome in drive(client, work, named, policy=policy):
        if isinstance(outcome.error, RunError):
            raise RunError(
                f"{outcome.item.part.name}: its scenes could not be rendered in {outcome.attempts} "
                f"attempts ({outcome.error}); {KEPT}"
            )
        outcome.take()
