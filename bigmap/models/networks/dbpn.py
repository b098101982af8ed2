"""Super-resolved images by dense deep back-projection (D-DBPN).

Haris, Shakhnarovich & Ukita, "Deep back-projection networks for super-resolution", CVPR 2018, as
Pereira & dos Santos, "An end-to-end framework for low-resolution remote sensing semantic
segmentation", LAGIRS 2020, section 3.1, use it. What neither says is that of the first paper's
code: 256 and 64 channels, six down-projections, one slope per PReLU, He's initialisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ModelSpec, NetworkModel, image_layer
from bigmap.models.layers import BandStatistics
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, check_composite, compose

SAMPLING = {2: (6, 2, 2), 4: (8, 4, 2), 8: (12, 8, 2)}
"""Kernel, stride and padding of the convolutions that change the resolution, by upscale."""

SIZES = {"full": (256, 64, 7), "small": (32, 16, 3)}
"""Channels of the first features, of the projections, and number of up-projections."""


class ShuffledConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution that multiplies the size by its stride, as one and a PixelShuffle.

    With two threads, the last bits of oneDNN's transposed convolutions change with the shape of
    the window. Those of convolutions of images padded beforehand do not.
    """

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve (batch, channel, y, x); the output size follows from the stride."""
        assert output_size is None
        assert self.bias is not None
        stride, padding = self.stride[0], int(self.padding[0])
        taps = math.ceil(self.kernel_size[0] / stride)
        phases = F.conv2d(
            F.pad(features, (taps - 1,) * 4),
            self._arrange(taps),
            self.bias.repeat(stride**2),
        )
        # Channels last, so that whole pixels are moved.
        grid = phases.permute(0, 2, 3, 1).unflatten(3, (stride, stride, self.out_channels))
        fine = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        height, width = features.shape[-2] * stride, features.shape[-1] * stride
        cut: Tensor = fine[..., padding : padding + height, padding : padding + width]
        return cut

    def _arrange(self, taps: int) -> Tensor:
        """Sort the weights by output phase: (row phase * column phase * out, in, taps, taps).

        An output pixel at ``stride * q + phase``, before cropping, takes input pixel ``q - tap``
        times the weight at ``stride * tap + phase``, zero beyond the kernel.
        """
        stride = self.stride[0]
        beyond = taps * stride - self.kernel_size[0]
        weight = F.pad(self.weight, (0, beyond, 0, beyond))
        weight = weight.unflatten(3, (taps, stride)).unflatten(2, (taps, stride)).flip(2, 4)
        # (in, out, row tap, row phase, column tap, column phase)
        arranged: Tensor = weight.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
        return arranged


def _make_step(width: int, upscale: int, *, up: bool) -> nn.Sequential:
    kernel, stride, padding = SAMPLING[upscale]
    kind = ShuffledConvTranspose2d if up else nn.Conv2d
    return nn.Sequential(kind(width, width, kernel, stride, padding), nn.PReLU())


class Projection(nn.Module):
    """Changes the resolution, and corrects the result by what projecting it back misses.

    Parameters
    ----------
    sources
        How many earlier results it takes, along the channel axis.
    width
        Channels of each of them and of the result.
    upscale
        Factor between both resolutions: 2, 4 or 8.
    up
        Whether it goes up or down.
    """

    def __init__(self, sources: int, width: int, upscale: int, *, up: bool) -> None:
        super().__init__()
        self.fuse = nn.Sequential()
        if sources > 1:
            self.fuse = nn.Sequential(nn.Conv2d(sources * width, width, 1), nn.PReLU())
        self.project = _make_step(width, upscale, up=up)
        self.project_back = _make_step(width, upscale, up=not up)
        self.correct = _make_step(width, upscale, up=up)

    def forward(self, features: Tensor) -> Tensor:
        """Project (batch, channel, y, x); equations 1 to 5 and 6 to 10 of Haris et al."""
        fused: Tensor = self.fuse(features)
        projected: Tensor = self.project(fused)
        missed = self.project_back(projected) - fused
        corrected: Tensor = projected + self.correct(missed)
        return corrected


class DDBPN(nn.Module):
    """D-DBPN: up- and down-projections in turn, each on all earlier results.

    Parameters
    ----------
    bands
        Channels of the image.
    upscale
        2, 4 or 8.
    features, width, stages
        Channels of the first convolution, of the projections, and number of up-projections.
    """

    def __init__(
        self, bands: int, upscale: int, *, features: int = 256, width: int = 64, stages: int = 7
    ) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Conv2d(bands, features, 3, padding=1), nn.PReLU(),
            nn.Conv2d(features, width, 1), nn.PReLU(),
        )  # fmt: skip
        self.ups = nn.ModuleList(
            Projection(max(1, stage), width, upscale, up=True) for stage in range(stages)
        )
        self.downs = nn.ModuleList(
            Projection(stage, width, upscale, up=False) for stage in range(1, stages)
        )
        self.tail = nn.Conv2d(stages * width, bands, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Super-resolve (batch, band, y, x)."""
        fine: Tensor = self.ups[0](self.head(image))
        coarse = fine.new_empty(0)
        for number, (down, up) in enumerate(zip(self.downs, self.ups[1:], strict=True)):
            # The latest result comes first, as in the published weights.
            coarse = torch.cat([down(fine), coarse], dim=1) if number else down(fine)
            fine = torch.cat([up(coarse), fine], dim=1)
        result: Tensor = self.tail(fine)
        return result


