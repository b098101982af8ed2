"""Clusters of this machine for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
