"""``bigmap evaluate`` as users meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from bigmap.cli import main
from bigmap.models import Training, build_model, save_weights
from tests.integration.small_world import write_recipe
from tests.unit.learning.evaluation_chips import make_fields, make_template, write_set
from tests.unit.learning.evaluation_maps import GSD_M, write_map

NDVI = {"model": {"name": "ndvi", "options": {"upscale": 1}}}


def call(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    template = make_template(upscale=1, is_simulated=True, source="a drawing")
    arrays = make_fields(template, 6)
    # Of four test chips one tenth of a chip's pixels is wrong, and one row is unlabelled.
    arrays["labels"][4, :, :2] ^= 1
    arrays["labels"][5, 0] = 255
    write_set(tmp_path / "chips.zarr", template, arrays, split=[0, 1, 2, 2, 2, 2])
    samples = {"path": str(tmp_path / "chips.zarr"), "labels": {"kind": "simulated"}}
    return write_recipe(tmp_path / "recipe.yaml", **NDVI, samples=samples)


def test_a_model_and_baselines_stand_in_one_table(recipe: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores"
    baseline = "ndvi:threshold=-0.9"
    code, text, _ = call(
        capsys, "evaluate", "model", str(recipe), "--baseline", baseline, "--out", str(out),
        "--json", "--dates", "2", "--instances",
    )  # fmt: skip
    assert code == 0
    printed = json.loads(text)
    assert printed == json.loads((out / "scores.json").read_text())
    first, second = printed["models"]
    # 4 chips of 256 px without one row of 16; 2 columns of 16 px are wrong.
    assert first["classes"]["pixels"] == 4 * 256 - 16
    assert first["max_dates"] == 2
    assert first["instances"]["predicted"] > 0
    assert first["classes"]["accuracy"] == pytest.approx(1 - 32 / 1008)
    confusion = np.array(second["classes"]["confusion"])
    assert confusion[:, 0].sum() == 0, "everything is above the threshold"
    assert second["classes"]["precision"][0] is None
    assert second["classes"]["mcc"] is None
    table = (out / "scores.md").read_text()
    assert f"|  | ndvi | {baseline} |" in table
    assert "| MCC | 0.93" in table
    assert "| - |" in table
    assert "The samples are simulated" in table
    assert {file.name for file in out.iterdir()} == {
        "scores.json", "scores.md", "confusion.png", "confusion-ndvi-threshold-0-9.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "--split tset: is unknown; there are train, validation, test"),
        (["--set", "samples.path=/nowhere.zarr"], "there are no samples here"),
        (["--set", "model.name=spinet", "--set", "model.options={}"], "model.bands: spinet needs"),
        (["--baseline", "ndvi:threshold"], "write it as NAME:option=value"),
        (["--baseline", "nothing"], "'nothing' is unknown; there are"),
        (["--baseline", "bicubic:composite=worst"], "composite 'worst' is unknown"),
        (["--baseline", "ndvi:upscale=2"], "model.options.upscale: ndvi:upscale=2 makes 2"),
        (
            ["--set", "model={name: segnet, bands: [red], legend: buildings}"],
            "model.legend: segnet has the classes 0 other, 1 building, but the samples have 0 o",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(recipe: Path, capsys, arguments, message) -> None:
    code, _, error = call(capsys, "evaluate", str(recipe), *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_split_without_chips_and_a_recipe_without_samples(tmp_path: Path, capsys) -> None:
    template = make_template(upscale=1)
    write_set(tmp_path / "chips.zarr", template, make_fields(template, 2), split=[0, 0])
    samples = {"path": str(tmp_path / "chips.zarr"), "labels": {"kind": "simulated"}}
    recipe = write_recipe(tmp_path / "recipe.yaml", **NDVI, samples=samples)
    code, _, error = call(capsys, "evaluate", str(recipe))
    assert code == 2
    assert "has no chips of the split test (2 train, 0 validation, 0 test)" in error
    recipe = write_recipe(tmp_path / "other.yaml", **NDVI)
    code, _, error = call(capsys, "evaluate", str(recipe))
    assert code == 2
    assert "samples: is missing from the recipe" in error


def test_a_checkpoint_tells_that_its_scenes_were_simulated(recipe: Path, tmp_path, capsys) -> None:
    # No bands are chosen here: they are those of the weights, and so is the size.
    options = {"size": "small", "upscale": 1}
    model = build_model("deeplabv3plus", options, bands=("red", "nir"))
    training = Training(data="a drawing", is_simulated=True)
    weights = tmp_path / "weights.safetensors"
    save_weights(model, weights, training=training)
    changes = ["--set", "model={name: deeplabv3plus}", "--set", "inference.precision=bfloat16"]
    code, text, error = call(
        capsys, "evaluate", str(recipe), *changes, "--weights", str(weights), "--baseline",
        str(weights), "--baseline", f"deeplabv3plus:weights={weights}", "--json",
    )  # fmt: skip
    assert code == 0, error
    models = json.loads(text)["models"]
    assert [entry["bands"] for entry in models] == [["red", "nir"]] * 3
    assert models[0]["classes"] == models[1]["classes"] == models[2]["classes"]
    assert models[0]["precision"] == "bfloat16"
    assert "were trained on simulated scenes" in models[0]["notes"][0]
    assert "deeplabv3plus: the weights of deeplabv3plus were trained on simulated scenes" in error
    # A network without weights says so, and the weights of a recipe's training are its own.
    code, text, _ = call(capsys, "evaluate", str(recipe), *changes, "--set",
                         f"training.weights={weights}", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(text)["models"][0]["classes"] == models[0]["classes"]
    bare = "model={name: deeplabv3plus, bands: [red], options: {size: small, upscale: 1}}"
    code, text, _ = call(capsys, "evaluate", str(recipe), "--set", bare, "--json")
    assert "they are random" in json.loads(text)["models"][0]["notes"][0]


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """Return a recipe with polygons as labels, a map, its classes and the true ones."""
    folder = tmp_path_factory.mktemp("mapped")
    truth = np.zeros((96, 128), dtype=np.uint8)
    truth[20:60, 30:70] = truth[70:90, 100:120] = 1
    classes = truth.copy()
    classes[20:60, 30:40] = 0
    classes[:10] = 255
    path = write_map(folder / "map.zarr", classes)
    left, top = 640.0, 3200.0
    fields = [
        shapely.box(left + GSD_M * 30, top - GSD_M * 60, left + GSD_M * 70, top - GSD_M * 20),
        shapely.box(left + GSD_M * 100, top - GSD_M * 90, left + GSD_M * 120, top - GSD_M * 70),
    ]
    frame = gpd.GeoDataFrame({"crop": ["wheat", "maize"]}, geometry=fields, crs="EPSG:25831")
    frame.to_file(folder / "fields.gpkg")
    labels = {
        "kind": "vector", "file": str(folder / "fields.gpkg"), "attribute": "crop",
        "classes": {"wheat": 1, "maize": 1}, "background": 0,
    }  # fmt: skip
    samples = {"path": str(folder / "chips.zarr"), "labels": labels}
    recipe = write_recipe(folder / "recipe.yaml", **NDVI, samples=samples)
    return recipe, path, classes, truth


def test_a_map_is_scored_on_the_recipe_s_cluster(mapped, tmp_path, capsys) -> None:
    recipe, path, classes, truth = mapped
    out = tmp_path / "scores"
    code, text, error = call(
        capsys, "evaluate", "map", str(recipe), "--map", path + "/", "--out", str(out), "--json",
        "--instances",
    )  # fmt: skip
    assert code == 0, error
    (model,) = json.loads(text)["models"]
    seen = classes != 255
    expected = [[int(((truth == i) & (classes == j) & seen).sum()) for j in (0, 1)] for i in (0, 1)]
    assert model["classes"]["confusion"] == expected
    assert model["instances"]["matched"] == 2
    assert (out / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_a_reference_sample_on_the_recipe_s_cluster(mapped, tmp_path, capsys) -> None:
    recipe, path, classes, truth = mapped
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(10, 96, 200), rng.integers(0, 128, 200)
    points = gpd.GeoSeries.from_xy(
        640 + GSD_M * (cols + 0.5), 3200 - GSD_M * (rows + 0.5), crs="EPSG:25831"
    )
    names = np.array(["other", "cropland"])[truth[rows, cols]]
    file = tmp_path / "points.fgb"
    gpd.GeoDataFrame({"land": names}, geometry=points).to_crs(4326).to_file(file)
    code, text, error = call(
        capsys, "evaluate", "reference", str(recipe), "--map", path, "--reference", str(file),
        "--attribute", "land", "--out", str(tmp_path / "out"), "--json",
    )  # fmt: skip
    assert code == 0, error
    sample = json.loads(text)["models"][0]["sample"]
    found, mapped_ha = sample["class_areas_ha"][1], sample["mapped_ha"][1]
    true_ha = truth[10:].sum() * GSD_M**2 / 10_000
    assert abs(found["value"] - true_ha) < 1.5 * found["half_width"]
    assert mapped_ha == pytest.approx((classes == 1).sum() * GSD_M**2 / 10_000)
    assert "user's accuracy" in (tmp_path / "out" / "scores.md").read_text()
    assert "user's accuracy" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--area", "x.gpkg"], "No such option: --area"),
        (["--cluster", "local"], "No such option: --cluster"),
        (["--reference", "x.gpkg"], "Missing option '--map'"),
        (["--map", "MAP", "--baseline", "ndvi"], "No such option: --baseline"),
        (["--map", "MAP", "--stratum", "x"], "No such option: --stratum"),
        (["--map", "MAP", "--reference", "x.gpkg", "--instances"], "No such option: --instances"),
        (
            ["--map", "MAP", "--reference", "x.gpkg", "--stratum-areas", "x.csv"],
            "--stratum-areas: needs --stratum",
        ),
        (["--map", "MAP", "--reference", "x.gpkg"], "--reference x.gpkg: no such file"),
        (["--map", "nothing.zarr"], "nothing.zarr: there is no map here"),
        (["--map", "MAP", "--set", "samples.labels.file=x.gpkg"], "samples.labels.file: "),
        (["--map", "MAP", "--set", "model={name: bicubic}"], "model.legend has none"),
    ],
)
def test_options_that_do_not_go_together(mapped, capsys, arguments, message) -> None:
    recipe, path, _, _ = mapped
    arguments = [path if argument == "MAP" else argument for argument in arguments]
    code, _, error = call(capsys, "evaluate", str(recipe), *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["recipe.yaml"], "model"),
        (["--dates", "2", "recipe.yaml"], "model"),
        (["recipe.yaml", "--map", "m.zarr"], "map"),
        (["recipe.yaml", "--map=m.zarr"], "map"),
        (["--map", "m.zarr", "recipe.yaml", "--reference=p.gpkg"], "reference"),
    ],
)
def test_evaluate_without_a_command_is_the_one_its_options_are_of(capsys, arguments, named) -> None:
    said = call(capsys, "evaluate", *arguments)
    assert said == call(capsys, "evaluate", named, *arguments)
    assert said == (2, "", "bigmap: recipe.yaml: no such file\n")


def test_each_way_to_evaluate_shows_an_example(capsys) -> None:
    for name in ("model", "map", "reference"):
        code, text, _ = call(capsys, "evaluate", name, "--help")
        assert code == 0
        assert f"Example: bigmap evaluate {name} recipes/catalonia.yaml" in " ".join(text.split())
    code, text, _ = call(capsys, "evaluate", "--help")
    assert code == 0
    assert [text.find(f"\n  {name} ") > 0 for name in ("model", "map", "reference")] == [True] * 3
    code, _, error = call(capsys, "evaluate")
    assert code == 2
    assert "Missing argument 'recipe'" in error
