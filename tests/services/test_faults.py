"""What places do to runs: each ends in the bytes of an undisturbed run, and nothing is lost.

The short form is part of the services tier, the whole of ``make test-long``. Both write the table
``build/faults.md``; with ``BIGMAP_FAULTS_RESULTS`` set, the whole goes to ``benchmarks/results``.
Runs are held at a gate while they are disturbed, so that none ends before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measuring import describe_machine, table, write_results
from tests.services import faults
from tests.services.faults import ROOT, World

SEED = 5
HEADER = ("fault", "times", "blocks", "end", "same bytes", "seconds in all")


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    world = World.make(tmp_path_factory.mktemp("faults"))
    yield world
    if not world.rows:
        return
    text = table(HEADER, world.rows)
    Path(ROOT / "build").mkdir(exist_ok=True)
    Path(ROOT / "build" / "faults.md").write_text(text + "\n")
    print(f"\n{text}")
    if os.environ.get("BIGMAP_FAULTS_RESULTS") and not request.session.testsfailed:
        body = (
            f"A map of {world.blocks} blocks with small-conv, by two worker processes. Every run "
            "ended with the bytes of one that nothing had disturbed, every block in its ledger as "
            f"done or empty, and no partial file. Moments of kills are random, with seed {SEED}; "
            f"seconds are of all runs of a line, starts included.\n\n{text}"
        )
        results = {"machine": describe_machine(), "rows": world.rows}
        write_results("faults", "Faults", body, results, quick=False)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)


@pytest.fixture
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")


def test_killed_workers(world, rng):
    faults.kill_workers(world, 2, rng)


def test_a_killed_driver(world, rng):
    faults.kill_drivers(world, 1, rng)


def test_a_stopped_driver_that_goes_on_after_its_successor(world):
    faults.stop_driver(world)


@pytest.mark.faults
def test_a_worker_out_of_memory(world):
    faults.starve_worker(world, meals=1, name="hungry")


@pytest.mark.faults
def test_a_worker_that_hangs(world, rng):
    faults.stop_worker(world, rng)


@pytest.mark.faults
@pytest.mark.usefixtures("_root")
def test_a_full_disk(world):
    faults.fill_disk(world)


@pytest.mark.faults
def test_a_second_driver(world):
    faults.start_second_driver(world)


@pytest.mark.faults
def test_an_overtaken_driver(world):
    faults.overtake_driver(world)


@pytest.mark.long
def test_twenty_killed_workers(world, rng):
    faults.kill_workers(world, 20, rng)


@pytest.mark.long
def test_ten_killed_drivers(world, rng):
    faults.kill_drivers(world, 10, rng)


@pytest.mark.long
def test_a_block_that_no_worker_has_memory_for(world):
    faults.starve_worker(world, meals=1000, name="starving")


@pytest.mark.long
def test_a_killed_scheduler(world, rng):
    faults.kill_scheduler(world, rng)
