"""Prediction on any cube: lazy, where it lies, and what its numbers mean."""

import cloudpickle
import numpy as np
import pytest
import xarray as xr
from affine import Affine

import bigmap
from bigmap.errors import ModelError
from bigmap.models import build_model
from bigmap.scenes.quality import DateRule
from tests.unit.mapping.cubes import make_cube, predict


def test_predict_is_lazy_and_has_the_fine_grid():
    cube = make_cube()
    result = bigmap.predict(cube.chunk(), "ndvi", core_px=16, cell_px=32)
    assert result["class"].chunks is not None
    assert result["class"].shape == (280, 280)
    assert float(result.x[0]) == pytest.approx(400_000 + 1.25)
    assert float(result.y[0]) == pytest.approx(4_600_000 - 1.25)
    assert float(result.x[-1]) == pytest.approx(400_700 - 1.25)


def test_ndvi_equals_the_formula():
    cube = make_cube()
    got = predict(cube, build_model("ndvi", {"upscale": 1}))
    reflectance = cube.astype(float) * 1e-4 - 0.1
    red, nir = reflectance.sel(band="red"), reflectance.sel(band="nir")
    expected = ((nir - red) / (nir + red)).where(cube.clear).mean("time")
    seen = cube.clear.any("time").values
    assert np.abs(got["ndvi"].values * 1e-4 - expected.values)[seen].max() < 1e-4
    assert np.array_equal(got["observations"].values[seen], cube.clear.sum("time").values[seen])
    assert (got["class"].values[~seen] == 255).all()
    assert (got["ndvi"].values[~seen] == -32768).all()


def test_float_reflectance_with_nan_gives_what_dn_with_zero_gives():
    cube = make_cube()
    cube.values[1, 2, 10:20, 10:30] = 0
    as_float = make_cube(dtype="float64")
    as_float.values[1, 2, 10:20, 10:30] = np.nan
    for model in ("ndvi", "small-conv"):
        ours, theirs = predict(cube, model), predict(as_float, model)
        for layer in ours.data_vars:
            # Rounding of float64 to float32 may tip a value over to its neighbour.
            difference = np.abs(ours[layer].values.astype(int) - theirs[layer].values)
            assert (difference > 1).mean() < 1e-4


def test_dates_are_chosen_for_each_cell():
    cube = make_cube(size=64)
    clear = np.ones((3, 64, 64), bool)
    clear[0, :, :32] = False  # in the west the first date is cloudy, in the east the last
    clear[2, :, 32:] = False
    cube["clear"] = (("time", "y", "x"), clear)
    result = predict(cube, "ndvi", dates=DateRule(max_per_cell=2, min_clear_percent=50))
    assert (result["observations"].values == 2).all()
    one = predict(cube, "ndvi", dates=DateRule(max_per_cell=1, min_clear_percent=50))
    assert (one["observations"].values == 1).all()
    none = cube.copy()
    none["clear"] = xr.zeros_like(cube.clear)
    assert (predict(none, "ndvi")["class"].values == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cube: cube.sel(band=["red", "green"]), "needs the band blue, which the cube lacks"),
        (lambda cube: cube.sel(band=["red", "red", "nir"]), "needs the band blue"),
        (lambda cube: xr.concat([cube, cube.sel(band=["blue"])], "band"), "blue, .* has twice"),
        (lambda cube: cube.assign_attrs(dn_offset=0.0), "dn_offset=-0.1"),
        (lambda cube: cube.astype("int32"), "give uint16 DN or float reflectance"),
        (lambda cube: cube.drop_vars("clear").to_dataset(name="dn"), "is a Dataset; give a Data"),
        (lambda cube: cube.values, "is a ndarray; give a DataArray"),
        (lambda cube: cube.rename(time="t"), "has the dimension t; rename it"),
        (lambda cube: cube.expand_dims("sensor"), "has the dimension sensor"),
        (lambda cube: cube.sel(band="blue"), "lacks the dimension band"),
        (lambda cube: cube.drop_vars("x"), "lacks coordinates x and y"),
        (lambda cube: cube.isel(x=[0]), "at least two pixels"),
        (lambda cube: cube.assign_coords(clear=cube.clear.isel(time=0, drop=True)),
         r"clear is bool \(y, x\)"),
        (lambda cube: cube.assign_coords(clear=cube.clear.astype("uint8")), "clear is uint8"),
        (lambda cube: cube.assign_attrs(dn_scale="1e-4").astype(float), "give both as numbers"),
        (lambda cube: cube.assign_coords(epsg=0), "CRS cannot be understood"),
    ],
)  # fmt: skip
def test_cubes_that_cannot_be_understood_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        bigmap.predict(change(make_cube()), "small-conv")


