"""Scores: formulas, streaming over any blocks, and what is undefined."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional import classification as reference

from bigmap.learning.metrics import (
    ConfusionMatrix,
    ImageSums,
    InstanceParts,
    SpectrumSums,
    score_confusion,
)

SEEDS = st.integers(0, 2**32 - 1)


def cut(shape: tuple[int, int], rng: np.random.Generator) -> list[tuple[slice, slice]]:
    """Cut a map into rectangles that are no lattice, in random order."""
    blocks = [(slice(0, shape[0]), slice(0, shape[1]))]
    for _ in range(int(rng.integers(0, 12))):
        rows, columns = blocks.pop(int(rng.integers(len(blocks))))
        sides = rows.stop - rows.start, columns.stop - columns.start
        axis = int(rng.integers(2))
        if sides[axis] < 2:
            blocks.append((rows, columns))
            continue
        part = (rows, columns)[axis]
        middle = int(rng.integers(part.start + 1, part.stop))
        halves = slice(part.start, middle), slice(middle, part.stop)
        blocks += [(half, columns) if axis == 0 else (rows, half) for half in halves]
    return [blocks[number] for number in rng.permutation(len(blocks))]


def stream(make, blocks, update, rng):
    """Give blocks to several accumulators, merge them and compute."""
    parts = [make() for _ in range(3)]
    for block in blocks:
        update(parts[int(rng.integers(3))], block)
    for part in parts[1:]:
        parts[0].merge(pickle.loads(pickle.dumps(part)))
    return parts[0].compute()


def test_scores_by_hand() -> None:
    scores = score_confusion(np.array([[50, 10, 0], [5, 20, 5], [0, 0, 10]]))
    np.testing.assert_allclose(scores.iou, [50 / 65, 20 / 40, 10 / 15])
    np.testing.assert_allclose(scores.precision, [50 / 55, 20 / 30, 10 / 15])
    np.testing.assert_allclose(scores.recall, [50 / 60, 20 / 30, 1])
    np.testing.assert_allclose(scores.f1, [100 / 115, 40 / 60, 20 / 25])
    assert scores.mean_iou == pytest.approx((50 / 65 + 1 / 2 + 2 / 3) / 3)
    assert scores.accuracy == pytest.approx(0.8)
    assert scores.normalised_accuracy == pytest.approx((5 / 6 + 2 / 3 + 1) / 3)
    chance = (60 * 55 + 30 * 30 + 10 * 15) / 100**2
    assert scores.kappa == pytest.approx((0.8 - chance) / (1 - chance))
    assert scores.pixels == 100


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_class_scores_equal_torchmetrics(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 400)
    truth[:classes] = np.arange(classes)  # torchmetrics gives 0 for an absent class
    predicted = np.where(rng.random(400) < rng.random(), truth, rng.integers(0, classes, 400))
    predicted[:classes] = np.arange(classes)
    matrix = ConfusionMatrix(range(classes))
    matrix.update(predicted, truth)
    scores = matrix.compute()
    pair = torch.from_numpy(predicted), torch.from_numpy(truth)
    for name, own in (
        ("confusion_matrix", scores.confusion),
        ("cohen_kappa", scores.kappa),
        ("matthews_corrcoef", scores.mcc),
    ):
        theirs = getattr(reference, f"multiclass_{name}")(*pair, num_classes=classes)
        np.testing.assert_allclose(own, theirs.numpy(), atol=1e-5)
    for name, own in (
        ("jaccard_index", scores.iou),
        ("precision", scores.precision),
        ("recall", scores.recall),
        ("f1_score", scores.f1),
    ):
        measure = getattr(reference, f"multiclass_{name}")
        theirs = measure(*pair, num_classes=classes, average="none")
        np.testing.assert_allclose(own, theirs.numpy(), atol=1e-5)
    # The multiclass coefficient is Pearson's correlation of the one-hot vectors.
    one_hot = [np.eye(classes)[values] - np.eye(classes)[values].mean(0) for values in pair]
    covariance = (one_hot[0] * one_hot[1]).sum()
    spread = math.sqrt((one_hot[0] ** 2).sum() * (one_hot[1] ** 2).sum())
    assert scores.mcc == pytest.approx(covariance / spread, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_classes_are_streamed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.array([3, 0, 200, 255])
    truth, predicted = values[rng.integers(0, 4, (2, 23, 17))].astype(np.uint8)
    blocks = cut(truth.shape, rng)
    scores = stream(
        lambda: ConfusionMatrix((3, 0, 200)),
        blocks,
        lambda matrix, block: matrix.update(predicted[block], truth[block]),
        rng,
    )
    counts = [
        [np.sum((truth == true) & (predicted == found)) for found in (3, 0, 200)]
        for true in (3, 0, 200)
    ]
    np.testing.assert_array_equal(scores.confusion, counts)


def test_mcc_of_a_continent() -> None:
    """The product of the four sums is about 10^47, far beyond int64."""
    tp, fp, fn, tn = 3 * 10**11, 10**11 + 1, 2 * 10**11 + 7, 4 * 10**11
    scores = score_confusion(np.array([[tn, fp], [fn, tp]]))
    factors = [tp + fp, tp + fn, tn + fp, tn + fn]
    exact = (tp * tn - fp * fn) / math.prod(math.sqrt(factor) for factor in factors)
    assert scores.mcc == pytest.approx(exact, rel=1e-14)
    assert scores.mcc == pytest.approx(0.4082, abs=1e-3)
    same = score_confusion(np.diag([10**12, 7]))
    assert same.mcc == pytest.approx(1, abs=1e-15)
    assert same.kappa == 1


def test_undefined_class_scores_are_nan() -> None:
    matrix = ConfusionMatrix((0, 1, 2))
    empty = matrix.compute()
    everything = [empty.mcc, empty.kappa, empty.accuracy, empty.mean_iou, empty.normalised_accuracy]
    assert np.isnan(everything).all()
    assert np.isnan([empty.iou, empty.precision, empty.recall, empty.f1]).all()
    matrix.update(np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8))
    matrix.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 9), valid=np.zeros((4, 4), bool))
    assert matrix.compute().pixels == 0
    matrix.update(np.zeros(5, np.uint8), np.zeros(5, np.uint8))
    one = matrix.compute()
    np.testing.assert_array_equal(one.iou, [1, np.nan, np.nan])
    assert (one.mean_iou, one.accuracy, one.normalised_accuracy) == (1, 1, 1)
    assert math.isnan(one.mcc)
    assert math.isnan(one.kappa)
    matrix.update(np.ones(5, np.uint8), np.zeros(5, np.uint8))
    wrong = matrix.compute()
    np.testing.assert_array_equal(wrong.recall, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(wrong.precision, [1, 0, np.nan])
    np.testing.assert_array_equal(wrong.iou, [0.5, 0, np.nan])
    assert wrong.mean_iou == 0.25


@pytest.mark.parametrize("value", [7, -1, 300])
def test_values_that_are_no_class_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"value {value} is neither"):
        ConfusionMatrix((0, 1)).update(np.array([value]), np.array([1]))


def test_class_counts_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="must differ"):
        ConfusionMatrix((0, 255))
    with pytest.raises(ValueError, match="cannot be added"):
        ConfusionMatrix((0, 1)).merge(ConfusionMatrix((1, 0)))
    with pytest.raises(ValueError, match="differ"):
        ConfusionMatrix((0, 1)).update(np.zeros(3, int), np.zeros(4, int))


def random_pair(rng: np.random.Generator, shape: tuple[int, ...]):
    image = rng.random(shape)
    return image, np.clip(image + rng.normal(0, 0.1, shape), 0, 1)


def test_image_scores_equal_scikit_image() -> None:
    image, truth = random_pair(np.random.default_rng(0), (3, 40, 33))
    sums = ImageSums(3, data_range=0.8)
    sums.update(image, truth)
    scores = sums.compute()
    assert scores.mse == pytest.approx(np.mean((image - truth) ** 2))
    assert scores.psnr == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=0.8))
    similarity = structural_similarity(
        image, truth, channel_axis=0, data_range=0.8, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False,
    )  # fmt: skip
    assert scores.ssim == pytest.approx(similarity, abs=1e-12)
    assert scores.windows == 30 * 23
    bands = [peak_signal_noise_ratio(t, i, data_range=0.8) for t, i in zip(truth, image)]  # noqa: B905
    np.testing.assert_allclose(scores.band_psnr, bands)


def ssim_of_window(image: np.ndarray, truth: np.ndarray) -> float:
    """Wang et al. (2004), equation 13, of one window of 11 x 11 px with range 1."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    mx, my = (weight * image).sum(), (weight * truth).sum()
    sxx, syy = (weight * (image - mx) ** 2).sum(), (weight * (truth - my) ** 2).sum()
    sxy = (weight * (image - mx) * (truth - my)).sum()
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mx * my + c1) * (2 * sxy + c2)
    return upper / ((mx**2 + my**2 + c1) * (sxx + syy + c2))


