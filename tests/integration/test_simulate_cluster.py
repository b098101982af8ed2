"""Simulated scenes rendered on a cluster: the same files, clear errors, nothing lost."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client

from bigmap.clusters import render_on
from bigmap.errors import OutputError
from bigmap.simulate import SceneRequest, scenes, write_scenes
from tests.integration.local import start_cluster

pytestmark = pytest.mark.slow

TWO_PARTS = SceneRequest(
    "EPSG:25831", (452_000.0, 4_630_500.0, 455_000.0, 4_631_000.0), dt.date(2024, 5, 1),
    dt.date(2024, 5, 9), ("red",), 3, scene_px=366,
)  # fmt: skip


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    # As in a run: a task of a lost worker comes back to the driver.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        start_cluster(2, threads=1) as (_, client),
    ):
        yield client


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("pool")
    write_scenes(TWO_PARTS, cache)
    return list_sums(cache)


@pytest.fixture(autouse=True)
def many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "PIECES_PER_PROCESS", 1)


def list_sums(cache: Path) -> dict[str, str]:
    return {
        str(file.relative_to(cache)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(cache.rglob("*"))
        if file.is_file()
    }


def list_renderers(pids: dict[str, int]) -> list[psutil.Process]:
    return [
        child
        for pid in pids.values()
        for child in psutil.Process(pid).children()
        if "serve_tasks" in " ".join(child.cmdline())
    ]


def test_two_workers_write_the_same_files_as_this_machine(
    client: Client, expected: dict[str, str], tmp_path: Path
) -> None:
    used: set[int] = set()

    def render(*arguments: Any) -> None:
        watch = threading.Thread(target=watch_renderers, args=(client.run(os.getpid), used, done))
        watch.start()
        render_on(client, *arguments, threads=1)
        done.set()
        watch.join()

    done = threading.Event()
    write_scenes(TWO_PARTS, tmp_path, render=render)
    assert list_sums(tmp_path) == expected
    assert len(used) == 2
    assert not list_renderers(client.run(os.getpid))
    # A second time there is nothing to render.
    write_scenes(TWO_PARTS, tmp_path, render=lambda *_: pytest.fail("rendered twice"))


def watch_renderers(pids: dict[str, int], used: set[int], done: threading.Event) -> None:
    while not done.wait(0.2):
        used.update(process.pid for process in list_renderers(pids))


def test_a_part_that_cannot_be_written_is_one_sentence(client: Client, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cache: simulated scenes cannot be kept there \(.*\)$"):
        write_scenes(TWO_PARTS, cache, render=partial(render_on, client, threads=1))
    assert not list_renderers(client.run(os.getpid))


def test_the_part_of_a_killed_worker_is_done_again(
    client: Client, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = client.map

    def count(*arguments: Any, **options: Any) -> Any:
        sent.extend(options["key"])
        return send(*arguments, **options)

    def kill() -> None:
        while not list(tmp_path.rglob("item.json")):
            time.sleep(0.02)
        os.kill(victim, signal.SIGKILL)

    monkeypatch.setattr(client, "map", count)
    victim = next(iter(client.run(os.getpid).values()))
    killer = threading.Thread(target=kill)
    killer.start()
    write_scenes(TWO_PARTS, tmp_path, render=partial(render_on, client, threads=1))
    killer.join()
    assert list_sums(tmp_path) == expected
    assert len(sent) == 3
