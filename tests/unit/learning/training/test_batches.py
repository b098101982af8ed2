"""Chips come in order, each from memory once it was read, and with the dates that are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from bigmap.learning.chips import ChipSet
from bigmap.learning.training.augmenting import choose_clearest
from bigmap.learning.training.batches import ChipFeed, ChipView, collate, cut_batches, share_out
from tests.unit.learning.training.chip_cases import write_chips


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> ChipSet:
    return ChipSet(write_chips(tmp_path_factory.mktemp("set") / "chips.zarr", train=9))


def test_batches_hold_all_chips_in_order(chips: ChipSet) -> None:
    with ChipFeed(chips, threads=3) as feed:
        batches = list(feed.iterate(cut_batches(range(11), 2), lambda _, read: read))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 2, 1]
    assert [chip.row for batch in batches for chip in batch] == list(range(11))


@pytest.mark.parametrize(("room", "read"), [(0, 8), (2, 6), (4, 4)])
def test_chips_stay_in_memory_as_far_as_it_goes(chips: ChipSet, monkeypatch, room, read) -> None:
    seen = []
    original = ChipSet.read
    monkeypatch.setattr(ChipSet, "read", lambda self, i: seen.append(i) or original(self, i))
    with ChipFeed(chips, threads=1, cache_bytes=room * chips.template.chip_bytes) as feed:
        first, again = (feed.read([0, 1, 2, 3]) for _ in range(2))
    assert len(seen) == read
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.images, other.images)


def test_the_clearest_dates_come_in_order_of_time_and_others_pad(chips: ChipSet) -> None:
    clear = np.zeros((4, 2, 2), dtype=bool)
    clear[0, 0, 0] = clear[1] = clear[3] = True
    assert choose_clearest(clear, 2).dates.tolist() == [1, 3]
    assert choose_clearest(clear, 1).dates.tolist() == [1], "of equal ones the earliest"
    assert choose_clearest(clear, 4).dates.tolist() == [0, 1, 2, 3]
    assert not len(choose_clearest(np.zeros((3, 2, 2), dtype=bool), 2).dates), "none is clear"
    pair = [chips.read(0), chips.read(1)]  # of three dates and of two
    variations = [
        choose_clearest(chip.clear, most) for chip, most in zip(pair, (1, 2), strict=True)
    ]
    batch = collate([0, 1], pair, variations, ChipView((3, 0)))
    assert batch.dates.tolist() == [[True, False], [True, True]]
    best = int(pair[0].clear.sum(axis=(1, 2)).argmax())
    pixels = batch.pixels.numpy().view(np.uint16)
    np.testing.assert_array_equal(pixels[0, 0], pair[0].images[best][[3, 0]])
    np.testing.assert_array_equal(pixels[1], pair[1].images[:, [3, 0]])
    assert not pixels[0, 1].any()


def test_a_batch_without_a_clear_date_has_one_that_pads(chips: ChipSet) -> None:
    chip = chips.read(0)
    nothing = choose_clearest(np.zeros_like(chip.clear), 2)
    batch = collate([0], [chip], [nothing], ChipView((0,)))
    assert batch.dates.tolist() == [[False]]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_shares_hold_each_item_once(world: int) -> None:
    shares = [share_out(range(11), rank=rank, world=world) for rank in range(world)]
    assert [item for share in shares for item in share] == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
