"""The simulated world: the same in every window, request and process."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from rasterio.windows import Window

from bigmap.errors import PlanError
from bigmap.simulate import (
    LAYERS,
    SceneRequest,
    list_request_parts,
    render_truth,
    write_scenes,
)

CRS = "EPSG:25831"
CORNER = (452_000.0, 4_631_000.0)


def make_request(**changes: object) -> SceneRequest:
    left, top = CORNER
    values = {
        "crs": CRS,
        "bounds": (left, top - 500, left + 500, top),
        "start": dt.date(2024, 5, 1),
        "end": dt.date(2024, 5, 6),
        "bands": ("red", "nir"),
        "seed": 3,
        "scene_px": 366,
    }
    return SceneRequest(**(values | changes))  # type: ignore[arg-type]


def list_files(cache: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(file.relative_to(cache)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(cache.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(make_request(), folder)
    return folder


def test_files_match_their_items(cache: Path) -> None:
    items = write_scenes(make_request(), cache)
    features = json.loads(items.read_text())["features"]
    assert {item["properties"]["datetime"][:10] for item in features} == {
        "2024-05-01",
        "2024-05-06",
    }
    for item in features:
        assert set(item["assets"]) == {"red", "nir", "scl"}
        for asset in item["assets"].values():
            with rasterio.open(items.parent / asset["href"]) as source:
                assert list(source.shape) == asset["proj:shape"]
                assert list(source.transform)[:6] == asset["proj:transform"]
                assert source.crs.to_epsg() == item["properties"]["proj:epsg"]


@pytest.mark.slow
def test_files_of_1098_px_hold_the_same_pixels(cache: Path) -> None:
    """The same bytes for each pixel, in COGs whose 10 m bands have tiles and overviews."""
    request = make_request(bands=("coastal", "red", "nir08"), end=dt.date(2024, 5, 1))
    small, large = (
        write_scenes(replace(request, scene_px=side_px), cache) for side_px in (366, 1098)
    )
    (first,), (second,) = (json.loads(file.read_text())["features"] for file in (small, large))
    assert first["id"] != second["id"]
    assert shapely.box(*second["bbox"]).covers(shapely.box(*first["bbox"]))
    for name, asset in first["assets"].items():
        with (
            rasterio.open(small.parent / asset["href"]) as part,
            rasterio.open(large.parent / second["assets"][name]["href"]) as whole,
        ):
            assert list(whole.shape) == second["assets"][name]["proj:shape"]
            assert list(whole.transform)[:6] == second["assets"][name]["proj:transform"]
            row, column = whole.index(part.bounds.left + 1, part.bounds.top - 1)
            window = Window(column, row, part.width, part.height)
            np.testing.assert_array_equal(whole.read(1, window=window), part.read(1))
            assert whole.read(1).all()
            if name == "red":
                assert whole.shape == (1098, 1098)
                assert whole.block_shapes == [(1024, 1024)]
                assert whole.overviews(1) == [2]
                assert whole.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.mark.slow
def test_the_edge_of_a_swath_is_the_same_in_large_files(tmp_path: Path) -> None:
    """The swath of this day touches the left three of the nine pieces alone."""
    bounds = (644_000.0, 4_634_500.0, 644_100.0, 4_645_000.0)
    request = make_request(bounds=bounds, bands=("nir09",), end=dt.date(2024, 5, 1))
    images = []
    for side_px in (366, 1098):
        items = write_scenes(replace(request, scene_px=side_px), tmp_path)
        features = json.loads(items.read_text())["features"]
        hrefs = sorted(item["assets"]["nir09"]["href"] for item in features)
        columns = []
        for href in hrefs:
            with rasterio.open(items.parent / href) as source:
                columns.append(source.read(1))
        images.append(np.concatenate(columns))
    parts, whole = images
    assert parts.shape == (183, 61)
    assert whole.shape == (183, 183)
    np.testing.assert_array_equal(whole[:, :61], parts)
    assert 0 < (parts > 0).sum() == (whole > 0).sum()
    assert features[0]["properties"]["s2:nodata_pixel_percentage"] > 100 * 2 / 3
    beside = replace(request, bounds=(650_000, 4_640_000, 650_100, 4_640_100))
    with pytest.raises(PlanError, match="no simulated datatake"):
        write_scenes(beside, tmp_path)


def test_second_call_writes_nothing(cache: Path) -> None:
    before = list_files(cache)
    write_scenes(make_request(), cache)
    assert list_files(cache) == before


def test_more_bands_keep_what_is_there(cache: Path, tmp_path: Path) -> None:
    alone = write_scenes(make_request(bands=("swir16",), end=dt.date(2024, 5, 1)), tmp_path)
    write_scenes(make_request(bands=("swir16",), end=dt.date(2024, 5, 1)), cache)
    assert json.loads(alone.read_text())["features"]
    for name, (_, content) in list_files(tmp_path).items():
        assert (cache / name).read_bytes() == content, name


@pytest.mark.parametrize("layer", LAYERS)
def test_truth_is_the_same_in_every_window(layer: str) -> None:
    left, top = 452_342.5, 4_632_107.5
    whole = render_truth(CRS, Affine(2.5, 0, left, 0, -2.5, top), (700, 1500), seed=3, layer=layer)
    part = render_truth(
        CRS,
        Affine(2.5, 0, left + 2.5 * 611, 0, -2.5, top - 2.5 * 173),
        (300, 401),
        seed=3,
        layer=layer,
    )
    np.testing.assert_array_equal(part, whole[173:473, 611:1012])
    assert len(np.unique(whole)) > 1


def test_truth_is_that_of_the_scenes_zone() -> None:
    """EPSG:25831 and the scenes' EPSG:32631 are one grid, so the ground must agree."""
    window = Affine(2.5, 0, 452_000, 0, -2.5, 4_632_000), (400, 400)
    first, second = (
        render_truth(crs, *window, seed=3, layer="cover") for crs in (CRS, "EPSG:32631")
    )
    assert (first != second).mean() < 1e-3


def test_ground_does_not_know_the_borders_of_files() -> None:
    """Cover must not change more often along borders of parts than elsewhere."""
    part = list_request_parts(make_request())[0]
    left, _, _, top = part.bounds
    width = 3 * 1464
    transform = Affine(2.5, 0, left - 1830, 0, -2.5, top - 500)
    crs = f"EPSG:{part.tile.epsg}"
    cover = render_truth(crs, transform, (1200, width), seed=3, layer="cover")
    changes = (cover[:, 1:] != cover[:, :-1]).mean(axis=0)
    borders = changes[[731, 731 + 1464, 731 + 2 * 1464]]
    assert borders.max() < changes.mean() + 4 * changes.std()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": ("cirrus",)}, "cirrus is no band"),
        ({"end": dt.date(2024, 4, 1)}, "is before start"),
        ({"seed": -1}, "negative"),
        ({"crs": "EPSG:0"}, "not a CRS"),
        ({"bounds": (0.0, 0.0, 0.0, 1.0)}, "empty"),
        ({"end": dt.date(2024, 5, 2), "start": dt.date(2024, 5, 2)}, "no simulated datatake"),
    ],
)
def test_bad_requests(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        write_scenes(make_request(**changes), tmp_path)
