"""HighRes-net: size, formulas, dates, halo, exactness and published weights."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bigmap.errors import ModelError
from bigmap.models import build_model
from bigmap.models.importing import import_highresnet
from bigmap.models.layers import count_parameters
from bigmap.models.networks.highresnet import HighResNet, HighresnetModel, find_reference
from bigmap.models.networks.steady import SteadyConvTranspose2d
from bigmap.models.published import Images, describe_images, import_weights
from tests.unit.models.image_cases import (
    differing_windows,
    make_dates,
    measure_reach,
    overfit,
    simulate_window,
)

STRIDES = [(3, 2), (4, 2), (3, 3), (4, 3), (4, 4)]


def build(seed=0, **options):
    torch.manual_seed(seed)
    return HighresnetModel(**({"size": "small"} | options)).eval()


def run(model, *inputs):
    with torch.inference_mode():
        return model(*inputs)["image"]


@pytest.mark.parametrize(
    ("fan_in", "fan_out", "upscale", "kernel", "count"),
    [
        (1, 1, 3, 3, 591_818),
        (1, 1, 3, 4, 620_490),
        (3, 3, 2, 3, 594_252),
        (12, 3, 2, 3, 604_620),
    ],
)
def test_the_network_has_the_published_number_of_parameters(
    fan_in, fan_out, upscale, kernel, count
):
    with torch.device("meta"):
        network = HighResNet(fan_in, fan_out, upscale=upscale, kernel=kernel)
    assert count_parameters(network) == count


@pytest.mark.parametrize(("kernel", "stride"), STRIDES)
def test_the_decoder_is_a_transposed_convolution(kernel, stride):
    torch.manual_seed(0)
    ours = SteadyConvTranspose2d(5, 7, kernel, stride=stride)
    theirs = nn.ConvTranspose2d(
        5, 7, kernel, stride, padding=ours.padding, output_padding=ours.output_padding
    )
    theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 5, 9, 13)
    assert ours(features).shape == (2, 7, 9 * stride, 13 * stride)
    torch.testing.assert_close(ours(features), theirs(features), atol=1e-6, rtol=0)
    ours(features).square().sum().backward()
    theirs(features).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, atol=1e-4, rtol=1e-5)


def refer(state, views, *, stride, padding, output_padding):
    """Compute HighRes-net by the paper's formulas for one sample's valid dates, a list."""

    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def prelu(name, x):
        return F.prelu(x, state[f"{name}.weight"])

    def block(name, x):
        y = prelu(f"{name}.1", conv(f"{name}.0", x))
        return x + prelu(f"{name}.3", conv(f"{name}.2", y))

    first = torch.stack(views[:9])
    reference = first.sort(dim=0).values[(len(first) - 1) // 2]
    states = []
    for view in views:
        x = prelu("encoder.1", conv("encoder.0", torch.cat([view, reference])[None]))
        states.append(conv("encoder.4", block("encoder.3.body", block("encoder.2.body", x))))
    size = 1
    while size < len(states):
        size *= 2
    slots = states + [None] * (size - len(states))
    while len(slots) > 1:
        half = len(slots) // 2
        merged = []
        for place in range(half):
            one, other = slots[place], slots[-1 - place]
            if other is not None:
                pair = block("fusion.0.body", torch.cat([one, other], dim=1))
                one = one + prelu("fusion.2", conv("fusion.1", pair))
            merged.append(one)
        slots = merged
    x = F.conv_transpose2d(
        slots[0], state["decoder.0.weight"], state["decoder.0.bias"], stride=stride,
        padding=padding, output_padding=output_padding,
    )  # fmt: skip
    return conv("decoder.2", prelu("decoder.1", x))[0]


@pytest.mark.parametrize("time", [1, 2, 3, 5, 8, 11])
def test_the_network_computes_the_papers_formulas(time):
    torch.manual_seed(time)
    network = HighResNet(2, 3, width=8, upscale=2, kernel=3)
    views = torch.randn(2, time, 2, 13, 18)
    dates = torch.ones(2, time, dtype=torch.bool)
    with torch.no_grad():
        found = network(views, dates)
        for sample in range(2):
            wanted = refer(
                network.state_dict(), list(views[sample]), stride=2, padding=1, output_padding=1
            )
            torch.testing.assert_close(found[sample], wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("time", [3, 5, 6, 7])
def test_no_date_is_dropped(time):
    torch.manual_seed(0)
    network = HighResNet(1, 1, width=4)
    encoded = torch.randn(time, 4, 6, 6, requires_grad=True)
    network.fuse(encoded, torch.ones(1, time, dtype=torch.bool)).square().sum().backward()
    assert (encoded.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("value", [float("nan"), 1e30])
@pytest.mark.parametrize("extra", [1, 6, 30])
def test_padded_dates_change_nothing(value, extra):
    model = build()
    reflectance, dates, clear = make_dates(time=5, batch=2, size=(17, 22))
    dates[1, 3:] = False
    wanted = [
        run(model, reflectance[:1], dates[:1], clear[:1]),
        run(model, reflectance[1:, :3], dates[1:, :3], clear[1:, :3]),
    ]
    # Padding lies before, between and behind the dates.
    order = torch.randperm(5 + extra, generator=torch.Generator().manual_seed(extra))
    places = order[:5].sort().values
    padded = torch.full((2, 5 + extra, *reflectance.shape[2:]), value)
    padded[:, places] = torch.where(dates[:, :, None, None, None], reflectance, value)
    valid = torch.zeros(2, 5 + extra, dtype=torch.bool)
    valid[:, places] = dates
    found = run(model, padded, valid, torch.zeros(2, 5 + extra, 17, 22, dtype=torch.bool))
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-6, rtol=0)


def test_padded_dates_have_no_gradient():
    model = build().train()
    reflectance, dates, clear = make_dates(time=4)
    reflectance[:, 2] = torch.nan
    dates[:, 2] = False
    model.compute(reflectance, dates, clear)["image"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("time", "rank"), [(1, 0), (2, 0), (3, 1), (8, 3), (9, 4), (12, 4)])
def test_the_reference_is_the_median_of_the_first_nine_dates(time, rank):
    views, dates, _ = make_dates(time=time, batch=2)
    wanted = views[:, :9].sort(dim=1).values[:, rank]
    assert torch.equal(find_reference(views, dates), wanted)
    shuffled = torch.cat([views[:, :9].flip(1), views[:, 9:]], dim=1)
    assert torch.equal(find_reference(shuffled, dates), wanted)


@pytest.mark.parametrize(
    ("upscale", "kernel", "dates", "halo"),
    [(3, 3, 4, 12), (3, 3, 8, 15), (3, 3, 16, 18), (3, 3, 32, 21), (3, 3, 12, 18),
     (2, 3, 4, 13), (2, 4, 4, 13), (3, 4, 4, 13), (4, 4, 4, 12), (2, 3, 1, 7)],
)  # fmt: skip
def test_the_halo_is_the_reach_of_the_gradient(upscale, kernel, dates, halo):
    model = build(upscale=upscale, kernel=kernel, max_dates=dates)
    assert model.spec.halo_px == halo
    assert model.spec.max_dates == dates
    if dates <= 16:
        assert measure_reach(model, time=dates, side=2 * halo + 5) == halo


@pytest.mark.parametrize(
    ("options", "time", "core"),
    [
        ({}, 3, 24),
        ({"upscale": 3, "sigmoid": False}, 4, 37),
        ({"upscale": 4}, 1, 24),
        ({"kernel": 4}, 2, 21),
        ({"bands": ("red",)}, 1, 24),
        ({"size": "full"}, 2, 30),
    ],
)
def test_windows_equal_the_whole_image_to_the_bit(options, time, core):
    model = build(max_dates=4, **options)
    inputs = make_dates(time=time, bands=len(model.spec.bands), size=(96, 101))
    origins = [(0, 0), (5, 11), (17, 3)]
    assert differing_windows(model, inputs, core=core, origins=origins) == []


def test_a_window_does_not_depend_on_its_batch():
    model = build()
    inputs = make_dates(time=3, batch=5, size=(40, 40))
    whole = run(model, *inputs)
    for size in (1, 2, 4):
        assert torch.equal(run(model, *(each[:size] for each in inputs)), whole[:size])


def test_output_bands_are_chosen_by_name():
    bands = ("blue", "green", "red", "nir")
    model = build(bands=bands, output_bands="red, blue", sigmoid=False)
    assert model.spec.extra_layers[0].channels == ("red", "blue")
    with torch.no_grad():
        for parameter in model.network.decoder[2].parameters():
            parameter.zero_()
    image = run(model, *make_dates(time=2, bands=4))
    assert image.shape == (1, 2, 48, 48)
    # An output of zero is the band's mean reflectance.
    mean = model.statistics.mean[[2, 0]]
    assert torch.allclose(image, mean[None, :, None, None].expand_as(image))


def test_the_sigmoid_keeps_reflectance_between_zero_and_one():
    inputs = make_dates(time=2)
    bounded, free = build(), build(sigmoid=False)
    free.network.load_state_dict(bounded.network.state_dict())
    standardised = (run(free, *inputs) - free.statistics.mean[:, None, None]) / (
        free.statistics.std[:, None, None]
    )
    torch.testing.assert_close(run(bounded, *inputs), standardised.sigmoid(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tiny"}, "size 'tiny' is not full or small"),
        ({"upscale": 5}, "upscale 5 is not 2, 3 or 4"),
        ({"upscale": 4, "kernel": 3}, "kernel 3 does not go with upscale 4; take 4"),
        ({"max_dates": 0}, "max_dates 0 is not a number of dates"),
        ({"output_bands": "nir"}, "output_bands: 'nir' is not among the bands red, green, blue"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("highres-net", options)


class PublishedBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.PReLU(),
        )  # fmt: skip

    def forward(self, x):
        return x + self.block(x)


def hold(**parts):
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


class Published(nn.Module):
    """A tree of modules with the published names, which halves an even number of views."""

    def __init__(self, bands, width, out):
        super().__init__()
        self.encode = hold(
            init_layer=nn.Sequential(nn.Conv2d(2 * bands, width, 3, padding=1), nn.PReLU()),
            res_layers=nn.Sequential(PublishedBlock(width), PublishedBlock(width)),
            final=nn.Sequential(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.fuse = hold(
            fuse=nn.Sequential(
                PublishedBlock(2 * width), nn.Conv2d(2 * width, width, 3, padding=1), nn.PReLU()
            )
        )
        self.decode = hold(
            deconv=nn.Sequential(nn.ConvTranspose2d(width, width, 3, stride=3), nn.PReLU()),
            final=nn.Conv2d(width, out, 1),
        )

    def forward(self, views):
        reference = views[:, :9].median(dim=1, keepdim=True).values.expand_as(views)
        pairs = torch.cat([views, reference], dim=2)
        encode = self.encode
        state = torch.stack(
            [encode.final(encode.res_layers(encode.init_layer(x))) for x in pairs.unbind(1)], 1
        )
        while state.shape[1] > 1:
            half = state.shape[1] // 2
            one, other = state[:, :half], state[:, half:].flip(1)
            pair = torch.cat([one, other], dim=2).flatten(0, 1)
            state = one + self.fuse.fuse(pair).unflatten(0, one.shape[:2])
        return self.decode.final(self.decode.deconv(state[:, 0]))


@pytest.mark.parametrize("bands", [1, 3])
def test_published_weights_give_the_published_outputs(bands):
    torch.manual_seed(0)
    published = Published(bands, 64, bands)
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.05)
    ours = HighResNet(bands, bands)
    ours.load_state_dict(import_highresnet(published.state_dict()))
    views = torch.rand(2, 4, bands, 14, 14)
    with torch.no_grad():
        wanted, found = published(views), ours(views, torch.ones(2, 4, dtype=torch.bool))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


PUBLISHED = {"upscale": 3, "sigmoid": False}


def publish(folder, bands=1):
    """Write a published checkpoint; return it and its network."""
    torch.manual_seed(0)
    published = Published(bands, 64, bands)
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save({"state_dict": published.state_dict()}, folder / "HRNet.pth")
    return folder / "HRNet.pth", published


def test_an_imported_network_maps_reflectance_as_the_published_one_did(tmp_path):
    """Its images were reflectance times a scale, neither standardised nor bounded."""
    file, published = publish(tmp_path)
    out = tmp_path / "new" / "w.safetensors"
    import_weights(
        "highres-net", file, out, options=PUBLISHED, bands=("nir",), images=Images(scale=0.03)
    )
    model = build_model("highres-net", weights=str(out))
    views = torch.rand(2, 4, 1, 14, 14)
    with torch.no_grad():
        wanted = published(0.03 * views) / 0.03
        found = model(views, torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4, 14, 14).bool())
    torch.testing.assert_close(found["image"], wanted, atol=1e-4, rtol=1e-5)
    assert (wanted < 0).any(), "or a sigmoid would not show"
    card = json.loads(out.with_suffix(".json").read_text())["properties"]
    (scaling,) = card["mlm:input"][0]["value_scaling"]
    assert (scaling["mean"], scaling["stddev"]) == (0.0, pytest.approx(1 / 0.03))
    assert card["mlm:hyperparameters"] | PUBLISHED == card["mlm:hyperparameters"]


def test_a_bounded_network_is_imported_with_its_sigmoid(tmp_path):
    file, published = publish(tmp_path, bands=3)
    model = import_weights(
        "highres-net", file, tmp_path / "w.safetensors", options=PUBLISHED | {"sigmoid": True},
        images=Images(scale=1.0),
    )  # fmt: skip
    views = torch.rand(1, 2, 3, 14, 14)
    with torch.no_grad():
        found = model(views, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, 14, 14).bool())
        wanted = published(views).sigmoid()
    torch.testing.assert_close(found["image"], wanted, atol=1e-5, rtol=0)
    assert describe_images(model)[-1] == (
        "output: what the network gives, its sigmoid, taken as reflectance"
    )


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({"sigmoid": False}, Images(1.0), "does not tell the upscale of its network; add --set up"),
        ({"upscale": 3}, Images(1.0), "does not tell the sigmoid .* --set sigmoid=VALUE"),
        (PUBLISHED, Images(), "does not tell the units of its images; add --input-scale"),
        (PUBLISHED, None, "does not tell the units of its images; add --input-scale"),
        (PUBLISHED, Images(0.0), "--input-scale: 0 is not finite and above 0"),
        (PUBLISHED, Images(float("nan")), "--input-scale: nan is not finite and above 0"),
        (PUBLISHED, Images(1.0, (0.1,)), "--input-mean and --input-std belong together"),
        (PUBLISHED, Images(1.0, (0.1, 0.1), (1.0,)), "--input-mean: 2 numbers are given for 1 ban"),
        (PUBLISHED, Images(1.0, (0.1,), (-1.0,)), "--input-std: -1 is not finite and above 0"),
        (PUBLISHED | {"sigmoid": True}, Images(10.0), "--input-scale 10 does not go with that"),
    ],
)
def test_what_an_import_cannot_know_must_be_said(tmp_path, options, images, message):
    file, _ = publish(tmp_path)
    out = tmp_path / "w.safetensors"
    with pytest.raises(ModelError, match=message):
        import_weights("highres-net", file, out, options=options, bands=("nir",), images=images)
    assert not out.exists()


def test_a_spoilt_checkpoint_is_not_imported(tmp_path):
    file, published = publish(tmp_path)
    with torch.no_grad():
        published.decode.final.bias.fill_(torch.nan)
    torch.save(published.state_dict(), file)
    with pytest.raises(ModelError, match=r"HRNet.pth: tensor network\.decoder\.2\.bias holds NaN"):
        import_weights(
            "highres-net", file, tmp_path / "w.safetensors", options=PUBLISHED, bands=("nir",),
            images=Images(1.0),
        )  # fmt: skip


def test_halves_are_imported_as_floats(tmp_path):
    file, published = publish(tmp_path)
    torch.save(published.half().state_dict(), file)
    model = import_weights(
        "highres-net", file, tmp_path / "w.safetensors", options=PUBLISHED, bands=("nir",),
        images=Images(1.0),
    )  # fmt: skip
    assert model.network.decoder[2].weight.dtype == torch.float32
    assert torch.equal(model.network.decoder[2].weight, published.decode.final.weight.float())


def test_tensors_too_many_or_too_few_are_named():
    state = Published(1, 4, 1).state_dict()
    with pytest.raises(ModelError, match=r"unknown tensor encode\.extra\.weight"):
        import_highresnet(state | {"encode.extra.weight": torch.zeros(1)})
    del state["decode.final.bias"]
    with pytest.raises(ModelError, match=r"lacks the tensor decode\.final\.bias"):
        import_highresnet(state)


@pytest.mark.training
def test_the_small_model_learns_a_window():
    model = build()
    first, last = overfit(
        model, *simulate_window(upscale=2, dates=3, side=16), steps=300, rate=4e-3
    )
    assert last < first / 20
