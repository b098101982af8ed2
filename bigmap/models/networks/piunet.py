"""PIUnet: many dates in any order to one super-resolved image with its uncertainty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ModelSpec, NetworkModel, image_layer, uncertainty_layer
from bigmap.models.layers import BandStatistics, ConvNorm
from bigmap.models.networks import loops
from bigmap.models.networks.temporal import FoldedAttention, PackedDates, TemporalAttention

CHANNELS_PER_GATE_FEATURE = 8
FILTER_PX = 5
SIZES = {"full": (42, 16), "small": (16, 4)}
"""Channels and TEFA units; the small size is our choice."""


class TemporalBlock(nn.Module):
    """Convolution, BatchNorm, leaky ReLU, + attention over time, BatchNorm; leaky ReLU if asked."""

    folded: FoldedAttention | None
    """All that follows the convolution, once it is folded."""

    def __init__(self, fan_in: int, channels: int, *, activate: bool = False) -> None:
        super().__init__()
        self.convolution = ConvNorm(fan_in, channels)
        self.attention = TemporalAttention(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.activate = activate
        self.folded = None

    def fold(self) -> None:
        """Multiply the matrices around the attention and the last normalisation together."""
        if self.folded is None:
            self.folded = FoldedAttention(self.attention, self.norm, activate=self.activate)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Transform packed dates (date, channel, y, x)."""
        features = self.convolution(features)
        # A convolution of one band forgets the layout, which all that follows needs to be fast.
        features = features.contiguous(memory_format=torch.channels_last)
        if self.folded is not None:
            folded: Tensor = self.folded(features, packed)
            return folded
        features = F.leaky_relu(features)
        features = self.norm(features + self.attention(features, packed))
        return F.leaky_relu(features) if self.activate else features


class Gate(nn.Module):
    """A weight in 0..1 for each channel of a window, from its mean over time, y and x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        bottleneck = channels // CHANNELS_PER_GATE_FEATURE
        self.squeeze = nn.Linear(channels, bottleneck)
        self.excite = nn.Linear(bottleneck, channels)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Weigh packed dates (date, channel, y, x): (batch, channel)."""
        mean = packed.average(_average_pixels(features))
        logits = _project(self.excite, F.leaky_relu(_project(self.squeeze, mean)))
        # In float64, because the last elements of a tensor take another route through the
        # processor than the rest: which those are, and so the last bit, depends on the batch.
        return torch.sigmoid(logits.double()).float()


class TEFA(nn.Module):
    """Temporally equivariant feature attention: two blocks, gated by channel, on a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = TemporalBlock(channels, channels, activate=True)
        self.second = TemporalBlock(channels, channels)
        self.gate = Gate(channels)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Transform packed dates (date, channel, y, x)."""
        change = self.second(self.first(features, packed), packed)
        gate = packed.spread(self.gate(change, packed))
        if loops.is_for_loops(change):
            return loops.add_gated(features, change, gate)
        return torch.addcmul(features, change, gate.to(change.dtype)[:, :, None, None])


class FilterEstimator(nn.Module):
    """A registration filter for each date, from the mean of its features over y and x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = TemporalBlock(channels, channels)
        self.project = nn.Linear(channels, FILTER_PX**2)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Estimate filters (date, 5, 5) of packed dates (date, channel, y, x)."""
        mean = _average_pixels(F.leaky_relu(self.block(features, packed)))
        filters = _project(self.project, mean)
        return filters.view(-1, FILTER_PX, FILTER_PX)


