"""Scenes are staged once, whole and unchanged, and a run makes the same bytes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import rasterio

import bigmap
from bigmap import cli
from bigmap.config import parse_recipe
from bigmap.config.strict_yaml import parse_yaml
from bigmap.errors import CatalogError, OutputError, PlanError
from bigmap.lease import Lease, read_lease
from bigmap.mapping.places import Attempt
from bigmap.mapping.planning import make_plan
from bigmap.mapping.running import run_plan
from bigmap.mapping.staging import folder as folder_of_stage
from bigmap.mapping.staging import stages
from bigmap.mapping.staging.fetching import read_manifest
from bigmap.mapping.staging.folder import use_staged
from bigmap.mapping.staging.stages import stage_plan, verify_stage
from bigmap.scenes.catalog import save_items
from tests.integration import real_scenes, small_world
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes


@pytest.fixture(scope="module")
def client():
    with start_cluster() as (_, client):
        yield client


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return write_tiny_scenes(tmp_path_factory.mktemp("tiny"), pixel_m=60)


def make_raw(scenes: Path, output: Path, **changes):
    return {
        "name": "staged", "area": {"bbox": [2.28, 41.77, 2.36, 41.82]},
        "grid": {
            "crs": "EPSG:3035", "gsd_m": 50, "core_px": 32, "cell_px": 64, "block_px": 128,
            "shard_px": 128, "chunk_px": 64,
        },
        "source": {"kind": "files", "files": [str(scenes)], "start": "2024-05-01",
                   "end": "2024-05-31", "mask": {"kind": "scl", "asset": "scl", "dilate_px": 2}},
        "model": {"name": "small-conv", "options": {"upscale": 2}},
        "output": {"path": str(output), "overviews": 1},
        "cluster": {"workers": 1}, **changes,
    }  # fmt: skip


def digest(output) -> dict[str, str]:
    root = Path(output)
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("c/**/*"))
        if file.is_file()
    }


def map_twice(raw, client, folder: Path, **options) -> tuple[dict[str, str], dict[str, str]]:
    """Map from the scenes, then from what is staged of them; return both maps' digests."""
    plan = bigmap.plan(parse_recipe(raw))
    assert run_plan(plan, client).exit_code == 0
    expected = digest(raw["output"]["path"])
    assert len(expected) > 4
    shutil.rmtree(raw["output"]["path"])
    summary = stage_plan(plan, folder / "first", **options)
    assert summary.exit_code == 0
    # The folder can be moved.
    moved = (folder / "first").rename(folder / "moved")
    recipe = parse_recipe(raw)
    again = make_plan(recipe, staged=moved)
    hrefs = [asset.href for row in again.only.catalogue.rows for asset in row.assets.values()]
    assert all(Path(href).is_relative_to(moved) for href in hrefs)
    assert run_plan(again, client, Attempt(overwrite=True)).exit_code == 0
    return expected, digest(raw["output"]["path"])


@pytest.mark.parametrize(("overlap", "whole"), [("blend", False), ("trim", True)])
def test_staged_scenes_give_the_same_bytes(scenes, client, tmp_path, whole, overlap):
    raw = make_raw(scenes, tmp_path / "map.zarr", inference={"overlap": overlap})
    online, staged = map_twice(raw, client, tmp_path, whole=whole)
    assert staged == online
    files = list((tmp_path / "moved/scenes").rglob("*.tif"))
    names = {file.name.partition("-")[0] for file in files}
    assert names == {"blue", "green", "red", "nir", "scl"}
    if whole:
        originals = {file.read_bytes() for file in scenes.parent.glob("*.tif")}
        assert all(file.read_bytes() in originals for file in files)


@pytest.mark.real_data
@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic"])
def test_real_scenes_in_another_crs(shared_data, client, tmp_path, method):
    raw = real_scenes.raw_recipe(
        shared_data, tmp_path / "map.zarr", area={"bbox": [15.55, 45.9, 15.7, 46.0]},
        grid__cell_px=128, grid__block_px=256, grid__shard_px=256,
        reading={"resampling": method},
    )  # fmt: skip
    online, staged = map_twice(raw, client, tmp_path)
    assert staged == online
    held = whole = 0
    for file in (tmp_path / "moved/scenes").rglob("*.tif"):
        with rasterio.open(file) as dataset:
            whole += dataset.width * dataset.height
            for part in json.loads(dataset.tags()["BIGMAP_STAGED"]):
                held += (part[1] - part[0]) * (part[3] - part[2])
    assert 0 < held < 0.7 * whole