def test_ssim_counts_whole_valid_windows_only() -> None:
    image, truth = random_pair(np.random.default_rng(1), (1, 14, 11))
    valid = np.ones((14, 11), bool)
    valid[12, 4] = False
    image[0, 12, 4], truth[0, 12, 4] = np.nan, 1e30
    sums = ImageSums(1, data_range=1.0)
    sums.update(image, truth, valid=valid)
    scores = sums.compute()
    windows = [ssim_of_window(image[0, row : row + 11], truth[0, row : row + 11]) for row in (0, 1)]
    assert scores.windows == 2
    assert scores.ssim == pytest.approx(np.mean(windows), abs=1e-12)
    assert scores.pixels == 14 * 11 - 1
    assert scores.mse == pytest.approx(((image - truth)[0, valid] ** 2).mean())


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_images_are_streamed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(8, 45)), int(rng.integers(8, 45))
    whole = ImageSums(2, data_range=1.0)
    parts = [ImageSums(2, data_range=1.0) for _ in range(2)]
    for number in range(4):
        image, truth = random_pair(rng, (2, *shape))
        valid = rng.random(shape) > rng.choice([0, 0.002])
        whole.update(image, truth, valid=valid)
        parts[number % 2].update(image, truth, valid=valid)
    parts[0].merge(parts[1])
    scores, expected = parts[0].compute(), whole.compute()
    assert (scores.pixels, scores.windows) == (expected.pixels, expected.windows)
    np.testing.assert_allclose(scores.band_mse, expected.band_mse, rtol=1e-12)
    np.testing.assert_allclose(scores.band_ssim, expected.band_ssim, rtol=1e-9)


