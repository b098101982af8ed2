"""Catalogues saved with a run and read again."""

import dataclasses
import datetime as dt
import os
import time

import pyarrow.parquet as pq
import pystac
import pytest
from stac_geoparquet.arrow import parse_stac_items_to_parquet, stac_table_to_items

from bigmap.config.sources import FilesSource
from bigmap.errors import CatalogError, OutputError
from bigmap.scenes.catalog import find_items, load_items, save_items
from bigmap.scenes.items import AssetRow, ItemTable
from tests.unit.scenes.catalog_cases import EVER, WORLD, find, read_json, to_item


@pytest.fixture(scope="session")
def catalogues(shared_data):
    """One catalogue of each kind of answer: baselines, projections, masks, contradictions."""
    stac = shared_data / "stac"
    return [
        find(shared_data / "sentinel-2-l2a" / "items.json", bands=("red", "nir")),
        find(*sorted((stac / "33TWN-baselines").glob("*.json")), max_cloud_percent=60),
        find(*sorted((shared_data / "sentinel-2-l2a-antimeridian").glob("*/*.json"))),
        find(shared_data / "slovenia" / "items.json", mask_asset="clm"),
        find(stac / "cdse-proj-code.json", bands=("red", "swir22"), mask_asset=None),
        find(stac / "planetary-computer-l2a.json"),
    ]


def test_the_round_trip_gives_equal_catalogues(catalogues, tmp_path):
    for catalogue in catalogues:
        path = str(tmp_path / "run" / "items.parquet")
        save_items(catalogue, path)
        assert load_items(path) == catalogue


def test_the_file_holds_valid_slim_items(catalogues, tmp_path):
    for catalogue in catalogues:
        save_items(catalogue, str(tmp_path / "items.parquet"))
        table = pq.read_table(tmp_path / "items.parquet")
        assert b"geo" in table.schema.metadata
        items = list(stac_table_to_items(table))
        for item, row in zip(items, catalogue.rows, strict=True):
            assert item["properties"]["bigmap:dn_shift"] == row.dn_shift
            assert item["properties"]["bigmap:solar_day"] == row.solar_day.isoformat()
            item["stac_extensions"] = []  # their schemas would come from the network
            pystac.Item.from_dict(item).validate()
            assert {name for name, asset in item["assets"].items() if asset} == set(row.assets)


def test_a_slim_file_is_small(catalogues, tmp_path, shared_data):
    path = tmp_path / "items.parquet"
    save_items(catalogues[1], str(path))
    originals = (shared_data / "stac" / "33TWN-baselines").glob("*.json")
    assert path.stat().st_size < sum(file.stat().st_size for file in originals) / 10


def test_urls_of_fsspec_work(catalogues):
    url = "memory://runs/a/items.parquet"
    save_items(catalogues[0], url)
    assert load_items(url) == catalogues[0]


def test_no_secret_is_written(catalogues, tmp_path):
    row = catalogues[0].rows[0]
    href = "https://user:hunter2@a.blob.core.windows.net/c/x.tif?se=2030-01-01&sig=s3cr3t"
    assets = {**row.assets, "red": dataclasses.replace(row.assets["red"], href=href)}
    leaky = dataclasses.replace(catalogues[0], rows=(dataclasses.replace(row, assets=assets),))
    save_items(leaky, str(tmp_path / "items.parquet"))
    (loaded,) = load_items(str(tmp_path / "items.parquet")).rows
    assert "hunter2" not in loaded.assets["red"].href
    assert "s3cr3t" not in loaded.assets["red"].href
    assert loaded.assets["red"].href == "https://a.blob.core.windows.net/c/x.tif"


def test_a_saved_catalogue_can_be_a_source_and_keeps_its_decisions(catalogues, tmp_path):
    path = tmp_path / "items.parquet"
    for catalogue, bands, mask in zip(
        catalogues,
        [("red", "nir"), ("red",), ("red",), ("red",), ("red", "swir22"), ("red",)],
        ["scl", "scl", "scl", "clm", None, "scl"],
        strict=True,
    ):
        save_items(catalogue, str(path))
        assert find(path, bands=bands, mask_asset=mask).rows == catalogue.rows


