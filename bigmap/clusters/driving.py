"""The driver of Dask tasks: a bounded number in flight, and one policy for what goes wrong.

Blocks, overviews, chips, shards, counts of maps, simulated scenes and processes that train all go
through :func:`drive`. It tells of each task that came to its end, and whoever has called it decides
what a failure means: one block of a map is recorded as failed, a shard of chips ends the command.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, Generic

from distributed import CancelledError, Client, Future, wait
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from bigmap.clusters.tasks import Item, Outcome, Policy, Result, Task, Work, do_task
from bigmap.errors import (
    BigmapError,
    BlockTimeoutError,
    LeaseError,
    LostClusterError,
    LostTaskError,
    ModelError,
    RunError,
    SamplesError,
    UnfitFileError,
)
from bigmap.redaction import redact

LOG = logging.getLogger(__name__)

SUSPECT_LOSSES = 3
"""A task that has lost so many waits for the end and then runs alone, so that one which takes its
workers' memory does not take the others' tasks with it."""
RETRY_DELAY_S = 5.0
COUNT_WORKERS_S = 5.0
BRING_ROUNDS = 10
END_WORKER_S = 60.0
"""How long a new worker in the place of one that was ended is waited for."""
ENDS_ALL = (LeaseError, ModelError, SamplesError)
"""What no other task would escape: the user must change something."""


def _say_nothing(message: str) -> None:
    del message


def _see_nothing() -> None:
    """Take no part in the driver's turns."""


def drive(
    client: Client,
    work: Work[Result],
    tasks: Iterable[Task[Item]],
    *,
    policy: Policy | None = None,
    note: Callable[[str], None] = _say_nothing,
    watch: Callable[[], None] = _see_nothing,
    receive: Callable[[str], None] = _say_nothing,
) -> Generator[Outcome[Item, Result]]:
    """Do tasks on a cluster, and yield what becomes of each as they come back.

    Neither the driver's memory nor the scheduler's load grows with the number of tasks. A task
    that fails is tried again a little later, unless its file is unfit; one whose worker is lost is
    sent again at once.

    Parameters
    ----------
    client
        Of the cluster.
    work
        What the tasks share.
    tasks
        Read as workers become free.
    policy
        What this kind of tasks needs.
    note
        Told of attempts and losses, for people.
    watch
        Called at every turn; may raise to give up.
    receive
        Called with each line that a task tells, from the client's own thread.

    Raises
    ------
    LostClusterError
        If the cluster is lost.
    LeaseError, ModelError, SamplesError
        The first that a task raises: the others would fail alike.
    """
    driver: _Driver[Item, Result] = _Driver(client, work, policy or Policy(), note, receive)
    try:
        yield from driver.drive(iter(tasks), watch)
    except (CommClosedError, TimeoutError, OSError) as error:
        raise LostClusterError(
            f"the cluster was lost ({str(error) or type(error).__name__}); {driver.policy.advice}"
        ) from error
    finally:
        driver.stop()


def map_on(
    client: Client,
    do: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    name: Callable[[Item], str] = str,
    policy: Policy | None = None,
    watch: Callable[[], None] = _see_nothing,
) -> Iterator[Result]:
    """Do something for each item on a cluster, and yield the results as they come.

    Parameters
    ----------
    client
        Of the cluster.
    do
        Can be pickled; it is sent to each worker once.
    items
        Small, read as workers become free.
    name
        Names an item in messages.
    policy, watch
        As for :func:`drive`.

    Raises
    ------
    BigmapError
        The first for which there is no result, or that the cluster is lost.
    """
    tasks = (Task(item, name(item), item) for item in items)
    with closing(drive(client, Work(do), tasks, policy=policy, watch=watch)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome.error, RunError):
                raise RunError(
                    f"{name(outcome.item)}: failed in {outcome.attempts} attempts ({outcome.error})"
                ) from outcome.error
            yield outcome.take()


@dataclass(frozen=True)
class _Flight(Generic[Item]):
    """A task that has been sent."""

    task: Task[Item]
    attempt: int


