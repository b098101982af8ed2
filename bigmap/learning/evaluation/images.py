"""How good super-resolved images are: fidelity, colours, sharpness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from bigmap.learning.chips import Chip, ChipTemplate
from bigmap.learning.losses import downsample_area
from bigmap.learning.metrics import ImageSums, PowerSpectrum, SpectrumSums
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA

DATA_RANGE = 1.0
"""R of PSNR and SSIM: reflectance from 0 to 1."""
SEGMENT_PX = 128
"""Side of the segments whose power spectra are averaged, at most."""
SHIFT_PX = 3
"""How far an image is shifted to meet its target, along each axis, as in the PROBA-V challenge."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """Scores of images; NaN where undefined, such as fidelity without a target."""

    psnr: float
    """dB, of the mean squared difference of all pixels and bands; infinite where equal."""
    chip_psnr: float
    """dB, the mean of the PSNR of each chip, as papers give it."""
    ssim: float
    mse: float
    registered_psnr: float
    """dB, of all pixels after each chip was shifted by whole pixels to meet its target and its mean
    difference taken away, band by band (cPSNR of Märtens et al. 2019,
    doi:10.1007/s42064-019-0059-8); NaN unless asked for."""
    registered_ssim: float
    colour_error: float
    """Reflectance: root of the mean squared difference between the image, averaged down to the
    pixels of Sentinel-2, and the clearest date."""
    sharpness: float
    """Share of the image's power above the Nyquist frequency of the input, relative to that of the
    target; mean of the bands. 1 is as sharp as the target."""
    bands: tuple[str, ...]
    """Of the arrays below."""
    band_psnr: FloatArray
    band_ssim: FloatArray
    pixels: int
    """Pixels of targets that were compared."""
    colour_pixels: int
    """Pixels of Sentinel-2 that were compared."""
    spectrum: PowerSpectrum
    """Of the images, on the pixels of the target."""
    target_spectrum: PowerSpectrum


class ImageScorer:
    """Adds up what is seen of one model's images, chip by chip.

    Parameters
    ----------
    bands
        Of the model's image.
    template
        Of the chips.
    register
        Score the shifted image too.

    Notes
    -----
    An image of another pixel size than its target is resampled bicubically to the target's, both
    covering the same area, as the training loss does.
    """

    def __init__(
        self, bands: tuple[str, ...], template: ChipTemplate, *, register: bool = False
    ) -> None:
        self.bands = bands
        self.template = template
        self.register = register
        count, side = max(1, len(template.target_bands)), template.target_px
        segment_px = max(2, min(SEGMENT_PX, side) // 2 * 2)
        self.sums = ImageSums(count, data_range=DATA_RANGE)
        self.registered = ImageSums(count, data_range=DATA_RANGE)
        self.chip_psnrs: list[float] = []
        self.spectrum = SpectrumSums(count, segment_px=segment_px)
        self.target_spectrum = SpectrumSums(count, segment_px=segment_px)
        shared = [band for band in bands if band in template.bands]
        self.colours = [(bands.index(band), template.bands.index(band)) for band in shared]
        self.colour_squares = 0.0
        self.colour_pixels = 0

    def update(self, image: npt.NDArray[np.float32], chip: Chip, seen: BoolArray) -> None:
        """Add a chip.

        Parameters
        ----------
        image
            Reflectance, (band, y * upscale, x * upscale).
        chip
            With the dates that the image was made from.
        seen
            (y, x) of Sentinel-2: pixels that are clear on a date.
        """
        self._add_colours(image, chip)
        if chip.target is None:
            return
        wanted = [self.bands.index(band) for band in self.template.target_bands]
        has_data = (chip.target != NODATA).all(axis=0)
        valid = has_data & _enlarge(seen, chip.target.shape[1:])
        target = chip.target * DN_SCALE + DN_OFFSET
        pair = _resample(image[wanted], chip.target.shape[1:]), target
        one = ImageSums(len(wanted), data_range=DATA_RANGE)
        one.update(*pair, valid=valid)
        if not one.pixels:
            return
        self.chip_psnrs.append(one.compute().psnr)
        self.sums.merge(one)
        self.spectrum.update(pair[0], valid=valid)
        self.target_spectrum.update(pair[1], valid=valid)
        if self.register:
            moved, kept, inside = register_shift(*pair, valid=valid)
            self.registered.update(moved, kept, valid=inside)

    def compute(self) -> ImageQuality:
        """Derive the scores of all that was added."""
        plain, registered = self.sums.compute(), self.registered.compute()
        spectra = self.spectrum.compute(), self.target_spectrum.compute()
        nyquist = 0.5 * self.template.chip_px / max(1, self.template.target_px)
        colour = self.colour_squares / self.colour_pixels if self.colour_pixels else math.nan
        return ImageQuality(
            psnr=plain.psnr,
            chip_psnr=float(np.mean(self.chip_psnrs)) if self.chip_psnrs else math.nan,
            ssim=plain.ssim,
            mse=plain.mse,
            registered_psnr=registered.psnr,
            registered_ssim=registered.ssim,
            colour_error=math.sqrt(colour / max(1, len(self.colours))),
            sharpness=compare_sharpness(*spectra, nyquist_per_px=nyquist),
            bands=self.template.target_bands,
            band_psnr=plain.band_psnr[: len(self.template.target_bands)],
            band_ssim=plain.band_ssim[: len(self.template.target_bands)],
            pixels=self.sums.pixels,
            colour_pixels=self.colour_pixels,
            spectrum=spectra[0],
            target_spectrum=spectra[1],
        )

    def _add_colours(self, image: npt.NDArray[np.float32], chip: Chip) -> None:
        if not self.colours or not len(chip.clear):
            return
        # Of equally clear dates the earliest.
        best = int(chip.clear.sum(axis=(1, 2)).argmax())
        clear = chip.clear[best]
        mine, others = (list(each) for each in zip(*self.colours, strict=True))
        coarse = downsample_area(torch.from_numpy(image[mine]), clear.shape).numpy()
        reference = chip.images[best, others] * DN_SCALE + DN_OFFSET
        self.colour_squares += float(((coarse - reference)[:, clear] ** 2).sum())
        self.colour_pixels += int(clear.sum())


def register_shift(
    image: npt.NDArray[Any], target: npt.NDArray[Any], *, valid: BoolArray
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Shift an image by whole pixels so that it meets its target best, and take away its bias.

    All shifts within :data:`SHIFT_PX` are tried; the best has the least mean squared difference
    after the mean difference of each band is taken away (Märtens et al. 2019).

    Parameters
    ----------
    image, target
        Reflectance, (band, y, x), of equal shape.
    valid
        bool, (y, x): pixels of the target that count.

    Returns
    -------
    image, target, valid
        The corrected image and the target, without the border of :data:`SHIFT_PX`.
    """
    edge = SHIFT_PX
    height, width = (side - 2 * edge for side in target.shape[1:])
    inside = valid[edge : edge + height, edge : edge + width]
    kept = target[:, edge : edge + height, edge : edge + width].astype(np.float64)
    best, least = kept, math.inf
    for row in range(2 * edge + 1):
        for column in range(2 * edge + 1):
            moved = image[:, row : row + height, column : column + width].astype(np.float64)
            difference = (kept - moved)[:, inside]
            if not difference.size:
                continue
            bias = difference.mean(axis=1)
            error = float(((difference - bias[:, None]) ** 2).mean())
            if error < least:
                best, least = moved + bias[:, None, None], error
    return best, kept, inside


