"""SegNet: the paper's count, its formulas, and tiles that equal the whole."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.models.layers import count_parameters, upsample_bicubic
from bigmap.models.legends import CROPLAND, S2GLC
from bigmap.models.networks.segnet import (
    SIZES,
    SegNet,
    SegnetModel,
    find_segnet_radius,
    pool,
    unpool,
)
from tests.unit.models.single_image_cases import (
    all_clear,
    compare_tiles,
    compute,
    measure_reach,
    render_pair,
)

LEVELS = ((4, 2), (6, 1), (8, 3))


def test_the_full_size_has_the_papers_parameters():
    with torch.device("meta"):
        model = SegnetModel()
        fourteen = SegnetModel(legend=S2GLC)
    assert count_parameters(model) == 29444166
    # 64 weights of 3 x 3, a bias, and the scale and shift of its normalisation, for each class.
    assert count_parameters(fourteen) == 29444166 + 12 * (64 * 9 + 3)


def test_the_halo_covers_211_output_pixels_and_the_windows_fit_the_pools():
    with torch.device("meta"):
        specs = {upscale: SegnetModel(upscale=upscale).spec for upscale in range(1, 9)}
    assert find_segnet_radius() == 211
    assert {u: s.halo_px for u, s in specs.items()} == {
        1: 211, 2: 108, 3: 73, 4: 55, 5: 45, 6: 38, 7: 33, 8: 29
    }  # fmt: skip
    assert {u: s.multiple_px for u, s in specs.items()} == {
        1: 32, 2: 16, 3: 32, 4: 8, 5: 32, 6: 16, 7: 32, 8: 4
    }  # fmt: skip


def test_maxima_go_back_to_their_places():
    torch.manual_seed(0)
    features = torch.randn(2, 3, 10, 14).relu()  # Zeros make ties.
    maxima, places = pool(features)
    expected, indices = F.max_pool2d(features, 2, return_indices=True)
    values = torch.randn_like(maxima)
    assert torch.equal(maxima, expected)
    assert torch.equal(unpool(values, places), F.max_unpool2d(values, indices, 2))


def reference(state, image, levels):
    """SegNet in evaluation mode: convolution, normalisation and ReLU; pooling by indices."""

    def convolve(x, name):
        x = F.conv2d(x, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], padding=1)
        mean, var, weight, bias = (
            state[f"{name}.norm.{each}"][:, None, None]
            for each in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    x, indices = image, []
    for level, (_, depth) in enumerate(levels):
        for layer in range(depth):
            x = convolve(x, f"encoder.{level}.{2 * layer}").clamp(min=0)
        x, places = F.max_pool2d(x, 2, return_indices=True)
        indices.append(places)
    for level in reversed(range(len(levels))):
        x = F.max_unpool2d(x, indices[level], 2)
        for layer in range(levels[level][1]):
            x = convolve(x, f"decoder.{level}.{2 * layer}")
            if (level, layer) != (0, levels[0][1] - 1):
                x = x.clamp(min=0)
    return x


def shake(network):
    """Give normalisations statistics and weights of a trained network."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.8, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)


def test_the_network_is_the_papers_formulas():
    torch.manual_seed(0)
    network = SegNet(4, 3, LEVELS).eval()
    shake(network)
    image = torch.randn(2, 4, 24, 40)
    with torch.inference_mode():
        expected = reference(network.state_dict(), image, LEVELS)
        assert expected.std() > 0.1
        assert torch.allclose(network(image), expected, atol=1e-5)


