"""SRResNet: formulas, halo, exactness, learning."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.errors import ModelError
from bigmap.models import build_model
from bigmap.models.layers import count_parameters, fold_norms
from bigmap.models.networks.composites import compose
from bigmap.models.networks.srresnet import SRResNet, SrresnetModel
from tests.unit.models.image_cases import (
    differing_windows,
    make_dates,
    measure_reach,
    overfit,
    simulate_window,
)


def build(seed=0, **options):
    torch.manual_seed(seed)
    model = SrresnetModel(**({"size": "small"} | options)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def test_the_number_of_parameters_is_that_of_the_layers():
    wide = 64 * 64 * 9 + 64
    block = 2 * (wide + 128) + 1
    wanted = (3 * 64 * 81 + 64) + 1 + 5 * block + wide + 128
    wanted += (64 * 256 * 9 + 256) + 1 + (64 * 3 * 81 + 3)
    with torch.device("meta"):
        assert count_parameters(SRResNet(3)) == wanted == 586_506
        assert count_parameters(SRResNet(3, upscale=4)) == wanted + 64 * 256 * 9 + 256 + 1


@pytest.mark.parametrize("upscale", [2, 4])
def test_the_network_computes_the_papers_formulas(upscale):
    model = build(upscale=upscale)
    state = model.network.state_dict()

    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def conv_norm(name, x):
        norm = [state[f"{name}.norm.{k}"] for k in ("running_mean", "running_var", "weight")]
        return F.batch_norm(conv(f"{name}.conv", x), *norm, state[f"{name}.norm.bias"])

    image = torch.randn(2, 3, 14, 19)
    with torch.no_grad():
        first = x = F.prelu(conv("first.0", image), state["first.1.weight"])
        for block in (0, 1):
            body = f"blocks.{block}.body"
            inner = F.prelu(conv_norm(f"{body}.0", x), state[f"{body}.1.weight"])
            x = x + conv_norm(f"{body}.2", inner)
        x = first + conv_norm("blocks.2", x)
        for step in range(upscale // 2):
            x = F.pixel_shuffle(conv(f"upsampling.{3 * step}", x), 2)
            x = F.prelu(x, state[f"upsampling.{3 * step + 2}.weight"])
        torch.testing.assert_close(model.network(image), conv("last", x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "halo"),
    [({}, 12), ({"upscale": 4}, 12), ({"size": "full"}, 18), ({"composite": "clearest"}, 20)],
)
def test_the_halo_covers_the_reach_of_the_gradient(options, halo):
    model = build(**options)
    assert model.spec.halo_px == halo
    reach = measure_reach(model, time=2, side=45)
    # What clearest counts further out has no gradient.
    assert reach == halo - (8 if options.get("composite") == "clearest" else 0)


@pytest.mark.parametrize("composite", ["median", "mean", "clearest"])
@pytest.mark.parametrize("upscale", [2, 4])
def test_windows_equal_the_whole_image_to_the_bit(upscale, composite):
    model = build(upscale=upscale, composite=composite)
    fold_norms(model)
    reflectance, dates, clear = make_dates(time=3, size=(96, 101))
    clear = torch.rand(clear.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    inputs = (reflectance, dates, clear)
    origins = [(0, 0), (5, 11), (17, 3)]
    assert differing_windows(model, inputs, core=27, origins=origins) == []


def test_the_image_is_made_of_the_composite_alone():
    model = build(composite="mean")
    reflectance, dates, clear = make_dates(time=3)
    clear[:, 1] = False
    mean = compose(reflectance, dates, clear, "mean")
    torch.testing.assert_close(mean, (reflectance[:, 0] + reflectance[:, 2]) / 2)
    with torch.inference_mode():
        found = model(reflectance, dates, clear)["image"]
        alone = model(mean[:, None], dates[:, :1], clear[:, :1])["image"]
    assert torch.equal(found, alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size 'tiny' is not full or small"),
        ({"upscale": 3}, "upscale 3 is not 2 or 4"),
        ({"composite": "best"}, "composite 'best' is unknown"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("srresnet", options)


@pytest.mark.training
def test_the_small_model_learns_a_window():
    model = build()
    window = simulate_window(upscale=2, dates=3, side=16)
    first, last = overfit(model, *window, steps=120, rate=5e-3)
    assert last < first / 20
