"""DeepLabV3+ on the bicubically upsampled mean of the dates: the trained baseline of SPInet.

Chen et al., "Encoder-decoder with atrous separable convolution for semantic image
segmentation", ECCV 2018, doi:10.1007/978-3-030-01234-2_49. SPInet's paper (Valsesia & Magli 2022)
compares itself with DeepLabv3 on the bicubic temporal mean and says no more of it. Ours: the
decoder of version 3+, plain convolutions in place of separable ones, no dropout, and no
normalisation of the pooled features, of which a batch of one image has a single value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, ModelSpec, probability_layer
from bigmap.models.layers import TYPICAL_STATISTICS
from bigmap.models.legends import CROPLAND
from bigmap.models.networks.composites import check_composite
from bigmap.models.networks.resnet import (
    BACKBONES,
    ConvNormReLU,
    ResNet,
    choose_backbone,
    init_convolutions,
)
from bigmap.models.networks.single_image import (
    SingleImageModel,
    check_upscale,
    choose_size,
    count_logits,
    enlarge,
    find_halo,
    find_multiple,
    run_in_multiples,
)

RATES = {16: (6, 12, 18), 32: (3, 6, 9)}
"""Dilations of the pyramid by output stride; those of 32 are halved as the features are (ours)."""
OUTPUT_STRIDE = 16
EFFECTIVE_RADIUS_PX = 256
"""Context given to a window, in pixels of the upsampled image. The receptive field of a ResNet-101
reaches some 1000 px, and image pooling sees all of a window; this is what is kept of it."""
TOLERANCE = 0.05
"""Measured on the small size, trained for a short while on simulated cropland: windows differ
from an image of 208 input px by 0.014 on average, 0.025 at most."""


@dataclass(frozen=True)
class DeepLabSize:
    """Channels of a DeepLabV3+."""

    backbone: str
    width: int
    """Of the encoder's stem; 64 in the paper."""
    pyramid: int
    """Of the pyramid and the decoder; 256 in the paper."""
    low_level: int
    """Of the skip; 48 in the paper."""


SIZES = {"full": DeepLabSize("resnet101", 64, 256, 48), "small": DeepLabSize("resnet18", 16, 32, 8)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, with the mean over the whole window as one level.

    Parameters
    ----------
    fan_in, fan_out
        Channels.
    rates
        Dilations of the 3 x 3 convolutions.
    """

    def __init__(self, fan_in: int, fan_out: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [
                ConvNormReLU(fan_in, fan_out, 1),
                *(ConvNormReLU(fan_in, fan_out, dilation=rate) for rate in rates),
            ]
        )
        self.pooled = nn.Conv2d(fan_in, fan_out, 1)
        self.project = ConvNormReLU(fan_out * (len(rates) + 2), fan_out, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Gather context for (batch, channel, y, x)."""
        mean = features.mean(dim=(2, 3), keepdim=True)
        pooled = F.relu(self.pooled(mean)).expand(-1, -1, *features.shape[-2:])
        levels = [level(features) for level in self.levels]
        projected: Tensor = self.project(torch.cat([*levels, pooled], dim=1))
        return projected


class DeepLabV3Plus(nn.Module):
    """The network: image to logits of the same size, a multiple of 16.

    Parameters
    ----------
    bands
        Channels of the input.
    outputs
        Channels of the logits.
    size
        Channels within.
    """

    def __init__(self, bands: int, outputs: int, size: DeepLabSize = SIZES["full"]) -> None:
        super().__init__()
        depth = BACKBONES[size.backbone]
        self.encoder = ResNet(depth, bands, width=size.width, output_stride=OUTPUT_STRIDE)
        self.pyramid = ASPP(self.encoder.channels[-1], size.pyramid, RATES[OUTPUT_STRIDE])
        self.low_level = ConvNormReLU(self.encoder.channels[1], size.low_level, 1)
        self.decoder = nn.Sequential(
            ConvNormReLU(size.pyramid + size.low_level, size.pyramid),
            ConvNormReLU(size.pyramid, size.pyramid),
        )
        self.classify = nn.Conv2d(size.pyramid, outputs, 1)
        init_convolutions(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (batch, output, y, x) of an image (batch, band, y, x)."""
        features = self.encoder(image)
        low = self.low_level(features[1])
        deep = resize(self.pyramid(features[-1]), low)
        logits = self.classify(self.decoder(torch.cat([deep, low], dim=1)))
        return resize(logits, image)


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Interpolate bilinearly to the size of another tensor, pixel areas kept aligned."""
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


class DeepLabModel(SingleImageModel):
    """DeepLabV3+ on the bicubically upsampled composite of the clear dates.

    Image pooling looks at the whole window, so windows differ from the whole image by what the
    specification's tolerance says.

    Parameters
    ----------
    size
        ``full``, or ``small``: a narrow ResNet-18 and an eighth of the other channels.
    bands
        Common names; by default the twelve of Sentinel-2's level 2A.
    legend
        Classes.
    upscale
        Output pixels per input pixel, 1 to 8.
    composite
        ``mean`` (SPInet's paper), ``median`` or ``clearest``.
    backbone
        ``resnet18``, ``resnet34`` or ``resnet101``; ``auto`` is the size's own, resnet101 for the
        full one.
    """

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = tuple(TYPICAL_STATISTICS),
        legend: tuple[ClassEntry, ...] = CROPLAND,
        upscale: int = 4,
        composite: str = "mean",
        backbone: str = "auto",
    ) -> None:
        chosen = choose_size(SIZES, size)
        chosen = replace(chosen, backbone=choose_backbone(backbone, default=chosen.backbone))
        check_upscale(upscale)
        check_composite(composite)
        spec = ModelSpec(
            name="deeplabv3plus",
            title="DeepLabV3+ on the bicubic temporal mean (SPInet's trained baseline)",
            paper="Chen et al. 2018",
            bands=bands,
            upscale=upscale,
            halo_px=find_halo(EFFECTIVE_RADIUS_PX, upscale=upscale, composite=composite),
            kind="large-field",
            legend=legend,
            extra_layers=(probability_layer(legend),),
            multiple_px=find_multiple(OUTPUT_STRIDE, upscale),
            tolerance=TOLERANCE,
        )
        super().__init__(spec, composite)
        self.network = DeepLabV3Plus(len(bands), count_logits(legend), chosen)

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Return ``logits``; see :meth:`NetworkModel.compute`."""
        image = enlarge(self.make_image(reflectance, dates, clear), self.spec.upscale)
        return run_in_multiples(
            lambda padded: {"logits": self.network(padded)},
            image,
            stride=OUTPUT_STRIDE,
            training=self.training,
        )
