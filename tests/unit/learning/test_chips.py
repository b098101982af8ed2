"""A set of chips that is cut anew while it is read is noticed, not read as nodata."""

import json
import math
from functools import partial

import numpy as np
import pytest
import zarr

from bigmap.errors import SamplesError
from bigmap.learning.chips import META, ChipSet
from bigmap.learning.training.batches import ChipFeed
from bigmap.mapping.store.zarr_stores import remove_store
from tests.unit.learning.training.chip_cases import write_chips

SENTENCE = r"chips\.zarr: was cut anew by bigmap extract while its chips were read"


@pytest.fixture
def feed(tmp_path):
    chips = ChipSet(write_chips(tmp_path / "chips.zarr"))
    with ChipFeed(chips) as feed:
        yield feed


def test_chips_that_are_gone_are_no_nodata(feed, tmp_path):
    assert feed.read([0])[0].images.any()
    remove_store(str(tmp_path / "chips.zarr"))
    with pytest.raises(SamplesError, match=SENTENCE):
        feed.read([1])


def test_chips_that_were_replaced_are_not_taken_for_the_old_ones(feed, tmp_path):
    write_chips(tmp_path / "chips.zarr", seed=1)
    with pytest.raises(SamplesError, match=SENTENCE):
        next(feed.iterate([[0, 1]], lambda _, chips: chips))


def test_metadata_go_before_what_they_describe(tmp_path, monkeypatch):
    chips = ChipSet(write_chips(tmp_path / "chips.zarr"))
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: seen.append(path))
    remove_store(str(tmp_path / "chips.zarr"))
    assert seen
    assert (tmp_path / "chips.zarr" / "images").exists()
    with pytest.raises(SamplesError, match=SENTENCE):
        chips.check_unchanged()


@pytest.fixture
def damage(tmp_path):
    """Write chips, and return what changes one of their files and tells what reading them says."""
    folder = tmp_path / "chips.zarr"
    write_chips(folder)

    def damage_file(name, change):
        file = folder / name
        content = file.read_bytes()
        file.write_bytes(change(content))
        with pytest.raises(SamplesError) as raised:
            read_all(str(folder))
        file.write_bytes(content)
        return str(raised.value)

    return damage_file


def read_all(path):
    chips = ChipSet(path)
    for index in chips.indices("train"):
        chips.read(int(index))
    return chips.statistics


@pytest.mark.parametrize("name", ["zarr.json", "images/zarr.json", "split/zarr.json"])
def test_metadata_that_are_damaged_are_one_sentence(damage, name):
    for content in (b"", b"{", b"\xff", b"[" * 2_000, b"[]", b"1" * 5_000):
        sentence = damage(name, lambda _, content=content: content)
        assert "chips.zarr: is damaged or cannot be read (" in sentence


def test_facts_that_do_not_fit_the_chips_are_refused(damage):
    def change(content, field, value):
        raw = json.loads(content)
        facts = raw["attributes"][META]
        facts[field] = facts[field] | value if isinstance(value, dict) else value
        return json.dumps(raw).encode()

    for field, value in (
        ("template", []),
        ("template", {"unknown": 1}),
        ("template", {"chip_px": 10**9}),
        ("template", {"chip_px": 15}),
        ("template", {"max_dates": 0}),
        ("template", {"bands": "red"}),
        ("template", {"class_values": [0]}),
        ("statistics", {"std": [1.0]}),
        ("statistics", {"mean": None}),
    ):
        sentence = damage("zarr.json", partial(change, field=field, value=value))
        assert "chips.zarr: is damaged or cannot be read (" in sentence


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("split", {"shape": [2**50]}),
        ("class_px", {"shape": [10, 2**40]}),
        ("images", {"shape": [10, 3, 4, 16, 2**40]}),
        ("row", {"data_type": "float64", "fill_value": 0.0}),
    ],
)
def test_an_array_that_cannot_have_been_written_is_refused(damage, name, changes):
    sentence = damage(
        f"{name}/zarr.json", lambda content: json.dumps(json.loads(content) | changes).encode()
    )
    assert f"its array {name} is not" in sentence


def test_codecs_in_another_order_are_damage(damage):
    def swap(content):
        metadata = json.loads(content)
        metadata["codecs"][0]["configuration"]["index_codecs"].reverse()
        return json.dumps(metadata).encode()

    assert "cannot be read (Invalid codec order" in damage("images/zarr.json", swap)


def test_an_index_that_asks_for_more_than_all_memory_is_damage(tmp_path):
    path = write_chips(tmp_path / "chips.zarr")
    array = tmp_path / "chips.zarr" / "images"
    content = json.loads((array / "zarr.json").read_text())
    sharding = content["codecs"][0]["configuration"]
    sharding["index_codecs"].pop()  # its checksum
    (array / "zarr.json").write_text(json.dumps(content))
    sides = zip(
        content["chunk_grid"]["configuration"]["chunk_shape"], sharding["chunk_shape"], strict=True
    )
    index = np.array([(0, 2**62)] * math.prod(outer // inner for outer, inner in sides), "<u8")
    for shard in (array / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(shard.read_bytes() + index.tobytes())
    with pytest.raises(SamplesError, match=r"chip 0 cannot be read \(MemoryError\)"):
        ChipSet(path).read(0)


def test_the_places_of_chips_have_checksums(damage):
    def flip(content):
        at = len(content) // 2
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    assert "is damaged or cannot be read (Zstd" in damage("row/c/0", flip)


def test_dates_that_are_gone_are_told(tmp_path):
    root = zarr.open_group(write_chips(tmp_path / "chips.zarr"))
    root["dates"][...] = 3
    with pytest.raises(SamplesError, match="chip 1 has fewer dates than it says"):
        ChipSet(str(tmp_path / "chips.zarr")).read(1)
    root["dates"][...] = 4
    with pytest.raises(SamplesError, match="unknown splits or numbers of dates"):
        ChipSet(str(tmp_path / "chips.zarr")).read(1)


def test_chunks_without_a_side_are_damage(tmp_path):
    path = write_chips(tmp_path / "chips.zarr")
    file = tmp_path / "chips.zarr" / "labels" / "zarr.json"
    content = json.loads(file.read_text())
    content["chunk_grid"]["configuration"]["chunk_shape"][-1] = False
    file.write_text(json.dumps(content))
    with pytest.raises(SamplesError, match=r"chip 0 cannot be read \(division by zero\)"):
        ChipSet(path).read(0)
