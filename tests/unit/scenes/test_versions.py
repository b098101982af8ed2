"""A scene that is replaced amid a run, and files that are larger than their items say."""

import http.server
import json
import os
import threading
from dataclasses import replace

import pytest
import rasterio

import bigmap
from bigmap.config import parse_recipe
from bigmap.config.sources import Access
from bigmap.errors import ReadError
from bigmap.mapping.blocks import run_block
from bigmap.mapping.ledger import BlockRecord, Ledger, list_replaced
from bigmap.mapping.store.template import complete_map
from bigmap.scenes.cube.reading import Claim, find_excess_m, grid_of
from bigmap.scenes.cube.versions import find_version
from tests.integration.small_world import SIDE_PX, TRANSFORM, raw_recipe, write_scenes

ITEMS = ("S2A_31TCG_20240401_0_L2A", "S2A_31TCG_20240501_0_L2A", "S2A_31TCG_20240601_0_L2A")
BOUNDS = (300_000, 4_620_000 - 10 * SIDE_PX, 300_000 + 10 * SIDE_PX, 4_620_000)


@pytest.fixture
def world(tmp_path, monkeypatch):
    write_scenes(tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def map_a_block(**changes):
    plan = bigmap.plan(parse_recipe(raw_recipe(dates__max_per_cell=2, **changes)))
    complete_map("map.zarr", plan.only.template())
    return run_block(
        plan.only.job("map.run", None), plan.only.blocks[0], plan.only.rows_of(plan.only.blocks[0])
    )


def test_a_block_tells_the_versions_of_what_it_read(world):
    """The masks of all dates are read, the bands of the two that are chosen."""
    versions = map_a_block().versions
    assert set(versions) == {*ITEMS, f"{ITEMS[0]} bands", f"{ITEMS[1]} bands"}
    assert map_a_block().versions == versions
    (red,) = world.glob(f"scenes/{ITEMS[0]}/red.tif")
    os.utime(red, ns=(0, 0))
    again = map_a_block().versions
    assert {name for name in versions if versions[name] != again[name]} == {f"{ITEMS[0]} bands"}


def test_without_a_mask_one_band_tells_of_all_dates(world):
    versions = map_a_block(source__mask={"kind": "none"}).versions
    assert set(ITEMS) < set(versions)


def test_simulated_scenes_may_be_written_again(world):
    recipe = parse_recipe(raw_recipe())
    plan = bigmap.plan(recipe)
    simulated = parse_recipe(
        raw_recipe(source={"kind": "simulated", "start": "2024-05-01", "end": "2024-05-02"})
    )
    assert plan.only.reading.watch_versions
    assert not replace(plan.only, recipe=simulated).reading.watch_versions


def test_the_ledger_keeps_a_version_once_and_notices_another(tmp_path):
    ledger = Ledger(str(tmp_path))
    first = ledger.append(BlockRecord("r0c0", "done", versions={"a": "1", "a bands": "2"}))
    assert first.versions == {"a": "1", "a bands": "2"}
    same = ledger.append(BlockRecord("r0c1", "done", versions={"a": "1", "b": "5"}))
    assert (same.versions, same.replaced) == ({"b": "5"}, ())
    ledger.flush()
    resumed = Ledger(str(tmp_path))
    assert list_replaced(resumed.latest().values()) == ()
    other = resumed.append(BlockRecord("r0c2", "done", versions={"a": "1", "a bands": "3"}))
    assert (other.versions, other.replaced) == ({}, ("a",))
    # The first is what the others are compared with, however often the new one is read.
    assert resumed.append(BlockRecord("r0c3", "done", versions={"a bands": "3"})).replaced == ("a",)
    resumed.flush()
    assert list_replaced(Ledger(str(tmp_path)).latest().values()) == ("a",)


class _Tagged(http.server.BaseHTTPRequestHandler):
    tag = '"one"'
    status = 200

    def do_HEAD(self):
        self.send_response(self.status)
        self.send_header("ETag", self.tag)
        self.send_header("Content-Length", "12")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_server_tells_a_version(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Tagged) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert find_version(f"{url}/a.tif", Access()) == '"one" 12 '
        monkeypatch.setattr(_Tagged, "tag", '"two"')
        assert find_version(f"{url}/b.tif", Access()) == '"two" 12 '
        monkeypatch.setattr(_Tagged, "status", 403)
        assert find_version(f"{url}/c.tif", Access()) is None
        server.shutdown()
    assert find_version(f"{url}/d.tif", Access(timeout_s=1)) is None
    assert find_version("gs://bucket/e.tif", Access()) is None


def test_a_file_larger_than_its_item_says_is_refused(world):
    """Its geometry is as small, so that nothing but the opened file can tell."""
    file = world / "scenes" / "items.json"
    content = json.loads(file.read_text())
    for item in content["features"]:
        item["geometry"] = None
        for asset in item["assets"].values():
            asset["proj:shape"] = [SIDE_PX, SIDE_PX - 60]
    file.write_text(json.dumps(content))
    with pytest.raises(ReadError, match=r"scl\.tif: reaches 600 m beyond the place that its item"):
        map_a_block()


def test_the_excess_is_that_of_the_worst_side(tmp_path):
    file = tmp_path / "a.tif"
    with rasterio.open(
        file, "w", driver="GTiff", width=SIDE_PX, height=SIDE_PX, count=1, dtype="uint16",
        crs="EPSG:32631", transform=TRANSFORM,
    ) as target:  # fmt: skip
        source = grid_of(target)
    west, south, east, north = BOUNDS
    assert find_excess_m(source, Claim(32631, BOUNDS)) == pytest.approx(0, abs=1e-6)
    smaller = (west + 70, south + 20, east - 10, north + 40)
    assert find_excess_m(source, Claim(32631, smaller)) == pytest.approx(70, abs=1e-3)
    # UTM on ETRS89 has the same coordinates.
    assert find_excess_m(source, Claim(25831, BOUNDS)) == pytest.approx(0, abs=0.01)
