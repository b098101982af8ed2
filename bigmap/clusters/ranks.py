"""One task on each worker of a cluster, all at once, as training by several processes needs."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from distributed import Client, Future, get_worker, wait

from bigmap.errors import BigmapError, ClusterError, LostRankError, drop_causes

POLL_S = 1.0
JOIN_S = 600.0
"""For which workers are waited for."""
GRACE_S = 20.0
"""For which the other tasks may still say what has happened, once one has failed."""


@dataclass(frozen=True)
class Seat:
    """Where one of the tasks runs."""

    rank: int
    world: int
    local_rank: int
    """Among those of its machine."""
    local_world: int
    address: str
    """Of the first one's machine, in the network of the workers."""
    port: int
    """Free there a moment ago."""


SeatTask = Callable[[Seat, Callable[[str], None]], str]
"""What a worker does: called with its seat and with what sends lines to the driver."""


def run_on_workers(
    client: Client,
    task: SeatTask,
    *,
    seats: int,
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
    seats
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
        client.wait_for_workers(seats, timeout=JOIN_S)
    except TimeoutError:
        raise ClusterError(f"cluster: fewer than {seats} workers came in {JOIN_S:.0f} s") from None
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    topic = f"bigmap-ranks-{uuid.uuid4().hex}"
    port = client.submit(_find_port, workers=[workers[0]], pure=False).result()
    places = _seat_workers(workers, port)
    client.subscribe_topic(topic, lambda event: receive(event[1]))
    futures = [
        client.submit(
            _sit, task, seat, topic, workers=[worker], allow_other_workers=False, retries=0,
            pure=False, key=f"rank-{seat.rank}-{topic}",
        )
        for seat, worker in zip(places, workers, strict=True)
    ]  # fmt: skip
    try:
        _watch(client, futures, workers, tick)
        return [future.result() for future in futures]
    finally:
        client.unsubscribe_topic(topic)
        client.cancel(futures)


def _watch(
    client: Client, futures: Sequence[Future[str]], workers: Sequence[str], tick: Callable[[], None]
) -> None:
    """Wait for all tasks; raise where one fails or its worker has gone."""
    failed_at = 0.0
    while any(future.status == "pending" for future in futures):
        try:
            wait(list(futures), timeout=POLL_S)
        except TimeoutError:
            tick()
        alive = client.scheduler_info(n_workers=-1)["workers"]
        gone = [rank for rank, worker in enumerate(workers) if worker not in alive]
        if any(futures[rank].status != "finished" for rank in gone):
            raise LostRankError(
                f"the worker of process {gone[0]} of {len(workers)} was lost; go on with the same "
                "command and --resume"
            )
        if not failed_at and any(future.status in ("error", "lost") for future in futures):
            failed_at = time.monotonic()
        if failed_at and time.monotonic() - failed_at > GRACE_S:
            break
    _raise_cause(futures)


def _raise_cause(futures: Sequence[Future[str]]) -> None:
    """Raise what the tasks raised; that others were lost is but a consequence."""
    raised = [future.exception() for future in futures if future.status == "error"]
    raised.sort(key=lambda error: isinstance(error, LostRankError))
    for error in raised:
        if isinstance(error, BigmapError):
            raise error
        raise LostRankError(
            f"a process of this training failed ({error}); go on with the same command and --resume"
        ) from error


def _seat_workers(workers: Sequence[str], port: int) -> list[Seat]:
    hosts = [str(urlsplit(worker).hostname) for worker in workers]
    counted: dict[str, int] = {}
    seats = []
    for rank, host in enumerate(hosts):
        local = counted.get(host, 0)
        counted[host] = local + 1
        seats.append(Seat(rank, len(workers), local, hosts.count(host), hosts[0], port))
    return seats


def _find_port() -> int:
    host = urlsplit(get_worker().address).hostname
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@drop_causes()
def _sit(task: SeatTask, seat: Seat, topic: str) -> str:
    worker = get_worker()
    return task(seat, lambda line: worker.log_event(topic, line))
