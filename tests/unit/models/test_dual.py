"""The dual network: counts, structure of all versions, windows, training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigmap.models import LEGENDS, build_model
from bigmap.models.layers import count_parameters
from bigmap.models.networks.dual import SIZES, VERSIONS, DualModel, DualNetwork
from tests.unit.models.functional_cases import Weights, unsettle
from tests.unit.models.segmentation_cases import (
    compare_windows,
    encode_classes,
    make_inputs,
    measure_shift,
    simulate_window,
    train,
)

BANDS = ("blue", "green", "red", "nir")
COUNTS = {"v1": 60_723_810, "v2": 60_723_954, "v3": 60_724_458, "v4": 60_938_050}


@pytest.mark.parametrize("version", list(VERSIONS))
def test_the_full_size_has_as_many_parameters_as_stated(version):
    with torch.device("meta"):
        assert count_parameters(DualModel(version=version)) == COUNTS[version]


def test_version_4_is_the_default():
    with torch.device("meta"):
        assert count_parameters(DualModel()) == COUNTS["v4"]


def shuffle_up(call, name, x):
    """PixelShuffle spelled out: channel 4 c + 2 i + j goes to row i and column j of channel c."""
    x = call.rectified(f"{name}.expand", x)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, channels // 4, 2 * height, 2 * width)


def decode(call, name, deep, quarter, half):
    for step in range(3):
        deep = shuffle_up(call, f"{name}.to_quarter.{step}", deep)
    x = torch.cat([deep, call.rectified(f"{name}.quarter_skip", quarter)], dim=1)
    x = shuffle_up(call, f"{name}.to_half", call.rectified(f"{name}.quarter_merge", x))
    x = torch.cat([x, call.rectified(f"{name}.half_skip", half)], dim=1)
    return shuffle_up(call, f"{name}.to_whole", call.rectified(f"{name}.half_merge", x))


def finish(call, name, x, joined):
    x = call.rectified(f"{name}.finish.0", call.rectified(f"{name}.head", x))
    fine = shuffle_up(call, f"{name}.finish.1", x)
    return call.plain(f"{name}.last", torch.cat([fine, *joined], dim=1), padding=1), fine


@pytest.mark.parametrize("version", list(VERSIONS))
def test_network_agrees_with_plain_functions(version):
    torch.manual_seed(0)
    network = unsettle(DualNetwork(4, 5, version, SIZES["small"]))
    image = torch.randn(2, 4, 64, 96, dtype=torch.float64)
    call = Weights(network.state_dict())
    with torch.inference_mode():
        found = network(image)
        half, quarter, *_, last = call.resnet(
            "encoder.", image, blocks=(2, 2, 2, 2), output_stride=32
        )
        deep = call.pyramid("pyramid", last, (3, 6, 9))
        bicubic = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        spread = {
            "v1": [],
            "v2": [],
            "v3": [bicubic],
            "v4": [call.plain("segmentation_head.spread", bicubic)] if version == "v4" else [],
        }[version]
        decoded = decode(call, "segmentation", deep, quarter, half)
        logits, seen = finish(call, "segmentation_head", decoded, spread)
        decoded = decode(call, "image", deep, quarter, half)
        joined = [] if version == "v1" else [bicubic]
        fine, image_seen = finish(call, "image_head", decoded, joined)
        expected = {
            "logits": logits,
            "image": fine,
            "segmentation_features": call.plain("match", seen),
            "image_features": image_seen,
        }
    assert set(found) == set(expected)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-8, atol=1e-8)
    assert found["segmentation_features"].shape == found["image_features"].shape
    assert logits.shape == (2, 5, 128, 192)


def test_version_4_spreads_the_image_over_16_filters_and_keeps_its_channels():
    shapes = {
        version: DualNetwork(4, 5, version, SIZES["small"]).segmentation_head.state_dict()
        for version in ("v3", "v4")
    }
    assert shapes["v3"]["last.weight"].shape == (5, 5 + 4, 3, 3)
    assert shapes["v4"]["last.weight"].shape == (5, 16 + 16, 3, 3)
    assert shapes["v4"]["spread.weight"].shape == (16, 4, 1, 1)


@pytest.mark.parametrize("image", [False, True])
def test_maps_have_the_image_where_it_is_asked_for(image):
    model = build_model("dual", {"size": "small", "image": image})
    called = []
    model.network.image.register_forward_hook(lambda *_: called.append(1))
    inputs = make_inputs(model, size=(40, 56), time=2)
    with torch.inference_mode():
        scores = model(*inputs)
        assert bool(called) == image
        outputs = model.compute(*inputs)
    assert [layer.name for layer in model.spec.extra_layers] == ["probability"] + ["image"] * image
    assert set(scores) == {layer.name for layer in model.spec.extra_layers}
    assert set(outputs) == {"logits", "image", "segmentation_features", "image_features"}
    assert outputs["image"].shape == (1, 4, 80, 112)
    torch.testing.assert_close(scores["probability"], outputs["logits"].softmax(dim=1))
    if image:
        assert torch.equal(scores["image"], outputs["image"])


def test_the_image_is_reflectance():
    torch.manual_seed(0)
    model = build_model("dual", {"size": "small"})
    torch.nn.init.zeros_(model.network.image_head.last.weight)
    torch.nn.init.zeros_(model.network.image_head.last.bias)
    with torch.inference_mode():
        image = model.compute(*make_inputs(model, size=(32, 32)))["image"]
    wanted = model.statistics.mean[:, None, None].expand_as(image[0])
    assert torch.equal(image[0], wanted)


def test_options_and_legends_are_followed():
    options = {"size": "small", "composite": "mean", "backbone": "resnet34", "version": "v2"}
    model = build_model("dual", options, bands=("red", "nir"), legend=LEGENDS["cropland"])
    assert count_parameters(model.network.encoder) > 600_000
    assert (model.spec.halo_px, model.spec.multiple_px) == (64, 32)
    assert build_model("dual", {"size": "small"}).spec.halo_px == 64 + 8
    outputs = model.train().compute(*make_inputs(model, size=(64, 96), time=3, batch=2))
    assert outputs["logits"].shape == (2, 1, 128, 192)
    assert outputs["image"].shape == (2, 2, 128, 192)


def test_a_window_does_not_depend_on_its_batch():
    model = build_model("dual", {"size": "small", "image": True})
    inputs = make_inputs(model, size=(64, 96), batch=5)
    with torch.inference_mode():
        whole = model(*inputs)
        for index in (0, 4):
            part = model(*(each[index : index + 1] for each in inputs))
            assert all(torch.equal(part[name][0], whole[name][index]) for name in whole)


@pytest.fixture(scope="module")
def trained():
    """Train the small size for a while, since random networks look at nothing far away."""
    torch.manual_seed(0)
    model = build_model("dual", {"size": "small", "composite": "mean"})
    reflectance, image, truth = simulate_window(
        upscale=2, side=256, bands=BANDS, layer="land_cover"
    )  # fmt: skip
    classes = encode_classes(truth, model.spec.legend)
    train(
        model, reflectance, classes, image=image, steps=30, chip=96, batch=2, rate=1e-2
    )  # fmt: skip
    return model, reflectance


@pytest.mark.training
def test_windows_agree_with_the_whole_within_the_tolerance(trained):
    model, reflectance = trained
    with_halo = compare_windows(model, reflectance, core=64, halo=model.spec.halo_px)
    without = compare_windows(model, reflectance, core=64, halo=0)
    assert len(with_halo) == 4
    assert max(with_halo) < model.spec.tolerance
    assert sum(with_halo) / 4 < sum(without) / len(without)


@pytest.mark.training
def test_windows_that_start_at_multiples_line_up(trained):
    model, reflectance = trained
    steps = (model.spec.multiple_px, 16)
    aligned, _ = measure_shift(model, reflectance, size=192, steps=steps)
    assert aligned < model.spec.tolerance


@pytest.mark.training
def test_the_small_size_learns_one_window_by_heart():
    torch.manual_seed(0)
    model = build_model("dual", {"size": "small"})
    reflectance, image, truth = simulate_window(
        upscale=2, side=256, bands=BANDS, layer="land_cover"
    )  # fmt: skip
    reflectance = reflectance[..., 32:96, 32:96]
    image, truth = image[..., 64:192, 64:192], truth[..., 64:192, 64:192]
    classes = encode_classes(truth, model.spec.legend)
    losses = train(
        model, reflectance, classes, image=image, steps=120, chip=64, batch=1, rate=1e-2
    )  # fmt: skip
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size 'tiny' is unknown; there are full, small"),
        ({"version": "v5"}, "version 'v5' is unknown; there are v1, v2, v3, v4"),
        ({"backbone": "vgg"}, "backbone 'vgg' is unknown; there are auto, resnet18"),
        ({"composite": "best"}, "composite 'best' is unknown"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DualModel(**options)
