"""One driver at a time: leases that are held, lost, half written, and watched by other clocks."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from bigmap import lease as leases
from bigmap.errors import LeaseError
from bigmap.lease import Lease, LeaseState, holds_lease, read_lease

NO_PROCESS = 2**22 - 3
HERE = os.uname().nodename


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(leases, "LEASE_LOST_S", 0.3)
    monkeypatch.setattr(leases, "UNREADABLE_LEASE_S", 0.05)
    monkeypatch.setattr(leases, "READ_PAUSE_S", 0.01)


def write_state(folder, *, term=1, **changes):
    state = {"owner": "other", "host": HERE, "pid": os.getpid(), "renewed": time.time()}
    (folder / "lease").mkdir(exist_ok=True)
    file = folder / "lease" / f"{term:09d}.json"
    file.write_text(json.dumps(state | changes))
    return file


def test_a_lease_keeps_others_out_until_it_is_given_back(tmp_path):
    first, second = Lease(str(tmp_path)), Lease(str(tmp_path))
    first.acquire()
    assert holds_lease(str(tmp_path), first.state.owner)
    with pytest.raises(LeaseError, match=f"process {os.getpid()} on "):
        second.acquire()
    first.release()
    assert not holds_lease(str(tmp_path), first.state.owner)
    assert read_lease(str(tmp_path)) is None
    second.acquire()
    assert (first.term, second.term) == (1, 2)
    second.release()


@pytest.mark.parametrize(
    ("pid", "host", "age_s", "alive"),
    [
        (os.getpid(), HERE, 0, True),
        (NO_PROCESS, HERE, 0, False),  # killed a moment ago on this machine
        (10**30, HERE, 0, False),
        (1, "elsewhere", 10, True),
        (1, "elsewhere", -100, True),
        (1, "elsewhere", 1000, False),
    ],
    ids=["alive here", "dead here", "no number", "alive elsewhere", "clock ahead", "silent"],
)
def test_what_status_takes_for_alive(pid, host, age_s, alive):
    assert LeaseState("other", host, pid, time.time() - age_s).is_alive is alive


def test_the_lease_of_a_dead_process_of_this_host_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_LOST_S", 1e6)
    write_state(tmp_path, pid=NO_PROCESS)
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert lease.term == 2
    lease.release()


@pytest.mark.parametrize("clock_s", [-100, 0, 100, -1e6])
def test_a_silent_host_is_watched_and_then_taken_over_whatever_its_clock(tmp_path, clock_s):
    write_state(tmp_path, host="elsewhere", renewed=time.time() + clock_s, term=4)
    lease, notes = Lease(str(tmp_path)), []
    started = time.monotonic()
    lease.acquire(notes.append)
    assert time.monotonic() - started >= 0.3
    assert lease.term == 5
    assert "on elsewhere may still write here; watching it for 0.3 s" in notes[0]
    lease.release()


HOLD = """
    import sys, time, types
    # Not the whole of it, which takes seconds to import.
    sys.modules["bigmap"] = types.ModuleType("bigmap")
    sys.modules["bigmap"].__path__ = [sys.argv[3]]
    offset = float(sys.argv[2])
    true_time = time.time
    time.time = lambda: true_time() + offset
    import socket
    socket.gethostname = lambda: "elsewhere"
    from bigmap import lease
    lease.HEARTBEAT_S = 0.05
    held = lease.Lease(sys.argv[1])
    held.acquire()
    print("held", flush=True)
    sys.stdin.read()
    held.release()
    print("lost" if held.is_lost else "kept", flush=True)
