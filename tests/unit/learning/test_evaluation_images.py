"""Scores of images: values that are known beforehand."""

from __future__ import annotations

import datetime as dt
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from bigmap.learning.chips import Chip
from bigmap.learning.evaluation.images import ImageScorer, compare_sharpness, register_shift
from bigmap.learning.metrics import PowerSpectrum
from tests.unit.learning.evaluation_chips import make_template, to_dn

BANDS = ("blue", "red")
SEEN = np.ones((16, 16), dtype=bool)


def make_chip(target: np.ndarray | None, coarse: np.ndarray) -> Chip:
    """Return a chip of two dates; the second is the clearer one and holds ``coarse``."""
    dark = np.full_like(coarse, 0.9)
    clear = np.ones((2, 16, 16), dtype=bool)
    clear[0, :8] = False
    return Chip(
        images=to_dn(np.stack([dark, coarse])),
        clear=clear,
        days=(dt.date(2024, 4, 1), dt.date(2024, 5, 1)),
        labels=None,
        target=None if target is None else to_dn(target),
        split="test", row=0, col=0,
    )  # fmt: skip


def make_template_of(target_px: int, bands=BANDS):
    return make_template(
        bands=BANDS, class_values=(), class_names=(), target_bands=bands, target_px=target_px
    )


def make_image(side: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(2, side, side))
    # On the grid of DN, so that a target stored as DN is the image itself.
    smooth = 0.3 + 0.1 * gaussian_filter(noise, (0, 1, 1))
    return (to_dn(smooth) * 1e-4 - 0.1).astype(np.float32)


def coarsen(image: np.ndarray, factor: int = 2) -> np.ndarray:
    bands, height, width = image.shape
    return image.reshape(bands, height // factor, factor, width // factor, factor).mean(axis=(2, 4))


def test_an_image_that_is_its_target_is_perfect_and_its_colour_error_known() -> None:
    image = make_image(32)
    scorer = ImageScorer(BANDS, make_template_of(32))
    scorer.update(image, make_chip(image, coarsen(image) + 0.01), SEEN)
    quality = scorer.compute()
    assert quality.psnr > 100
    assert quality.ssim == pytest.approx(1, abs=1e-6)
    assert quality.sharpness == pytest.approx(1, abs=1e-3)
    assert quality.colour_error == pytest.approx(0.01, abs=1e-4)
    assert math.isnan(quality.registered_psnr)
    assert (quality.pixels, quality.colour_pixels) == (32 * 32, 16 * 16)


def test_psnr_of_a_constant_difference_and_pixels_that_do_not_count() -> None:
    image = make_image(32)
    target = image + 0.1
    chip = make_chip(target, coarsen(image))
    assert chip.target is not None
    chip.target[1, 5, 7] = 0  # nodata in one band
    image[:, 5, 7] = 55
    seen = SEEN.copy()
    seen[3, 4] = False
    image[:, 6:8, 8:10] = -55
    scorer = ImageScorer(BANDS, make_template_of(32))
    scorer.update(image, chip, seen)
    quality = scorer.compute()
    assert quality.psnr == pytest.approx(20, abs=0.01)
    assert quality.pixels == 32 * 32 - 1 - 4


def test_bands_are_matched_by_name() -> None:
    image = make_image(32)
    scorer = ImageScorer(BANDS, make_template_of(32, bands=("red",)))
    scorer.update(image, make_chip(image[1:], coarsen(image)), SEEN)
    quality = scorer.compute()
    assert quality.psnr > 100
    assert quality.bands == ("red",)
    assert quality.colour_error < 1e-4, "both bands are those of Sentinel-2 too"


def test_an_image_of_other_pixels_is_resampled_over_the_same_area() -> None:
    # A plane nearly stays a plane under bicubic resampling; corners that were aligned instead of
    # edges would give 55 dB.
    def plane(side: int) -> np.ndarray:
        centres = (np.arange(side) + 0.5) / side
        return np.stack([0.2 + 0.4 * np.add.outer(centres, centres / 2)] * 2).astype(np.float32)

    target = plane(67)
    target[:, :6] = target[:, -6:] = target[:, :, :6] = target[:, :, -6:] = -0.1  # DN 0
    scorer = ImageScorer(BANDS, make_template_of(67))
    scorer.update(plane(32), make_chip(target, coarsen(plane(32))), SEEN)
    quality = scorer.compute()
    assert quality.pixels == 55 * 55
    assert quality.psnr > 60
    assert quality.colour_error < 1e-4


def test_a_blurred_image_is_less_sharp_and_contrast_does_not_matter() -> None:
    target = make_image(32)
    found = {}
    for name, image in {
        "blurred": gaussian_filter(target, (0, 1, 1)),
        "strong": 2 * target,
    }.items():
        scorer = ImageScorer(BANDS, make_template_of(32))
        scorer.update(image, make_chip(target, coarsen(target)), SEEN)
        found[name] = scorer.compute().sharpness
    assert found["blurred"] < 0.3
    assert found["strong"] == pytest.approx(1, abs=1e-3)


def test_sharpness_weighs_rings_by_their_length() -> None:
    frequencies = np.array([0.1, 0.2, 0.3, 0.4])
    flat = PowerSpectrum(frequencies, np.ones((1, 4)), 1)
    low = PowerSpectrum(frequencies, np.array([[1.0, 1, 0.5, 0.5]]), 1)
    # 0.7 of 1.0 above 0.25 in the flat one, 0.35 of 0.65 in the other.
    expected = (0.35 / 0.65) / 0.7
    assert compare_sharpness(low, flat, nyquist_per_px=0.25) == pytest.approx(expected)
    assert math.isnan(compare_sharpness(low, flat, nyquist_per_px=0.5))


def test_registration_finds_a_shift_and_a_bias() -> None:
    target = make_image(32)
    image = np.roll(target, (2, -1), axis=(1, 2)) + np.array([0.05, -0.02])[:, None, None]
    valid = np.ones((32, 32), dtype=bool)
    moved, kept, inside = register_shift(image, target, valid=valid)
    assert inside.shape == (26, 26)
    np.testing.assert_allclose(moved, kept, atol=1e-6)
    scorer = ImageScorer(BANDS, make_template_of(32), register=True)
    scorer.update(image.astype(np.float32), make_chip(target, coarsen(target)), SEEN)
    quality = scorer.compute()
    assert quality.psnr < 30
    assert quality.registered_psnr > 80
    assert quality.registered_ssim > 0.9999


def test_without_a_target_only_colours_are_scored() -> None:
    image = make_image(32)
    scorer = ImageScorer(BANDS, make_template_of(0, bands=()))
    scorer.update(image, make_chip(None, coarsen(image) + 0.02), SEEN)
    quality = scorer.compute()
    assert quality.colour_error == pytest.approx(0.02, abs=1e-4)
    assert math.isnan(quality.psnr)
    assert math.isnan(quality.ssim)
    assert math.isnan(quality.sharpness)
    assert quality.band_psnr.size == 0
