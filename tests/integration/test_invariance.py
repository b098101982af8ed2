"""The same bytes however the work is cut up, shared out, ordered, interrupted and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
import yaml
from distributed import Client

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.mapping.ledger import Ledger
from bigmap.mapping.places import Attempt
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from bigmap.mapping.status import read_status
from bigmap.simulate import locate_items
from tests.integration.gated_model import Gate, install_gated_model
from tests.integration.local import start_cluster
from tests.integration.real_scenes import raw_recipe
from tests.integration.small_world import raw_recipe as small_recipe

CASES = {
    f"{model} {overlap}": {
        "model": {"name": model, "options": {"upscale": 2}},
        "inference": {"overlap": overlap},
    }
    for model in ("ndvi", "small-conv")
    for overlap in ("trim", "blend")
}
SIMULATED_CASES = {
    "small-conv trim": {
        "model": {"name": "small-conv", "options": {"upscale": 4}},
        "inference": {"overlap": "trim"},
    },
    "spinet blend": {
        "model": {
            "name": "spinet", "options": {"size": "small"},
            "weights": "bigmap://spinet-small.safetensors",
        },
        "inference": {"overlap": "blend"},
    },
}  # fmt: skip


@dataclass(frozen=True)
class RealWorld:
    """The real scenes, and an area across the border of their two tiles."""

    data: Path
    area = (15.45, 45.84, 15.85, 46.08)
    part = (15.55, 45.9, 15.7, 46.0)
    least_px = 30_000
    others = (
        (2, {"grid__block_px": 128, "inference__batch_windows": 3}),
        (4, {"grid__block_px": 256, "inference__batch_windows": 1, "reading__loader": "odc-stac"}),
    )
    """Other ways to the same map: workers, and settings."""

    def make_raw(self, output, case, **changes):
        """Return the recipe of a case."""
        changes = {
            "area": {"bbox": self.area}, "grid__cell_px": 128, "grid__block_px": 512,
            "grid__shard_px": 256, "dates": {"max_per_cell": 4, "min_clear_percent": 10}, **changes,
        }  # fmt: skip
        return fill(raw_recipe(self.data, output, **changes), CASES[case])


@dataclass(frozen=True)
class SimulatedWorld:
    """Three dates of simulated scenes, one of them cloudy, and an area across two of them."""

    source: dict
    area = (2.422, 41.806, 2.43, 41.811)
    part = (2.4235, 41.8065, 2.429, 41.81)
    least_px = 25_000
    others = (
        (2, {"grid__block_px": 64, "inference__batch_windows": 3, "reading__loader": "odc-stac"}),
    )

    def make_raw(self, output, case, **changes):
        """Return the recipe of a case."""
        changes = {
            "source": self.source | {"start": "2024-03-25", "end": "2024-04-07"},
            "area": {"bbox": self.area}, "grid__crs": "EPSG:3035", "grid__block_px": 256,
            "grid__shard_px": 256, "grid__chunk_px": 128,
            "dates": {"max_per_cell": 2, "min_clear_percent": 10}, **changes,
        }  # fmt: skip
        return fill(small_recipe(output__path=str(output), **changes), SIMULATED_CASES[case])


def fill(raw, case):
    """Put the settings of a case into a recipe."""
    for part, settings in case.items():
        raw[part] = raw.get(part, {}) | settings
    return raw


def digest(output) -> dict[str, str]:
    """Digests of all objects that hold pixels."""
    root = Path(output)
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("c/**/*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def clients():
    """Clients of clusters with 1, 2 and 4 workers, started when they are first asked for."""
    opened: dict[int, Client] = {}
    with ExitStack() as stack:

        def get(workers: int) -> Client:
            if workers not in opened:
                _, opened[workers] = stack.enter_context(start_cluster(workers))
            return opened[workers]

        yield get


def run(raw, client, *, shuffle=None):
    plan = bigmap.plan(parse_recipe(raw))
    if shuffle is not None:
        blocks = list(plan.only.blocks)
        random.Random(shuffle).shuffle(blocks)
        part = dataclasses.replace(plan.only, blocks=tuple(blocks))
        plan = dataclasses.replace(plan, parts=(part,))
    summary = run_plan(plan, client)
    assert summary.exit_code == 0, summary
    return digest(raw["output"]["path"])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The simulated world, rendered for the case that sees farthest around the area."""
    folder = tmp_path_factory.mktemp("simulated")
    world = SimulatedWorld({"kind": "simulated", "scene_px": 366, "cache": str(folder / "cache")})
    recipe = parse_recipe(world.make_raw(folder / "map.zarr", "spinet blend"))
    bigmap.prepare_source(recipe)
    stock = bigmap.plan(recipe).scenes
    items = locate_items(*stock.requests, stock.cache)
    return SimulatedWorld({"kind": "files", "files": [str(items)]})