def test_grids_that_are_not_north_up_and_square_are_refused():
    cube = make_cube()
    with pytest.raises(ModelError, match="y falling"):
        bigmap.predict(cube.isel(y=slice(None, None, -1)), "ndvi")
    with pytest.raises(ModelError, match="square pixels"):
        bigmap.predict(cube.assign_coords(y=cube.y * 2), "ndvi")


def test_results_say_where_they_are_and_what_they_mean():
    cube = make_cube().rio.write_crs(25831)
    result = bigmap.predict(cube, "ndvi", core_px=16, cell_px=32)
    assert result.rio.crs.to_epsg() == 25831
    assert result["ndvi"].attrs["scale"] == 1e-4
    assert result["class"].attrs["flag_meanings"] == "other cropland"


def test_without_a_mask_a_date_without_data_is_not_chosen():
    cube = make_cube(dtype="float32", time=2).drop_vars("clear")
    cube.values[0] = np.nan
    result = predict(cube, "ndvi", dates=DateRule(max_per_cell=1, min_clear_percent=0))
    assert (result["observations"].values == 1).all()
    single = bigmap.predict(cube.isel(time=1), "ndvi", core_px=16, cell_px=32)
    assert (single["class"].compute(scheduler="synchronous").values != 255).all()


def test_a_cube_travels_once_and_not_with_every_cell():
    cube = make_cube(size=256)
    result = bigmap.predict(cube, "ndvi", core_px=16, cell_px=32)
    sizes = [
        len(cloudpickle.dumps(task)) for task in dict(result["class"].__dask_graph__()).values()
    ]
    assert sum(sizes) < 4 * cube.nbytes


@pytest.mark.parametrize(
    "derive",
    [
        lambda cube: cube.where(cube.clear),
        lambda cube: cube.where(cube > 0).astype("float64"),
        lambda cube: cube.astype("float32"),
        lambda cube: cube.astype("float32") * 1e-4 - 0.1,  # xarray keeps attributes of DN
        lambda cube: (cube.astype("float32") * 1e-4 - 0.1).where(cube > 0).drop_attrs(),
    ],
)
def test_a_cube_derived_from_dn_is_mapped_as_its_dn(derive):
    cube = make_cube()
    cube["clear"] = xr.ones_like(cube.clear)
    with xr.set_options(keep_attrs=True):
        derived = derive(cube)
    ours, theirs = predict(derived, "ndvi"), predict(cube, "ndvi")
    assert np.abs(ours["ndvi"].values.astype(int) - theirs["ndvi"].values).max() <= 1


def test_zero_of_float_dn_is_no_data_and_zero_reflectance_is_data():
    cube = make_cube(time=1).drop_vars("clear")
    cube.values[0, 2, :10] = 0
    got = predict(cube.astype("float32"), build_model("ndvi", {"upscale": 1}))
    assert (got["observations"].values[:10] == 255).all()
    assert (got["observations"].values[10:] == 1).all()
    reflectance = (cube.astype("float32") * 1e-4 - 0.1).assign_attrs(cube.attrs)
    reflectance.values[0, 2, :10] = 0
    got = predict(reflectance, build_model("ndvi", {"upscale": 1}))
    assert (got["observations"].values == 1).all()


@pytest.mark.parametrize("value", [-9999.0, -3.4028234663852886e38, 0.0, 65535.0])
@pytest.mark.parametrize("name", ["_FillValue", "nodata", "missing_value"])
@pytest.mark.parametrize("where", ["attrs", "encoding"])
def test_declared_nodata_of_floats_is_no_data(value, name, where):
    cube = make_cube(dtype="float32", time=1).drop_vars("clear").drop_attrs()
    cube.values[0, :, :10] = value
    getattr(cube, where)[name] = value
    got = predict(cube, build_model("ndvi", {"upscale": 1}))
    assert (got["ndvi"].values[:10] == -32768).all()
    assert (got["observations"].values[10:] == 1).all()


