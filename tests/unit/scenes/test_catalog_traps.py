"""What lies in catalogues: other sensors, cut extents, halves of tiles, malformed values."""

import copy
import json
import math
import struct

import fsspec
import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
from botocore.exceptions import NoCredentialsError

from bigmap.config.sources import StaticCatalogSource
from bigmap.errors import CatalogError
from bigmap.scenes.catalog import find_items, load_items, save_items
from bigmap.scenes.catalog.audit import HEADINGS, Finding
from bigmap.scenes.catalog.fields import stated_footprint_of
from bigmap.scenes.catalog.geometries import MOST_NESTED, read_geometry
from bigmap.scenes.catalog.projection import footprint_of
from bigmap.scenes.catalog.stac_api import (
    RETRY_AFTER_LIMIT_S,
    _BoundedRetry,
    _discover_extensions,
    _items_of,
)
from tests.unit.scenes.catalog_cases import EVER, WORLD, find, kinds, reprocess, write

BOUNDS = (300_000.0, 4_590_240.0, 409_800.0, 4_700_040.0)
GRID = {"proj:shape": [10_980, 10_980], "proj:transform": [10, 0, BOUNDS[0], 0, -10, BOUNDS[3]]}
COMMON = {"B04": "red", "B05": "rededge", "B8A": "rededge"}


def make_item(name="S2A_31TCG_20240401_0_L2A", **properties):
    """Return a whole tile with three bands and a mask, named by number."""
    item = {
        "type": "Feature",
        "id": name,
        "geometry": shapely.geometry.mapping(footprint_of(BOUNDS, 32631)),
        "properties": {
            "datetime": "2024-04-01T10:50:00Z",
            "proj:epsg": 32631,
            "eo:cloud_cover": 5,
            "grid:code": "MGRS-31TCG",
            "s2:processing_baseline": "05.10",
            **{key.replace("__", ":"): value for key, value in properties.items()},
        },
        "links": [],
        "assets": {
            "scl": {"href": f"/d/{name}/scl.tif", **GRID},
            **{
                key: {
                    "href": f"/d/{name}/{key}.tif",
                    "eo:bands": [{"name": key, "common_name": common}],
                    **GRID,
                }
                for key, common in COMMON.items()
            },
        },
    }
    return copy.deepcopy(item)


def adds_up(catalogue):
    audit = catalogue.audit
    left_out = sum(len(audit.of(kind)) for kind in
                   ("duplicate", "too-cloudy", "missing-asset", "mission", "unusable"))  # fmt: skip
    return audit.left_out == left_out


# Other sensors.


@pytest.mark.parametrize(
    ("name", "properties", "words"),
    [
        ("a", {"platform": "landsat-8", "instruments": ["oli"]}, "platform is landsat-8"),
        ("a", {"instruments": ["oli", "tirs"]}, "instruments"),
        ("a", {"constellation": "planetscope"}, "constellation planetscope"),
        ("HLS.L30.T31TCG.2024092.v2.0", {}, "its id is HLS.L30"),
        ("LC08_L2SP_198031_20240401", {}, "its id is LC08"),
    ],
)
def test_items_of_other_missions_are_left_out(tmp_path, name, properties, words):
    catalogue = find(write(tmp_path / "i.json", make_item(), make_item(name, **properties)))
    assert len(catalogue.rows) == 1
    assert kinds(catalogue) == [("mission", name)]
    assert words in catalogue.audit.findings[0].detail
    assert adds_up(catalogue)


@pytest.mark.parametrize("platform", ["sentinel-2a", "Sentinel-2B", "SENTINEL2A", "S2C"])
def test_names_of_sentinel_2_are_known(tmp_path, platform):
    assert len(find(write(tmp_path / "i.json", make_item(platform=platform))).rows) == 1


@pytest.mark.parametrize(
    ("key", "declared", "words"),
    [
        ("B05", {"common_name": "nir"}, "B05 is rededge1 by its name, but described as nir"),
        ("B06", {"eo:common_name": "swir16"}, "described as swir16"),
        ("B09", {"common_name": "cirrus"}, "described as cirrus"),
        ("B10", {"common_name": "lwir11"}, "described as lwir11"),
        ("B05", {"name": "B05", "center_wavelength": 0.865}, "described as 0.865"),
        ("red", {"common_name": "blue"}, "described as blue"),
    ],
)
def test_an_asset_described_as_another_band_leaves_its_item_out(tmp_path, key, declared, words):
    item = make_item("other")
    item["assets"][key] = {"href": "/d/x.tif", "eo:bands": [declared], **GRID}
    catalogue = find(write(tmp_path / "i.json", make_item(), item))
    assert kinds(catalogue) == [("unusable", "other")]
    assert words in catalogue.audit.findings[0].detail


