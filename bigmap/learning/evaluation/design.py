"""Accuracy and area from a stratified random sample, with their uncertainty. Pure.

Good practice after Olofsson et al. (2014, doi:10.1016/j.rse.2014.02.015). The estimators are those
of Stehman (2014, doi:10.1080/01431161.2014.930207), whose strata may be anything; where they are
the map's classes, estimates and variances are those of Olofsson et al., equations 1 to 11, apart
from the finite population correction, which is left out: a sample is a tiny part of its map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z95 = 1.96
"""Half of a 95 % confidence interval, in standard errors."""
LEAST_POINTS = 2
"""Of a stratum: with one there is no variance."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Estimate:
    """An estimate and half of its 95 % confidence interval; NaN where undefined."""

    value: float
    half_width: float

    def scale(self, factor: float) -> Estimate:
        """Return the same in another unit."""
        return Estimate(self.value * factor, self.half_width * factor)


@dataclass(frozen=True, eq=False)
class DesignScores:
    """What a reference sample says of a map of K classes."""

    proportions: FloatArray
    """Estimated share of the area, (map class, reference class), summing to one."""
    counts: IntArray
    """Points, (map class, reference class)."""
    accuracy: Estimate
    """Overall."""
    users: tuple[Estimate, ...]
    """Of each class; undefined where the map lacks it."""
    producers: tuple[Estimate, ...]
    """Of each class; undefined where the sample lacks it."""
    shares: tuple[Estimate, ...]
    """Of each reference class in the area."""
    stratum_points: Mapping[str, int]
    stratum_weights: Mapping[str, float]


def estimate_accuracy(
    mapped: IntArray,
    reference: IntArray,
    strata: Sequence[str],
    *,
    weights: Mapping[str, float],
    classes: int,
) -> DesignScores:
    """Estimate accuracy and area from a stratified random sample.

    Parameters
    ----------
    mapped, reference
        Index of the class of each point in the map and in the reference, (point,).
    strata
        Of each point.
    weights
        Size of each stratum in any unit, such as pixels or hectares.
    classes
        Number of classes.

    Returns
    -------
    DesignScores
        With Y = sum over strata of W mean(y) for indicators y: accuracy and area shares are such
        means (Stehman's equations 1 to 3 and 25), user's and producer's accuracy ratios of two
        (27, 28).

    Raises
    ------
    ValueError
        If a stratum has a weight and less than two points, or points and no weight.
    """
    names = np.asarray(strata)
    design = _Design(
        [names == name for name in weights],
        np.array(list(weights.values()), dtype=float) / sum(weights.values()),
    )
    few = [name for name, inside in zip(weights, design.members, strict=True)
           if inside.sum() < LEAST_POINTS]  # fmt: skip
    unknown = sorted(set(strata) - set(weights))
    if few or unknown:
        raise ValueError(
            f"strata {few} have less than {LEAST_POINTS} points, and {unknown} no weight"
        )
    right = mapped == reference
    proportions = np.array([
        [design.mean((mapped == i) & (reference == j)) for j in range(classes)]
        for i in range(classes)
    ])  # fmt: skip
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (mapped, reference), 1)
    return DesignScores(
        proportions=proportions,
        counts=counts,
        accuracy=design.estimate(right),
        users=tuple(design.ratio(right & (mapped == i), mapped == i) for i in range(classes)),
        producers=tuple(
            design.ratio(right & (reference == j), reference == j) for j in range(classes)
        ),
        shares=tuple(design.estimate(reference == j) for j in range(classes)),
        stratum_points={
            name: int(inside.sum()) for name, inside in zip(weights, design.members, strict=True)
        },
        stratum_weights=dict(zip(weights, design.weights.tolist(), strict=True)),
    )


@dataclass(frozen=True, eq=False)
class _Design:
    """Which points are in which stratum, and the share of the area of each."""

    members: list[BoolArray]
    weights: FloatArray

    def mean(self, values: npt.NDArray[np.generic]) -> float:
        """Estimate the mean of a variable over the area."""
        means = [float(values[inside].astype(float).mean()) for inside in self.members]
        return float(self.weights @ means)

    def standard_error(self, values: npt.NDArray[np.generic]) -> float:
        """Estimate the standard error of that mean."""
        variances = [
            values[inside].astype(float).var(ddof=1) / inside.sum() for inside in self.members
        ]
        return float(np.sqrt(self.weights**2 @ variances))

    def estimate(self, values: npt.NDArray[np.generic]) -> Estimate:
        """Estimate a mean with its uncertainty."""
        return Estimate(self.mean(values), Z95 * self.standard_error(values))

    def ratio(self, above: BoolArray, below: BoolArray) -> Estimate:
        """Estimate a ratio of two means; its variance is that of above - ratio * below."""
        total = self.mean(below)
        if total == 0:
            return Estimate(np.nan, np.nan)
        ratio = self.mean(above) / total
        rest = above.astype(float) - ratio * below
        return Estimate(ratio, Z95 * self.standard_error(rest) / total)
