"""The whole way over real services: items from a STAC API, scenes over HTTP, the map on S3."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import fsspec
import pytest
import xarray as xr

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.places import Attempt
from bigmap.mapping.running import run_plan
from bigmap.mapping.store.zarr_stores import open_store
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes
from tests.services.stac_api import StacApi, collection_of


@pytest.fixture(scope="module")
def scenes(served_folder: Path) -> Path:
    """Items of tiny scenes in the served folder."""
    return write_tiny_scenes(served_folder / "tiny", pixel_m=300)


@pytest.fixture(scope="module")
def client():
    with start_cluster() as (_, client):
        yield client


def make_recipe(source: dict, output: str, **changes):
    raw = {
        "name": "services", "area": {"bbox": [2.05, 41.7, 2.6, 42.0]},
        "grid": {
            "crs": "EPSG:3035", "gsd_m": 250, "core_px": 32, "cell_px": 64, "block_px": 64,
            "shard_px": 128, "chunk_px": 64,
        },
        "source": {"start": "2024-05-01", "end": "2024-05-31", **source},
        "model": {"name": "small-conv", "options": {"upscale": 2}},
        "output": {"path": output, "overviews": 1},
        "cluster": {"workers": 1}, **changes,
    }  # fmt: skip
    return parse_recipe(raw)


def digest(path: str) -> dict[str, str]:
    filesystem, root = fsspec.core.url_to_fs(path)
    filesystem.invalidate_cache()
    return {
        name[len(root) :]: hashlib.sha256(filesystem.cat_file(name)).hexdigest()
        for name in sorted(filesystem.find(root))
        if "/c/" in name[len(root) :]
    }


@pytest.fixture(scope="module")
def local(scenes, client, tmp_path_factory) -> dict[str, str]:
    """What the map looks like when everything lies on this machine."""
    output = str(tmp_path_factory.mktemp("local") / "map.zarr")
    source = {"kind": "files", "files": [str(scenes)]}
    summary = run_plan(bigmap.plan(make_recipe(source, output)), client)
    assert summary.exit_code == 0
    assert len(digest(output)) > 10
    return digest(output)


def read_items(scenes: Path, url: str, folder: str = "tiny") -> list[dict]:
    """Items whose files lie at a URL, under a name of their own: GDAL keeps what it has read."""
    alias = scenes.parent.with_name(folder)
    if not alias.exists():
        alias.symlink_to(scenes.parent, target_is_directory=True)
    features = json.loads(scenes.read_text())["features"]
    for item in features:
        for asset in item["assets"].values():
            asset["href"] = f"{url}/{folder}/{Path(asset['href']).name}"
    return features


def test_stac_api_to_s3(scenes, client, local, http_server, stac_api: StacApi, s3_bucket):
    stac_api.load(collection_of("sentinel-2-l2a"), read_items(scenes, http_server.url))
    source = {"kind": "stac-api", "url": stac_api.url, "collection": "sentinel-2-l2a"}
    recipe = make_recipe(source, f"{s3_bucket}/map.zarr")
    plan = bigmap.plan(recipe)
    assert len(plan.only.catalogue.rows) == 2
    with start_cluster() as (_, fresh):  # workers that know the S3 endpoint of this test
        summary = run_plan(plan, fresh)
        assert summary.exit_code == 0
        assert summary.missing_shards == ()
        again = run_plan(plan, fresh, Attempt(resume=True))
        assert again.sent == 0
        assert again.planned == summary.planned
    assert digest(recipe.output.path) == local
    opened = xr.open_zarr(open_store(recipe.output.path, read_only=True), consolidated=False)
    assert opened["class"].attrs["flag_meanings"] == "a b c"
    assert set(bigmap.open_map(recipe.output.path, level=1)) == set(
        bigmap.open_map(recipe.output.path)
    )


@pytest.mark.parametrize(
    ("kind", "status"),
    [("status", 503), ("status", 403), ("html", 200), ("truncate", 200), ("reset", 200),
     ("short-range", 200)],
)  # fmt: skip
def test_a_flaky_host_changes_no_byte(
    scenes, client, local, http_server, tmp_path, served_folder, kind, status
):
    file = tmp_path / "items.json"
    folder = f"tiny-{kind}-{status}"
    features = read_items(scenes, http_server.faulty_url, folder)
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    for item in features:
        for name in ("red", "nir"):
            path = f"/{folder}/" + Path(item["assets"][name]["href"]).name
            http_server.inject(path, kind, times=3, status=status)
    source = {"kind": "files", "files": [str(file)], "access": {"retries": 5, "timeout_s": 5}}
    output = str(tmp_path / "map.zarr")
    summary = run_plan(bigmap.plan(make_recipe(source, output)), client)
    assert summary.exit_code == 0, summary.failures
    assert digest(output) == local
    assert sum(request["fault"] is not None for request in http_server.requests()) >= 3


def test_a_lost_scene_fails_its_blocks_or_drops_its_date(
    scenes, client, local, http_server, tmp_path, monkeypatch
):
    monkeypatch.setattr("bigmap.clusters.driving.RETRY_DELAY_S", 0.01)
    features = read_items(scenes, http_server.faulty_url, "tiny-lost")
    lost = "/tiny-lost/" + Path(features[1]["assets"]["nir"]["href"]).name
    file = tmp_path / "items.json"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    source = {"kind": "files", "files": [str(file)], "access": {"retries": 0, "timeout_s": 5}}
    http_server.inject(lost, "status", times=10_000, status=404)

    failing = make_recipe(source, str(tmp_path / "fail.zarr"))
    summary = run_plan(bigmap.plan(failing), client)
    assert summary.exit_code == 3
    assert set(summary.states) == {"failed", "empty"}
    assert lost.rsplit("/", maxsplit=1)[-1] in summary.failures[0][1]

    dropping = make_recipe(source, str(tmp_path / "drop.zarr"), reading={"on_error": "drop-date"})
    plan = bigmap.plan(dropping)
    summary = run_plan(plan, client)
    assert summary.exit_code == 0
    assert summary.states["degraded"] > 0
    assert summary.states["failed"] == 0
    assert digest(dropping.output.path) != local

    # Nothing readable at all is a failure, and not an empty map.
    features = read_items(scenes, http_server.faulty_url, "tiny-none")
    none = tmp_path / "none.json"
    none.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    http_server.inject("/tiny-none/*.tif", "status", times=100_000, status=404)
    nothing = make_recipe(
        source | {"files": [str(none)]},
        str(tmp_path / "none.zarr"),
        reading={"on_error": "drop-date"},
    )
    summary = run_plan(bigmap.plan(nothing), client, Attempt(limit=12))
    assert summary.exit_code == 3
    assert "no date could be read" in summary.failures[0][1]

    # The host recovers: a resumed run does the degraded blocks again, and all is as it should be.
    http_server.clear()
    summary = run_plan(plan, client, Attempt(resume=True))
    assert set(summary.states) <= {"done", "empty"}
    assert digest(dropping.output.path) == local
