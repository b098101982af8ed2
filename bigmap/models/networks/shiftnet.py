"""ShiftNet: the sub-pixel shift between two images, and Lanczos interpolation to undo it.

Training only: it registers a super-resolved image to its reference before they are compared
(Deudon et al. 2020, HighRes-net, after the homography network of DeTone et al. 2016).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bigmap.models.layers import ConvNorm

SIDE_PX = 128
"""Side of the images; the fully connected layer is made for it."""
WIDTHS = (64, 64, 64, 64, 128, 128, 128, 128)
POOLED = (1, 3, 5)
"""Convolutions that are followed by a 2 x 2 maximum."""
LOBES = 3
"""Half the width of the Lanczos kernel, its a, in pixels."""


class ShiftNet(nn.Module):
    """Estimates by how much an image must be shifted to lie on its reference.

    Eight 3 x 3 convolutions with batch normalisation and ReLU, three of them pooled, then 1,024
    and 2 units with dropout before. The last layer starts at zero, as in the public code, so that
    an untrained network shifts nothing.

    Parameters
    ----------
    channels
        Bands of each image of a pair; 34,187,648 parameters with one.
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        fan_in = 2 * channels
        for index, width in enumerate(WIDTHS):
            layers += [ConvNorm(fan_in, width), nn.ReLU()]
            if index in POOLED:
                layers.append(nn.MaxPool2d(2))
            fan_in = width
        self.features = nn.Sequential(*layers)
        side = SIDE_PX // 2 ** len(POOLED)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(WIDTHS[-1] * side**2, 1024)
        self.shift = nn.Linear(1024, 2, bias=False)
        nn.init.zeros_(self.shift.weight)

    def forward(self, pairs: Tensor) -> Tensor:
        """Estimate shifts.

        Parameters
        ----------
        pairs
            float32, (batch, 2 * channel, 128, 128): the reference's bands, then the image's. The
            mean of each is taken away first.

        Returns
        -------
        torch.Tensor
            float32, (batch, 2): pixels down and right, (y, x), for :func:`shift_lanczos` of the
            image.

        Raises
        ------
        ValueError
            If the images are not of 128 x 128 pixels.
        """
        if pairs.shape[-2:] != (SIDE_PX, SIDE_PX):
            size = " x ".join(map(str, pairs.shape[-2:]))
            raise ValueError(f"ShiftNet registers images of {SIDE_PX} x {SIDE_PX} px, not {size}")
        centred = pairs - pairs.mean(dim=(-2, -1), keepdim=True)
        features = self.features(centred).flatten(1)
        shifts: Tensor = self.shift(torch.relu(self.hidden(self.dropout(features))))
        return shifts


def shift_lanczos(images: Tensor, shifts_px: Tensor) -> Tensor:
    """Shift images by fractions of pixels with Lanczos' kernel, a = 3.

    Differentiable in both. Weights are divided by their sum, so that a flat image stays flat, and
    edges are replicated (both our choice: the public code does neither).

    Parameters
    ----------
    images
        float32, (batch, channel, y, x).
    shifts_px
        float32, (batch, 2): pixels down and right, (y, x); any size.

    Returns
    -------
    torch.Tensor
        float32, (batch, channel, y, x): what was at (y, x) is at (y + down, x + right).
    """
    down, right = shifts_px.unbind(dim=1)
    return _shift_rows(_shift_rows(images, down).mT, right).mT


def _shift_rows(images: Tensor, shifts_px: Tensor) -> Tensor:
    """Shift (batch, channel, y, x) along y by (batch,)."""
    height = images.shape[2]
    whole = torch.floor(-shifts_px)
    taps = torch.arange(1 - LOBES, LOBES + 1, device=images.device)
    distance = (-shifts_px - whole)[:, None] - taps
    weights = torch.sinc(distance) * torch.sinc(distance / LOBES)
    weights = weights / weights.sum(dim=1, keepdim=True)
    rows = torch.arange(height, device=images.device) + whole.long()[:, None]
    shifted = torch.zeros_like(images)
    for tap, weight in zip(taps, weights.unbind(dim=1), strict=True):
        source = (rows + tap).clamp(0, height - 1)[:, None, :, None].expand_as(images)
        shifted = shifted + weight[:, None, None, None] * images.gather(2, source)
    return shifted
