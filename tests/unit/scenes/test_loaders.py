"""Both loaders give the same stack, items in order, also where an item lies elsewhere."""

import dataclasses
import datetime as dt

import numpy as np
import pytest
import rasterio
from affine import Affine

from bigmap.grid import Lattice
from bigmap.scenes.cube.reader import CubeReader, SceneReading
from bigmap.scenes.items import AssetRow, ItemRow
from bigmap.scenes.quality import MaskRule

LATTICE = Lattice("EPSG:25831", 10.0, 16, 64, 64, 1, 64, 64)
SCL = MaskRule("scl", "scl", clear_values=(4,))


def write_item(folder, name, *, left, dn, scl=4, day=1, hour=10, size=64, dn_shift=0, hole=None):
    """One item of constant pixels, 64 x 64, on the grid; ``hole`` is rows without data."""
    transform = Affine(10, 0, left, 0, -10, 4_600_000)
    assets = {}
    for asset, value, dtype in (
        ("red", dn, "uint16"),
        ("nir", 2 * dn, "uint16"),
        ("scl", scl, "uint8"),
    ):
        values = np.full((size, size), value, dtype)
        if hole is not None:
            values[hole] = 0
        path = folder / f"{name}_{asset}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=size, width=size, count=1, dtype=dtype,
            crs="EPSG:32631", transform=transform, nodata=0,
        ) as file:  # fmt: skip
            file.write(values, 1)
        assets[asset] = AssetRow(str(path), (size, size), tuple(transform)[:6])
    return ItemRow(
        id=name, collection="c", datetime=dt.datetime(2024, 5, day, hour, tzinfo=dt.UTC),
        solar_day=dt.date(2024, 5, day), epsg=32631,
        bounds=(left, 4_600_000 - 10 * size, left + 10 * size, 4_600_000), dn_shift=dn_shift,
        cloud_percent=0.0, baseline="05.10", mgrs_tile="31TCF", assets=assets,
    )  # fmt: skip


@pytest.fixture
def reader(tmp_path):
    rows = (
        write_item(tmp_path, "far-west", left=200_000, dn=100),
        write_item(tmp_path, "left", left=400_000, dn=1000, dn_shift=1000, hole=slice(0, 8)),
        write_item(tmp_path, "right", left=400_320, dn=3000, hour=11),
        write_item(tmp_path, "cloudy", left=400_000, dn=9000, scl=9, day=3),
        write_item(tmp_path, "far-east", left=700_000, dn=100, day=5),
    )
    return CubeReader.of(SceneReading(LATTICE, ("red", "nir"), SCL, threads=1), rows)


def reading_with(reader, **changes):
    return dataclasses.replace(reader, reading=dataclasses.replace(reader.reading, **changes))


def read_one(reader, day, roi):
    return reader.read_days(reader.read_masks([day], roi), roi)[day]


ROI = (slice(-460_000, -460_000 + 64), slice(40_000, 40_000 + 96))


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
def test_items_keep_their_places(reader, loader):
    reader = reading_with(reader, loader=loader)
    stack = reader.stack(reader.rows, ("red", "nir"), ROI, is_mask=False).compute()
    assert stack.shape == (5, 2, 64, 96)
    assert stack.dtype == np.uint16
    assert not stack[[0, 4]].any()
    assert (stack[1, 0, 8:, :64] == 1000).all()
    assert (stack[2, 1, :, 32:] == 6000).all()
    nowhere = (slice(0, 10), slice(0, 10))
    assert not reader.stack(reader.rows, ("red",), nowhere, is_mask=False).compute().any()


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
def test_a_date_takes_the_first_item_with_data_and_one_scale(reader, loader):
    reader = reading_with(reader, loader=loader)
    assert [str(day) for day in reader.days] == ["2024-05-01", "2024-05-03", "2024-05-05"]
    dn, clear = read_one(reader, reader.days[0], ROI)
    assert (dn[0, 8:, :64] == 2000).all()  # shifted to the DN of baseline 04.00
    assert (dn[0, :, 64:] == 3000).all()
    assert (dn[0, :8, 32:] == 3000).all()  # the first item has a hole, the second fills it
    assert not dn[:, :8, :32].any()
    assert clear[8:].all()
    assert not clear[:8, :32].any()
    dn, clear = read_one(reader, reader.days[1], ROI)
    assert dn[:, :, :64].all()
    assert not clear.any()
    masks = reader.read_masks(reader.days, ROI)
    assert [int(masks[day].mosaic().sum()) for day in reader.days] == [64 * 96 - 8 * 32, 0, 0]


def test_only_near_items_are_kept(reader):
    assert [row.id for row in reader.near(ROI).rows] == ["left", "right", "cloudy"]


@pytest.mark.parametrize("loader", ["stackstac", "odc-stac"])
@pytest.mark.parametrize("chunk_px", [17, 64, 1000])
def test_the_lazy_cube_equals_the_dates_read_one_by_one(reader, loader, chunk_px):
    from bigmap.scenes.cube.lazy import open_cube_of

    mask = dataclasses.replace(SCL, dilate_px=2)
    reader = reading_with(reader, loader=loader, mask=mask)
    cube = open_cube_of(reader, ROI, chunk_px=chunk_px)
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.rio.crs.to_epsg() == 25831
    assert float(cube.x[0]) == 400_005
    assert float(cube.y[0]) == 4_599_995
    loaded = cube.compute(scheduler="synchronous")
    for index, day in enumerate(reader.days):
        dn, clear = read_one(reader, day, ROI)
        assert np.array_equal(loaded.values[index], dn)
        assert np.array_equal(loaded.clear.values[index], clear)


@pytest.mark.parametrize("side", [64, 1000])
def test_a_cube_beside_all_items_has_no_dates(reader, side):
    from bigmap.scenes.cube.lazy import open_cube_of

    beside = (slice(-460_000, -460_000 + side), slice(55_000, 55_000 + side))
    cube = open_cube_of(reader.near(beside), beside).compute(scheduler="synchronous")
    assert cube.shape == (0, 2, side, side)
    assert cube.clear.shape == (0, side, side)
    assert cube.dtype == np.uint16


def test_without_a_mask_dates_are_chosen_by_their_data(reader):
    reader = reading_with(reader, mask=MaskRule("none"))
    masks = reader.read_masks(reader.days, ROI)
    seen = [int(masks[day].mosaic().sum()) for day in reader.days]
    assert seen == [64 * 96 - 8 * 32, 64 * 64, 0]
