"""The dual network: land cover and image at twice the resolution, from one image.

Abadal et al., "A dual network for super-resolution and semantic segmentation of Sentinel-2
imagery", Remote Sensing 13, 2021, doi:10.3390/rs13224547.

The paper's: DeepLabV3+ with a ResNet-101 of output stride 32, one encoder for two decoders of the
same design, segmentation (SSSR) and image (SISR); skips from the backbone at 1/4 (F2) and 1/2 (F1)
of the input's resolution; an upsampling module on top of each decoder that ends in a 3 x 3
convolution; the bicubically upsampled input (F0) joined just before that, in the versions' ways;
upsampling by PixelShuffle; in v4 a segmentation head that keeps its channels, and a 1 x 1
convolution to 16 channels on its F0; image channels that are reduced progressively; a 1 x 1
convolution that matches the features whose affinities are compared.

Ours, as the text gives no widths of the decoders: 64 channels throughout, skips of 48 (F2) and
32 (F1) channels through 1 x 1 convolutions, image channels 64, 32, 16; dilations 3, 6 and 9 in the
pyramid; each PixelShuffle fed by a 3 x 3 convolution; no normalisation of the pooled features; the
compared features are those of the fine grid before F0 joins. With that v4 has 60.9 M parameters; a
public unofficial implementation has about 60.5 M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, ModelSpec, image_layer, probability_layer, probability_of
from bigmap.models.layers import upsample_bicubic
from bigmap.models.legends import S2GLC
from bigmap.models.networks.composites import check_composite
from bigmap.models.networks.deeplab import ASPP, RATES
from bigmap.models.networks.resnet import (
    BACKBONES,
    ConvNormReLU,
    ResNet,
    choose_backbone,
    init_convolutions,
)
from bigmap.models.networks.single_image import (
    SingleImageModel,
    choose_size,
    count_logits,
    find_halo,
    run_in_multiples,
)

OUTPUT_STRIDE = 32
UPSCALE = 2
EFFECTIVE_RADIUS_PX = 64
"""Context given to a window, in input pixels. The receptive field reaches some 1000 px, and image
pooling sees all of a window; this is what is kept of it."""
TOLERANCE = 0.02
"""Measured on the small size, trained for a short while on simulated land cover: windows differ
from an image of 256 input px by 0.005 at most, of 14 probabilities."""
SPREAD_FILTERS = 16
"""Of the 1 x 1 convolution on F0 in v4."""


@dataclass(frozen=True)
class DualSize:
    """Channels of a dual network."""

    backbone: str = "resnet101"
    width: int = 64
    """Of the encoder's stem."""
    pyramid: int = 256
    decoder: int = 64


SIZES = {"full": DualSize(), "small": DualSize("resnet18", width=16, pyramid=32, decoder=16)}


@dataclass(frozen=True)
class DualVersion:
    """What tells the paper's versions apart (its table 2)."""

    has_image_skip: bool
    """Whether the SISR branch sees F0."""
    has_segmentation_skip: bool
    """Whether the SSSR branch sees F0."""
    keeps_channels: bool
    """Whether the segmentation head keeps its channels, and its F0 passes a 1 x 1 convolution."""


VERSIONS = {
    "v1": DualVersion(has_image_skip=False, has_segmentation_skip=False, keeps_channels=False),
    "v2": DualVersion(has_image_skip=True, has_segmentation_skip=False, keeps_channels=False),
    "v3": DualVersion(has_image_skip=True, has_segmentation_skip=True, keeps_channels=False),
    "v4": DualVersion(has_image_skip=True, has_segmentation_skip=True, keeps_channels=True),
}


