"""The score of a trial: formula, a perfect map, and the refusal of real scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import bigmap
from bigmap.config import load_recipe
from bigmap.errors import OutputError
from bigmap.learning.metrics import score_confusion
from bigmap.simulate import render_truth
from scripts import score_trial
from tests.integration import small_world
from tests.unit.simulate.test_simulate_cli import SMALL


@pytest.fixture(scope="module")
def map_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a small map of simulated scenes."""
    folder = tmp_path_factory.mktemp("trial")
    output = str(folder / "map.zarr")
    source = {"kind": "simulated", "cache": "cache", "start": "2024-05-01", "end": "2024-05-06"}
    source["scene_px"] = 366
    changes = {**SMALL, "source": source, "model__options__upscale": 4, "output__path": output}
    changes |= {"grid__shard_px": 256, "grid__chunk_px": 128}
    recipe = small_world.write_recipe(folder / "recipe.yaml", **changes)
    assert bigmap.run(load_recipe(recipe)).exit_code == 0
    return output


def test_scores_follow_their_formulas() -> None:
    scores = score_trial.name_scores(score_confusion(np.array([[11, 1], [2, 6]])))
    assert scores["MCC"] == pytest.approx((6 * 11 - 1 * 2) / (7 * 8 * 12 * 13) ** 0.5)
    assert scores["IoU of cropland"] == pytest.approx(6 / 9)
    assert scores["precision"] == pytest.approx(6 / 7)
    assert scores["recall"] == pytest.approx(6 / 8)
    assert scores["overall accuracy"] == pytest.approx(17 / 20)
    alone = score_trial.name_scores(score_confusion(np.array([[5, 0], [0, 0]])))
    assert np.isnan(alone["MCC"])
    assert alone["overall accuracy"] == 1


def test_a_trial_is_scored_and_drawn(map_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    scores, picture = score_trial.score_map(map_path)
    assert -1 <= scores["MCC"] <= 1
    assert scores["area mapped"] == pytest.approx(1, abs=0.02)
    assert picture is not None
    assert picture.name == "map.truth.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_truth_itself_scores_one(map_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the truth into the map: its place must be that which the map itself states."""
    trial = score_trial.Trial(map_path)
    array = zarr.open_group(map_path)["class"]
    values = array[:]
    transform = bigmap.open_map(map_path).rio.transform()
    truth = render_truth(trial.crs, transform, values.shape, seed=trial.seed, layer="cropland")
    values = np.where(values == trial.nodata, values, truth)
    array[:] = values
    monkeypatch.setattr(score_trial, "BLOCK_PX", 64)
    scores, _ = score_trial.score_map(map_path)
    assert scores["MCC"] == 1
    assert scores["IoU of cropland"] == 1


def test_a_map_of_real_scenes_is_refused(map_path: str, tmp_path: Path) -> None:
    run = Path(map_path).with_suffix(".run")
    text = (run / "recipe.yaml").read_text()
    lines = text.replace("kind: simulated", "kind: files\n  files: [items.json]").splitlines()
    gone = ("  seed:", "  scene_px:", "  cache:", "  cache_gb:")
    kept = [line for line in lines if not line.startswith(gone)]
    copy = tmp_path / "real.run"
    copy.mkdir()
    (copy / "recipe.yaml").write_text("\n".join(kept) + "\n")
    (copy / "plan.json").write_bytes((run / "plan.json").read_bytes())
    with pytest.raises(OutputError, match="was made from real scenes"):
        score_trial.Trial(str(tmp_path / "real.zarr"))
