"""What is varied in a chip; its dates, mask, labels and images move together.

Random numbers come from the seed, the epoch and the chip alone: neither the number of processes,
nor the reading threads, nor a run that was resumed changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bigmap.config.training import AugmentConfig
from bigmap.scenes.quality import DateRule, choose_dates

Scalar = TypeVar("Scalar", bound=np.generic)


class Purpose(IntEnum):
    """What random numbers are for, so that two uses never share them."""

    ORDER = 0
    AUGMENT = 1
    DROPOUT = 2


def make_generator(purpose: Purpose, *parts: int) -> np.random.Generator:
    """Return the generator of a purpose and of whole numbers, such as seed, epoch and chip."""
    return np.random.default_rng([int(purpose), *parts])


def order_chips(chips: npt.NDArray[np.intp], *, seed: int, epoch: int) -> npt.NDArray[np.intp]:
    """Return chips in the order of an epoch, (chip,)."""
    return make_generator(Purpose.ORDER, seed, epoch).permutation(chips)


@dataclass(frozen=True, eq=False)
class Variation:
    """How one chip is seen once."""

    dates: npt.NDArray[np.intp]
    """Those that are kept, in the order in which they are seen, (time,)."""
    turns: int = 0
    """Quarter turns, counterclockwise."""
    flips_rows: bool = False
    flips_columns: bool = False
    gain: npt.NDArray[np.float32] | None = None
    """Factor of each date's reflectance, (time,); None where nothing is changed."""
    offset: npt.NDArray[np.float32] | None = None
    """Added to each date's reflectance, in standard deviations of each band, (time,)."""

    def move(self, values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Turn and flip an array (..., y, x) of any resolution; a view, nothing is copied."""
        if self.turns:
            values = np.rot90(values, self.turns, axes=(-2, -1))
        if self.flips_rows:
            values = values[..., ::-1, :]
        if self.flips_columns:
            values = values[..., ::-1]
        return values


def vary_nothing(dates: int) -> Variation:
    """Return the variation that shows a chip as it is."""
    return Variation(np.arange(dates))


def choose_clearest(clear: npt.NDArray[np.bool_], most: int) -> Variation:
    """Return the variation that keeps so many dates of a chip, the clearest, in order of time.

    Parameters
    ----------
    clear
        (time, y, x).
    most
        Dates to keep.
    """
    if len(clear) <= most:
        return vary_nothing(len(clear))
    percent = 100.0 * clear.mean(axis=(1, 2))
    return Variation(np.array(choose_dates(percent, DateRule(most, 0.0)), dtype=np.intp))


def draw_variation(
    settings: AugmentConfig, dates: int, *, seed: int, epoch: int, chip: int
) -> Variation:
    """Draw how a chip is seen in an epoch.

    Parameters
    ----------
    settings
        What may vary. Each setting has its own random numbers: to turn one off leaves the others
        as they were.
    dates
        Of the chip.
    """
    generator = make_generator(Purpose.AUGMENT, seed, epoch, chip)
    turns, rows, columns = (int(n) for n in generator.integers((4, 2, 2)))
    chances, order = generator.random(dates), generator.random(dates)
    last = int(generator.integers(dates))
    gains, offsets = generator.standard_normal((2, dates), dtype=np.float32)
    kept = np.flatnonzero(chances >= settings.date_dropout)
    if not kept.size:
        kept = np.array([last])
    if settings.shuffle_dates:
        kept = kept[np.argsort(order[kept], kind="stable")]
    jitter = np.float32(settings.jitter)
    return Variation(
        dates=kept,
        turns=turns if settings.turns else 0,
        flips_rows=bool(rows) and settings.flips,
        flips_columns=bool(columns) and settings.flips,
        gain=1 + jitter * gains[kept] if jitter else None,
        offset=jitter * offsets[kept] if jitter else None,
    )