@pytest.mark.parametrize("name", ["HLS.S30.T31TCG.2024092.v2.0", "HLSS30_2024"])
def test_harmonised_products_have_no_offset(tmp_path, name):
    item = make_item(name, platform="sentinel-2a", processing__version="5.0")
    del item["properties"]["s2:processing_baseline"]
    catalogue = find(write(tmp_path / "i.json", item))
    assert catalogue.rows[0].dn_shift == 1000
    assert not catalogue.audit.findings


@pytest.mark.parametrize("kind", ["application/octet-stream", "binary/octet-stream", None])
def test_the_suffix_tells_where_the_type_does_not(tmp_path, kind):
    item = make_item()
    for asset in item["assets"].values():
        asset["type"] = kind
    item["assets"]["B04"]["href"] = "https://a.example/B04.TIF?v=1"
    assert find(write(tmp_path / "i.json", item)).rows[0].assets["red"].href.endswith("TIF?v=1")


# Scenes cut or lost.


@pytest.mark.parametrize("turn", [-360, 0])
def test_longitudes_beyond_180_are_turned(turn):
    shape = shapely.Polygon([(179.9, 60), (180.1, 60), (180.1, 60.1), (179.9, 60.1)])
    moved = shapely.affinity.translate(shape, xoff=turn)
    footprint = stated_footprint_of({"geometry": shapely.geometry.mapping(moved)})
    assert footprint.intersects(shapely.Point(179.95, 60.05))
    assert footprint.intersects(shapely.Point(-179.95, 60.05))
    assert footprint.area == pytest.approx(0.02)
    assert footprint.bounds == (-180, 60, 180, 60.1)


def test_shape_and_transform_of_different_grids_do_not_shorten_a_scene(tmp_path):
    item = make_item()
    item["properties"]["proj:shape"] = [1830, 1830]
    item["properties"]["proj:transform"] = [60, 0, BOUNDS[0], 0, -60, BOUNDS[3]]
    for asset in item["assets"].values():
        del asset["proj:shape"]
    catalogue = find(write(tmp_path / "i.json", item))
    assert catalogue.rows[0].bounds == BOUNDS
    assert catalogue.rows[0].assets["red"].shape == (10_980, 10_980)
    (finding,) = catalogue.audit.of("bounds")
    assert "different grids" in finding.detail


@pytest.mark.parametrize("claim", ["geometry", "proj:bbox"])
def test_a_grid_that_ends_before_its_item_is_told_and_the_larger_counts(tmp_path, claim):
    item = make_item()
    if claim == "proj:bbox":
        item["properties"]["proj:bbox"] = list(BOUNDS)
        item["geometry"] = None
    for asset in item["assets"].values():
        asset["proj:shape"] = [1830, 1830]
    catalogue = find(write(tmp_path / "i.json", item))
    assert catalogue.rows[0].bounds == pytest.approx(BOUNDS, abs=1)
    (finding,) = catalogue.audit.of("bounds")
    assert "ends 91,500 m before" in finding.detail
    assert any(HEADINGS["bounds"] in line for line in catalogue.audit.lines())


def test_halves_of_a_tile_with_whole_footprints_both_stay(tmp_path):
    strip = "S2A_OPER_MSI_L2A_DS_2APS_20240401T1{0}0000_S20240401T10{0}000_N05.10"
    halves = [make_item(f"half-{n}", s2__datastrip_id=strip.format(n)) for n in (4, 5)]
    again = reprocess(halves[0], "again", s2__generation_time="2024-05-01T00:00:00Z",
                      s2__datastrip_id=strip.format(4).replace("T140000", "T200000"))  # fmt: skip
    catalogue = find(write(tmp_path / "i.json", *halves, again))
    assert sorted(row.id for row in catalogue.rows) == ["again", "half-5"]
    assert kinds(catalogue) == [("duplicate", "half-4")]
    assert adds_up(catalogue)


