"""The traps of real catalogues: assets, projections and the antimeridian."""

import datetime as dt
import json
from pathlib import Path

import pytest
import rasterio
import shapely

from bigmap.errors import CatalogError
from bigmap.scenes.catalog import Finding
from bigmap.scenes.catalog.assets import NUMBERS, band_of
from bigmap.scenes.catalog.projection import footprint_of, solar_day_of
from bigmap.scenes.items import BANDS
from tests.unit.scenes.catalog_cases import find, read_cassette, read_json, write


@pytest.fixture(scope="session")
def stac(shared_data):
    return shared_data / "stac"


@pytest.fixture
def real_item(shared_data):
    """One item of the real cube, to be changed by a test."""
    return read_json(shared_data / "sentinel-2-l2a" / "items.json")["features"][0]


def test_every_band_of_every_catalogue_is_found(stac, shared_data, tmp_path):
    l2a = tuple(band for band in BANDS if band != "cirrus")
    multiple = read_cassette(stac / "earth-search-multiple-collections.cassette.yaml")
    for path, bands, mask in (
        (stac / "planetary-computer-l2a.json", l2a, "scl"),
        (stac / "earth-search-v0-35MNM.geojson", l2a, "SCL"),
        (stac / "cdse-proj-code.json", l2a, "SCL"),
        (stac / "earth-search-proj-code-only.json", l2a, "scl"),
        (stac / "earth-search-s3-jp2.json", BANDS, None),
        (write(tmp_path / "one.json", multiple[0]), l2a, "scl"),
        (shared_data / "slovenia" / "items.json", BANDS, "clm"),
    ):
        for row in find(path, bands=bands, mask_asset=mask).rows:
            names = bands if mask is None else (*bands, mask)
            assert tuple(row.assets) == names
            for band, number in zip(BANDS, NUMBERS, strict=True):
                if band in row.assets:
                    file = Path(row.assets[band].href).name
                    assert f"B{number}" in file, path


def test_the_finest_of_several_resolutions_wins(stac):
    (row,) = find(
        stac / "cdse-proj-code.json", bands=("coastal", "red", "rededge3"), mask_asset="SCL"
    ).rows
    sizes = {name: asset.transform[0] for name, asset in row.assets.items()}
    assert sizes == {"coastal": 20, "red": 10, "rededge3": 20, "SCL": 20}
    assert row.assets["red"].href.endswith("_B04_10m.jp2")
    assert row.assets["SCL"].shape == (5490, 5490)


@pytest.mark.parametrize("wanted", ["scl", "SCL", "Scl"])
def test_the_mask_is_found_in_any_case_and_kept_under_the_recipes_name(stac, wanted):
    for name in ("planetary-computer-l2a.json", "cdse-proj-code.json",
                 "earth-search-proj-code-only.json"):  # fmt: skip
        assert wanted in find(stac / name, mask_asset=wanted).rows[0].assets


@pytest.mark.parametrize(
    ("key", "asset", "band"),
    [
        ("B04", {}, "red"),
        ("b8a", {}, "nir08"),
        ("B4", {}, "red"),
        ("B04_20m", {}, "red"),
        ("red-jp2", {}, "red"),
        ("nir08_60m", {}, "nir08"),
        ("B8A", {"eo:bands": [{"name": "B8A", "common_name": "rededge"}]}, "nir08"),
        ("x", {"eo:bands": [{"name": "B06", "common_name": "rededge"}]}, "rededge2"),
        ("x", {"eo:bands": [{"common_name": "rededge", "center_wavelength": 0.783}]}, "rededge3"),
        ("x", {"bands": [{"name": "b", "eo:common_name": "rededge071"}]}, "rededge1"),
        ("x", {"bands": [{"eo:common_name": "swir16"}]}, "swir16"),
        ("x", {"title": "Band 8A - Vegetation red edge 4 - 20m"}, "nir08"),
        ("x", {"title": "Red (band 4) - 10m"}, "red"),
        ("visual", {"eo:bands": [{"name": "red"}, {"name": "green"}]}, None),
        ("aot", {"title": "Aerosol optical thickness (AOT)"}, None),
        ("SCL", {"title": "Scene classification map (SCL)"}, None),
        ("B13", {}, None),
    ],
)  # fmt: skip
def test_bands_are_recognised_by_key_name_and_title(key, asset, band):
    assert band_of(key, asset) == band


