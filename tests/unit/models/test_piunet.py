"""PIUnet: its count, its formulas, dates in any order and number, and published checkpoints."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bigmap.errors import ModelError
from bigmap.models.importing import import_piunet
from bigmap.models.layers import count_parameters, fold_norms
from bigmap.models.networks.piunet import PIUnet, PiunetModel
from bigmap.models.networks.temporal import PackedDates
from bigmap.models.published import Images, describe_images, import_weights
from tests.unit.models.simulated_window import make_window

CHANNELS, UNITS = 16, 2


def disturb(network, seed=0):
    """Give norms the statistics of a trained network, so that they do something."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in (*network.named_buffers(), *network.named_parameters()):
        if "running_mean" in name or tensor.ndim == 1:
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
        if "running_var" in name or ("norm" in name and name.endswith("weight")):
            tensor.data.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network


def make_network(seed=0, **options):
    torch.manual_seed(seed)
    return disturb(PIUnet(**{"channels": CHANNELS, "units": UNITS} | options)).eval()


def all_valid(batch, time):
    return torch.ones(batch, time, dtype=torch.bool)


class PublishedAttentionUnit(nn.Module):
    """Modules named and shaped as in the public code, for their names only."""

    def __init__(self, channels):
        super().__init__()
        for step in ("0", "1"):
            setattr(self, f"conv{step}", nn.Conv3d(channels, channels, (1, 3, 3)))
            setattr(self, f"norm{step}{step}", nn.BatchNorm3d(channels))
            setattr(self, f"tran{step}", nn.MultiheadAttention(channels, 1))
            setattr(self, f"norm{step}", nn.BatchNorm3d(channels))
        self.lin0 = nn.Linear(channels, channels // 8)
        self.lin1 = nn.Linear(channels // 8, channels)


class PublishedRegistration(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv0 = nn.Conv3d(channels, channels, (1, 3, 3))
        self.norm00 = nn.BatchNorm3d(channels)
        self.tran0 = nn.MultiheadAttention(channels, 1)
        self.norm0 = nn.BatchNorm3d(channels)
        self.conv1 = nn.Conv1d(channels, 25, 1)


class Published(nn.Module):
    """The published network's modules; ``run_published`` computes from their tensors."""

    def __init__(self, channels=CHANNELS, units=UNITS):
        super().__init__()
        for step, fan_in, norm in (("in", 1, "0"), ("mid", channels, "1")):
            setattr(self, f"conv_{step}", nn.Conv3d(fan_in, channels, (1, 3, 3)))
            setattr(self, f"tran_{step}", nn.MultiheadAttention(channels, 1))
            setattr(self, f"norm{norm}{norm}", nn.BatchNorm3d(channels))
            setattr(self, f"norm{norm}", nn.BatchNorm3d(channels))
        self.res = nn.ModuleList(PublishedAttentionUnit(channels) for _ in range(units))
        self.regnet = PublishedRegistration(channels)
        self.conv_d2s_mu = nn.Conv2d(channels, 9, 3)
        self.conv_d2s_sigma = nn.Conv2d(channels, channels, 3)
        self.conv_out_sigma = nn.Conv2d(channels, 1, 1)
        self.norm_sigma = nn.BatchNorm2d(channels)


def normalise(state, name, h):
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(h, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def attend(state, name, h):
    """Self-attention over the third axis of (batch, channel, time, y, x), from its formula."""
    tokens = h.permute(0, 3, 4, 2, 1)
    qkv = tokens @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]
    q, k, v = qkv.chunk(3, dim=-1)
    weights = (torch.einsum("byxtc,byxsc->byxts", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    mixed = torch.einsum("byxts,byxsc->byxtc", weights, v)
    out = mixed @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]
    return out.permute(0, 4, 3, 1, 2)


def run_block(state, h, conv, first_norm, attention, second_norm):
    h = F.conv3d(h, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=(0, 1, 1))
    h = F.leaky_relu(normalise(state, first_norm, h), 0.01)
    return normalise(state, second_norm, h + attend(state, attention, h))


def run_published(state, images):
    """Compute PIUnet of (batch, time, y, x) from published names and the paper's formulas."""
    skip = run_block(state, images[:, None], "conv_in", "norm00", "tran_in", "norm0")
    h = skip
    for unit in range(1 + max(int(k.split(".")[1]) for k in state if k.startswith("res."))):
        at = functools.partial("res.{}.{}".format, unit)
        change = run_block(state, h, at("conv0"), at("norm00"), at("tran0"), at("norm0"))
        change = F.leaky_relu(change, 0.01)
        change = run_block(state, change, at("conv1"), at("norm11"), at("tran1"), at("norm1"))
        gate = F.linear(change.mean((2, 3, 4)), state[at("lin0.weight")], state[at("lin0.bias")])
        gate = F.leaky_relu(gate, 0.01)
        gate = F.linear(gate, state[at("lin1.weight")], state[at("lin1.bias")]).sigmoid()
        h = gate[:, :, None, None, None] * change + h
    h = F.leaky_relu(run_block(state, h, "conv_mid", "norm11", "tran_mid", "norm1"), 0.01) + skip
    names = [f"regnet.{part}" for part in ("conv0", "norm00", "tran0", "norm0")]
    means = F.leaky_relu(run_block(state, h, *names), 0.01).mean((3, 4))
    filters = F.conv1d(means, state["regnet.conv1.weight"], state["regnet.conv1.bias"])
    registered = torch.empty_like(h)
    for b in range(h.shape[0]):
        for t in range(h.shape[2]):
            kernel = filters[b, :, t].reshape(1, 1, 5, 5)
            registered[b, :, t] = F.conv2d(h[b, :, t, None], kernel, padding=2)[:, 0]
    h = registered.mean(2)
    image = F.conv2d(h, state["conv_d2s_mu.weight"], state["conv_d2s_mu.bias"], padding=1)
    up = functools.partial(F.interpolate, scale_factor=3, mode="bilinear", align_corners=False)
    image = F.pixel_shuffle(image, 3) + up(images).mean(1, keepdim=True)
    s = F.conv2d(up(h), state["conv_d2s_sigma.weight"], state["conv_d2s_sigma.bias"], padding=1)
    s = F.leaky_relu(normalise(state, "norm_sigma", s), 0.01)
    return image, F.conv2d(s, state["conv_out_sigma.weight"], state["conv_out_sigma.bias"])


def test_full_size_has_the_published_count():
    with torch.device("meta"):
        network = PiunetModel().network
        published = Published(42, 16).state_dict()
    state = network.state_dict()
    assert count_parameters(network) == 828_355
    assert len(state) == len(published) == 637
    # 834,461 is the checkpoint's size in float32: its 71 counters of 8 bytes count twice.
    assert sum(t.numel() * t.element_size() for t in state.values()) == 834_461 * 4


def test_a_published_checkpoint_gives_the_published_output():
    torch.manual_seed(3)
    state = disturb(Published()).state_dict()
    images = torch.rand(2, 4, 15, 12)
    network = make_network()
    network.load_state_dict(import_piunet(state))
    with torch.inference_mode():
        image, log_scale = network(
            images.flatten(0, 1).unsqueeze(1), PackedDates.of(all_valid(2, 4))
        )
        wanted_image, wanted_scale = run_published(state, images)
    assert (image - wanted_image).abs().max() < 1e-5
    assert (log_scale - wanted_scale).abs().max() < 1e-5
    assert wanted_image.std() > 0.05
    assert wanted_scale.std() > 0.05


def test_an_imported_network_maps_reflectance_as_the_published_one_did(tmp_path):
    """Its images were digital numbers, standardised."""
    torch.manual_seed(3)
    state = disturb(Published(16, 4)).state_dict()
    torch.save(state, tmp_path / "model.pt")
    scale, mean, std = 10_000.0, 2000.0, 1500.0
    model = import_weights(
        "piunet", tmp_path / "model.pt", tmp_path / "w.safetensors", options={"size": "small"},
        images=Images(scale, (mean,), (std,)),
    )  # fmt: skip
    reflectance = torch.rand(2, 4, 1, 15, 12)
    with torch.inference_mode():
        found = model(reflectance, all_valid(2, 4), torch.ones(2, 4, 15, 12).bool())
        image, log_scale = run_published(state, (scale * reflectance[:, :, 0] - mean) / std)
    wanted = (image * std + mean) / scale
    torch.testing.assert_close(found["image"], wanted, atol=1e-4, rtol=1e-4)
    wanted = log_scale.exp() * std / scale
    torch.testing.assert_close(found["uncertainty"], wanted, atol=1e-4, rtol=1e-4)
    assert describe_images(model) == [
        "input: (reflectance - mean) / deviation, with nir (0.2, 0.15)",
        "output: what the network gives, times deviation, plus mean",
    ]
    for known, message in (
        (Images(), "does not tell the units"),
        (Images(scale), "does not tell by which mean and deviation"),
        (Images(scale, (mean,)), "does not tell by which mean and deviation"),
    ):
        with pytest.raises(ModelError, match=message):
            import_weights(
                "piunet", tmp_path / "model.pt", tmp_path / "other.safetensors",
                options={"size": "small"}, images=known,
            )  # fmt: skip


def test_checkpoints_of_other_networks_are_refused():
    state = Published().state_dict()
    with pytest.raises(ModelError, match=r"lacks the tensor res\.1\.lin0\.bias"):
        import_piunet({key: t for key, t in state.items() if key != "res.1.lin0.bias"})
    with pytest.raises(ModelError, match=r"unknown tensor res\.1\.lin2\.bias"):
        import_piunet(state | {"res.1.lin2.bias": torch.zeros(3)})
    with pytest.raises(ModelError, match="lacks the tensor"):
        import_piunet({"res": torch.zeros(3), "res.x.weight": torch.zeros(3)})


def test_attention_equals_the_library_s():
    torch.manual_seed(1)
    network = make_network()
    attention = network.backbone.first.attention
    library = nn.MultiheadAttention(CHANNELS, 1)
    library.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    features = torch.randn(2, 5, CHANNELS, 3, 4)
    tokens = features.permute(1, 0, 3, 4, 2).reshape(5, -1, CHANNELS)
    with torch.no_grad():
        wanted = library(tokens, tokens, tokens)[0].reshape(5, 2, 3, 4, CHANNELS)
        found = attention(features.flatten(0, 1), PackedDates.of(all_valid(2, 5)))
    found = found.unflatten(0, (2, 5)).permute(1, 0, 3, 4, 2)
    assert (found - wanted).abs().max() < 1e-5


def test_order_and_padding_of_dates_change_nothing():
    model = PiunetModel(size="small", bands=("red", "nir")).eval()
    disturb(model.network)
    reflectance = torch.rand(2, 5, 2, 13, 18)
    dates = all_valid(2, 5)
    dates[0, 3:] = False
    spoilt = reflectance.clone()
    spoilt[~dates] = float("nan")
    clear = torch.ones(2, 5, 13, 18, dtype=torch.bool)
    with torch.inference_mode():
        together = model.compute(spoilt, dates, clear)
        shuffled = model.compute(spoilt[:, [4, 2, 0, 3, 1]], dates[:, [4, 2, 0, 3, 1]], clear)
        short = model.compute(reflectance[:1, :3], all_valid(1, 3), clear[:1, :3])
        full = model.compute(reflectance[1:], all_valid(1, 5), clear[1:])
    for name, values in together.items():
        close = 2e-6 * values.abs().max().clamp(min=1)
        assert (shuffled[name] - values).abs().max() < close
        assert (short[name] - values[:1]).abs().max() < close
        assert (full[name] - values[1:]).abs().max() < close


def test_padded_dates_stay_out_of_training():
    """Windows of 3 and 5 dates: statistics are those of the 8 dates, gradients stay finite."""
    reflectance, dates = torch.rand(2, 5, 1, 12, 12), all_valid(2, 5)
    dates[0, 3:] = False
    results = []
    for extra, filler in ((0, 0.0), (0, float("nan")), (2, 1e6)):
        torch.manual_seed(0)
        model = PiunetModel(size="small").train()
        padding = torch.full((2, extra, 1, 12, 12), filler)
        padded = torch.cat([reflectance.masked_fill(~dates[..., None, None, None], filler),
                            padding], dim=1)  # fmt: skip
        mask = torch.cat([dates, torch.zeros(2, extra, dtype=torch.bool)], dim=1)
        outputs = model.compute(padded, mask, mask[:, :, None, None].expand(-1, -1, 12, 12))
        outputs["image"].square().mean().backward()
        gradient = model.network.backbone.first.convolution.conv.weight.grad
        results.append((outputs["image"], outputs["log_scale"], gradient, *model.buffers()))
    for result in results[1:]:
        for found, wanted in zip(result, results[0], strict=True):
            assert torch.isfinite(found).all()
            assert torch.equal(found, wanted)
    # The first norm saw exactly the eight dates.
    torch.manual_seed(0)
    model = PiunetModel(size="small")
    eight = model.statistics(reflectance[dates])
    first = model.network.backbone.first.convolution
    seen = first.conv(eight).mean((0, 2, 3)) * 0.1
    model.train().compute(reflectance, dates, dates[:, :, None, None])
    assert torch.allclose(first.norm.running_mean, seen, atol=1e-6)


@pytest.mark.parametrize("upscale", [2, 3])
def test_the_finite_part_reaches_exactly_as_far_as_the_halo(upscale):
    """With gates and filters held constant, which are what looks at the whole window."""
    model = PiunetModel(size="small", upscale=upscale).eval()
    hold_constant(model)
    size = 2 * model.spec.halo_px + 9
    reach = 0
    for phase in range(upscale):
        reflectance = torch.rand(1, 2, 1, size, size, requires_grad=True)
        outputs = model.compute(reflectance, all_valid(1, 2), torch.ones(()))
        centre = size // 2 * upscale + phase
        (outputs["image"] + outputs["log_scale"])[0, 0, centre, centre].backward()
        touched = reflectance.grad.abs().sum(dim=(0, 1, 2)).nonzero() - size // 2
        reach = max(reach, int(touched.abs().max()))
    assert reach == model.spec.halo_px == 13
    assert PiunetModel().spec.halo_px == 37


def hold_constant(model):
    for module in model.modules():
        if type(module).__name__ in ("Gate", "FilterEstimator"):
            module.register_forward_hook(lambda _module, _inputs, output: output.detach())


def test_a_window_does_not_depend_on_its_batch_and_folding_changes_little():
    network = make_network(channels=24)
    images = torch.rand(4, 3, 1, 24, 24)
    with torch.inference_mode():
        whole = network.backbone(images.flatten(0, 1), PackedDates.of(all_valid(4, 3)))
        for batch in (1, 2, 3):
            part = network.backbone(
                images[:batch].flatten(0, 1), PackedDates.of(all_valid(batch, 3))
            )
            assert torch.equal(part, whole[:batch])
    fold_norms(network)
    with torch.inference_mode():
        folded = network.backbone(images.flatten(0, 1), PackedDates.of(all_valid(4, 3)))
    assert (folded - whole).abs().max() < 1e-4 * whole.abs().max()


def test_bfloat16_stays_close():
    model = PiunetModel(size="small").eval()
    disturb(model.network)
    inputs = (torch.rand(1, 4, 1, 24, 24), all_valid(1, 4), torch.ones(()))
    with torch.inference_mode():
        exact = model.compute(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.compute(*inputs)
    for name, values in exact.items():
        assert rough[name].dtype == torch.float32
        assert (rough[name] - values).norm() < 3e-2 * values.norm()


def test_image_and_uncertainty_are_reflectance():
    model = PiunetModel(size="small", bands=("red",)).eval()
    model.statistics.set([0.3], [0.05])
    for parameter in (*model.network.image.parameters(), *model.network.log_scale.parameters()):
        nn.init.zeros_(parameter)
    scores = model(torch.full((1, 3, 1, 8, 8), 0.42), all_valid(1, 3), torch.ones(()))
    assert torch.allclose(scores["image"], torch.tensor(0.42))
    assert torch.allclose(scores["uncertainty"], torch.tensor(0.05))
    assert set(scores) == {"image", "uncertainty"}


@pytest.mark.parametrize(("option", "value"), [("size", "tiny"), ("upscale", 5)])
def test_wrong_options_are_named(option, value):
    with pytest.raises(ValueError, match=f"{option} '?{value}"):
        PiunetModel(**{option: value})


@pytest.mark.training
def test_small_piunet_overfits_a_window():
    window = make_window(bands=("nir",), upscale=3, size=10, seed=1)
    torch.manual_seed(0)
    model = PiunetModel(size="small").train()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(45):
        outputs = model.compute(window.reflectance, window.dates, window.clear)
        loss = (outputs["image"] - window.image).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
