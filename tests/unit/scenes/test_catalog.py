"""The traps of real catalogues: offsets, collections, duplicates, dates and areas."""

import datetime as dt
import itertools
import json
import math

import numpy as np
import pytest
import rasterio
import shapely

from bigmap.errors import CatalogError
from bigmap.scenes.radiometry import to_canonical, to_reflectance
from tests.unit.scenes.catalog_cases import find, kinds, read_cassette, read_json, reprocess, write


@pytest.fixture(scope="session")
def stac(shared_data):
    return shared_data / "stac"


@pytest.fixture
def real_item(shared_data):
    """One item of the real cube, to be changed by a test."""
    return read_json(shared_data / "sentinel-2-l2a" / "items.json")["features"][0]


def test_the_real_cube_is_found_whole(shared_data):
    catalogue = find(shared_data / "sentinel-2-l2a" / "items.json", bands=("red", "nir"))
    assert len(catalogue.rows) == 10
    assert catalogue.audit.findings == ()
    days = {row.solar_day.isoformat() for row in catalogue.rows}
    assert days == {f"2023-08-{day}" for day in (10, 13, 15, 18, 20)}
    assert {row.dn_shift for row in catalogue.rows} == {1000}
    assert {row.mgrs_tile for row in catalogue.rows} == {"33TWL", "33TWM"}
    keys = [(row.solar_day, row.datetime, row.id) for row in catalogue.rows]
    assert keys == sorted(keys)


def test_paths_grids_and_bounds_are_those_of_the_files(shared_data):
    for row in find(shared_data / "sentinel-2-l2a" / "items.json").rows:
        for asset in row.assets.values():
            with rasterio.open(asset.href) as file:
                assert file.shape == asset.shape
                assert tuple(file.transform)[:6] == asset.transform
                assert tuple(file.bounds) == row.bounds
                assert file.crs.to_epsg() == row.epsg


def test_the_offset_is_applied_once_to_real_pixels(shared_data):
    row = find(shared_data / "sentinel-2-l2a" / "items.json").rows[0]
    with rasterio.open(row.assets["red"].href) as file:
        dn = file.read(1)
    reflectance = to_reflectance(to_canonical(dn, row.dn_shift))
    valid = dn != 0
    assert np.allclose(reflectance[valid], dn[valid] * 1e-4, atol=2e-6)
    assert np.isnan(reflectance[~valid]).all()


def test_the_order_of_the_files_does_not_matter(shared_data, tmp_path):
    items = json.loads((shared_data / "sentinel-2-l2a" / "items.json").read_text())["features"]
    forth = find(write(tmp_path / "items.json", *items))
    back = find(write(tmp_path / "items.json", *reversed(items)))
    assert forth == back


# Offsets.


def test_publishers_as_they_are(stac, shared_data):
    def shifts(*files, **settings):
        return {row.dn_shift for row in find(*files, **settings).rows}

    assert shifts(stac / "planetary-computer-l2a.json") == {0}
    assert shifts(stac / "earth-search-v0-35MNM.geojson") == {1000}
    assert shifts(stac / "cdse-proj-code.json") == {0}
    assert shifts(stac / "earth-search-proj-code-only.json") == {1000}
    assert shifts(stac / "earth-search-s3-jp2.json", mask_asset=None) == {0}
    assert shifts(shared_data / "slovenia" / "items.json", mask_asset="clm") == {1000}
    antimeridian = sorted((shared_data / "sentinel-2-l2a-antimeridian").glob("*/*.json"))
    assert shifts(*antimeridian) == {0}


@pytest.mark.parametrize(
    ("harmonise", "shift"), [("flag", 0), ("baseline", 1000), ("drop", None), ("refuse", None)]
)
def test_the_contradictory_item_of_33twn(stac, harmonise, shift):
    files = sorted((stac / "33TWN-baselines").glob("*.json"))
    name = "S2B_33TWN_20220226_0_L2A"
    if harmonise == "refuse":
        with pytest.raises(CatalogError, match=f"1 items contradict themselves.*{name}"):
            find(*files, harmonise=harmonise)
        return
    catalogue = find(*files, harmonise=harmonise)
    shifts = {row.id: row.dn_shift for row in catalogue.rows}
    assert shifts.pop(name, None) == shift
    assert set(shifts.values()) == {1000}
    (finding,) = catalogue.audit.of("contradiction")
    assert finding.item == name
    assert "flag false against baseline 04.00 against raster offset -0.1" in finding.detail
    assert any(name in line for line in catalogue.audit.lines())


def test_mixed_baselines_are_told(stac):
    audit = find(*sorted((stac / "33TWN-baselines").glob("*.json"))).audit
    assert dict(audit.baselines)["04.00"] == 2
    assert dict(audit.baselines)["00.01"] == 3
    assert any("mixed processing baselines" in line for line in audit.lines())


