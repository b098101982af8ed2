"""Views, super-resolution and HRNet in one model."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.errors import ModelError
from bigmap.models import read_tensors, save_weights
from bigmap.models.layers import count_parameters, upsample_bicubic
from bigmap.models.networks.composites import compose
from bigmap.models.networks.highresnet import HighresnetModel
from bigmap.models.networks.hrnet import HRNet
from bigmap.models.networks.pipelines import VIEWS, SrHrnetModel, pick_clearest_views
from bigmap.models.networks.srresnet import SrresnetModel
from bigmap.models.published import Images, import_weights
from tests.unit.models.single_image_cases import all_clear, compute, render_pair


def make_input(*, time=6, size=24, batch=2, bands=3):
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(batch, time, bands, size, size + 8, generator=generator)
    coarse = torch.rand(batch, time, size // 4, (size + 8) // 4, generator=generator) > 0.4
    clear = coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    return reflectance, torch.ones(batch, time, dtype=torch.bool), clear


def test_views_are_ordered_by_the_clear_pixels_around():
    reflectance, dates, clear = make_input()
    dates[1, 4:] = False
    clear[0, :, :4, :4] = False
    views = pick_clearest_views(reflectance, dates, clear, count=4)
    assert torch.equal(views[:, 0], compose(reflectance, dates, clear, "clearest"))
    seen = clear & dates[:, :, None, None]
    for batch, y, x in ((0, 10, 11), (1, 3, 20), (0, 23, 31), (1, 16, 0)):
        box = seen[batch, :, max(0, y - 8) : y + 9, max(0, x - 8) : x + 9].sum(dim=(1, 2)).tolist()
        clear_dates = [date for date in range(6) if seen[batch, date, y, x]]
        ranked = sorted(clear_dates, key=lambda date: (-box[date], date))
        assert len(ranked) > 1
        for view in range(4):
            expected = reflectance[batch, ranked[view % len(ranked)], :, y, x]
            assert torch.equal(views[batch, view, :, y, x], expected)
    assert torch.allclose(views[0, 2, :, 1, 2], reflectance[0, :, :, 1, 2].mean(dim=0))


@pytest.mark.parametrize(
    ("views", "halo", "resolver"),
    [
        ("best", 48 + 10, None),
        ("best-four", 48 + 10, None),
        ("single", 48 + 18 + 8, SrresnetModel),
        ("multi", 48 + 6 + 3 * 4 + 1, HighresnetModel),
    ],
)
def test_each_pipeline_has_its_parts(views, halo, resolver):
    with torch.device("meta"):
        model = SrHrnetModel(views=views)
        hrnet = HRNet(12 if views == "best-four" else 3, 2)
        before = count_parameters(resolver(upscale=2)) if resolver else 0
    assert count_parameters(model) == count_parameters(hrnet) + before
    assert model.spec.halo_px == halo
    assert model.spec.multiple_px == 4
    assert model.spec.max_dates == (16 if views == "multi" else None)
    layers = [layer.name for layer in model.spec.default_layers]
    assert ("image" in layers) == (resolver is not None)


@pytest.mark.parametrize("views", list(VIEWS))
def test_hrnet_sees_the_views_standardised(views):
    torch.manual_seed(0)
    model = SrHrnetModel(size="small", views=views, bands=("green", "red")).eval()
    model.statistics.set([0.4, 0.6], [0.2, 0.3])
    inputs = make_input(bands=2)
    with torch.inference_mode():
        outputs = model.compute(*inputs)
        if views in {"single", "multi"}:
            image = model.resolver.compute(*inputs)["image"]
            assert torch.equal(outputs["image"], image)
        else:
            count = 4 if views == "best-four" else 1
            image = upsample_bicubic(pick_clearest_views(*inputs, count=count).flatten(1, 2), 2)
            assert "image" not in outputs
        repeats = image.shape[1] // 2
        mean = torch.tensor([0.4, 0.6] * repeats)[:, None, None]
        std = torch.tensor([0.2, 0.3] * repeats)[:, None, None]
        expected = model.network((image - mean) / std)["logits"]
    assert outputs["logits"].shape == (2, 1, 48, 64)
    # The logits of random weights go into the hundreds.
    assert torch.allclose(outputs["logits"], expected, rtol=1e-3, atol=1e-3)


def test_the_super_resolution_sees_what_its_model_would():
    """Weights of a model trained alone go into the pipeline as they are."""
    torch.manual_seed(0)
    alone = SrresnetModel(size="small", composite="clearest", bands=("blue", "green", "red"))
    model = SrHrnetModel(size="small", views="single")
    model.resolver.load_state_dict(alone.state_dict())
    inputs = make_input()
    with torch.inference_mode():
        expected = alone.eval().compute(*inputs)["image"]
        assert torch.equal(model.eval().compute(*inputs)["image"], expected)


@pytest.mark.parametrize("views", list(VIEWS))
def test_padded_dates_change_nothing(views):
    torch.manual_seed(0)
    model = SrHrnetModel(size="small", views=views).eval()
    reflectance, dates, clear = make_input(size=16)
    with torch.inference_mode():
        expected = model(reflectance, dates, clear)
        reflectance = torch.cat([reflectance, torch.full((2, 2, 3, 16, 24), torch.nan)], dim=1)
        dates = torch.cat([dates, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
        clear = torch.cat([clear, torch.ones(2, 2, 16, 24, dtype=torch.bool)], dim=1)
        for name, values in model(reflectance, dates, clear).items():
            assert torch.allclose(values, expected[name], atol=1e-6)


@pytest.mark.parametrize("views", list(VIEWS))
def test_windows_lie_within_the_tolerance_of_the_whole(views):
    torch.manual_seed(0)
    model = SrHrnetModel(size="small", views=views).eval()
    spec = model.spec
    halo = -(-spec.halo_px // spec.multiple_px) * spec.multiple_px
    reflectance, dates, clear = make_input(time=3, size=192, batch=1)
    row, col, side = 16, 28, 2 * halo + 16
    cut = (..., slice(row, row + side), slice(col, col + side))
    with torch.inference_mode():
        whole = model(reflectance, dates, clear)["probability"]
        part = model(reflectance[cut], dates, clear[cut])["probability"]
    inside = part[..., 2 * halo : -2 * halo, 2 * halo : -2 * halo]
    top, left = 2 * (row + halo), 2 * (col + halo)
    expected = whole[..., top : top + 32, left : left + 32]
    assert inside.shape == expected.shape == (1, 2, 32, 32)
    assert expected.std() > 0
    assert (inside - expected).abs().mean() < spec.tolerance


def test_weights_hold_each_tensor_once(tmp_path):
    model = SrHrnetModel(size="small", views="multi")
    save_weights(model, tmp_path / "weights.safetensors")
    assert set(read_tensors(tmp_path / "weights.safetensors")) == set(model.state_dict())


def test_an_import_leaves_no_part_random(tmp_path):
    """The weights of HRNet alone are not those of a model that super-resolves first."""
    torch.save(SrHrnetModel(size="small", views="single").network.state_dict(), tmp_path / "a.pt")
    options = {"size": "small", "views": "single"}
    with pytest.raises(ModelError, match=r"tensor resolver\..* is missing, which sr-hrnet has"):
        import_weights("sr-hrnet", tmp_path / "a.pt", tmp_path / "w.safetensors", options=options)
    whole = SrHrnetModel(**options)
    whole.statistics.set([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    torch.save(whole.state_dict(), tmp_path / "b.pt")
    import_weights("sr-hrnet", tmp_path / "b.pt", tmp_path / "w.safetensors", options=options)
    written = read_tensors(tmp_path / "w.safetensors")
    assert written.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(written[name], tensor)
    with pytest.raises(ModelError, match="holds the statistics of its images; leave --input-scale"):
        import_weights(
            "sr-hrnet", tmp_path / "b.pt", tmp_path / "w.safetensors", options=options,
            images=Images(scale=2.0),
        )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"size": "large"}, {"views": "five"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"large|five"):
        SrHrnetModel(**wrong)


@pytest.mark.training
@pytest.mark.parametrize("views", ["best-four", "single"])
def test_the_small_size_learns_a_window(views):
    """Cropland, of which this window has more than of buildings."""
    coarse, _, cropland = render_pair(64, 2)
    inputs = (coarse, *all_clear(coarse))
    torch.manual_seed(0)
    model = SrHrnetModel(size="small", views=views, bands=("red", "green", "blue")).train()
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    truth = cropland[:, None].float()
    for _ in range(60):
        loss = F.binary_cross_entropy_with_logits(model.compute(*inputs)["logits"], truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = (compute(model, coarse)["logits"] > 0).double()
    both = torch.stack([found.flatten(), truth.double().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.95  # For two classes, the MCC.
