"""A simulated source: planned without rendering, rendered before it is run, staged."""

import shutil
from dataclasses import replace

import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import ModelError, PlanError
from bigmap.mapping.loads import estimate_plan
from bigmap.mapping.running import run_plan
from bigmap.mapping.staging.stages import stage_plan
from tests.integration.small_world import raw_recipe

BORDER = [-0.004, 41.620, 0.004, 41.622]
"""On both sides of the border between two UTM zones."""


def make_recipe(folder, **changes):
    source = {
        "kind": "simulated", "start": "2024-05-01", "end": "2024-05-02", "scene_px": 366,
        "cache": str(folder / "cache"),
    }  # fmt: skip
    small = {"area__bbox": [2.420, 41.800, 2.424, 41.803], "grid__cell_px": 32}
    changes = {"source": source, "output__path": str(folder / "map.zarr"), **small, **changes}
    return parse_recipe(raw_recipe(**changes))


def list_files(folder):
    return {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}


def test_a_plan_that_lacks_scenes_is_not_run(tmp_path):
    plan = bigmap.plan(make_recipe(tmp_path))
    assert (len(plan.scenes.scenes), plan.scenes.lacking) == (1, 1)
    message = r"source: 1 of 1 simulated scenes are not rendered; call bigmap\.prepare_source"
    with pytest.raises(PlanError, match=message):
        run_plan(plan, None)
    with pytest.raises(PlanError, match=message):
        stage_plan(plan, tmp_path / "stage")
    assert not list(tmp_path.iterdir())


def test_what_is_planned_is_what_is_rendered(tmp_path):
    recipe = make_recipe(tmp_path)
    forecast = bigmap.plan(recipe)
    assert not list(tmp_path.iterdir())
    bigmap.prepare_source(recipe)
    plan = bigmap.plan(recipe)
    assert plan.scenes.lacking == 0
    assert estimate_plan(plan) == estimate_plan(forecast)
    hidden = {"datetime": None, "cloud_percent": None}
    rows = [
        [replace(row, **hidden) for row in each.only.catalogue.rows] for each in (plan, forecast)
    ]
    assert rows[0] == rows[1]
    plan.check_rendered()
    # A second time nothing is written.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    bigmap.prepare_source(recipe)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_zones_count_shared_scenes_once_against_the_limit(tmp_path):
    utm = {"grid__crs": "utm", "area__bbox": BORDER, "source__end": "2024-05-05"}
    plans = bigmap.plan(make_recipe(tmp_path, **utm))
    assert [part.name for part in plans.parts] == ["utm30n", "utm31n"]
    own = [part.scenes for part in plans.parts]
    assert plans.scenes.scenes == own[0].scenes | own[1].scenes
    assert plans.scenes.requests == own[0].requests + own[1].requests
    too_small = plans.scenes.bytes / 1e9 - 1e-9
    with pytest.raises(PlanError, match=r"or raise source\.cache_gb$"):
        bigmap.plan(make_recipe(tmp_path, **utm, source__cache_gb=too_small))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source__cache_gb": 1e-5}, PlanError, r"source\.cache_gb"),
        ({"source__start": "2024-05-02"}, PlanError, "give at least five days"),
        ({"cluster__memory_gb": 0.1}, PlanError, "a worker needs about"),
        ({"model": {"name": "segnet"}}, ModelError, r"model\.weights: segnet has none"),
    ],
)
@pytest.mark.parametrize("is_utm", [False, True])
def test_what_cannot_run_renders_nothing(tmp_path, changes, error, message, is_utm):
    recipe = make_recipe(tmp_path, **changes, **({"grid__crs": "utm"} if is_utm else {}))
    with pytest.raises(error, match=message):
        bigmap.run(recipe)
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_staged_scenes_are_mapped_without_rendering(tmp_path):
    recipe = make_recipe(tmp_path)
    assert bigmap.stage(recipe, tmp_path / "stage").exit_code == 0
    shutil.rmtree(tmp_path / "cache")
    summary = bigmap.run(recipe, staged=tmp_path / "stage", limit=1)
    assert summary.states.total() == 1
    assert not (tmp_path / "cache").exists()
    # Without the folder the run goes on from scenes that are rendered again.
    assert bigmap.run(recipe, resume=True).exit_code == 0
    assert list_files(tmp_path / "cache")
