"""The whole run on real Sentinel-2: the NDVI equals one computed from the files otherwise."""

import numpy as np
import pytest
import rasterio

import bigmap
from bigmap.config import parse_recipe
from tests.integration.real_scenes import (
    items_by_day,
    mean_ndvi,
    raw_recipe,
    warp_whole,
)

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def reprojected(shared_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("real") / "map.zarr"
    recipe = parse_recipe(raw_recipe(shared_data, output))
    summary = bigmap.run(recipe)
    assert summary.exit_code == 0
    assert summary.states["done"] == summary.planned
    return bigmap.open_map(str(output)).load()


def test_reprojected_ndvi_equals_a_warp_of_the_whole(shared_data, reprojected):
    transform = reprojected.rio.transform()
    shape = reprojected["ndvi"].shape
    assert transform.a == 100
    assert reprojected.rio.crs.to_epsg() == 3035

    def read(folder):
        return [
            warp_whole(folder / f"{name}.tif", transform, shape, method, crs="EPSG:3035")
            for name, method in (("B04", "bilinear"), ("B08", "bilinear"), ("SCL", "nearest"))
        ]

    days = items_by_day(shared_data)
    assert len(days) == 5
    expected, count, slack = mean_ndvi([map(read, folders) for folders in days.values()])
    observed = reprojected["observations"].values
    mapped = observed != 255
    assert mapped.sum() > 2_000_000
    # Where the nearest of two pixels is a tie, or a tile ends, one library may see a date more:
    # 20 of 2.2 million pixels when this was written.
    same = mapped & (observed == count)
    assert (mapped & ~same).sum() <= 100
    ndvi = reprojected["ndvi"].values * 1e-4
    # One DN of rounding per band and date, and half a step of the stored value.
    difference = np.abs(ndvi - expected)[same]
    assert (difference > (slack + 0.6e-4)[same]).sum() <= 10
    assert np.median(difference) < 0.3e-4
    # Not a pixel of the area without a value where the files have a clear one.
    inside = (reprojected["class"].values != 255) | (count == 0)
    assert (count[mapped] > 0).mean() > 0.999
    assert inside[mapped].all()


def test_bilinear_equals_scipy_with_proj(shared_data, reprojected):
    """A second opinion that shares no code with GDAL's warper: PROJ and scipy."""
    from pyproj import Transformer
    from scipy.ndimage import map_coordinates

    recipe = parse_recipe(raw_recipe(shared_data, "unused.zarr"))
    cube = bigmap.open_cube(recipe, (15.55, 45.45, 15.75, 45.6)).compute()
    x, y = np.meshgrid(cube.x.values, cube.y.values)
    x, y = Transformer.from_crs(3035, 32633, always_xy=True).transform(x, y)
    day = list(items_by_day(shared_data))[2]
    (folder,) = [f for f in items_by_day(shared_data)[day] if "33TWL" in f.name]
    with rasterio.open(folder / "B04.tif") as file:
        cols, rows = ~file.transform * (x, y)
        red = file.read(1).astype(float)
    expected = map_coordinates(red, [rows - 0.5, cols - 0.5], order=1)
    got = cube.sel(time=str(day), band="red").values.astype(int) - 1000
    assert np.abs(got - expected).max() <= 0.6


def test_same_crs_without_a_warp(shared_data, tmp_path):
    """UTM at 120 m: 33TWL is copied; 33TWM lies half a pixel lower and is the mean of two rows."""
    raw = raw_recipe(
        shared_data, tmp_path / "utm.zarr",
        grid__crs="EPSG:32633", grid__gsd_m=120, grid__anchor_m=[499980, 5100000],
    )  # fmt: skip
    summary = bigmap.run(parse_recipe(raw))
    assert summary.exit_code == 0
    result = bigmap.open_map(raw["output"]["path"]).load()
    left, top = result.rio.transform().c, result.rio.transform().f
    shape = result["ndvi"].shape
    col, row = round((499980 - left) / 120), round((top - 5100000) / 120)

    def place(values, first_row, nodata=0):
        canvas = np.full(shape, nodata, float)
        rows = slice(max(first_row, 0), min(first_row + len(values), shape[0]))
        cols = slice(max(col, 0), min(col + values.shape[1], shape[1]))
        canvas[rows, cols] = values[
            rows.start - first_row : rows.stop - first_row, cols.start - col : cols.stop - col
        ]
        return canvas

    def read(folder):
        arrays = []
        for name in ("B04", "B08", "SCL"):
            with rasterio.open(folder / f"{name}.tif") as file:
                values, bounds = file.read(1).astype(float), file.bounds
            first = (5100000 - bounds.top) / 120
            if first == int(first):
                arrays.append(place(values, row + int(first)))
                continue
            # Output row r lies on the border of the file's rows r - 1 and r. The mask takes the
            # lower of the two, and so does the test for data; bands take the mean of both.
            below, above = values, np.vstack([values[:1], values[:-1]])
            if name != "SCL":
                both = np.where(above > 0, (above + below) / 2, below)
                values = np.where(below > 0, np.rint(both), 0)
            arrays.append(place(values, row + int(np.ceil(first - 0.5))))
        return arrays

    days = items_by_day(shared_data)
    expected, count, slack = mean_ndvi([map(read, folders) for folders in days.values()])
    observed = result["observations"].values
    mapped = observed != 255
    assert mapped.sum() > 1_000_000
    assert np.array_equal(observed[mapped], count[mapped])
    difference = np.abs(result["ndvi"].values * 1e-4 - expected)[mapped]
    only_copied = np.zeros(shape, bool)
    only_copied[row + 90 :] = True  # south of the other tile
    assert difference[only_copied[mapped]].max() <= 0.51e-4
    assert (difference <= (slack + 0.51e-4)[mapped]).all()


def test_the_border_of_the_tiles_has_no_doubled_dropped_or_shifted_row(shared_data, tmp_path):
    """Rows around the border move on by one file row each, as they do far from it."""
    raw = raw_recipe(
        shared_data, tmp_path / "rows.zarr",
        grid__crs="EPSG:32633", grid__gsd_m=120, grid__anchor_m=[499980, 5100000],
    )  # fmt: skip
    cube = bigmap.open_cube(parse_recipe(raw), (15.3, 45.9, 16.0, 46.2))
    red = cube.sel(band="red", time="2023-08-13").values.astype(float)
    assert (red > 0).mean() > 0.99
    step = np.abs(np.diff(red, axis=0)).mean(axis=1)
    assert step.min() > 0.3 * np.median(step), "a row stands twice"
    assert step.max() < 3 * np.median(step), "a row is missing"
    # In the overlap the mosaic is 33TWM, but 33TWL shows the same ground: shifted by a row, the
    # two would agree less well. (Both are decimated, so they agree by half only.)
    folder = shared_data / "sentinel-2-l2a/S2B_33TWL_20230813_0_L2A"
    with rasterio.open(folder / "B04.tif") as file:
        other = file.read(1).astype(float)
    first = round((5100000 - (float(cube.y[0]) + 60)) / 120)
    col = round((float(cube.x[0]) - 60 - 499980) / 120)
    mosaic = red[2 - first : 79 - first]
    agreement = [
        np.corrcoef(mosaic.ravel(), other[rows, col : col + red.shape[1]].ravel())[0, 1]
        for rows in (slice(1, 78), slice(2, 79), slice(3, 80))
    ]
    assert agreement[1] > max(agreement[0], agreement[2]) + 0.1


def test_the_offset_is_applied_exactly_once(shared_data):
    """Dark forest keeps its reflectance of 1 to 5 %: a second offset would make it negative."""
    recipe = parse_recipe(raw_recipe(shared_data, "unused.zarr"))
    cube = bigmap.open_cube(recipe, (15.3, 45.3, 15.8, 45.6)).sel(band="red").compute()
    reflectance = cube.attrs["dn_scale"] * cube.values[cube.clear.values] + cube.attrs["dn_offset"]
    assert 0.0 < np.percentile(reflectance, 5) < 0.04
    assert (reflectance < 0).mean() < 0.001


def test_a_mask_class_that_does_not_exist_is_not_clear(shared_data):
    recipe = parse_recipe(raw_recipe(shared_data, "unused.zarr"))
    cube = bigmap.open_cube(recipe, (15.1, 45.2, 16.3, 46.9)).compute()
    impossible = 0
    for day, folders in items_by_day(shared_data).items():
        for folder in folders:
            with rasterio.open(folder / "SCL.tif") as file:
                scl = file.read(1)
                rows, cols = np.nonzero(scl == 12)
                impossible += len(rows)
                if not len(rows):
                    continue
                x, y = rasterio.transform.xy(file.transform, rows, cols)
            x, y = rasterio.warp.transform("EPSG:32633", "EPSG:3035", x, y)
            for east, north in zip(x, y, strict=True):
                try:
                    near = cube.clear.sel(time=str(day)).sel(
                        x=east, y=north, method="nearest", tolerance=20
                    )
                except KeyError:
                    continue
                others = [f for f in folders if f != folder]
                if not others:
                    assert not bool(near)
    assert impossible > 0
