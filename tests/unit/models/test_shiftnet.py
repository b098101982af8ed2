"""ShiftNet, Lanczos shifts and the colour-matching network."""

import math

import pytest
import torch
import torch.nn.functional as F

from bigmap.models.layers import count_parameters
from bigmap.models.networks.colour_matching import ColourMatching
from bigmap.models.networks.shiftnet import ShiftNet, shift_lanczos


def wave(down=0.0, right=0.0, *, side=64, periods=(3, 5, 8)):
    """Return a sum of waves, moved exactly: what a Fourier shift of it would be."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64),) * 2, indexing="ij")
    angles = [
        2 * math.pi * (k * (y - down) + (9 - k) * (x - right)) / side + 0.3 * k for k in periods
    ]
    return torch.stack([angle.sin() for angle in angles]).mean(dim=0)


def shift_by_fourier(image, down, right):
    frequency = torch.fft.fftfreq(image.shape[-1], dtype=torch.float64)
    phase = torch.exp(-2j * math.pi * (frequency[:, None] * down + frequency * right))
    return torch.fft.ifft2(torch.fft.fft2(image) * phase).real


def test_shiftnet_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count_parameters(ShiftNet()) == 34_187_648


def test_shiftnet_computes_what_the_public_code_does():
    torch.manual_seed(0)
    network = ShiftNet().eval()
    torch.nn.init.normal_(network.shift.weight, std=0.1)
    pairs = torch.rand(2, 2, 128, 128)
    x = pairs - pairs.mean(dim=(2, 3), keepdim=True)
    convs = iter(network.features[i] for i in (0, 2, 5, 7, 10, 12, 15, 17))
    with torch.no_grad():
        for index, layer in enumerate(convs):
            state = layer.norm
            x = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
            x = F.batch_norm(
                x, state.running_mean, state.running_var, state.weight, state.bias
            ).relu()
            if index in (1, 3, 5):
                x = F.max_pool2d(x, 2)
        hidden = F.linear(x.flatten(1), network.hidden.weight, network.hidden.bias).relu()
        torch.testing.assert_close(network(pairs), hidden @ network.shift.weight.T)
        # A brighter image is not a shifted one.
        torch.testing.assert_close(network(pairs + 0.2), network(pairs), atol=1e-4, rtol=0)


def test_untrained_shiftnet_shifts_nothing_and_can_learn():
    network = ShiftNet(channels=2)
    pairs = torch.rand(1, 4, 128, 128, requires_grad=True)
    shifts = network(pairs)
    assert torch.equal(shifts, torch.zeros(1, 2))
    image = pairs[:, 2:]
    torch.testing.assert_close(shift_lanczos(image, shifts), image, atol=1e-6, rtol=0)
    (shift_lanczos(image, shifts) - pairs[:, :2]).square().mean().backward()
    assert network.shift.weight.grad.abs().sum() > 0


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="128 x 128 px, not 64 x 128"):
        ShiftNet()(torch.zeros(1, 2, 64, 128))


@pytest.mark.parametrize(
    ("down", "right"), [(0.3, -0.45), (2.5, 1.25), (-3.7, 0.0), (0.5, 0.5), (4.0, -2.0)]
)
def test_lanczos_shifts_a_smooth_image_as_fourier_does(down, right):
    image = wave()
    torch.testing.assert_close(wave(down, right), shift_by_fourier(image, down, right))
    shifts = torch.tensor([[down, right]], dtype=torch.float64)
    found = shift_lanczos(image[None, None], shifts)[0, 0]
    inner = slice(8, -8)
    error = (found - wave(down, right))[inner, inner].abs().max().item()
    assert error < (1e-12 if (down, right) == (4.0, -2.0) else 0.01)
    # Back again.
    error = (shift_lanczos(found[None, None], -shifts)[0, 0] - image)[inner, inner].abs().max()
    assert error.item() < 0.02


def test_each_image_has_its_own_shift_and_flat_ones_stay_flat():
    images = torch.stack([wave(), torch.full((64, 64), 0.3, dtype=torch.float64)])[:, None]
    shifts = torch.tensor([[0.4, 0.0], [7.3, -2.6]], dtype=torch.float64)
    both = shift_lanczos(images, shifts)
    assert torch.equal(both[:1], shift_lanczos(images[:1], shifts[:1]))
    torch.testing.assert_close(both[1], images[1])


def test_the_gradient_of_a_shift_is_the_slope():
    image = wave()[None, None]
    shifts = torch.tensor([[0.2, -0.3]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda each: shift_lanczos(image[..., 20:36, 20:30], each), (shifts,), atol=1e-6
    )


def test_colour_matching_is_two_layers_for_each_pixel():
    torch.manual_seed(0)
    network = ColourMatching()
    assert count_parameters(network) == 3 * 64 + 64 + 64 * 3 + 3
    image = torch.rand(2, 3, 5, 7)
    first, _, second = network.layers
    pixels = image.permute(0, 2, 3, 1)
    hidden = (pixels @ first.weight[:, :, 0, 0].T + first.bias).relu()
    wanted = (hidden @ second.weight[:, :, 0, 0].T + second.bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(network(image), wanted)
    torch.testing.assert_close(network(image), image)
    network(image).square().mean().backward()
    assert (second.weight.grad[:, 3:] != 0).any(), "the other channels can learn"
    assert ColourMatching(12, reference_bands=3, width=8)(torch.rand(1, 12, 4, 4)).shape[1] == 3
