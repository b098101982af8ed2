"""SPInet: its formulas, its two heads, dates in any order and number, and how far it sees."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.models import build_model
from bigmap.models.base import ClassEntry
from bigmap.models.layers import count_parameters
from bigmap.models.networks.spinet import SPInet, SpinetModel
from bigmap.models.networks.temporal import PackedDates
from tests.unit.models.simulated_window import make_window
from tests.unit.models.test_piunet import all_valid, disturb, hold_constant, normalise


def make_model(**options):
    torch.manual_seed(0)
    model = SpinetModel(**{"size": "small", "bands": ("red", "nir")} | options).eval()
    disturb(model.network)
    return model


def compute(model, reflectance, dates):
    with torch.inference_mode():
        return model.compute(reflectance, dates, dates[:, :, None, None])["logits"]


def test_full_size_is_the_paper_s():
    with torch.device("meta"):
        model, ablation = SpinetModel(), SpinetModel(fusion=False)
    network = model.network
    assert network.backbone.first.convolution.conv.weight.shape == (48, 12, 3, 3)
    assert len(network.backbone.units) == 16
    assert network.backbone.units[0].gate.squeeze.out_features == 6
    assert network.enlarge.out_channels == 48 * 16
    assert model.spec.upscale == 4
    assert [entry.name for entry in model.spec.legend] == ["other", "cropland"]
    assert (model.spec.halo_px, ablation.spec.halo_px) == (43, 38)
    # By hand: conv 9 c c' + c', norm 2 c, attention 4 c c + 4 c, linear c c' + c'.
    attention, conv, norm = 4 * 48 * 48 + 4 * 48, 9 * 48 * 48 + 48, 2 * 48
    block = conv + attention + 2 * norm
    gate = 48 * 6 + 6 + 6 * 48 + 48
    first = block + 9 * 48 * (12 - 48)
    backbone = first + 16 * (2 * block + gate) + block + block + 48 * 25 + 25
    enlarge = 9 * 48 * 768 + 768
    fusion = 4 * (conv + norm) + 4 * (9 * 192 * 48 + 48 + norm) + 193
    assert count_parameters(network) == backbone + enlarge + fusion
    # The ablation's head has as many weights as the fusion.
    assert count_parameters(ablation.network.head) == fusion == 416_065


def convolve(state, name, h, act, stride=1):
    h = F.conv2d(h, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], stride, padding=1)
    return act(normalise(state, f"{name}.norm", h))


@pytest.mark.parametrize("fusion", [True, False])
def test_heads_equal_their_formulas(fusion):
    network = make_model(fusion=fusion).network
    state = network.state_dict()
    images = torch.rand(3, 2, 12, 10)
    packed = PackedDates.of(all_valid(1, 3))
    with torch.inference_mode():
        features = network.backbone(images, packed)
        found = network(images, packed)
        weight, bias = state["enlarge.weight"], state["enlarge.bias"]
        h = F.pixel_shuffle(F.conv2d(features, weight, bias, padding=1), 4)
        if fusion:
            branches = []
            for i in range(4):
                h = convolve(state, f"head.branches.{i}", h, F.leaky_relu, 1 if i == 0 else 2)
                branches.append(h)
            mixed = [
                convolve(state, f"head.mixers.{i}", resize_all(branches, b.shape), F.leaky_relu)
                for i, b in enumerate(branches)
            ]
            h = resize_all(mixed, mixed[0].shape)
        else:
            h = convolve(state, "head.first", h, F.relu)
            h = convolve(state, "head.second", h, F.relu)
        wanted = F.conv2d(h, state["head.project.weight"], state["head.project.bias"])
    assert wanted.shape == (1, 1, 48, 40)
    assert wanted.std() > 0.01
    assert (found - wanted).abs().max() < 1e-5


def resize_all(branches, shape):
    """Join branches at one scale: averages of pixels going down, bilinear going up."""
    sizes = shape[-2:]
    resized = [
        F.adaptive_avg_pool2d(b, sizes)
        if b.shape[-1] > sizes[1]
        else F.interpolate(b, size=sizes, mode="bilinear", align_corners=False)
        for b in branches
    ]
    return torch.cat(resized, dim=1)


def test_the_gate_weighs_channels_by_their_mean_and_filters_register():
    """Two parts that look at the whole window, against their formulas."""
    network = make_model().network
    packed = PackedDates.of(all_valid(2, 3))
    features = torch.randn(6, 16, 7, 9)
    gate = network.backbone.units[0].gate
    mean = features.unflatten(0, (2, 3)).mean((1, 3, 4))
    tern = network.backbone.registration
    with torch.no_grad():
        wanted = torch.sigmoid(gate.excite(F.leaky_relu(gate.squeeze(mean))))
        assert torch.allclose(gate(features, packed), wanted, atol=1e-6)
        filters = tern.estimator(features, packed)
        registered = tern(features, packed)
        by_hand = [
            F.conv2d(f[:, None], k[None, None], padding=2)[:, 0]
            for f, k in zip(features, filters, strict=True)
        ]
    assert filters.shape == (6, 5, 5)
    means = torch.stack(by_hand).unflatten(0, (2, 3)).mean(1)
    assert torch.allclose(registered, means, atol=1e-5)


def test_order_number_and_padding_of_dates():
    model = make_model()
    reflectance, dates = torch.rand(3, 5, 2, 12, 10) * 0.4, all_valid(3, 5)
    dates[0, 3:] = False
    dates[1, :4] = False
    spoilt = reflectance.clone()
    spoilt[~dates] = float("nan")
    wanted = compute(model, spoilt, dates)
    order = [3, 0, 4, 2, 1]
    assert (compute(model, spoilt[:, order], dates[:, order]) - wanted).abs().max() < 1e-6
    for window in range(3):
        alone = reflectance[window][dates[window]][None]
        found = compute(model, alone, all_valid(1, alone.shape[1]))
        assert (found - wanted[window : window + 1]).abs().max() < 1e-6
    fewer = compute(model, reflectance[2:, :2], all_valid(1, 2))
    assert (fewer - wanted[2:]).abs().max() > 1e-4


def test_padded_dates_stay_out_of_training():
    reflectance, dates = torch.rand(2, 5, 2, 10, 12) * 0.4, all_valid(2, 5)
    dates[0, 3:] = False
    results = []
    for filler in (0.0, float("nan"), 1e8):
        model = make_model().train()
        values = reflectance.masked_fill(~dates[..., None, None, None], filler)
        logits = model.compute(values, dates, dates[:, :, None, None])["logits"]
        F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).backward()
        gradients = [p.grad for p in model.parameters()]
        results.append([logits, *gradients, *model.buffers()])
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))
    assert all(torch.isfinite(values).all() for values in results[0])


@pytest.mark.parametrize("fusion", [True, False])
def test_the_finite_part_reaches_exactly_as_far_as_the_halo(fusion):
    """With gates and filters held constant, which are what looks at the whole window."""
    model = make_model(fusion=fusion)
    hold_constant(model)
    size = 2 * (model.spec.halo_px + 5)
    reach = 0
    # Branches at 1/8 repeat every eight output pixels, which are two of the input.
    for phase in range(8):
        reflectance = torch.rand(1, 1, 2, size, size, requires_grad=True)
        centre = size // 2 + phase // 4
        logits = model.compute(reflectance, all_valid(1, 1), torch.ones(()))["logits"]
        logits[0, 0, size * 2 + phase, size * 2 + phase].backward()
        touched = reflectance.grad.abs().sum(dim=(0, 1, 2)).nonzero() - centre
        reach = max(reach, int(touched.abs().max()))
    assert reach == model.spec.halo_px


def test_a_window_does_not_depend_on_its_batch():
    model = make_model()
    reflectance = torch.rand(4, 3, 2, 24, 24) * 0.4
    whole = compute(model, reflectance, all_valid(4, 3))
    features = fuse(model, reflectance)
    for batch in (1, 2, 3):
        assert torch.equal(fuse(model, reflectance[:batch]), features[:batch])
        # At 1/8 of so small a window, oneDNN has another convolution for a single one.
        part = compute(model, reflectance[:batch], all_valid(batch, 3))
        assert (part - whole[:batch]).abs().max() < 1e-5


def fuse(model, reflectance):
    packed = PackedDates.of(all_valid(*reflectance.shape[:2]))
    with torch.inference_mode():
        return model.network.backbone(model.statistics(packed.pack(reflectance)), packed)


def test_windows_of_any_size():
    model = make_model()
    assert compute(model, torch.rand(1, 2, 2, 11, 9), all_valid(1, 2)).shape == (1, 1, 44, 36)
    assert model.spec.multiple_px == 2


def test_bfloat16_stays_close():
    model = make_model()
    reflectance = torch.rand(1, 4, 2, 16, 16) * 0.4
    exact = compute(model, reflectance, all_valid(1, 4))
    with torch.autocast("cpu", torch.bfloat16):
        rough = compute(model, reflectance, all_valid(1, 4))
    assert (rough.float() - exact).norm() < 3e-2 * exact.norm()


def test_several_classes_have_a_logit_each():
    legend = tuple(ClassEntry(value, name, "#000000") for value, name in enumerate("abc"))
    model = build_model("spinet", {"size": "small"}, bands=("red",), legend=legend)
    scores = model(torch.rand(1, 2, 1, 8, 8), all_valid(1, 2), torch.ones(()))
    assert scores["probability"].shape == (1, 3, 32, 32)
    with torch.device("meta"):
        assert SPInet(2, 3, channels=16, units=1).head.project.out_channels == 3


def test_a_wrong_size_is_named():
    with pytest.raises(ValueError, match="size 'tiny' is not one of full, small"):
        SpinetModel(size="tiny")


@pytest.mark.training
@pytest.mark.parametrize("fusion", [True, False])
def test_small_spinet_overfits_a_window(fusion):
    window = make_window(bands=("red", "nir"), upscale=4, size=10, seed=1)
    assert 0.2 < window.cropland.float().mean() < 0.8
    torch.manual_seed(0)
    model = SpinetModel(size="small", bands=("red", "nir"), fusion=fusion).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(45):
        logits = model.compute(window.reflectance, window.dates, window.clear)["logits"]
        loss = F.binary_cross_entropy_with_logits(logits[:, 0], window.cropland.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