class TERN(nn.Module):
    """Temporally equivariant registration: each date is filtered by its own 5 x 5 kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.estimator = FilterEstimator(channels)

    def forward(self, features: Tensor, packed: PackedDates) -> Tensor:
        """Register packed dates (date, channel, y, x) and average them: (batch, channel, y, x)."""
        filters = self.estimator(features, packed)
        if loops.is_for_loops(features):
            windows = zip(features.split(packed.counts), filters.split(packed.counts), strict=True)
            return torch.stack([loops.filter_dates(x, each / len(x)) for x, each in windows])
        # Channels as the batch and dates as groups: all channels of a date share its filter.
        swapped = features.transpose(0, 1).contiguous()
        registered = F.conv2d(
            swapped, filters.unsqueeze(1), padding=FILTER_PX // 2, groups=len(filters)
        )
        return packed.average(registered.transpose(0, 1))


class Backbone(nn.Module):
    """What PIUnet and SPInet share, up to the mean over time.

    Parameters
    ----------
    bands
        Input channels of each date.
    channels
        Features throughout.
    units
        TEFA units.
    """

    def __init__(self, bands: int, channels: int, units: int) -> None:
        super().__init__()
        self.first = TemporalBlock(bands, channels)
        self.units = nn.ModuleList(TEFA(channels) for _ in range(units))
        self.middle = TemporalBlock(channels, channels)
        self.registration = TERN(channels)

    @property
    def radius_px(self) -> int:
        """Reach of the convolutions and filters, without the means over a window."""
        return 1 + 2 * len(self.units) + 1 + FILTER_PX // 2

    def forward(self, images: Tensor, packed: PackedDates) -> Tensor:
        """Fuse packed dates (date, band, y, x) to features (batch, channel, y, x)."""
        images = images.contiguous(memory_format=torch.channels_last)
        skip: Tensor = self.first(images, packed)
        features = skip
        for unit in self.units:
            features = unit(features, packed)
        features = F.leaky_relu(self.middle(features, packed)) + skip
        fused: Tensor = self.registration(features, packed)
        return fused.contiguous(memory_format=torch.channels_last)


class PIUnet(nn.Module):
    """The network of Valsesia and Magli (2021).

    Parameters
    ----------
    bands
        Image channels; the paper has one. More are our generalisation: the first convolution
        takes and both heads give as many.
    channels, units
        Features and TEFA units, 42 and 16 in the paper.
    upscale
        Output pixels per input pixel, 3 in the paper.
    """

    def __init__(
        self, bands: int = 1, *, channels: int = 42, units: int = 16, upscale: int = 3
    ) -> None:
        super().__init__()
        self.upscale = upscale
        self.backbone = Backbone(bands, channels, units)
        self.image = nn.Conv2d(channels, bands * upscale**2, 3, padding=1)
        self.scale_features = ConvNorm(channels, channels)
        self.log_scale = nn.Conv2d(channels, bands, 1)

    def forward(self, images: Tensor, packed: PackedDates) -> tuple[Tensor, Tensor]:
        """Super-resolve packed dates (date, band, y, x).

        Returns
        -------
        image, log_scale
            (batch, band, y * upscale, x * upscale): the image, and the logarithm of the scale of
            its error, a Laplace distribution's, both in the units of the input.
        """
        features = self.backbone(images, packed)
        image = F.pixel_shuffle(self.image(features), self.upscale)
        # The mean of upsampled dates is the upsampled mean, at a fraction of the work.
        image = image + _upsample(packed.average(images), self.upscale)
        scale_features = self.scale_features(_upsample(features, self.upscale))
        return image, self.log_scale(F.leaky_relu(scale_features))


class PiunetModel(NetworkModel):
    """Super-resolved reflectance and its uncertainty from any number of dates.

    Parameters
    ----------
    size
        ``full`` as in the paper, or ``small`` with 16 channels and 4 TEFA units.
    bands
        Common names; the paper super-resolves one band at a time.
    upscale
        Output pixels per input pixel, 2 to 4; the paper's is 3.
    """

    def __init__(
        self, *, size: str = "full", bands: tuple[str, ...] = ("nir",), upscale: int = 3
    ) -> None:
        super().__init__()
        channels, units = choose_size(size, SIZES)
        if upscale not in (2, 3, 4):
            raise ValueError(f"upscale {upscale} is not 2, 3 or 4")
        self.statistics = BandStatistics(bands)
        self.network = PIUnet(len(bands), channels=channels, units=units, upscale=upscale)
        self.spec = ModelSpec(
            name="piunet",
            title="PIUnet: super-resolution invariant to the order of dates, with uncertainty",
            paper="Valsesia & Magli 2021",
            bands=bands,
            upscale=upscale,
            halo_px=self.network.backbone.radius_px + 1,
            kind="windowed",
            extra_layers=(image_layer(bands), uncertainty_layer(bands)),
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run the network; see :meth:`NetworkModel.compute`.

        ``log_scale`` is the logarithm of ``uncertainty``, for the loss.
        """
        del clear  # The network learns from the pixels which of them to trust.
        packed = PackedDates.of(dates)
        image, log_scale = self.network(self.statistics(packed.pack(reflectance)), packed)
        log_scale = log_scale.float() + self.statistics.std.log()[:, None, None]
        return {
            "image": self.statistics.restore(image.float()),
            "uncertainty": log_scale.exp(),
            "log_scale": log_scale,
        }


def choose_size(size: str, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return what a size means, or say which there are."""
    if size not in sizes:
        raise ValueError(f"size {size!r} is not one of {', '.join(sizes)}")
    return sizes[size]


def _average_pixels(features: Tensor) -> Tensor:
    """Average over y and x in float32, whatever the features' precision."""
    return features.mean(dim=(2, 3), dtype=torch.float32)


def _project(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Apply a linear layer to few rows (row, channel).

    A matrix product may round differently with another number of rows, that is in another batch;
    these sums do not.
    """
    return (rows[:, None, :] * layer.weight).sum(dim=-1) + layer.bias


def _upsample(values: Tensor, upscale: int) -> Tensor:
    return F.interpolate(values, scale_factor=upscale, mode="bilinear", align_corners=False)
