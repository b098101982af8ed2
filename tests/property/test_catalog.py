"""Properties of the catalogue that hold for every item, wherever it lies."""

import datetime as dt
import random

import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer

from bigmap.redaction import clean_href
from bigmap.scenes.catalog.assets import NUMBERS, choose_assets
from bigmap.scenes.catalog.audit import order_of
from bigmap.scenes.catalog.parsing import ParsedItem
from bigmap.scenes.catalog.projection import footprint_of, solar_day_of
from bigmap.scenes.catalog.search import drop_duplicates
from bigmap.scenes.items import BANDS, AssetRow, ItemRow

SIDE_M = 109_800.0
BASELINES = ("02.09", "03.01", "04.00", "05.10", None)

zones = st.integers(1, 60)
bounds = st.builds(
    lambda left, bottom: (left * 60.0, bottom * 60.0, left * 60.0 + SIDE_M, bottom * 60.0 + SIDE_M),
    st.integers(3_000, 11_000),
    st.integers(0, 150_000),
)
times = st.datetimes(dt.datetime(2015, 7, 1), dt.datetime(2030, 1, 1), timezones=st.just(dt.UTC))


@st.composite
def rows(draw):
    zone, box, time = draw(zones), draw(bounds), draw(times)
    epsg = 32600 + zone
    transform = (10.0, 0.0, box[0], 0.0, -10.0, box[3])
    names = draw(st.sets(st.sampled_from(BANDS), min_size=1))
    return ItemRow(
        id=draw(st.text("ABC_0123", min_size=1, max_size=8)),
        collection="sentinel-2-l2a",
        datetime=time,
        solar_day=solar_day_of(time, box, epsg),
        epsg=epsg,
        bounds=box,
        dn_shift=draw(st.sampled_from((0, 1000))),
        cloud_percent=draw(st.none() | st.floats(0, 100)),
        baseline=draw(st.sampled_from(BASELINES)),
        mgrs_tile=draw(st.none() | st.just("33TWM")),
        assets={name: AssetRow(f"/d/{name}.tif", (10980, 10980), transform) for name in names},
    )


@given(zones, bounds)
def test_footprints_are_valid_and_hold_their_centre(zone, box):
    epsg = 32600 + zone
    footprint = footprint_of(box, epsg)
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(
        (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    )
    assert footprint.is_valid
    assert footprint.distance(shapely.Point(lon, lat)) < 1e-6
    for part in shapely.get_parts(footprint):
        assert part.bounds[2] - part.bounds[0] < 180


@given(zones, bounds, times)
def test_solar_days_are_within_a_day_of_utc(zone, box, time):
    day = solar_day_of(time, box, 32600 + zone)
    assert abs(day - time.date()) <= dt.timedelta(days=1)
    later = solar_day_of(time + dt.timedelta(days=1), box, 32600 + zone)
    assert later - day == dt.timedelta(days=1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(BASELINES),
            st.sampled_from(("", "2023-01-01T00:00:00", "2024-01-01T00:00:00")),
            st.sampled_from((0, 1, 2)),
        ),
        min_size=1,
        max_size=8,
    ),
    st.randoms(use_true_random=False),
)
def test_duplicates_leave_one_product_of_each_acquisition(products, shuffle: random.Random):
    noon = dt.datetime(2023, 8, 15, 12, tzinfo=dt.UTC)
    box = (499980.0, 4990200.0, 609780.0, 5100000.0)
    footprint = footprint_of(box, 32633)
    parsed_items = [
        ParsedItem(
            row=ItemRow(
                id=f"item-{number}",
                collection="c",
                datetime=noon + dt.timedelta(hours=1.7 * orbit, seconds=number),
                solar_day=noon.date(),
                epsg=32633,
                bounds=box,
                dn_shift=0,
                cloud_percent=None,
                baseline=baseline,
                mgrs_tile="33TWM",
                assets={},
            ),
            footprint=footprint,
            datatake=None,
            platform="sentinel-2a",
            datastrip=None,
            part=None,
            level="2A",
            processed=(made, "", ""),
        )
        for number, (baseline, made, orbit) in enumerate(products)
    ]
    kept, findings = drop_duplicates(parsed_items)
    assert len(kept) == len({orbit for _, _, orbit in products})
    assert len(kept) + len(findings) == len(parsed_items)
    mixed = list(parsed_items)
    shuffle.shuffle(mixed)
    again, _ = drop_duplicates(mixed)
    assert sorted((c.row for c in kept), key=order_of) == sorted(
        (c.row for c in again), key=order_of
    )


@given(st.permutations([
    (f"{stem}{suffix}", kind, size)
    for stem in ("B04", "red")
    for suffix, kind, size in (("", "tiff", 10), ("-jp2", "jp2", 10), ("_20m", "tiff", 20))
]))  # fmt: skip
def test_the_choice_of_an_asset_does_not_depend_on_the_order(entries):
    assets = {
        key: {"href": key, "type": f"image/{kind}", "proj:transform": [size, 0, 0, 0, -size, 0]}
        for key, kind, size in entries
    }
    choice = choose_assets(assets, bands=("red",), mask_asset=None)["red"]
    assert choice.key == "B04"


@given(st.sampled_from(NUMBERS), st.sampled_from(("", "_10m", "_20m", "_60m", "-jp2")))
def test_every_band_number_is_known(number, suffix):
    key = f"B{number}{suffix}"
    assets = {key: {"href": f"{key}.tif"}}
    band = BANDS[NUMBERS.index(number)]
    assert choose_assets(assets, bands=BANDS, mask_asset=None)[band].key == key


@given(st.dictionaries(st.sampled_from(("versionId", "page", "sig", "X-Amz-Signature", "token")),
                       st.text("abc%=&?/ ", max_size=6)))  # fmt: skip
def test_cleaning_is_idempotent_and_leaves_no_secret(parameters):
    from urllib.parse import parse_qsl, urlencode, urlsplit

    clean = clean_href("https://a.example/x.tif?" + urlencode(parameters))
    assert clean_href(clean) == clean
    left = dict(parse_qsl(urlsplit(clean).query, keep_blank_values=True))
    # Beside a secret, only what names a version or a file is sure to be no part of a signature.
    is_signed = parameters.keys() & {"sig", "X-Amz-Signature", "token"}
    kept = {"versionId"} if is_signed else {"versionId", "page"}
    assert left == {name: value for name, value in parameters.items() if name in kept}