def test_the_command_goes_on_repairs_and_refuses(tmp_path, capsys, monkeypatch):
    """One folder through its life: made, kept, damaged, repaired, asked for too much."""
    scenes = small_world.write_scenes(tmp_path / "scenes", query="?sig=c2VjcmV0")
    content = json.loads(scenes.read_text())
    for item in content["features"]:
        for name, asset in item["assets"].items():
            asset["href"] = f"file://{tmp_path}/scenes/{item['id']}/{name}.tif?sig=c2VjcmV0"
    scenes.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    small_world.write_recipe(tmp_path / "recipe.yaml")
    folder = tmp_path / "staged"

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["stage", "recipe.yaml", "--out", "staged", *arguments])
        output = capsys.readouterr()
        return stop.value.code or 0, output.out, output.err

    code, text, _ = call()
    assert code == 0
    assert "9 files of 3 items: 0 kept, 9 fetched" in text
    for file in folder.iterdir():
        assert file.is_dir() or b"c2VjcmV0" not in file.read_bytes(), file
    assert not list(folder.rglob("*.partial"))
    assert read_lease(str(folder)) is None

    # What is printed is a source that works as it stands.
    raw = parse_yaml((tmp_path / "recipe.yaml").read_bytes(), origin="recipe")
    line = next(line for line in text.splitlines() if line.startswith("source: "))
    raw |= parse_yaml(line.encode(), origin="line")
    plan = bigmap.plan(parse_recipe(raw))
    assert len(plan.only.catalogue.rows) == 3
    hrefs = [asset.href for row in plan.only.catalogue.rows for asset in row.assets.values()]
    assert all(Path(href).is_file() and Path(href).is_relative_to(folder) for href in hrefs)

    assert "9 kept, 0 fetched" in call()[1]
    assert json.loads(call("--json")[1])["kept"] == 9
    assert call("--verify")[0] == 0

    first, second, third = sorted(folder.glob("scenes/*/nir-*.tif"))
    good = first.read_bytes()
    first.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    second.write_bytes(second.read_bytes()[:-10])
    third.unlink()
    (first.with_name("red-00000000.tif.partial")).write_bytes(b"left over")
    with (folder / "manifest.jsonl").open("a") as manifest:
        manifest.write('{"file": "cut sho')
    code, text, _ = call("--verify")
    assert code == 3
    for reason in ("has another checksum", "bytes instead of", "is missing"):
        assert reason in text
    assert first.read_bytes() != good
    code, text, _ = call()
    assert code == 0
    assert "6 kept, 3 fetched" in text
    assert first.read_bytes() == good
    assert call("--verify")[0] == 0

    # A larger area needs more of the files; a scene that is gone is named, and the rest staged.
    code, text, _ = call("--set", "area.bbox=[0.598,41.686,0.614,41.70]")
    assert code == 0
    lost = tmp_path / "scenes/S2A_31TCG_20240501_0_L2A/red.tif"
    lost.rename(tmp_path / "red.tif")
    (folder / "manifest.jsonl").unlink()
    code, text, _ = call("--set", "source.access.retries=0")
    assert code == 3
    assert "8 fetched" in text
    assert "no such file" in text
    assert "c2VjcmV0" not in text
    (tmp_path / "red.tif").rename(lost)
    assert "8 kept, 1 fetched" in call()[1]

    monkeypatch.setattr(stages, "free_bytes", lambda folder: 1000)
    (folder / "manifest.jsonl").unlink()
    code, _, error = call()
    assert code == 2
    assert "0.0 GB are free" in error


def test_a_run_refuses_what_was_staged_for_something_else(scenes, tmp_path):
    output, folder = tmp_path / "map.zarr", tmp_path / "staged"
    plan = bigmap.plan(parse_recipe(make_raw(scenes, output)))
    stage_plan(plan, folder)
    assert len(use_staged(plan.only, folder).catalogue.rows) == 2

    def refuse(match, **changes):
        raw = make_raw(scenes, output)
        for part, fields in changes.items():
            raw[part] = raw.get(part, {}) | fields
        with pytest.raises(PlanError, match=match):
            use_staged(bigmap.plan(parse_recipe(raw)).only, folder)

    refuse("another source", source={"end": "2024-05-06"})
    refuse("a smaller area", area={"bbox": [2.28, 41.77, 2.7, 41.82]})
    refuse("another crs", grid={"crs": "EPSG:32631"})
    # A trial inside the area reads the same files.
    raw = make_raw(scenes, output)
    raw["area"]["clip_bbox"] = [2.3, 41.78, 2.32, 41.8]
    assert use_staged(bigmap.plan(parse_recipe(raw)).only, folder)

    with pytest.raises(OutputError, match="choose a folder"):
        stage_plan(plan, Path("s3://bucket/scenes"))
    lease = Lease(str(folder))
    lease.acquire()
    try:
        with pytest.raises(OutputError, match="another process stages there"):
            stage_plan(plan, folder)
    finally:
        lease.release()
    (next(folder.glob("scenes/*/nir-*.tif"))).unlink()
    assert [reason for _, reason in verify_stage(folder).failures] == ["is missing"]


def test_a_damaged_note_of_what_was_staged_is_told(scenes, tmp_path):
    plan = bigmap.plan(parse_recipe(make_raw(scenes, tmp_path / "map.zarr")))
    folder = tmp_path / "staged"
    folder.mkdir()
    note = folder_of_stage._describe(plan.only)
    changed = [json.dumps(note | change).encode()
               for change in ({"covers": "POINT"}, {"covers": None}, {"bands": [[]]})]  # fmt: skip
    for content in (b"", b"{", b"\xff", b"[" * 2_000, b"[]", b"{}", *changed):
        (folder / "stage.json").write_bytes(content)
        with pytest.raises(PlanError, match=r"stage\.json: is damaged \(.+\); run bigmap stage"):
            use_staged(plan.only, folder)


@pytest.mark.parametrize("line", [b"\xff", b"{", b"[" * 2_000, b"null", b"{}"])
def test_a_damaged_line_of_the_manifest_counts_as_not_fetched(tmp_path, line):
    (tmp_path / "manifest.jsonl").write_bytes(line + b"\n")
    assert read_manifest(tmp_path) == {}


def test_a_catalogue_of_files_elsewhere_is_no_stage(scenes, tmp_path):
    plan = bigmap.plan(parse_recipe(make_raw(scenes, tmp_path / "map.zarr")))
    save_items(plan.only.catalogue, str(tmp_path / "items.parquet"))
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(CatalogError, match=r"items\.parquet: names .*, which is not in its folder"):
        verify_stage(tmp_path)