"""


def hold(folder, clock_s=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(folder), str(clock_s),
         str(Path(leases.__file__).parent)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("clock_s", [-100.0, 100.0])
def test_a_live_run_on_a_host_with_another_clock_is_not_taken_over(tmp_path, monkeypatch, clock_s):
    monkeypatch.setattr(leases, "LEASE_LOST_S", 20.0)
    other = hold(tmp_path, clock_s)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LeaseError, match=f"process {other.pid} on elsewhere"):
        Lease(str(tmp_path)).acquire()
    # Given back, it locks nobody out.
    assert other.communicate("")[0] == "kept\n"
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert lease.term == 2
    lease.release()


def test_a_process_that_was_stopped_finds_its_lease_taken(tmp_path):
    other = hold(tmp_path)
    assert other.stdout.readline() == "held\n"
    other.send_signal(signal.SIGSTOP)
    lease = Lease(str(tmp_path))
    lease.acquire()
    other.send_signal(signal.SIGCONT)
    time.sleep(0.3)
    assert other.communicate("")[0] == "lost\n"
    lease.check()
    assert read_lease(str(tmp_path)).owner == lease.state.owner
    lease.release()


@pytest.mark.parametrize("damage", [b"", b"\0" * 90, b"{", b"[]"])
def test_a_damaged_lease_does_not_lock_the_output(tmp_path, damage):
    write_state(tmp_path).write_bytes(damage)
    assert read_lease(str(tmp_path)) is None
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert holds_lease(str(tmp_path), lease.state.owner)
    lease.release()


def test_two_that_start_at_one_moment_do_not_both_have_it(tmp_path, monkeypatch):
    first, second = Lease(str(tmp_path)), Lease(str(tmp_path))
    monkeypatch.setattr(second, "_wait_for_holder", lambda note: 0)
    first.acquire()
    with pytest.raises(LeaseError, match="another run took this place at this moment"):
        second.acquire()
    second.release()
    assert holds_lease(str(tmp_path), first.state.owner)
    first.release()


def test_the_lease_of_a_version_before_terms_counts(tmp_path):
    state = {"owner": "other", "host": HERE, "pid": os.getpid(), "renewed": time.time()}
    (tmp_path / "lease.json").write_text(json.dumps(state))
    with pytest.raises(LeaseError):
        Lease(str(tmp_path)).acquire()
    (tmp_path / "lease.json").write_text(json.dumps(state | {"pid": NO_PROCESS}))
    lease = Lease(str(tmp_path))
    lease.acquire()
    assert not (tmp_path / "lease.json").exists()
    lease.release()


@pytest.fixture
def beating(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    lease = Lease(str(tmp_path))
    lease.acquire()
    yield lease
    lease.release()


def wait_for(is_so, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_so()


@pytest.mark.parametrize(("failures", "lost"), [(2, False), (3, True)])
def test_the_heartbeat_survives_failed_reads_but_not_many_in_a_row(
    beating, monkeypatch, failures, lost
):
    read, left = leases._read_newest, iter(range(failures))

    def fail(filesystem, root):
        if next(left, None) is not None:
            raise OSError("Stale file handle")
        return read(filesystem, root)

    before = beating.state.renewed
    monkeypatch.setattr(leases, "_read_newest", fail)
    assert wait_for(lambda: beating.is_lost or beating.state.renewed > before + 0.02)
    assert beating.is_lost is lost


def test_a_half_written_file_is_healed_by_the_next_heartbeat(beating, tmp_path):
    file = tmp_path / "lease" / "000000001.json"
    file.write_text("{")
    assert wait_for(lambda: read_lease(str(tmp_path)) is not None)
    assert holds_lease(str(tmp_path), beating.state.owner)
    assert not beating.is_lost


def test_a_driver_notices_that_its_lease_was_taken(beating, tmp_path):
    write_state(tmp_path, term=2)
    assert wait_for(lambda: beating.is_lost)
    with pytest.raises(LeaseError, match=r"another run .* took this output over"):
        beating.check()
    beating.release()
    assert read_lease(str(tmp_path)).owner == "other"


def test_a_run_folder_that_was_removed_is_not_made_again(beating, tmp_path):
    file = tmp_path / "lease" / "000000001.json"
    beating.stopping.set()
    beating.thread.join()
    file.unlink()
    with pytest.raises(LeaseError, match="its lease cannot be found any more"):
        beating.check()
    beating.release()
    assert not file.exists()
