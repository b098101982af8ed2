"""Who may write at a place: one driver at a time, by a lease whose number rises.

Each holder creates a file of its own, ``lease/000000007.json``, and the highest number, its
*term*, counts. So two that start at one moment cannot both have it, and what a driver writes that
was stopped and went on after its successor took over can be told from what the successor writes.
The files stay when the lease is given back, so that terms never come twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bigmap.errors import LeaseError, OutputError
from bigmap.files import (
    list_numbered,
    locate,
    make_folder,
    parse_json,
    storage_errors,
    write_atomically,
)

HEARTBEAT_S = 10.0
LEASE_FOLDER = "lease"
LEASE_FILE = "lease.json"
"""What versions before terms wrote instead of the folder; its term is 0."""
LEASE_LOST_S = 90.0
"""A holder that has not renewed its lease for so long, by the clock of who watches it, is gone."""
CLOCKS_APART_S = 600.0
WATCH_S = 1.0
UNREADABLE_LEASE_S = 25.0
"""A holder at work would have written it anew by then."""
FAILED_READS = 3
"""So many in a row mean that the lease is lost; fewer are the network's or the file system's."""
READ_PAUSE_S = 0.5


@dataclass(frozen=True)
class LeaseState:
    """Who drives a run, and when it last said so."""

    owner: str
    host: str
    pid: int
    renewed: float
    """Seconds since the epoch, by the clock of the host."""
    term: int = 0
    released: bool = False

    @property
    def is_alive(self) -> bool:
        """Tell whether the owner seems to be at work, as far as clocks of hosts agree."""
        if self.released or (self.is_here and not _is_running(self.pid)):
            return False
        return abs(time.time() - self.renewed) < LEASE_LOST_S + CLOCKS_APART_S

    @property
    def is_here(self) -> bool:
        """Tell whether the owner is a process of this host."""
        return self.host == socket.gethostname()

    @property
    def is_surely_alive(self) -> bool:
        """Tell whether the owner runs here and has renewed it of late, by the one clock."""
        is_fresh = abs(time.time() - self.renewed) < LEASE_LOST_S
        return self.is_here and _is_running(self.pid) and is_fresh

    @property
    def is_surely_gone(self) -> bool:
        """Tell whether the lease was given back, or its owner was a process of this host."""
        return self.released or (self.is_here and not _is_running(self.pid))


class Lease:
    """Keeps a second driver out, and a driver that was taken over from writing.

    It is renewed from a thread. Whether its holder is alive is judged by watching whether the
    file changes, never by comparing the clocks of two hosts.
    """

    def __init__(self, folder: str) -> None:
        self.filesystem, self.root = locate(folder)
        self.state = LeaseState(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.is_lost = False

    @property
    def term(self) -> int:
        """Its number, higher than that of any holder before; 0 before it is acquired."""
        return self.state.term

    @property
    def path(self) -> str:
        """The file of this holder."""
        return f"{self.root}/{LEASE_FOLDER}/{self.term:09d}.json"

    def acquire(self, note: Callable[[str], None] | None = None) -> None:
        """Take the lease.

        Parameters
        ----------
        note
            Told why this takes long, where it does: a holder on another host is watched for
            :data:`LEASE_LOST_S` before its lease is taken over.

        Raises
        ------
        LeaseError
            If another driver holds it.
        OutputError
            If the place cannot be written.
        """
        try:
            before = self._wait_for_holder(note)
            self.state = replace(self.state, term=before + 1, renewed=time.time())
            make_folder(self.filesystem, self.path.rpartition("/")[0])
            self.filesystem.pipe_file(self.path, self._bytes(), mode="create")
        except FileExistsError:
            raise LeaseError(
                f"{self.root}: another run took this place at this moment; choose another"
            ) from None
        except storage_errors() as error:
            raise OutputError(f"{self.root}: cannot be written ({error})") from None
        self._remove_older()
        self.thread = threading.Thread(target=self._renew, daemon=True, name="bigmap-lease")
        self.thread.start()

    def _wait_for_holder(self, note: Callable[[str], None] | None) -> int:
        """Return the highest term so far, once its holder is gone; refuse where it is not."""
        term, content = _read_newest(self.filesystem, self.root)
        holder = _parse(content)
        if content is None or (holder is not None and holder.is_surely_gone):
            return term
        if holder is None:
            # Half written or damaged: its holder starts at this moment, or died while it did.
            patience_s, who = UNREADABLE_LEASE_S, "a run whose lease is damaged"
        elif holder.is_surely_alive:
            raise self._refuse(holder)
        else:
            patience_s, who = LEASE_LOST_S, f"process {holder.pid} on {holder.host}"
        if note is not None:
            note(f"{self.root}: {who} may still write here; watching it for {patience_s:g} s")
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            time.sleep(min(WATCH_S, patience_s / 10))
            seen = _read_newest(self.filesystem, self.root)
            if seen != (term, content):
                now = _parse(seen[1])
                if now is not None and now.is_surely_gone:
                    return seen[0]
                raise self._refuse(now or holder)
        return term

    def _refuse(self, holder: LeaseState | None) -> LeaseError:
        who = f"process {holder.pid} on {holder.host}" if holder else "its lease is being written"
        return LeaseError(
            f"{self.root}: another run ({who}) writes here; wait for it, stop it, or choose "
            "another place in the recipe"
        )

    def check(self) -> None:
        """Refuse to go on where another has taken over; asked before each write of the driver.

        Raises
        ------
        LeaseError
            If the lease is not ours any more.
        """
        term, content = _read_patiently(self.filesystem, self.root)
        if term == self.term and not self.is_lost:
            return
        self.is_lost = True
        if term > self.term:
            holder = _parse(content)
            who = f" (process {holder.pid} on {holder.host})" if holder else ""
            raise LeaseError(
                f"{self.root}: another run{who} took this output over, so this one has stopped; "
                "what it had not recorded the other does again"
            )
        raise LeaseError(
            f"{self.root}: its lease cannot be found any more, so this run has stopped; if the "
            "folder is still there, go on with --resume"
        )

    def write(self, path: str, data: bytes) -> None:
        """Write a small file of the driver, whole or not at all, if the lease is still ours.

        Raises
        ------
        LeaseError
            If another has taken over.
        OutputError
            If it cannot be written.
        """
        self.check()
        write_atomically(self.filesystem, path, data)

    def release(self) -> None:
        """Give the lease back; its term is kept."""
        self.stopping.set()
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        self.state = replace(self.state, released=True)
        # What cannot be told now is seen by the next driver, who watches.
        with contextlib.suppress(OutputError):
            self.write(self.path, self._bytes())

    def _bytes(self) -> bytes:
        return json.dumps(asdict(self.state)).encode()

    def _remove_older(self) -> None:
        older = [path for term, path in _list_terms(self.filesystem, self.root) if term < self.term]
        if self.filesystem.exists(f"{self.root}/{LEASE_FILE}"):
            older.append(f"{self.root}/{LEASE_FILE}")
        for path in older:
            # Another may tidy at this moment; what is left does no harm.
            with contextlib.suppress(*storage_errors()):
                self.filesystem.rm_file(path)

    def _renew(self) -> None:
        failed = 0
        while not self.stopping.wait(HEARTBEAT_S):
            try:
                term, _ = _read_newest(self.filesystem, self.root)
            except storage_errors():
                term = 0
            failed = failed + 1 if term < self.term else 0
            if term > self.term or failed == FAILED_READS:
                self.is_lost = True
                return
            if failed:
                continue
            self.state = replace(self.state, renewed=time.time())
            # A full disk must not end the renewal: there may be room again next time.
            with contextlib.suppress(OutputError):
                write_atomically(self.filesystem, self.path, self._bytes())


def read_lease(folder: str) -> LeaseState | None:
    """Return who holds the lease of a run, None where nobody does."""
    filesystem, root = locate(folder)
    state = _parse(_read_newest(filesystem, root)[1])
    return None if state is None or state.released else state


def holds_lease(folder: str, owner: str) -> bool:
    """Tell whether an owner still holds the lease of a run; asked by workers before they write."""
    filesystem, root = locate(folder)
    holder = _parse(_read_patiently(filesystem, root)[1])
    return holder is not None and holder.owner == owner and not holder.released


def check_lease(folder: str, owner: str | None) -> None:
    """Refuse to write for a driver that has been taken over.

    Parameters
    ----------
    folder
        Of the run.
    owner
        Of the lease under which a worker writes; None where it writes under none.

    Raises
    ------
    LeaseError
        If the run belongs to another driver by now.
    """
    if owner and not holds_lease(folder, owner):
        raise LeaseError(f"{folder}: the run belongs to another driver by now")


def _list_terms(filesystem: Any, root: str) -> list[tuple[int, str]]:
    """Return the terms so far with their files, rising; 0 is the file of old versions."""
    terms = list_numbered(filesystem, f"{root}/{LEASE_FOLDER}")
    if not terms and filesystem.exists(f"{root}/{LEASE_FILE}"):
        return [(0, f"{root}/{LEASE_FILE}")]
    return terms


def _read_newest(filesystem: Any, root: str) -> tuple[int, bytes | None]:
    """Return the highest term and the content of its file; 0 and None where there is none."""
    terms = _list_terms(filesystem, root)
    if not terms:
        return 0, None
    term, path = terms[-1]
    try:
        return term, bytes(filesystem.cat_file(path))
    except FileNotFoundError:
        # Renamed or removed between the two looks: there is a newer one, or none.
        again = _list_terms(filesystem, root)
        if not again:
            return 0, None
        return again[-1][0], bytes(filesystem.cat_file(again[-1][1]))


def _read_patiently(filesystem: Any, root: str) -> tuple[int, bytes | None]:
    """Read the newest lease; what fails or is half written is read again after a while."""
    for is_last in (*[False] * (FAILED_READS - 1), True):
        try:
            term, content = _read_newest(filesystem, root)
        except storage_errors() as error:
            if is_last:
                raise OutputError(f"{root}: its lease cannot be read ({error})") from None
        else:
            if is_last or _parse(content) is not None:
                return term, content
        time.sleep(READ_PAUSE_S)
    raise AssertionError


def _parse(content: bytes | None) -> LeaseState | None:
    """Return what a lease says; None where it is half written or damaged."""
    try:
        raw = parse_json(content or b"")
        return LeaseState(
            owner=str(raw["owner"]), host=str(raw["host"]), pid=int(raw["pid"]),
            renewed=float(raw["renewed"]), released=bool(raw.get("released", False)),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def _is_running(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    # A killed process that its parent has not waited for still has a number.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True
