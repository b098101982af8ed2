"""Many small tasks on a cluster: bounded, done again where a worker is lost, errors as they are."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from bigmap.clusters import open_cluster
from bigmap.clusters.driving import map_on
from bigmap.config.cluster import LocalCluster
from bigmap.errors import OutputError, ReadError, RunError, SamplesError, UnfitFileError


@dataclass(frozen=True)
class Square:
    """Squares numbers; dies once, or fails, at some of them."""

    folder: str
    dies_at: int | None = None
    fails_at: int | None = None
    refuses: int | None = None
    misses: int | None = None
    """Cannot be read twice."""
    unfit: int | None = None
    unwritten: int | None = None
    """Cannot be written twice."""

    def __call__(self, number: int) -> int:
        marker = Path(self.folder) / "died"
        if number == self.dies_at and not marker.exists():
            marker.touch()
            os._exit(1)
        if number == self.fails_at:
            raise OSError("a disk is gone")
        if number == self.refuses:
            raise SamplesError("samples.labels: cannot be read")
        if number == self.misses and len(list(Path(self.folder).glob("missed*"))) < 2:
            Path(self.folder, f"missed-{uuid.uuid4().hex}").touch()
            raise ReadError("labels.tif: HTTP response code: 503")
        if number == self.unwritten and len(list(Path(self.folder).glob("full*"))) < 2:
            Path(self.folder, f"full-{uuid.uuid4().hex}").touch()
            raise OutputError("chips.zarr: cannot be written (No space left on device)")
        if number == self.unfit:
            Path(self.folder, f"unfit-{uuid.uuid4().hex}").touch()
            raise UnfitFileError("labels.tif: has 3 bands")
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
    with pytest.raises(RunError, match=r"4: failed in 3 attempts \(OSError: a disk is gone\)"):
        list(map_on(client, Square(str(tmp_path), fails_at=4), range(9)))


def test_what_cannot_be_written_for_a_moment_is_written_again(
    client, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("bigmap.clusters.driving.RETRY_DELAY_S", 0.01)
    results = list(map_on(client, Square(str(tmp_path), unwritten=4), range(9)))
    assert sorted(results) == [number**2 for number in range(9)]
    assert len(list(tmp_path.glob("full*"))) == 2


def test_what_cannot_be_read_for_a_moment_is_read_again(client, tmp_path, monkeypatch) -> None:
    results = list(map_on(client, Square(str(tmp_path), misses=3), range(9)))
    assert sorted(results) == [number**2 for number in range(9)]
    assert len(list(tmp_path.glob("missed*"))) == 2
    with pytest.raises(UnfitFileError, match=r"^labels\.tif: has 3 bands$"):
        list(map_on(client, Square(str(tmp_path), unfit=2), range(9)))
    assert len(list(tmp_path.glob("unfit*"))) == 1, "trying again does not help"
    monkeypatch.setattr("bigmap.clusters.tasks.MAX_ATTEMPTS", 2)
    (tmp_path / "other").mkdir()
    with pytest.raises(ReadError, match=r"^labels\.tif: HTTP response code: 503$"):
        list(map_on(client, Square(str(tmp_path / "other"), misses=3), range(9)))
