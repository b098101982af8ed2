"""Many small tasks of one kind on a cluster, a bounded number in flight."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from distributed import CancelledError, Client, Future, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError

from bigmap.errors import (
    BigmapError,
    LostClusterError,
    ReadError,
    RunError,
    UnfitFileError,
    drop_causes,
)

MAX_ATTEMPTS = 3
IN_FLIGHT_PER_SLOT = 2
TICK_S = 5.0
"""Workers are counted anew at least so often: some come late."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class _HeldTask(WorkerPlugin):
    """What all tasks share goes to a worker once, also to one that comes late."""

    def __init__(self, name: str, task: Callable[[Any], Any]) -> None:
        self.name = name
        self.task = task


def map_on(
    client: Client,
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    advice: str = "start again",
) -> Iterator[Result]:
    """Do a task for each item on a cluster, and yield the results as they come.

    Neither the driver's memory nor the scheduler's load grows with the number of items.

    Parameters
    ----------
    client
        Of the cluster.
    task
        Can be pickled; it is sent to each worker once.
    items
        Small, read as workers become free.
    advice
        What to do where the cluster is lost, for the message.

    Raises
    ------
    BigmapError
        The first that a task raises and trying again cannot mend, or that one has failed several
        times, or that the cluster is lost.
    """
    mapping: _Mapping[Item, Result] = _Mapping(client, f"map-{uuid.uuid4().hex}")
    try:
        client.register_plugin(_HeldTask(mapping.plugin, task))
        yield from mapping.drive(iter(items))
    except (CommClosedError, TimeoutError, OSError) as error:
        raise LostClusterError(
            f"the cluster was lost ({str(error) or type(error).__name__}); {advice}"
        ) from error
    finally:
        # A cluster that is lost needs no tidying.
        with suppress(CommClosedError, TimeoutError, OSError):
            client.cancel(list(mapping.flying))
            client.unregister_worker_plugin(mapping.plugin)


class _Mapping(Generic[Item, Result]):
    """Which items are where."""

    def __init__(self, client: Client, plugin: str) -> None:
        self.client = client
        self.plugin = plugin
        self.again: deque[tuple[Item, int]] = deque()
        self.flying: dict[Future[Any], tuple[Item, int]] = {}

    def drive(self, items: Iterator[Item]) -> Iterator[Result]:
        """Keep items in flight until all have come back."""
        self._refill(items)
        while self.flying:
            with suppress(TimeoutError, CancelledError):
                wait(list(self.flying), timeout=TICK_S, return_when="FIRST_COMPLETED")
            if self.client.status != "running":
                raise CommClosedError("its scheduler has gone")
            for future in [future for future in self.flying if future.status != "pending"]:
                item, attempt = self.flying.pop(future)
                if future.status == "finished":
                    yield future.result()
                else:
                    self._try_again(future, item, attempt)
            self._refill(items)

    def _try_again(self, future: Future[Any], item: Item, attempt: int) -> None:
        error = future.exception() if future.status == "error" else None
        may_pass = isinstance(error, ReadError) and not isinstance(error, UnfitFileError)
        if isinstance(error, BigmapError) and not (may_pass and attempt < MAX_ATTEMPTS):
            raise error
        if attempt == MAX_ATTEMPTS:
            raise RunError(
                f"{item}: failed in {attempt} attempts ({error or 'the worker was lost'})"
            ) from error
        self.again.append((item, attempt + 1))

    def _refill(self, items: Iterator[Item]) -> None:
        slots = max(1, sum(self.client.ncores().values()))
        while len(self.flying) < IN_FLIGHT_PER_SLOT * slots:
            if self.again:
                item, attempt = self.again.popleft()
            else:
                try:
                    item, attempt = next(items), 1
                except StopIteration:
                    return
            future = self.client.submit(_call, self.plugin, item, pure=False)
            self.flying[future] = item, attempt


@drop_causes()
def _call(plugin: str, item: Any) -> Any:
    held: Any = get_worker().plugins[plugin]
    return held.task(item)