def test_stac_geoparquet_of_others_is_a_source(shared_data, tmp_path):
    file = shared_data / "stac" / "planetary-computer-l2a.json"
    items = read_json(file)
    path = tmp_path / "items.parquet"
    parse_stac_items_to_parquet(items, output_path=str(path))
    assert find(path).rows == find(file).rows


def test_writing_is_all_or_nothing(catalogues, tmp_path, monkeypatch):
    path = tmp_path / "items.parquet"
    save_items(catalogues[0], str(path))
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="disk full"):
        save_items(catalogues[1], str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(catalogues, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        save_items(catalogues[0], str(tmp_path / "file" / "items.parquet"))


def test_files_of_another_kind_are_refused(catalogues, shared_data, tmp_path):
    with pytest.raises(CatalogError, match="does not exist"):
        load_items(str(tmp_path / "gone.parquet"))
    noise = tmp_path / "noise.parquet"
    noise.write_bytes(os.urandom(300))
    other = tmp_path / "other.parquet"
    items = read_json(shared_data / "stac" / "planetary-computer-l2a.json")
    parse_stac_items_to_parquet(items, output_path=str(other))
    for path in (noise, other):
        with pytest.raises(CatalogError, match="not a catalogue that bigmap saved"):
            load_items(str(path))


@pytest.mark.slow
def test_ten_thousand_items_take_seconds(catalogues, tmp_path):
    first = catalogues[0].rows[0]
    rows = tuple(
        dataclasses.replace(
            first,
            id=f"item-{number:05}",
            datetime=first.datetime + dt.timedelta(seconds=number),
            assets={name: AssetRow(f"/d/{number}/{name}.tif", (915, 915), asset.transform)
                    for name, asset in first.assets.items()},
        )
        for number in range(10_000)
    )  # fmt: skip
    begin = time.perf_counter()
    catalogue = dataclasses.replace(catalogues[0], rows=rows)
    save_items(catalogue, str(tmp_path / "items.parquet"))
    assert load_items(str(tmp_path / "items.parquet")) == catalogue
    assert time.perf_counter() - begin < 60


def test_an_item_may_have_no_collection(catalogues, tmp_path):
    path = str(tmp_path / "items.parquet")
    rows = tuple(dataclasses.replace(row, collection="") for row in catalogues[0].rows)
    catalogue = dataclasses.replace(catalogues[0], rows=rows)
    save_items(catalogue, path)
    assert load_items(path) == catalogue


def test_a_saved_file_needs_the_mask_that_it_was_saved_with(catalogues, tmp_path):
    path = tmp_path / "items.parquet"
    save_items(catalogues[4], str(path))
    source = FilesSource(kind="files", files=(str(path),), **EVER)
    with pytest.raises(CatalogError, match="those with the assets red, scl"):
        find_items(source, bands=("red",), mask_asset="scl", geometry_lonlat=WORLD)


def test_the_columns_are_those_of_the_items(catalogues, tmp_path):
    """What is written column by column is what stac-geoparquet makes of the items one by one."""
    for catalogue in catalogues:
        href = "https://me:pw@host.example.org/a/b.tif?sig=s3cr3t&version=2"
        leaky = [
            dataclasses.replace(
                row,
                assets={name: dataclasses.replace(a, href=href) for name, a in row.assets.items()},
            )
            for row in catalogue.rows[:1]
        ]
        nameless = [dataclasses.replace(row, collection="") for row in catalogue.rows[:1]]
        rows = ItemTable.of([*catalogue.rows, *leaky, *catalogues[0].rows, *nameless])
        save_items(dataclasses.replace(catalogue, rows=rows), str(tmp_path / "items.parquet"))
        expected = [to_item(row) for row in rows]
        parse_stac_items_to_parquet(expected, output_path=str(tmp_path / "slow.parquet"))
        found, wanted = (pq.read_table(tmp_path / n) for n in ("items.parquet", "slow.parquet"))
        assert found.schema.field("geometry").equals(
            wanted.schema.field("geometry"), check_metadata=True
        )
        names = [name for name in found.column_names if name != "assets"]
        assert set(names) == set(wanted.column_names) - {"assets"}
        for name in names:
            assert found[name].to_pylist() == wanted[name].to_pylist(), name
        assets = zip(found["assets"].to_pylist(), wanted["assets"].to_pylist(), strict=True)
        assert all(one == other for one, other in assets)
