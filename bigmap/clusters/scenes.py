"""Simulated scenes that a run's workers render."""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from distributed import CancelledError, Client, Future, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError

from bigmap.errors import BigmapError, LostClusterError, RunError, drop_causes
from bigmap.simulate import SceneRequest, SceneTask, split_tasks, start_pool

MAX_ATTEMPTS = 3
TICK_S = 5.0
"""Workers are counted anew at least so often: some come late."""
RENDERING_BYTES = 0.9e9
"""Of a process that renders scenes, at most."""


class _ScenePool(WorkerPlugin):
    """Processes beside a worker that render simulated scenes.

    The work holds the interpreter, so that threads of the worker would wait for each other, and
    its memory goes back to the system with the processes.
    """

    def __init__(self, name: str, request: SceneRequest, cache: Path, processes: int) -> None:
        self.name = name
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
        The first that a task raises, or that the cluster is lost.
    """
    slots = _count_slots(client, threads)
    tasks = split_tasks(request, tasks, slots)
    per_worker = math.ceil(len(tasks) / max(1, len(client.ncores())))
    plugin = _ScenePool(
        f"scenes-{uuid.uuid4().hex}", request, cache.absolute(), min(threads, per_worker)
    )
    try:
        client.register_plugin(plugin)
        _drive(client, plugin.name, tasks, threads)
    except (CommClosedError, TimeoutError, OSError) as error:
        raise LostClusterError(
            f"the cluster was lost while it rendered scenes ({str(error) or type(error).__name__});"
            " start again, what it has written is kept"
        ) from error
    finally:
        # A cluster that is lost needs no tidying.
        with suppress(CommClosedError, TimeoutError, OSError):
            client.unregister_worker_plugin(plugin.name)


def _drive(client: Client, plugin: str, tasks: Sequence[SceneTask], threads: int) -> None:
    """Keep one task in flight for each process; do those of a lost worker again."""
    waiting = deque((task, 1) for task in tasks)
    flying: dict[Future[None], tuple[SceneTask, int]] = {}
    try:
        while waiting or flying:
            while waiting and len(flying) < _count_slots(client, threads):
                task, attempt = waiting.popleft()
                flying[client.submit(_render, plugin, task, pure=False)] = task, attempt
            with suppress(TimeoutError, CancelledError):
                wait(list(flying), timeout=TICK_S, return_when="FIRST_COMPLETED")
            for future in [future for future in flying if future.status != "pending"]:
                task, attempt = flying.pop(future)
                error = future.exception() if future.status == "error" else None
                if isinstance(error, BigmapError):
                    raise error
                if future.status == "finished":
                    continue
                if attempt == MAX_ATTEMPTS:
                    raise RunError(
                        f"{task.part.name}: its scenes could not be rendered in {attempt} "
                        f"attempts ({error or 'the worker was lost'}); start again, what is "
                        "written is kept"
                    )
                waiting.append((task, attempt + 1))
    finally:
        with suppress(CommClosedError, TimeoutError, OSError):
            client.cancel(list(flying))


def _count_slots(client: Client, threads: int) -> int:
    """Return how many processes render at once on all workers."""
    counts: dict[str, int] = client.ncores()
    return max(1, sum(min(threads, count) for count in counts.values()))


@drop_causes()
def _render(plugin: str, task: SceneTask) -> None:
    held: Any = get_worker().plugins[plugin]
    held.pool.do(task)
