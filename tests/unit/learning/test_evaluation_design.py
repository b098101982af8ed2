"""Estimates from a reference sample: published examples, and formulas written a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bigmap.learning.evaluation.design import Z95, estimate_accuracy

NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
AREA_PX = (200_000, 150_000, 3_200_000, 6_450_000)
MATRIX = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
"""Olofsson et al. (2014), table 8: rows are the map, columns the reference."""


def unroll(matrix):
    """Return map class and reference class of each point."""
    rows, columns = np.indices(matrix.shape)
    return (np.repeat(each.ravel(), matrix.ravel()) for each in (rows, columns))


def estimate(matrix=MATRIX, sizes=AREA_PX):
    mapped, reference = unroll(matrix)
    weights = dict(zip(NAMES, sizes, strict=False))
    strata = [NAMES[index] for index in mapped]
    return estimate_accuracy(mapped, reference, strata, weights=weights, classes=len(matrix))


def test_the_published_example_of_olofsson() -> None:
    scores = estimate()
    assert scores.accuracy.value == pytest.approx(0.947, abs=5e-4)
    assert scores.accuracy.half_width == pytest.approx(0.018, abs=5e-4)
    users = [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    for one, (value, half_width) in zip(scores.users, users, strict=True):
        assert one.value == pytest.approx(value, abs=0.005)
        assert one.half_width == pytest.approx(half_width, abs=0.005)
    # For intervals of producer's accuracy see the paper's equation, below.
    for one, value in zip(scores.producers, (0.75, 0.85, 0.93, 0.96), strict=True):
        assert one.value == pytest.approx(value, abs=0.005)
    pixels = scores.shares[0].scale(sum(AREA_PX))
    assert pixels.value == pytest.approx(235_086, abs=1)
    assert pixels.half_width == pytest.approx(68_418, abs=1)
    hectares = pixels.scale(0.09)
    assert hectares.value == pytest.approx(21_158, abs=1)
    assert hectares.half_width == pytest.approx(6_158, abs=1)
    assert scores.proportions.sum() == pytest.approx(1)
    assert scores.proportions[0] == pytest.approx([0.0176, 0, 0.0013, 0.0011], abs=5e-5)
    assert scores.counts.tolist() == MATRIX.tolist()
    assert scores.stratum_points == dict(zip(NAMES, (75, 75, 165, 325), strict=True))


def test_variances_are_those_of_olofsson_s_equations() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        matrix = rng.integers(1, 30, (4, 4)) + np.diag(rng.integers(10, 200, 4))
        sizes = rng.integers(1, 10_000, 4) * 100
        scores = estimate(matrix, sizes)
        number, weight = matrix.sum(axis=1), sizes / sizes.sum()
        p = weight[:, None] * matrix / number[:, None]
        users = np.diag(p) / p.sum(axis=1)
        overall = Z95 * math.sqrt((weight**2 * users * (1 - users) / (number - 1)).sum())
        assert scores.accuracy.half_width == pytest.approx(overall)
        for j in range(4):
            deviation = math.sqrt(users[j] * (1 - users[j]) / (number[j] - 1))
            assert scores.users[j].half_width == pytest.approx(Z95 * deviation)
            # Equation 7, with N the sizes of strata.
            share = matrix[:, j] / number
            total, hit = (sizes * share).sum(), np.diag(p)[j] / p[:, j].sum()
            own = sizes[j] ** 2 * (1 - hit) ** 2 * users[j] * (1 - users[j]) / (number[j] - 1)
            others = sizes**2 * share * (1 - share) / (number - 1)
            rest = hit**2 * (others.sum() - others[j])
            deviation = math.sqrt((own + rest) / total**2)
            assert scores.producers[j].value == pytest.approx(hit)
            assert scores.producers[j].half_width == pytest.approx(Z95 * deviation)
            # Equation 10.
            area = math.sqrt(((weight * p[:, j] - p[:, j] ** 2) / (number - 1)).sum())
            assert scores.shares[j].half_width == pytest.approx(Z95 * area)


def test_the_published_example_of_stehman() -> None:
    strata = "A" * 10 + "B" * 10 + "C" * 10 + "D" * 10
    mapped = "A" * 7 + "B" * 3 + "A" + "B" * 11 + "C" * 6 + "BB" + "D" * 10
    reference = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    indices = (np.array(["ABCD".index(one) for one in text]) for text in (mapped, reference))
    weights = {"A": 40_000, "B": 30_000, "C": 20_000, "D": 10_000}
    scores = estimate_accuracy(*indices, list(strata), weights=weights, classes=4)
    # Value and standard error, pages 4932 to 4936.
    for found, value, error in (
        (scores.shares[0], 0.35, 0.082),
        (scores.shares[2], 0.20, 0.064),
        (scores.accuracy, 0.63, 0.085),
        (scores.users[1], 0.574, 0.125),
        (scores.producers[1], 0.794, 0.116),
    ):
        assert found.value == pytest.approx(value, abs=6e-4)
        assert found.half_width / Z95 == pytest.approx(error, abs=6e-4)
    assert scores.proportions[1, 2] == pytest.approx(0.08)


def test_strata_other_than_the_map_s_classes() -> None:
    # Two strata, two classes, by hand: 90 % of the area in the first.
    strata = ["a"] * 4 + ["b"] * 5
    mapped = np.array([0, 0, 0, 1, 1, 1, 1, 0, 1])
    reference = np.array([0, 0, 1, 1, 1, 1, 0, 0, 1])
    scores = estimate_accuracy(mapped, reference, strata, weights={"a": 9, "b": 1}, classes=2)
    assert scores.accuracy.value == pytest.approx(0.9 * 0.75 + 0.1 * 0.8)
    variance = 0.81 * (0.75 * 0.25 / 3) + 0.01 * (0.8 * 0.2 / 4)
    assert scores.accuracy.half_width == pytest.approx(Z95 * math.sqrt(variance))
    assert scores.shares[1].value == pytest.approx(0.9 * 0.5 + 0.1 * 0.6)
    assert scores.users[0].value == pytest.approx((0.9 * 0.5 + 0.1 * 0.2) / (0.9 * 0.75 + 0.02))
    assert scores.producers[1].value == pytest.approx((0.9 * 0.25 + 0.06) / (0.45 + 0.06))


def test_estimates_are_unbiased_and_intervals_cover() -> None:
    # A world of two strata whose borders are not those of the map's classes.
    rng = np.random.default_rng(4)
    stratum = rng.random(20_000) < 0.1
    reference = (rng.random(20_000) < np.where(stratum, 0.7, 0.05)).astype(np.int64)
    mapped = np.where(rng.random(20_000) < 0.85, reference, 1 - reference)
    truth = float((reference == 1).mean())
    right = float((reference[mapped == 1] == 1).mean())
    areas, users = [], []
    for _ in range(400):
        chosen = np.concatenate([
            rng.choice(np.flatnonzero(stratum == side), 60, replace=False) for side in (0, 1)
        ])  # fmt: skip
        scores = estimate_accuracy(
            mapped[chosen], reference[chosen], [str(side) for side in stratum[chosen]],
            weights={"False": (~stratum).sum(), "True": stratum.sum()}, classes=2,
        )  # fmt: skip
        areas.append(scores.shares[1])
        users.append(scores.users[1])
    assert np.mean([one.value for one in areas]) == pytest.approx(truth, abs=0.004)
    assert np.mean([one.value for one in users]) == pytest.approx(right, abs=0.02)
    covered = np.mean([abs(one.value - truth) <= one.half_width for one in areas])
    assert 0.88 < covered < 0.98


def test_classes_that_map_or_sample_lack_are_undefined() -> None:
    matrix = np.array([[5, 1, 0], [1, 5, 0], [0, 0, 0]])
    scores = estimate(matrix, (10, 10))
    assert math.isnan(scores.users[2].value)
    assert math.isnan(scores.producers[2].half_width)
    assert scores.shares[2].value == 0


def test_a_stratum_needs_two_points_and_a_weight() -> None:
    mapped = reference = np.array([0, 0, 1])
    with pytest.raises(ValueError, match=r"strata \['b'\] have less than 2 points"):
        estimate_accuracy(mapped, reference, ["a", "a", "b"], weights={"a": 1, "b": 1}, classes=2)
    with pytest.raises(ValueError, match=r"\['b'\] no weight"):
        estimate_accuracy(mapped, reference, ["a", "a", "b"], weights={"a": 1}, classes=2)
