"""What tasks on a cluster are: what all of a kind share, one of them, and what becomes of it."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from distributed import WorkerPlugin, get_worker

from bigmap.errors import BigmapError, drop_causes

MAX_ATTEMPTS = 3
MAX_LOSSES = 10
"""A lost worker is no fault of its tasks; but a task that has lost so many may well be why."""
IN_FLIGHT_PER_SLOT = 2
TICK_S = 5.0

Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[str], None]
"""Sends a line from a task to the driver."""


class Work(WorkerPlugin, Generic[Result]):
    """What all tasks of one kind share; it goes to a worker once, also to one that comes late.

    Parameters
    ----------
    do
        Does a task, called with what travels for it; can be pickled. A kind that needs more than
        that has a :meth:`run` of its own.
    prepare
        Called once on each worker before its first task.
    """

    def __init__(
        self,
        do: Callable[[Any], Result] | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.name = f"bigmap-{uuid.uuid4().hex}"
        self.do = do
        self.prepare = prepare
        self.tells_start = False

    def setup(self, worker: Any) -> None:
        """Prepare a worker."""
        del worker
        if self.prepare is not None:
            self.prepare()

    def run(self, payload: Any, tell: Tell) -> Result:
        """Do a task, on a worker."""
        del tell
        assert self.do is not None
        return self.do(payload)


@dataclass(frozen=True)
class Task(Generic[Item]):
    """One task."""

    item: Item
    """What it is about."""
    name: str
    """For messages, such as ``block r1c2``."""
    payload: Any
    """What travels to the worker."""
    worker: str | None = None
    """Address of the only worker that may do it; by default any does."""


@dataclass(frozen=True)
class Policy:
    """What a kind of tasks needs beyond what is done for all."""

    advice: str = "start again"
    """What a user does when the cluster is lost."""
    loss_advice: str = "give the workers more memory"
    """What a user does when a task has lost all the workers that had it."""
    losses: int = field(default_factory=lambda: MAX_LOSSES)
    attempts: int = field(default_factory=lambda: MAX_ATTEMPTS)
    timeout_s: float | None = None
    """After which a task is given up and its worker is ended."""
    timeout_advice: str = ""
    per_slot: int = field(default_factory=lambda: IN_FLIGHT_PER_SLOT)
    most_per_worker: int | None = None
    """Tasks that a worker does at once, if fewer than it has threads."""
    tick_s: float = field(default_factory=lambda: TICK_S)
    """How often at least ``watch`` is called."""


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of a task."""

    item: Item
    attempts: int
    error: BigmapError | None
    result: Result | None = None

    def take(self) -> Result:
        """Return the result, or raise why there is none."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value] # a task may return None


@drop_causes()
def do_task(work: str, key: str, payload: Any) -> None:
    """Do a task and tell the driver.

    The result travels as an event, which comes before the news that the task is done: fetching
    results took most of the driver's time, and they were lost with a worker that had done its task.
    """
    worker = get_worker()
    held: Any = worker.plugins[work]

    def send(kind: str, content: Any) -> None:
        worker.log_event(work, [key, kind, content, worker.address])

    if held.tells_start:
        send("started", None)
    result = held.run(payload, lambda line: send("told", line))
    send("done", pickle.dumps(result))
