"""A set of chips that is cut anew while it is read is noticed, not read as nodata."""

import pytest

from bigmap.chips import ChipSet
from bigmap.errors import SamplesError
from bigmap.store import remove_store
from bigmap.training.batches import ChipFeed, ChipView
from tests.unit.training.chip_cases import write_chips

SENTENCE = r"chips\.zarr: was cut anew by bigmap extract while its chips were read"


@pytest.fixture
def feed(tmp_path):
    chips = ChipSet(write_chips(tmp_path / "chips.zarr"))
    view = ChipView((0, 1, 2, 3), None, None, None, (1.0,) * 4)
    feed = ChipFeed(chips, view, augment=None, seed=0)
    yield feed
    feed.close()


def test_chips_that_are_gone_are_no_nodata(feed, tmp_path):
    assert feed.load([0], None).pixels.any()
    remove_store(str(tmp_path / "chips.zarr"))
    with pytest.raises(SamplesError, match=SENTENCE):
        feed.load([1], None)


def test_chips_that_were_replaced_are_not_taken_for_the_old_ones(feed, tmp_path):
    write_chips(tmp_path / "chips.zarr", seed=1)
    with pytest.raises(SamplesError, match=SENTENCE):
        next(feed.iterate([[0, 1]]))


def test_metadata_go_before_what_they_describe(tmp_path, monkeypatch):
    chips = ChipSet(write_chips(tmp_path / "chips.zarr"))
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append(path))
    remove_store(str(tmp_path / "chips.zarr"))
    assert seen
    assert (tmp_path / "chips.zarr" / "images").exists()
    with pytest.raises(SamplesError, match=SENTENCE):
        chips.check_unchanged()
