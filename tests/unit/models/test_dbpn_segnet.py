"""D-DBPN and SegNet as one network."""

import pytest
import torch
import torch.nn.functional as F

from bigmap.models import build_model
from bigmap.models.layers import count_parameters
from bigmap.models.legends import S2GLC
from bigmap.models.networks.dbpn_segnet import DbpnSegnetModel
from tests.unit.models.single_image_cases import compare_tiles, compute, render_pair


@pytest.mark.parametrize(
    ("upscale", "count", "halo", "multiple"),
    [(2, 5953526, 106 + 41, 16), (4, 10426358, 53 + 21, 8), (8, 23205878, 27 + 21, 4)],
)
def test_both_parts_have_their_full_size(upscale, count, halo, multiple):
    with torch.device("meta"):
        model = DbpnSegnetModel(upscale=upscale)
    assert count_parameters(model) == count + 29444166
    assert (model.spec.halo_px, model.spec.multiple_px) == (halo, multiple)


def test_the_segmentation_sees_the_image_alone():
    """Logits follow from the image returned with them, in standardised units."""
    torch.manual_seed(0)
    model = DbpnSegnetModel(size="small", bands=("nir", "red", "green"), legend=S2GLC).eval()
    with torch.inference_mode():
        outputs = compute(model, torch.rand(2, 1, 3, 8, 12))
        assert outputs["image"].shape == (2, 3, 32, 48)
        assert outputs["logits"].shape == (2, 14, 32, 48)
        logits = model.network.segmenter(model.statistics(outputs["image"]))
        assert torch.allclose(logits, outputs["logits"], atol=1e-4)


def test_the_loss_of_the_classes_shapes_the_image():
    torch.manual_seed(0)
    model = DbpnSegnetModel(size="small").train()
    compute(model, torch.rand(1, 1, 3, 8, 8))["logits"].square().sum().backward()
    gradients = [each.grad for each in model.network.resolver.parameters()]
    assert all(each is not None and each.abs().sum() > 0 for each in gradients)


def test_evaluation_and_training_mode_give_the_same_image():
    torch.manual_seed(0)
    model = DbpnSegnetModel(size="small", upscale=2)
    reflectance = torch.rand(2, 1, 3, 16, 16)
    with torch.inference_mode():
        training = compute(model.train(), reflectance)["image"]
        evaluation = compute(model.eval(), reflectance)["image"]
    assert torch.allclose(training, evaluation, atol=1e-5)


@pytest.mark.parametrize("upscale", [2, 4, 8])
def test_tiles_equal_the_whole(upscale):
    torch.manual_seed(0)
    model = DbpnSegnetModel(size="small", upscale=upscale)
    step = model.spec.multiple_px
    side = 2 * (-(-model.spec.halo_px // step) * step) + step
    windows = [(step, step, side, side), (0, 2 * step, side + step, side + step)]
    compare_tiles(model, windows, size=side + 3 * step)


def test_maps_have_classes_and_the_image():
    spec = build_model("dbpn-segnet", {"size": "small"}).spec
    names = [layer.name for layer in spec.default_layers]
    assert names == ["class", "confidence", "observations", "image"]
    assert spec.kind == "exact"


@pytest.mark.parametrize("wrong", [{"size": "large"}, {"upscale": 3}, {"composite": "max"}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=r"large|3 is not|max"):
        DbpnSegnetModel(**wrong)


@pytest.mark.training
def test_the_small_size_learns_a_window():
    """By the paper's loss, 0.1 times the L1 distance and 1000 times the cross-entropy."""
    coarse, fine, cropland = render_pair(32, 4)
    torch.manual_seed(0)
    model = DbpnSegnetModel(size="small").train()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(160):
        outputs = compute(model, coarse)
        cross_entropy = F.cross_entropy(outputs["logits"], cropland)
        loss = 0.1 * F.l1_loss(outputs["image"], fine) + 1000 * cross_entropy
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Statistics kept for evaluation lag behind an image that still changes; these are the batch's.
    found = outputs["logits"].argmax(dim=1)
    both = torch.stack([found.flatten(), cropland.flatten()]).double()
    assert torch.corrcoef(both)[0, 1] > 0.95  # For two classes, the MCC.