@pytest.mark.parametrize(
    ("one", "two", "baseline", "count"),
    [
        ("S2A_31TCG_20240401_0_L2A", "S2A_31TCG_20240401_1_L2A", "05.10", 2),
        ("S2A_31TCG_20240401_0_L2A", "S2A_31TCG_20240401_1_L2A", "05.11", 1),
        ("S2A_MSIL2A_20240401T105031_R051_T31TCG_20240401T120000",
         "S2A_MSIL2A_20240401T105031_R051_T31TCG_20240401T130000", "05.10", 2),
        ("a", "b", "05.10", 1),
    ],
)  # fmt: skip
def test_names_tell_products_of_one_baseline_apart(tmp_path, one, two, baseline, count):
    items = make_item(one), make_item(two, s2__processing_baseline=baseline)
    assert len(find(write(tmp_path / "i.json", *items)).rows) == count


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"processing:level": "L1C"}, {"processing:level": "L2A"}),
        ({"s2:product_type": "S2MSI1C"}, {"s2:product_type": "S2MSI2A"}),
        ({"s2:product_uri": "S2A_MSIL1C_20240401T105031_N0510_R051_T31TCG_20240401T1.SAFE"}, {}),
    ],
)
def test_levels_are_not_mixed(tmp_path, one, two):
    items = [make_item("a"), make_item("b_L2A" if not two else "b")]
    for item, properties in zip(items, (one, two), strict=True):
        item["properties"] |= properties
    with pytest.raises(CatalogError, match=r"several processing levels \(1 of L1C, 1 of L2A\)"):
        find(write(tmp_path / "i.json", *items))


# Malformed items.

LONE = "\ud800"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("id",), f"x{LONE}"),
        (("id",), "x\x1b[2J"),
        (("id",), {"a": 1}),
        (("collection",), 5),
        (("properties",), None),
        (("geometry",), {"type": "Polygon", "coordinates": [[[0, 0], [1, LONE]]]}),
        (("geometry",), {"type": "Polygon", "coordinates": [[[0, 10**400]] * 4]}),
        (("properties", "datetime"), "9999-12-31T23:59:59-12:00"),
        (("properties", "proj:epsg"), 10**30),
        (("properties", "eo:cloud_cover"), [5]),
        (("properties", "eo:cloud_cover"), 10**400),
        (("assets",), ["B04"]),
        (("assets", "B04"), None),
        (("assets", "B04", "href"), f"/d/{LONE}.tif"),
        (("assets", "B04", "proj:shape"), [math.inf, 1]),
        (("assets", "B04", "proj:shape"), [0, 10_980]),
        (("assets", "B04", "proj:shape"), [10**30, 10]),
        (("assets", "B04", "proj:transform"), [math.nan, 0, 0, 0, -10, 0]),
        (("assets", "B04", "proj:transform"), [10, 0, 1e300, 0, -10, 0]),
        (("assets", "B04", "proj:transform"), [10, 0, 9e7, 0, -10, 9e7]),
        (("assets", "B04", "eo:bands"), 7),
        (("links",), 3),
    ],
)
def test_a_malformed_item_is_left_out_alone(tmp_path, place, value):
    broken = make_item("broken")
    part = broken
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    catalogue = find(write(tmp_path / "i.json", make_item(), broken))
    assert [row.id for row in catalogue.rows] == [make_item()["id"]]
    (finding,) = catalogue.audit.of("unusable")
    assert f"{finding.item}: {finding.detail}".isprintable()
    assert adds_up(catalogue)


@pytest.mark.parametrize("entry", [None, 1, "text", [], {"type": "Feature"}])
def test_entries_that_are_no_items_are_counted(tmp_path, entry):
    catalogue = find(write(tmp_path / "i.json", make_item(), entry))
    assert kinds(catalogue) == [("unusable", "item 2")]


def test_unknown_values_do_not_lose_an_item(tmp_path):
    item = make_item(eo__cloud_cover=math.nan)
    item["links"] = [None, {"rel": "self"}]
    item["geometry"] = None
    catalogue = find(write(tmp_path / "i.json", item), max_cloud_percent=50)
    assert kinds(catalogue) == [("unknown-cloud", item["id"])]
    assert catalogue.rows[0].cloud_percent is None


def test_findings_can_be_printed_whatever_a_catalogue_says():
    finding = Finding("unusable", f"a{LONE}\x1b", "x" * 100_000)
    assert finding.item == "a\\ud800\\x1b"
    assert len(finding.detail) < 400


# Nested geometries.


def nest_geojson(levels):
    geometry = {"type": "Point", "coordinates": [0, 0]}
    for _ in range(levels):
        geometry = {"type": "GeometryCollection", "geometries": [geometry]}
    return geometry


def nest_wkb(levels, code=7):
    return struct.pack("<BII", 1, code, 1) * levels + shapely.to_wkb(shapely.Point(0, 0))


