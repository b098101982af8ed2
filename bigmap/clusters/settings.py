"""Settings of Dask that every cluster of ours has."""

from __future__ import annotations

from typing import Any

from bigmap.machine import ALLOCATOR

LOOPBACK = "127.0.0.1"
DASHBOARD = f"{LOOPBACK}:0"

WORKER: dict[str, Any] = {
    # The memory of blocks is our own affair: no spilling of records of a few hundred bytes.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": 0.9,
    "distributed.worker.memory.terminate": 0.97,
}
SCHEDULER: dict[str, Any] = {
    # Blocks are large and few: no stealing of a block that runs. A lost worker is told to the
    # driver, which sends its blocks again and counts.
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    # A worker that is not heard of for so long is ended and started anew by its nanny; it is looked
    # for as often, so that one which hangs holds its blocks for four minutes at most. Our choice.
    "distributed.scheduler.worker-ttl": "120s",
    "distributed.admin.large-graph-warning-threshold": "100MB",
}
ENVIRONMENT = {
    # Threads that wait for each other must not spin: another block may need the core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # In place of Dask's, with which a worker gives back each array at once.
    **ALLOCATOR,
}


KEEP_LOST = {
    # A lost worker's nanny starts another; Dask's cluster would end that nanny, for good, where the
    # new worker does not happen to be there some seconds after the loss. Our choice: never.
    "distributed.deploy.lost-worker-timeout": "1000 days"
}


def local_config() -> dict[str, Any]:
    """Return Dask's configuration for a cluster whose workers inherit it from this process."""
    nanny = {
        f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ENVIRONMENT.items()
    }
    return WORKER | SCHEDULER | KEEP_LOST | nanny


def worker_environment(extra: dict[str, Any]) -> dict[str, str]:
    """Return the same for workers that another machine starts, as variables of the environment.

    Parameters
    ----------
    extra
        Further entries of Dask's configuration.
    """
    variables = {
        f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(value)
        for key, value in (WORKER | extra).items()
    }
    return ENVIRONMENT | variables
