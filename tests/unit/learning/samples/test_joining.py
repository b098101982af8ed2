"""One set of all chips: their order, their shards, which are drawn, and what is counted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely

from bigmap.config.training import SamplesConfig
from bigmap.errors import SamplesError
from bigmap.learning.chips import ChipSet
from bigmap.learning.samples.candidates import ChipLattice
from bigmap.learning.samples.cutting import cut_block
from bigmap.learning.samples.joining import join_chips, read_counts
from bigmap.learning.samples.splits import SplitAreas
from bigmap.mapping.run_folder import RunFolder
from bigmap.scenes.quality import DateRule
from tests.unit.learning.samples.chip_world import (
    CHIP_PX,
    DAYS,
    Labels,
    Scenes,
    dn_at,
    make_job,
    make_lattice,
    make_template,
)

BLOCKS = [(slice(row, row + 32), slice(col, col + 32)) for row in (-64, -32) for col in (-32, 0)]
"""Four tiles of 16 chips each, whose names do not sort as their places."""
NOTHING = shapely.Polygon()


@dataclass
class Cut:
    """Chips of blocks, as they lie before they are joined."""

    folder: Path
    chips: ChipLattice = field(default_factory=make_lattice)
    template: Any = field(default_factory=make_template)
    labels: Labels = Labels()
    dates: DateRule = DateRule(3, 50)
    scenes: Scenes = field(default_factory=Scenes)

    def __post_init__(self):
        self.run = RunFolder(str(self.folder / "chips.zarr"))
        self.keys = []
        job = make_job(Path(self.run.path), chips=self.chips, template=self.template,
                       labels=self.labels, dates=self.dates)  # fmt: skip
        for block in BLOCKS:
            record = cut_block(job, block, self.scenes)
            self.keys += [key for key, _ in record.shards if key.endswith(".parquet")]

    def join(self, keys=None, *, keep_parts=False, **samples):
        keys = self.keys if keys is None else keys
        config = SamplesConfig(
            path=self.run.output, chip_px=CHIP_PX, labels={"kind": "simulated"}, **samples
        )
        counts = join_chips(
            self.template, self.chips, config, None, self.run, keys, keep_parts=keep_parts
        )
        return counts, ChipSet(self.run.output)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    """Read a block's chips from what is given as its rows, and write shards right here."""
    monkeypatch.setattr(
        "bigmap.learning.samples.cutting.CubeReader",
        SimpleNamespace(of=lambda reading, scenes: scenes),
    )
    monkeypatch.setattr(
        "bigmap.learning.samples.joining.map_on",
        lambda client, do, items, **_: map(do, items),
    )


def places_of(chips):
    return list(zip(chips.places.row.tolist(), chips.places.col.tolist(), strict=True))


def in_order(blocks=BLOCKS):
    """Return the places of chips, tile by tile and row by row."""
    return [
        (row, col)
        for rows, cols in blocks
        for row in range(rows.start, rows.stop, CHIP_PX)
        for col in range(cols.start, cols.stop, CHIP_PX)
    ]


def test_chips_lie_by_tile_and_by_place_whatever_the_order_of_blocks(tmp_path):
    cut = Cut(tmp_path)
    counts, chips = cut.join(cut.keys[::-1])
    assert places_of(chips) == in_order()
    assert counts.chips == {"train": 64, "validation": 0, "test": 0}
    for index, (row, col) in enumerate(in_order()):
        chip = chips.read(index)
        roi = slice(row, row + CHIP_PX), slice(col, col + CHIP_PX)
        assert (chip.row, chip.col, chip.days) == (row, col, DAYS)
        np.testing.assert_array_equal(chip.images, [dn_at(day, roi) for day in DAYS])
        fine = tuple(slice(2 * part.start, 2 * part.stop) for part in roi)
        np.testing.assert_array_equal(chip.labels, Labels().at(fine))


