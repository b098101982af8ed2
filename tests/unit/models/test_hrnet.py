"""HRNet: counts, structure, reach, windows, training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bigmap.models import LEGENDS, build_model
from bigmap.models.layers import count_parameters
from bigmap.models.networks.hrnet import SIZES, HRNet, HrnetModel, HRNetSize
from tests.unit.models.functional_cases import Weights, unsettle
from tests.unit.models.segmentation_cases import (
    compare_windows,
    make_inputs,
    measure_shift,
    simulate_window,
    train,
)

RGB = ("red", "green", "blue")
RADIUS_PX = 357


@pytest.mark.parametrize(("ocr", "count"), [(False, 9_635_971), (True, 12_066_195)])
def test_the_full_size_has_as_many_parameters_as_stated(ocr, count):
    with torch.device("meta"):
        assert count_parameters(HrnetModel(ocr=ocr)) == count


def enlarge(x, factor):
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def run_features(call, image):
    """Run the small size: two blocks per branch, one module per stage."""
    x = call.rectified("conv2", call.rectified("conv1", image))
    for index in range(2):
        x = call.residual(f"layer1.{index}", x)
    branches, lowest = [call.rectified("transition1", x)], x
    for stage in range(3):
        branches.append(call.rectified(f"stages.{stage}.open", lowest, stride=2))
        name = f"stages.{stage}.body.0"
        for branch in range(stage + 2):
            for index in range(2):
                branches[branch] = call.residual(
                    f"{name}.branches.{branch}.{index}", branches[branch]
                )  # fmt: skip
        branches = [
            exchange(call, f"{name}.exchange.paths.{target}", branches, target)
            for target in range(stage + 2)
        ]
        lowest = branches[-1]
    return torch.cat([branches[0], *(enlarge(branches[k], 2**k) for k in (1, 2, 3))], dim=1)


def exchange(call, name, branches, target):
    total = branches[target]
    for source, branch in enumerate(branches):
        x = branch
        if source > target:
            total = total + enlarge(call.norm(f"{name}.{source}", x), 2 ** (source - target))
        for step in range(target - source):
            is_last = step == target - source - 1
            layer = f"{name}.{source}.{step}"
            x = (call.norm if is_last else call.rectified)(layer, x, stride=2)
        if source < target:
            total = total + x
    return total.clamp(min=0)


def attend(call, features):
    rough = call.plain("rough.1", call.rectified("rough.0", features))
    pixels = call.rectified("pixels", features)
    shares = torch.exp(rough) / torch.exp(rough).sum(dim=(2, 3), keepdim=True)
    objects = torch.einsum("bkyx,bcyx->bck", shares, pixels)[..., None]
    query = call.rectified("query.1", call.rectified("query.0", pixels))
    key = call.rectified("key.1", call.rectified("key.0", objects))[..., 0]
    scores = torch.einsum("bcyx,bck->bkyx", query, key) / query.shape[1] ** 0.5
    weights = scores.softmax(dim=1)
    context = torch.einsum("bkyx,bck->bcyx", weights, call.rectified("value", objects)[..., 0])
    joined = torch.cat([call.rectified("found", context), pixels], dim=1)
    return call.rectified("join", joined), rough


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("ocr", [False, True])
def test_network_agrees_with_plain_functions(ocr, classes):
    torch.manual_seed(0)
    network = unsettle(HRNet(7, classes, SIZES["small"], ocr=ocr))
    image = torch.randn(2, 7, 32, 48, dtype=torch.float64)

    def part(name):
        return Weights(network.get_submodule(name).state_dict())

    with torch.inference_mode():
        found = network(image)
        features = run_features(part("features"), image)
        if ocr:
            features, rough = attend(part("context"), features)
            expected = Weights(network.state_dict()).plain("classify.0", features)
            if classes == 2:
                rough = rough[:, 1:] - rough[:, :1]
            torch.testing.assert_close(found["auxiliary_logits"], rough, rtol=1e-8, atol=1e-8)
        else:
            call = Weights(network.state_dict())
            expected = call.plain("classify.1", call.rectified("classify.0", features))
    assert found["logits"].shape == (2, 1 if classes == 2 else classes, 32, 48)
    torch.testing.assert_close(found["logits"], expected, rtol=1e-8, atol=1e-8)
    assert set(found) == ({"logits", "auxiliary_logits"} if ocr else {"logits"})


def test_the_full_size_reaches_as_far_as_stated():
    """Measure the reach of the full depth, with one channel each and weights that never cancel."""
    size = HRNetSize((1, 1, 1, 1), stem=1)
    network = HRNet(1, 2, size).double().eval()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    # A strip is enough, as kernels are square; eight places have all phases of the strides.
    image = torch.ones(1, 1, 800, 8, dtype=torch.float64, requires_grad=True)
    network(image)["logits"][0, 0, 400:408, 4].sum().backward()
    touched = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert max(400 - touched.min().item(), touched.max().item() - 407) == RADIUS_PX


def test_options_and_legends_are_followed():
    model = build_model(
        "hrnet",
        {"size": "small", "composite": "median", "upscale": 3, "ocr": True},
        bands=("nir", "red"),
        legend=LEGENDS["s2glc"],
    )
    inputs = make_inputs(model, size=(13, 18), time=4, batch=2)
    with torch.inference_mode():
        outputs = model.compute(*inputs)
    assert outputs["logits"].shape == outputs["auxiliary_logits"].shape == (2, 14, 39, 54)
    assert model.spec.multiple_px == 8
    assert model.spec.halo_px == 32 + 2
    other = build_model("hrnet", {"size": "small"})
    assert (other.spec.multiple_px, other.spec.halo_px) == (4, 48 + 2 + 8)


@pytest.mark.parametrize("ocr", [False, True])
def test_a_window_does_not_depend_on_its_batch(ocr):
    model = build_model("hrnet", {"size": "small", "ocr": ocr})
    inputs = make_inputs(model, size=(16, 24), batch=5)
    with torch.inference_mode():
        whole = model(*inputs)["probability"]
        for index in (0, 4):
            part = model(*(each[index : index + 1] for each in inputs))["probability"]
            assert torch.equal(part[0], whole[index])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "ocr"])
def trained(request):
    """Train the small size to map cropland, whose extent asks for more context than buildings."""
    torch.manual_seed(0)
    options = {"size": "small", "ocr": request.param}
    model = build_model("hrnet", options, bands=RGB, legend=LEGENDS["cropland"])
    reflectance, _, truth = simulate_window(upscale=2, side=192, bands=RGB, layer="cropland")
    train(model, reflectance, truth, steps=30, chip=64, batch=2, rate=3e-3)
    return model, reflectance


@pytest.mark.training
def test_windows_agree_with_the_whole_within_the_tolerance(trained):
    model, reflectance = trained
    halo = -(-model.spec.halo_px // model.spec.multiple_px) * model.spec.multiple_px
    with_halo = compare_windows(model, reflectance, core=32, halo=halo)
    without = compare_windows(model, reflectance, core=32, halo=0)
    assert len(with_halo) >= 1
    assert max(with_halo) < model.spec.tolerance
    assert max(with_halo) < max(without)


@pytest.mark.training
def test_windows_that_start_at_multiples_line_up(trained):
    model, reflectance = trained
    aligned, other = measure_shift(model, reflectance, size=128, steps=(model.spec.multiple_px, 2))
    assert aligned < model.spec.tolerance
    # With object context a window also depends on all that it sees, by more than on its start.
    assert aligned < other or model.options["ocr"]


@pytest.mark.training
@pytest.mark.parametrize("ocr", [False, True])
def test_the_small_size_learns_one_window_by_heart(ocr):
    torch.manual_seed(0)
    model = build_model("hrnet", {"size": "small", "ocr": ocr}, legend=LEGENDS["cropland"])
    reflectance, _, truth = simulate_window(upscale=2, side=192, bands=RGB, layer="cropland")
    reflectance, truth = reflectance[..., 20:36, 20:36], truth[..., 40:72, 40:72]
    losses = train(model, reflectance, truth, steps=80, chip=16, batch=2, rate=2e-2)
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size 'tiny' is unknown; there are full, small"),
        ({"upscale": 0}, "upscale 0 is not between 1 and 8"),
        ({"composite": "best"}, "composite 'best' is unknown"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HrnetModel(**options)
