"""Clusters of this machine for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from distributed import Client, LocalCluster


@contextmanager
def start_cluster(workers: int = 1, *, threads: int = 2) -> Iterator[tuple[LocalCluster, Client]]:
    """Start worker processes that listen on loopback only."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1",
            dashboard_address="127.0.0.1:0", memory_limit="6GB", silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield cluster, client


def find_workers() -> list[psutil.Process]:
    """Return the worker processes that this process has started."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_until(is_so: Callable[[], Any], *, limit_s: float = 60) -> None:
    """Wait until something is so, and fail where it takes longer than that."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)