class ShuffleUp(nn.Module):
    """Doubles the resolution: a 3 x 3 convolution to four times the channels, PixelShuffle."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.expand = ConvNormReLU(fan_in, 4 * fan_out)

    def forward(self, features: Tensor) -> Tensor:
        """Upsample (batch, channel, y, x)."""
        return F.pixel_shuffle(self.expand(features), 2)


class DualDecoder(nn.Module):
    """From the pyramid at 1/32 to features at the input's resolution.

    Parameters
    ----------
    pyramid, quarter, half
        Channels of the pyramid, of F2 and of F1.
    width
        Channels within and of the result.
    """

    def __init__(self, pyramid: int, quarter: int, half: int, *, width: int) -> None:
        super().__init__()
        self.to_quarter = nn.Sequential(
            ShuffleUp(pyramid, width), ShuffleUp(width, width), ShuffleUp(width, width)
        )
        self.quarter_skip = ConvNormReLU(quarter, width * 3 // 4, 1)
        self.quarter_merge = ConvNormReLU(width + width * 3 // 4, width)
        self.to_half = ShuffleUp(width, width)
        self.half_skip = ConvNormReLU(half, width // 2, 1)
        self.half_merge = ConvNormReLU(width + width // 2, width)
        self.to_whole = ShuffleUp(width, width)

    def forward(self, deep: Tensor, quarter: Tensor, half: Tensor) -> Tensor:
        """Return (batch, width, y, x)."""
        features = torch.cat([self.to_quarter(deep), self.quarter_skip(quarter)], dim=1)
        features = self.to_half(self.quarter_merge(features))
        features = torch.cat([features, self.half_skip(half)], dim=1)
        whole: Tensor = self.to_whole(self.half_merge(features))
        return whole


class FineHead(nn.Module):
    """The head and the extra upsampling module of a branch.

    Parameters
    ----------
    fan_in
        Channels of the decoder.
    head, fine
        Channels of the head, and of the features on the fine grid.
    outputs
        Channels of the result.
    skip
        Channels of F0 that join, 0 for none.
    spread
        Filters of the 1 x 1 convolution that F0 passes first, 0 for none.
    """

    def __init__(
        self, fan_in: int, head: int, fine: int, *, outputs: int, skip: int, spread: int = 0
    ) -> None:
        super().__init__()
        self.head = ConvNormReLU(fan_in, head)
        self.finish = nn.Sequential(ConvNormReLU(head, fine), ShuffleUp(fine, fine))
        self.joins_image = skip > 0
        self.spread = nn.Conv2d(skip, spread, 1) if skip and spread else nn.Identity()
        self.last = nn.Conv2d(fine + (spread if skip and spread else skip), outputs, 3, padding=1)

    def forward(self, features: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result and the fine features, both on the grid of F0, ``image``."""
        fine = self.finish(self.head(features))
        joined = torch.cat([fine, self.spread(image)], dim=1) if self.joins_image else fine
        return self.last(joined), fine


