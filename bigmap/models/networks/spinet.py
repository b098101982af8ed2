"""SPInet: many dates in any order to one super-resolved map of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, ModelSpec, NetworkModel, probability_layer
from bigmap.models.layers import BandStatistics, ConvNorm
from bigmap.models.legends import CROPLAND
from bigmap.models.networks import loops
from bigmap.models.networks.piunet import Backbone, choose_size
from bigmap.models.networks.temporal import PackedDates

UPSCALE = 4
SCALES = 4
FUSION_RADIUS_PX = 6
"""Reach of the fusion at input resolution: strided convolutions, resampling and the convolution
at each scale."""
L2A_BANDS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08",
    "nir09", "swir16", "swir22",
)  # fmt: skip
SIZES = {"full": (48, 16), "small": (16, 4)}
"""Channels and TEFA units; the small size is our choice."""


class MultiResolutionFusion(nn.Module):
    """Branches at 1, 1/2, 1/4 and 1/8 of the resolution, exchanged and projected to logits.

    The paper leaves open, so our choice: every convolution is 3 x 3 with BatchNorm and leaky
    ReLU, each branch starts from the one above it with stride 2, so that no pixel is skipped,
    branches go down by averaging and up bilinearly, and the projection is 1 x 1.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            ConvNorm(channels, channels, stride=1 if scale == 0 else 2) for scale in range(SCALES)
        )
        self.mixers = nn.ModuleList(ConvNorm(SCALES * channels, channels) for _ in range(SCALES))
        self.project = nn.Conv2d(SCALES * channels, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features (batch, channel, y, x) into logits (batch, class, y, x)."""
        height, width = features.shape[-2:]
        step = 2 ** (SCALES - 1)
        if height % step or width % step:
            features = F.pad(features, (0, -width % step, 0, -height % step), mode="replicate")
        branches = []
        for branch in self.branches:
            features = _activate(branch(features))
            branches.append(features)
        logits = torch.zeros((), device=features.device)
        weights = self.project.weight.split(branches[0].shape[1], dim=1)
        # The finest scale last, when what the others took is free. A projection of pixels and an
        # interpolation may change places, and logits are fewer than features.
        for scale in reversed(range(SCALES)):
            bias = None if scale else self.project.bias
            projected = F.conv2d(self._mix(branches, scale), weights[scale], bias)
            logits = logits + _resample(projected, scale)
        return logits[..., :height, :width]

    def _mix(self, branches: list[Tensor], scale: int) -> Tensor:
        """Join all branches at one scale and convolve them.

        At the full resolution a folded mixer convolves what is enlarged before it is.
        """
        mixer = self.mixers[scale]
        assert isinstance(mixer, ConvNorm)
        is_folded = isinstance(mixer.norm, nn.Identity)
        if scale or not is_folded or not loops.is_for_loops(branches[0]):
            return _activate(mixer(_gather(branches, scale)))
        weights = mixer.conv.weight.split(branches[0].shape[1], dim=1)
        total = F.conv2d(branches[0], weights[0], mixer.conv.bias, padding=1)
        for coarse, weight in zip(branches[1:], weights[1:], strict=True):
            # One product for each weight of the kernel: rows, columns, then channels.
            taps = weight.permute(2, 3, 0, 1).flatten(0, 2)
            for window, image in zip(total, coarse, strict=True):
                loops.add_convolved(window, image, taps)
        return _activate(total)


class FullResolutionHead(nn.Module):
    """The paper's ablation: two convolutions at full resolution, as many weights as the fusion."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        width = SCALES * channels
        self.first = ConvNorm(channels, width)
        self.second = ConvNorm(width, width)
        self.project = nn.Conv2d(width, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Turn features (batch, channel, y, x) into logits (batch, class, y, x)."""
        logits: Tensor = self.project(F.relu(self.second(F.relu(self.first(features)))))
        return logits


class SPInet(nn.Module):
    """The network of Valsesia and Magli (2022).

    Parameters
    ----------
    bands
        Input channels of each date.
    outputs
        Logits of each pixel.
    channels, units
        Features and TEFA units, 48 and 16 in the paper.
    fusion
        Whether the multi-resolution fusion makes the logits, or the ablation's head.
    """

    def __init__(
        self,
        bands: int = 12,
        outputs: int = 1,
        *,
        channels: int = 48,
        units: int = 16,
        fusion: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(bands, channels, units)
        # A convolution first, so that the paper's number of channels remains (our choice).
        self.enlarge = nn.Conv2d(channels, channels * UPSCALE**2, 3, padding=1)
        head = MultiResolutionFusion if fusion else FullResolutionHead
        self.head = head(channels, outputs)

    def forward(self, images: Tensor, packed: PackedDates) -> Tensor:
        """Segment packed dates (date, band, y, x): logits (batch, class, y * 4, x * 4)."""
        features = F.pixel_shuffle(self.enlarge(self.backbone(images, packed)), UPSCALE)
        logits: Tensor = self.head(features.contiguous(memory_format=torch.channels_last))
        return logits


class SpinetModel(NetworkModel):
    """Super-resolved classes from any number of dates, four pixels a side for each of the input.

    Parameters
    ----------
    size
        ``full`` as in the paper, or ``small`` with 16 channels and 4 TEFA units.
    bands
        Common names; the paper takes all twelve of L2A.
    legend
        Classes; the paper's are cropland and other.
    fusion
        Whether the head fuses four resolutions (MCC 0.802 in the paper) or keeps the full one
        (0.783).
    """

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = L2A_BANDS,
        legend: tuple[ClassEntry, ...] = CROPLAND,
        fusion: bool = True,
    ) -> None:
        super().__init__()
        channels, units = choose_size(size, SIZES)
        outputs = 1 if len(legend) == 2 else len(legend)
        self.statistics = BandStatistics(bands)
        self.network = SPInet(len(bands), outputs, channels=channels, units=units, fusion=fusion)
        self.spec = ModelSpec(
            name="spinet",
            title="SPInet: super-resolved segmentation invariant to the order of dates",
            paper="Valsesia & Magli 2022",
            bands=bands,
            upscale=UPSCALE,
            halo_px=self.network.backbone.radius_px + 1 + (FUSION_RADIUS_PX if fusion else 1),
            kind="windowed",
            legend=legend,
            extra_layers=(probability_layer(legend),),
            multiple_px=2 ** (SCALES - 1) // UPSCALE if fusion else 1,
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run the network; see :meth:`NetworkModel.compute`."""
        del clear  # The network learns from the pixels which of them to trust.
        packed = PackedDates.of(dates)
        return {"logits": self.network(self.statistics(packed.pack(reflectance)), packed)}


def _gather(branches: list[Tensor], scale: int) -> Tensor:
    """Bring all branches to one scale and join their channels."""
    return torch.cat([_resample(branch, i - scale) for i, branch in enumerate(branches)], dim=1)


def _activate(values: Tensor) -> Tensor:
    """Return the leaky ReLU of what nothing else needs."""
    return F.leaky_relu(values, inplace=not torch.is_grad_enabled())


def _resample(values: Tensor, octaves: int) -> Tensor:
    """Enlarge by two to the power of ``octaves``, bilinearly, or shrink by averaging."""
    if octaves > 0:
        return F.interpolate(values, scale_factor=2**octaves, mode="bilinear", align_corners=False)
    return F.avg_pool2d(values, 2**-octaves) if octaves < 0 else values