def test_jpeg_2000_twins_are_what_esa_wrote(stac, tmp_path):
    (item,) = (
        item
        for item in read_cassette(stac / "earth-search-multiple-collections.cassette.yaml")
        if item["collection"] == "sentinel-2-l2a"
    )
    both = find(write(tmp_path / "both.json", item)).rows[0]
    assert both.assets["red"].href.endswith(".tif")
    assert both.dn_shift == 1000
    item["assets"] = {key: a for key, a in item["assets"].items() if key.endswith("-jp2")}
    (twin,) = find(write(tmp_path / "twins.json", item)).rows
    assert twin.assets["red"].href.startswith("s3://")
    assert twin.dn_shift == 0


def test_cogs_and_twins_are_not_mixed_in_one_item(stac, tmp_path):
    item = read_cassette(stac / "earth-search-multiple-collections.cassette.yaml")[0]
    del item["assets"]["nir"]
    with pytest.raises(CatalogError, match="some bands are COGs without the offset"):
        find(write(tmp_path / "items.json", item), bands=("red", "nir"))


def test_other_scales_are_refused_for_the_item_alone(stac, real_item, tmp_path):
    landsat = read_cassette(stac / "earth-search-multiple-collections.cassette.yaml")[1]
    landsat["collection"] = real_item["collection"]
    landsat["id"] = "other-scale"
    for name in ("platform", "constellation", "instruments"):
        landsat["properties"].pop(name, None)
    catalogue = find(
        write(tmp_path / "items.json", real_item, landsat), mask_asset=None, bands=("red",)
    )
    assert [row.id for row in catalogue.rows] == [real_item["id"]]
    (finding,) = catalogue.audit.of("unusable")
    assert finding.item == landsat["id"]
    assert "scale 2.75e-05 instead of 0.0001" in finding.detail


def test_bands_with_different_offsets_are_refused(real_item, tmp_path):
    real_item["assets"]["nir"]["raster:bands"][0]["offset"] = 0
    with pytest.raises(CatalogError, match=r"its bands have the offsets \[-0.1, 0.0\]"):
        find(write(tmp_path / "items.json", real_item), bands=("red", "nir"))


def test_legacy_items_take_the_baseline_from_the_name_then_the_date(real_item, tmp_path):
    properties = real_item["properties"]
    for name in ("s2:processing_baseline", "earthsearch:boa_offset_applied"):
        del properties[name]
    for asset in real_item["assets"].values():
        asset.pop("raster:bands")
    (row,) = find(write(tmp_path / "items.json", real_item)).rows
    assert (row.baseline, row.dn_shift) == ("05.09", 0)
    for name in ("s2:product_uri", "s2:datatake_id"):
        del properties[name]
    for made, shift in (("2022-01-24T23:00:00Z", 1000), ("2022-01-25T01:00:00Z", 0)):
        properties["s2:generation_time"] = made
        catalogue = find(write(tmp_path / "items.json", real_item))
        assert catalogue.rows[0].dn_shift == shift
        (finding,) = catalogue.audit.of("assumed-offset")
        assert "assumed from the date alone" in finding.detail


def test_the_flag_of_the_first_earth_search_is_known(real_item, tmp_path):
    properties = real_item["properties"]
    properties["sentinel:boa_offset_applied"] = properties.pop("earthsearch:boa_offset_applied")
    assert find(write(tmp_path / "items.json", real_item)).rows[0].dn_shift == 1000


# Collections and duplicates.


def test_one_acquisition_three_times_needs_one_collection(stac, tmp_path):
    items = read_cassette(stac / "earth-search-l1c-l2a-c1.cassette.yaml")
    path = write(tmp_path / "items.json", *items)
    with pytest.raises(CatalogError, match=r"several collections .*set source.collection"):
        find(path, mask_asset=None)
    counts = {"sentinel-2-l2a": 6, "sentinel-2-c1-l2a": 6, "sentinel-2-l1c": 5}
    for collection, count in counts.items():
        catalogue = find(path, mask_asset=None, collection=collection)
        assert len(catalogue.rows) == count
        assert not catalogue.audit.of("duplicate")


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_the_newest_processing_wins_in_any_order(real_item, tmp_path, order):
    products = [
        real_item,
        reprocess(real_item, "baseline", s2__processing_baseline="05.10",
                  s2__generation_time="2023-01-01T00:00:00Z",
                  s2__datatake_id="GS2A_20230815T095031_042547_N05.10"),
        reprocess(real_item, "generated", s2__generation_time="2023-12-01T00:00:00Z"),
        reprocess(real_item, "updated", updated="2024-01-01T00:00:00Z"),
    ]  # fmt: skip
    path = write(tmp_path / "items.json", *(products[i] for i in order))
    catalogue = find(path)
    assert [row.id for row in catalogue.rows] == ["baseline"]
    duplicates = catalogue.audit.of("duplicate")
    assert {finding.item for finding in duplicates} == {real_item["id"], "generated", "updated"}
    assert all("baseline (baseline 05.10) wins" in finding.detail for finding in duplicates)
    path = write(tmp_path / "items.json", *(products[i] for i in order if i != 1))
    assert [row.id for row in find(path).rows] == ["generated"]
    path = write(tmp_path / "items.json", *(products[i] for i in order if i not in (1, 2)))
    assert [row.id for row in find(path).rows] == ["updated"]


