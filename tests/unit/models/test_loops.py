"""Compiled loops against the operations that they stand for, and the same bits wherever."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigmap.models.networks import loops
from bigmap.models.networks.temporal import FoldedAttention, PackedDates, TemporalAttention

DATES, HEIGHT, WIDTH = 5, 13, 27
"""351 pixels: two blocks of lanes and a part of a third."""


@pytest.fixture(params=[1, 2, 3], autouse=True)
def threads(request: pytest.FixtureRequest):
    """Compute with several numbers of threads, and without gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with torch.no_grad():
        yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def make_attention(channels: int) -> tuple[TemporalAttention, torch.nn.BatchNorm2d]:
    torch.manual_seed(channels)
    attention, norm = TemporalAttention(channels), torch.nn.BatchNorm2d(channels).eval()
    for bias in (attention.in_proj.bias, attention.out_proj.bias, norm.bias, norm.running_mean):
        bias.normal_(0, 0.3)
    attention.in_proj.weight.mul_(3)  # weights of dates far from equal
    norm.running_var.uniform_(0.3, 2)
    norm.weight.uniform_(-1.5, 1.5)
    return attention, norm


@pytest.mark.parametrize("channels", [1, 6, 16, 42])
@pytest.mark.parametrize("activate", [False, True])
def test_folded_attention_is_what_is_trained(channels: int, *, activate: bool) -> None:
    """Leaky ReLU, attention, skip, normalisation; any number of channels, windows of any dates."""
    attention, norm = make_attention(channels)
    packed = PackedDates.of(torch.tensor([[True] * 5, [True, False, True, True, False]]))
    features = draw(8, channels, HEIGHT, WIDTH)
    seen = F.leaky_relu(features)
    wanted = norm(seen + attention(seen, packed))
    wanted = F.leaky_relu(wanted) if activate else wanted
    folded = FoldedAttention(attention, norm, activate=activate)
    assert torch.allclose(folded(features.clone(), packed), wanted, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = folded(features.bfloat16(), packed)
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).abs().mean() < 0.02 * wanted.abs().mean()


def test_folded_attention_in_strips_is_that_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bfloat16 and GPUs compute with tensors."""
    attention, norm = make_attention(16)
    packed = PackedDates.of(torch.ones(2, 4, dtype=torch.bool))
    features = draw(8, 16, 9, 400)  # strips of two rows, and a last one of one
    folded = FoldedAttention(attention, norm, activate=True)
    compiled = folded(features.clone(), packed)
    monkeypatch.setattr(loops, "is_for_loops", lambda _: False)
    assert torch.allclose(folded(features.clone(), packed), compiled, atol=2e-5)


def test_attention_survives_large_and_equal_scores() -> None:
    """Softmax of scores in the hundreds takes the greatest one; of equal ones the mean."""
    attention, norm = make_attention(4)
    folded = FoldedAttention(attention, norm, activate=False)
    packed = PackedDates.of(torch.ones(1, 3, dtype=torch.bool))
    features = 40 * draw(3, 4, 8, 8)
    seen = F.leaky_relu(features)
    wanted = norm(seen + attention(seen, packed))
    assert torch.allclose(folded(features.clone(), packed), wanted, rtol=1e-4, atol=1e-3)
    features = draw(1, 4, 8, 8).expand(3, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    seen = F.leaky_relu(features)
    wanted = norm(seen + attention(seen, packed))
    assert torch.allclose(folded(features.clone(), packed), wanted, atol=2e-5)


def test_a_score_that_is_not_finite_stays_so() -> None:
    """Weights that are not finite must not become a map."""
    attention, norm = make_attention(4)
    attention.in_proj.weight[0, 0] = torch.nan
    folded = FoldedAttention(attention, norm, activate=True)
    packed = PackedDates.of(torch.ones(1, 3, dtype=torch.bool))
    assert not folded(draw(3, 4, 8, 8), packed).isfinite().any()
    attention, norm = make_attention(4)
    folded = FoldedAttention(attention, norm, activate=True)
    features = draw(3, 4, 8, 8)
    features[1, 2, 3, 4] = torch.inf
    made = folded(features, packed)
    assert not made[:, :, 3, 4].isfinite().all()
    made[:, :, 3, 4] = 0
    assert made.isfinite().all()


def test_a_pixel_has_the_same_bits_wherever_it_lies() -> None:
    """In a whole block of lanes, in a part of one, alone."""
    attention, norm = make_attention(16)
    folded = FoldedAttention(attention, norm, activate=True)
    packed = PackedDates.of(torch.ones(1, DATES, dtype=torch.bool))
    features = draw(DATES, 16, HEIGHT, WIDTH)
    whole = folded(features.clone(), packed)
    for rows, columns in ((slice(1, 9), slice(3, 20)), (slice(12, 13), slice(26, 27))):
        part = features[:, :, rows, columns].contiguous(memory_format=torch.channels_last)
        assert torch.equal(folded(part, packed), whole[:, :, rows, columns])


@pytest.mark.parametrize("channels", [5, 16])
def test_gated_features_are_added(channels: int) -> None:
    """In the memory of the change, with a gate for each date and channel."""
    features = draw(DATES, channels, HEIGHT, WIDTH)
    change = draw(DATES, channels, HEIGHT, WIDTH, seed=1)
    gate = torch.rand(DATES, channels)
    wanted = features + gate[:, :, None, None] * change
    made = loops.add_gated(features, change, gate)
    assert made.data_ptr() == change.data_ptr()
    assert torch.allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(13, 27), (1, 4), (2, 1)])
def test_dates_are_filtered_and_added(height: int, width: int) -> None:
    """Each with its own kernel; zeros beyond the edge, also where an image is smaller than it."""
    features, filters = draw(DATES, 6, height, width), torch.randn(DATES, 5, 5)
    wanted = sum(
        F.conv2d(date[:, None], each[None, None], padding=2)[:, 0]
        for date, each in zip(features, filters, strict=True)
    )
    assert torch.allclose(loops.filter_dates(features, filters), wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("strip_px", [65_536, 100])
def test_an_enlarged_image_is_convolved_before(
    scale: int, strip_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as enlarging it bilinearly and convolving it, edges included, in any strips."""
    monkeypatch.setattr(loops, "STRIP_PX", strip_px)
    coarse, weight = draw(1, 5, 24 // scale, 40 // scale), torch.randn(7, 5, 3, 3)
    total = draw(1, 7, 24, 40, seed=1)
    enlarged = F.interpolate(coarse, scale_factor=scale, mode="bilinear", align_corners=False)
    wanted = total[0] + F.conv2d(enlarged, weight, padding=1)[0]
    products = weight.permute(2, 3, 0, 1).flatten(0, 2)
    loops.add_convolved(total[0], coarse[0], products)
    assert torch.allclose(total[0], wanted, atol=1e-4)


def test_loops_need_a_cpu_float32_and_no_gradients() -> None:
    """Else tensors compute."""
    assert loops.is_for_loops(torch.zeros(1))
    assert not loops.is_for_loops(torch.zeros(1, dtype=torch.bfloat16))
    assert not loops.is_for_loops(torch.zeros(1, device="meta"))
    with torch.enable_grad():
        assert not loops.is_for_loops(torch.zeros(1))
