"""Where files lie, files of items, and static catalogues."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigmap.config.sources import Access, StaticCatalogSource
from bigmap.errors import CatalogError
from bigmap.redaction import clean_href
from bigmap.scenes.catalog import find_items
from bigmap.scenes.catalog.hrefs import resolve_href
from tests.unit.scenes.catalog_cases import EVER, WORLD, find, kinds, read_json, reprocess, write


@pytest.fixture(scope="session")
def stac(shared_data):
    return shared_data / "stac"


@pytest.fixture
def real_item(shared_data):
    """One item of the real cube, to be changed by a test."""
    return read_json(shared_data / "sentinel-2-l2a" / "items.json")["features"][0]


@pytest.mark.parametrize(
    ("href", "location", "self_href", "expected"),
    [
        ("https://a.example/x.tif", "/d/items.json", None, "https://a.example/x.tif"),
        ("s3://bucket/x.tif", "/d/items.json", None, "s3://bucket/x.tif"),
        ("file:///d/x%20y.tif", "/e/items.json", None, "/d/x y.tif"),
        ("/d/x.tif", "/e/items.json", None, "/d/x.tif"),
        ("./s/x.tif", "/d/items.json", None, "/d/s/x.tif"),
        ("../x.tif", "/d/e/items.json", None, "/d/x.tif"),
        ("x.tif", "https://a.example/c/item.json", None, "https://a.example/c/x.tif"),
        ("../x.tif", "s3://bucket/c/d/item.json", None, "s3://bucket/c/x.tif"),
        ("x.tif", None, "https://a.example/c/item.json", "https://a.example/c/x.tif"),
        ("x.tif", "/gone/item.json", "https://a.example/c/i.json", "https://a.example/c/x.tif"),
        ("x.tif", "/gone/item.json", "./item.json", "/gone/x.tif"),
        ("/vsizip/d.zip/x.tif", "/e/items.json", None, "/vsizip/d.zip/x.tif"),
        ("file://localhost/d/x.tif", "/e/items.json", None, "/d/x.tif"),
        ("file:/d/x.tif", "/e/items.json", None, "/d/x.tif"),
        ("x.tif", "file:///d%20e/items.json", None, "/d e/x.tif"),
        ("/d/x.tif", "https://a.example/c/i.json", None, "https://a.example/d/x.tif"),
        ("/vsicurl/https://a.example/x y.tif", "/e/i.json", None, "https://a.example/x%20y.tif"),
        (
            "/vsicurl?header.X-Api-Key=k&url=https%3A%2F%2Fa.example%2Fx%2520y.tif", None, None,
            "https://a.example/x%20y.tif",
        ),
        ("/vsis3/b/x y/a+b#1.tif", None, None, "s3://b/x y/a+b#1.tif"),
        ("/vsigs/b/x.tif", None, None, "gs://b/x.tif"),
        ("/vsiaz/b/x.tif", None, None, "az://b/x.tif"),
        ("s3://b/x%20y/a+b.tif", None, None, "s3://b/x y/a+b.tif"),
        ("x%20y+z.tif", "s3://b/a b#c/i.json", None, "s3://b/a b#c/x y+z.tif"),
        # Completed once: what is encoded stays so, and a sign that encodes nothing is encoded.
        (
            "https://a.example/é è/100%/a%20b.tif?q=ü&r=1%2F2", None, None,
            "https://a.example/%C3%A9%20%C3%A8/100%25/a%20b.tif?q=%C3%BC&r=1%2F2",
        ),
        ("my x.tif", "http://a.example/a b/i.json", None, "http://a.example/a%20b/my%20x.tif"),
        ("https://a.example/a#1/x.tif", None, None, "https://a.example/a%231/x.tif"),
        ("https://a.example/x.tif#part", None, None, "https://a.example/x.tif"),
        ("https://a.example/x.tif?version=2", None, None, "https://a.example/x.tif?version=2"),
    ],
)  # fmt: skip
def test_hrefs_are_resolved(href, location, self_href, expected):
    assert resolve_href(href, location, self_href=self_href) == expected


def test_a_file_beside_its_item_counts_before_the_self_link(tmp_path):
    (tmp_path / "x.tif").touch()
    location = str(tmp_path / "item.json")
    resolved = resolve_href("x.tif", location, self_href="https://a.example/c/item.json")
    assert resolved == str(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("my%20sc%C3%A8ne/x.tif", "my scène/x.tif"),
        ("my%20scene/x.tif", "my%20scene/x.tif"),
        ("100%/x.tif", "100%/x.tif"),
        ("a#1?.tif", "a#1?.tif"),
        ("x.tif?sig=1#a", "x.tif"),
    ],
)
def test_hrefs_of_files_that_are_there_are_found(tmp_path, href, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    location = str(tmp_path / "items.json")
    assert resolve_href(href, location, self_href=None) == str(file)
    assert resolve_href(f"file://{tmp_path}/{href}", location, self_href=None) == str(file)


@pytest.mark.parametrize(
    ("href", "clean"),
    [
        ("https://a.blob.core.windows.net/c/x.tif?st=1&se=2&sp=rl&sig=s", "https://a.blob.core.windows.net/c/x.tif"),
        ("https://a.example/x.tif?X-Amz-Signature=s&X-Amz-Date=d", "https://a.example/x.tif"),
        ("https://a.example/x.tif?versionId=7&token=t", "https://a.example/x.tif?versionId=7"),
        ("https://user:password@a.example/x.tif", "https://a.example/x.tif"),
        ("https://a.example/x.tif?a=1&b=%20", "https://a.example/x.tif?a=1&b=%20"),
        ("/d/x.tif", "/d/x.tif"),
        ("s3://bucket/x.tif", "s3://bucket/x.tif"),
    ],
)  # fmt: skip
def test_secrets_are_removed_from_hrefs(href, clean):
    assert clean_href(href) == clean


@pytest.mark.parametrize(
    ("name", "place", "wish", "given"),
    [
        ("earth-search-s3-jp2.json", "s3://sentinel-s2-l1c", "requester_pays",
         {"requester_pays": True}),
        ("cdse-proj-code.json", "s3://eodata", "s3_endpoint", {"s3_endpoint": "a.example"}),
        ("planetary-computer-l2a.json", "https://sentinel2l2a01.blob.core.windows.net",
         "access.sign", {"sign": "planetary-computer"}),
    ],
)  # fmt: skip
def test_places_that_need_settings_are_named_once(stac, name, place, wish, given):
    (finding,) = find(stac / name, mask_asset=None).audit.of("access")
    assert finding.item == place
    assert wish in finding.detail
    settled = find(stac / name, mask_asset=None, access=Access(**given)).audit
    assert all(wish not in finding.detail for finding in settled.of("access"))


def test_a_scheme_that_nothing_reads_is_told(real_item, tmp_path):
    real_item["assets"]["red"]["href"] = "ftp://a.example/B04.tif"
    with pytest.raises(CatalogError, match="a scheme that cannot be read"):
        find(write(tmp_path / "items.json", real_item))


# Files and static catalogues.


def test_items_lists_and_collections_are_read(real_item, tmp_path):
    for content in (real_item, [real_item], {"type": "FeatureCollection", "features": [real_item]}):
        path = tmp_path / "items.json"
        path.write_text(json.dumps(content))
        (row,) = find(path).rows
        assert row.assets["red"].href == os.path.normpath(
            tmp_path / real_item["assets"]["red"]["href"]
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("\x00\x01\x02", "is not JSON"),
        ('{"type": "Catalog", "links": []}', "set source.kind to static-catalog"),
        ('{"a": 1}', "neither a STAC item nor a list"),
        ('"text"', "neither a STAC item nor a list"),
        ('{"type": "FeatureCollection"}', "neither a STAC item nor a list"),
        ('{"type": "FeatureCollection", "features": null}', "neither a STAC item nor a list"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", r"1 unusable \(item 1: is not a STAC item\)"),
        ('[{"a": 1}]', r"1 unusable \(item 1: is not a STAC item\)"),
        ('{"type": "Feature", "id": "x"}', r"1 unusable \(x: has no properties\)"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, words):
    path = tmp_path / "items.json"
    path.write_text(content)
    with pytest.raises(CatalogError, match=words) as caught:
        find(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["gone.json", "gone.parquet"])
def test_missing_files_are_named(tmp_path, name):
    with pytest.raises(CatalogError, match=rf"{name} does not exist"):
        find(tmp_path / name)


def test_binary_noise_is_no_parquet(tmp_path):
    path = tmp_path / "items.parquet"
    path.write_bytes(os.urandom(500))
    with pytest.raises(CatalogError, match=r"items.parquet cannot be read as stac-geoparquet"):
        find(path)


def test_parquet_whose_assets_are_text_is_refused(tmp_path):
    path = tmp_path / "items.parquet"
    rows = {"id": ["a"], "geometry": [b""], "assets": ["{}"]}
    pq.write_table(pa.table(rows), path)
    with pytest.raises(CatalogError, match=r"stac-geoparquet \(its assets are string, not a str"):
        find(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("proj:epsg", "x"), ("eo:cloud_cover", "much"), ("datetime", "yesterday"), ("datetime", None)],
)
def test_malformed_items_are_left_out_and_named(real_item, tmp_path, field, value):
    broken = reprocess(real_item, "broken")
    broken["properties"][field] = value
    catalogue = find(write(tmp_path / "items.json", real_item, broken))
    assert [row.id for row in catalogue.rows] == [real_item["id"]]
    assert kinds(catalogue) == [("unusable", "broken")]


@pytest.fixture
def static_catalog(shared_data, tmp_path):
    """A catalogue of two collections and the ten real items, with files beside two of them."""
    items = json.loads((shared_data / "sentinel-2-l2a" / "items.json").read_text())["features"]
    root = tmp_path / "catalog.json"
    links = [{"rel": "self", "href": "https://a.example/catalog.json"}]
    for tile in ("33TWL", "33TWM"):
        links.append({"rel": "child", "href": f"./{tile}/collection.json"})
        item_links = [{"rel": "root", "href": "../catalog.json"}]
        for item in items:
            if tile not in item["id"]:
                continue
            item_links.append({"rel": "item", "href": f"./{item['id']}/item.json"})
            for asset in item["assets"].values():
                asset["href"] = "./" + Path(asset["href"]).name
            url = f"https://a.example/{tile}/{item['id']}/item.json"
            item["links"] = [{"rel": "self", "href": url}]
            folder = tmp_path / tile / item["id"]
            folder.mkdir(parents=True)
            (folder / "item.json").write_text(json.dumps(item))
            if tile == "33TWL":
                for asset in item["assets"].values():
                    (folder / asset["href"]).touch()
        collection = {"type": "Collection", "id": tile, "links": item_links}
        (tmp_path / tile / "collection.json").write_text(json.dumps(collection))
    root.write_text(json.dumps({"type": "Catalog", "id": "root", "links": links}))
    return root


def walk(root):
    source = StaticCatalogSource(kind="static-catalog", files=(str(root),), **EVER)
    return find_items(source, bands=("red",), mask_asset="scl", geometry_lonlat=WORLD)


def test_a_static_catalogue_is_walked(static_catalog):
    rows = walk(static_catalog).rows
    assert len(rows) == 10
    for row in rows:
        here = row.mgrs_tile == "33TWL"
        place = str(static_catalog.parent) if here else "https://a.example"
        assert row.assets["red"].href == f"{place}/{row.mgrs_tile}/{row.id}/B04.tif"


def test_a_catalogue_that_links_back_to_itself_ends(static_catalog):
    content = json.loads(static_catalog.read_text())
    content["links"] += [{"rel": "child", "href": "./catalog.json"}] * 2
    static_catalog.write_text(json.dumps(content))
    assert walk(static_catalog).audit.found == 10


def test_a_broken_link_is_named(static_catalog):
    gone = static_catalog.parent / "33TWM" / "collection.json"
    gone.unlink()
    with pytest.raises(CatalogError, match=r"33TWM/collection.json does not exist"):
        walk(static_catalog)


def test_a_file_of_items_is_no_catalogue(real_item, tmp_path):
    with pytest.raises(CatalogError, match="neither a STAC catalogue"):
        walk(write(tmp_path / "items.json", real_item))
