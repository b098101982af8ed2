"""Clusters: where a run's workers come from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from distributed import Client, LocalCluster

from bigmap.config import Recipe
from bigmap.planning import machine_memory_gb, workers_of


@contextmanager
def open_client(recipe: Recipe) -> Iterator[Client]:
    """Start the recipe's cluster and stop it at the end.

    Workers are processes of this machine. Scheduler, workers and dashboard listen on loopback
    only.
    """
    settings = recipe.cluster
    workers = workers_of(recipe)
    memory_gb = settings.memory_gb or machine_memory_gb() / workers
    quiet = {
        # Blocks are large and few, and their memory is our own affair: no stealing of a block
        # that runs, no spilling of records of a few hundred bytes.
        "distributed.scheduler.work-stealing": False,
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": 0.9,
        "distributed.worker.memory.terminate": 0.97,
        # Threads that wait for each other must not spin: another block may need the core.
        "distributed.nanny.pre-spawn-environ.OMP_WAIT_POLICY": "PASSIVE",
        "distributed.admin.large-graph-warning-threshold": "100MB",
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=settings.blocks_per_worker,
            processes=True,
            memory_limit=int(memory_gb * 1e9),
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def threads_per_worker(recipe: Recipe) -> int:
    """Return how many threads one worker may compute with."""
    return max(1, (os.cpu_count() or 1) // workers_of(recipe))
