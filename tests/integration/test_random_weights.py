"""A network maps with the weights that its training wrote, and with random ones only if told to."""

import json

import numpy as np
import pytest
import xarray as xr

import bigmap
from bigmap import cli
from bigmap.cli.run import describe_weights
from bigmap.learning.training.folder import TrainingFolder
from bigmap.models import Training, build_model, save_weights
from bigmap.models.card import checksum_file
from bigmap.models.choosing import use_trained_weights
from tests.integration.small_world import raw_recipe, write_recipe, write_scenes

BANDS = ["blue", "green", "red", "nir"]
MODEL = {"name": "segnet", "bands": BANDS, "options": {"size": "small", "upscale": 1}}
TRAINING = {"weights": "w/own.safetensors", "objective": {"kind": "segmentation"}}
SAMPLES = {"path": "samples.zarr", "labels": {"kind": "simulated"}}
GRID = {"core_px": 64, "cell_px": 64, "block_px": 128, "shard_px": 128, "chunk_px": 64}


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    output = capsys.readouterr()
    return stop.value.code or 0, output.out, output.err


def pretend_training(*, ended: bool = True) -> str:
    """Write weights and the summary of a training, and return the checksum that maps have."""
    model = build_model("segnet", MODEL["options"], bands=tuple(BANDS), seed=7)
    folder = TrainingFolder(TRAINING["weights"])
    folder.path.mkdir(parents=True)
    save_weights(model, folder.weights, training=Training("a test"))
    folder.write_summary({"stopped": not ended})
    return "sha256:" + checksum_file(folder.weights).removeprefix("1220")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Scenes, and a recipe of a network that can be trained."""
    write_scenes(tmp_path / "scenes")
    grid = raw_recipe()["grid"] | GRID
    write_recipe(
        tmp_path / "recipe.yaml", model=MODEL, training=TRAINING, samples=SAMPLES, grid=grid
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_without_weights_is_refused_before_anything_is_written(folder, capsys):
    code, _, error = call(capsys, "run", "recipe.yaml")
    assert code == 2
    assert error.count("\n") == 1
    assert "model.weights: segnet has none" in error
    assert "w/own.safetensors is not there before bigmap train has written it" in error
    assert "--allow-random-weights" in error
    with pytest.raises(bigmap.BigmapError, match="allow_random_weights=True"):
        bigmap.run(bigmap.load_recipe("recipe.yaml"))
    assert sorted(place.name for place in folder.iterdir()) == ["recipe.yaml", "scenes"]


def test_zones_are_refused_too(folder):
    recipe = bigmap.load_recipe("recipe.yaml", ["grid.crs=utm"])
    with pytest.raises(bigmap.BigmapError, match="segnet has none, so that they are random"):
        bigmap.run(recipe)
    assert not (folder / "map.run").exists()


def test_plan_warns_and_tells_what_the_weights_are(folder, capsys):
    code, text, _ = call(capsys, "plan", "recipe.yaml")
    assert code == 0
    assert "warning: segnet has no weights, so bigmap run refuses" in text
    assert json.loads(call(capsys, "plan", "recipe.yaml", "--json")[1])["weights"] == (
        "random, seed 0"
    )
    checksum = pretend_training()
    code, text, _ = call(capsys, "plan", "recipe.yaml")
    assert "warning" not in text
    assert json.loads(call(capsys, "plan", "recipe.yaml", "--json")[1])["weights"] == checksum


def test_rules_and_named_weights_are_as_they_were(folder):
    pretend_training()
    ndvi = bigmap.load_recipe("recipe.yaml", ["model={name: ndvi}"])
    assert use_trained_weights(ndvi) is ndvi
    assert bigmap.plan(ndvi).model.spec.weights is None
    named = bigmap.load_recipe("recipe.yaml", ["model.weights=other.safetensors"])
    assert use_trained_weights(named) is named


@pytest.mark.parametrize("ended", [True, False])
def test_weights_of_a_training_that_has_not_ended_are_told(folder, ended):
    pretend_training(ended=ended)
    said = describe_weights(bigmap.load_recipe("recipe.yaml"))
    assert ("that training has not ended" in said) is not ended


def test_run_maps_with_what_training_wrote(folder, capsys):
    checksum = pretend_training()
    code, text, error = call(capsys, "run", "recipe.yaml", "--limit", "1")
    assert code == 0, error
    assert "note: maps with w/own.safetensors, which training wrote" in text
    assert "random" not in text + error
    opened = bigmap.open_map("map.zarr")
    assert opened.attrs["bigmap:model"]["weights"] == checksum
    assert opened.attrs["bigmap:recipe"]["model"]["weights"] == TRAINING["weights"]
    assert json.loads((folder / "map.run" / "plan.json").read_text())["weights"] == checksum
    # Other weights under the same name are not mixed into the map.
    save_weights(
        build_model("segnet", MODEL["options"], bands=tuple(BANDS), seed=8), TRAINING["weights"]
    )
    code, _, error = call(capsys, "run", "recipe.yaml", "--resume")
    assert code == 2
    assert "model.weights: its content is not what" in error


def test_random_weights_that_are_asked_for_stand_in_the_map(folder, capsys):
    code, text, error = call(capsys, "run", "recipe.yaml", "--allow-random-weights", "--limit", "1")
    assert code == 0, error
    assert "note: segnet has no weights: they are random" in text
    assert bigmap.open_map("map.zarr").attrs["bigmap:model"]["weights"] == "random, seed 0"
    # Trained in between: the map is not continued with other weights.
    pretend_training()
    code, _, error = call(capsys, "run", "recipe.yaml", "--resume")
    assert code == 2
    assert "was started with another model.weights" in error


def test_predict_refuses_random_weights_unless_told(tmp_path):
    cube = xr.DataArray(
        np.full((2, 1, 32, 32), 0.2, np.float32),
        dims=("time", "band", "y", "x"),
        coords={"band": ["nir"], "y": 320.0 - 10 * np.arange(32), "x": 10.0 * np.arange(32)},
    )
    for model in ("piunet", build_model("piunet", {"size": "small"})):
        with pytest.raises(bigmap.BigmapError, match=r"piunet has none.*allow_random_weights=True"):
            bigmap.predict(cube, model)
    small = build_model("piunet", {"size": "small"})
    result = bigmap.predict(cube, small, allow_random_weights=True)
    assert result.attrs == {"model": "piunet", "weights": "random, seed 0"}
    save_weights(small, tmp_path / "w.safetensors")
    loaded = build_model("piunet", weights=str(tmp_path / "w.safetensors"))
    assert bigmap.predict(cube, loaded).attrs["weights"].startswith("sha256:")
