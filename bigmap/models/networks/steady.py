"""Convolutions whose outputs do not depend, to the last bit, on the shape of the window.

oneDNN chooses how to add up a convolution by its shape. 3 x 3 convolutions with 16 channels or
more came out the same to the bit for every window tried (AVX2 and AVX-512, one and two threads).
These did not: kernels of 9 x 9 at the padded edge, 1 x 1 kernels with one to three outputs,
overlapping transposed convolutions, and single small images with few channels, which PyTorch does
not give to oneDNN at all. The classes here compute the same sums in forms that do. Parameters and
their names are those of the classes they stand for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNEL_BLOCK = 16
"""oneDNN works on blocks of 16 channels; fewer take other ways."""


class SteadyConv2d(nn.Conv2d):
    """A convolution with an odd kernel and stride 1 that keeps the size of the image.

    The image is padded beforehand, and channels are filled up with zeros to whole blocks.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel: int) -> None:
        super().__init__(fan_in, fan_out, kernel, padding=kernel // 2)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (batch, channel, y, x)."""
        margin = self.kernel_size[0] // 2
        more_in, more_out = -self.in_channels % CHANNEL_BLOCK, -self.out_channels % CHANNEL_BLOCK
        weight, bias = F.pad(self.weight, (0, 0, 0, 0, 0, more_in, 0, more_out)), self.bias
        assert bias is not None
        padded = F.pad(features, (margin,) * 4 + (0, more_in))
        return F.conv2d(padded, weight, F.pad(bias, (0, more_out)))[:, : self.out_channels]


class SteadyConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that multiplies the size by its stride, as PixelShuffle.

    Parameters
    ----------
    fan_in, fan_out
        Channels.
    kernel, stride
        In output pixels; the kernel measures between one and two strides.

    Notes
    -----
    Equal to ``nn.ConvTranspose2d(fan_in, fan_out, kernel, stride, padding, output_padding)`` with
    padding ceil((kernel - stride) / 2) and output padding 2 padding + stride - kernel: where
    kernel minus stride is even, kernels lie centred on their input pixel, else they reach one
    pixel farther up and left.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel: int, *, stride: int) -> None:
        if not stride <= kernel <= 2 * stride:
            raise ValueError(f"a kernel of {kernel} does not fit a stride of {stride}")
        padding = (kernel - stride + 1) // 2
        super().__init__(
            fan_in, fan_out, kernel, stride=stride, padding=padding,
            output_padding=2 * padding + stride - kernel,
        )  # fmt: skip

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve (batch, channel, y, x); the output size follows from the stride."""
        assert output_size is None
        assert self.bias is not None
        stride, reach = self.stride[0], int(self.kernel_size[0] > self.stride[0])
        bias = self.bias.repeat_interleave(stride**2)
        fine = F.conv2d(features, self._arrange(reach), bias, padding=reach)
        return F.pixel_shuffle(fine, stride)

    def _arrange(self, reach: int) -> Tensor:
        """Sort the weights by output phase: (out * stride * stride, in, 2 reach + 1 squared).

        Output pixel ``stride * q + phase`` takes input pixel ``q + shift`` times the weight at
        ``phase + padding - stride * shift``, where the kernel has one.
        """
        stride, kernel = self.stride[0], self.kernel_size[0]
        device = self.weight.device
        phase = torch.arange(stride, device=device)[:, None]
        shift = torch.arange(-reach, reach + 1, device=device)[None, :]
        place = phase + int(self.padding[0]) - stride * shift
        place = torch.where((place >= 0) & (place < kernel), place, kernel)  # beyond: zero
        weight = F.pad(self.weight, (0, 1, 0, 1))
        rows = weight.index_select(2, place.flatten()).unflatten(2, place.shape)
        both = rows.index_select(4, place.flatten()).unflatten(4, place.shape)
        # (in, out, row phase, row shift, column phase, column shift)
        arranged: Tensor = both.permute(1, 2, 4, 0, 3, 5).flatten(0, 2)
        return arranged
