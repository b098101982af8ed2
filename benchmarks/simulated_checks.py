"""Standard estimators that recover from images what the simulation put into them, and its truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from bigmap.draws import F64
from bigmap.simulate.classification import (
    BARE,
    CIRRUS,
    CLOUD_SURE,
    SHADOW,
    SNOW,
    U8,
    VEGETATION,
    WATER,
    Scene,
)
from bigmap.simulate.covers import ROOFS, Cover

Image = npt.NDArray[np.floating[npt.NBitBase]] | npt.NDArray[np.float32] | F64


def estimate_shift(image: Image, reference: Image, *, highest: float = 0.2) -> tuple[float, float]:
    """Estimate the sub-pixel shift between two images of one scene.

    The phase of the cross spectrum is a plane whose slopes are the shift; it is fitted over low
    frequencies, where there is little aliasing (H. Stone et al. 2001, doi:10.1109/36.957286).

    Parameters
    ----------
    image, reference
        (y, x), the same shape; shifts must stay below about two pixels.
    highest
        Highest frequency that is used, in cycles per pixel.

    Returns
    -------
    right, down
        The image shows at a pixel what the reference shows this many pixels right and down.
    """
    height, width = image.shape
    taper = np.hanning(height)[:, None] * np.hanning(width)[None, :]
    first, second = (
        np.fft.rfft2((part - part.mean()) * taper)
        for part in (np.asarray(image, np.float64), np.asarray(reference, np.float64))
    )
    cross = first * np.conj(second)
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    down, right = np.broadcast_arrays(down, right)
    used = (np.hypot(down, right) < highest) & (np.hypot(down, right) > 0)
    weight = np.abs(cross[used])
    planes = 2 * np.pi * np.stack([right[used], down[used]], axis=1)
    solved = np.linalg.lstsq(planes * weight[:, None], np.angle(cross[used]) * weight, rcond=None)[
        0
    ]
    return float(solved[0]), float(solved[1])


def estimate_transfer(image: Image, ground: Image, *, factor: int) -> tuple[F64, F64]:
    """Estimate the modulation transfer from fine ground to a sampled image.

    The mean cross spectrum of image and ground over the ground's own spectrum, in rings of
    frequency (the H1 estimator: J. Bendat and A. Piersol, Random Data, chapter 6). Aliases and
    noise are unrelated to the ground at a frequency and average out.

    Parameters
    ----------
    image
        (y, x), sampled without shift.
    ground
        (factor * y, factor * x).
    factor
        Fine pixels per image pixel.

    Returns
    -------
    frequency, transfer
        Cycles per image pixel, 0 to 0.5, and the modulation transfer there.
    """
    size = image.shape[0]
    coarse = np.fft.fft2(_taper(np.asarray(image, np.float64)))
    fine = np.fft.fft2(_taper(np.asarray(ground, np.float64))) / factor**2
    half = size // 2
    keep = np.r_[0:half, -half:0]
    inner = np.r_[0:half, -half:0]
    fine = fine[np.ix_(keep, keep)]
    coarse = coarse[np.ix_(inner, inner)]
    frequency = np.fft.fftfreq(size)[inner]
    # Centres of image pixels lie between fine pixels: a known shift of the sampling.
    offset = (factor - 1) / (2 * factor)
    phase = np.exp(2j * np.pi * offset * (frequency[:, None] + frequency[None, :]))
    ring = np.rint(np.hypot(frequency[:, None], frequency[None, :]) * 40).astype(int)
    cross = np.bincount(ring.ravel(), (coarse * np.conj(fine * phase)).real.ravel())
    power = np.bincount(ring.ravel(), (np.abs(fine) ** 2).ravel())
    return np.arange(21) / 40, (cross / power)[:21]


def _taper(image: F64) -> F64:
    window = np.hanning(image.shape[0])[:, None] * np.hanning(image.shape[1])[None, :]
    return np.asarray((image - image.mean()) * window)


def measure_spectrum(image: Image) -> tuple[F64, F64]:
    """Return the radial power spectrum of an image.

    Returns
    -------
    frequency, power
        Cycles per pixel, and power relative to the variance of the image.
    """
    values = np.asarray(image, np.float64)
    side = min(values.shape)
    values = _taper(values[:side, :side])
    power = np.abs(np.fft.fft2(values)) ** 2
    frequency = np.fft.fftfreq(side)
    ring = np.rint(np.hypot(frequency[:, None], frequency[None, :]) * 48).astype(int)
    total = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return np.arange(1, 25) / 48, total[1:25] / power.sum()


def fuse_images(images: list[Image], shifts: list[tuple[float, float]], *, factor: int) -> F64:
    """Bring images onto a finer grid by their shifts and average them.

    Parameters
    ----------
    images
        (y, x) each.
    shifts
        Right and down of each, as :func:`estimate_shift` returns them, in pixels.
    factor
        Fine pixels per image pixel.

    Returns
    -------
    numpy.ndarray
        float64 (factor * y, factor * x), by cubic splines.
    """
    height, width = images[0].shape
    rows = (np.arange(factor * height) + 0.5) / factor - 0.5
    columns = (np.arange(factor * width) + 0.5) / factor - 0.5
    total = np.zeros((factor * height, factor * width))
    for image, (right, down) in zip(images, shifts, strict=True):
        places = np.meshgrid(rows - down, columns - right, indexing="ij")
        total += scipy.ndimage.map_coordinates(
            np.asarray(image, np.float64), places, order=3, mode="nearest"
        )
    return np.asarray(total / len(images))


def measure_psnr(image: Image, truth: Image) -> float:
    """Return the peak signal to noise ratio in decibels, for a peak of the truth's range.

    The range is that between its 0.1 and 99.9 percentiles, so that one bright roof does not
    decide it.
    """
    low, high = np.percentile(truth, [0.1, 99.9])
    error = np.mean((np.asarray(image, np.float64) - truth) ** 2)
    return float(10 * np.log10((high - low) ** 2 / error))


def sharpen_image(image: Image, *, sigma_px: float, noise: float) -> F64:
    """Undo a Gaussian blur by Wiener's filter (N. Wiener, 1949).

    Parameters
    ----------
    sigma_px
        Standard deviation of the blur, in pixels.
    noise
        Power of noise relative to that of the scene, the same at all frequencies.
    """
    values = np.asarray(image, np.float64)
    down, right = np.fft.fftfreq(values.shape[0])[:, None], np.fft.rfftfreq(values.shape[1])
    transfer = np.exp(-2 * (np.pi * sigma_px) ** 2 * (down**2 + right**2))
    gain = transfer / (transfer**2 + noise)
    gain /= gain[0, 0]
    return np.asarray(np.fft.irfft2(np.fft.rfft2(values) * gain, s=values.shape))


def label_truth(scene: Scene) -> U8:
    """Return the classification without errors: what truly covers most of each pixel."""
    bare = (Cover.ROAD, Cover.TRACK, Cover.PAVED, Cover.ROCK, *ROOFS)
    ndvi = (scene.nir - scene.red) / np.maximum(scene.nir + scene.red, 0.01)
    scl = np.where((ndvi > 0.38) & ~np.isin(scene.cover, bare), VEGETATION, BARE).astype(np.uint8)
    scl[(scene.cover == Cover.WATER) & (ndvi < 0.3)] = WATER
    scl[(scene.snow > 0.5) | (scene.cover == Cover.SNOW)] = SNOW
    scl[scene.shade > 0.2] = SHADOW
    scl[scene.cirrus > 0.03] = CIRRUS
    scl[scene.cloud > 0.1] = CLOUD_SURE
    return scl
