"""What the engine reads, and what it puts in the place of holes."""

import numpy as np
import pytest
import torch
import xarray as xr

from bigmap import grid
from bigmap.grid import Lattice
from bigmap.mapping.engine import CellData, Engine, limit_threads, optimise, prepare
from bigmap.mapping.windows import Windowing
from bigmap.models import build_model
from bigmap.models.layers import TYPICAL_STATISTICS
from tests.unit.mapping.cubes import make_cube, predict


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


def test_bfloat16_stays_near_float32():
    cube = make_cube()
    exact = predict(cube, "small-conv")
    rough = predict(cube, "small-conv", precision="bfloat16")
    seen = exact["class"].values != 255
    assert (exact["class"].values != rough["class"].values)[seen].mean() < 0.05


@pytest.mark.parametrize("name", ["spinet", "dual"])
def test_workers_with_one_core_compute_as_others_do(name):
    model = optimise(build_model(name, {"size": "small"}))
    windows = torch.rand(1, 2, len(model.spec.bands), 96, 96)
    seen = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, 96, 96, dtype=torch.bool)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            limit_threads(threads)
            with torch.inference_mode():
                found.append(model(windows, *seen)["probability"])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
