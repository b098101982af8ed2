"""What a run says while it goes on, and at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.plans import Part


class Reporter(Protocol):
    """Shows how a run goes on."""

    def start(self, part: Part, todo: int, recorded: Counter[str]) -> None:
        """Tell that blocks are about to be sent."""

    def add(self, record: BlockRecord) -> None:
        """Tell of one finished block."""

    def note(self, message: str) -> None:
        """Tell of something that is not a block."""

    def finish(self) -> None:
        """Tell that no more blocks will come."""


class SilentReporter:
    """Shows nothing."""

    def start(self, part: Part, todo: int, recorded: Counter[str]) -> None:
        """Ignore the start."""

    def add(self, record: BlockRecord) -> None:
        """Ignore a block."""

    def note(self, message: str) -> None:
        """Ignore a message."""

    def finish(self) -> None:
        """Ignore the end."""


@dataclass
class RunSummary:
    """What a run did, and the audit of what it made."""

    planned: int
    """Blocks of this run, those of earlier attempts included."""
    states: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    """Blocks done in this attempt."""
    mapped_km2: float = 0.0
    """Pixels with a value, of this attempt."""
    whole_mapped_km2: float = 0.0
    """Pixels with a value, of all attempts."""
    without_data_km2: Counter[str] = field(default_factory=Counter)
    """Pixels of the area without a value, of all attempts, by the reason."""
    elapsed_s: float = 0.0
    seconds: Counter[str] = field(default_factory=Counter)
    """Time of each stage, added up over the blocks of this attempt."""
    stopped: bool = False
    missing_shards: tuple[str, ...] = ()
    has_overviews: bool = True
    failures: tuple[tuple[str, str], ...] = ()
    replaced: tuple[str, ...] = ()
    """Items whose files were replaced since the run began, so that the map mixes two."""

    @property
    def missing(self) -> int:
        """Planned blocks without a record."""
        return self.planned - sum(self.states.values())

    @property
    def exit_code(self) -> int:
        """0 done, 3 not all is as it should be, 75 stopped early."""
        if self.stopped:
            return 75
        is_whole = self.has_overviews and not (self.failures or self.missing_shards or self.missing)
        return 0 if is_whole and not (self.is_blank or self.replaced) else 3

    @property
    def is_blank(self) -> bool:
        """Tell whether blocks were done and not one pixel has a value."""
        return bool(self.states) and not self.whole_mapped_km2

    def add(self, other: RunSummary, part: str) -> RunSummary:
        """Return the sum with one more part, whose blocks and objects get its name."""
        if part:
            other = replace(
                other,
                missing_shards=tuple(f"{part}/{key}" for key in other.missing_shards),
                failures=tuple((f"{part}/{block}", error) for block, error in other.failures),
            )
        other = replace(
            other, replaced=tuple(each for each in other.replaced if each not in self.replaced)
        )
        either: dict[str, Any] = {
            "stopped": self.stopped or other.stopped,
            "has_overviews": self.has_overviews and other.has_overviews,
        }
        sums = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(RunSummary)
            if each.name not in either
        }
        return RunSummary(**sums | either)
