"""The ledger survives crashes, compaction and second drivers."""

import json
import os
import time

import fsspec
import pytest

from bigmap import ledger
from bigmap.errors import LeaseError
from bigmap.ledger import BlockRecord, Lease, LeaseState, Ledger, holds_lease, read_lease


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


def test_a_lease_keeps_others_out_until_it_is_given_back(tmp_path):
    first, second = Lease(str(tmp_path)), Lease(str(tmp_path))
    first.acquire()
    assert holds_lease(str(tmp_path), first.state.owner)
    with pytest.raises(LeaseError, match=f"process {os.getpid()} on "):
        second.acquire()
    first.release()
    assert not holds_lease(str(tmp_path), first.state.owner)
    second.acquire()
    second.release()


@pytest.mark.parametrize(
    ("pid", "host", "age_s", "alive"),
    [
        (os.getpid(), os.uname().nodename, 0, True),
        (2**22 - 3, os.uname().nodename, 0, False),  # killed a moment ago on this machine
        (1, "elsewhere", 10, True),
        (1, "elsewhere", 1000, False),
    ],
    ids=["alive here", "dead here", "alive elsewhere", "silent elsewhere"],
)
def test_the_lease_of_a_dead_driver_is_taken_over(tmp_path, pid, host, age_s, alive):
    state = {"owner": "other", "host": host, "pid": pid, "renewed": time.time() - age_s}
    (tmp_path / "lease.json").write_text(json.dumps(state))
    assert LeaseState(**state).is_alive is alive
    lease = Lease(str(tmp_path))
    if alive:
        with pytest.raises(LeaseError):
            lease.acquire()
    else:
        lease.acquire()
        lease.release()


def test_a_half_written_lease_does_not_lock_the_output(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "UNREADABLE_LEASE_S", 0.01)
    (tmp_path / "lease.json").write_text("")
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert holds_lease(str(tmp_path), lease.state.owner)
    lease.release()


def test_a_driver_notices_that_its_lease_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "HEARTBEAT_S", 0.01)
    lease = Lease(str(tmp_path))
    lease.acquire()
    (tmp_path / "lease.json").write_text(
        json.dumps({"owner": "other", "host": "h", "pid": 1, "renewed": time.time()})
    )
    deadline = time.monotonic() + 5
    while not lease.is_lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lease.is_lost
    lease.release()
    filesystem, root = fsspec.core.url_to_fs(str(tmp_path))
    assert read_lease(filesystem, f"{root}/lease.json").owner == "other"


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