def test_the_same_item_in_two_files_counts_once(real_item, tmp_path):
    paths = [write(tmp_path / name, real_item) for name in ("a.json", "b.json")]
    catalogue = find(*paths)
    assert len(catalogue.rows) == 1
    assert kinds(catalogue) == [("duplicate", real_item["id"])]


def test_without_datatake_time_and_platform_tell(real_item, tmp_path):
    del real_item["properties"]["s2:datatake_id"]
    seconds = reprocess(real_item, "seconds", datetime="2023-08-15T09:58:13Z")
    orbit = reprocess(real_item, "orbit", datetime="2023-08-15T11:38:11Z")
    other = reprocess(real_item, "other", platform="sentinel-2c")
    catalogue = find(write(tmp_path / "items.json", real_item, seconds, orbit, other))
    assert {row.id for row in catalogue.rows} == {"seconds", "orbit", "other"}


def test_the_parts_of_a_tile_cut_between_datastrips_both_stay(real_item, tmp_path):
    west, south, east, north = real_item["bbox"]
    middle = (south + north) / 2
    parts = []
    for name, (low, high) in {"low": (south, middle + 0.05), "high": (middle, north)}.items():
        part = reprocess(real_item, name)
        part["geometry"] = shapely.geometry.mapping(shapely.box(west, low, east, high))
        parts.append(part)
    catalogue = find(write(tmp_path / "items.json", *parts))
    assert len(catalogue.rows) == 2
    assert not catalogue.audit.findings


# Dates, cloud and area.


def test_dates_are_inclusive_in_utc(real_item, tmp_path):
    items = []
    for number, time in enumerate(
        ["2023-08-14T23:59:59.999Z", "2023-08-15T00:00:00Z", "2023-08-15T23:59:59.999Z",
         "2023-08-16T00:00:00Z", "2023-08-16T01:30:00+02:00", "2023-08-15T12:00:00"]
    ):  # fmt: skip
        items.append(reprocess(real_item, str(number), datetime=time, platform=f"p{number}"))
        del items[-1]["properties"]["s2:datatake_id"]
    path = write(tmp_path / "items.json", *items)
    rows = find(path, start="2023-08-15", end="2023-08-15").rows
    assert {row.id for row in rows} == {"1", "2", "4", "5"}
    assert all(row.datetime.tzinfo == dt.UTC for row in rows)


def test_a_range_of_times_counts_from_its_start(real_item, tmp_path):
    real_item["properties"].update(
        datetime=None, start_datetime="2023-08-15T09:58:11Z", end_datetime="2023-08-15T09:58:20Z"
    )
    (row,) = find(write(tmp_path / "items.json", real_item)).rows
    assert row.datetime == dt.datetime(2023, 8, 15, 9, 58, 11, tzinfo=dt.UTC)


def test_the_cloud_limit_is_inclusive_and_unknown_cloud_is_kept(real_item, tmp_path):
    items = [
        reprocess(real_item, name, eo__cloud_cover=value, platform=name, s2__datatake_id=None)
        for name, value in {"below": 9.9, "at": 10, "above": 10.1, "unknown": None}.items()
    ]
    catalogue = find(write(tmp_path / "items.json", *items), max_cloud_percent=10)
    assert {row.id for row in catalogue.rows} == {"below", "at", "unknown"}
    assert kinds(catalogue) == [("too-cloudy", "above"), ("unknown-cloud", "unknown")]


def test_months_without_items_are_told(shared_data):
    path = shared_data / "sentinel-2-l2a" / "items.json"
    audit = find(path, start="2023-07-15", end="2023-10-02").audit
    assert audit.empty_months == ("2023-07", "2023-09", "2023-10")
    assert "no item in 2023-07, 2023-09, 2023-10" in audit.lines()


def test_only_items_that_meet_the_area_are_kept(shared_data):
    path = shared_data / "sentinel-2-l2a" / "items.json"
    catalogue = find(path, area=shapely.box(15.5, 46.5, 15.6, 46.6))
    assert {row.mgrs_tile for row in catalogue.rows} == {"33TWM"}
    assert dict(catalogue.audit.elsewhere) == {"the area": 5}
    with pytest.raises(CatalogError, match="of 10 found, 10 outside the area"):
        find(path, area=shapely.box(1, 41, 2, 42))


def test_lines_are_plain_and_short(stac):
    audit = find(*sorted((stac / "33TWN-baselines").glob("*.json")), max_cloud_percent=50).audit
    lines = audit.lines()
    assert lines[0] == "items found: 15, kept: 6"
    assert "items above the cloud limit: 9" in lines
    assert "  and 4 more" in lines
    assert all("\n" not in line for line in lines)
    assert json.loads(json.dumps(audit.to_dict()))["found"] == 15
    assert math.isclose(sum(count for _, count in audit.baselines), 6)