def test_nesting_is_bounded_before_geos():
    for nested in (nest_geojson(400), nest_wkb(20_000), nest_wkb(20_000, 6), nest_wkb(99, 1007)):
        with pytest.raises(ValueError, match=f"nested deeper than {MOST_NESTED} levels"):
            read_geometry(nested)
    assert read_geometry(nest_geojson(3)).bounds == read_geometry(nest_wkb(3)).bounds


@pytest.mark.parametrize("flavor", ["iso", "extended"])
@pytest.mark.parametrize("order", [0, 1])
def test_whole_wkb_is_read_and_cut_wkb_is_refused(flavor, order):
    shape = shapely.GeometryCollection([
        shapely.MultiPolygon([shapely.box(0, 0, 9, 9) - shapely.box(1, 1, 2, 2)]),
        shapely.LineString([(0, 0, 1), (1, 1, 2)]),
        shapely.MultiPoint([(0, 0), (2, 2)]),
    ])  # fmt: skip
    if flavor == "extended":
        shape = shapely.set_srid(shape, 4326)
    wkb = shapely.to_wkb(shape, flavor=flavor, byte_order=order, include_srid=flavor == "extended")
    assert read_geometry(wkb).equals(shape)
    with pytest.raises(ValueError, match="cut"):
        read_geometry(wkb[:40])


# Parquet.


def write_parquet(path, items, **columns):
    rows = [
        {"id": item["id"], "geometry": shapely.to_wkb(shapely.geometry.shape(item["geometry"])),
         "assets": item["assets"], **item["properties"]}
        for item in items
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values))
    pq.write_table(table, path)
    return path


def test_parquet_with_hostile_geometries_and_times_as_text(tmp_path):
    items = [make_item(name) for name in ("good", "nested", "none", "cut")]
    for number, item in enumerate(items):
        item["properties"]["datetime"] = f"2024-04-0{number + 1}T10:50:00Z"
    whole = shapely.to_wkb(shapely.geometry.shape(items[0]["geometry"]))
    path = write_parquet(
        tmp_path / "i.parquet", items, geometry=[whole, nest_wkb(20_000), None, whole[:50]]
    )
    catalogue = find(path)
    assert [row.id for row in catalogue.rows] == ["good", "none"]
    assert kinds(catalogue) == [("unusable", "cut"), ("unusable", "nested")]


def test_other_parquet_is_refused_by_name(tmp_path):
    path = tmp_path / "i.parquet"
    shapes = geopandas.GeoDataFrame({"datetime": ["2024"]}, geometry=[shapely.box(0, 0, 1, 1)])
    shapes.to_parquet(path)
    with pytest.raises(CatalogError, match=r"i.parquet cannot be read .* no assets, id"):
        find(path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bigmap:layout", '[true, [["red", "x.tif", 1]]]'),
        ("bigmap:layout", "["),
        ("proj:code", "EPSG:4326"),
        ("bigmap:dn_shift", 7),
        ("proj:bbox", [math.nan] * 4),
        ("id", None),
    ],
)
def test_a_changed_saved_catalogue_is_refused(tmp_path, column, value):
    path = str(tmp_path / "saved.parquet")
    save_items(find(write(tmp_path / "i.json", make_item())), path)
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    values = pa.array([value], table.schema.types[place])
    pq.write_table(table.set_column(place, table.schema.field(place), values), path)
    with pytest.raises(CatalogError, match=r"saved.parquet is not a catalogue that bigmap saved"):
        load_items(path)


def test_numbers_add_up_after_saving_too(tmp_path):
    items = make_item(), make_item("twin"), make_item("cloudy", eo__cloud_cover=90)
    path = str(tmp_path / "saved.parquet")
    first = find(write(tmp_path / "i.json", *items), max_cloud_percent=50)
    save_items(first, path)
    again = find(path)
    assert (again.audit.found, again.audit.kept, again.audit.left_out) == (3, 1, 2)
    assert adds_up(first)
    assert adds_up(again)


# Sources.


@pytest.mark.parametrize(
    "link", [{"href": "./a.json"}, {"rel": "item"}, None, 5, {"rel": "item", "href": None}]
)
def test_a_link_that_leads_nowhere_is_named_with_its_file(tmp_path, link):
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"type": "Catalog", "links": [link]}))
    source = StaticCatalogSource(kind="static-catalog", files=(str(path),), **EVER)
    with pytest.raises(CatalogError, match=r"catalog.json has a malformed link"):
        find_items(source, bands=("red",), mask_asset="scl", geometry_lonlat=WORLD)


