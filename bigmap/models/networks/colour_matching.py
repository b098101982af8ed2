"""Colour matching: what makes a super-resolved image look like the other sensor's, in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ColourMatching(nn.Module):
    """Two 1 x 1 convolutions with a ReLU between, pixel by pixel (Razzak et al. 2021, 5.1).

    The super-resolution loss compares the image after this network with the reference of another
    sensor, so that the image itself may keep the radiometry of Sentinel-2. Maps do without it.

    Parameters
    ----------
    bands
        Bands of the super-resolved image; 3 in the paper.
    reference_bands
        Bands of the reference; by default as many.
    width
        Hidden channels, 64 in the paper.
    """

    def __init__(
        self, bands: int = 3, *, reference_bands: int | None = None, width: int = 64
    ) -> None:
        super().__init__()
        first, last = nn.Conv2d(bands, width, 1), nn.Conv2d(width, reference_bands or bands, 1)
        if reference_bands in (None, bands) and width >= bands:
            _keep_colours(first, last)
        self.layers = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, image: Tensor) -> Tensor:
        """Map reflectance (batch, band, y, x) to that of the other sensor, of the same size."""
        matched: Tensor = self.layers(image)
        return matched


@torch.no_grad()
def _keep_colours(first: nn.Conv2d, last: nn.Conv2d) -> None:
    """Let the first hidden channels carry the bands, and the others add nothing yet."""
    bands = first.in_channels
    assert first.bias is not None
    assert last.bias is not None
    first.weight[:bands] = torch.eye(bands)[..., None, None]
    first.bias[:bands] = 0
    last.weight.zero_()
    last.weight[:, :bands] = torch.eye(bands)[..., None, None]
    last.bias.zero_()
