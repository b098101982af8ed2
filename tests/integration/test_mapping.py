"""Many small tasks on a cluster: bounded, done again where a worker is lost, errors as they are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from bigmap.clusters import open_cluster
from bigmap.clusters.mapping import map_on
from bigmap.config import LocalCluster
from bigmap.errors import RunError, SamplesError


@dataclass(frozen=True)
class Square:
    """Squares numbers; dies once, or fails, at some of them."""

    folder: str
    dies_at: int | None = None
    fails_at: int | None = None
    refuses: int | None = None

    def __call__(self, number: int) -> int:
        marker = Path(self.folder) / "died"
        if number == self.dies_at and not marker.exists():
            marker.touch()
            os._exit(1)
        if number == self.fails_at:
            raise OSError("a disk is gone")
        if number == self.refuses:
            raise SamplesError("samples.labels: cannot be read")
        return number**2


@pytest.fixture(scope="module")
def client():
    with open_cluster(LocalCluster(workers=2)) as client:
        yield client


def test_all_items_come_back_and_few_are_read_ahead(client, tmp_path) -> None:
    read = []

    def items():
        for number in range(60):
            read.append(number)
            yield number

    results = map_on(client, Square(str(tmp_path)), items())
    first = next(results)
    slots = sum(client.ncores().values())
    assert len(read) <= 2 * slots
    assert sorted([first, *results]) == [number**2 for number in range(60)]


def test_a_lost_worker_s_items_are_done_again(client, tmp_path) -> None:
    results = list(map_on(client, Square(str(tmp_path), dies_at=5), range(20)))
    assert sorted(results) == [number**2 for number in range(20)]
    assert (tmp_path / "died").exists()


def test_errors_come_as_they_are(client, tmp_path) -> None:
    with pytest.raises(SamplesError, match=r"samples.labels: cannot be read"):
        list(map_on(client, Square(str(tmp_path), refuses=3), range(9)))
    with pytest.raises(RunError, match=r"4: failed in 3 attempts \(a disk is gone\)"):
        list(map_on(client, Square(str(tmp_path), fails_at=4), range(9)))
