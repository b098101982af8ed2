"""The ledger of a run: what became of each block, and who may write.

It lies beside the map, on whatever file system or object store the map lies on. Only the
driver writes it, as immutable segments of JSON lines that are compacted to Parquet, so that it
needs neither locks nor appends. A record lost with a killed driver costs one block done again,
to the same bytes. Segments are named by the term of their driver's lease and a number: one that
was taken over can neither replace those of its successor nor come after them.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bigmap.errors import OutputError
from bigmap.files import list_names, locate, write_atomically
from bigmap.lease import Lease

BlockState = Literal["done", "empty", "degraded", "failed"]

NO_SCENE, TOO_CLOUDY, UNREAD, FAILED = (
    "no scene", "too cloudy", "could not be read", "block failed",
)  # fmt: skip
"""Why pixels of the area have no value: no date has seen them, none that was taken has seen them
clear, a file could not be read, or the block failed for another reason."""
FLUSH_RECORDS = 200
FLUSH_S = 2.0
COMPACT_SEGMENTS = 50
READ_AGAIN = 10
"""So often may segments be compacted while they are read."""


@dataclass(frozen=True)
class BlockRecord:
    """What became of one block."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

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
    versions: dict[str, str] = field(default_factory=dict)
    """Checksums of the versions of items' files, of those that no earlier block has read."""
    replaced: tuple[str, ...] = ()
    """Items whose files are others than an earlier block has read."""

    def to_json(self) -> str:
        """Return the record as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> BlockRecord:
        """Build a record from parsed JSON.

        Raises
        ------
        pydantic.ValidationError
            If it is none.
        """
        return _adapter().validate_python(raw)


@cache
def _adapter() -> TypeAdapter[BlockRecord]:
    return TypeAdapter(BlockRecord)


def add_km2(records: Iterable[BlockRecord]) -> tuple[float, Counter[str]]:
    """Add up the area with a value, and by reason the area without, both in square kilometres."""
    mapped, without = 0.0, Counter[str]()
    for record in records:
        mapped += record.mapped_km2
        without.update(record.without_data_km2)
    return mapped, without


def list_replaced(records: Iterable[BlockRecord]) -> tuple[str, ...]:
    """Return the items whose files were replaced while a run went on."""
    return tuple(sorted({item for record in records for item in record.replaced}))


class Ledger:
    """Append-only store of block records; the newest record of a block counts.

    Parameters
    ----------
    folder
        Of the run.
    lease
        Of the driver that writes; without it the ledger is read.
    first_term
        What was written under earlier leases is of a run that has been overwritten since.
    """

    def __init__(self, folder: str, lease: Lease | None = None, *, first_term: int = 0) -> None:
        self.filesystem, root = locate(folder)
        self.root = f"{root}/ledger"
        self.lease = lease
        self.first_term = first_term
        self.unwritten: list[BlockRecord] = []
        self.flushed = time.monotonic()
        self.versions: dict[str, str] = {}
        """Of the items' files as they were first read, as far as records were read or added."""
        self.damage: list[str] = []
        """Sentences about segments that could not be read whole; their blocks are done again."""
        own = (_place(path) for path in self._files() if _place(path)[0] == self.term)
        self.serial = max((serial for _, serial in own), default=0)

    @property
    def term(self) -> int:
        """Of the lease under which it is written."""
        return self.lease.term if self.lease else 0

    def append(self, record: BlockRecord) -> BlockRecord:
        """Add a record; it is on disk after the next flush.

        Returns
        -------
        BlockRecord
            As it is kept: with the versions of files that are new, and the items that are not what
            earlier blocks have read.
        """
        known = self.versions
        others = {name for name, sum_ in record.versions.items() if known.get(name, sum_) != sum_}
        record = replace(
            record,
            versions={name: v for name, v in record.versions.items() if name not in known},
            replaced=tuple(sorted({name.removesuffix(" bands") for name in others})),
        )
        known.update(record.versions)
        self.unwritten.append(record)
        if len(self.unwritten) >= FLUSH_RECORDS:
            self.flush()
        self.flush_late()
        return record

    def flush_late(self) -> None:
        """Write what has waited for long: the next record may be hours away."""
        if self.unwritten and time.monotonic() - self.flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write what has been added as one segment.

        Raises
        ------
        LeaseError
            If the run belongs to another driver by now.
        """
        self.flushed = time.monotonic()
        if not self.unwritten:
            return
        self.serial += 1
        self._write(
            f"{self.root}/{self.term:09d}-{self.serial:09d}.jsonl",
            _join(record.to_json() for record in self.unwritten),
        )
        self.unwritten = []
        if self.serial % COMPACT_SEGMENTS == 0:
            self.compact()

    def compact(self) -> None:
        """Turn the segments so far of this driver into one Parquet file.

        A crash between the two steps leaves records twice, which changes nothing.
        """
        segments = [
            path
            for path in self._files()
            if path.endswith(".jsonl") and _place(path)[0] == self.term
        ]
        if not segments:
            return
        records = [record for path in segments for record in self._read(path)]
        table = pa.table(
            {
                "block": [record.block for record in records],
                "state": [record.state for record in records],
                "mapped_km2": [record.mapped_km2 for record in records],
                "finished": [record.finished for record in records],
                "record": [record.to_json() for record in records],
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self._write(f"{segments[-1].removesuffix('.jsonl')}.parquet", sink.getvalue().to_pybytes())
        for path in segments:
            self.filesystem.rm_file(path)

    def records(self) -> Iterator[BlockRecord]:
        """Yield all records on disk, oldest first.

        Raises
        ------
        OutputError
            If a newer version of bigmap wrote them, or they cannot be read.
        """
        for _ in range(READ_AGAIN):
            self.damage = []
            try:
                found = [self._read(path) for path in self._files()]
            except FileNotFoundError:
                continue  # compacted at this moment
            return (record for segment in found for record in segment)
        raise OutputError(f"{self.root}: changes while it is read; try again")

    def latest(self) -> dict[str, BlockRecord]:
        """Return the newest record of each block."""
        newest = {}
        for record in self.records():
            newest[record.block] = record
            for name, version in record.versions.items():
                self.versions.setdefault(name, version)
        return newest

    def mend(self) -> list[str]:
        """Keep what can be read of damaged segments; returns what was found, for people."""
        found = []
        for path in self._files():
            self.damage = []
            records = self._read(path)
            if self.damage:
                found += self.damage
                whole = f"{path.rpartition('.')[0]}.jsonl"
                if records:
                    self._write(whole, _join(record.to_json() for record in records))
                if not records or whole != path:
                    self.filesystem.rm_file(path)
        return found

    def _files(self) -> list[str]:
        """Return all files in the order in which they were written."""
        names = list_names(self.filesystem, self.root)
        places = {
            name: place
            for name in names
            if name.endswith((".jsonl", ".parquet"))
            and (place := _place(name)) >= (self.first_term, 0)
        }
        return [f"{self.root}/{name}" for name in sorted(places, key=lambda name: places[name])]

    def _write(self, path: str, data: bytes) -> None:
        if self.lease is not None:
            self.lease.check()
        write_atomically(self.filesystem, path, data)

    def _read(self, path: str) -> list[BlockRecord]:
        """Return the records of a segment; what is damaged is told by :attr:`damage`."""
        try:
            content = self.filesystem.cat_file(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error})") from None
        lines: list[Any] = []
        if path.endswith(".jsonl"):
            lines = content.splitlines()
        else:
            try:
                lines = pq.read_table(io.BytesIO(content), columns=["record"])["record"].to_pylist()
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                self._note_damage(path, str(error))
        records = []
        for number, line in enumerate(lines, 1):
            try:
                records.append(_adapter().validate_json(line))
            except ValidationError as error:
                self._refuse_newer(path, error)
                self._note_damage(path, f"line {number}")
        if not records and not lines:
            self._note_damage(path, "it is empty")
        return records

    def _note_damage(self, path: str, what: str) -> None:
        reason = " ".join(what.split())
        sentence = f"{path}: is damaged ({reason}); blocks recorded only there are done again"
        if not any(each.startswith(f"{path}:") for each in self.damage):
            self.damage.append(sentence)

    def _refuse_newer(self, path: str, error: ValidationError) -> None:
        for each in error.errors(include_url=False, include_input=False):
            if each["type"] == "unexpected_keyword_argument":
                raise OutputError(
                    f"{path}: was written by a newer version of bigmap, as its {each['loc'][-1]!r} "
                    "says; go on with that version"
                )


def _place(path: str) -> tuple[int, int]:
    """Return the term and the number of a segment; old versions gave no term, and -1 is none."""
    stem = path.rpartition("/")[2].partition(".")[0]
    term, dash, serial = stem.partition("-")
    if not dash:
        term, serial = "0", stem
    return (int(term), int(serial)) if term.isdecimal() and serial.isdecimal() else (-1, -1)


def _join(lines: Iterator[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
