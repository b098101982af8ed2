"""``grid.crs: utm`` on tiny scenes at 6 degrees east: two zones, each pixel in one, as if alone."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr
from pyproj import Transformer

import bigmap
from bigmap import cli
from bigmap.config import parse_recipe
from bigmap.errors import CatalogError, OutputError, RecipeError
from bigmap.mapping.loads import estimate_plan
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.running import run_plan
from bigmap.mapping.status import read_status
from tests.integration.local import start_cluster
from tests.integration.test_staging import digest
from tests.integration.tiny_scenes import write_tiny_scenes

BOX = [5.8, 41.5, 6.15, 41.7]


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zones")
    return write_tiny_scenes(folder / "scenes", left=700_000)


def make_recipe(folder, items, crs="utm", **changes):
    raw = {
        "name": "tiny", "area": {"bbox": BOX},
        "grid": {
            "crs": crs, "gsd_m": 600, "core_px": 8, "cell_px": 8, "block_px": 16, "shard_px": 16,
            "chunk_px": 8,
        },
        "source": {
            "kind": "files", "files": [str(items)], "start": "2024-05-01", "end": "2024-05-31",
        },
        "model": {"name": "ndvi", "options": {"upscale": 2}},
        "output": {"path": str(folder / "map.zarr"), "overviews": 1},
        "cluster": {"kind": "local", "workers": 1},
    }  # fmt: skip
    return parse_recipe(raw | changes)


@pytest.fixture(scope="module")
def mapped(items, tmp_path_factory):
    """A recipe and the map of both zones, made in two attempts."""
    recipe = make_recipe(tmp_path_factory.mktemp("map"), items)
    first = bigmap.run(recipe, limit=1)
    assert (first.sent, first.exit_code) == (1, 0)
    with pytest.raises(OutputError, match="--resume"):
        bigmap.run(recipe)
    summary = bigmap.run(recipe, resume=True)
    assert summary.exit_code == 0
    return recipe, summary


def test_the_map_is_a_tree_of_zones(mapped):
    recipe, summary = mapped
    tree = bigmap.open_map(recipe.output.path)
    assert isinstance(tree, xr.DataTree)
    assert set(tree.children) == {"utm31n", "utm32n"}
    assert tree["utm31n"].ds.rio.crs.to_epsg() == 32631
    assert tree["utm32n"].ds.rio.crs.to_epsg() == 32632
    assert tree.attrs["bigmap:recipe"]["grid"]["crs"] == "utm"
    assert sum(int((node.ds["class"] != 255).sum()) for node in tree.children.values()) > 2000
    halved = bigmap.open_map(recipe.output.path, level=1)
    assert halved["utm32n"].ds.sizes["x"] * 2 == tree["utm32n"].ds.sizes["x"]
    status = read_status(recipe.output.path)
    assert (status.planned, status.missing) == (summary.planned, 0)
    assert status.has_overviews
    assert read_status(f"{recipe.output.path}/utm31n").planned < status.planned


def test_a_plan_tells_what_each_zone_found_and_counts_each_date_once(items, tmp_path, capsys):
    recipe = make_recipe(tmp_path, items)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    with pytest.raises(SystemExit):
        cli.main(["plan", str(file)])
    text = capsys.readouterr().out
    assert "on 2 dates" in text
    for zone in ("utm31n", "utm32n"):
        assert f"{zone}: items found: 2, kept: 2" in text


def test_pixels_lie_in_their_own_zone(mapped):
    tree = bigmap.open_map(mapped[0].output.path)
    for zone, (west, east) in {"utm31n": (5.8, 6.0), "utm32n": (6.0, 6.15)}.items():
        data = tree[zone].ds
        rows, cols = np.nonzero(data["class"].values != 255)
        to_lonlat = Transformer.from_crs(data.rio.crs, "EPSG:4326", always_xy=True)
        lon, lat = to_lonlat.transform(data["x"].values[cols], data["y"].values[rows])
        assert west - 1e-7 <= lon.min() <= west + 0.01
        assert east - 0.01 <= lon.max() <= east + 1e-7
        assert lat.min() >= BOX[1] - 1e-4
        assert lat.max() <= BOX[3] + 1e-4


def test_pixels_are_those_of_a_zone_mapped_alone(mapped, items, tmp_path):
    tree = bigmap.open_map(mapped[0].output.path)
    with start_cluster() as (_, client):
        for zone, epsg in {"utm31n": 32631, "utm32n": 32632}.items():
            recipe = make_recipe(tmp_path / zone, items, f"EPSG:{epsg}")
            assert run_plan(bigmap.plan(recipe), client).exit_code == 0
    for zone in tree.children:
        recipe = make_recipe(tmp_path / zone, items)
        alone = bigmap.open_map(recipe.output.path)
        ours = tree[zone].ds
        both = alone.sel(x=ours["x"], y=ours["y"])
        inside = ours["class"].values != 255
        assert inside.sum() > 1000
        for layer in ("class", "confidence", "observations"):
            there, here = both[layer].values, ours[layer].values
            np.testing.assert_array_equal(here[inside], there[inside])
        assert (both["class"].values != 255).sum() > inside.sum()


def test_overwriting_clears_all_zones(mapped, items, tmp_path):
    recipe = make_recipe(tmp_path, items)
    assert bigmap.run(recipe).exit_code == 0
    smaller = recipe.model_copy(
        update={"area": recipe.area.model_copy(update={"bbox": (5.8, 41.5, 5.9, 41.7)})}
    )
    assert bigmap.run(smaller, overwrite=True).exit_code == 0
    assert set(bigmap.open_map(recipe.output.path).children) == {"utm31n"}
    assert not (tmp_path / "map.run" / "utm32n").exists()


def test_an_area_across_the_antimeridian(tmp_path):
    """One scene of zone 60 shows both sides; in one CRS and in two zones both are mapped."""
    items = write_tiny_scenes(tmp_path / "scenes", left=700_000, epsg=32660)
    area = {"bbox": [179.8, 41.5, -179.8, 41.7]}
    utm = make_recipe(tmp_path / "utm", items, area=area)
    one = make_recipe(tmp_path / "one", items, "EPSG:3832", area=area)
    plans = bigmap.plan(utm)
    assert [part.name for part in plans.parts] == ["utm01n", "utm60n"]
    with start_cluster() as (_, client):
        for plan in (plans, bigmap.plan(one)):
            assert run_plan(plan, client).exit_code == 0
    for data, sides in (
        (bigmap.open_map(f"{utm.output.path}/utm60n"), {1}),
        (bigmap.open_map(f"{utm.output.path}/utm01n"), {-1}),
        (bigmap.open_map(one.output.path), {-1, 1}),
    ):
        rows, cols = np.nonzero(data["class"].values != 255)
        to_lonlat = Transformer.from_crs(data.rio.crs, "EPSG:4326", always_xy=True)
        lon, _ = to_lonlat.transform(data["x"].values[cols], data["y"].values[rows])
        # 0.2 degrees by 0.2 on each side, in pixels of 300 m.
        assert len(lon) > 0.8 * len(sides) * (16.6e3 * 22.2e3) / 300**2
        assert set(np.sign(lon).astype(int).tolist()) == sides
        assert np.abs(lon).min() >= 179.79


def test_the_plan_adds_zones_up(items, tmp_path, capsys):
    recipe = make_recipe(tmp_path, items)
    plans = bigmap.plan(recipe)
    assert estimate_plan(plans).blocks == sum(len(part.blocks) for part in plans.parts)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    with pytest.raises(SystemExit):
        cli.main(["plan", str(file), "--json", "--price-per-gpu-hour", "2.5"])
    content = json.loads(capsys.readouterr().out)
    assert set(content["zones"]) == {"utm31n", "utm32n"}
    assert content["clusters"][0]["hours"] > 0


def test_a_cube_needs_one_grid(items, tmp_path):
    with pytest.raises(RecipeError, match="EPSG:32631"):
        bigmap.open_cube(make_recipe(tmp_path, items))


def test_one_zone_can_be_done_again(mapped):
    recipe, _ = mapped
    with pytest.raises(OutputError, match="name its zone too"):
        bigmap.run(recipe, redo=["r1c1"])
    block = next(iter(RunFolder(recipe.output.path).part("utm32n").ledger.latest()))
    summary = bigmap.run(recipe, redo=[f"utm32n/{block}"])
    assert (summary.sent, summary.exit_code) == (1, 0)


def test_staged_zones_give_the_same_bytes(items, mapped, tmp_path, capsys):
    """Each zone's scenes lie in a folder of their own, and nothing else is read."""
    shutil.copytree(items.parent, tmp_path / "scenes")
    recipe = make_recipe(tmp_path, tmp_path / "scenes" / items.name)
    file, folder = tmp_path / "recipe.yaml", tmp_path / "staged"
    file.write_text(recipe.to_yaml())

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["stage", str(file), "--out", str(folder), *arguments])
        return stop.value.code or 0, capsys.readouterr().out

    with pytest.raises(CatalogError, match=r"utm31n: .*holds no staged scenes"):
        bigmap.run(recipe, staged=folder)
    code, text = call()
    assert code == 0
    assert "12 files of 4 items: 0 kept, 12 fetched" in text
    assert {path.name for path in folder.iterdir()} == {"utm31n", "utm32n"}
    shutil.rmtree(tmp_path / "scenes")  # Neither items nor files are there any more.
    assert json.loads(call("--verify", "--json")[1])["kept"] == 12
    assert bigmap.run(recipe, staged=folder).exit_code == 0
    expected = digest(mapped[0].output.path)
    assert len(expected) > 4
    assert digest(recipe.output.path) == expected
    next((folder / "utm32n").rglob("*.tif")).unlink()
    code, text = call("--verify")
    assert code == 3
    assert "failed: utm32n/scenes/" in text
