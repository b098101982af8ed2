"""How far a run is, read from its ledger by anyone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bigmap.errors import OutputError
from bigmap.lease import LeaseState
from bigmap.mapping.ledger import BlockRecord, add_km2, list_replaced
from bigmap.mapping.run_folder import PartFolder, RunFolder
from bigmap.mapping.store.shards import ShardKey, check_shards
from bigmap.mapping.store.template import has_map

PLACE = re.compile(r"(?P<stem>.*)\.(?:zarr|run)(?:/(?P<part>\w+))?")
"""Of what a run makes, or of its folder, or of a part of either."""


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, read from its ledger by anyone."""

    output: str
    planned: int
    states: Counter[str]
    mapped_km2: float
    """Pixels with a value."""
    without_data_km2: Counter[str]
    """Pixels of the area without a value, by the reason."""
    seconds: Mapping[str, float]
    """Time of each stage, added up over blocks."""
    last: str
    """When the last block was finished, UTC; empty before the first."""
    failures: tuple[tuple[str, str], ...]
    """Failed blocks with their errors."""
    lease: LeaseState | None
    has_overviews: bool
    has_map: bool = True
    lost: tuple[str, ...] = ()
    """Blocks that are recorded, but whose objects are not there as they were written."""
    damage: tuple[str, ...] = ()
    """Sentences about segments of the ledger that cannot be read whole."""
    replaced: tuple[str, ...] = ()
    """Items whose files were replaced since the run began."""

    @property
    def missing(self) -> int:
        """Blocks without a record."""
        return self.planned - sum(self.states.values())

    @property
    def is_running(self) -> bool:
        """Tell whether a driver seems to be at work."""
        return self.lease is not None and self.lease.is_alive

    @property
    def is_whole(self) -> bool:
        """Tell whether there is nothing that a resumed run would do."""
        is_open = self.missing or self.failures or self.states["degraded"] or self.lost
        return self.has_map and self.has_overviews and not is_open


def read_status(output: str) -> RunStatus:
    """Read how far a run is.

    Parameters
    ----------
    output
        Path or URL of what it makes, of one part of that, or of the run folder.

    Raises
    ------
    OutputError
        If there is no run at this place.
    """
    place = output.rstrip("/")
    found = PLACE.fullmatch(place)
    folder = RunFolder(f"{found['stem'] if found else place}.zarr")
    folder.read_recipe()
    blocks = folder.parts()
    if found and found["part"]:
        if found["part"] not in blocks:
            raise OutputError(f"{place}: there is no run here")
        blocks = {found["part"]: blocks[found["part"]]}
    lease = folder.read_lease()
    parts = {
        name: _read_part(folder.part(name), planned, lease) for name, planned in blocks.items()
    }
    (first, *others) = parts.values()
    return _add_up(folder, parts, lease) if others else first


def _read_part(folder: PartFolder, planned: int, lease: LeaseState | None) -> RunStatus:
    folder.check_items()
    ledger = folder.ledger
    records = ledger.latest().values()
    mapped_km2, without_data_km2 = add_km2(records)
    # While a run goes on, its objects change; the run itself looks after them.
    is_running = lease is not None and lease.is_alive
    seconds: Counter[str] = Counter()
    for record in records:
        seconds.update(record.seconds)
    return RunStatus(
        output=folder.store,
        planned=planned,
        states=Counter(record.state for record in records),
        mapped_km2=mapped_km2,
        without_data_km2=without_data_km2,
        seconds=dict(seconds),
        last=max((record.finished for record in records), default=""),
        failures=tuple((r.block, r.error or "") for r in records if r.state == "failed"),
        lease=lease,
        has_overviews=folder.has_overviews(),
        has_map=is_running or has_map(folder.store, _list_arrays(records)),
        lost=() if is_running else list_lost_blocks(folder.store, records),
        damage=tuple(ledger.damage),
        replaced=list_replaced(records),
    )


def _list_arrays(records: Collection[BlockRecord]) -> set[str]:
    return {key.partition("/c/")[0] for record in records for key, _ in record.shards}


def list_lost_blocks(place: str, records: Collection[BlockRecord]) -> tuple[str, ...]:
    """Return the blocks whose objects are missing or have another size.

    Parameters
    ----------
    place
        Of the objects: the map, or the run folder of samples.
    """
    keys = (ShardKey(*shard) for record in records for shard in record.shards)
    lost = set(check_shards(place, keys))
    return tuple(record.block for record in records if any(key in lost for key, _ in record.shards))


def _add_up(
    folder: RunFolder, parts: Mapping[str, RunStatus], lease: LeaseState | None
) -> RunStatus:
    """Add up the status of all parts of a map."""
    seconds: Counter[str] = Counter()
    states: Counter[str] = Counter()
    without_data_km2: Counter[str] = Counter()
    for status in parts.values():
        seconds.update(status.seconds)
        without_data_km2.update(status.without_data_km2)
        states.update(status.states)
    return RunStatus(
        output=folder.output,
        planned=sum(status.planned for status in parts.values()),
        states=states,
        mapped_km2=sum(status.mapped_km2 for status in parts.values()),
        without_data_km2=without_data_km2,
        seconds=dict(seconds),
        last=max(status.last for status in parts.values()),
        failures=tuple(
            (f"{name}/{block}", error)
            for name, status in parts.items()
            for block, error in status.failures
        ),
        lease=lease,
        has_overviews=all(status.has_overviews for status in parts.values()),
        has_map=all(status.has_map for status in parts.values()),
        lost=tuple(f"{name}/{each}" for name, status in parts.items() for each in status.lost),
        damage=tuple(each for status in parts.values() for each in status.damage),
        replaced=tuple(sorted({each for status in parts.values() for each in status.replaced})),
    )
