"""Every model in a run: on real scenes, on the simulated world, and in tiles as in one piece."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from distributed import Client

import bigmap
from bigmap.config import load_recipe, parse_recipe
from bigmap.mapping.engine import optimise, prepare
from bigmap.mapping.running import run_plan
from bigmap.models import NetworkModel, build_model, list_models
from bigmap.models.choosing import choose_model
from tests.integration.local import start_cluster
from tests.integration.real_scenes import raw_recipe
from tests.integration.tiny_scenes import write_tiny_scenes

ROOT = Path(__file__).parents[2]
REAL_BANDS = ["blue", "green", "red", "nir"]
AREA = [15.45, 45.98, 15.52, 46.02]
EXACT = [name for name, kind in list_models().items() if build_model(name).spec.kind == "exact"]


@pytest.fixture(scope="module")
def client():
    with start_cluster(1) as (_, client):
        yield client


def small_model(name: str, bands: list[str] | None = None) -> dict:
    """Return the recipe's model section: the small size, where there is one."""
    taken = inspect.signature(list_models()[name].__init__).parameters
    section: dict = {"name": name, "options": {"size": "small"} if "size" in taken else {}}
    if bands and "bands" in taken:
        section["bands"] = bands
    return section


def run(raw: dict, client: Client):
    plan = bigmap.plan(parse_recipe(raw))
    summary = run_plan(plan, client)
    assert summary.exit_code == 0, summary
    return plan, bigmap.open_map(raw["output"]["path"]).load()


