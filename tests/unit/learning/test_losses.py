"""Losses: values by hand, gradients, masks, and what the registered ones find."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from bigmap.learning.losses import (
    FeatureAffinity,
    Registration,
    binary_cross_entropy,
    class_weights,
    cross_entropy,
    downsample_area,
    mae_loss,
    mse_loss,
    radiometric_consistency,
    segmentation_loss,
    ssim_loss,
    uncertainty_loss,
)
from bigmap.learning.losses.masking import erode_mask
from bigmap.models.networks.colour_matching import ColourMatching
from bigmap.models.networks.shiftnet import ShiftNet, shift_lanczos

BATCH, BANDS, SIDE = 2, 3, 14


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, dtype=dtype)


def draw_mask(side: int = SIDE) -> Tensor:
    """Valid but for a corner of the first chip, so that SSIM windows remain."""
    valid = torch.ones(BATCH, side, side, dtype=torch.bool)
    valid[0, :2, :3] = False
    return valid


def make_losses(side: int = SIDE):
    """Each loss as a function of (prediction, reference, valid), with shapes of the two."""
    image, one = (BATCH, BANDS, side, side), (BATCH, 1, side, side)
    labels = torch.randint(0, BANDS, (BATCH, side, side))
    binary = labels.clamp(max=1)
    weights = class_weights(torch.tensor([5.0, 3.0, 2.0])).double()
    features = FeatureAffinity(BANDS, BANDS, subsample=2, block_px=10).double()
    shifted = Registered(Still(), loss=mae_loss, estimate_px=side, border_px=1)
    return {
        "bce": (one, lambda p, r, v: binary_cross_entropy(p, binary, valid=v)),
        "ce": (image, lambda p, r, v: cross_entropy(p, labels, valid=v)),
        "weighted ce": (image, lambda p, r, v: cross_entropy(p, labels, valid=v, weights=weights)),
        "mse": (image, lambda p, r, v: mse_loss(p, r, valid=v)),
        "mae": (image, lambda p, r, v: mae_loss(p, r, valid=v)),
        "ssim": (image, lambda p, r, v: ssim_loss(p, r, valid=v)),
        "affinity": (image, lambda p, r, v: features(p, r, valid=v)),
        "uncertainty": (image, lambda p, r, v: uncertainty_loss(p, p - 1, r, valid=v)),
        "registered": (image, lambda p, r, v: shifted(p, r, valid=v)),
        "consistency": (
            image,
            lambda p, r, v: radiometric_consistency(F.interpolate(p, scale_factor=1.5), r, valid=v),
        ),
    }


class Still(nn.Module):
    def forward(self, pairs: Tensor) -> Tensor:
        return torch.full((len(pairs), 2), 0.3, dtype=pairs.dtype)


class Registered(Registration):
    """A loss after registration, as objectives take it."""

    def __init__(self, estimator, *, loss, colours=None, **settings) -> None:
        super().__init__(estimator, colours=colours or nn.Identity(), **settings)
        self.loss = loss

    def forward(self, image: Tensor, target: Tensor, *, valid: Tensor) -> Tensor:
        matched, shifts_px, inside = super().forward(image, target, valid=valid)
        return self.loss(shift_lanczos(matched, shifts_px), target, valid=inside)


class LearntShift(nn.Module):
    """One shift for all, to be found by gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, pairs: Tensor) -> Tensor:
        self.seen = pairs.detach()
        return self.shift.expand(len(pairs), 2)


NAMES = sorted(make_losses())


@pytest.mark.parametrize("name", NAMES)
def test_invalid_pixels_change_neither_value_nor_gradient(name: str) -> None:
    shape, loss = make_losses()[name]
    valid = draw_mask()
    prediction, reference = draw(*shape).requires_grad_(), draw(*shape)
    value = loss(prediction, reference, valid)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert gradient.abs().sum() > 0
    spoilt = torch.where(valid[:, None], reference, torch.nan)
    again = loss(prediction, spoilt, valid)
    (same,) = torch.autograd.grad(again, prediction)
    torch.testing.assert_close(again, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(same, gradient, rtol=1e-9, atol=1e-15)
    assert torch.isfinite(same).all()


@pytest.mark.parametrize("name", [n for n in NAMES if "registered" not in n and n != "consistency"])
def test_gradients_are_zero_where_not_valid(name: str) -> None:
    """Registration moves pixels, and the consistency's mask is that of coarser ones."""
    shape, loss = make_losses()[name]
    prediction = draw(*shape).requires_grad_()
    loss(prediction, draw(*shape), draw_mask()).backward()
    outside = ~draw_mask()[:, None].expand(shape)
    assert prediction.grad is not None
    assert prediction.grad[outside].abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_nothing_valid_gives_zero_and_zero_gradients(name: str) -> None:
    shape, loss = make_losses()[name]
    prediction = draw(*shape).requires_grad_()
    value = loss(prediction, torch.full(shape, torch.nan), torch.zeros(BATCH, SIDE, SIDE).bool())
    value.backward()
    assert value == 0
    assert prediction.grad is not None
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_right(name: str) -> None:
    side = 12 if name == "ssim" else 6
    torch.manual_seed(1)
    shape, loss = make_losses(side)[name]
    valid = draw_mask(side)
    if name == "ssim":
        valid[0] = True
        shape, valid = (1, 1, side, side), valid[:1]
    reference = draw(*shape)
    prediction = draw(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, reference, valid), (prediction,), atol=1e-4)


