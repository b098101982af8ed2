"""What models have in common whose network sees a single image of all dates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bigmap.models.base import ClassEntry, ModelSpec, NetworkModel
from bigmap.models.layers import BandStatistics, upsample_bicubic
from bigmap.models.networks.composites import COMPOSITE_HALO_PX, compose

CUBIC_RADIUS_PX = 2
MAX_UPSCALE = 8
Choice = TypeVar("Choice")


class SingleImageModel(NetworkModel):
    """A model whose network sees one composite of the clear dates, standardised.

    Parameters
    ----------
    spec
        Of the model.
    composite
        How dates become one image; see :func:`bigmap.models.networks.composites.compose`.
    """

    def __init__(self, spec: ModelSpec, composite: str) -> None:
        super().__init__()
        self.spec = spec
        self.composite = composite
        self.statistics = BandStatistics(spec.bands)

    def make_image(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Tensor:
        """Return the standardised composite (batch, band, y, x)."""
        image: Tensor = self.statistics(compose(reflectance, dates, clear, self.composite))
        return image


def choose_size(sizes: dict[str, Choice], size: str) -> Choice:
    """Return the settings of a size, or raise ``ValueError`` that names all."""
    if size not in sizes:
        raise ValueError(f"size {size!r} is unknown; there are {', '.join(sizes)}")
    return sizes[size]


def check_upscale(upscale: int) -> None:
    """Raise ``ValueError`` unless the factor can be had."""
    if not 1 <= upscale <= MAX_UPSCALE:
        raise ValueError(f"upscale {upscale} is not between 1 and {MAX_UPSCALE}")


def count_logits(legend: tuple[ClassEntry, ...]) -> int:
    """Return the channels of logits: one for two classes, else one per class."""
    if len(legend) < 2:
        raise ValueError("legend has fewer than two classes")
    return 1 if len(legend) == 2 else len(legend)


def find_multiple(stride: int, upscale: int) -> int:
    """Return the input pixels after which a network with a stride on the fine grid repeats."""
    return stride // math.gcd(stride, upscale)


def find_halo(fine_px: int, *, upscale: int, composite: str) -> int:
    """Return a halo in input pixels, given the context of the network.

    Parameters
    ----------
    fine_px
        Context of the network, in pixels of the upsampled image.
    upscale
        Of the bicubic upsampling before it.
    composite
        Its context comes on top.
    """
    cubic = CUBIC_RADIUS_PX if upscale > 1 else 0
    return math.ceil(fine_px / upscale) + cubic + COMPOSITE_HALO_PX[composite]


def enlarge(image: Tensor, upscale: int) -> Tensor:
    """Upsample bicubically (batch, band, y, x)."""
    return upsample_bicubic(image, upscale) if upscale > 1 else image


def run_in_multiples(
    network: Callable[[Tensor], dict[str, Tensor]],
    image: Tensor,
    *,
    stride: int,
    upscale: int = 1,
    training: bool = False,
) -> dict[str, Tensor]:
    """Run a network on an image of any size.

    Its bottom and right edges are repeated up to a multiple of the stride; outputs are cut back.
    Windows of a map are multiples, so that nothing is added to them.

    Parameters
    ----------
    network
        Turns an image into tensors (batch, channel, y * upscale, x * upscale).
    image
        (batch, band, y, x).
    stride
        What the network needs its sides to be multiples of.
    upscale
        Output pixels per pixel of the image.
    training
        Whether normalisations need the whole batch. If not, on a CPU images run one by one, as
        the means of a window and convolutions of few pixels may differ in the last bit between
        batches of different sizes. A GPU gets batches of one size.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % stride, 0, -height % stride), mode="replicate")
    one_by_one = not training and image.device.type == "cpu"
    parts = [
        network(part.contiguous(memory_format=torch.channels_last))
        for part in (padded.split(1) if one_by_one else [padded])
    ]
    return {
        name: torch.cat([part[name] for part in parts])[..., : height * upscale, : width * upscale]
        for name in parts[0]
    }