def check_layers(plan, result) -> None:
    """Assert that the map has the model's layers, with values of its legend and real spread."""
    spec = plan.model.spec
    assert set(result.data_vars) - {"spatial_ref"} == {layer.name for layer in spec.default_layers}
    seen = result["observations"].values != 255
    assert seen.sum() > 500
    for layer in spec.default_layers:
        values = result[layer.name].values[..., seen]
        if layer.name == "class":
            assert set(np.unique(values)) <= {entry.value for entry in spec.legend}
        else:
            assert (values != layer.nodata).all(), layer.name
        outside = result[layer.name].values[..., ~seen]
        assert (outside == layer.nodata).all(), layer.name


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", list(list_models()))
def test_every_model_maps_real_scenes(shared_data, tmp_path, client, name):
    """With the four bands that the real scenes have; networks are untrained."""
    raw = raw_recipe(
        shared_data, tmp_path / "map.zarr", area={"bbox": AREA}, grid__cell_px=128,
        grid__block_px=256, grid__core_px=64, grid__shard_px=256, grid__chunk_px=256,
        model=small_model(name, REAL_BANDS),
        dates={"max_per_cell": 3, "min_clear_percent": 0},
    )  # fmt: skip
    plan, result = run(raw, client)
    check_layers(plan, result)
    for layer in {"image", "uncertainty"} & {each.name for each in plan.model.spec.layers}:
        assert result[layer].values.std() > 0
    if name == "piunet":
        assert "uncertainty" in result


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_scenes(
        tmp_path_factory.mktemp("tiny") / "scenes", days=("2024-05-03", "2024-05-08", "2024-05-13")
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_tiles_of_an_exact_model_equal_the_whole(tiny, tmp_path, client, name):
    """With fixed dates, a run in blocks has the values of one pass over the whole image."""
    raw = {
        "name": "tiles",
        "area": {"bbox": [2.2, 41.75, 2.75, 42.05]},
        "grid": {
            "crs": "EPSG:32631", "gsd_m": 1200, "core_px": 16, "cell_px": 16, "block_px": 32,
            "shard_px": 32, "chunk_px": 16,
        },
        "source": {
            "kind": "files", "files": [str(tiny)], "start": "2024-05-01", "end": "2024-05-31",
        },
        "dates": {"max_per_cell": 3, "min_clear_percent": 0},
        "model": small_model(name, REAL_BANDS),
        "output": {"path": str(tmp_path / "map.zarr"), "overviews": 0},
        "cluster": {"workers": 1},
    }  # fmt: skip
    plan, result = run(raw, client)
    spec = plan.model.spec
    assert len(plan.only.blocks) > 1
    # One pass over the area and all its context, which is more than the windows of a run see.
    recipe = parse_recipe(raw | {"area": {"bbox": [1.85, 41.45, 3.05, 42.35]}})
    cube = bigmap.open_cube(recipe).load()
    assert min(cube.sizes["y"], cube.sizes["x"]) > 60
    fine = spec.upscale
    row = round((cube.y.values[0] + 600 - (result.y.values[0] + 600 / fine)) / 1200)
    col = round((result.x.values[0] - 600 / fine - (cube.x.values[0] - 600)) / 1200)
    # Networks that pool need a window that starts at a multiple, as those of a run do.
    beyond_row, beyond_col = row % spec.multiple_px, col % spec.multiple_px
    row, col = row - beyond_row, col - beyond_col
    cube = cube.isel(y=slice(beyond_row, None), x=slice(beyond_col, None))
    pixels = torch.from_numpy(np.ascontiguousarray(cube.values).view(np.int16))[None]
    clear = torch.from_numpy(np.ascontiguousarray(cube["clear"].values))[None]
    model = optimise(plan.model)
    with torch.inference_mode():
        dates = torch.ones(1, pixels.shape[1], dtype=torch.bool)
        scores = model(prepare(pixels, clear, empty=model.mean_reflectance), dates, clear)
    rows, cols = (
        slice(start * fine, start * fine + result.sizes[axis])
        for start, axis in ((row, "y"), (col, "x"))
    )
    seen = result["observations"].values != 255
    assert seen.sum() > 300 * fine**2
    for layer in spec.default_layers:
        if layer.name in scores:
            percent = 100 if layer.units == "percent" else 1
            values = layer.quantise(scores[layer.name][0][..., rows, cols] * percent)
            values = values if layer.channels else values[0]
            assert np.array_equal(result[layer.name].values[..., seen], values.numpy()[..., seen])
    if spec.legend:
        best = scores["probability"][0][:, rows, cols].argmax(dim=0).numpy()
        codes = np.array([entry.value for entry in spec.legend])
        assert np.array_equal(result["class"].values[seen], codes[best][seen])


RECIPES = {
    "spinet": ["source.start=2024-04-01", "source.end=2024-04-20"],
    "highresnet": ["source.start=2024-04-01", "source.end=2024-04-20"],
    "dual-s2glc": ["source.start=2024-04-01", "source.end=2024-04-20", "grid.core_px=64"],
    "dbpn-segnet": ["source.start=2024-04-01", "source.end=2024-04-20"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_of_the_papers_run_on_the_simulated_world(tmp_path, client, simulated_cache, name):
    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml", RECIPES[name])
    raw = yaml.safe_load(recipe.to_yaml())
    kept = {key: raw["source"][key] for key in ("start", "end")}
    raw["source"] = {"kind": "simulated", "cache": str(simulated_cache), "scene_px": 366, **kept}
    raw["area"]["clip_bbox"] = [0.62, 41.64, 0.63, 41.645]
    raw["grid"] |= {"core_px": 64, "cell_px": 64, "block_px": 64, "shard_px": 128, "chunk_px": 64}
    raw["dates"] |= {"max_per_cell": 3, "min_clear_percent": 0}
    raw["model"]["options"]["size"] = "small"
    raw["inference"]["precision"] = "float32"  # The other is emulated on many processors, slowly.
    raw["output"]["path"] = str(tmp_path / "map.zarr")
    bigmap.prepare_source(parse_recipe(raw))
    plan, result = run(raw, client)
    check_layers(plan, result)
    assert result.attrs["source"].startswith("simulated")


@pytest.fixture(scope="module")
def simulated_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def test_networks_without_weights_say_so():
    for name, kind in list_models().items():
        if issubclass(kind, NetworkModel):
            section = small_model(name)
            assert "no weights" in build_model(name, section["options"]).spec.notice


def test_the_papers_recipes_are_whole():
    """Each builds its model in its full size with its bands, and says how it is trained."""
    for name in RECIPES:
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        choice = choose_model(recipe.model)
        assert dict(choice.options)["size"] == "full"
        with torch.device("meta"):
            spec = replace(choice, weights=None).build().spec
        assert recipe.model.bands is None or spec.bands == recipe.model.bands
        assert recipe.samples is not None
        assert recipe.training is not None