def test_items_without_a_wanted_asset_are_left_out_and_named(stac, tmp_path):
    items = [
        item
        for item in read_cassette(stac / "earth-search-l1c-l2a-c1.cassette.yaml")
        if item["collection"] == "sentinel-2-l2a"
    ]
    del items[2]["assets"]["scl"], items[2]["assets"]["scl-jp2"]
    catalogue = find(write(tmp_path / "items.json", *items))
    assert catalogue.audit.of("missing-asset") == (
        Finding("missing-asset", items[2]["id"], "has no scl"),
    )
    with pytest.raises(CatalogError, match="has no scl"):
        find(stac / "earth-search-s3-jp2.json")


# Projection.


@pytest.mark.parametrize(
    "change",
    ["epsg", "code", "code of the assets", "wkt2", "projjson"],
)
def test_the_crs_is_found_wherever_it_stands(real_item, tmp_path, change):
    from pyproj import CRS

    del real_item["properties"]["proj:epsg"]
    crs = CRS.from_epsg(32633)
    values = {
        "epsg": {"proj:epsg": 32633},
        "code": {"proj:code": "EPSG:32633"},
        "code of the assets": {"proj:code": "EPSG:32633"},
        "wkt2": {"proj:wkt2": crs.to_wkt()},
        "projjson": {"proj:projjson": crs.to_json_dict()},
    }[change]
    parts = real_item["assets"].values() if "assets" in change else [real_item["properties"]]
    for part in parts:
        part.update(values)
    assert find(write(tmp_path / "items.json", real_item)).rows[0].epsg == 32633


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "neither it nor its assets have a CRS"),
        ("EPSG:4326", "EPSG:4326 is not a projected CRS in metres"),
        ("EPSG:2263", "EPSG:2263 is not a projected CRS in metres"),
        ("EPSG:999999", "EPSG:999999 is not a projected CRS in metres"),
    ],
)
def test_unsupported_crss_are_told(real_item, tmp_path, code, words):
    del real_item["properties"]["proj:epsg"]
    real_item["properties"]["proj:code"] = code
    with pytest.raises(CatalogError, match=words):
        find(write(tmp_path / "items.json", real_item))


def test_the_v0_file_holds_planetary_computer_items_with_six_elements(stac):
    """The nine elements that older items have are tried in the next test."""
    items = json.loads((stac / "earth-search-v0-35MNM.geojson").read_text())["features"]
    transforms = [
        asset["proj:transform"]
        for item in items
        for asset in item["assets"].values()
        if "proj:transform" in asset
    ]
    assert {len(transform) for transform in transforms} == {6}
    assert {row.mgrs_tile for row in find(stac / "earth-search-v0-35MNM.geojson").rows} == {"35MNM"}


def test_nine_elements_of_a_transform_are_six_and_a_fixed_row(real_item, tmp_path):
    (before,) = find(write(tmp_path / "items.json", real_item)).rows
    for asset in real_item["assets"].values():
        asset["proj:transform"] = [*asset["proj:transform"], 0, 0, 1]
    assert find(write(tmp_path / "items.json", real_item)).rows == (before,)
    for asset in real_item["assets"].values():
        asset["proj:transform"][-1] = 2
    with pytest.raises(CatalogError, match="is not affine"):
        find(write(tmp_path / "items.json", real_item))


def test_rotated_and_gdal_ordered_transforms_are_refused(real_item, tmp_path):
    real_item["assets"]["red"]["proj:transform"] = [499980.0, 120.0, 0.0, 5100000.0, 0.0, -120.0]
    with pytest.raises(CatalogError, match="is not north up"):
        find(write(tmp_path / "items.json", real_item))


@pytest.mark.parametrize("missing", [("shape",), ("transform",), ("shape", "transform")])
@pytest.mark.parametrize("level", ["asset", "item"])
def test_a_missing_grid_follows_from_bbox_and_pixel_size(real_item, tmp_path, missing, level):
    (before,) = find(write(tmp_path / "items.json", real_item)).rows
    bbox = list(before.bounds)
    if level == "item":
        real_item["properties"]["proj:bbox"] = bbox
    for asset in real_item["assets"].values():
        asset["gsd"] = 120
        asset.pop("raster:bands", None)
        for name in missing:
            del asset[f"proj:{name}"]
        if level == "asset":
            asset["proj:bbox"] = [*bbox[:2], 0.0, *bbox[2:], 1.0]
    (after,) = find(write(tmp_path / "items.json", real_item)).rows
    assert after.assets == before.assets
    assert after.bounds == before.bounds


def test_an_item_without_any_grid_is_told(real_item, tmp_path):
    del real_item["assets"]["red"]["proj:transform"]
    with pytest.raises(CatalogError, match="asset red has no proj:transform"):
        find(write(tmp_path / "items.json", real_item))


