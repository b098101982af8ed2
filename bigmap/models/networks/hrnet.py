"""HRNet for segmentation, with an upsampled image as input and no stride before its branches.

Sun et al., "High-resolution representations for labeling pixels and regions", 2019
(arXiv:1904.04514), in the form of Razzak et al. (2021), who map buildings: widths 18, 36, 72 and
144, both convolutions of the stem with stride 1. The head for object-contextual representations
is that of Yuan et al., "Object-contextual representations for semantic segmentation", ECCV 2020,
doi:10.1007/978-3-030-58539-6_11. Ours: bilinear upsampling with pixel areas kept aligned, no
dropout, and BatchNorm without synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, ModelSpec, probability_layer
from bigmap.models.layers import ConvNorm
from bigmap.models.legends import BUILDINGS
from bigmap.models.networks.composites import check_composite
from bigmap.models.networks.resnet import BasicBlock, Bottleneck, ConvNormReLU, init_convolutions
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

STRIDE = 8
"""Of the lowest of four branches."""
EFFECTIVE_RADIUS_PX = 96
"""Context given to a window, in pixels of the upsampled image; the receptive field of the full
size reaches 357 px."""
TOLERANCE = 0.02
OCR_TOLERANCE = 0.1
"""Tolerances are measured on the small size, trained for a short while on simulated cropland. Its
receptive field fits the halo, so that windows differ from an image of 192 input px by object
context alone: 0.04 on average, 0.07 at most. How much a network makes of this context is a matter
of its training: a badly trained one differed by 0.24."""


@dataclass(frozen=True)
class HRNetSize:
    """Channels and depth of an HRNet."""

    widths: tuple[int, ...] = (18, 36, 72, 144)
    """Of the branches, finest first."""
    stem: int = 64
    modules: tuple[int, ...] = (1, 4, 3)
    """Of the stages with two, three and four branches."""
    blocks: int = 4
    """Of each branch of a module, and of the first stage."""
    context: int = 512
    """Of the features that meet the objects; their keys have half as many."""


SIZES = {
    "full": HRNetSize(),
    "small": HRNetSize((8, 12, 16, 24), stem=16, modules=(1, 1, 1), blocks=2, context=32),
}


class Exchange(nn.Module):
    """Gives each branch the sum of all, brought to its resolution and width."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(
            nn.ModuleList(_make_path(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Exchange features between branches (batch, channel, y, x), finest first."""
        return [self._gather(branches, target) for target in range(len(branches))]

    def _gather(self, branches: list[Tensor], target: int) -> Tensor:
        paths = self.paths[target]
        assert isinstance(paths, nn.ModuleList)
        total = torch.zeros_like(branches[target])
        for source, path in enumerate(paths):
            total = total + upsample(path(branches[source]), 2 ** max(source - target, 0))
        return F.relu(total, inplace=True)


def _make_path(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        return ConvNorm(widths[source], widths[target], 1, bias=False)
    halvings = [
        ConvNormReLU(widths[source], widths[source], stride=2)
        for _ in range(target - source - 1)
    ]  # fmt: skip
    return nn.Sequential(*halvings, ConvNorm(widths[source], widths[target], stride=2, bias=False))


def upsample(features: Tensor, factor: int) -> Tensor:
    """Interpolate bilinearly by a whole factor, pixel areas kept aligned."""
    if factor == 1:
        return features
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


class HRModule(nn.Module):
    """Residual blocks on each branch, then an exchange."""

    def __init__(self, widths: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks))) for width in widths
        )
        self.exchange = Exchange(widths)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Transform branches (batch, channel, y, x), finest first."""
        exchanged: list[Tensor] = self.exchange(
            [branch(each) for branch, each in zip(self.branches, features, strict=True)]
        )
        return exchanged


class HRStage(nn.Module):
    """Opens a branch of half the resolution below the last, then runs modules."""

    def __init__(self, fan_in: int, widths: tuple[int, ...], modules: int, *, blocks: int) -> None:
        super().__init__()
        self.open = ConvNormReLU(fan_in, widths[-1], stride=2)
        self.body = nn.ModuleList(HRModule(widths, blocks) for _ in range(modules))

    def forward(self, features: list[Tensor], lowest: Tensor) -> list[Tensor]:
        """Transform branches; the new one is made of ``lowest``."""
        features = [*features, self.open(lowest)]
        for module in self.body:
            features = module(features)
        return features


class HRNetFeatures(nn.Module):
    """The network without its head: image to features of the same size, a multiple of 8.

    Parameters
    ----------
    bands
        Channels of the input; any number.
    size
        Channels and depth.
    """

    def __init__(self, bands: int, size: HRNetSize = SIZES["full"]) -> None:
        super().__init__()
        widths, wide = size.widths, size.stem * Bottleneck.expansion
        self.conv1 = ConvNormReLU(bands, size.stem)
        self.conv2 = ConvNormReLU(size.stem, size.stem)
        self.layer1 = nn.Sequential(
            Bottleneck(size.stem, size.stem),
            *(Bottleneck(wide, size.stem) for _ in range(size.blocks - 1)),
        )
        self.transition1 = ConvNormReLU(wide, widths[0])
        fans = (wide, *widths[1:])
        self.stages = nn.ModuleList(
            HRStage(fans[index], widths[: index + 2], count, blocks=size.blocks)
            for index, count in enumerate(size.modules)
        )
        self.channels = sum(widths)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of all branches, (batch, channel, y, x)."""
        lowest: Tensor = self.layer1(self.conv2(self.conv1(image)))
        features = [self.transition1(lowest)]
        for stage in self.stages:
            features = stage(features, lowest)
            lowest = features[-1]
        return torch.cat([upsample(x, 2**index) for index, x in enumerate(features)], dim=1)


class ObjectContext(nn.Module):
    """Describes each pixel by the objects it resembles; looks at the whole window.

    A rough segmentation weighs all pixels into one vector per class; each pixel then attends to
    these vectors, and what it finds is joined to its own features.

    Parameters
    ----------
    fan_in
        Channels of the features.
    classes
        Objects: one for each class.
    width
        Channels of pixels and objects.
    """

    def __init__(self, fan_in: int, classes: int, width: int) -> None:
        super().__init__()
        keys = width // 2
        self.rough = nn.Sequential(
            ConvNormReLU(fan_in, fan_in, 1), nn.Conv2d(fan_in, classes, 1)
        )  # fmt: skip
        self.pixels = ConvNormReLU(fan_in, width)
        self.query = nn.Sequential(ConvNormReLU(width, keys, 1), ConvNormReLU(keys, keys, 1))
        self.key = nn.Sequential(ConvNormReLU(width, keys, 1), ConvNormReLU(keys, keys, 1))
        self.value = ConvNormReLU(width, keys, 1)
        self.found = ConvNormReLU(keys, width, 1)
        self.join = ConvNormReLU(2 * width, width, 1)
        self.scale = keys**-0.5

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (batch, width, y, x) and rough logits (batch, class, y, x)."""
        rough, pixels = self.rough(features), self.pixels(features)
        shares = rough.flatten(2).softmax(dim=2)
        objects = (pixels.flatten(2) @ shares.mT).unsqueeze(3)
        query, key = self.query(pixels).flatten(2), self.key(objects).flatten(2)
        weights = (query.mT @ key * self.scale).softmax(dim=2)
        context = (self.value(objects).flatten(2) @ weights.mT).unflatten(2, pixels.shape[-2:])
        joined: Tensor = self.join(torch.cat([self.found(context), pixels], dim=1))
        return joined, rough


class HRNet(nn.Module):
    """The network: image to logits of the same size, a multiple of 8.

    Parameters
    ----------
    bands
        Channels of the input; any number.
    classes
        Of the legend; two give one channel of logits.
    size
        Channels and depth.
    ocr
        Whether the head gathers object context from the whole window.
    """

    def __init__(
        self, bands: int, classes: int, size: HRNetSize = SIZES["full"], *, ocr: bool = False
    ) -> None:
        super().__init__()
        self.features = HRNetFeatures(bands, size)
        fan_in = self.features.channels
        self.context = ObjectContext(fan_in, classes, size.context) if ocr else None
        outputs = 1 if classes == 2 else classes
        if ocr:
            self.classify = nn.Sequential(nn.Conv2d(size.context, outputs, 1))
        else:
            self.classify = nn.Sequential(
                ConvNormReLU(fan_in, fan_in, 1), nn.Conv2d(fan_in, outputs, 1)
            )  # fmt: skip
        init_convolutions(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Segment an image (batch, band, y, x).

        Returns
        -------
        dict of str to torch.Tensor
            (batch, class, y, x), one channel where there are two classes: ``logits``, and with
            object context ``auxiliary_logits``, of the rough segmentation, for a loss.
        """
        features = self.features(image)
        if self.context is None:
            return {"logits": self.classify(features)}
        features, rough = self.context(features)
        if rough.shape[1] == 2:
            rough = rough[:, 1:] - rough[:, :1]
        return {"logits": self.classify(features), "auxiliary_logits": rough}


class HrnetModel(SingleImageModel):
    """HRNet on the bicubically upsampled composite of the clear dates.

    Parameters
    ----------
    size
        ``full``, or ``small``: fewer channels and blocks.
    bands
        Common names; by default red, green and blue.
    legend
        Classes; by default buildings.
    upscale
        Output pixels per input pixel, 1 to 8; 2 is the whole factor next to the paper's 2.096.
    composite
        ``clearest`` (our reading of the paper's best view), ``mean`` or ``median``.
    ocr
        Whether the head gathers object context from the whole window. The paper's code has none.
    """

    heap_share = 2.05

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = ("red", "green", "blue"),
        legend: tuple[ClassEntry, ...] = BUILDINGS,
        upscale: int = 2,
        composite: str = "clearest",
        ocr: bool = False,
    ) -> None:
        chosen = choose_size(SIZES, size)
        count_logits(legend)
        check_upscale(upscale)
        check_composite(composite)
        spec = ModelSpec(
            name="hrnet",
            title="HRNet on a bicubic image" + (" with object context" if ocr else ""),
            paper="Razzak et al. 2021",
            bands=bands,
            upscale=upscale,
            halo_px=find_halo(EFFECTIVE_RADIUS_PX, upscale=upscale, composite=composite),
            kind="large-field",
            legend=legend,
            extra_layers=(probability_layer(legend),),
            multiple_px=find_multiple(STRIDE, upscale),
            tolerance=OCR_TOLERANCE if ocr else TOLERANCE,
        )
        super().__init__(spec, composite)
        self.network = HRNet(len(bands), len(legend), chosen, ocr=ocr)

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Return ``logits``, with ``ocr`` also ``auxiliary_logits`` of the same shape."""
        image = enlarge(self.make_image(reflectance, dates, clear), self.spec.upscale)
        return run_in_multiples(self.network, image, stride=STRIDE, training=self.training)
