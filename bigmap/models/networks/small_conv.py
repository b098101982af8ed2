"""A small exact convolutional network with fixed random weights.

It stands for a trained network in tests and benchmarks: it has the shape of one (convolutions
shared over dates, a mean over dates, PixelShuffle), costs a known amount of work, and its map
means nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigmap.models.base import ClassEntry, LayerSpec, MapModel, ModelSpec, probability_of

CLASS_NAMES = ("a", "b", "c")
COLOURS = ("#4477aa", "#ee6677", "#ccbb44")


class SmallConvModel(MapModel):
    """Convolutions per date, a mean over dates, PixelShuffle; three classes without meaning.

    Parameters
    ----------
    upscale
        Output pixels per input pixel, 1 to 8.
    width
        Channels of the hidden layers.
    depth
        Number of hidden 3 x 3 convolutions per date.
    seed
        Of the random weights.
    """

    heap_share = 1.7

    def __init__(self, *, upscale: int = 2, width: int = 8, depth: int = 2, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= upscale <= 8 or not 1 <= width <= 256 or not 1 <= depth <= 32:
            raise ValueError("upscale must be 1 to 8, width 1 to 256 and depth 1 to 32")
        bands = ("blue", "green", "red", "nir")
        probability = LayerSpec(
            "probability", "Probability of each class", "uint8", 255, units="percent",
            channels=CLASS_NAMES,
        )  # fmt: skip
        self.spec = ModelSpec(
            name="small-conv",
            title="Small convolutional network with fixed random weights, for tests",
            bands=bands,
            upscale=upscale,
            halo_px=depth + 1,
            kind="exact",
            legend=tuple(
                ClassEntry(value, name, colour)
                for value, (name, colour) in enumerate(zip(CLASS_NAMES, COLOURS, strict=True))
            ),
            extra_layers=(probability,),
            notice="small-conv has random weights: its map means nothing.",
        )
        sizes = [len(bands)] + [width] * depth
        self.hidden = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, 3, padding=1)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.head = nn.Conv2d(width, len(CLASS_NAMES) * upscale**2, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(self, reflectance: Tensor, dates: Tensor, clear: Tensor) -> Mapping[str, Tensor]:
        """Score windows; see :meth:`MapModel.forward`."""
        del clear
        batch, time = reflectance.shape[:2]
        features = reflectance.flatten(0, 1)
        for convolution in self.hidden:
            features = F.leaky_relu(convolution(features), 0.01)
        features = features.unflatten(0, (batch, time))
        weights = dates.to(features.dtype)[:, :, None, None, None]
        total = torch.zeros_like(features[:, 0])
        for date in range(time):
            total = total + features[:, date] * weights[:, date]
        mean = total / dates.sum(dim=1).clamp(min=1)[:, None, None, None]
        logits = F.pixel_shuffle(self.head(mean), self.spec.upscale)
        return {"probability": probability_of(logits)}
