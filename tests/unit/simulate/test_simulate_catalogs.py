"""The simulated items as catalogues: every flavour and form gives the same reflectance."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

import bigmap
from bigmap.config import load_recipe
from bigmap.config.sources import FilesSource, StaticCatalogSource
from bigmap.errors import PlanError
from bigmap.scenes.catalog.search import find_items
from bigmap.simulate import (
    FLAVOURS,
    SceneRequest,
    render_reflectance,
    render_second_sensor,
    render_truth,
    trim_cache,
    write_geoparquet,
    write_scenes,
    write_static_catalog,
    write_true_image,
    write_truth,
    write_truth_polygons,
    write_world,
)
from bigmap.simulate.files import IN_USE_S
from bigmap.simulate.flavours import SceneFile
from bigmap.simulate.rendering import resize_numbers
from bigmap.simulate.truth_files import place_window
from tests.integration.small_world import write_recipe
from tests.unit.simulate.range_server import serve_folder

CRS = "EPSG:25831"
BOUNDS = (452_000.0, 4_630_500.0, 452_500.0, 4_631_000.0)
DAYS = {"start": dt.date(2024, 5, 1), "end": dt.date(2024, 5, 4)}
WORLD = shapely.box(-180, -90, 180, 90)


def make_request(**changes: Any) -> SceneRequest:
    values: dict[str, Any] = {"bands": ("red", "nir"), "seed": 3, "scene_px": 366, **DAYS}
    values |= changes
    return SceneRequest(CRS, BOUNDS, **values)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


def read_reflectance(source: FilesSource | StaticCatalogSource) -> list[np.ndarray]:
    found = find_items(source, bands=("red",), mask_asset="SCL", geometry_lonlat=WORLD)
    images = []
    for row in found.rows:
        with rasterio.open(row.assets["red"].href) as image:
            numbers = image.read(1).astype(float)
            assert list(image.shape) == list(row.assets["red"].shape)
        images.append((numbers + row.dn_shift) * 1e-4 - 0.1)
    return images


def files_source(file: Path) -> FilesSource:
    return FilesSource(kind="files", files=(str(file),), **DAYS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_flavours_hold_the_same_reflectance(flavour: str, cache: Path) -> None:
    plain = read_reflectance(files_source(write_scenes(make_request(), cache)))
    other = read_reflectance(files_source(write_scenes(make_request(flavour=flavour), cache)))
    assert len(plain) == len(other) > 0
    for first, second in zip(plain, other, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-9)


def test_cdse_is_lossless_jpeg_2000_in_several_sizes(cache: Path) -> None:
    request = make_request(bands=("coastal", "red", "nir"))
    plain = write_scenes(replace(request, flavour="earth-search-c1"), cache)
    items = write_scenes(replace(request, flavour="cdse"), cache)
    first, second = (json.loads(file.read_text())["features"][0] for file in (plain, items))
    assert set(second["assets"]) == {
        "B01_20m", "B01_60m", "B04_10m", "B04_20m", "B04_60m", "B08_10m", "SCL_20m", "SCL_60m"
    }  # fmt: skip
    images = {}
    for key, asset in second["assets"].items():
        with rasterio.open(items.parent / asset["href"]) as source:
            images[key] = source.read(1)
            assert source.driver == "JP2OpenJPEG"
            assert source.nodata is None
            assert source.crs.to_epsg() == 32631
            assert list(source.shape) == asset["proj:shape"]
            assert list(source.transform)[:6] == asset["proj:transform"]
    for name, key in (("coastal", "B01_60m"), ("red", "B04_10m"), ("scl", "SCL_20m")):
        with rasterio.open(plain.parent / first["assets"][name]["href"]) as source:
            np.testing.assert_array_equal(images[key], source.read(1))
    red = images["B04_10m"].astype(float)
    assert images["B04_20m"][7, 5] == np.rint(red[14:16, 10:12].mean())
    assert images["B04_60m"][7, 5] == np.rint(red[42:48, 30:36].mean())
    assert (images["B01_20m"][21:24, 15:18] == images["B01_60m"][7, 5]).all()
    assert images["SCL_60m"][7, 5] == images["SCL_20m"][22, 16]


def test_coarser_files_have_no_data_where_any_pixel_has_none() -> None:
    numbers = np.full((6, 6), 501, dtype=np.uint16)
    numbers[0, 0], numbers[0, 2] = 0, 500
    coarse = resize_numbers(numbers, SceneFile("red", 20, ""))
    np.testing.assert_array_equal(coarse, [[0, 501, 501], [501] * 3, [501] * 3])
    assert coarse.dtype == np.uint16


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
def test_jpeg_2000_reads_through_the_cube(cache: Path, tmp_path: Path, loader: str) -> None:
    """The same DN and the same mask, from the finest of the files of a band."""
    cubes = []
    for flavour in ("earth-search-c1", "cdse"):
        items = write_scenes(make_request(flavour=flavour), cache)
        source = {"kind": "files", "files": [str(items)], "start": "2024-05-01"}
        source |= {"end": "2024-05-04", "mask": {"kind": "scl", "asset": "SCL"}}
        changes = {"area__bbox": [2.424, 41.825, 2.428, 41.828], "reading": {"loader": loader}}
        recipe = write_recipe(tmp_path / f"{flavour}.yaml", source=source, **changes)
        cubes.append(bigmap.open_cube(load_recipe(recipe)).compute())
    assert cubes[0].sizes["time"] > 0
    assert (cubes[0] > 0).any()
    np.testing.assert_array_equal(cubes[0], cubes[1])
    np.testing.assert_array_equal(cubes[0].clear, cubes[1].clear)


def test_scenes_before_baseline_4_have_no_offset(cache: Path) -> None:
    days = {"start": dt.date(2021, 5, 1), "end": dt.date(2021, 5, 8)}
    numbers = []
    for flavour in ("earth-search", "earth-search-c1"):
        items = write_scenes(make_request(flavour=flavour, **days), cache)
        feature = json.loads(items.read_text())["features"][0]
        assert feature["properties"]["s2:processing_baseline"] == "02.14"
        with rasterio.open(items.parent / feature["assets"]["red"]["href"]) as image:
            numbers.append(image.read(1))
    np.testing.assert_array_equal(*numbers)


def test_static_catalogue_and_geoparquet_read_like_the_items(cache: Path, tmp_path: Path) -> None:
    items = write_scenes(make_request(), cache)
    catalog = write_static_catalog(items, tmp_path / "catalog")
    table = write_geoparquet(items, tmp_path / "items.parquet")
    plain = read_reflectance(files_source(items))
    static = StaticCatalogSource(kind="static-catalog", files=(str(catalog),), **DAYS)
    for source in (static, files_source(table)):
        np.testing.assert_array_equal(read_reflectance(source), plain)


def test_cache_keeps_its_limit(tmp_path: Path) -> None:
    old = write_scenes(make_request(), tmp_path)
    for file in tmp_path.rglob("item.json"):
        os.utime(file, (0, 0))
    with pytest.raises(PlanError, match="raise the limit"):
        write_scenes(make_request(), tmp_path, max_bytes=1000)
    later = {"start": dt.date(2024, 5, 9), "end": dt.date(2024, 5, 11)}
    used = sum(file.stat().st_size for file in tmp_path.glob("world-*/**/*.*"))
    new = write_scenes(make_request(**later), tmp_path, max_bytes=int(used * 1.3))

    def exists(items: Path) -> bool:
        features = json.loads(items.read_text())["features"]
        hrefs = [asset["href"] for item in features for asset in item["assets"].values()]
        return all((items.parent / href).exists() for href in hrefs)

    assert exists(new)
    assert not exists(old)
    assert write_scenes(make_request(), tmp_path) == old
    assert exists(old)
    # What was used a moment ago stays, whatever the limit.
    assert trim_cache(tmp_path, max_bytes=0, keep=set()) > 0
    assert IN_USE_S > 3600
    assert exists(old)


def test_true_image_is_the_same_in_every_window(tmp_path: Path) -> None:
    transform, shape = place_window(BOUNDS)
    image = render_reflectance(
        CRS, transform, shape, seed=3, day=DAYS["start"], bands=("nir", "red")
    )
    assert image.shape == (2, 200, 200)
    assert image.dtype == np.float32
    left, bottom, right, top = BOUNDS
    inner = left + 100, bottom + 50, right - 50, top - 25
    file = write_true_image(
        tmp_path / "image.tif", CRS, inner, seed=3, day=DAYS["start"], bands=("red",)
    )
    with rasterio.open(file) as source:
        np.testing.assert_array_equal(source.read(1), image[1, 10:180, 40:180])


def test_second_sensor_sees_the_same_ground() -> None:
    row, column = round(-4_631_000 / 4.77), round(452_000 / 4.77)
    image, _ = render_second_sensor(CRS, (row, column), (100, 90), seed=3, day=DAYS["start"])
    part, transform = render_second_sensor(
        CRS, (row + 13, column + 20), (40, 30), seed=3, day=DAYS["start"]
    )
    assert transform.a == 4.77
    np.testing.assert_allclose(part, image[:, 13:53, 20:50], atol=1e-5)


def test_world_holds_everything(tmp_path: Path) -> None:
    inner = BOUNDS[0], BOUNDS[1], BOUNDS[0] + 100, BOUNDS[1] + 100
    world = write_world(make_request(), tmp_path, truth_bounds=inner, layers=("cropland",))
    files = (world.items, world.catalog, world.table, *world.truth.values())
    assert all(file.exists() for file in (*files, *world.polygons.values()))


def test_scenes_are_read_over_http(cache: Path) -> None:
    items = write_scenes(make_request(), cache)
    href = json.loads(items.read_text())["features"][0]["assets"]["red"]["href"]
    with rasterio.open(items.parent / href) as source:
        expected = source.read(1)
    with (
        serve_folder(cache) as url,
        rasterio.open(f"{url}/{href.removeprefix('../')}") as source,
    ):
        np.testing.assert_array_equal(source.read(1), expected)


def test_two_processes_may_fill_one_cache(cache: Path, tmp_path: Path) -> None:
    items = write_scenes(make_request(), cache)
    code = (
        "import datetime as dt, pathlib, sys\n"
        "from bigmap.simulate import SceneRequest, write_scenes\n"
        f"request = {make_request()!r}\n"
        "write_scenes(request, pathlib.Path(sys.argv[1]))\n"
    ).replace("datetime.date", "dt.date")
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    written = tmp_path / items.relative_to(cache)
    assert written.read_bytes() == items.read_bytes()
    for item in json.loads(items.read_text())["features"]:
        for asset in item["assets"].values():
            content = (written.parent / asset["href"]).read_bytes()
            assert content == (items.parent / asset["href"]).read_bytes()
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]


@pytest.mark.parametrize(
    ("crs", "corner"),
    [("EPSG:32760", (819_000.0, 8_000_000.0)), ("EPSG:32633", (500_000.0, 9_000_000.0))],
    ids=["antimeridian", "81 degrees north"],
)
def test_any_place_has_scenes(crs: str, corner: tuple[float, float], tmp_path: Path) -> None:
    bounds = (*corner, corner[0] + 100, corner[1] + 100)
    day = dt.date(2024, 5, 2)
    request = SceneRequest(crs, bounds, day, day, ("red",), 3, scene_px=366)
    items = write_scenes(request, tmp_path)
    zones = {
        item["properties"]["mgrs:utm_zone"] for item in json.loads(items.read_text())["features"]
    }
    assert int(crs[-2:]) in zones


def test_truth_files_agree_with_the_truth(tmp_path: Path) -> None:
    files = write_truth(tmp_path, CRS, BOUNDS, seed=3, layers=("cropland", "parcel"))
    polygons = write_truth_polygons(tmp_path, CRS, BOUNDS, seed=3)
    transform, shape = place_window(BOUNDS)
    for layer, file in files.items():
        with rasterio.open(file) as source:
            assert source.crs.to_epsg() == 25831
            expected = render_truth(CRS, transform, shape, seed=3, layer=layer)
            np.testing.assert_array_equal(source.read(1), expected)
    parcels = geopandas.read_parquet(polygons["parcels"])
    cropland = render_truth(CRS, transform, shape, seed=3, layer="cropland")
    area_m2 = parcels.loc[parcels["cropland"], "geometry"].area.sum()
    assert area_m2 == pytest.approx(cropland.sum() * 6.25)
    assert parcels["parcel"].is_unique
    assert {"building", "roof"} <= set(geopandas.read_parquet(polygons["buildings"]).columns)
