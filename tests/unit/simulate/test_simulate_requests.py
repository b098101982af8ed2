"""What a request needs, before it is rendered: the same scenes and items, and nothing written."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
from shapely.geometry import shape

from bigmap.errors import OutputError, PlanError
from bigmap.simulate import (
    SceneRequest,
    SceneStock,
    forecast_items,
    list_request_parts,
    locate_items,
    write_scenes,
)
from bigmap.simulate.requests import list_scenes

REQUEST = SceneRequest(
    "EPSG:25831", (452_000.0, 4_630_500.0, 452_500.0, 4_631_000.0), dt.date(2024, 5, 1),
    dt.date(2024, 5, 4), ("red", "nir"), 3, scene_px=366,
)  # fmt: skip
WIDER = replace(REQUEST, bounds=(452_000.0, 4_630_500.0, 458_000.0, 4_631_000.0))
LIMIT = 10**9
KNOWN_LATER = ("eo:cloud_cover", "s2:", "view:", "datetime", "created", "updated")


def take_stock(request: SceneRequest, cache: Path) -> SceneStock:
    return SceneStock.of(request, cache, max_bytes=LIMIT)


def test_items_are_forecast_without_writing(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    forecast = forecast_items(REQUEST, cache)
    assert not cache.exists()
    file = write_scenes(REQUEST, cache)
    assert file == locate_items(REQUEST, cache)
    rendered = forecast_items(REQUEST, cache)
    assert [item["id"] for item in forecast] == [item["id"] for item in rendered]
    assert len(forecast) == len(list_scenes(REQUEST)) > 0
    for before, after in zip(forecast, rendered, strict=True):
        assert before["assets"] == after["assets"]
        assert "eo:cloud_cover" not in before["properties"]
        assert "eo:cloud_cover" in after["properties"]
        # A degree's 1e-5 is a metre, and corners are rounded.
        assert shape(before["geometry"]).buffer(1e-5).covers(shape(after["geometry"]))
        assert before["properties"]["datetime"][:15] == after["properties"]["datetime"][:15]
        for name, value in before["properties"].items():
            if not name.startswith(KNOWN_LATER):
                assert after["properties"][name] == value


def test_a_stock_tells_what_is_there(tmp_path: Path) -> None:
    (part,) = list_request_parts(REQUEST)
    before = take_stock(REQUEST, tmp_path)
    assert {scene.part for scene in before.scenes} == {part}
    assert (len(before.cached), before.cached_bytes) == (0, 0)
    assert (before.tiles, before.days) == (1, len({scene.day for scene in before.scenes}))
    write_scenes(REQUEST, tmp_path)
    whole = take_stock(REQUEST, tmp_path)
    assert whole.cached == whole.scenes == before.scenes
    assert (whole.lacking, whole.cached_bytes) == (0, whole.bytes)
    written = sum(file.stat().st_size for file in tmp_path.glob("world-*/**/*.*"))
    assert written < whole.bytes < 2 * written
    next(tmp_path.rglob("B04.tif")).unlink()
    assert take_stock(REQUEST, tmp_path).lacking == 1


def test_parts_of_a_map_share_scenes(tmp_path: Path) -> None:
    write_scenes(REQUEST, tmp_path)
    small, wide = take_stock(REQUEST, tmp_path), take_stock(WIDER, tmp_path)
    assert small.scenes < wide.scenes
    joined = SceneStock.join([small, wide])
    assert joined.requests == (REQUEST, WIDER)
    assert (joined.scenes, joined.cached) == (wide.scenes, small.scenes)
    assert joined.bytes == wide.bytes
    joined.check_size("source.cache_gb")
    with pytest.raises(PlanError, match=r"or raise source\.cache_gb$"):
        replace(joined, max_bytes=int(joined.bytes) - 1).check_size("source.cache_gb")


def test_a_cache_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"cache: simulated scenes cannot be kept there"):
        forecast_items(REQUEST, cache)