def test_half_precision_is_widened() -> None:
    image = draw(1, 1, 64, 64, dtype=torch.bfloat16)
    target = image.float() + 1e-3
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    assert mae_loss(image, target, valid=valid).item() == pytest.approx(1e-3, rel=1e-3)


def test_masks_must_fit() -> None:
    with pytest.raises(ValueError, match=r"need bool \(batch, y, x\)"):
        mse_loss(draw(1, 1, 4, 4), draw(1, 1, 4, 4), valid=torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"need bool \(batch, y, x\)"):
        mse_loss(draw(2, 1, 4, 4), draw(2, 1, 4, 4), valid=torch.ones(1, 4, 4).bool())


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[[2.0, -1.0, 5.0]]]])
    labels = torch.tensor([[[1, 1, 255]]])
    valid = labels < 255
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    assert binary_cross_entropy(logits, labels, valid=valid).item() == pytest.approx(expected)
    assert segmentation_loss(logits, labels, valid=valid).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="need one logit per class"):
        segmentation_loss(logits, labels, valid=valid, weights=torch.ones(1))


def test_class_weights_by_hand() -> None:
    weights = class_weights(torch.tensor([80, 20, 0]))
    expected = [1 / math.log(1.82), 1 / math.log(1.22), 1 / math.log(1.02)]
    assert weights.tolist() == pytest.approx(expected)
    assert weights.tolist() == pytest.approx([1.6699, 5.0289, 50.4983], abs=1e-4)
    with pytest.raises(ValueError, match="all 0"):
        class_weights(torch.zeros(3))


def test_weighted_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 9.0]]).reshape(1, 2, 1, 3)
    labels = torch.tensor([[[0, 1, 255]]])
    valid = labels < 255
    each = [math.log1p(math.exp(-1)), math.log1p(math.exp(-3))]
    plain = cross_entropy(logits, labels, valid=valid)
    assert plain.item() == pytest.approx(sum(each) / 2)
    weighted = cross_entropy(logits, labels, valid=valid, weights=torch.tensor([1.0, 4.0]))
    assert weighted.item() == pytest.approx((each[0] + 4 * each[1]) / 5)
    for label in (2, -1):
        with pytest.raises(ValueError, match="not among 2 classes"):
            cross_entropy(logits, torch.full((1, 1, 3), label), valid=valid)


def test_differences_by_hand() -> None:
    image = torch.tensor([[[[1.0, 2.0]], [[0.0, 5.0]]]])
    target = torch.tensor([[[[3.0, 0.0]], [[1.0, 0.0]]]])
    valid = torch.tensor([[[True, False]]])
    assert mse_loss(image, target, valid=valid).item() == pytest.approx((4 + 1) / 2)
    assert mae_loss(image, target, valid=valid).item() == pytest.approx((2 + 1) / 2)


def test_ssim_equals_scikit_image() -> None:
    image, target = draw(2, 3, 24, 17), draw(2, 3, 24, 17)
    valid = torch.ones(2, 24, 17, dtype=torch.bool)
    theirs = [
        structural_similarity(
            each.numpy(), other.numpy(), channel_axis=0, data_range=0.7, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False,
        )
        for each, other in zip(image, target, strict=True)
    ]  # fmt: skip
    loss = ssim_loss(image, target, valid=valid, data_range=0.7)
    assert loss.item() == pytest.approx(1 - np.mean(theirs), abs=1e-9)
    assert ssim_loss(image, image, valid=valid).item() == pytest.approx(0, abs=1e-12)
    # Of the first chip, only windows centred from row 10 on are without the invalid row 4.
    valid[0, 4] = False
    maps = [
        structural_similarity(
            each.numpy(), other.numpy(), channel_axis=0, data_range=1.0, gaussian_weights=True,
            sigma=1.5, use_sample_covariance=False, full=True,
        )[1][:, top:-5, 5:-5]
        for each, other, top in zip(image, target, (10, 5), strict=True)
    ]  # fmt: skip
    expected = np.concatenate([each.ravel() for each in maps]).mean()
    loss = ssim_loss(image, target, valid=valid)
    assert loss.item() == pytest.approx(1 - expected, abs=1e-9)


