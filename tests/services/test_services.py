"""The services themselves work, and the faults are the faults they are named after."""

from __future__ import annotations

import http.client
import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pystac_client
import pytest
import rasterio
import s3fs
import xarray as xr
import zarr
from rasterio.windows import Window
from zarr.storage import FsspecStore

from tests.services import processes
from tests.services.http_server import HttpServer
from tests.services.s3 import S3Server
from tests.services.stac_api import StacApi, collection_of

BODY = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def cog(served_folder: Path) -> str:
    """Name of a COG in the served folder whose pixels encode their position."""
    pixels = np.arange(1024 * 1024, dtype="uint32").reshape(1024, 1024)
    profile = {
        "driver": "COG",
        "dtype": "uint32",
        "count": 1,
        "width": 1024,
        "height": 1024,
        "crs": "EPSG:32633",
        "blocksize": 256,
        "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5100000),
    }
    with rasterio.open(served_folder / "position.tif", "w", **profile) as file:
        file.write(pixels, 1)
    return "position.tif"


@pytest.fixture(scope="module")
def blob(served_folder: Path) -> str:
    (served_folder / "blob.bin").write_bytes(BODY)
    return "blob.bin"


def fetch(url: str, *, first: int | None = None, last: int | None = None) -> tuple[int, bytes]:
    headers = {} if first is None else {"Range": f"bytes={first}-{last}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
        return answer.status, answer.read()


@pytest.mark.parametrize("address", ["url", "faulty_url"])
def test_cog_is_read_in_ranges_over_http(http_server: HttpServer, cog: str, address: str) -> None:
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(f"/vsicurl/{getattr(http_server, address)}/{cog}") as file,
    ):
        pixels = file.read(1, window=Window(300, 500, 7, 5))
    assert pixels[0, 0] == 500 * 1024 + 300
    assert pixels[-1, -1] == 504 * 1024 + 306
    if address == "faulty_url":
        ranges = [each["range"] for each in http_server.requests() if each["method"] == "GET"]
        assert ranges
        assert all(ranges)


def test_honest_answers_pass_through_the_proxy(http_server: HttpServer, blob: str) -> None:
    url = f"{http_server.faulty_url}/{blob}"
    assert fetch(url) == (200, BODY)
    assert fetch(url, first=10, last=19) == (206, BODY[10:20])


def test_status_is_injected_as_often_as_asked(http_server: HttpServer, blob: str) -> None:
    url = f"{http_server.faulty_url}/{blob}"
    http_server.inject("/*.bin", "status", times=2, status=503)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError, match="503"):
            fetch(url)
    assert fetch(url)[0] == 200
    assert [each["fault"] for each in http_server.requests()] == ["status", "status", None]


def test_html_comes_with_status_200(http_server: HttpServer, blob: str) -> None:
    http_server.inject("/*", "html", times=1)
    status, body = fetch(f"{http_server.faulty_url}/{blob}")
    assert status == 200
    assert b"<html>" in body


def test_truncated_body_ends_before_its_promised_length(http_server: HttpServer, blob: str) -> None:
    http_server.inject("/*", "truncate", times=1)
    with pytest.raises(http.client.IncompleteRead):
        fetch(f"{http_server.faulty_url}/{blob}")


def test_reset_inside_the_body(http_server: HttpServer, blob: str) -> None:
    http_server.inject("/*", "reset", times=1)
    with pytest.raises(ConnectionResetError):
        fetch(f"{http_server.faulty_url}/{blob}")


def test_short_range_is_labelled_honestly(http_server: HttpServer, blob: str) -> None:
    http_server.inject("/*", "short-range", times=1)
    status, body = fetch(f"{http_server.faulty_url}/{blob}", first=0, last=99)
    assert status == 206
    assert body == BODY[:50]


def test_unknown_fault_is_refused(http_server: HttpServer) -> None:
    with pytest.raises(ValueError, match="gremlins"):
        http_server.inject("/*", "gremlins")


def test_sharded_zarr_on_s3_is_read_back(s3_server: S3Server, s3_bucket: str) -> None:
    store = FsspecStore.from_url(
        f"{s3_bucket}/map.zarr", storage_options=dict(s3_server.storage_options)
    )
    values = np.arange(512 * 512, dtype="uint32").reshape(512, 512)
    group = zarr.create_group(store)
    array = group.create_array(
        "class",
        shape=values.shape,
        dtype=values.dtype,
        shards=(256, 256),
        chunks=(64, 64),
        dimension_names=("y", "x"),
    )
    array[:] = values
    with xr.open_zarr(store, consolidated=False) as read:
        assert (read["class"].values == values).all()
    objects = s3fs.S3FileSystem(**s3_server.storage_options).find(f"{s3_bucket}/map.zarr")
    assert sum("/c/" in name for name in objects) == 4


def item_of(day: int) -> dict[str, object]:
    """Return the least that makes a STAC item, of a day in August 2023."""
    west, south, east, north = bbox = [15.0, 45.0, 16.0, 46.0]
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": f"day-{day:02}",
        "bbox": bbox,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"2023-08-{day:02}T10:00:00Z", "eo:cloud_cover": day},
        "links": [],
        "assets": {"red": {"href": f"https://example.com/{day}.tif"}},
    }


def test_stac_api_searches_in_pages(stac_api: StacApi) -> None:
    stac_api.load(collection_of("made-up"), [item_of(day) for day in range(1, 11)])
    search = pystac_client.Client.open(stac_api.url).search(
        collections=["made-up"],
        bbox=[15.2, 45.3, 15.6, 45.5],
        datetime="2023-08-03/2023-08-07",
        query={"eo:cloud_cover": {"lt": 7}},
        limit=3,
    )
    pages = [[item.id for item in page] for page in search.pages()]
    assert [len(page) for page in pages] == [3, 1]
    assert {name for page in pages for name in page} == {"day-03", "day-04", "day-05", "day-06"}
    assert search.matched() == 4


@pytest.mark.real_data
def test_stac_api_finds_the_real_scenes(stac_api: StacApi, shared_data: Path) -> None:
    folder = shared_data / "sentinel-2-l2a"
    items = json.loads((folder / "items.json").read_text(encoding="utf-8"))["features"]
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = str((folder / asset["href"]).resolve())
    stac_api.load(collection_of("sentinel-2-l2a"), items)
    search = pystac_client.Client.open(stac_api.url).search(
        collections=["sentinel-2-l2a"],
        bbox=[15.2, 45.3, 15.6, 45.5],
        datetime="2023-08-12/2023-08-18",
        limit=2,
    )
    found = {item.id: item for item in search.items()}
    assert set(found) == {
        "S2B_33TWL_20230813_0_L2A",
        "S2A_33TWL_20230815_0_L2A",
        "S2A_33TWL_20230818_0_L2A",
    }
    with rasterio.open(found["S2A_33TWL_20230815_0_L2A"].assets["red"].href) as file:
        assert file.crs.to_epsg() == 32633


def test_stopped_server_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_LIMIT_S", 0.5)
    note = tmp_path / "child"
    script = "trap '' TERM; sleep 600 & echo $! > child.new; mv child.new child; wait; wait"
    with processes.running(
        ["sh", "-c", f"cd {tmp_path}; {script}"], log=tmp_path / "log", ready=note.exists
    ) as process:
        child = psutil.Process(int(note.read_text()))
    assert process.returncode == -signal.SIGKILL
    assert psutil.wait_procs([child], timeout=5)[1] == []
