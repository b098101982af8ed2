"""SegNet on the bicubically upsampled composite.

Badrinarayanan, Kendall & Cipolla, "SegNet: a deep convolutional encoder-decoder architecture for
image segmentation", TPAMI 2017, as Pereira & dos Santos (2020, section 3.2) use it. On upsampled
input it is their baseline trained on low resolution, without the super-resolution network.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, ModelSpec, NetworkModel, probability_layer
from bigmap.models.layers import BandStatistics, ConvNorm, upsample_bicubic
from bigmap.models.legends import CROPLAND
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, check_composite, compose
from bigmap.models.networks.dbpn import run_singly

CUBIC_RADIUS_PX = 2

SMALL_ELEMENTS = 20_480
"""Up to this many elements, PyTorch takes an image for small."""

SIZES = {
    "full": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "small": ((16, 1), (32, 1), (32, 1), (64, 1)),
}
"""Channels and number of convolutions of each level, from fine to coarse. Full is VGG16."""


class SegNet(nn.Module):
    """VGG16 with batch normalisation, mirrored, joined by the places of the maxima.

    The last convolution is normalised too, without ReLU: only so do the parameters add up to the
    count of the code (two per class more).

    Parameters
    ----------
    bands, classes
        Channels of the image and of the result.
    levels
        Channels and number of convolutions of each level, from fine to coarse.
    """

    def __init__(
        self, bands: int, classes: int, levels: tuple[tuple[int, int], ...] = SIZES["full"]
    ) -> None:
        super().__init__()
        finer = [bands] + [width for width, _ in levels]
        self.encoder = nn.ModuleList(
            _make_level([fan_in] + [width] * depth)
            for fan_in, (width, depth) in zip(finer, levels, strict=False)
        )
        finer[0] = classes
        self.decoder = nn.ModuleList(
            _make_level([width] * depth + [fan_out], is_last=number == 0)
            for number, (fan_out, (width, depth)) in enumerate(zip(finer, levels, strict=False))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # Our choice: He et al. (2015), since no weights of another task are loaded.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Score (batch, band, y, x) as (batch, class, y, x).

        An image whose sides are not multiples of 2 to the number of levels is padded with zeros
        below and to the right.
        """
        height, width = image.shape[-2:]
        multiple = 2 ** len(self.encoder)
        features = F.pad(image, (0, -width % multiple, 0, -height % multiple))
        places = []
        for level in self.encoder:
            features, place = pool(_run_level(level, features))
            places.append(place)
        for level, place in zip(reversed(self.decoder), reversed(places), strict=True):
            features = _run_level(level, unpool(features, place))
        return features[..., :height, :width]


