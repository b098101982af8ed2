"""Windows, blending, holes, and prediction on any cube."""

import dataclasses

import cloudpickle
import numpy as np
import pytest
import torch
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

import bigmap
from bigmap import grid
from bigmap.errors import ModelError, ScoresError
from bigmap.grid import Lattice
from bigmap.mapping.engine import CellData, Engine, prepare
from bigmap.mapping.windows import Windowing, _ramp
from bigmap.models import MapModel, build_model
from bigmap.models.layers import TYPICAL_STATISTICS
from bigmap.scenes.quality import DateRule


def make_cube(*, bands=("blue", "green", "red", "nir"), time=3, size=70, dtype="uint16", seed=0):
    rng = np.random.default_rng(seed)
    shape = (time, len(bands), size, size)
    dn = rng.integers(1100, 5000, shape).astype(np.uint16)
    x = 400_000 + 10 * (np.arange(size) + 0.5)
    y = 4_600_000 - 10 * (np.arange(size) + 0.5)
    coords = {
        "time": np.array(["2024-05-01", "2024-05-06", "2024-05-11"][:time], "datetime64[ns]"),
        "band": list(bands), "y": y, "x": x,
        "clear": (("time", "y", "x"), rng.random((time, size, size)) > 0.2),
    }  # fmt: skip
    cube = xr.DataArray(
        dn, dims=("time", "band", "y", "x"), coords=coords,
        attrs={"dn_scale": 1e-4, "dn_offset": -0.1, "nodata": 0},
    )  # fmt: skip
    if dtype == "uint16":
        return cube
    return (cube * 1e-4 - 0.1).astype(dtype)


def predict(cube, model, **settings):
    return bigmap.predict(cube, model, core_px=16, cell_px=32, **settings).compute(
        scheduler="synchronous"
    )


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


@pytest.mark.parametrize("model", ["ndvi", "small-conv"])
@pytest.mark.parametrize("overlap", ["trim", "blend"])
def test_windows_do_not_show(model, overlap):
    """Windows of 16 px give what one window over everything gives, away from the cube's edge."""
    cube = make_cube(size=64)
    built = build_model(model)
    small = bigmap.predict(cube, built, core_px=16, cell_px=64, overlap=overlap)
    large = bigmap.predict(cube, built, core_px=64, cell_px=64, overlap="trim")
    for layer in ("class", "confidence"):
        ours, theirs = (d[layer].compute(scheduler="synchronous").values for d in (small, large))
        assert (ours != theirs).mean() < 2e-4


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


