"""SRResNet: one image to a finer one.

Ledig et al. (2017), "Photo-realistic single image super-resolution using a generative adversarial
network", doi:10.1109/CVPR.2017.19, with five residual blocks as Razzak et al. (2021) use it.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from bigmap.models.base import ModelSpec, NetworkModel, image_layer
from bigmap.models.layers import BandStatistics, ConvNorm
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, check_composite, compose
from bigmap.models.networks.steady import SteadyConv2d

WIDTHS = {"full": 64, "small": 16}
BLOCKS = {"full": 5, "small": 2}
RGB = ("red", "green", "blue")


class ResidualBlock(nn.Module):
    """Two normalised 3 x 3 convolutions with a PReLU between, beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(width, width), nn.PReLU(), ConvNorm(width, width))

    def forward(self, features: Tensor) -> Tensor:
        """Add what the convolutions find to (batch, channel, y, x)."""
        added: Tensor = features + self.body(features)
        return added


class SRResNet(nn.Module):
    """The network: residual blocks beside an identity, then PixelShuffle by 2.

    Parameters
    ----------
    bands
        Of the input and of the output.
    width, blocks
        Channels of the hidden layers, and the number of residual blocks.
    upscale
        2, or 4 with two steps of PixelShuffle (Ledig et al.).
    """

    def __init__(self, bands: int, *, width: int = 64, blocks: int = 5, upscale: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(SteadyConv2d(bands, width, 9), nn.PReLU())
        self.blocks = nn.Sequential(
            *[ResidualBlock(width) for _ in range(blocks)], ConvNorm(width, width)
        )
        steps: list[nn.Module] = []
        for _ in range(int(math.log2(upscale))):
            steps += [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.upsampling = nn.Sequential(*steps)
        self.last = SteadyConv2d(width, bands, 9)

    def forward(self, image: Tensor) -> Tensor:
        """Turn (batch, band, y, x) into (batch, band, y * upscale, x * upscale)."""
        features = self.first(image)
        finer: Tensor = self.last(self.upsampling(features + self.blocks(features)))
        return finer


class SrresnetModel(NetworkModel):
    """Super-resolved reflectance from one image, a composite of the dates.

    Parameters
    ----------
    size
        ``full``: 64 channels and 5 residual blocks; ``small``: 16 and 2.
    bands
        Common names, of the input and of the image.
    upscale
        2, as the paper's PixelShuffle; or 4, with two.
    composite
        ``median``, ``mean`` or ``clearest``: see :func:`bigmap.models.networks.composites.compose`.
        The paper takes the clearest date.

    Notes
    -----
    The network works on standardised reflectance, in and out. Razzak's code resamples its output
    bicubically to the 4.77 m of the reference; here that is left to the loss, as the map's pixels
    are whole fractions of the input's.
    """

    def __init__(
        self,
        *,
        size: str = "full",
        bands: tuple[str, ...] = RGB,
        upscale: int = 2,
        composite: str = "median",
    ) -> None:
        super().__init__()
        if size not in WIDTHS:
            raise ValueError(f"size {size!r} is not full or small")
        if upscale not in (2, 4):
            raise ValueError(f"upscale {upscale} is not 2 or 4")
        check_composite(composite)
        self.composite = composite
        self.statistics = BandStatistics(bands)
        self.network = SRResNet(
            len(bands), width=WIDTHS[size], blocks=BLOCKS[size], upscale=upscale
        )
        self.spec = ModelSpec(
            name="srresnet",
            title="SRResNet, super-resolution of a composite",
            paper="Ledig et al. 2017",
            bands=bands,
            upscale=upscale,
            halo_px=8 + 2 * BLOCKS[size] + COMPOSITE_HALO_PX[composite],
            kind="exact",
            extra_layers=(image_layer(bands),),
        )

    def compute(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> dict[str, Tensor]:
        """Run the network; see :meth:`NetworkModel.compute`."""
        image = compose(reflectance, dates, clear, self.composite)
        return {"image": self.statistics.restore(self.network(self.statistics(image)))}
