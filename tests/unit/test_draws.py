"""Draws are held to their values: splits of users' labels and the simulated world hang on them."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from bigmap.config.training import CellSplit
from bigmap.draws import derive_seed, hash_ints, to_uniform
from bigmap.learning.samples.splits import make_splits

SEED = 5963735560859606764


def test_seeds_keep_their_values() -> None:
    assert derive_seed(0, "split") == SEED
    assert derive_seed(7, "chip", 128) == 8503735450546569904
    assert derive_seed(-1, "a", 1) == 7266375061805543928


def test_hashes_of_places_keep_their_values() -> None:
    bits = hash_ints(SEED, [-1, 0, 123_456_789], [5, 0, -3])
    assert bits.tolist() == [3983377146767315876, 8058478653940013187, 8124819536951896229]
    assert hash_ints(0, 0).tolist() == [11286133854226296554]


@pytest.mark.parametrize(
    ("draw", "values"),
    [
        (0, [0.21593930781771165, 0.4368510031764913, 0.4404473496507958]),
        (3, [0.8174556214354729, 0.16611908410612886, 0.830677180891054]),
    ],
)
def test_uniform_numbers_keep_their_values(draw, values) -> None:
    bits = hash_ints(SEED, [-1, 0, 123_456_789], [5, 0, -3])
    assert to_uniform(bits, draw=draw).tolist() == values


def test_split_cells_stay_in_their_splits() -> None:
    split = CellSplit(cell_km=10, train=0.4, validation=0.3, test=0.3)
    bounds = (300_000.0, 4_600_000.0, 340_000.0, 4_630_000.0)
    areas = make_splits(split, crs="EPSG:32631", bounds=bounds, seed=3).areas

    def letter_of(col: int, row: int) -> str:
        middle = shapely.Point(10_000 * col + 5_000, 10_000 * row + 5_000)
        (letter,) = (each for each, area in zip("TVE", areas, strict=True) if area.covers(middle))
        return letter

    rows = ["".join(letter_of(col, row) for col in range(30, 34)) for row in range(460, 463)]
    assert rows == ["ETEV", "VVVV", "VEVE"]


def test_numbers_are_even_and_those_of_other_draws_independent() -> None:
    bits = hash_ints(SEED, np.arange(100_000))
    first, second = to_uniform(bits), to_uniform(bits, draw=1)
    counts = np.histogram(first, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 5 * np.sqrt(9_000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02
