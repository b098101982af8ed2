"""Workers on this machine: processes for its cores, or one process for each of its GPUs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import dask
from distributed import LocalCluster

from bigmap.clusters.settings import DASHBOARD, LOOPBACK, local_config
from bigmap.config import LocalCudaCluster
from bigmap.errors import ClusterError

CLOSE_TIMEOUT_S = 30
"""How long the workers of a finished run may take to end before they are killed."""


@contextmanager
def start_local(*, workers: int, blocks: int, memory_gb: float) -> Iterator[LocalCluster]:
    """Start worker processes of this machine; all of it listens on loopback only.

    Raises
    ------
    ClusterError
        If a worker does not start.
    """
    with dask.config.set(local_config()):
        try:
            cluster = LocalCluster(
                n_workers=workers, processes=True, **_common_options(blocks, memory_gb)
            )
        except (RuntimeError, OSError) as error:
            reason = error.__cause__ or error
            raise ClusterError(
                f"cluster: a worker did not start ({type(reason).__name__}: {reason}); give it "
                "enough memory and start again"
            ) from error
        with _closing(cluster):
            yield cluster


@contextmanager
def start_cuda(settings: LocalCudaCluster, *, memory_gb: float) -> Iterator[LocalCluster]:
    """Start one worker process for each GPU; all of it listens on loopback only.

    Raises
    ------
    ClusterError
        If dask-cuda or the GPU's driver is not installed, or there is no such GPU.
    """
    try:
        from dask_cuda import LocalCUDACluster  # noqa: PLC0415 - only the cuda extra has it
    except ImportError as error:
        raise ClusterError(
            f"cluster.kind: local-cuda needs dask-cuda ({error}); install bigmap[cuda], or run "
            "with --cluster local"
        ) from None
    with dask.config.set(local_config()):
        try:
            cluster = LocalCUDACluster(**cuda_options(settings, memory_gb=memory_gb))
        except (ValueError, RuntimeError, OSError) as error:
            raise _explain_cuda(error) from error
        except Exception as error:
            # The errors of NVML have no public base class but Exception.
            if not type(error).__module__.startswith("pynvml"):
                raise
            raise _explain_cuda(error) from error
        with _closing(cluster):
            yield cluster


@contextmanager
def _closing(cluster: LocalCluster) -> Iterator[None]:
    """Close a cluster; a worker that takes too long to end fails no run, and is killed.

    The nanny of a worker that was killed while it started never learns that the next one did, and
    without a limit it would wait for that when it is closed.
    """
    try:
        yield
    finally:
        nannies = list(cluster.workers.values())
        try:
            cluster.close(timeout=CLOSE_TIMEOUT_S)
        except TimeoutError:
            for nanny in nannies:
                if nanny.pid is not None:
                    with suppress(ProcessLookupError):
                        os.kill(nanny.pid, signal.SIGKILL)


def cuda_options(settings: LocalCudaCluster, *, memory_gb: float) -> dict[str, Any]:
    """Return the arguments of dask-cuda's cluster."""
    options = _common_options(settings.blocks_per_worker, memory_gb)
    if settings.gpus is not None:
        options["CUDA_VISIBLE_DEVICES"] = list(settings.gpus)
    return options


def _explain_cuda(error: Exception) -> ClusterError:
    return ClusterError(
        f"cluster.kind: local-cuda found no usable GPU here ({type(error).__name__}: {error}); "
        "check nvidia-smi and cluster.gpus, or run with --cluster local"
    )


def _common_options(blocks: int, memory_gb: float) -> dict[str, Any]:
    return {
        "threads_per_worker": blocks,
        "memory_limit": int(memory_gb * 1e9),
        "host": LOOPBACK,
        "dashboard_address": DASHBOARD,
        "silence_logs": 50,
    }
