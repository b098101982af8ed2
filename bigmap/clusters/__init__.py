"""Clusters: where a run's workers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from distributed import Client

from bigmap.clusters.existing import connect
from bigmap.clusters.local import check_process, start_cuda, start_local
from bigmap.clusters.scenes import render_on
from bigmap.clusters.slurm import start_slurm
from bigmap.config import (
    ClusterConfig,
    ExistingCluster,
    LocalCluster,
    LocalCudaCluster,
    Recipe,
    SlurmCluster,
)
from bigmap.machine import count_cores, machine_memory_gb
from bigmap.planning import count_workers
from bigmap.simulate import SceneRequest, SceneTask

__all__ = ["Cluster", "open_client", "open_cluster", "render_on", "threads_per_worker"]


def _say_nothing(message: str) -> None:
    del message


def open_client(
    recipe: Recipe, *, note: Callable[[str], None] = _say_nothing
) -> AbstractContextManager[Client]:
    """Start the recipe's cluster; see :func:`open_cluster`."""
    return open_cluster(recipe.cluster, note=note)


@contextmanager
def open_cluster(
    settings: ClusterConfig, *, note: Callable[[str], None] = _say_nothing
) -> Iterator[Client]:
    """Start a cluster and stop it at the end; one that runs already goes on.

    On one machine scheduler, workers and dashboard listen on loopback only. Between machines
    scheduler and workers speak TLS.

    Parameters
    ----------
    settings
        The cluster section of a recipe.
    note
        Tells the user of waiting and of lost jobs.

    Raises
    ------
    ClusterError
        If the cluster cannot be started or reached.
    """
    workers = count_workers(settings)
    memory_gb = settings.memory_gb or machine_memory_gb() / workers
    match settings:
        case LocalCluster(blocks_per_worker=blocks):
            with (
                start_local(workers=workers, blocks=blocks, memory_gb=memory_gb) as cluster,
                Client(cluster) as client,
            ):
                yield client
        case LocalCudaCluster():
            with start_cuda(settings, memory_gb=memory_gb) as cluster, Client(cluster) as client:
                yield client
        case SlurmCluster():
            with start_slurm(settings, note=note) as client:
                yield client
        case ExistingCluster():
            with connect(settings) as client:
                yield client


class Cluster(ExitStack):
    """A recipe's cluster, started when it is first needed: most mistakes are found before.

    Raises
    ------
    ClusterError
        At once, if no workers can be started from this process.
    """

    def __init__(self, recipe: Recipe, *, note: Callable[[str], None] = _say_nothing) -> None:
        super().__init__()
        if isinstance(recipe.cluster, LocalCluster | LocalCudaCluster):
            check_process()
        self.recipe = recipe
        self.note = note

    @cached_property
    def client(self) -> Client:
        """Of the cluster, which :func:`open_client` opens and the end of the context stops."""
        return self.enter_context(open_client(self.recipe, note=self.note))

    def render(self, request: SceneRequest, tasks: Sequence[SceneTask], cache: Path) -> None:
        """Render simulated scenes on the cluster; see :func:`render_on`."""
        render_on(self.client, request, tasks, cache, threads=threads_per_worker(self.recipe))


def threads_per_worker(recipe: Recipe) -> int:
    """Return how many threads one worker may compute with."""
    match recipe.cluster:
        case SlurmCluster(cpus_per_worker=cpus) | ExistingCluster(cpus_per_worker=cpus):
            return cpus
        case _:
            return max(1, count_cores() // count_workers(recipe.cluster))
