"""The two models: formulas, contract, registry and weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bigmap.errors import ModelError
from bigmap.models import build_model, list_models, save_weights
from bigmap.models.layers import upsample_bicubic
from bigmap.models.ndvi import average_ndvi, fill_holes


def make_input(model, *, time=3, size=24, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bands = len(model.spec.bands)
    reflectance = torch.rand(batch, time, bands, size, size, generator=generator) * 0.5
    dates = torch.ones(batch, time, dtype=torch.bool)
    clear = torch.rand(batch, time, size, size, generator=generator) > 0.2
    return reflectance, dates, clear


def run(model, *inputs):
    with torch.inference_mode():
        return model(*inputs)


@pytest.mark.parametrize("name", list(list_models()))
def test_scores_have_the_declared_shape(name):
    model = build_model(name)
    scores = run(model, *make_input(model))
    fine = 24 * model.spec.upscale
    wanted = {layer.name for layer in model.spec.extra_layers} | {"probability"}
    assert set(scores) == wanted
    for values in scores.values():
        assert values.shape[-2:] == (fine, fine)
        assert values.isfinite().all()
    total = scores["probability"].sum(dim=1)
    assert torch.allclose(total, torch.ones_like(total))


@pytest.mark.parametrize("name", list(list_models()))
def test_padded_dates_change_nothing(name):
    model = build_model(name)
    reflectance, dates, clear = make_input(model)
    padding = torch.full((2, 2, *reflectance.shape[2:]), 7.0)
    padded = run(
        model,
        torch.cat([reflectance, padding], dim=1),
        torch.cat([dates, torch.zeros(2, 2, dtype=torch.bool)], dim=1),
        torch.cat([clear, torch.zeros(2, 2, 24, 24, dtype=torch.bool)], dim=1),
    )
    for layer, values in run(model, reflectance, dates, clear).items():
        assert torch.equal(padded[layer], values)


@pytest.mark.parametrize("name", list(list_models()))
def test_an_exact_model_sees_no_farther_than_its_halo(name):
    model = build_model(name)
    if model.spec.kind != "exact":
        pytest.skip(f"{name} is not exact")
    reflectance, dates, clear = make_input(model, batch=1, size=48)
    clear[:] = True
    reflectance.requires_grad_()
    centre = 24 * model.spec.upscale
    model(reflectance, dates, clear)["probability"][0, 0, centre, centre].backward()
    touched = reflectance.grad.abs().sum(dim=(0, 1, 2)).nonzero()
    reach = (touched - 24).abs().max().item()
    assert 0 < reach <= model.spec.halo_px


def test_mean_ndvi_is_over_clear_dates_only():
    red = torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1)
    nir = torch.tensor([0.3, 0.2, 0.9]).reshape(1, 3, 1, 1)
    clear = torch.tensor([True, False, True]).reshape(1, 3, 1, 1)
    mean, observed = average_ndvi(red, nir, clear)
    assert mean.item() == pytest.approx((0.5 + 0.5) / 2)
    assert observed.item()
    mean, observed = average_ndvi(red, nir, torch.zeros_like(clear))
    assert mean.item() == 0
    assert not observed.item()


def test_negative_reflectance_gives_no_ndvi_beyond_one():
    mean, _ = average_ndvi(
        torch.tensor(-0.05).reshape(1, 1, 1, 1),
        torch.tensor(0.02).reshape(1, 1, 1, 1),
        torch.ones(1, 1, 1, 1, dtype=torch.bool),
    )
    assert mean.item() == 1.0


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
def test_bicubic_equals_torch(upscale):
    values = torch.rand(2, 13, 17, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(
        values[:, None], scale_factor=upscale, mode="bicubic", align_corners=False
    )[:, 0]
    assert torch.allclose(upsample_bicubic(values, upscale), expected, atol=1e-5)


@pytest.mark.parametrize("upscale", [3, 4])
def test_bicubic_does_not_depend_on_the_window(upscale):
    values = torch.rand(1, 40, 40, generator=torch.Generator().manual_seed(2))
    whole = upsample_bicubic(values, upscale)
    part = upsample_bicubic(values[:, 7:31, 5:36], upscale)
    margin = 2 * upscale
    inner = whole[:, 7 * upscale : 31 * upscale, 5 * upscale : 36 * upscale]
    assert torch.equal(
        part[:, margin:-margin, margin:-margin], inner[:, margin:-margin, margin:-margin]
    )


def test_a_hole_does_not_reach_its_neighbours():
    model = build_model("ndvi", {"upscale": 4})
    reflectance, dates, clear = make_input(model, batch=1)
    clear[:] = True
    reflectance[:] = reflectance[..., :1, :1]  # a flat field: any leak shows
    flat = run(model, reflectance, dates, clear)["ndvi"]
    clear[..., 10:13, 10:13] = False
    spoilt = reflectance.clone()
    spoilt[..., 10:13, 10:13] = 0
    holed = run(model, spoilt, dates, clear)["ndvi"]
    outside = torch.ones_like(flat, dtype=torch.bool)
    outside[..., 40:52, 40:52] = False
    assert torch.allclose(flat[outside], holed[outside], atol=1e-6)


def test_holes_take_the_mean_of_known_neighbours():
    values = torch.arange(25.0).reshape(1, 5, 5)
    known = torch.ones(1, 5, 5, dtype=torch.bool)
    known[0, 2, 2] = False
    filled = fill_holes(values, known)
    assert filled[0, 2, 2].item() == pytest.approx((300 - 12) / 24)
    assert torch.equal(filled[known], values[known])
    assert not fill_holes(values, torch.zeros_like(known)).any()


def test_class_is_cropland_exactly_above_the_threshold():
    model = build_model("ndvi", {"threshold": 0.5, "upscale": 1})
    red = torch.tensor([[0.1, 0.1, 0.1]])
    nir = torch.tensor([[0.29, 0.299, 0.301]])
    reflectance = torch.stack([red, nir])[None, None]
    scores = run(model, reflectance, torch.ones(1, 1).bool(), torch.ones(1, 1, 1, 3).bool())
    assert (scores["probability"][0, 1, 0] > 0.5).tolist() == [False, False, True]


def test_small_conv_is_the_same_for_the_same_seed():
    first, second = build_model("small-conv"), build_model("small-conv")
    other = build_model("small-conv", {"seed": 1})
    inputs = make_input(first)
    assert torch.equal(run(first, *inputs)["probability"], run(second, *inputs)["probability"])
    assert not torch.equal(run(first, *inputs)["probability"], run(other, *inputs)["probability"])


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_window_does_not_depend_on_its_batch(batch):
    model = build_model("small-conv", {"width": 16})
    reflectance, dates, clear = make_input(model, batch=8, size=40)
    whole = run(model, reflectance, dates, clear)["probability"]
    part = run(model, reflectance[:batch], dates[:batch], clear[:batch])["probability"]
    assert torch.equal(whole[:batch], part)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nvdi", {}, "unknown; there are ndvi, small-conv"),
        ("ndvi", {"treshold": 0.3}, "model.options.treshold is unknown to ndvi; it has threshold"),
        ("ndvi", {"threshold": 3.0}, "threshold 3.0 is not an NDVI"),
        ("small-conv", {"width": 0}, "width 1 to 256"),
    ],
)
def test_wrong_models_and_options_are_named(name, options, message):
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        build_model(name, options)


def test_weights_come_back_and_belong_to_their_model(tmp_path):
    file = tmp_path / "weights.safetensors"
    trained = build_model("small-conv", {"seed": 5})
    save_weights(trained, file)
    inputs = make_input(trained)
    loaded = build_model("small-conv", {"seed": 0}, weights=str(file))
    assert torch.equal(run(trained, *inputs)["probability"], run(loaded, *inputs)["probability"])
    with pytest.raises(ModelError, match="upscale 2, but the recipe's model has 4"):
        build_model("small-conv", {"upscale": 4}, weights=str(file))
    with pytest.raises(ModelError, match="does not fit small-conv"):
        build_model("small-conv", {"width": 9}, weights=str(file))
    with pytest.raises(ModelError, match="ndvi has no weights"):
        build_model("ndvi", weights=str(file))
    trained.spec = type(trained.spec)(
        **{**vars(trained.spec), "bands": ("red", "green", "blue", "nir")}
    )
    save_weights(trained, file)
    with pytest.raises(ModelError, match="is for bands"):
        build_model("small-conv", weights=str(file))
    file.write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(ModelError, match="not a safetensors file"):
        build_model("small-conv", weights=str(file))