def test_s3_without_keys_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise NoCredentialsError

    monkeypatch.setattr(fsspec, "open", refuse)
    with pytest.raises(CatalogError, match=r"s3://b/i.json cannot be read .*credentials"):
        find("s3://b/i.json")


def page(*items, **fields):
    return {"features": list(items), "links": [], **fields}


@pytest.mark.parametrize("fields", [{"numberMatched": 500}, {"context": {"matched": 500}}])
def test_fewer_items_than_the_catalogue_says_are_refused(fields):
    with pytest.raises(CatalogError, match="says that it has 500 items but gave 1"):
        list(_items_of(iter([page({"id": "a"}, **fields)]), "https://a.example"))


@pytest.mark.parametrize("matched", [None, "many", 2, {}])
def test_other_counts_are_no_reason_to_refuse(matched):
    pages = [page({"id": "a"}, numberMatched=3), page(), page({"id": "b"}, numberMatched=matched)]
    pages[0]["numberMatched"] = 2
    assert len(list(_items_of(iter(pages), "https://a.example"))) == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("86400", RETRY_AFTER_LIMIT_S), ("soon", 0), ("9" * 5000, 0),
     ("Fri, 31 Dec 2100 23:59:59 GMT", RETRY_AFTER_LIMIT_S), ("", 0)],
)  # fmt: skip
def test_a_server_may_ask_for_a_minute_at_most(header, seconds, caplog):
    assert _BoundedRetry().parse_retry_after(header) == seconds
    assert bool(caplog.records) == (seconds != 7)


def test_a_broken_extension_of_pystac_is_left_out(monkeypatch, caplog):
    def fail(_):
        raise RuntimeError("no such library")

    monkeypatch.setattr(pystac.EXTENSION_HOOKS, "get_extended_object_links", fail)
    _discover_extensions()
    assert "left out (RuntimeError: no such library)" in caplog.text


# Any value anywhere.

HOSTILE = (None, True, -1, 0, 1e308, 10**400, math.nan, math.inf, "", "x", LONE, "9999-12-31",
           [], {}, [[]], [None], {"a": None}, "EPSG:4326", nest_geojson(30))  # fmt: skip


def test_any_value_anywhere_leaves_one_item_out_at_most(tmp_path):
    random = np.random.default_rng(11)
    items = [make_item()]
    for number in range(300):
        item = make_item(f"mutant-{number}", datetime=f"2023-{1 + number % 12:02}-01T10:50:00Z")
        for _ in range(random.integers(1, 3)):
            part = item
            while True:
                keys = list(part) if isinstance(part, dict) else range(len(part))
                key = keys[random.integers(len(keys))]
                if not isinstance(part[key], dict | list) or not part[key] or random.random() < 0.2:
                    break
                part = part[key]
            if key != "type" and isinstance(part, dict | list):
                part[key] = copy.deepcopy(HOSTILE[random.integers(len(HOSTILE))])
        items.append(item)
    catalogue = find(write(tmp_path / "i.json", *items))
    audit = catalogue.audit
    assert make_item()["id"] in {row.id for row in catalogue.rows}
    assert audit.found == 301
    assert audit.kept == len(catalogue.rows) > 10
    assert adds_up(catalogue)
    path = str(tmp_path / "saved.parquet")
    save_items(catalogue, path)
    assert load_items(path).rows == catalogue.rows
    "\n".join(audit.lines()).encode()
    json.dumps(audit.to_dict(), ensure_ascii=False).encode()


def test_a_saved_catalogue_of_odd_texts_or_counts_is_refused(tmp_path):
    saved = tmp_path / "saved.parquet"
    save_items(find(write(tmp_path / "items.json", make_item())), str(saved))
    table = pq.read_table(saved)
    place = table.column_names.index("bigmap:stem")
    raw = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xb0T")]
    )
    pq.write_table(table.set_column(place, "bigmap:stem", raw), saved)
    with pytest.raises(CatalogError, match="is not a catalogue that bigmap saved"):
        load_items(str(saved))
    facts = json.loads(table.schema.metadata[b"bigmap:audit"])
    for name, value in (("found", [1]), ("elsewhere", [["dates", None]]), ("kept", "many")):
        audit = json.dumps(facts | {name: value}).encode()
        metadata = table.schema.metadata | {b"bigmap:audit": audit}
        pq.write_table(table.replace_schema_metadata(metadata), saved)
        with pytest.raises(CatalogError, match="is not a catalogue that bigmap saved"):
            load_items(str(saved))