@pytest.fixture
def real(shared_data):
    return RealWorld(shared_data)


@pytest.fixture
def world(request):
    return request.getfixturevalue(request.param)


in_both_worlds = pytest.mark.parametrize(
    ("world", "case"),
    [
        *(pytest.param("real", case, marks=pytest.mark.real_data) for case in CASES),
        *(("simulated", case) for case in SIMULATED_CASES),
    ],
    indirect=["world"],
)


@pytest.fixture(scope="module")
def map_whole(tmp_path_factory, clients):
    """Return what maps the area of a case by one worker, once, and returns its place and bytes."""
    made: dict[tuple[type, str], tuple[Path, dict[str, str]]] = {}

    def get(world, case):
        key = type(world), case
        if key not in made:
            output = tmp_path_factory.mktemp("whole") / "whole.zarr"
            made[key] = output, run(world.make_raw(output, case), clients(1))
        return made[key]

    return get


@in_both_worlds
def test_blocks_workers_order_and_batches_change_no_byte(world, case, tmp_path, clients, map_whole):
    _, base = map_whole(world, case)
    assert len(base) > 10
    for number, (workers, changes) in enumerate(world.others, 1):
        raw = world.make_raw(tmp_path / f"{number}.zarr", case, **changes)
        assert run(raw, clients(workers), shuffle=number) == base


@in_both_worlds
def test_a_part_of_the_area_has_the_bytes_of_the_whole(world, case, tmp_path, clients, map_whole):
    output, _ = map_whole(world, case)
    part = world.make_raw(tmp_path / "part.zarr", case, area={"bbox": world.part})
    run(part, clients(1))
    whole, cut = (bigmap.open_map(str(each)).load() for each in (output, tmp_path / "part.zarr"))
    same_place = whole.sel(x=cut.x, y=cut.y)
    inside = cut["observations"].values != 255
    assert inside.sum() > world.least_px
    for layer in cut.data_vars:
        ours, theirs = cut[layer].values, same_place[layer].values
        assert np.array_equal(ours[..., inside], theirs[..., inside]), layer
    # The part is surrounded by nodata, the whole is not.
    assert (same_place["observations"].values != 255).sum() > inside.sum()


@pytest.mark.real_data
def test_blending_differs_from_trimming_by_rounding_only_for_an_exact_model(
    real, tmp_path, clients
):
    """Exact models have all their context in either way, so neighbours agree where they blend."""
    # Cells choose their dates, and lie half a core off where windows blend: here all choose all.
    dates = {"dates__max_per_cell": 100, "dates__min_clear_percent": 0}
    run(real.make_raw(tmp_path / "t.zarr", "small-conv trim", **dates), clients(1))
    run(real.make_raw(tmp_path / "b.zarr", "small-conv blend", **dates), clients(1))
    trimmed, blended = (bigmap.open_map(str(tmp_path / n)).load() for n in ("t.zarr", "b.zarr"))
    seen = trimmed["observations"].values != 255
    for layer in ("class", "confidence"):
        differing = (trimmed[layer].values != blended[layer].values)[seen]
        assert differing.mean() < 1e-4


class KillsAWorker(SilentReporter):
    """Kills a random worker process after the second block."""

    def __init__(self, client: Client) -> None:
        self.pids = list(client.run(os.getpid).values())
        self.seen = 0

    def add(self, record) -> None:
        self.seen += 1
        if self.seen == 2:
            os.kill(random.Random(3).choice(self.pids), signal.SIGKILL)


@pytest.mark.real_data
@pytest.mark.slow
def test_a_killed_worker_costs_time_only(real, tmp_path, clients):
    case = "small-conv blend"
    base = run(real.make_raw(tmp_path / "a.zarr", case), clients(2))
    raw = real.make_raw(tmp_path / "b.zarr", case, grid__block_px=128)
    plan = bigmap.plan(parse_recipe(raw))
    with start_cluster(2) as (_, client):
        reporter = KillsAWorker(client)
        summary = run_plan(plan, client, reporter=reporter)
        after = set(client.run(os.getpid).values())
    assert len(after & set(reporter.pids)) == 1
    assert summary.exit_code == 0
    assert summary.states == {"done": summary.planned}
    assert digest(tmp_path / "b.zarr") == base