def compare_sharpness(
    spectrum: PowerSpectrum, target: PowerSpectrum, *, nyquist_per_px: float
) -> float:
    """Compare how much of two images' power lies in details that the input cannot show.

    Parameters
    ----------
    spectrum, target
        On the same pixels.
    nyquist_per_px
        The greatest frequency of the input, in cycles per pixel of the target.

    Returns
    -------
    float
        The share of the power above it in the one over that in the other, the mean of the bands
        that have details at all; a ring counts by its length, which grows with the frequency. NaN
        where nothing lies above it.
    """
    above = spectrum.frequency_per_px > nyquist_per_px
    shares = []
    for each in (spectrum, target):
        power = each.power * each.frequency_per_px
        total = power.sum(axis=1)
        shares.append(np.divide(power[:, above].sum(axis=1), total, where=total > 0,
                                out=np.full(len(power), np.nan)))  # fmt: skip
    mine, wanted = shares
    ratio = np.divide(mine, wanted, where=wanted > 0, out=np.full(len(mine), np.nan))
    defined = ratio[~np.isnan(ratio)]
    return float(defined.mean()) if defined.size else math.nan


def _resample(image: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if image.shape[1:] == shape:
        return image.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    resampled: npt.NDArray[np.float32] = F.interpolate(tensor, size=shape, mode="bicubic")[
        0
    ].numpy()
    return resampled


def _enlarge(mask: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """Bring a mask (y, x) to another size by the nearest pixel."""
    rows, columns = (
        ((np.arange(size) + 0.5) * side / size).astype(int)
        for size, side in zip(shape, mask.shape, strict=True)
    )
    enlarged: BoolArray = mask[np.ix_(rows, columns)]
    return enlarged
