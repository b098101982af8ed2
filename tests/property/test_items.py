"""Tables of items give back the rows that they were made of."""

import datetime as dt
import pickle
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bigmap.scenes.items import AssetRow, ItemRow, ItemTable

PARTS = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs", "Cc")), max_size=8
)
HREFS = st.one_of(
    st.lists(PARTS, min_size=1, max_size=4).map("/".join),
    st.builds("https://host/tiles/S2A_{}_L2A/B{:02}.tif".format, PARTS, st.integers(1, 12)),
    st.builds("IMG_DATA/R{0}0m/T31TDG_{1}_B02_{0}0m.jp2".format, st.integers(1, 6), PARTS),
)
METRES = st.one_of(st.integers(-(10**7), 10**7).map(float), st.floats(-1e7, 1e7))
ASSETS = st.builds(
    AssetRow, HREFS, st.tuples(st.integers(1, 10_980), st.integers(1, 10_980)),
    st.tuples(METRES, METRES, METRES, METRES, METRES, METRES),
)  # fmt: skip
TIMES = st.datetimes(dt.datetime(2015, 6, 23), dt.datetime(2030, 1, 1), timezones=st.just(dt.UTC))
ROWS = st.builds(
    ItemRow,
    id=PARTS, collection=PARTS, datetime=TIMES, solar_day=st.dates(), epsg=st.integers(1024, 32767),
    bounds=st.tuples(METRES, METRES, METRES, METRES), dn_shift=st.sampled_from([0, 1000]),
    cloud_percent=st.none() | st.floats(0, 100), baseline=st.none() | PARTS,
    mgrs_tile=st.none() | PARTS,
    assets=st.dictionaries(PARTS, ASSETS, min_size=1, max_size=4),
)  # fmt: skip


@given(st.lists(ROWS, max_size=5))
def test_a_table_gives_back_its_rows(rows):
    table = ItemTable.of(rows)
    assert list(table) == rows
    assert [table[place] for place in range(len(rows))] == rows
    assert pickle.loads(pickle.dumps(table)) == rows
    assert table.take(np.arange(len(rows))[::-1]) == rows[::-1]
    assert table[1:3] == rows[1:3]


@given(st.lists(ROWS, max_size=6))
def test_places_hold_each_row_once(rows):
    table = ItemTable.of(rows)
    seen = []
    for epsg, bounds, indices in table.places():
        assert (np.diff(indices) > 0).all()
        assert {(rows[i].epsg, rows[i].bounds) for i in indices} == {(epsg, bounds)}
        seen += list(indices)
    assert sorted(seen) == list(range(len(rows)))


def test_rows_with_like_files_share_a_layout():
    def row(day: int) -> ItemRow:
        name = f"S2A_31TDG_202405{day:02}_0_L2A"
        left = 300_000.0 + 100_000 * day
        return ItemRow(
            id=name, collection="c", datetime=dt.datetime(2024, 5, day, tzinfo=dt.UTC),
            solar_day=dt.date(2024, 5, day), epsg=32631, bounds=(left, 0.0, left + 10, 10.0),
            dn_shift=0, cloud_percent=None, baseline=None, mgrs_tile=None,
            assets={
                band: AssetRow(f"s3://b/{name}/R10m/T31_{day}_{band}.jp2", (1, 1),
                               (10.0, 0.0, left, 0.0, -10.0, 10.0))
                for band in ("B02", "B03")
            },
        )  # fmt: skip

    columns = ItemTable.of(row(day) for day in range(1, 29)).columns
    assert len(set(columns["layout"].to_pylist())) == 1
    small = pickle.dumps(ItemTable(columns).take(np.arange(2)))
    assert len(small) < 6_000


def test_each_host_of_an_item_counts():
    def row(number: int, *hrefs: str) -> ItemRow:
        files = {
            f"B{index}": AssetRow(href, (1, 1), (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
            for index, href in enumerate(hrefs)
        }
        day = dt.date(2024, 5, number)
        time = dt.datetime(2024, 5, number, tzinfo=dt.UTC)
        return ItemRow(
            str(number), "c", time, day, 32631, (0.0, 0.0, 1.0, 1.0), 0, None, None, None, files
        )

    table = ItemTable.of([
        row(1, "https://a/x/1.tif", "s3://b/x/1.tif"),
        row(2, "https://a/x/1.tif", "https://another/x/1.tif"),
        row(3, "https://a/x/1.tif", "/data/1.tif"),
        row(4, "/data/x/1.tif", "/scratch/1.tif"),
        row(5, "s3://b/x/1.tif", "s3://b/y/1.tif"),
    ])  # fmt: skip
    assert table.count_hosts() == {"https://a": 3, "s3://b": 2, "https://another": 1, "://": 2}
    assert [each.id for each in table.find_around(Path("/data/x/maps"))] == ["1", "3", "4"]
    assert [each.id for each in table[4:].find_around(Path("/data"))] == []