def test_shards_are_whole_and_hold_the_same_chips_as_one(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    _, whole = Cut(tmp_path / "one").join()
    chip_bytes = make_template().chip_bytes
    monkeypatch.setattr("bigmap.learning.chips.SHARD_BYTES", 7 * chip_bytes + 1)
    _, chips = Cut(tmp_path / "many").join()
    folder = tmp_path / "many" / "chips.zarr" / "images" / "c"
    assert sorted(int(each.name) for each in folder.iterdir()) == list(range(10))
    assert len(list((tmp_path / "one" / "chips.zarr" / "images" / "c").iterdir())) == 1
    for index in range(64):
        ours, theirs = chips.read(index), whole.read(index)
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (ours.row, ours.col) == (theirs.row, theirs.col)


def split_by_column():
    """Train in the west, validation and test in the east, in metres; one column in no split."""
    areas = (shapely.box(-1e4, -1e4, 0, 1e4), shapely.box(0, -1e4, 80, 1e4),
             shapely.box(160, -1e4, 1e4, 1e4))  # fmt: skip
    return make_lattice(splits=SplitAreas(areas, 0))


def test_counts_are_those_of_each_split_and_its_pixels(tmp_path):
    """Labels end in the middle of the first column of chips, which has a quarter too few."""
    cut = Cut(tmp_path, split_by_column(), labels=Labels(first_col=2 * -27))
    counts, chips = cut.join()
    assert counts.chips == {"train": 24, "validation": 8, "test": 16}
    assert counts.refused == {"too few labels": 8}
    assert counts.left_out == 0
    for split in ("train", "validation", "test"):
        labels = np.stack([chips.read(index).labels for index in chips.indices(split)])
        assert counts.class_px[split] == {
            "bare": int((labels == 0).sum()), "green": int((labels == 1).sum()),
        }  # fmt: skip
        assert counts.unlabelled_px[split] == int((labels == 255).sum())
    train = [chips.read(index) for index in chips.indices("train")]
    seen = np.concatenate([c.images.transpose(0, 2, 3, 1)[c.clear] for c in train]) * 1e-4 - 0.1
    np.testing.assert_allclose(chips.statistics[0], seen.mean(axis=0))
    np.testing.assert_allclose(chips.statistics[1], seen.std(axis=0))
    assert read_counts(cut.run.output) == counts
    stored = json.loads(Path(cut.run.path, "counts.json").read_text())
    assert (stored["chips"], stored["refused"]) == (counts.chips, counts.refused)


def test_unlabelled_pixels_of_chips_are_counted(tmp_path):
    counts, _ = Cut(tmp_path, labels=Labels(first_col=2 * -29)).join()
    # Three of the eight columns of the chips at the edge have none: two fine ones for each.
    assert counts.unlabelled_px["train"] == 8 * (2 * 3) * 16


def test_refusals_of_all_blocks_are_added_up(tmp_path):
    clouds = {day: lambda rows, cols: rows >= -16 for day in DAYS}
    cut = Cut(tmp_path, labels=Labels(first_col=0), scenes=Scenes(clouds=clouds))
    counts, chips = cut.join()
    # The western half has no labels; the lower half of the lower tiles is cloudy.
    assert counts.refused == {"too few labels": 32, "too few clear dates": 8}
    assert len(chips) == 24


def test_so_many_chips_of_each_split_are_drawn_by_their_place(tmp_path):
    cut = Cut(tmp_path, split_by_column())
    counts, chips = cut.join(max_chips=9)
    assert counts.chips == {"train": 9, "validation": 8, "test": 9}
    assert counts.left_out == 32 - 9 + 16 - 9
    drawn = places_of(chips)
    assert drawn == [place for place in in_order() if place in set(drawn)]
    # Those of the smallest draws.
    train = np.array([place for place in in_order() if place[1] < 0])
    smallest = train[np.argsort(cut.chips.draw(train))[:9]]
    assert {place for place in drawn if place[1] < 0} == set(map(tuple, smallest.tolist()))
    for index, (row, col) in enumerate(drawn):
        roi = slice(row, row + CHIP_PX), slice(col, col + CHIP_PX)
        np.testing.assert_array_equal(chips.read(index).images[2], dn_at(DAYS[2], roi))


def test_parts_go_when_all_is_joined_and_stay_for_a_trial(tmp_path):
    cut = Cut(tmp_path)
    parts = Path(cut.run.path, "parts")
    before = sorted(parts.iterdir())
    counts, chips = cut.join(cut.keys[:1], keep_parts=True)
    assert places_of(chips) == in_order(BLOCKS[:1])
    assert counts.chips["train"] == 16
    assert sorted(parts.iterdir()) == before
    _, chips = cut.join()
    assert len(chips) == 64
    assert not parts.exists()


def test_a_set_that_is_being_joined_cannot_be_opened(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise SamplesError("disk full")

    monkeypatch.setattr("bigmap.learning.samples.joining.map_on", fail)
    cut = Cut(tmp_path)
    with pytest.raises(SamplesError, match="disk full"):
        cut.join()
    with pytest.raises(SamplesError, match="its extraction has not ended"):
        ChipSet(cut.run.output)
    assert Path(cut.run.path, "parts").exists()


def test_without_a_chip_the_reasons_are_told(tmp_path):
    cut = Cut(tmp_path, labels=Labels(first_col=10**6))
    with pytest.raises(SamplesError, match="no chip was cut; 64 with too few labels; lower"):
        cut.join()
    assert not Path(cut.run.output).exists()


@pytest.mark.parametrize("keep_parts", [False, True])
def test_a_set_that_nothing_can_be_learnt_from_is_refused_unless_it_is_a_trial(
    tmp_path, keep_parts
):
    for name, areas, message in (
        ("none", (shapely.box(0, -1e4, 1, 1e4), shapely.box(-1e4, -1e4, 1e4, 1e4), NOTHING),
         r"samples\.split: no chip is left for training \(64 validation\)"),
        ("alike", None, r"samples\.labels: all labels of the training split are 'bare'"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        splits = None if areas is None else SplitAreas(areas, 0)
        labels = Labels() if areas else OneClass()
        cut = Cut(tmp_path / name, make_lattice(splits=splits), labels=labels)
        if keep_parts:
            assert len(cut.join(keep_parts=True)[1]) == 64
        else:
            with pytest.raises(SamplesError, match=message):
                cut.join()
            assert not Path(cut.run.output).exists()


class OneClass(Labels):
    """Labels of the first class alone."""

    def at(self, fine):
        return np.zeros_like(super().at(fine))


def test_a_set_for_tests_alone_needs_no_training_and_is_described_by_all_its_chips(tmp_path):
    everywhere = shapely.box(-1e4, -1e4, 1e4, 1e4)
    splits = SplitAreas((NOTHING, NOTHING, everywhere), 0)
    counts, chips = Cut(tmp_path, make_lattice(splits=splits), labels=OneClass()).join()
    assert counts.chips == {"train": 0, "validation": 0, "test": 64}
    seen = np.stack([chips.read(index).images for index in range(64)]) * 1e-4 - 0.1
    np.testing.assert_allclose(chips.statistics[0], seen.mean(axis=(0, 1, 3, 4)))
