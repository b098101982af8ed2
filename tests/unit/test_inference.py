"""Windows, blending, holes, and prediction on any cube."""

import dataclasses

import cloudpickle
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import bigmap
from bigmap import grid
from bigmap.errors import ModelError
from bigmap.grid import Lattice
from bigmap.inference import CellData, Engine, Windowing, _ramp, prepare
from bigmap.models import build_model
from bigmap.models.layers import TYPICAL_STATISTICS
from bigmap.quality import DateRule


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
        (lambda cube: cube.sel(band=["red", "green"]), "needs the band blue"),
        (lambda cube: cube.assign_attrs(dn_offset=0.0), "dn_offset=-0.1"),
        (lambda cube: cube.astype("int32"), "give uint16 DN or float reflectance"),
    ],
)
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
