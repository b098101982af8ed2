"""Variations of chips: all parts move together, and depend on seed, epoch and chip alone."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigmap.config.training import AugmentConfig
from bigmap.learning.chips import Chip
from bigmap.learning.training.augmenting import draw_variation, order_chips, vary_nothing
from bigmap.learning.training.batches import ChipView, collate

ALL = AugmentConfig(flips=True, turns=True, date_dropout=0.4, shuffle_dates=True, jitter=0.1)


def make_chip(dates: int = 5, side: int = 6, upscale: int = 2) -> Chip:
    """A chip whose every value says where it is: of date t and pixel p, 1000 t + p + 1."""
    place = np.arange(side**2, dtype=np.uint16).reshape(side, side) + 1
    images = np.stack([[place + 1000 * date, place + 1000 * date + 500] for date in range(dates)])
    fine = np.kron(place, np.ones((upscale, upscale))).astype(np.uint16)
    days = tuple(dt.date(2024, 5, 1 + date) for date in range(dates))
    clear = (images[:, 0] + np.arange(dates)[:, None, None]) % 3 > 0
    return Chip(
        images=images.astype(np.uint16), clear=clear,
        days=days, labels=fine.astype(np.uint8), target=fine[None], split="train", row=0, col=0,
    )  # fmt: skip


VIEW = ChipView(
    bands=(1, 0), classes=np.arange(256, dtype=np.uint8), target_bands=(0,), reference_bands=(0,),
    band_std=(0.1, 0.2),
)  # fmt: skip


@given(seed=st.integers(0, 10), epoch=st.integers(0, 10), chip=st.integers(0, 10))
def test_image_mask_labels_target_and_reference_move_together(seed, epoch, chip) -> None:
    sample = make_chip()
    variation = draw_variation(ALL, 5, seed=seed, epoch=epoch, chip=chip)
    batch = collate([chip], [sample], [variation], VIEW)
    pixels = batch.pixels[0].numpy().astype(np.int64)
    dates, places = (pixels[:, 1] - 1) // 1000, (pixels[:, 1] - 1) % 1000
    assert (dates == dates[:, :1, :1]).all()
    assert dates[:, 0, 0].tolist() == variation.dates.tolist()
    assert (places == places[0]).all(), "all dates show the same pixels"
    assert (pixels[:, 0] == pixels[:, 1] + 500).all(), "bands are in the view's order"
    rows, columns = np.divmod(places[0], 6)
    source = sample.clear[variation.dates][:, rows, columns]
    assert (batch.clear[0].numpy() == source).all()
    fine = np.kron(places[0] + 1, np.ones((2, 2), dtype=np.int64))
    assert (batch.labels[0].numpy() == fine).all()
    assert (batch.target[0, 0].numpy() == fine).all()
    best = int(sample.clear.sum(axis=(1, 2)).argmax())
    assert (batch.reference[0, 0].numpy() == places[0] + 1 + 1000 * best).all()
    assert (batch.reference_clear[0].numpy() == sample.clear[best][rows, columns]).all()


def test_all_eight_positions_of_a_square_occur_equally_often() -> None:
    sample = make_chip(dates=1)
    counts: dict[bytes, int] = {}
    for chip in range(800):
        variation = draw_variation(ALL, 1, seed=0, epoch=0, chip=chip)
        key = np.ascontiguousarray(variation.move(sample.images[0, 0])).tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 8
    assert min(counts.values()) > 60


@given(dates=st.integers(1, 8), dropout=st.floats(0, 1), chip=st.integers(0, 50))
def test_one_date_stays_and_none_comes_twice(dates, dropout, chip) -> None:
    settings = AugmentConfig(date_dropout=dropout, shuffle_dates=True)
    kept = draw_variation(settings, dates, seed=1, epoch=2, chip=chip).dates
    assert 1 <= len(kept) <= dates
    assert len(set(kept.tolist())) == len(kept)
    assert len(kept) == (dates if dropout == 0 else 1 if dropout == 1 else len(kept))


def test_dropout_leaves_out_as_many_dates_as_it_says() -> None:
    settings = AugmentConfig(date_dropout=0.25)
    kept = [len(draw_variation(settings, 8, seed=0, epoch=0, chip=c).dates) for c in range(500)]
    assert np.mean(kept) == pytest.approx(6, abs=0.15)
    # Without a shuffle dates stay in their order.
    assert all(
        (np.diff(draw_variation(settings, 8, seed=0, epoch=0, chip=c).dates) > 0).all()
        for c in range(20)
    )


def test_jitter_is_a_gain_and_an_offset_in_each_bands_own_deviation() -> None:
    sample = make_chip()
    settings = AugmentConfig(flips=False, turns=False, jitter=0.1)
    variation = draw_variation(settings, 5, seed=3, epoch=1, chip=4)
    plain = collate([0], [sample], [vary_nothing(5)], VIEW).prepare(torch.zeros(2))
    varied = collate([0], [sample], [variation], VIEW).prepare(torch.zeros(2))
    gain = torch.from_numpy(variation.gain)[None, :, None, None, None]
    offset = torch.from_numpy(variation.offset)[None, :, None] * torch.tensor([0.1, 0.2])
    torch.testing.assert_close(varied, plain * gain + offset[..., None, None])
    drawn = [draw_variation(settings, 5, seed=3, epoch=e, chip=4).gain for e in range(400)]
    assert np.std(drawn) == pytest.approx(0.1, rel=0.1)
    assert np.mean(drawn) == pytest.approx(1.0, abs=0.01)


def test_a_setting_that_is_off_changes_no_other() -> None:
    everything = draw_variation(ALL, 5, seed=1, epoch=1, chip=1)
    no_turns = draw_variation(ALL.model_copy(update={"turns": False}), 5, seed=1, epoch=1, chip=1)
    assert no_turns.dates.tolist() == everything.dates.tolist()
    assert (no_turns.flips_rows, no_turns.flips_columns) == (
        everything.flips_rows, everything.flips_columns,
    )  # fmt: skip
    assert no_turns.turns == 0
    nothing = AugmentConfig(flips=False, turns=False)
    for chip in range(20):
        variation = draw_variation(nothing, 5, seed=1, epoch=1, chip=chip)
        assert variation.dates.tolist() == [0, 1, 2, 3, 4]
        assert (variation.turns, variation.flips_rows, variation.flips_columns) == (0, False, False)
        assert variation.gain is None


def test_epochs_have_their_own_order_and_each_chip_once() -> None:
    chips = np.arange(100, 130)
    first, second = (order_chips(chips, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == chips.tolist()
    assert first.tolist() != second.tolist()
    assert first.tolist() == order_chips(chips, seed=0, epoch=0).tolist()


def test_fewer_dates_are_filled_up_and_say_so() -> None:
    chips = [make_chip(dates=2), make_chip(dates=4)]
    batch = collate([0, 1], chips, [vary_nothing(2), vary_nothing(4)], VIEW)
    assert batch.dates.tolist() == [[True, True, False, False], [True] * 4]
    assert not batch.clear[0, 2:].any()
    assert (batch.pixels[0, 2:] == 0).all()
