"""Colour matching: what makes a super-resolved image look like the other sensor's, in training."""

from __future__ import annotations

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
        self.layers = nn.Sequential(
            nn.Conv2d(bands, width, 1), nn.ReLU(), nn.Conv2d(width, reference_bands or bands, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map reflectance (batch, band, y, x) to that of the other sensor, of the same size."""
        matched: Tensor = self.layers(image)
        return matched