def test_nodata_written_by_rioxarray_is_no_data_in_dn_too():
    cube = make_cube(time=1).drop_vars("clear")
    cube.values[0, :, :10] = 65535
    got = predict(cube.rio.write_nodata(65535), build_model("ndvi", {"upscale": 1}))
    assert (got["observations"].values[:10] == 255).all()
    assert (got["observations"].values[10:] == 1).all()


@pytest.mark.parametrize(
    ("value", "attrs", "message"),
    [
        (4519, {}, "floats reach 4519, which is no reflectance"),
        (-9999, {}, "floats reach -9999, which is no reflectance"),
        (4519, {"dn_scale": 1e-4, "dn_offset": -0.1}, "go from 0.0.* to 4519"),
        (-9999, {"dn_scale": 1e-4, "dn_offset": -0.1}, "floats reach -9999"),
    ],
)
def test_floats_that_are_no_reflectance_are_refused_when_they_are_computed(value, attrs, message):
    cube = make_cube(dtype="float32").drop_vars("clear").drop_attrs().assign_attrs(attrs)
    cube.values[1, 2, 33, 35] = value
    lazy = bigmap.predict(cube, "ndvi", core_px=16, cell_px=64)
    with pytest.raises(ModelError, match=message):
        lazy.compute(scheduler="synchronous")


def test_one_date_is_mapped_as_a_cube_of_that_date():
    cube = make_cube()
    ours, theirs = predict(cube.isel(time=1), "ndvi"), predict(cube.isel(time=[1]), "ndvi")
    assert ours.drop_vars("time", errors="ignore").identical(theirs)
    assert (theirs["observations"].values == 255).any()


def test_a_cube_without_dates_is_nowhere_mapped():
    got = predict(make_cube().isel(time=slice(0)), "ndvi")
    assert (got["class"].values == 255).all()


def as_stackstac(cube, xy_coords):
    """Give a cube the coordinates and attributes that stackstac 0.5 does."""
    left, top, half = float(cube.x[0]) - 5, float(cube.y[0]) + 5, 5 * (xy_coords == "topleft")
    return cube.assign_coords(x=cube.x - half, y=cube.y + half, epsg=32631).assign_attrs(
        transform=Affine(10.0, 0, left, 0, -10.0, top), resolution=10.0
    )


@pytest.mark.parametrize("xy_coords", ["topleft", "center"])
@pytest.mark.parametrize("part", [slice(None), slice(7, 50)])
def test_corner_coordinates_are_told_by_the_transform(xy_coords, part):
    cube = make_cube()
    stacked = as_stackstac(cube, xy_coords).isel(x=part, y=part)
    ours, theirs = predict(stacked, "ndvi"), predict(cube.isel(x=part, y=part), "ndvi")
    assert np.array_equal(ours.x, theirs.x)
    assert np.array_equal(ours.y, theirs.y)
    assert np.array_equal(ours["ndvi"], theirs["ndvi"])
    assert ours.rio.crs.to_epsg() == 32631
    assert "spatial_ref" in ours.coords


@pytest.mark.parametrize("xy_coords", ["topleft", "center"])
@pytest.mark.parametrize("factor", [2, 3])
def test_means_of_pixels_keep_what_their_coordinates_are(xy_coords, factor):
    cube = make_cube(dtype="float32", size=60).drop_vars("clear").drop_attrs()
    coarse = as_stackstac(cube, xy_coords).coarsen(x=factor, y=factor).mean(keep_attrs=True)
    got = predict(coarse, build_model("ndvi", {"upscale": 1}))
    assert float(got.x[0]) == pytest.approx(400_000 + 5 * factor)
    assert float(got.y[0]) == pytest.approx(4_600_000 - 5 * factor)


def test_corners_are_told_by_a_geotransform_and_centres_by_their_own():
    cube = make_cube().rio.write_crs(25831).rio.write_transform()
    corners = cube.assign_coords(x=cube.x - 5, y=cube.y + 5)
    for placed in (cube, corners):
        got = predict(placed, build_model("ndvi", {"upscale": 1}))
        assert np.array_equal(got.x, cube.x)
        assert got.rio.crs.to_epsg() == 25831
        assert got.rio.transform() == Affine(10, 0, 400_000, 0, -10, 4_600_000)
