"""PSNR and SSIM of many images, added up one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import minimum_filter
from skimage.metrics import structural_similarity

RADIUS_PX = 5
"""Of the windows of SSIM, 11 x 11 px."""
SIGMA_PX = 1.5

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Fidelity of an image, per band (float64, (band,)) and of all bands; NaN of nothing."""

    mse: float
    """Mean squared difference of all bands and pixels."""
    psnr: float
    """10 log10(R^2 / MSE) in dB (Razzak et al. 2021, equation 1) of that mean; infinite where the
    images are equal. Papers that average the PSNR of many small images get another number."""
    ssim: float
    """Mean over windows and bands (Wang et al. 2004, equations 13 and 17)."""
    band_mse: FloatArray
    band_psnr: FloatArray
    band_ssim: FloatArray
    pixels: int
    """Pixels that were compared."""
    windows: int
    """Windows of 11 x 11 px that were compared."""


class ImageSums:
    """Adds up squared differences and structural similarities.

    SSIM is the mean over all Gaussian windows (11 x 11 px, deviation 1.5 px) that lie in an image
    and hold only valid pixels.

    Parameters
    ----------
    bands
        Number of bands.
    data_range
        R of both scores: the span that values can take, such as 1 for reflectance.
    """

    def __init__(self, bands: int, *, data_range: float) -> None:
        self.bands = bands
        self.data_range = data_range
        self.squares: FloatArray = np.zeros(bands)
        self.similarity: FloatArray = np.zeros(bands)
        self.pixels = 0
        self.windows = 0

    def update(
        self,
        image: npt.NDArray[Any],
        reference: npt.NDArray[Any],
        *,
        valid: BoolArray | None = None,
    ) -> None:
        """Add an image.

        Parameters
        ----------
        image, reference
            Floating, (band, y, x).
        valid
            bool, (y, x); by default all are. Others may hold anything.

        Raises
        ------
        ValueError
            If shapes differ.
        """
        shape = (self.bands, *image.shape[1:])
        seen = np.ones(shape[1:], dtype=bool) if valid is None else valid
        if not image.shape == reference.shape == (self.bands, *seen.shape):
            raise ValueError(
                f"image {image.shape}, reference {reference.shape} and valid {seen.shape} do not "
                f"fit {self.bands} bands"
            )
        pair = [np.where(seen, each, 0).astype(np.float64) for each in (image, reference)]
        self._add_squares(pair[0] - pair[1], seen)
        if min(seen.shape) > 2 * RADIUS_PX:
            self._add_similarity(pair, _whole_windows(seen))

    def merge(self, other: ImageSums) -> None:
        """Add what another one has seen.

        Raises
        ------
        ValueError
            If it has other bands or another range.
        """
        if (self.bands, self.data_range) != (other.bands, other.data_range):
            raise ValueError(
                f"{self.bands} bands of range {self.data_range:g} and {other.bands} of "
                f"{other.data_range:g} cannot be added"
            )
        self.squares += other.squares
        self.similarity += other.similarity
        self.pixels += other.pixels
        self.windows += other.windows

    def compute(self) -> ImageScores:
        """Derive the scores of all that was seen."""
        mse = self.squares / self.pixels if self.pixels else np.full(self.bands, np.nan)
        ssim = self.similarity / self.windows if self.windows else np.full(self.bands, np.nan)
        return ImageScores(
            mse=float(mse.mean()),
            psnr=float(self._psnr(mse.mean())),
            ssim=float(ssim.mean()),
            band_mse=mse,
            band_psnr=self._psnr(mse),
            band_ssim=ssim,
            pixels=self.pixels,
            windows=self.windows,
        )

    def _psnr(self, mse: Any) -> FloatArray:
        with np.errstate(divide="ignore"):
            decibels: FloatArray = 10 * np.log10(self.data_range**2 / np.asarray(mse))
        return decibels

    def _add_squares(self, difference: FloatArray, counted: BoolArray) -> None:
        self.squares += (difference[:, counted] ** 2).sum(axis=1)
        self.pixels += int(counted.sum())

    def _add_similarity(self, pair: list[FloatArray], counted: BoolArray) -> None:
        for band, (image, reference) in enumerate(zip(*pair, strict=True)):
            _, similarity = structural_similarity(
                image,
                reference,
                data_range=self.data_range,
                gaussian_weights=True,
                sigma=SIGMA_PX,
                use_sample_covariance=False,
                full=True,
            )
            self.similarity[band] += similarity[counted].sum()
        self.windows += int(counted.sum())


def _whole_windows(valid: BoolArray) -> BoolArray:
    """Tell the centres of windows that lie in the array and hold only valid pixels."""
    whole: BoolArray = minimum_filter(valid, size=2 * RADIUS_PX + 1, mode="constant", cval=0)
    return whole
