"""Open the cluster that a recipe names, of whatever kind, and close it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from distributed import Client

from bigmap.clusters.existing import connect
from bigmap.clusters.local import check_process, start_cuda, start_local
from bigmap.clusters.scenes import render_on
from bigmap.clusters.sizes import size_cluster
from bigmap.clusters.slurm import start_slurm
from bigmap.config import Recipe
from bigmap.config.cluster import (
    ClusterConfig,
    ExistingCluster,
    LocalCluster,
    LocalCudaCluster,
    SlurmCluster,
)
from bigmap.simulate import SceneRequest, SceneTask


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
    sizes = size_cluster(settings)
    match settings:
        case LocalCluster():
            with (
                start_local(
                    workers=sizes.workers, blocks=sizes.blocks, memory_gb=sizes.memory_gb
                ) as cluster,
                Client(cluster) as client,
            ):
                yield client
        case LocalCudaCluster():
            with (
                start_cuda(settings, memory_gb=sizes.memory_gb) as cluster,
                Client(cluster) as client,
            ):
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
        self.recipe = recipe
        self.sizes = size_cluster(recipe.cluster)
        if self.sizes.is_local:
            check_process()
        self.note = note

    @cached_property
    def client(self) -> Client:
        """Of the cluster, which :func:`open_client` opens and the end of the context stops."""
        return self.enter_context(open_client(self.recipe, note=self.note))

    def render(self, request: SceneRequest, tasks: Sequence[SceneTask], cache: Path) -> None:
        """Render simulated scenes on the cluster; see :func:`render_on`."""
        render_on(self.client, request, tasks, cache, threads=self.sizes.threads)
