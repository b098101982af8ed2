"""A run on one machine opens no port beyond loopback."""

from __future__ import annotations

import psutil

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.reporting import SilentReporter
from tests.integration.tiny_scenes import write_tiny_scenes


class WatchesPorts(SilentReporter):
    """Notes, at each block, where this process and all that it started listen."""

    def __init__(self) -> None:
        self.before = {place for _, place in listening()}
        self.seen: set[tuple[int, tuple[str, int]]] = set()

    def add(self, record) -> None:
        self.seen |= {entry for entry in listening() if entry[1] not in self.before}


def listening() -> set[tuple[int, tuple[str, int]]]:
    """Return process numbers with the address and port of each socket that listens."""
    driver = psutil.Process()
    return {
        (process.pid, (place.laddr.ip, place.laddr.port))
        for process in [driver, *driver.children(recursive=True)]
        for place in process.net_connections(kind="inet")
        if place.status == psutil.CONN_LISTEN
    }


def test_a_local_run_listens_on_loopback_only(tmp_path):
    items = write_tiny_scenes(tmp_path / "scenes")
    raw = {
        "name": "ports", "area": {"bbox": [2.3, 41.8, 2.4, 41.9]},
        "grid": {
            "crs": "EPSG:25831", "gsd_m": 100, "core_px": 64, "cell_px": 64, "block_px": 64,
            "shard_px": 64, "chunk_px": 64,
        },
        "source": {
            "kind": "files", "files": [str(items)], "start": "2024-05-01", "end": "2024-05-31",
        },
        "model": {"name": "ndvi", "options": {"upscale": 1}},
        "output": {"path": str(tmp_path / "map.zarr"), "overviews": 0},
        "cluster": {"kind": "local", "workers": 2, "memory_gb": 3},
    }  # fmt: skip
    watch = WatchesPorts()
    assert bigmap.run(parse_recipe(raw), reporter=watch, limit=2).sent == 2
    # The driver's scheduler and dashboard, and two workers: nothing of theirs was overlooked.
    assert len({pid for pid, _ in watch.seen}) >= 3
    assert len(watch.seen) >= 6
    assert {address for _, (address, _) in watch.seen} == {"127.0.0.1"}
