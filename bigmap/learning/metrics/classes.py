"""Scores of classes, all from one confusion matrix that is counted block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NODATA = 255
LEVELS = 256
"""Values of uint8, the type of both layers."""

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of a map of K classes; arrays are float64, (class,), NaN where undefined.

    With TP, FP and FN of a class, N pixels, C of them right, and t and p the true and predicted
    pixels of each class.
    """

    confusion: IntArray
    """Pixels, (true class, predicted class)."""
    iou: FloatArray
    """TP / (TP + FP + FN) (Abadal et al. 2021, equation 9); of absent classes undefined."""
    precision: FloatArray
    """TP / (TP + FP); undefined where the class is not predicted."""
    recall: FloatArray
    """TP / (TP + FN); undefined where the class does not occur."""
    f1: FloatArray
    """2 TP / (2 TP + FP + FN), the harmonic mean of the two; of absent classes undefined."""
    mean_iou: float
    """Mean of the IoU of classes that occur or are predicted."""
    accuracy: float
    """C / N, pixel accuracy."""
    normalised_accuracy: float
    """Mean recall of the classes that occur."""
    kappa: float
    """(N C - sum t p) / (N^2 - sum t p) (Cohen 1960); undefined where chance is always right."""
    mcc: float
    """(N C - sum t p) / sqrt((N^2 - sum t^2) (N^2 - sum p^2)) (Gorodkin 2004), with two classes
    the coefficient of Matthews (1975); undefined where all is one class, true or predicted."""

    @property
    def pixels(self) -> int:
        """Number of pixels that were compared."""
        return int(self.confusion.sum())


class ConfusionMatrix:
    """Counts pixels by true and predicted class.

    Parameters
    ----------
    values
        Values of the classes in both layers, 0 to 255, in the order of the scores.
    nodata
        Value of pixels that do not count, in either layer.

    Raises
    ------
    ValueError
        If a value is given twice, is nodata or does not fit uint8.
    """

    def __init__(self, values: Sequence[int], *, nodata: int = NODATA) -> None:
        known = [*values, nodata]
        if len(set(known)) < len(known) or not all(0 <= value < LEVELS for value in known):
            raise ValueError(
                f"class values {list(values)} and nodata {nodata} must differ and lie in 0 to 255"
            )
        self.values = tuple(int(value) for value in values)
        self.nodata = nodata
        self.counts: IntArray = np.zeros((len(self.values),) * 2, dtype=np.int64)

    def update(
        self,
        predicted: npt.NDArray[Any],
        truth: npt.NDArray[Any],
        *,
        valid: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Add a block.

        Parameters
        ----------
        predicted, truth
            Integer or bool, of equal shape: values of classes or nodata.
        valid
            bool, of the same shape; pixels that are False do not count, whatever they hold.

        Raises
        ------
        ValueError
            If shapes differ, or a pixel that counts is neither a class nor nodata.
        """
        seen = np.ones(truth.shape, dtype=bool) if valid is None else valid
        if not predicted.shape == truth.shape == seen.shape:
            raise ValueError(
                f"prediction {predicted.shape}, truth {truth.shape} and valid {seen.shape} differ"
            )
        rows, columns = (self._to_bytes(layer[seen]) for layer in (truth, predicted))
        pairs = rows.astype(np.uint16) * LEVELS + columns
        table = np.bincount(pairs, minlength=LEVELS**2).reshape(LEVELS, LEVELS)
        for number in table.sum(axis=0), table.sum(axis=1):
            self._refuse_unknown(np.flatnonzero(number))
        self.counts += table[np.ix_(self.values, self.values)]

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the pixels that another one has counted.

        Raises
        ------
        ValueError
            If it counts other classes.
        """
        if (self.values, self.nodata) != (other.values, other.nodata):
            raise ValueError(f"classes {self.values} and {other.values} cannot be added")
        self.counts += other.counts

    def compute(self) -> ClassScores:
        """Derive the scores of all that was counted."""
        return score_confusion(self.counts)

    def _to_bytes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        if values.dtype != np.uint8:
            self._refuse_unknown(values[(values < 0) | (values >= LEVELS)])
        return values.astype(np.uint8, copy=False)

    def _refuse_unknown(self, found: npt.NDArray[Any]) -> None:
        unknown = found[~np.isin(found, [*self.values, self.nodata])]
        if unknown.size:
            raise ValueError(
                f"value {unknown[0]} is neither one of the classes {self.values} nor nodata "
                f"{self.nodata}"
            )


def score_confusion(confusion: IntArray) -> ClassScores:
    """Derive all scores from a confusion matrix.

    Sums of products are exact (Python's integers), so that the scores of 10^12 pixels are right.

    Parameters
    ----------
    confusion
        Integer, (true class, predicted class).

    Returns
    -------
    ClassScores
        torchmetrics has these scores too, but gives 0 for what is undefined and computes in
        float32.
    """
    counts = np.array(confusion, dtype=np.int64)
    true, predicted, hits = counts.sum(axis=1), counts.sum(axis=0), np.diagonal(counts)
    recall, iou = _divide(hits, true), _divide(hits, true + predicted - hits)
    pixels, right = int(counts.sum()), int(hits.sum())
    chance = _sum_products(true, predicted)
    excess = pixels * right - chance
    true_spread = pixels**2 - _sum_products(true, true)
    predicted_spread = pixels**2 - _sum_products(predicted, predicted)
    return ClassScores(
        confusion=counts,
        iou=iou,
        precision=_divide(hits, predicted),
        recall=recall,
        f1=_divide(2 * hits, true + predicted),
        mean_iou=_mean_defined(iou),
        accuracy=right / pixels if pixels else math.nan,
        normalised_accuracy=_mean_defined(recall),
        kappa=excess / (pixels**2 - chance) if pixels**2 > chance else math.nan,
        mcc=_correlate(excess, true_spread * predicted_spread),
    )


def _divide(part: IntArray, whole: IntArray) -> FloatArray:
    shares: FloatArray = np.full(part.shape, np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _mean_defined(scores: FloatArray) -> float:
    defined = scores[~np.isnan(scores)]
    return float(defined.mean()) if defined.size else math.nan


def _sum_products(first: IntArray, second: IntArray) -> int:
    return sum(int(a) * int(b) for a, b in zip(first, second, strict=True))


def _correlate(covariance: int, variances: int) -> float:
    return covariance / math.sqrt(variances) if variances else math.nan
