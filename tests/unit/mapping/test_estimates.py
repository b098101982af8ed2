"""Hours and cost: numbers worked out by hand, and sane ones for models that cost nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bigmap.clusters.sizes import size_cluster
from bigmap.config import parse_recipe
from bigmap.config.cluster import LocalCluster, SlurmCluster
from bigmap.mapping import loads
from bigmap.mapping.estimates import (
    CORE_GFLOPS,
    FINISH_CORE_S,
    GPU_GFLOPS,
    OVERVIEW_CORE_S,
    READ_CORE_S,
    START_S,
    WRITE_CORE_S,
    Measured,
    ModelLoad,
    Trial,
    _estimate_cluster,
    estimate_clusters,
)
from bigmap.mapping.loads import Estimate, estimate_plan
from bigmap.models import ModelChoice
from bigmap.models.trial import choose_trial_px

WORK = Estimate(
    area_km2=1000.0, blocks=10, items=20, dates=10, read_gb=360.0, written_gb=1.0, memory_gb=2.0,
    samples=1e9, output_px=2e9, date_px=1e8, block_km2=1100.0, window_km2=2200.0,
)  # fmt: skip
CPU = SlurmCluster(kind="slurm", interface="ib0", max_jobs=5, cpus_per_worker=4)
GPU = SlurmCluster(kind="slurm", interface="ib0", max_jobs=2, gpus_per_job=2, cpus_per_worker=8)


def estimate(cluster, *, gflop, mb_s=1e9, measured=None, price=None, trial=None):
    return _estimate_cluster(
        "x", size_cluster(cluster), ModelLoad(gflop, "float32", trial), WORK, mb_s=mb_s,
        measured=measured, price=price, wants_cpu=False,
    )  # fmt: skip


def test_cores_share_the_work_of_a_cpu_cluster():
    core_s = (
        READ_CORE_S * 1000 + (WRITE_CORE_S + FINISH_CORE_S) * 2000 + 4800 / CORE_GFLOPS["float32"]
    )
    found = estimate(CPU, gflop=4800.0, price=2.0)
    assert found.hours == pytest.approx(core_s / 20 / 3600)
    assert found.km2_per_hour == pytest.approx(1000 / found.hours)
    assert (found.bound, found.workers, found.gpu_hours, found.cost) == ("CPU cores", 5, 0, None)


def test_a_heavy_model_is_bound_by_gpus_and_costs_their_hours():
    found = estimate(GPU, gflop=GPU_GFLOPS["float32"] * 7200 * 4, price=2.5)
    assert found.hours == pytest.approx(2)
    assert found.gpu_hours == pytest.approx(8)
    assert found.cost == pytest.approx(20)
    assert found.bound == "GPU"


def test_slow_reading_decides():
    found = estimate(GPU, gflop=0.0, mb_s=100.0)
    assert found.bound == "reading"
    assert found.hours == pytest.approx(360e9 / 100e6 / 4 / 3600)


def test_measured_blocks_replace_what_is_assumed():
    measured = Measured("x.zarr", 4, "cpu", block_s_per_km2=7.2)
    found = estimate(CPU, gflop=1e9, measured=measured)
    assert found.hours == pytest.approx(7.2 * 1000 / 2 / 5 / 3600)
    assert found.bound == "measured"
    assert estimate(GPU, gflop=1e9, measured=measured).bound == "GPU"


def test_a_trial_on_this_machine_replaces_the_assumed_speed_there_and_nowhere_else(monkeypatch):
    monkeypatch.setattr("bigmap.clusters.sizes.count_cores", lambda: 4)
    trial = Trial(side_px=64, dates=12, threads=2, seconds=0.5, core_s=7200.0)
    here = estimate(LocalCluster(workers=2), gflop=1e9, trial=trial)
    work_s = 7200 + READ_CORE_S * 1000 + (WRITE_CORE_S + FINISH_CORE_S) * 2000
    overviews_s = OVERVIEW_CORE_S * 2000 * 4 / 3
    assert here.hours == pytest.approx(((work_s + overviews_s) / 4 + START_S) / 3600)
    assert estimate(CPU, gflop=4800.0, trial=trial) == estimate(CPU, gflop=4800.0)


def test_a_small_map_takes_as_long_as_its_workers_take_to_start():
    nothing = replace(WORK, read_gb=0, samples=0, output_px=0, date_px=0)
    found = _estimate_cluster(
        "x", size_cluster(LocalCluster(workers=1)), ModelLoad(0.0, "float32"), nothing, mb_s=1e9,
        measured=None, price=None, wants_cpu=False,
    )  # fmt: skip
    assert found.hours == pytest.approx(START_S / 3600)


@pytest.mark.parametrize(
    ("gflop_per_km2", "multiple_px", "side_px"),
    [(0.0, 1, 192), (20.0, 8, 96), (439.0, 8, 32), (439.0, 32, 64)],
)
def test_a_heavy_model_is_tried_on_a_small_window(gflop_per_km2, multiple_px, side_px):
    assert choose_trial_px(gflop_per_km2, multiple_px) == side_px


def test_parts_of_a_map_add_up(monkeypatch):
    days = SimpleNamespace(rows=SimpleNamespace(column=lambda _: np.arange(10)))
    monkeypatch.setattr(loads, "estimate_part", lambda part: part.work)
    part = SimpleNamespace(work=WORK, catalogue=days)
    total = estimate_plan(SimpleNamespace(parts=(part, part)))
    assert total.blocks == 20
    assert total.read_gb == 720
    assert (total.memory_gb, total.dates) == (2.0, 10)


def test_a_model_without_operations_has_hours_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(
        {
            "name": "x", "area": {"bbox": [1, 41, 2, 42]}, "grid": {"crs": "EPSG:32631"},
            "source": {"kind": "files", "files": ["x"], "start": "2024-01-01", "end": "2024-02-01"},
            "model": {"name": "ndvi"}, "output": {"path": str(tmp_path / "x.zarr")},
            "cluster": LocalCluster(workers=2).model_dump(),
        }
    )  # fmt: skip
    found, assumed = estimate_clusters(
        recipe, ModelChoice("ndvi").build(), WORK, is_remote=True, price_per_gpu_hour=1.0
    )
    by_name = {each.name: each for each in found}
    assert set(by_name) == {"recipe", "local", "local-cuda"}
    assert by_name["recipe"].hours > 0.1
    assert np.isfinite(by_name["local-cuda"].cost)
    assert "0.0 TFLOP" in assumed[0]
    assert any("tried on this machine: a window of 192 px" in line for line in assumed)
    assert json.dumps(assumed)