def test_masks_are_eroded_by_squares() -> None:
    valid = torch.ones(1, 7, 9, dtype=torch.bool)
    valid[0, 3, 2] = False
    kept = erode_mask(valid, 1)[0]
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1:-1, 1:-1] = True
    expected[2:5, 1:4] = False
    assert torch.equal(kept, expected)


def compare_densely(match: nn.Conv2d, first: Tensor, second: Tensor) -> Tensor:
    """Equations 4 and 5 of Abadal et al. (2021) for one image, the matrices whole."""
    weight = match.weight.flatten(1)
    matched = torch.einsum("dc,cyx->dyx", weight, first) + match.bias[:, None, None]
    vectors = [each.flatten(1) for each in (matched, second)]
    unit = [each / each.norm(dim=0) for each in vectors]
    return (unit[0].T @ unit[0] - unit[1].T @ unit[1]).abs().mean()


@pytest.mark.parametrize("block_px", [1, 7, 512])
def test_affinity_in_blocks_equals_the_dense_one(block_px: int) -> None:
    first, second = draw(1, 5, 6, 7) - 0.5, draw(1, 4, 6, 7) - 0.5
    affinity = FeatureAffinity(5, 4, subsample=1, block_px=block_px).double()
    first.requires_grad_()
    valid = torch.ones(1, 6, 7, dtype=torch.bool)
    loss = affinity(first, second, valid=valid)
    dense = compare_densely(affinity.match, first[0], second[0])
    torch.testing.assert_close(loss, dense)
    gradients = [torch.autograd.grad(each, first)[0] for each in (loss, dense)]
    torch.testing.assert_close(*gradients)


def test_affinity_is_subsampled_and_masked() -> None:
    """Only the squares of 8 px that are valid throughout, of a mask twice as fine, are compared."""
    first, second = draw(1, 3, 24, 17), draw(1, 2, 24, 17)
    affinity = FeatureAffinity(3, 2).double()
    valid = torch.ones(1, 48, 34, dtype=torch.bool)
    valid[0, 47, 0] = False
    loss = affinity(first, second, valid=valid)
    squares = [
        torch.stack([
            each[0, :, row : row + 8, column : column + 8].mean(dim=(1, 2))
            for row, column in ((0, 0), (0, 8), (8, 0), (8, 8), (16, 8))
        ], dim=1)[..., None]
        for each in (first, second)
    ]  # fmt: skip
    torch.testing.assert_close(loss, compare_densely(affinity.match, *squares))
    with pytest.raises(ValueError, match="does not fit"):
        affinity(first, second, valid=valid[:, :47])
    with pytest.raises(ValueError, match="cannot be compared"):
        affinity(first, second[..., 1:], valid=valid)


def test_affinity_keeps_no_similarities_for_the_gradients() -> None:
    """What is saved for the backward pass grows with the pixels, not with their pairs."""
    affinity = FeatureAffinity(4, 4, subsample=1, block_px=64)
    first, second = (draw(1, 4, 32, 32, dtype=torch.float32).requires_grad_() for _ in range(2))
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        affinity(first, second, valid=valid)
    assert max(sizes) <= 4 * 32 * 32
    assert sum(sizes) < (32 * 32) ** 2 / 4


def test_area_average_by_hand() -> None:
    """Pixels of 2.5 fine ones: the third belongs to both by half."""
    row = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    halves = downsample_area(row, (1, 2))
    assert halves.tolist() == [pytest.approx([(1 + 2 + 2) / 2.5, (2 + 8 + 16) / 2.5])]
    image = draw(2, 3, 12, 20)
    torch.testing.assert_close(downsample_area(image, (3, 5)), F.avg_pool2d(image, 4))


def test_consistency_is_zero_for_what_averages_to_the_view() -> None:
    coarse = draw(1, 3, 6, 6)
    fine = F.interpolate(coarse, scale_factor=2)
    fine[..., ::2, :] += 0.1
    fine[..., 1::2, :] -= 0.1
    valid = torch.ones(1, 6, 6, dtype=torch.bool)
    assert radiometric_consistency(fine, coarse, valid=valid).item() == pytest.approx(0, abs=1e-12)
    brighter = radiometric_consistency(fine + 0.2, coarse, valid=valid)
    assert brighter.item() == pytest.approx(0.04)


