"""The radially averaged power spectrum: how much detail an image has at each scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PowerSpectrum:
    """Power of an image by spatial frequency, whatever the direction."""

    frequency_per_px: FloatArray
    """Centres of the rings in cycles per pixel, (ring,), from 1 / tile to 0.5."""
    power: FloatArray
    """Mean power of each ring, (band, ring); that of white noise is its variance, in the square of
    the image's unit. NaN where no tile was seen."""
    tiles: int
    """Tiles that were averaged."""


class SpectrumSums:
    """Adds up periodograms of square tiles (Welch 1967, doi:10.1109/TAU.1967.1161901).

    Each tile loses its mean, is tapered by a Hann window in both directions and transformed;
    |F|^2 / sum(w^2) is averaged over rings one frequency step wide. Tiles do not overlap, and one
    with an invalid pixel is left out (both our choice).

    Parameters
    ----------
    bands
        Number of bands.
    tile_px
        Side of a tile. Blocks are whole tiles, so that their cut changes nothing.
    """

    def __init__(self, bands: int, *, tile_px: int = 128) -> None:
        self.bands = bands
        self.tile_px = tile_px
        self.power: FloatArray = np.zeros((bands, tile_px // 2))
        self.tiles = 0

    def update(
        self, image: npt.NDArray[Any], *, valid: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Add a block.

        Parameters
        ----------
        image
            Floating, (band, y, x). A block starts at a tile; what does not fill a tile at its end
            is left out, so blocks inside a map are whole tiles.
        valid
            bool, (y, x); by default all are.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        seen = np.ones(image.shape[1:], dtype=bool) if valid is None else valid
        if image.shape != (self.bands, *seen.shape):
            raise ValueError(
                f"image {image.shape} and valid {seen.shape} do not fit {self.bands} bands"
            )
        height, width = (side - side % self.tile_px for side in seen.shape)
        for row in range(0, height, self.tile_px):
            for column in range(0, width, self.tile_px):
                place = slice(row, row + self.tile_px), slice(column, column + self.tile_px)
                if seen[place].all():
                    self._add_tile(image[:, *place].astype(np.float64))

    def merge(self, other: SpectrumSums) -> None:
        """Add what another one has seen.

        Raises
        ------
        ValueError
            If it has other bands or tiles.
        """
        if self.power.shape != other.power.shape or self.tile_px != other.tile_px:
            raise ValueError(
                f"{self.bands} bands in tiles of {self.tile_px} px and {other.bands} in tiles of "
                f"{other.tile_px} px cannot be added"
            )
        self.power += other.power
        self.tiles += other.tiles

    def compute(self) -> PowerSpectrum:
        """Average the spectra of all tiles."""
        rings = np.arange(1, self.tile_px // 2 + 1)
        mean = self.power / self.tiles if self.tiles else np.full(self.power.shape, np.nan)
        return PowerSpectrum(rings / self.tile_px, mean, self.tiles)

    def _add_tile(self, tile: FloatArray) -> None:
        taper = np.outer(*[np.hanning(self.tile_px + 1)[:-1]] * 2)
        centred = tile - tile.mean(axis=(1, 2), keepdims=True)
        power = np.abs(np.fft.fft2(centred * taper)) ** 2 / (taper**2).sum()
        steps = np.fft.fftfreq(self.tile_px) * self.tile_px
        ring = np.rint(np.hypot(*np.meshgrid(steps, steps))).astype(int).ravel()
        length = self.tile_px // 2 + 1
        sizes = np.bincount(ring, minlength=length)[1:length]
        for band, values in enumerate(power.reshape(self.bands, -1)):
            self.power[band] += np.bincount(ring, values, length)[1:length] / sizes
        self.tiles += 1
