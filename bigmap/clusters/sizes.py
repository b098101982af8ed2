"""How large a cluster is, from its settings and from what this process may use of the machine.

Here alone the kind of a cluster decides about a number; all else takes them from its sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distributed.system import memory_limit

from bigmap.config.cluster import (
    ClusterConfig,
    ExistingCluster,
    LocalCluster,
    LocalCudaCluster,
    SlurmCluster,
)
from bigmap.machine import count_cores, count_gpus

CORES_PER_WORKER = 2
"""Of a local cluster that does not say how many workers it has."""
OWN_GROUPS = Path("/proc/self/cgroup")
GROUP_LIMITS = {
    "": (Path("/sys/fs/cgroup"), "memory.max"),
    "memory": (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
}
"""Where groups of version 2, which name no controller, and of version 1 have their limits."""


@dataclass(frozen=True)
class ClusterSizes:
    """What a cluster has for a run."""

    kind: str
    """As settings name it."""
    workers: int
    """At most."""
    sure_workers: int
    """Those that are sure to come."""
    cores: float
    """Of one worker."""
    memory_gb: float
    """Of one worker; infinite where only the cluster that already runs knows."""
    blocks: int
    """That a worker has in hand at once."""
    has_gpu: bool
    """Whether each worker has a GPU of its own."""
    is_local: bool
    """Whether workers are processes that this one starts on its machine."""

    @property
    def threads(self) -> int:
        """Threads that one worker may compute with."""
        return int(self.cores)

    @property
    def is_like_driver(self) -> bool:
        """Whether what this process finds, a device or a speed, is what its workers will find."""
        return self.is_local and not self.has_gpu


def size_cluster(settings: ClusterConfig) -> ClusterSizes:
    """Return how large a cluster is.

    Parameters
    ----------
    settings
        The cluster section of a recipe. What a local cluster leaves open is an equal share of what
        this process may use, by affinity and control group, not of what the machine has.
    """
    match settings:
        case LocalCluster(workers=workers):
            default = math.ceil(count_cores() / CORES_PER_WORKER)
            return _share_machine(settings, workers or default, has_gpu=False)
        case LocalCudaCluster(gpus=gpus):
            workers = len(gpus) if gpus else max(1, count_gpus())
            return _share_machine(settings, workers, has_gpu=True)
        case SlurmCluster(processes=processes):
            return ClusterSizes(
                kind=settings.kind,
                workers=settings.max_jobs * processes,
                sure_workers=settings.min_jobs * processes,
                cores=float(settings.cpus_per_worker),
                memory_gb=settings.memory_gb,
                blocks=settings.blocks_per_worker,
                has_gpu=settings.gpus_per_job > 0,
                is_local=False,
            )
        case ExistingCluster():
            return ClusterSizes(
                kind=settings.kind,
                workers=1,
                sure_workers=1,
                cores=float(settings.cpus_per_worker),
                memory_gb=settings.memory_gb or math.inf,
                blocks=settings.blocks_per_worker,
                has_gpu=settings.gpu,
                is_local=False,
            )


def _share_machine(
    settings: LocalCluster | LocalCudaCluster, workers: int, *, has_gpu: bool
) -> ClusterSizes:
    return ClusterSizes(
        kind=settings.kind,
        workers=workers,
        sure_workers=workers,
        cores=max(1.0, count_cores() / workers),
        memory_gb=settings.memory_gb or machine_memory_gb() / workers,
        blocks=settings.blocks_per_worker,
        has_gpu=has_gpu,
        is_local=True,
    )


def machine_memory_gb() -> float:
    """Return the memory that processes may use here, in GB: the machine's, or a control group's."""
    return min([memory_limit(), *_list_group_limits()]) / 1e9


def _list_group_limits() -> Iterator[int]:
    """Yield the limits, in bytes, of the control groups that this process lies in.

    Dask asks the outermost alone, which is a container's; SLURM and systemd limit one within.
    """
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for controllers, group in (line.split(":", 2)[1:] for line in lines):
        if controllers in GROUP_LIMITS:
            root, name = GROUP_LIMITS[controllers]
            own = root / group.lstrip("/")
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):  # no limit there, or "max"
                    yield int((folder / name).read_text())