@pytest.fixture
def gated(real, tmp_path, monkeypatch) -> tuple[dict, list[str], Gate]:
    """A recipe whose blocks wait at a gate, the command that runs it, and the gate."""
    gate = Gate(tmp_path / "gate")
    packages = install_gated_model(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=os.pathsep)
    raw = real.make_raw(
        tmp_path / "b.zarr", "small-conv blend", grid__block_px=128
    ) | {"model": gate.model}  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    return raw, [sys.executable, "-m", "bigmap.cli", "run", str(recipe), "--workers", "1"], gate


def wait_for_a_record(driver: subprocess.Popen, output: str, gate: Gate) -> None:
    """Let some of the blocks pass, and wait until one is recorded."""
    folder = RunFolder(output)
    # Two of the eleven blocks are in hand at a time, and each has six batches at most.
    gate.let(18)
    deadline = time.monotonic() + 600
    while not (folder.exists() and Ledger(folder.path).latest()):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.real_data
@pytest.mark.slow
def test_a_killed_driver_is_resumed_to_the_same_bytes(real, tmp_path, clients, gated):
    base = run(real.make_raw(tmp_path / "a.zarr", "small-conv blend"), clients(2))
    raw, command, gate = gated
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for_a_record(driver, raw["output"]["path"], gate)
    driver.kill()
    driver.wait()
    status = read_status(raw["output"]["path"])
    assert 0 < status.missing < status.planned
    assert not status.lease.is_alive

    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    gate.open()
    resumed = subprocess.run([*command, "--resume"], check=False, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{status.missing} blocks to do ({status.planned - status.missing} recorded" in (
        resumed.stdout
    )
    assert digest(raw["output"]["path"]) == base


@pytest.mark.real_data
def test_a_lost_shard_is_made_again(real, tmp_path, clients):
    raw = real.make_raw(tmp_path / "a.zarr", "ndvi trim")
    base = run(raw, clients(2))
    (tmp_path / "a.zarr" / next(key for key in base if key.startswith("class"))).unlink()
    plan = bigmap.plan(parse_recipe(raw))
    summary = run_plan(plan, clients(2), Attempt(resume=True))
    assert (summary.sent, summary.exit_code) == (1, 0)
    assert digest(tmp_path / "a.zarr") == base
    shutil.rmtree(tmp_path / "a.zarr")
    summary = run_plan(plan, clients(2), Attempt(resume=True))
    assert (summary.sent, summary.exit_code) == (summary.planned, 0)
    assert digest(tmp_path / "a.zarr") == base


class Stops(SilentReporter):
    """Stops the run when the overviews begin."""

    def note(self, message: str) -> None:
        if message.startswith("overview 1"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)


@pytest.mark.real_data
@pytest.mark.slow
def test_overviews_that_were_stopped_are_made_on_resume(real, tmp_path, clients):
    base = run(real.make_raw(tmp_path / "a.zarr", "ndvi trim"), clients(2))
    plan = bigmap.plan(parse_recipe(real.make_raw(tmp_path / "b.zarr", "ndvi trim")))
    summary = run_plan(plan, clients(2), reporter=Stops())
    assert (summary.exit_code, summary.has_overviews) == (75, False)
    assert not read_status(str(tmp_path / "b.zarr")).has_overviews
    summary = run_plan(plan, clients(2), Attempt(resume=True))
    assert (summary.sent, summary.exit_code) == (0, 0)
    assert digest(tmp_path / "b.zarr") == base


@pytest.mark.real_data
def test_a_run_whose_area_changed_under_its_name_is_not_resumed(real, tmp_path, clients):
    outline = tmp_path / "outline.geojson"
    gpd.GeoDataFrame(geometry=[shapely.box(*real.part)], crs=4326).to_file(outline)
    raw = real.make_raw(tmp_path / "a.zarr", "ndvi trim", area={"file": str(outline)})
    run(raw, clients(2))
    gpd.GeoDataFrame(geometry=[shapely.box(*real.area)], crs=4326).to_file(outline)
    with pytest.raises(OutputError, match=r"area\.file: its content"):
        run_plan(bigmap.plan(parse_recipe(raw)), clients(2), Attempt(resume=True))


@pytest.mark.real_data
@pytest.mark.slow
def test_a_stopped_driver_exits_with_75_and_can_be_resumed(gated):
    raw, command, gate = gated
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_for_a_record(driver, raw["output"]["path"], gate)
    driver.send_signal(signal.SIGTERM)
    out, _ = driver.communicate(timeout=600)
    assert driver.returncode == 75, out
    assert "--resume" in out
    status = read_status(raw["output"]["path"])
    assert status.lease is None
    assert status.missing > 0