# The antimeridian.


@pytest.fixture(scope="session")
def beside_180(shared_data):
    files = sorted((shared_data / "sentinel-2-l2a-antimeridian").glob("*/*.json"))
    assert len(files) == 5
    return files


@pytest.mark.parametrize(
    "area",
    [
        shapely.box(179.5, 67, 180, 67.2),
        shapely.box(-180, 67, -179.5, 67.2),
        shapely.box(179.9, 67, 180, 67.2) | shapely.box(-180, 67, -179.9, 67.2),
    ],
    ids=["west of it", "east of it", "across"],
)
def test_an_area_beside_the_antimeridian_catches_the_items_there(beside_180, area):
    expected = {
        item["id"]
        for item in map(read_json, beside_180)
        if shapely.geometry.shape(item["geometry"]).intersects(area)
    }
    assert 0 < len(expected) < 5
    assert {row.id for row in find(*beside_180, area=area).rows} == expected


@pytest.mark.parametrize(
    "area", [shapely.box(14, 67, 16, 67.2), shapely.box(-170, 66, 170, 69)], ids=["small", "wide"]
)
def test_an_area_far_from_the_antimeridian_does_not(beside_180, area):
    with pytest.raises(CatalogError, match="5 outside the area"):
        find(*beside_180, area=area)


@pytest.mark.parametrize("geometry", ["unsplit", "none"])
def test_a_geometry_that_wraps_the_globe_is_not_believed(beside_180, tmp_path, geometry):
    item = read_json(beside_180[0])
    ring = [[179, 66.6], [-179.2, 66.6], [-179.2, 67.5], [179, 67.5], [179, 66.6]]
    item["geometry"] = {"type": "Polygon", "coordinates": [ring]} if geometry == "unsplit" else None
    path = write(tmp_path / "items.json", item)
    with pytest.raises(CatalogError, match="1 outside the area"):
        find(path, area=shapely.box(14, 67, 16, 67.2))
    for area in (shapely.box(179.5, 67, 179.6, 67.1), shapely.box(-179.5, 67.1, -179.4, 67.2)):
        assert len(find(path, area=area).rows) == 1


def test_bounds_are_right_although_the_items_lie_about_shapes(beside_180):
    for row in find(*beside_180).rows:
        for asset in row.assets.values():
            assert asset.shape != (915, 915)
            with rasterio.open(asset.href) as file:
                assert tuple(file.bounds) == row.bounds


def test_tile_names_have_five_characters(beside_180):
    assert {row.mgrs_tile for row in find(*beside_180).rows} == {"01WCQ", "01WCR"}


def test_solar_days_at_the_antimeridian(beside_180):
    """The tiles' centres lie at 179.7 E, so solar time is 12 hours ahead of UTC."""
    rows = find(*beside_180).rows
    days = {row.datetime: row.solar_day for row in rows}
    assert {(time + dt.timedelta(hours=11.97)).date() for time in days} == set(days.values())
    assert min(days.values()) == dt.date(2023, 6, 2)
    same_orbit = [row for row in rows if row.id.split("_T01")[0].endswith("A041483")]
    assert len({row.solar_day for row in same_orbit}) == 1


def test_the_solar_day_is_taken_at_the_centre():
    tile = (300000.0, 7390200.0, 409800.0, 7500000.0)
    time = dt.datetime(2023, 6, 2, 0, 7, tzinfo=dt.UTC)
    assert solar_day_of(time, tile, 32601) == dt.date(2023, 6, 2)
    assert solar_day_of(time, (500000.0, *tile[1:2], 609800.0, tile[3]), 32601) == dt.date(
        2023, 6, 1
    )


def test_a_grid_beyond_a_pole_has_a_footprint():
    footprint = footprint_of((250445.0, 4623180.0, 802440.0, 15372960.0), 32630)
    assert footprint.is_valid
    assert footprint.intersects(shapely.Point(-3, 60))


def test_footprints_are_split_at_180_degrees():
    footprint = footprint_of((300000.0, 7390200.0, 409800.0, 7500000.0), 32601)
    assert footprint.geom_type == "MultiPolygon"
    assert footprint.is_valid
    assert footprint.intersects(shapely.Point(179.9, 67))
    assert footprint.intersects(shapely.Point(-179.9, 67))
    assert not footprint.intersects(shapely.Point(0, 67))
    assert footprint_of((499980.0, 4990200.0, 609780.0, 5100000.0), 32633).geom_type == "Polygon"
