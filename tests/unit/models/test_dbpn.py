"""D-DBPN: the paper's counts, its formulas, and tiles that equal the whole."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.models.layers import count_parameters
from bigmap.models.networks.dbpn import (
    DDBPN,
    SIZES,
    DbpnModel,
    ShuffledConvTranspose2d,
    find_dbpn_radius,
)
from tests.unit.models.single_image_cases import (
    all_clear,
    compare_tiles,
    compute,
    measure_reach,
    render_pair,
)

SAMPLING = {2: (2, 2), 4: (4, 2), 8: (8, 2)}


@pytest.mark.parametrize(("upscale", "count"), [(2, 5953526), (4, 10426358), (8, 23205878)])
def test_the_full_size_has_the_papers_parameters(upscale, count):
    with torch.device("meta"):
        model = DbpnModel(upscale=upscale)
    assert count_parameters(model) == count
    assert model.spec.halo_px == {2: 41, 4: 21, 8: 21}[upscale]
    kernels = {each.kernel_size[0] for each in model.modules() if hasattr(each, "kernel_size")}
    assert kernels == {1, 3, {2: 6, 4: 8, 8: 12}[upscale]}


@pytest.mark.parametrize(("kernel", "stride"), [(6, 2), (8, 4), (12, 8)])
def test_shuffled_is_a_transposed_convolution(kernel, stride):
    torch.manual_seed(0)
    layer = ShuffledConvTranspose2d(5, 7, kernel, stride, 2)
    image = torch.randn(2, 5, 6, 9)
    expected = F.conv_transpose2d(image, layer.weight, layer.bias, stride=stride, padding=2)
    assert expected.shape[-2:] == (6 * stride, 9 * stride)
    assert torch.allclose(layer(image), expected, atol=1e-6)


def reference(state, image, upscale, stages):
    """D-DBPN by the equations of Haris et al. (2018, section 3), newest results first."""
    stride, padding = SAMPLING[upscale]

    def act(values, name):
        slope = state[f"{name}.weight"]
        return torch.where(values >= 0, values, slope * values)

    def step(values, name, up):
        kind = F.conv_transpose2d if up else F.conv2d
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        return act(kind(values, weight, bias, stride=stride, padding=padding), f"{name}.1")

    def project(values, name, up):
        if f"{name}.fuse.0.weight" in state:
            weight, bias = state[f"{name}.fuse.0.weight"], state[f"{name}.fuse.0.bias"]
            values = act(F.conv2d(values, weight, bias), f"{name}.fuse.1")
        first = step(values, f"{name}.project", up)
        back = step(first, f"{name}.project_back", not up)
        return first + step(back - values, f"{name}.correct", up)

    x = act(F.conv2d(image, state["head.0.weight"], state["head.0.bias"], padding=1), "head.1")
    x = act(F.conv2d(x, state["head.2.weight"], state["head.2.bias"]), "head.3")
    fine, coarse = [project(x, "ups.0", True)], []
    for stage in range(stages - 1):
        coarse.insert(0, project(torch.cat(fine, 1), f"downs.{stage}", False))
        fine.insert(0, project(torch.cat(coarse, 1), f"ups.{stage + 1}", True))
    return F.conv2d(torch.cat(fine, 1), state["tail.weight"], state["tail.bias"], padding=1)


@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_the_network_is_the_papers_formulas(upscale):
    torch.manual_seed(0)
    network = DDBPN(4, upscale, features=12, width=6, stages=4).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.randn(2, 4, 7, 10)
    with torch.inference_mode():
        expected = reference(network.state_dict(), image, upscale, 4)
        assert expected.shape == (2, 4, 7 * upscale, 10 * upscale)
        assert expected.std() > 0.01
        assert torch.allclose(network(image), expected, atol=1e-5)


@pytest.mark.parametrize(("upscale", "stages"), [(2, 3), (4, 3), (8, 3), (2, 7), (4, 7), (8, 7)])
def test_an_output_pixel_sees_as_far_as_declared(upscale, stages):
    torch.manual_seed(0)
    network = DDBPN(1, upscale, features=2, width=2, stages=stages)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:  # Nothing cancels, so that all that can be reached is.
            parameter.data.abs_().div_(parameter.data.sum() ** 0.5)
        elif "bias" not in name:
            parameter.data.fill_(0.7)
    radius = find_dbpn_radius(upscale, stages)
    size = 2 * radius + 7
    reaches = [
        measure_reach(network, bands=1, size=size, pixel=(size // 2 * upscale + phase,) * 2)
        for phase in (0, upscale - 1)
    ]
    assert max(reaches) == radius


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_tiles_equal_the_whole(upscale, threads):
    torch.manual_seed(0)
    model = DbpnModel(size="small", upscale=upscale)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        windows = [(4, 8, 40, 36), (0, 0, 40, 48), (7, 3, 37, 45)]
        compare_tiles(model, windows, size=48)
    finally:
        torch.set_num_threads(before)


def test_tiles_of_the_full_width_equal_the_whole(monkeypatch):
    monkeypatch.setitem(SIZES, "small", (256, 64, 2))
    torch.manual_seed(0)
    compare_tiles(DbpnModel(size="small"), [(4, 8, 30, 26), (7, 3, 23, 17)], size=40)


@pytest.mark.long
@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_tiles_of_the_full_size_equal_the_whole(upscale):
    torch.manual_seed(0)
    model = DbpnModel(upscale=upscale)
    side = 2 * model.spec.halo_px + 12
    windows = [(4, 8, side, side), (7, 3, side - 9, side + 2)]
    compare_tiles(model, windows, size=side + 12)


def test_padded_dates_and_other_windows_change_nothing():
    model = DbpnModel(size="small", bands=("nir", "red", "green", "swir16")).eval()
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(2, 3, 4, 11, 14, generator=generator)
    dates, clear = all_clear(reflectance)
    clear = torch.rand(clear.shape, generator=generator) > 0.3
    with torch.inference_mode():
        expected = model(reflectance, dates, clear)["image"]
        alone = model(reflectance[1:], dates[1:], clear[1:])["image"]
        reflectance = torch.cat([reflectance, torch.full((2, 1, 4, 11, 14), torch.nan)], dim=1)
        dates = torch.cat([dates, torch.zeros(2, 1, dtype=torch.bool)], dim=1)
        clear = torch.cat([clear, torch.zeros(2, 1, 11, 14, dtype=torch.bool)], dim=1)
        padded = model(reflectance, dates, clear)["image"]
    assert expected.shape == (2, 4, 44, 56)
    assert torch.equal(padded, expected)
    assert torch.equal(alone, expected[1:])


def test_the_image_is_in_reflectance():
    """Statistics of the data set scale the network's image back."""
    torch.manual_seed(0)
    model = DbpnModel(size="small").eval()
    image = torch.rand(1, 1, 3, 8, 8)
    model.statistics.set([0.5] * 3, [0.1] * 3)
    with torch.inference_mode():
        restored = compute(model, image)["image"]
        assert torch.allclose(restored, model.network((image[:, 0] - 0.5) / 0.1) * 0.1 + 0.5)


def test_each_composite_is_what_the_network_sees():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 3, 8, 8)
    models = {how: DbpnModel(size="small", composite=how) for how in ("mean", "median")}
    models["mean"].load_state_dict(models["median"].state_dict())
    with torch.inference_mode():
        for how, single in (("mean", image.mean(1)), ("median", image.median(dim=1).values)):
            expected = compute(models[how].eval(), single[:, None])["image"]
            assert torch.allclose(compute(models[how], image)["image"], expected, atol=1e-5)
    assert DbpnModel(size="small", composite="clearest").spec.halo_px == 9 + 8


@pytest.mark.parametrize("wrong", [{"size": "large"}, {"upscale": 3}, {"composite": "max"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"large|3 is not|max"):
        DbpnModel(**wrong)


@pytest.mark.training
def test_the_small_size_learns_a_window():
    coarse, fine, _ = render_pair(24, 4)
    torch.manual_seed(0)
    model = DbpnModel(size="small").train()
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        image = compute(model, coarse)["image"]
        loss = F.mse_loss(model.statistics(image), model.statistics(fine))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20