def test_undefined_image_scores_are_nan() -> None:
    sums = ImageSums(2, data_range=1.0)
    sums.update(np.ones((2, 20, 20)), np.zeros((2, 20, 20)), valid=np.zeros((20, 20), bool))
    empty = sums.compute()
    assert np.isnan([empty.mse, empty.psnr, empty.ssim]).all()
    sums.update(np.ones((2, 8, 8)), np.ones((2, 8, 8)))
    small = sums.compute()
    assert (small.mse, small.psnr) == (0, math.inf)
    assert math.isnan(small.ssim)
    with pytest.raises(ValueError, match="do not fit 2 bands"):
        sums.update(np.ones((3, 8, 8)), np.ones((3, 8, 8)))
    with pytest.raises(ValueError, match="cannot be added"):
        sums.merge(ImageSums(2, data_range=2.0))


def test_spectrum_of_a_wave_and_of_noise() -> None:
    x = np.arange(256)
    wave = np.broadcast_to(np.sin(2 * np.pi * x * 8 / 64), (256, 256))
    noise = np.random.default_rng(0).normal(5, 3, (256, 256))
    sums = SpectrumSums(2, segment_px=64)
    sums.update(np.stack([wave, noise]))
    spectrum = sums.compute()
    assert spectrum.segments == 16
    assert spectrum.frequency_per_px[spectrum.power[0].argmax()] == 8 / 64
    assert spectrum.power[0, [7]] > 1e6 * spectrum.power[0, 20]
    # White noise of variance 9 has that power at every frequency; 16 segments leave some scatter.
    np.testing.assert_allclose(spectrum.power[1, 8:], 9, rtol=0.25)
    assert spectrum.power[1, 8:].mean() == pytest.approx(9, rel=0.03)


def test_spectrum_against_a_direct_sum() -> None:
    segment = np.random.default_rng(3).random((8, 8))
    sums = SpectrumSums(1, segment_px=8)
    sums.update(segment[None])
    window = np.sin(np.pi * np.arange(8) / 8) ** 2
    taper = window[:, None] * window
    values = (segment - segment.mean()) * taper
    y, x = np.mgrid[:8, :8]
    rings: dict[int, list[float]] = {}
    for v in range(-4, 4):
        for u in range(-4, 4):
            power = abs((values * np.exp(-2j * np.pi * (v * y + u * x) / 8)).sum()) ** 2
            rings.setdefault(round(math.hypot(u, v)), []).append(power / (taper**2).sum())
    expected = [np.mean(rings[radius]) for radius in (1, 2, 3, 4)]
    np.testing.assert_allclose(sums.compute().power[0], expected)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_spectra_are_streamed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, valid = rng.random((2, 5 * 16 + 3, 7 * 16 + 9)), np.ones((83, 121), bool)
    valid[rng.integers(83), rng.integers(121)] = False
    image[:, ~valid] = np.nan
    whole = SpectrumSums(2, segment_px=16)
    whole.update(image, valid=valid)
    segments = cut((6, 8), rng)
    blocks = [tuple(slice(s.start * 16, s.stop * 16) for s in segment) for segment in segments]

    def update(sums: SpectrumSums, block: tuple[slice, slice]) -> None:
        sums.update(image[:, *block], valid=valid[block])

    spectrum = stream(lambda: SpectrumSums(2, segment_px=16), blocks, update, rng)
    assert spectrum.segments == whole.compute().segments
    np.testing.assert_allclose(spectrum.power, whole.compute().power, rtol=1e-12)
    assert np.isfinite(spectrum.power).all()