class DualNetwork(nn.Module):
    """The network: image to logits and image of twice its size.

    Parameters
    ----------
    bands
        Channels of the input and of the image.
    outputs
        Channels of the logits.
    version
        The paper's ``v1`` to ``v4``.
    size
        Channels within.
    """

    def __init__(
        self, bands: int, outputs: int, version: str = "v4", size: DualSize = SIZES["full"]
    ) -> None:
        super().__init__()
        kind, width = VERSIONS[version], size.decoder
        self.encoder = ResNet(BACKBONES[size.backbone], bands, width=size.width)
        half, quarter, deep = (self.encoder.channels[index] for index in (0, 1, -1))
        self.pyramid = ASPP(deep, size.pyramid, RATES[OUTPUT_STRIDE])
        self.segmentation = DualDecoder(size.pyramid, quarter, half, width=width)
        self.image = DualDecoder(size.pyramid, quarter, half, width=width)
        kept = width if kind.keeps_channels else outputs
        self.segmentation_head = FineHead(
            width, kept, kept, outputs=outputs, skip=bands * kind.has_segmentation_skip,
            spread=SPREAD_FILTERS * kind.keeps_channels,
        )  # fmt: skip
        self.image_head = FineHead(
            width, width // 2, width // 4, outputs=bands, skip=bands * kind.has_image_skip
        )
        self.match = nn.Conv2d(kept, width // 4, 1)
        init_convolutions(self)

    def forward(self, image: Tensor, *, with_image: bool = True) -> dict[str, Tensor]:
        """Segment and super-resolve (batch, band, y, x), sides multiples of 32.

        Parameters
        ----------
        image
            Standardised.
        with_image
            Whether the SISR branch runs.

        Returns
        -------
        dict of str to torch.Tensor
            On the fine grid ``logits``, and with the SISR branch ``image``, standardised, and
            ``segmentation_features`` and ``image_features``, with the same number of channels.
        """
        half, quarter, *_, last = self.encoder(image)
        deep = self.pyramid(last)
        fine = upsample_bicubic(image, UPSCALE)
        features = self.segmentation(deep, quarter, half)
        logits, seen = self.segmentation_head(features, fine)
        if not with_image:
            return {"logits": logits}
        result, image_seen = self.image_head(self.image(deep, quarter, half), fine)
        return {
            "logits": logits,
            "image": result,
            "segmentation_features": self.match(seen),
            "image_features": image_seen,
        }


class DualModel(SingleImageModel):
    """The dual network of Abadal et al. on the composite of the clear dates.

    The network learns to go from 20 m to 10 m in the paper; on pixels of 10 m it maps 5 m, a
    scale that it has not seen. Image pooling looks at the whole window, so windows differ from
    the whole image by what the specification's tolerance says.

    Parameters
    ----------
    size
        ``full``, or ``small``: a narrow ResNet-18 and fewer of the other channels.
    bands
        Common names; by default the four of 10 m.
    legend
        Classes; by default those of S2GLC.
    composite
        ``clearest``, ``mean`` or ``median``; the paper has a single date.
    version
        ``v1`` to ``v4``, the paper's.
    backbone
        ``resnet18``, ``resnet34`` or ``resnet101``; ``auto`` is the size's own, resnet101 for the
        full one.
    image
        Whether maps have the super-resolved image too. Without, the SISR branch serves
        training only, and maps are made without it.
    """

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = ("blue", "green", "red", "nir"),
        legend: tuple[ClassEntry, ...] = S2GLC,
        composite: str = "clearest",
        version: str = "v4",
        backbone: str = "auto",
        image: bool = False,
    ) -> None:
        chosen = choose_size(SIZES, size)
        chosen = replace(chosen, backbone=choose_backbone(backbone, default=chosen.backbone))
        if version not in VERSIONS:
            raise ValueError(f"version {version!r} is unknown; there are {', '.join(VERSIONS)}")
        check_composite(composite)
        layers = (probability_layer(legend), *([image_layer(bands)] if image else []))
        spec = ModelSpec(
            name="dual",
            title=f"Dual network {version}: segmentation and super-resolution",
            paper="Abadal et al. 2021",
            bands=bands,
            upscale=UPSCALE,
            halo_px=find_halo(EFFECTIVE_RADIUS_PX, upscale=1, composite=composite),
            kind="large-field",
            legend=legend,
            extra_layers=layers,
            multiple_px=OUTPUT_STRIDE,
            tolerance=TOLERANCE,
        )
        super().__init__(spec, composite)
        self.writes_image = image
        self.network = DualNetwork(len(bands), count_logits(legend), version, chosen)

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run both branches; see :meth:`NetworkModel.compute`.

        Returns
        -------
        dict of str to torch.Tensor
            ``logits``, ``image`` (reflectance), ``segmentation_features`` and ``image_features``,
            the last two (batch, feature, 2 y, 2 x) for the feature affinity loss.
        """
        return self._run(self.make_image(reflectance, dates, clear), with_image=True)

    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows, without the SISR branch unless maps have the image."""
        composite = self.make_image(reflectance, dates, clear)
        outputs = self._run(composite, with_image=self.writes_image)
        scores = {"probability": probability_of(outputs["logits"])}
        return scores | ({"image": outputs["image"]} if self.writes_image else {})

    def _run(self, composite: Tensor, *, with_image: bool) -> dict[str, Tensor]:
        outputs = run_in_multiples(
            lambda padded: self.network(padded, with_image=with_image),
            composite,
            stride=OUTPUT_STRIDE,
            upscale=UPSCALE,
            training=self.training,
        )
        if with_image:
            outputs["image"] = self.statistics.restore(outputs["image"].float())
        return outputs
