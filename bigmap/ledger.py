"""The ledger of a run: what became of each block, and who may write.

It lies beside the map, on whatever file system or object store the map lies on. Only the
driver writes it, as immutable segments of JSON lines that are compacted to Parquet, so that it
needs neither locks nor appends. A record lost with a killed driver costs one block done again,
to the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from bigmap.errors import LeaseError, OutputError

BlockState = Literal["done", "empty", "degraded", "failed"]

NO_SCENE, TOO_CLOUDY, UNREAD, FAILED = (
    "no scene", "too cloudy", "could not be read", "block failed",
)  # fmt: skip
"""Why pixels of the area have no value: no date has seen them, none that was taken has seen them
clear, a file could not be read, or the block failed for another reason."""
FLUSH_RECORDS = 200
FLUSH_S = 2.0
COMPACT_SEGMENTS = 50
HEARTBEAT_S = 10.0
LEASE_FILE = "lease.json"
LEASE_LOST_S = 90.0
UNREADABLE_LEASE_S = 2.0


@dataclass(frozen=True)
class BlockRecord:
    """What became of one block."""

    block: str
    """Name of the block: its row and column on the lattice of blocks."""
    state: BlockState
    attempts: int = 1
    dates: tuple[str, ...] = ()
    """Dates that any of its cells used, ISO 8601."""
    dropped: tuple[str, ...] = ()
    """Dates that could not be read and were left out, with the reason."""
    device: str = "cpu"
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of each stage."""
    shards: tuple[tuple[str, int], ...] = ()
    """Objects written: key and size in bytes."""
    mapped_km2: float = 0.0
    """Area of the pixels that have a value."""
    without_data_km2: dict[str, float] = field(default_factory=dict)
    """Area of the pixels of the AOI that have none, by the reason."""
    worker: str = ""
    error: str | None = None
    finished: str = ""
    """UTC, ISO 8601."""
    reused: str | None = None
    """The earlier map from which the block was copied."""

    def to_json(self) -> str:
        """Return the record as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> BlockRecord:
        """Build a record from parsed JSON."""
        raw = dict(raw)
        for name in ("dates", "dropped"):
            raw[name] = tuple(raw[name])
        raw["shards"] = tuple((key, int(size)) for key, size in raw["shards"])
        return cls(**raw)


def add_km2(records: Iterable[BlockRecord]) -> tuple[float, Counter[str]]:
    """Add up the area with a value, and by reason the area without, both in square kilometres."""
    mapped, without = 0.0, Counter[str]()
    for record in records:
        mapped += record.mapped_km2
        without.update(record.without_data_km2)
    return mapped, without


class Ledger:
    """Append-only store of block records; the newest record of a block counts."""

    def __init__(self, folder: str) -> None:
        self.filesystem, root = fsspec.core.url_to_fs(folder)
        self.root = f"{root}/ledger"
        self.unwritten: list[BlockRecord] = []
        self.flushed = time.monotonic()
        self.serial = max((_serial(path) for path in self._files()), default=0)

    def append(self, record: BlockRecord) -> None:
        """Add a record; it is on disk after the next flush."""
        self.unwritten.append(record)
        if len(self.unwritten) >= FLUSH_RECORDS:
            self.flush()
        self.flush_late()

    def flush_late(self) -> None:
        """Write what has waited for long: the next record may be hours away."""
        if self.unwritten and time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as one segment."""
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        text = "\n".join(record.to_json() for record in self.unwritten) + "\n"
        self.serial += 1
        write_atomically(self.filesystem, f"{self.root}/{self.serial:09d}.jsonl", text.encode())
        self.unwritten = []
        if self.serial % COMPACT_SEGMENTS == 0:
            self.compact()

    def compact(self) -> None:
        """Turn the segments so far into one Parquet file.

        A crash between the two steps leaves records twice, which changes nothing.
        """
        segments = [path for path in self._files() if path.endswith(".jsonl")]
        if not segments:
            return
        lines = [line for path in segments for line in self._lines(path)]
        rows = [json.loads(line) for line in lines]
        table = pa.table(
            {
                "block": [row["block"] for row in rows],
                "state": [row["state"] for row in rows],
                "mapped_km2": [row["mapped_km2"] for row in rows],
                "finished": [row["finished"] for row in rows],
                "record": lines,
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        name = f"{self.root}/{_serial(segments[-1]):09d}.parquet"
        write_atomically(self.filesystem, name, sink.getvalue().to_pybytes())
        for path in segments:
            self.filesystem.rm_file(path)

    def records(self) -> Iterator[BlockRecord]:
        """Yield all records on disk, oldest first."""
        for path in self._files():
            lines = self._parquet_lines(path) if path.endswith(".parquet") else self._lines(path)
            for line in lines:
                yield BlockRecord.from_dict(json.loads(line))

    def latest(self) -> dict[str, BlockRecord]:
        """Return the newest record of each block."""
        return {record.block: record for record in self.records()}

    def _files(self) -> list[str]:
        """Return all files in the order in which they were written."""
        if not self.filesystem.exists(self.root):
            return []
        self.filesystem.invalidate_cache(self.root)
        names = [str(path) for path in self.filesystem.ls(self.root, detail=False)]
        return sorted((n for n in names if n.endswith((".jsonl", ".parquet"))), key=_serial)

    def _lines(self, path: str) -> list[str]:
        text: str = self.filesystem.cat_file(path).decode()
        return text.splitlines()

    def _parquet_lines(self, path: str) -> list[str]:
        with self.filesystem.open(path, "rb") as file:
            lines: list[str] = pq.read_table(file, columns=["record"])["record"].to_pylist()
            return lines


def _serial(path: str) -> int:
    return int(path.rsplit("/", 1)[-1].split(".", maxsplit=1)[0])


def write_atomically(filesystem: Any, path: str, data: bytes) -> None:
    """Write a small object so that a reader sees all of it or nothing.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    try:
        if "file" in _protocols(filesystem):
            filesystem.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            temporary = f"{path}.{uuid.uuid4().hex}.partial"
            try:
                filesystem.pipe_file(temporary, data)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        else:
            filesystem.pipe_file(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


@dataclass(frozen=True)
class LeaseState:
    """Who drives a run, and when it last said so."""

    owner: str
    host: str
    pid: int
    renewed: float
    """Seconds since the epoch."""

    @property
    def is_alive(self) -> bool:
        """Tell whether the owner may still be at work."""
        if self.host == socket.gethostname() and not _is_running(self.pid):
            return False
        return time.time() - self.renewed < LEASE_LOST_S


class Lease:
    """Keeps a second driver out, and workers of a dead driver from writing.

    The lease is a file that names its owner. It is renewed from a thread; a driver that finds
    somebody else's name in it stops.
    """

    def __init__(self, folder: str) -> None:
        self.filesystem, root = fsspec.core.url_to_fs(folder)
        self.path = f"{root}/{LEASE_FILE}"
        self.state = LeaseState(uuid.uuid4().hex, socket.gethostname(), os.getpid(), time.time())
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.is_lost = False

    def acquire(self) -> None:
        """Take the lease.

        Raises
        ------
        LeaseError
            If another driver holds it.
        """
        holder = read_lease(self.filesystem, self.path)
        if holder is None and self.filesystem.exists(self.path):
            # Half written: by a driver that starts at this moment, or by one that died then.
            time.sleep(UNREADABLE_LEASE_S)
            holder = read_lease(self.filesystem, self.path)
            if holder is None:
                self.filesystem.rm_file(self.path)
        if holder is not None and holder.is_alive:
            since = dt.datetime.fromtimestamp(holder.renewed, dt.UTC).strftime("%H:%M:%S UTC")
            raise LeaseError(
                f"{self.path}: another run (process {holder.pid} on {holder.host}, seen {since}) "
                "writes here; wait for it, stop it, or choose another place in the recipe"
            )
        if holder is not None:
            self.filesystem.rm_file(self.path)
        self.filesystem.makedirs(self.path.rsplit("/", 1)[0], exist_ok=True)
        try:
            self.filesystem.pipe_file(self.path, self._bytes(), mode="create")
        except FileExistsError:
            raise LeaseError(
                f"{self.path}: another run took this place at this moment; choose another"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error})") from None
        self.thread = threading.Thread(target=self._renew, daemon=True, name="bigmap-lease")
        self.thread.start()

    def release(self) -> None:
        """Give the lease back."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        holder = read_lease(self.filesystem, self.path)
        if holder is not None and holder.owner == self.state.owner:
            self.filesystem.rm_file(self.path)

    def _bytes(self) -> bytes:
        return json.dumps(asdict(self.state)).encode()

    def _renew(self) -> None:
        while not self.stopping.wait(HEARTBEAT_S):
            holder = read_lease(self.filesystem, self.path)
            if holder is None or holder.owner != self.state.owner:
                self.is_lost = True
                return
            self.state = replace(self.state, renewed=time.time())
            # A full disk must not end the renewal: there may be room again next time.
            with contextlib.suppress(OutputError):
                write_atomically(self.filesystem, self.path, self._bytes())


def read_lease(filesystem: Any, path: str) -> LeaseState | None:
    """Return who holds a lease, None where nobody does."""
    try:
        return LeaseState(**json.loads(filesystem.cat_file(path)))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def holds_lease(folder: str, owner: str) -> bool:
    """Tell whether an owner still holds the lease of a run; asked by workers before they write."""
    filesystem, root = fsspec.core.url_to_fs(folder)
    holder = read_lease(filesystem, f"{root}/{LEASE_FILE}")
    return holder is not None and holder.owner == owner


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A killed process that its parent has not waited for still has a number.
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return True