@pytest.mark.parametrize("levels", [((1, 1),) * 4, ((1, 2), (1, 2), (1, 3))])
def test_an_output_pixel_sees_as_far_as_declared(levels):
    torch.manual_seed(0)
    radius, cell = find_segnet_radius(levels), 2 ** len(levels)
    size = -(-(2 * radius + 2 * cell) // (2 * cell)) * 2 * cell
    network = SegNet(1, 1, levels)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.abs_()
            module.bias.data.abs_()
    # Maxima are replaced by means, which look at all that might be the maximum.
    network.forward = lambda image: smooth(network, image)
    reaches = [
        measure_reach(network, bands=1, size=size, pixel=(size // 2 + shift,) * 2)
        for shift in range(cell)
    ]
    assert max(reaches) == radius


def smooth(network, image):
    for level in network.encoder:
        image = F.avg_pool2d(level(image), 2)
    for level in reversed(network.decoder):
        image = level(F.interpolate(image, scale_factor=2.0))
    return image


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("upscale", [1, 3, 4, 8])
def test_tiles_equal_the_whole(upscale, threads):
    torch.manual_seed(0)
    model = SegnetModel(size="small", upscale=upscale)
    shake(model)
    step = model.spec.multiple_px
    halo = -(-model.spec.halo_px // step) * step
    side = 2 * halo + step
    windows = [(step, step, side, side), (0, 2 * step, side + step, side + step),
               (3 * step, step, side, side + 2 * step)]  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare_tiles(model, windows, size=side + 3 * step)
    finally:
        torch.set_num_threads(before)


def test_tiles_of_the_full_width_equal_the_whole(monkeypatch):
    monkeypatch.setitem(SIZES, "small", ((64, 1), (512, 1)))
    torch.manual_seed(0)
    windows = [(4, 8, 72, 80), (8, 0, 64, 88)]
    compare_tiles(SegnetModel(size="small", upscale=1), windows, size=96)


@pytest.mark.long
@pytest.mark.parametrize("upscale", [1, 2, 4, 8])
def test_tiles_of_the_full_size_equal_the_whole(upscale):
    torch.manual_seed(0)
    model = SegnetModel(upscale=upscale)
    step = model.spec.multiple_px
    side = 2 * (-(-model.spec.halo_px // step) * step) + step
    windows = [(step, step, side, side), (0, 2 * step, side + step, side)]
    compare_tiles(model, windows, size=side + 2 * step)


def test_windows_beside_the_pools_differ():
    """The multiple is no formality: windows that start elsewhere pool other pixels."""
    torch.manual_seed(0)
    with pytest.raises(AssertionError):
        compare_tiles(SegnetModel(size="small", upscale=4), [(1, 1, 36, 36)], size=40)


def test_sides_of_any_size_are_padded():
    torch.manual_seed(0)
    network = SegNet(2, 3, LEVELS).eval()
    image = torch.randn(1, 2, 13, 18)
    with torch.inference_mode():
        padded = network(F.pad(image, (0, 6, 0, 3)))
        assert torch.equal(network(image), padded[..., :13, :18])


def test_padded_dates_and_other_windows_change_nothing():
    torch.manual_seed(0)
    model = SegnetModel(size="small", bands=("nir", "red", "green", "swir16"), legend=S2GLC).eval()
    reflectance = torch.rand(2, 3, 4, 8, 12)
    dates, clear = all_clear(reflectance)
    clear = torch.rand(clear.shape) > 0.3
    with torch.inference_mode():
        expected = model(reflectance, dates, clear)["probability"]
        alone = model(reflectance[1:], dates[1:], clear[1:])["probability"]
        reflectance = torch.cat([reflectance, torch.full((2, 1, 4, 8, 12), torch.nan)], dim=1)
        dates = torch.cat([dates, torch.zeros(2, 1, dtype=torch.bool)], dim=1)
        clear = torch.cat([clear, torch.zeros(2, 1, 8, 12, dtype=torch.bool)], dim=1)
        padded = model(reflectance, dates, clear)["probability"]
    assert expected.shape == (2, 14, 32, 48)
    assert torch.equal(padded, expected)
    assert torch.equal(alone, expected[1:])


def test_the_network_sees_the_upsampled_image():
    torch.manual_seed(0)
    model = SegnetModel(size="small", upscale=2).eval()
    image = torch.rand(1, 1, 3, 16, 16)
    with torch.inference_mode():
        expected = model.network(upsample_bicubic(model.statistics(image[:, 0]), 2))
        assert torch.allclose(compute(model, image)["logits"], expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"size": "large"}, {"upscale": 9}, {"composite": "max"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"large|9 is not|max"):
        SegnetModel(**wrong)


@pytest.mark.training
def test_the_small_size_learns_a_window():
    coarse, _, cropland = render_pair(64, 4)
    torch.manual_seed(0)
    model = SegnetModel(size="small").train()
    assert len(CROPLAND) == compute(model, coarse)["logits"].shape[1]
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        loss = F.cross_entropy(compute(model, coarse)["logits"], cropland)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = compute(model.eval(), coarse)["logits"].argmax(dim=1)
    both = torch.stack([found.flatten(), cropland.flatten()]).double()
    assert torch.corrcoef(both)[0, 1] > 0.95  # For two classes, the MCC.