def smooth_scene(side: int = 48) -> Tensor:
    noise = draw(1, 2, side + 16, side + 16, dtype=torch.float32)
    return F.avg_pool2d(F.avg_pool2d(noise, 5, stride=1), 5, stride=1)[..., 4:-4, 4:-4]


@pytest.mark.parametrize("loss", [mae_loss, mse_loss, ssim_loss])
def test_the_registered_loss_finds_a_known_shift(loss) -> None:
    scene = smooth_scene()
    known = torch.tensor([[1.6, -0.7]])
    # A blind corner, so that what the mask hides cannot lead the search.
    target = shift_lanczos(scene, known)
    valid = torch.ones(1, *scene.shape[-2:], dtype=torch.bool)
    valid[:, :12, :12] = False
    target[..., :12, :12] = torch.nan
    registered = Registered(LearntShift(), loss=loss, estimate_px=48)
    optimiser = torch.optim.Adam(registered.parameters(), lr=0.1)
    before = registered(scene, target, valid=valid)
    for _ in range(80):
        optimiser.zero_grad()
        registered(scene, target, valid=valid).backward()
        optimiser.step()
    found = registered.estimator.shift.detach()
    torch.testing.assert_close(found, known[0], atol=0.12, rtol=0)
    assert registered(scene, target, valid=valid) < 0.1 * before


def test_the_registered_loss_matches_resamples_and_crops() -> None:
    """The estimator sees the reference, then the matched image, in the central square."""
    image = draw(2, 2, 20, 20, dtype=torch.float32)
    target = draw(2, 2, 30, 30, dtype=torch.float32)
    valid = torch.ones(2, 30, 30, dtype=torch.bool)
    valid[0, 15, 15] = False
    spoilt = torch.where(valid[:, None], target, torch.nan)
    colours = nn.Conv2d(2, 2, 1)
    estimator = LearntShift()
    registered = Registered(estimator, colours=colours, loss=mae_loss, estimate_px=10, border_px=4)
    loss = registered(image, spoilt, valid=valid)
    matched = colours(F.interpolate(image, size=(30, 30), mode="bicubic"))
    inside = torch.zeros_like(valid)
    inside[:, 4:-4, 4:-4] = True
    expected = (matched - target).abs().mean(dim=1)[inside & valid].mean()
    torch.testing.assert_close(loss, expected)
    pair = torch.cat([torch.where(valid[:, None], target, matched), matched], dim=1)
    torch.testing.assert_close(estimator.seen, pair[..., 10:20, 10:20].detach())
    loss.backward()
    for part in (colours.weight, estimator.shift):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
    registered.estimate_px = 31
    with pytest.raises(ValueError, match="smaller than the 31 px"):
        registered(image, target, valid=valid)


def test_shiftnet_and_colour_matching_fit_the_registered_loss() -> None:
    """An untrained ShiftNet shifts nothing, so the loss is that of the matched image."""
    image, target = (draw(1, 3, 136, 132, dtype=torch.float32) for _ in range(2))
    valid = torch.ones(1, 136, 132, dtype=torch.bool)
    colours, network = ColourMatching(3), ShiftNet(3).eval()
    registered = Registered(network, colours=colours, loss=ssim_loss, estimate_px=128)
    loss = registered(image, target, valid=valid)
    inside = torch.zeros_like(valid)
    inside[:, 3:-3, 3:-3] = True
    torch.testing.assert_close(loss, ssim_loss(colours(image), target, valid=inside))
    loss.backward()
    assert network.shift.weight.grad is not None
    assert network.shift.weight.grad.abs().sum() > 0


def test_uncertainty_by_hand() -> None:
    image, target = torch.tensor([[[[1.0, 2.0, 9.0]]]]), torch.tensor([[[[1.5, 0.0, 0.0]]]])
    scale = torch.tensor([[[[0.0, math.log(4), 0.0]]]])
    valid = torch.tensor([[[True, True, False]]])
    loss = uncertainty_loss(image, scale, target, valid=valid)
    assert loss.item() == pytest.approx((0.5 + 2 / 4 + math.log(4)) / 2)
    likelihood = torch.distributions.Laplace(image, scale.exp()).log_prob(target)[..., :2].mean()
    assert loss.item() == pytest.approx(-likelihood.item() - math.log(2))
