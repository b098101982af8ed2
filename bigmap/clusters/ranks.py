"""One task on each worker of a cluster, all at once, as training by several processes needs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from distributed import Client, get_worker

from bigmap.clusters.driving import drive
from bigmap.clusters.tasks import Policy, Task, Tell, Work
from bigmap.errors import BigmapError, ClusterError, LostRankError, LostTaskError, RunError

LOOPBACK = "127.0.0.1"
RESUME = "go on with the same command and --resume"
POLL_S = 1.0
JOIN_S = 600.0
"""For which workers are waited for."""
GRACE_S = 20.0
"""For which the other tasks may still say what has happened, once one has failed."""


@dataclass(frozen=True)
class Rank:
    """One of the processes that train together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    """Among those of its machine; chooses the GPU."""
    local_world: int = 1
    address: str = LOOPBACK
    """Where the first process listens."""
    port: int = 0
    is_hosted: bool = False
    """Whether torchrun listens there instead."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes files and tells of the progress."""
        return self.rank == 0

    @property
    def is_one_machine(self) -> bool:
        """Whether all processes are of this machine."""
        return self.local_world == self.world


RankTask = Callable[[Rank, Tell], str]
"""What a worker does: called with its rank and with what sends lines to the driver."""


class _RankWork(Work[str]):
    """Gives each task its rank and the way to tell the driver of its progress."""

    def __init__(self, task: RankTask) -> None:
        super().__init__()
        self.task = task

    def run(self, payload: Rank, tell: Tell) -> str:
        """Do the task of a rank."""
        return self.task(payload, tell)


def run_on_workers(
    client: Client,
    task: RankTask,
    *,
    world: int,
    receive: Callable[[str], None],
    tick: Callable[[], None],
) -> list[str]:
    """Run a task on each worker and wait for all.

    Parameters
    ----------
    client
        Of the cluster.
    task
        Each worker gets it pickled by Dask.
    world
        Workers to wait for; those that have come by then take part.
    receive
        Called with each line that a task sends, from the client's own thread.
    tick
        Called about once a second; may raise to give up.

    Returns
    -------
    list of str
        What the tasks return, by rank.

    Raises
    ------
    ClusterError
        If too few workers come.
    LostRankError
        If a worker is lost.
    BigmapError
        What a task raises, that of the first one that fails.
    """
    try:
        client.wait_for_workers(world, timeout=JOIN_S)
    except TimeoutError:
        raise ClusterError(f"cluster: fewer than {world} workers came in {JOIN_S:.0f} s") from None
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    port = client.submit(_find_port, workers=[workers[0]], pure=False).result()
    tasks = [
        Task(rank, f"rank {rank.rank}", rank, worker)
        for rank, worker in zip(_rank_workers(workers, port), workers, strict=True)
    ]
    # All at once or none: a task without the others waits for them for ever.
    policy = Policy(advice=RESUME, attempts=1, losses=1, per_slot=len(tasks), tick_s=POLL_S)
    watch = _Watch(tick)
    results, errors = {}, []
    outcomes = drive(
        client, _RankWork(task), tasks, policy=policy, watch=watch, receive=receive
    )  # fmt: skip
    with closing(outcomes), suppress(_GraceEnded):
        for outcome in outcomes:
            if isinstance(outcome.error, LostTaskError):
                raise LostRankError(
                    f"the worker of process {outcome.item.rank} of {len(tasks)} was lost; {RESUME}"
                )
            if outcome.error is None:
                results[outcome.item.rank] = outcome.take()
            else:
                errors.append(outcome.error)
                watch.failed_at = watch.failed_at or time.monotonic()
    _raise_cause(errors)
    return [results[rank] for rank in range(len(tasks))]


class _GraceEnded(Exception):  # noqa: N818 - it is no error
    """The others had their time to say what has happened, after one has failed."""


class _Watch:
    """Passes the driver's turns on, and ends it a while after the first failure."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self.tick = tick
        self.failed_at = 0.0

    def __call__(self) -> None:
        self.tick()
        if self.failed_at and time.monotonic() - self.failed_at > GRACE_S:
            raise _GraceEnded


def _raise_cause(errors: Sequence[BigmapError]) -> None:
    """Raise what the tasks raised; that others were lost is but a consequence."""
    for error in sorted(errors, key=lambda error: isinstance(error, LostRankError)):
        if isinstance(error, RunError):
            raise LostRankError(f"a process of this training failed ({error}); {RESUME}") from error
        raise error


def _rank_workers(workers: Sequence[str], port: int) -> list[Rank]:
    hosts = [str(urlsplit(worker).hostname) for worker in workers]
    counted: dict[str, int] = {}
    ranks = []
    for rank, host in enumerate(hosts):
        local = counted.get(host, 0)
        counted[host] = local + 1
        ranks.append(Rank(rank, len(workers), local, hosts.count(host), hosts[0], port))
    return ranks


def _find_port() -> int:
    host = urlsplit(get_worker().address).hostname
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
