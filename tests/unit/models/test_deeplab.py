"""DeepLabV3+: counts, structure, windows, training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigmap.models import LEGENDS, build_model
from bigmap.models.layers import count_parameters
from bigmap.models.networks.deeplab import SIZES, DeepLabModel, DeepLabV3Plus
from tests.unit.models.functional_cases import Weights, unsettle
from tests.unit.models.segmentation_cases import (
    clear_inputs,
    compare_windows,
    make_inputs,
    measure_mcc,
    measure_shift,
    simulate_window,
    train,
)

BANDS = ("blue", "green", "red", "nir")


@pytest.mark.parametrize(
    ("backbone", "count"),
    [("resnet18", 16_631_009), ("resnet34", 26_739_169), ("resnet101", 59_367_137)],
)
def test_the_full_size_has_as_many_parameters_as_stated(backbone, count):
    with torch.device("meta"):
        assert count_parameters(DeepLabModel(backbone=backbone)) == count


def test_the_full_size_is_on_resnet101_by_default():
    with torch.device("meta"):
        assert count_parameters(DeepLabModel()) == 59_367_137


def test_network_agrees_with_plain_functions():
    torch.manual_seed(0)
    network = unsettle(DeepLabV3Plus(4, 3, SIZES["small"]))
    image = torch.randn(2, 4, 64, 96, dtype=torch.float64)
    call = Weights(network.state_dict())
    with torch.inference_mode():
        _, quarter, *_, last = call.resnet(
            "encoder.", image, blocks=(2, 2, 2, 2), output_stride=16
        )  # fmt: skip
        deep = call.pyramid("pyramid", last, (6, 12, 18))
        deep = F.interpolate(deep, scale_factor=4, mode="bilinear", align_corners=False)
        x = torch.cat([deep, call.rectified("low_level", quarter)], dim=1)
        x = call.rectified("decoder.1", call.rectified("decoder.0", x))
        logits = call.plain("classify", x)
        expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        found = network(image)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_dates_become_the_mean_of_the_clear_ones():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus", {"size": "small", "upscale": 2}, bands=BANDS)
    reflectance, dates, clear = make_inputs(model, size=(24, 40), time=3)
    clear[:, 2] = False
    with torch.inference_mode():
        found = model.compute(reflectance, dates, clear)["logits"]
        mean = reflectance[:, :2].mean(dim=1)
        image = (mean - model.statistics.mean[:, None, None]) / model.statistics.std[:, None, None]
        fine = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        expected = model.network(fine)
    assert found.shape == (1, 1, 48, 80)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("composite", ["mean", "median", "clearest"])
def test_options_and_legends_are_followed(composite):
    model = build_model(
        "deeplabv3plus",
        {"size": "small", "composite": composite, "upscale": 3, "backbone": "resnet34"},
        bands=("red", "nir"),
        legend=LEGENDS["s2glc"],
    )
    assert count_parameters(model.network.encoder) > 600_000
    inputs = make_inputs(model, size=(21, 30), time=4, batch=2)
    inputs[2][:, :, :, ::3] = False
    with torch.inference_mode():
        probability = model(*inputs)["probability"]
    assert probability.shape == (2, 14, 63, 90)
    assert model.spec.multiple_px == 16
    assert model.spec.halo_px == 86 + 2 + (8 if composite == "clearest" else 0)


def test_a_window_does_not_depend_on_its_batch():
    model = build_model("deeplabv3plus", {"size": "small"}, bands=BANDS)
    inputs = make_inputs(model, size=(32, 32), batch=5)
    with torch.inference_mode():
        whole = model(*inputs)["probability"]
        for index in (0, 4):
            part = model(*(each[index : index + 1] for each in inputs))["probability"]
            assert torch.equal(part[0], whole[index])


@pytest.fixture(scope="module")
def trained():
    """Train the small size on chips of 640 m, since random networks look at nothing far away."""
    torch.manual_seed(0)
    model = build_model("deeplabv3plus", {"size": "small"}, bands=BANDS)
    reflectance, _, truth = simulate_window(upscale=4, side=208, bands=BANDS, layer="cropland")
    train(model, reflectance, truth, steps=40, chip=64, batch=2, rate=1e-2)
    return model, reflectance, truth


@pytest.mark.training
def test_windows_agree_with_the_whole_within_the_tolerance(trained):
    model, reflectance, truth = trained
    with torch.inference_mode():
        probability = model(*clear_inputs(reflectance))["probability"]
    assert measure_mcc(probability, truth) > 0.3
    halo = -(-model.spec.halo_px // model.spec.multiple_px) * model.spec.multiple_px
    with_halo = compare_windows(model, reflectance, core=32, halo=halo)
    without = compare_windows(model, reflectance, core=32, halo=0)
    assert len(with_halo) >= 1
    assert max(with_halo) < model.spec.tolerance < max(without)


@pytest.mark.training
def test_windows_that_start_at_multiples_line_up(trained):
    model, reflectance, _ = trained
    # How much more the others differ depends on what the network has learnt, and so on rounding.
    aligned, _ = measure_shift(model, reflectance, size=128, steps=(model.spec.multiple_px, 2))
    assert aligned < model.spec.tolerance


@pytest.mark.training
def test_the_small_size_learns_one_window_by_heart():
    torch.manual_seed(0)
    model = build_model("deeplabv3plus", {"size": "small"}, bands=BANDS)
    reflectance, _, truth = simulate_window(upscale=4, side=208, bands=BANDS, layer="cropland")
    reflectance, truth = reflectance[..., 20:52, 20:52], truth[..., 80:208, 80:208]
    losses = train(model, reflectance, truth, steps=120, chip=32, batch=2, rate=1e-2)
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size 'tiny' is unknown; there are full, small"),
        ({"backbone": "resnet50"}, "backbone 'resnet50' is unknown; there are auto, resnet18"),
        ({"upscale": 9}, "upscale 9 is not between 1 and 8"),
        ({"composite": "best"}, "composite 'best' is unknown"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeepLabModel(**options)


def test_a_legend_of_one_class_is_refused():
    with pytest.raises(ValueError, match="legend has fewer than two classes"):
        DeepLabModel(size="small", legend=LEGENDS["cropland"][:1])
