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
    """Centres of the rings in cycles per pixel, (ring,), from 1 / segment to 0.5."""
    power: FloatArray
    """Mean power of each ring, (band, ring); that of white noise is its variance, in the square of
    the image's unit. NaN where no segment was seen."""
    segments: int
    """Segments that were averaged."""


class SpectrumSums:
    """Adds up periodograms of square segments (Welch 1967, doi:10.1109/TAU.1967.1161901).

    Each segment loses its mean, is tapered by a Hann window in both directions and transformed;
    |F|^2 / sum(w^2) is averaged over rings one frequency step wide. Segments do not overlap, and
    one with an invalid pixel is left out (both our choice).

    Parameters
    ----------
    bands
        Number of bands.
    segment_px
        Side of a segment. Blocks are whole segments, so that their cut changes nothing.
    """

    def __init__(self, bands: int, *, segment_px: int = 128) -> None:
        self.bands = bands
        self.segment_px = segment_px
        self.power: FloatArray = np.zeros((bands, segment_px // 2))
        self.segments = 0

    def update(
        self, image: npt.NDArray[Any], *, valid: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Add a block.

        Parameters
        ----------
        image
            Floating, (band, y, x). A block starts at a segment; what does not fill one at its end
            is left out, so blocks inside a map are whole segments.
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
        height, width = (side - side % self.segment_px for side in seen.shape)
        for row in range(0, height, self.segment_px):
            for column in range(0, width, self.segment_px):
                place = slice(row, row + self.segment_px), slice(column, column + self.segment_px)
                if seen[place].all():
                    self._add_segment(image[:, *place].astype(np.float64))

    def merge(self, other: SpectrumSums) -> None:
        """Add what another one has seen.

        Raises
        ------
        ValueError
            If it has other bands or segments.
        """
        if self.power.shape != other.power.shape or self.segment_px != other.segment_px:
            raise ValueError(
                f"{self.bands} bands in segments of {self.segment_px} px and {other.bands} in "
                f"segments of {other.segment_px} px cannot be added"
            )
        self.power += other.power
        self.segments += other.segments

    def compute(self) -> PowerSpectrum:
        """Average the spectra of all segments."""
        rings = np.arange(1, self.segment_px // 2 + 1)
        mean = self.power / self.segments if self.segments else np.full(self.power.shape, np.nan)
        return PowerSpectrum(rings / self.segment_px, mean, self.segments)

    def _add_segment(self, segment: FloatArray) -> None:
        taper = np.outer(*[np.hanning(self.segment_px + 1)[:-1]] * 2)
        centred = segment - segment.mean(axis=(1, 2), keepdims=True)
        power = np.abs(np.fft.fft2(centred * taper)) ** 2 / (taper**2).sum()
        steps = np.fft.fftfreq(self.segment_px) * self.segment_px
        ring = np.rint(np.hypot(*np.meshgrid(steps, steps))).astype(int).ravel()
        length = self.segment_px // 2 + 1
        sizes = np.bincount(ring, minlength=length)[1:length]
        for band, values in enumerate(power.reshape(self.bands, -1)):
            self.power[band] += np.bincount(ring, values, length)[1:length] / sizes
        self.segments += 1
