"""Staged over HTTP, past faults and interruptions; then mapped with the network cut."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import rasterio
import yaml
from rasterio.shutil import copy as convert

import bigmap
from bigmap.mapping.staging.stages import stage_plan, verify_stage
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.services.http_server import HttpServer
from tests.services.processes import MissingProgramError, find_program
from tests.services.test_run import digest, make_recipe, read_items

BIGMAP = [sys.executable, "-m", "bigmap.cli"]
SECRET = "c2VjcmV0"


@pytest.fixture(scope="module")
def scenes(served_folder: Path) -> Path:
    return write_tiny_scenes(served_folder / "staging", pixel_m=300)


def write_items(scenes: Path, url: str, folder: str, tmp_path: Path) -> Path:
    """Items whose files lie at a URL under a name of their own, signed."""
    features = read_items(scenes, url, folder)
    for item in features:
        for asset in item["assets"].values():
            asset["href"] += f"?sig={SECRET}"
    file = tmp_path / f"{folder}.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def source_of(items: Path, retries: int = 5) -> dict:
    access = {"retries": retries, "timeout_s": 5}
    return {"kind": "files", "files": [str(items)], "access": access}


def pixels_of(folder: Path) -> dict[str, str]:
    """What the staged rasters hold, by item and band; hrefs and so names differ by server."""
    found = {}
    for file in sorted((folder / "scenes").rglob("*.*")):
        with rasterio.open(file) as dataset:
            name = f"{file.parent.name}/{file.name.partition('-')[0]}"
            found[name] = hashlib.sha256(dataset.read(1).tobytes()).hexdigest()
    return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("kind", "status"),
    [("status", 503), ("status", 403), ("html", 200), ("truncate", 200), ("reset", 200),
     ("short-range", 200)],
)  # fmt: skip
def test_a_flaky_host_changes_no_pixel(
    scenes, http_server: HttpServer, tmp_path, kind, status, whole
):
    name = f"stage-{kind}-{status}-{whole}"
    honest = write_items(scenes, http_server.url, f"honest-{name}", tmp_path)
    plan = bigmap.plan(make_recipe(source_of(honest), str(tmp_path / "map.zarr")))
    assert stage_plan(plan, tmp_path / "honest", whole=whole).exit_code == 0
    flaky = write_items(scenes, http_server.faulty_url, name, tmp_path)
    for item in json.loads(flaky.read_text())["features"]:
        path = item["assets"]["red"]["href"].partition("?")[0].rpartition("/")[2]
        http_server.inject(f"/{name}/{path}", kind, times=3, status=status)
    plan = bigmap.plan(make_recipe(source_of(flaky), str(tmp_path / "map.zarr")))
    summary = stage_plan(plan, tmp_path / "flaky", whole=whole, jobs=4)
    assert summary.failures == ()
    assert summary.fetched == summary.files == 10
    assert pixels_of(tmp_path / "flaky") == pixels_of(tmp_path / "honest")
    assert sum(request["fault"] is not None for request in http_server.requests()) >= 3
    if whole:
        originals = {file.read_bytes() for file in scenes.parent.glob("*.tif")}
        assert all(f.read_bytes() in originals for f in (tmp_path / "flaky/scenes").rglob("*.tif"))
    for file in (tmp_path / "flaky").iterdir():
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()


def test_what_is_gone_is_listed_and_comes_later(scenes, http_server, tmp_path):
    items = write_items(scenes, http_server.faulty_url, "stage-gone", tmp_path)
    plan = bigmap.plan(make_recipe(source_of(items, retries=0), str(tmp_path / "map.zarr")))
    http_server.inject("/stage-gone/*_nir.tif", "status", times=10_000, status=404)
    for whole in (False, True):
        summary = stage_plan(plan, tmp_path / "staged", whole=whole)
        assert summary.exit_code == 3
        assert summary.fetched == 8
        assert [Path(name).name[:4] for name, _ in summary.failures] == ["nir-", "nir-"]
        assert all(SECRET not in reason for _, reason in summary.failures)
    assert {why for _, why in verify_stage(tmp_path / "staged").failures} == {"was not fetched"}
    http_server.clear()
    plan = bigmap.plan(make_recipe(source_of(items), str(tmp_path / "map.zarr")))
    summary = stage_plan(plan, tmp_path / "staged")
    assert (summary.kept, summary.fetched, summary.exit_code) == (8, 2, 0)
    # Only what was missing was asked for again.
    assert {Path(r["path"].partition("?")[0]).stem[-3:] for r in http_server.requests()} == {"nir"}


def test_whole_jpeg_2000(scenes, served_folder, http_server, tmp_path):
    """Files of another format are copied as they are; their parts become GeoTIFFs."""
    folder = served_folder / "jp2"
    folder.mkdir()
    features = read_items(scenes, http_server.url, "stage-jp2")
    for item in features:
        for asset in item["assets"].values():
            name = Path(asset["href"]).stem
            convert(scenes.parent / f"{name}.tif", folder / f"{name}.jp2", driver="JP2OpenJPEG",
                    QUALITY=100, REVERSIBLE="YES")  # fmt: skip
            asset |= {"href": f"{http_server.url}/jp2/{name}.jp2", "type": "image/jp2"}
    items = tmp_path / "items.json"
    items.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    plan = bigmap.plan(make_recipe(source_of(items), str(tmp_path / "map.zarr")))
    assert stage_plan(plan, tmp_path / "whole", whole=True).exit_code == 0
    copies = sorted((tmp_path / "whole/scenes").rglob("*.jp2"))
    originals = {file.read_bytes() for file in folder.glob("*.jp2")}
    assert len(copies) == 10
    assert all(copy.read_bytes() in originals for copy in copies)
    assert stage_plan(plan, tmp_path / "parts").exit_code == 0
    wanted = sorted((tmp_path / "parts/scenes").rglob("*.tif"))
    assert len(wanted) == 10


@pytest.mark.parametrize("whole", [False, True])
def test_objects_of_a_store(scenes, s3_bucket, tmp_path, whole):
    filesystem = fsspec.filesystem("s3")
    filesystem.put([str(file) for file in scenes.parent.glob("*.tif")], f"{s3_bucket}/tiny/")
    features = read_items(scenes, s3_bucket, "tiny")
    items = tmp_path / "items.json"
    items.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    source = source_of(items)
    source["access"]["unsigned_s3"] = False
    plan = bigmap.plan(make_recipe(source, str(tmp_path / "map.zarr")))
    summary = stage_plan(plan, tmp_path / "staged", whole=whole)
    assert (summary.fetched, summary.failures) == (10, ())
    if whole:
        originals = {file.read_bytes() for file in scenes.parent.glob("*.tif")}
        assert all(f.read_bytes() in originals for f in (tmp_path / "staged").rglob("*.tif"))


def test_an_interrupted_staging_goes_on(scenes, http_server, tmp_path):
    """SIGTERM while answers stall: exit code 75, and the same command fetches the rest."""
    items = write_items(scenes, http_server.faulty_url, "stage-stop", tmp_path)
    recipe = tmp_path / "recipe.yaml"
    raw = make_recipe(source_of(items), str(tmp_path / "map.zarr")).model_dump(mode="json")
    raw["source"]["access"]["retries"] = 1
    recipe.write_text(yaml.safe_dump(raw))
    command = [*BIGMAP, "stage", str(recipe), "--out", str(tmp_path / "staged"), "--jobs", "1"]
    http_server.inject("/stage-stop/*0508*", "status", times=10_000, status=503)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    manifest = tmp_path / "staged/manifest.jsonl"
    deadline = time.monotonic() + 600
    while not manifest.exists() or len(manifest.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    # Answers fail until it has ended: what it still tries cannot be the rest.
    _, error = process.communicate(timeout=600)
    http_server.clear()
    assert process.returncode == 75
    assert "go on with the same command" in error
    assert not list((tmp_path / "staged").rglob("*.partial"))
    answer = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    summary = json.loads(answer.stdout)
    assert summary["kept"] >= 5
    assert summary["kept"] + summary["fetched"] == 10


@pytest.fixture(scope="module")
def offline() -> list[str]:
    """What puts a command into a network of its own, with nothing in it but loopback."""
    try:
        unshare, ip = find_program("unshare"), find_program("ip")
    except MissingProgramError as error:
        pytest.skip(f"{error}; see CONTRIBUTING.md")
    enter = [unshare, "--net"] if os.geteuid() == 0 else [unshare, "--map-root-user", "--net"]
    command = [*enter, "sh", "-c", f'{ip} link set lo up && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("network namespaces are not allowed here")
    return command


def test_the_same_bytes_with_the_network_cut(scenes, http_server, tmp_path, offline):
    items = write_items(scenes, http_server.url, "stage-cut", tmp_path)
    outputs = {name: tmp_path / f"{name}.zarr" for name in ("online", "staged", "cut")}
    recipe = tmp_path / "recipe.yaml"
    area = {"bbox": [2.25, 41.75, 2.35, 41.85]}
    loaded = make_recipe(source_of(items, retries=0), str(outputs["online"]), area=area)
    recipe.write_text(yaml.safe_dump(loaded.model_dump(mode="json")))

    def call(*arguments, prefix=()):
        return subprocess.run(
            [*prefix, *BIGMAP, *map(str, arguments)], check=False, capture_output=True, text=True
        )

    staged = tmp_path / "scenes"
    answer = call("stage", recipe, "--out", staged)
    assert answer.returncode == 0, answer.stderr
    assert call("run", recipe).returncode == 0
    # That the network is cut is proved by a run that needs it.
    cut = call("run", recipe, "--output", outputs["cut"], prefix=offline)
    assert cut.returncode == 3, cut.stderr
    assert "http" in cut.stdout + cut.stderr
    answer = call("run", recipe, "--output", outputs["staged"], "--staged", staged, prefix=offline)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    online = digest(str(outputs["online"]))
    assert len(online) > 3
    assert digest(str(outputs["staged"])) == online
    # A run that failed for want of a network goes on with what was staged.
    answer = call(
        "run", recipe, "--output", outputs["cut"], "--staged", staged, "--resume", prefix=offline
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert digest(str(outputs["cut"])) == online