def _make_level(widths: list[int], *, is_last: bool = False) -> nn.Sequential:
    """Chain convolutions between these widths, with ReLU but for the network's last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [ConvNorm(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[: len(layers) - is_last])


def _run_level(level: nn.Module, features: Tensor) -> Tensor:
    """Run a level, an image that PyTorch takes for small beside a copy of itself.

    PyTorch hands single small images to another library than oneDNN, which rounds otherwise:
    small windows would differ from large ones in their last bits.
    """
    is_doubled = not level.training and len(features) == 1 and features.numel() <= SMALL_ELEMENTS
    results: Tensor = level(torch.cat([features, features]) if is_doubled else features)
    return results[:1] if is_doubled else results


def pool(features: Tensor) -> tuple[Tensor, Tensor]:
    """Take the maxima of 2 x 2 pixels and their places.

    Parameters
    ----------
    features
        (batch, channel, y, x) of even sides.

    Returns
    -------
    maxima, places
        Half as large; ``places`` is uint8: 0 and 1 in the upper row, 2 and 3 in the lower.
    """
    width = features.shape[-1]
    maxima, indices = F.max_pool2d(features, 2, return_indices=True)
    return maxima, (indices // width % 2 * 2 + indices % 2).to(torch.uint8)


def unpool(values: Tensor, places: Tensor) -> Tensor:
    """Put values back to the places of the maxima, zeros elsewhere.

    As ``torch.nn.functional.max_unpool2d``, which on a GPU has no deterministic form.
    """
    spread = F.interpolate(values, scale_factor=2, mode="nearest")
    wanted = F.interpolate(places, scale_factor=2, mode="nearest")
    rows, cols = (torch.arange(size, device=values.device) % 2 for size in spread.shape[-2:])
    here = (rows[:, None] * 2 + cols).to(torch.uint8)
    return torch.where(wanted == here, spread, 0)


def find_segnet_radius(levels: tuple[tuple[int, int], ...] = SIZES["full"]) -> int:
    """Return the receptive radius in pixels of the network's image: 211 for VGG16.

    The reach of a pixel is followed back to the coarsest level and up again, for each place that
    it can have in the coarsest cell.
    """
    depths = [depth for _, depth in levels]
    radius = 0
    for pixel in range(2 ** len(depths)):
        first = last = pixel
        for depth in depths:
            first, last = (first - depth) // 2, (last + depth) // 2
        for depth in reversed(depths):
            first, last = 2 * first - depth, 2 * last + 1 + depth
        radius = max(radius, pixel - first, last - pixel)
    return radius


def find_segnet_multiple(upscale: int, levels: tuple[tuple[int, int], ...] = SIZES["full"]) -> int:
    """Return of what, in input pixels, windows must be multiples: cells of the coarsest level."""
    cell_px: int = 2 ** len(levels)
    return cell_px // math.gcd(cell_px, upscale)


class SegnetModel(NetworkModel):
    """Segmentation of a bicubically upsampled composite of the clear dates.

    Exact: SegNet has no operation on the whole window, and the halo covers its receptive field.

    Parameters
    ----------
    upscale
        Output pixels per input pixel, 1 to 8.
    composite
        How dates become the one image that the paper's network takes; see
        :func:`bigmap.models.networks.composites.compose`. Our choice: the median.
    size
        ``full``, or ``small``: four levels of one convolution, of 16 to 64 channels.
    bands
        Common names, any number. The paper's images are RGB, or near infrared, red and green.
    legend
        Classes. Each has its logit, also where there are two, since the paper trains a softmax
        by cross-entropy.

    Raises
    ------
    ValueError
        If an option is not one of these.
    """

    heap_share = 2.3

    def __init__(
        self,
        *,
        upscale: int = 4,
        composite: str = "median",
        size: str = "full",
        bands: tuple[str, ...] = ("red", "green", "blue"),
        legend: tuple[ClassEntry, ...] = CROPLAND,
    ) -> None:
        super().__init__()
        check_segnet(size)
        if not 1 <= upscale <= 8:
            raise ValueError(f"upscale {upscale} is not between 1 and 8")
        check_composite(composite)
        levels = SIZES[size]
        cubic_px = CUBIC_RADIUS_PX if upscale > 1 else 0
        reach_px = math.ceil(find_segnet_radius(levels) / upscale) + cubic_px
        self.composite = composite
        self.statistics = BandStatistics(bands)
        self.network = SegNet(len(bands), len(legend), levels)
        self.spec = ModelSpec(
            name="segnet",
            title="SegNet on the bicubically upsampled image",
            paper="Pereira & dos Santos 2020",
            bands=bands,
            upscale=upscale,
            halo_px=reach_px + COMPOSITE_HALO_PX[composite],
            kind="exact",
            legend=legend,
            extra_layers=(probability_layer(legend),),
            multiple_px=find_segnet_multiple(upscale, levels),
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Segment windows; see :meth:`NetworkModel.compute`."""
        single = self.statistics(compose(reflectance, dates, clear, self.composite))
        if self.spec.upscale > 1:
            single = upsample_bicubic(single, self.spec.upscale)
        single = single.contiguous(memory_format=torch.channels_last)
        logits = self.network(single) if self.training else run_singly(self.network, single)
        return {"logits": logits}


def check_segnet(size: str) -> None:
    """Refuse sizes that SegNet does not have.

    Raises
    ------
    ValueError
        If ``size`` is not one of them.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; there are {', '.join(SIZES)}")
