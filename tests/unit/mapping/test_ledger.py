"""The ledger survives crashes, compaction, damage and drivers that were taken over."""

import json

import pytest

from bigmap.errors import LeaseError, OutputError
from bigmap.lease import Lease
from bigmap.mapping import ledger
from bigmap.mapping.ledger import BlockRecord, Ledger


def record(number, state="done", **changes):
    return BlockRecord(
        block=f"r0c{number}", state=state, dates=("2024-05-01",), shards=(("class/c/0/0", 12),),
        seconds={"read": 0.5}, finished="2024-05-01T10:00:00+00:00", **changes,
    )  # fmt: skip


def test_records_come_back_in_order_and_the_newest_counts(tmp_path):
    book = Ledger(str(tmp_path))
    book.append(record(1, "failed", error="B04.tif: is broken"))
    book.append(record(2))
    book.flush()
    book.append(record(1, attempts=2))
    book.flush()
    again = Ledger(str(tmp_path))
    assert [r.block for r in again.records()] == ["r0c1", "r0c2", "r0c1"]
    assert again.latest()["r0c1"] == record(1, attempts=2)
    again.append(record(3))
    again.flush()
    assert set(Ledger(str(tmp_path)).latest()) == {"r0c1", "r0c2", "r0c3"}


def test_segments_are_compacted_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "COMPACT_SEGMENTS", 5)
    book = Ledger(str(tmp_path))
    for number in range(23):
        book.append(record(number))
        book.flush()
    files = sorted(file.name for file in (tmp_path / "ledger").iterdir())
    assert sum(name.endswith(".parquet") for name in files) == 4
    assert sum(name.endswith(".jsonl") for name in files) == 3
    assert set(Ledger(str(tmp_path)).latest()) == {f"r0c{n}" for n in range(23)}


def test_a_crash_in_the_middle_of_compaction_changes_nothing(tmp_path, monkeypatch):
    book = Ledger(str(tmp_path))
    for number in range(3):
        book.append(record(number))
        book.flush()
    monkeypatch.setattr(type(book.filesystem), "rm_file", lambda self, path: None)
    book.compact()
    assert set(Ledger(str(tmp_path)).latest()) == {"r0c0", "r0c1", "r0c2"}


def test_half_written_files_are_never_seen(tmp_path):
    book = Ledger(str(tmp_path))
    book.append(record(1))
    book.flush()
    (tmp_path / "ledger" / "000000002.jsonl.abc.partial").write_text('{"block": "r0')
    assert set(Ledger(str(tmp_path)).latest()) == {"r0c1"}


def test_a_record_that_waits_is_written_without_another(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "FLUSH_S", 1e9)
    book = Ledger(str(tmp_path))
    book.append(BlockRecord("r1c1", "done"))
    assert Ledger(str(tmp_path)).latest() == {}
    book.flush_late()
    assert Ledger(str(tmp_path)).latest() == {}
    monkeypatch.setattr(ledger, "FLUSH_S", 0.0)
    book.flush_late()
    assert set(Ledger(str(tmp_path)).latest()) == {"r1c1"}


def write(folder, *records, lease=None):
    book = Ledger(str(folder), lease)
    for each in records:
        book.append(each)
    book.flush()
    return book


@pytest.fixture
def take_lease(tmp_path):
    """Take the lease of a folder, and that of whoever had it before."""
    taken = []

    def take():
        if taken:
            taken[-1].state = taken[-1].state.__class__(**{**vars(taken[-1].state), "pid": 0})
            (tmp_path / "lease" / f"{taken[-1].term:09d}.json").write_bytes(taken[-1]._bytes())
        taken.append(Lease(str(tmp_path)))
        taken[-1].acquire()
        return taken[-1]

    yield take
    for lease in taken:
        lease.release()


def test_a_driver_that_was_taken_over_writes_no_records(tmp_path, take_lease):
    old = Ledger(str(tmp_path), take_lease())
    old.append(record(1, "failed", error="of the old one"))
    new = write(tmp_path, record(1), record(2), lease=take_lease())
    with pytest.raises(LeaseError, match=r"another run .* took this output over"):
        old.flush()
    assert Ledger(str(tmp_path)).latest() == {"r0c1": record(1), "r0c2": record(2)}
    assert (old.term, new.term) == (1, 2)


def test_late_records_of_a_driver_count_less_than_those_of_its_successor(
    tmp_path, take_lease, monkeypatch
):
    old = Ledger(str(tmp_path), take_lease())
    write(tmp_path, record(1), lease=take_lease())
    # It was stopped between the look at the lease and the write.
    monkeypatch.setattr(old.lease, "check", lambda: None)
    for number in range(3):
        old.append(record(number, "failed", error="late"))
        old.flush()
    old.compact()
    found = Ledger(str(tmp_path)).latest()
    assert {name: each.state for name, each in found.items()} == {
        "r0c0": "failed", "r0c1": "done", "r0c2": "failed",
    }  # fmt: skip
    names = sorted(file.name for file in (tmp_path / "ledger").iterdir())
    assert names == ["000000001-000000003.parquet", "000000002-000000001.jsonl"]
    # A run that was started anew takes none of the records from before.
    assert set(Ledger(str(tmp_path), first_term=2).latest()) == {"r0c1"}


def test_segments_of_versions_before_terms_are_read_first(tmp_path):
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "000000007.jsonl").write_text(record(1, "failed").to_json() + "\n")
    write(tmp_path, record(1))
    assert Ledger(str(tmp_path)).latest() == {"r0c1": record(1)}


@pytest.mark.parametrize("damage", ["cut", "zeroed", "emptied", "other"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_damaged_segments_cost_their_blocks_and_are_told(tmp_path, damage, kind):
    book = write(tmp_path, record(1), record(2))
    if kind == "parquet":
        book.compact()
    write(tmp_path, record(3), record(1, attempts=2))
    file = next((tmp_path / "ledger").glob(f"*1.{kind}"))
    content = file.read_bytes()
    file.write_bytes(
        {"cut": content[:-20], "zeroed": bytes(len(content)), "emptied": b"", "other": b"[1]\n"}[
            damage
        ]
    )
    book = Ledger(str(tmp_path))
    found = book.latest()
    whole = {"r0c1", "r0c3"}
    assert whole <= set(found) <= whole | {"r0c2"}
    assert found["r0c1"] == record(1, attempts=2)
    assert "r0c2" not in found
    (sentence,) = book.damage
    assert sentence.startswith(f"{file}: is damaged (")
    assert sentence.endswith("blocks recorded only there are done again")
    assert book.mend() == [sentence]
    assert book.mend() == []
    assert book.latest() == found


def test_a_segment_of_a_newer_version_is_refused(tmp_path):
    book = write(tmp_path, record(1))
    newer = json.loads(record(2).to_json()) | {"colour": "blue"}
    (tmp_path / "ledger" / "000000000-000000002.jsonl").write_text(json.dumps(newer))
    with pytest.raises(OutputError, match=r"newer version of bigmap, as its 'colour' says"):
        book.latest()


def test_a_ledger_that_is_compacted_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    book = write(tmp_path, record(1))
    book.append(record(2))
    book.flush()
    reader = Ledger(str(tmp_path))
    files = reader._files()
    looks = iter([files])
    monkeypatch.setattr(reader, "_files", lambda: next(looks, None) or Ledger._files(reader))
    book.compact()
    assert set(reader.latest()) == {"r0c1", "r0c2"}