@pytest.mark.parametrize("model", ["ndvi", "small-conv"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_pixel_spoils_no_window(model, bad):
    cube = make_cube(dtype="float32")
    cube["clear"] = xr.ones_like(cube.clear)
    spoilt = cube.copy(deep=True)
    spoilt.values[1, 2, 33, 35] = bad
    built = build_model(model)
    fine, holed = predict(cube, built), predict(spoilt, built)
    upscale, halo = built.spec.upscale, built.spec.halo_px
    far = np.ones(fine["class"].shape, bool)
    far[
        (33 - halo) * upscale : (34 + halo) * upscale, (35 - halo) * upscale : (36 + halo) * upscale
    ] = False
    for layer in ("class", "confidence"):
        assert np.array_equal(fine[layer].values[far], holed[layer].values[far])
        assert (holed[layer].values != 255).all()  # two other dates are there
    assert holed["observations"].values[33 * upscale, 35 * upscale] == 2


def test_a_pixel_that_is_bad_on_all_dates_is_nodata_alone():
    cube = make_cube(dtype="float32")
    cube["clear"] = xr.ones_like(cube.clear)
    cube.values[:, 2, 33, 35] = np.nan
    for model in ("ndvi", "small-conv"):
        upscale = build_model(model).spec.upscale
        missing = predict(cube, model)["class"].values == 255
        assert missing.sum() == upscale**2
        assert missing[33 * upscale, 35 * upscale]


def test_holes_take_the_mean_of_the_clear_dates():
    pixels = torch.tensor([0.1, 0.3, float("nan")]).reshape(1, 3, 1, 1, 1).repeat(1, 1, 2, 1, 1)
    clear = torch.tensor([True, True, False]).reshape(1, 3, 1, 1)
    filled = prepare(pixels, clear, empty=torch.zeros(2))
    assert filled[0, 2].flatten().tolist() == pytest.approx([0.2, 0.2])
    assert filled[0, 0, 0].item() == pytest.approx(0.1)


def test_a_pixel_that_is_clear_on_no_date_holds_what_the_model_saw_on_average():
    model = build_model("segnet", bands=("red", "nir"))
    pixels = torch.full((1, 2, 2, 1, 1), float("nan"))
    filled = prepare(pixels, torch.zeros(1, 2, 1, 1).bool(), empty=model.mean_reflectance)
    typical = [TYPICAL_STATISTICS["red"][0], TYPICAL_STATISTICS["nir"][0]]
    assert filled[0, :, :, 0, 0].tolist() == [pytest.approx(typical)] * 2
    rule = build_model("ndvi")
    assert rule.mean_reflectance.tolist() == [0, 0]


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


@settings(max_examples=40, deadline=None)
@given(
    core_px=st.sampled_from([8, 16, 64]), upscale=st.integers(1, 4), start=st.integers(-40, 40),
    size=st.integers(1, 100),
)  # fmt: skip
def test_weights_of_neighbours_sum_to_one(core_px, upscale, start, size):
    part = slice(start, start + size)
    blend_px = core_px // 8
    total = torch.zeros(size * upscale)
    for first in range((start // core_px - 1) * core_px, start + size + core_px, core_px):
        core = slice(first, first + core_px)
        reach = slice(max(start, first - blend_px), min(start + size, first + core_px + blend_px))
        if reach.stop > reach.start:
            place = slice((reach.start - start) * upscale, (reach.stop - start) * upscale)
            total[place] += _ramp(core, reach, blend_px, upscale)
    assert torch.equal(total, torch.ones_like(total)), part


def test_bfloat16_stays_near_float32():
    cube = make_cube()
    exact = predict(cube, "small-conv")
    rough = predict(cube, "small-conv", precision="bfloat16")
    seen = exact["class"].values != 255
    assert (exact["class"].values != rough["class"].values)[seen].mean() < 0.05


def test_only_what_is_wanted_is_read():
    model = build_model("ndvi", {"upscale": 1})
    lattice = Lattice("EPSG:25831", 10.0, 16, 32, 64, 1, 64, 64)
    engine = Engine(model, lattice, Windowing(), model.spec.layers)
    asked = []

    def read_cell(cell, window):
        asked.append((cell, window))
        shape = grid.shape_of(window)
        pixels = np.full((1, 2, *shape), 2000, np.uint16)
        return CellData(pixels, np.ones((1, *shape), bool))

    block = (slice(0, 64), slice(0, 64))
    wanted = (slice(0, 10), slice(0, 10))
    layers = engine.predict(
        block, read_cell, is_wanted=lambda roi: not grid.is_empty(grid.intersect(roi, wanted))
    )
    assert [cell for cell, _ in asked] == [(slice(0, 32), slice(0, 32))]
    assert asked[0][1] == (slice(0, 16), slice(0, 16))  # upscale 1 needs no halo
    assert (layers["ndvi"][:16, :16] == 0).all()
    assert (layers["ndvi"][16:] == -32768).all()


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


def test_windows_of_a_model_are_multiples_of_what_it_needs():
    lattice = Lattice("EPSG:25831", 10.0, 64, 64, 64, 1, 64, 64)
    spec = dataclasses.replace(build_model("small-conv").spec, halo_px=13, multiple_px=8)
    assert Windowing("trim").halo_px(spec, lattice) == 16
    assert Windowing("blend").halo_px(spec, lattice) == 24
    assert Windowing.for_model(spec).overlap == "trim"
    assert Windowing.for_model(dataclasses.replace(spec, kind="windowed")).overlap == "blend"


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


class NotFinite(MapModel):
    """Scores that hold one value which is not finite."""

    has_weights = False

    def __init__(self, kind, bad):
        super().__init__()
        ndvi = build_model("ndvi", {"upscale": 1})
        self.spec, self.ndvi, self.bad = dataclasses.replace(ndvi.spec, kind=kind), ndvi, bad

    def forward(self, reflectance, dates, clear):
        scores = dict(self.ndvi(reflectance, dates, clear))
        scores["probability"][0, 0, 3, 4] = self.bad
        return scores


@pytest.mark.parametrize("kind", ["exact", "windowed"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_fail_instead_of_becoming_a_class(kind, bad):
    with pytest.raises(ScoresError, match="the probability that ndvi gives is not finite in rows"):
        predict(make_cube(size=32), NotFinite(kind, bad))
