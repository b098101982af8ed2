"""ResNet encoders, with dilation in place of the last stride where features must stay fine."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.layers import ConvNorm

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of each stage by the number of layers (He et al. 2016, table 1)."""
BACKBONES = {f"resnet{depth}": depth for depth in STAGES}
BOTTLENECK_DEPTH = 50
"""From here on blocks are bottlenecks."""


class ConvNormReLU(ConvNorm):
    """A convolution without bias, its batch normalisation, and a ReLU."""

    def __init__(
        self, fan_in: int, fan_out: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__(fan_in, fan_out, kernel, stride=stride, dilation=dilation, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Convolve, normalise and rectify (batch, channel, y, x)."""
        return F.relu(super().forward(features), inplace=True)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Parameters
    ----------
    fan_in
        Channels of the input.
    width
        Channels within the block; the output has ``width * expansion``.
    stride
        Of the first 3 x 3 convolution.
    dilations
        Of the convolution that may have a stride, and of the one after it.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self, fan_in: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = ConvNormReLU(fan_in, width, stride=stride, dilation=first)
        self.conv2 = ConvNorm(width, width, dilation=second, bias=False)
        self.downsample = _make_shortcut(fan_in, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Transform (batch, channel, y, x)."""
        residual: Tensor = self.conv2(self.conv1(features))
        return F.relu(residual + self.downsample(features), inplace=True)


class Bottleneck(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1; parameters as in :class:`BasicBlock`.

    The stride lies on the 3 x 3 convolution, as in torchvision, so that no pixel is skipped.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self, fan_in: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        fan_out = width * self.expansion
        self.conv1 = ConvNormReLU(fan_in, width, 1)
        self.conv2 = ConvNormReLU(width, width, stride=stride, dilation=dilations[0])
        self.conv3 = ConvNorm(width, fan_out, 1, bias=False)
        self.downsample = _make_shortcut(fan_in, fan_out, stride)

    def forward(self, features: Tensor) -> Tensor:
        """Transform (batch, channel, y, x)."""
        residual: Tensor = self.conv3(self.conv2(self.conv1(features)))
        return F.relu(residual + self.downsample(features), inplace=True)


def _make_shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    if fan_in == fan_out and stride == 1:
        return nn.Identity()
    return ConvNorm(fan_in, fan_out, 1, stride=stride, bias=False)


class ResNet(nn.Module):
    """The encoder of a residual network (He et al. 2016, doi:10.1109/CVPR.2016.90).

    Modules are named as in torchvision; a convolution and its normalisation are one module here,
    with parts ``conv`` and ``norm``.

    Parameters
    ----------
    depth
        18, 34 or 101 layers.
    bands
        Channels of the input.
    width
        Channels of the stem and of the first stage's blocks; 64 in the paper.
    output_stride
        Pixels of the input per pixel of the last features: 32, or 16, where the last stage is
        dilated instead of strided (Chen et al. 2018, doi:10.1007/978-3-030-01234-2_49).

    Raises
    ------
    ValueError
        If there is no such depth or output stride.
    """

    def __init__(self, depth: int, bands: int, *, width: int = 64, output_stride: int = 32) -> None:
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth {depth} is not one of {', '.join(map(str, STAGES))}")
        if output_stride not in (16, 32):
            raise ValueError(f"output_stride {output_stride} is not 16 or 32")
        self.output_stride = output_stride
        self.conv1 = ConvNormReLU(bands, width, 7, stride=2)
        block = Bottleneck if depth >= BOTTLENECK_DEPTH else BasicBlock
        widths = [width * 2**stage for stage in range(4)]
        self.channels = (width, *(each * block.expansion for each in widths))
        """Of the features that :meth:`forward` returns."""
        stages = [
            _make_stage(block, self.channels[index], widths[index], blocks=blocks, stride=stride)
            for index, (blocks, stride) in enumerate(zip(STAGES[depth], (1, 2, 2), strict=False))
        ]
        self.layer1, self.layer2, self.layer3 = stages
        self.layer4 = _make_stage(
            block, self.channels[3], widths[3], blocks=STAGES[depth][3],
            stride=output_stride // 16, dilation=32 // output_stride,
        )  # fmt: skip
        init_convolutions(self)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Extract features of (batch, band, y, x), whose sides are multiples of the stride.

        Returns
        -------
        tuple of torch.Tensor
            Five, at 1/2 (stem), 1/4, 1/8, 1/16 and 1 / output stride of the input's resolution.
        """
        stem = self.conv1(image)
        quarter = self.layer1(F.max_pool2d(stem, 3, 2, 1))
        eighth = self.layer2(quarter)
        sixteenth = self.layer3(eighth)
        return stem, quarter, eighth, sixteenth, self.layer4(sixteenth)


def _make_stage(
    block: type[BasicBlock | Bottleneck],
    fan_in: int,
    width: int,
    *,
    blocks: int,
    stride: int,
    dilation: int = 1,
) -> nn.Sequential:
    # What stands before a dropped stride still sees undilated features.
    first = block(fan_in, width, stride=stride, dilations=(1, dilation))
    fan_out = width * block.expansion
    rest = (block(fan_out, width, dilations=(dilation, dilation)) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def choose_backbone(backbone: str, *, default: str) -> str:
    """Return the backbone that an option asks for, where ``auto`` is the default."""
    if backbone == "auto":
        return default
    if backbone not in BACKBONES:
        raise ValueError(
            f"backbone {backbone!r} is unknown; there are auto, {', '.join(BACKBONES)}"
        )
    return backbone


def init_convolutions(network: nn.Module) -> None:
    """Initialise convolutions for rectifiers (He et al. 2015), as torchvision's ResNet.

    Those without normalisation, which would start with large outputs, keep PyTorch's default.
    """
    for module in network.modules():
        if isinstance(module, ConvNorm):
            nn.init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