class _Driver(Generic[Item, Result]):
    """Which tasks are where."""

    def __init__(
        self,
        client: Client,
        work: Work[Result],
        policy: Policy,
        note: Callable[[str], None],
        receive: Callable[[str], None],
    ) -> None:
        self.client = client
        self.work = work
        self.policy = policy
        self.note = note
        self.receive = receive
        self.waiting: deque[tuple[float, _Flight[Item]]] = deque()
        self.suspects: deque[_Flight[Item]] = deque()
        self.flying: dict[Future[None], _Flight[Item]] = {}
        self.results: dict[str, bytes] = {}
        """Of tasks that are done, by their key."""
        self.started: dict[str, tuple[float, str]] = {}
        """When tasks began, and on which worker, by their key; kept only where a task may not take
        as long as it likes."""
        self.ended: set[str] = set()
        """Addresses of workers that were ended because a task took too long."""
        self.losses: Counter[str] = Counter()
        self.serial = 0
        self.slots, self.counted = 1, -math.inf
        self.scheduler = ""
        self.told_waiting = False
        self.is_open = False

    def drive(
        self, source: Iterator[Task[Item]], watch: Callable[[], None]
    ) -> Iterator[Outcome[Item, Result]]:
        """Keep tasks in flight until all have come back."""
        first = next(source, None)
        if first is None:
            return  # nothing is brought to the workers for no task
        self._open()
        source = chain([first], source)
        self._refill(source)
        while self.flying or self.waiting or self.suspects:
            back = [(future, self.flying.pop(future)) for future in self._wait_for_some()]
            for future, flight in [*back, *self._pop_stranded()]:
                outcome = self._settle(future, flight)
                if outcome is not None:
                    yield outcome
            yield from self._end_overdue()
            self._refill(source)
            watch()

    def _open(self) -> None:
        self.client.subscribe_topic(self.work.name, self._hear)
        self.is_open = True
        self.work.tells_start = self.policy.timeout_s is not None
        self.bring()

    def bring(self) -> None:
        """Bring the work to the workers; one that is lost at that moment costs another round."""
        for is_last in (*[False] * BRING_ROUNDS, True):
            try:
                self.client.register_plugin(self.work)
            except (CommClosedError, TimeoutError, OSError):
                if is_last or self.client.status != "running":
                    raise
            else:
                return

    def stop(self) -> None:
        """Give up what is in flight."""
        if not self.is_open or self.client.status != "running":
            return
        # A cluster that stops too, as it does when a job is cancelled, needs no tidying.
        with contextlib.suppress(CommClosedError, OSError, TimeoutError):
            self.client.unsubscribe_topic(self.work.name)
            self.client.cancel(list(self.flying))
            self.client.unregister_worker_plugin(self.work.name)

    def _hear(self, event: tuple[float, tuple[str, str, Any, str]]) -> None:
        """Keep what a worker has sent; called from the client's own thread."""
        key, kind, content, worker = event[1]
        if kind == "started":
            self.started[key] = time.monotonic(), worker
        elif kind == "told":
            self.receive(content)
        else:
            self.results[key] = content

    def _end_overdue(self) -> Iterator[Outcome[Item, Result]]:
        """Give tasks up that have run for too long, and end the workers that are at them."""
        limit_s = self.policy.timeout_s
        if limit_s is None:
            return
        latest = time.monotonic() - limit_s
        overdue = {
            future: self.started[key][1]
            for future in self.flying
            if (key := str(future.key)) not in self.results
            and self.started.get(key, (math.inf, ""))[0] < latest
        }
        if not overdue:
            return
        # Given up first: the scheduler would send them to other workers by itself.
        self.client.cancel(list(overdue))
        given_up = []
        for future in overdue:
            del self.started[str(future.key)]
            given_up.append(self.flying.pop(future))
        self._end_workers(set(overdue.values()))
        for flight in given_up:
            error = BlockTimeoutError(f"took longer than {self.policy.timeout_advice}")
            outcome = self._fail(error, flight)
            if outcome is not None:
                yield outcome

    def _end_workers(self, addresses: set[str]) -> None:
        """Kill worker processes, which their nannies start anew."""
        known = self.client.scheduler_info(n_workers=-1)["workers"]
        watched = [each for each in addresses if each in known and known[each]["nanny"]]
        for address in addresses & known.keys() - set(watched):
            self.note(
                f"worker {address} has no nanny, so it goes on with a task that was given up; "
                "start workers with one"
            )
        self.ended |= set(watched)
        # One that has left in the meantime is not in the answer.
        with contextlib.suppress(KeyError):
            self.client.restart_workers(watched, timeout=END_WORKER_S, raise_for_error=False)

    def _workers(self) -> Mapping[str, Any]:
        """Return what the scheduler says of its workers, by their addresses."""
        scheduler = self.client.scheduler_info(n_workers=-1)
        if self.scheduler not in ("", scheduler["id"]):
            raise CommClosedError("its scheduler was started anew")
        self.scheduler = scheduler["id"]
        workers: Mapping[str, Any] = scheduler["workers"]
        return workers

    def _slots(self) -> int:
        """Return how many tasks the workers do at once; asked anew every few seconds."""
        if time.monotonic() - self.counted < COUNT_WORKERS_S:
            return self.slots
        self.counted = time.monotonic()
        workers = self._workers().values()
        if not workers and not self.told_waiting:
            self.note("the cluster has no worker at present; waiting for one")
        self.told_waiting = not workers
        most = self.policy.most_per_worker or math.inf
        self.slots = max(1, sum(int(min(most, worker["nthreads"])) for worker in workers))
        return self.slots

    def _pop_stranded(self) -> Iterator[tuple[None, _Flight[Item]]]:
        """Take back the tasks whose only worker has left: Dask would wait for it."""
        bound = {future: each for future, each in self.flying.items() if each.task.worker}
        if not bound:
            return
        workers = self._workers()
        for future, flight in bound.items():
            if flight.task.worker not in workers and future.status == "pending":
                self.client.cancel([future])
                yield None, self.flying.pop(future)

    def _wait_for_some(self) -> list[Future[None]]:
        """Return the tasks that have come back; none after a while."""
        if not self.flying:
            next_s = self.waiting[0][0] - time.monotonic() if self.waiting else 0.0
            time.sleep(min(self.policy.tick_s, max(0.0, next_s)))
        elif all(future.status == "pending" for future in self.flying):
            with contextlib.suppress(TimeoutError, CancelledError):
                wait(list(self.flying), timeout=self.policy.tick_s, return_when="FIRST_COMPLETED")
        if self.client.status != "running":
            raise CommClosedError("its scheduler has gone")
        return [future for future in self.flying if future.status != "pending"]

    def _refill(self, source: Iterator[Task[Item]]) -> None:
        """Send tasks until enough are in flight."""
        room = self.policy.per_slot * self._slots() - len(self.flying)
        chosen = [each for _ in range(room) if (each := self._choose(source)) is not None]
        if not chosen and not self.flying and not self.waiting and self.suspects:
            chosen = [self.suspects.popleft()]
        for worker, group in groupby(chosen, key=lambda flight: flight.task.worker):
            flights = list(group)
            keys = [self._make_key(flight.task) for flight in flights]
            futures = self.client.map(
                do_task,
                [self.work.name] * len(flights),
                keys,
                [flight.task.payload for flight in flights],
                key=keys,
                pure=False,
                workers=worker,
                allow_other_workers=False,
            )
            self.flying.update(zip(futures, flights, strict=True))

    def _choose(self, source: Iterator[Task[Item]]) -> _Flight[Item] | None:
        """Return the next task and its attempt; one that failed goes first when its time comes."""
        if self.waiting and self.waiting[0][0] <= time.monotonic():
            return self.waiting.popleft()[1]
        following = next(source, None)
        return None if following is None else _Flight(following, 1)

    def _make_key(self, task: Task[Item]) -> str:
        """Return a key that no task had before."""
        self.serial += 1
        return f"{'-'.join(task.name.split())}-{self.serial}-{self.work.name}"

    def _settle(
        self, future: Future[None] | None, flight: _Flight[Item]
    ) -> Outcome[Item, Result] | None:
        """Tell what came of a task, or send it again."""
        key = "" if future is None else str(future.key)
        content = self.results.pop(key, None)
        self.started.pop(key, None)
        if content is not None:
            # Of our own worker, like all that Dask carries.
            return Outcome(flight.task.item, flight.attempt, None, pickle.loads(content))  # noqa: S301
        is_failure = future is not None and future.status == "error"
        error = future.exception() if is_failure else None  # type: ignore[union-attr]
        if isinstance(error, ENDS_ALL):
            raise error
        name = flight.task.name
        if isinstance(error, KilledWorker) and error.last_worker.address in self.ended:
            self.note(f"{name}: its worker was ended; sent again")
            self.waiting.appendleft((time.monotonic(), flight))
            return None
        if error is None or isinstance(error, KilledWorker):
            return self._lose(flight)
        return self._fail(error, flight)

    def _lose(self, flight: _Flight[Item]) -> Outcome[Item, Result] | None:
        """Send a task again whose worker was lost, by itself if that happened too often."""
        name = flight.task.name
        self.losses[name] += 1
        losses = self.losses[name]
        if losses >= self.policy.losses:
            error = LostTaskError(
                f"{losses} workers were lost while they had it; {self.policy.loss_advice}"
            )
            return Outcome(flight.task.item, flight.attempt, error)
        if losses < SUSPECT_LOSSES:
            self.note(f"{name}: its worker has left or was lost; sent again")
            self.waiting.appendleft((time.monotonic(), flight))
            return None
        self.note(
            f"{name}: {losses} workers have left or were lost while they had it; "
            "sent again by itself when the others are done"
        )
        self.suspects.append(flight)
        return None

    def _fail(self, error: BaseException, flight: _Flight[Item]) -> Outcome[Item, Result] | None:
        """Send a task again later, or give it up."""
        task, attempt = flight.task, flight.attempt
        told = error if isinstance(error, BigmapError) else None
        said = redact(str(told or f"{type(error).__name__}: {error}"))
        if not isinstance(error, UnfitFileError) and attempt < self.policy.attempts:
            self.note(f"{task.name}: attempt {attempt} failed: {said}")
            again = time.monotonic() + RETRY_DELAY_S * attempt
            self.waiting.append((again, _Flight(task, attempt + 1)))
            return None
        if told is None:
            LOG.debug("%s failed", task.name, exc_info=error)
            told = RunError(said)
        return Outcome(task.item, attempt, told)