def test_spectrum_of_nothing_is_nan() -> None:
    sums = SpectrumSums(1, segment_px=16)
    sums.update(np.ones((1, 15, 40)))
    assert np.isnan(sums.compute().power).all()
    with pytest.raises(ValueError, match="cannot be added"):
        sums.merge(SpectrumSums(1, segment_px=17))


def test_instances_by_hand() -> None:
    truth = np.zeros((8, 12), bool)
    predicted = np.zeros((8, 12), bool)
    truth[0:2, 0:2] = predicted[0:2, 0:3] = True  # IoU 4/6
    truth[4:6, 0:2] = predicted[4, 1:5] = True  # IoU 1/7
    truth[0:2, 6:8] = True  # missed
    predicted[6:8, 8:10] = True  # invented
    truth[4, 8:10] = predicted[4, 9:12] = True  # IoU 1/4, which does not exceed the threshold
    parts = InstanceParts()
    parts.update(predicted, truth, origin=(0, 0))
    scores = parts.compute()
    assert (scores.true, scores.predicted, scores.matched) == (4, 4, 1)
    assert (scores.precision, scores.recall, scores.f1) == (1 / 4, 1 / 4, 1 / 4)
    looser = InstanceParts(min_iou=0.14)
    looser.update(predicted, truth, origin=(0, 0))
    assert looser.compute().matched == 3


def test_as_many_instances_as_possible_are_paired() -> None:
    """IoU 2/7, 4/10 and 2/8 in a chain: to take the best first would leave the others alone."""
    predicted = np.array([[1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0]], bool)
    truth = np.array([[1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1]], bool)
    parts = InstanceParts(min_iou=0.2)
    parts.update(predicted, truth, origin=(0, 0))
    assert parts.compute().matched == 2


def match_whole(predicted: np.ndarray, truth: np.ndarray, eight: bool) -> tuple[int, int, int]:
    """Count instances and pairs of a whole map by augmenting paths."""
    structure = np.ones((3, 3)) if eight else None
    (found, founds), (real, reals) = label(predicted, structure), label(truth, structure)
    partner: dict[int, int] = {}

    def fits(a: int, b: int) -> bool:
        both, either = np.sum((found == a) & (real == b)), np.sum((found == a) | (real == b))
        return bool(both > 0.25 * either)

    def augment(a: int, tried: set[int]) -> bool:
        for b in range(1, reals + 1):
            if b not in tried and fits(a, b):
                tried.add(b)
                if b not in partner or augment(partner[b], tried):
                    partner[b] = a
                    return True
        return False

    matched = sum(augment(a, set()) for a in range(1, founds + 1))
    return reals, founds, matched


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from([4, 8]))
def test_instances_are_streamed(seed: int, connectivity: int) -> None:
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 16)), int(rng.integers(1, 16))
    truth = rng.random(shape) < rng.uniform(0.2, 0.7)
    predicted = truth ^ (rng.random(shape) < rng.uniform(0, 0.3))
    valid = rng.random(shape) < 0.95

    def update(parts: InstanceParts, block: tuple[slice, slice]) -> None:
        origin = block[0].start - 3, block[1].start - 7
        parts.update(predicted[block], truth[block], origin=origin, valid=valid[block])

    scores = stream(lambda: InstanceParts(connectivity=connectivity), cut(shape, rng), update, rng)
    expected = match_whole(predicted & valid, truth & valid, connectivity == 8)
    assert (scores.true, scores.predicted, scores.matched) == expected


def test_undefined_instance_scores_are_nan() -> None:
    parts = InstanceParts()
    assert math.isnan(parts.compute().f1)
    parts.update(np.zeros((4, 4), bool), np.zeros((4, 4), bool), origin=(0, 0))
    parts.update(np.zeros((4, 4), bool), np.eye(4, dtype=bool), origin=(4, 4))
    scores = parts.compute()
    assert math.isnan(scores.precision)
    assert (scores.true, scores.recall, scores.f1) == (4, 0, 0)
    with pytest.raises(ValueError, match="connectivities cannot be added"):
        parts.merge(InstanceParts(connectivity=8))
