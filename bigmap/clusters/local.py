"""Workers on this machine: processes for its cores, or one process for each of its GPUs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
from distributed import LocalCluster

from bigmap.clusters.settings import DASHBOARD, LOOPBACK, local_config
from bigmap.config.cluster import LocalCudaCluster
from bigmap.errors import ClusterError

CLOSE_TIMEOUT_S = 30
"""How long the workers of a finished run may take to end before they are killed."""
PROBE_S = 60
"""How long a process may take to import the script that starts it."""
GUARD = 'if __name__ == "__main__":'
NAMES_OF_GUARDS = ("__name__", "multiprocessing")


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
            raise _explain_start(error) from error
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
            raise (_explain_import() or _explain_cuda(error)) from error
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


def check_process() -> None:
    """Refuse to start workers from a process that cannot.

    A worker first imports the script that starts it, as ``multiprocessing`` has it. One without a
    guard would start workers there again; such a process ends at once, and who started it says why.

    Raises
    ------
    ClusterError
        If this process is a worker itself, or runs a script that workers cannot import.
    """
    process = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        sys.exit(1)
    if process.daemon:
        raise ClusterError(
            "cluster: this process is a worker, which can start none of its own; call bigmap from "
            "the process that started it, or use a cluster of kind existing"
        )
    script = _imported_script()
    if script is None:
        return
    if not script.is_file():
        raise ClusterError(
            f"cluster: workers import the script that starts them, but {script} is no file; save "
            f"it as one, with what it does under {GUARD}"
        )
    source = script.read_text(encoding="utf-8", errors="replace")
    # A script that looks for neither has no guard; others are found out when workers start.
    if _runs(sys.modules["__main__"]) and not any(word in source for word in NAMES_OF_GUARDS):
        raise _unguarded(script)


def _imported_script() -> Path | None:
    """Return the script that workers import before all else, None where there is none."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    file = getattr(main, "__file__", None)
    if file is None or (spec is not None and f".{spec.name}".endswith(".__main__")):
        return None
    return Path(file)


def _runs(module: ModuleType) -> bool:
    """Tell whether this call comes from the lines of a module that are run when it is imported."""
    return any(
        frame.f_globals is vars(module) and frame.f_code.co_name == "<module>"
        for frame, _ in traceback.walk_stack(None)
    )


def _unguarded(script: Path | None) -> ClusterError:
    return ClusterError(
        f"cluster: each worker imports {script or 'the script that starts it'}, which starts "
        f"workers itself, or fails, when it is imported; put what it does under {GUARD}"
    )


def _explain_start(error: Exception) -> ClusterError:
    reason = error.__cause__ or error
    return _explain_import() or ClusterError(
        f"cluster: a worker did not start ({type(reason).__name__}: {reason}); give it enough "
        "memory and start again"
    )


def _explain_import() -> ClusterError | None:
    """Say so where workers do not start because they cannot import the script that starts them.

    It is tried with one more process: all that Dask knows is that a process has ended.
    """
    probe = multiprocessing.get_context("spawn").Process(target=_do_nothing)
    probe.start()
    probe.join(PROBE_S)
    if probe.exitcode is None:
        probe.kill()
    return _unguarded(_imported_script()) if probe.exitcode else None


def _do_nothing() -> None:
    """Be what a process is started for that only has to start."""


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