def find_dbpn_radius(upscale: int, stages: int = 7) -> int:
    """Return the receptive radius of D-DBPN in input pixels: 41, 21 and 21 for x2, x4 and x8.

    Going up and down once reaches 2 px at x2, whose 6 x 6 kernels overlap three deep, else 1 px.
    A network of n up-projections does so 3n - 2 times; the last way up and the last convolution
    reach as far again, and the first convolution 1 px.
    """
    reach = 2 if upscale == 2 else 1
    return reach * (3 * stages - 1) + 1


def run_singly(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Run images (batch, ...) one by one.

    Networks that keep hundreds of channels at output resolution so need the memory of one window,
    and what else is in the batch cannot touch a result.
    """
    return torch.cat([network(image) for image in images.split(1)])


class DbpnModel(NetworkModel):
    """Super-resolved image of a composite of the clear dates.

    The network works on standardised reflectance (our choice; the paper's on 8-bit images).

    Parameters
    ----------
    upscale
        Output pixels per input pixel: 2, 4 or 8. The paper has 4 and 8.
    composite
        How dates become the one image that the paper's network takes; see
        :func:`bigmap.models.networks.composites.compose`. Our choice: the median.
    size
        ``full``, or ``small``: three up-projections of 16 channels.
    bands
        Common names, any number. The paper's images are RGB, or near infrared, red and green.

    Raises
    ------
    ValueError
        If an option is not one of these.
    """

    heap_share = 2.2

    def __init__(
        self,
        *,
        upscale: int = 4,
        composite: str = "median",
        size: str = "full",
        bands: tuple[str, ...] = ("red", "green", "blue"),
    ) -> None:
        super().__init__()
        check_dbpn(size, upscale)
        check_composite(composite)
        features, width, stages = SIZES[size]
        self.composite = composite
        self.statistics = BandStatistics(bands)
        self.network = DDBPN(len(bands), upscale, features=features, width=width, stages=stages)
        self.spec = ModelSpec(
            name="dbpn",
            title="D-DBPN: dense deep back-projection, one image",
            paper="Pereira & dos Santos 2020",
            bands=bands,
            upscale=upscale,
            halo_px=find_dbpn_radius(upscale, stages) + COMPOSITE_HALO_PX[composite],
            kind="exact",
            extra_layers=(image_layer(bands),),
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Super-resolve windows; see :meth:`NetworkModel.compute`."""
        single = self.statistics(compose(reflectance, dates, clear, self.composite))
        single = single.contiguous(memory_format=torch.channels_last)
        image = self.network(single) if self.training else run_singly(self.network, single)
        return {"image": self.statistics.restore(image)}


def check_dbpn(size: str, upscale: int) -> None:
    """Refuse sizes and factors that D-DBPN does not have.

    Raises
    ------
    ValueError
        If ``size`` or ``upscale`` is not one of them.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; there are {', '.join(SIZES)}")
    if upscale not in SAMPLING:
        raise ValueError(f"upscale {upscale} is not 2, 4 or 8")
