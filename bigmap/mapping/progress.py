"""Progress of a run or of staging: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.plans import Part

LINE_EVERY_S = 15.0
SHOWN_ITEMS = 3
STATES = ("done", "empty", "degraded", "failed")


class ProgressReporter:
    """Shows blocks by state, km² per hour, time left and the slowest stage."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.states: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.mapped_km2 = 0.0
        self.todo = 0
        self.finished = 0
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(TextColumn("blocks"), BarColumn(), MofNCompleteColumn())
        self.task = self.bar.add_task("blocks", total=None)
        self.live: Live | None = None

    def start(self, part: Part, todo: int, recorded: Counter[str]) -> None:
        """Tell that blocks are about to be sent."""
        self.todo, self.finished, self.mapped_km2 = todo, 0, 0.0
        self.states, self.seconds = Counter(), Counter()
        self.started = self.last_line = time.monotonic()
        before = f" ({sum(recorded.values())} recorded before)" if recorded else ""
        self.console.print(
            f"{part.recipe.name}: {todo} blocks to do{before}, "
            f"{len(part.catalogue.rows)} items, model {part.model.spec.name}"
        )
        for line in part.catalogue.audit.lines(examples=0):
            self.note(line)
        if self.console.is_terminal:
            self.bar.update(self.task, total=todo)
            self.live = Live(self._table(), console=self.console, refresh_per_second=4)
            self.live.start()

    def add(self, record: BlockRecord) -> None:
        """Tell of one finished block."""
        self.finished += 1
        self.states[record.state] += 1
        self.seconds.update(record.seconds)
        self.mapped_km2 += record.mapped_km2
        if record.error:
            self.note(f"block {record.block} failed: {record.error}")
        for item in record.replaced:
            self.note(f"block {record.block} read other files of {item} than blocks before it")
        for dropped in record.dropped:
            self.note(f"block {record.block} without date {dropped}")
        if self.live is not None:
            self.bar.update(self.task, completed=self.finished)
            self.live.update(self._table())
        elif time.monotonic() - self.last_line > LINE_EVERY_S or self.finished == self.todo:
            self.last_line = time.monotonic()
            self.console.print(f"{self.finished}/{self.todo} blocks: {self._line()}")

    def note(self, message: str) -> None:
        """Tell of something that is not a block."""
        self.console.print(message, highlight=False, markup=False)

    def finish(self) -> None:
        """Tell that no more blocks will come."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _table(self) -> Group:
        return Group(self.bar, Text(self._line()))

    def _line(self) -> str:
        elapsed_s = max(time.monotonic() - self.started, 1e-6)
        states = ", ".join(f"{self.states[s]} {s}" for s in STATES if self.states[s]) or "none yet"
        left_s = (self.todo - self.finished) * elapsed_s / self.finished if self.finished else None
        eta = f"{format_duration(left_s)} left" if left_s is not None else "time left unknown"
        rate = self.mapped_km2 / elapsed_s * 3600
        return f"{states}; {rate:,.0f} km²/h; {eta}; {describe_slowest(self.seconds)}"


class StageProgress:
    """Shows files fetched, bytes a second and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.todo = self.finished = self.size_bytes = 0
        self.started = self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("files"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"), console=console,
        )  # fmt: skip
        self.task = self.bar.add_task("files", total=None, line="")

    def start(self, todo: int, kept: int, most_bytes: int) -> None:
        """Tell how many files are to be fetched, were kept, and how large they are at most."""
        self.todo = todo
        self.started = self.last_line = time.monotonic()
        self.console.print(f"{todo} files to fetch, up to {most_bytes / 1e9:,.2f} GB; {kept} kept")
        if self.console.is_terminal and todo:
            self.bar.update(self.task, total=todo)
            self.bar.start()

    def add(self, size_bytes: int) -> None:
        """Tell of a file that was fetched, or of one that failed by 0."""
        self.finished += 1
        self.size_bytes += size_bytes
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.finished, line=self._line())
        elif time.monotonic() - self.last_line > LINE_EVERY_S or self.finished == self.todo:
            self.last_line = time.monotonic()
            self.console.print(f"{self.finished}/{self.todo} files: {self._line()}")

    def note(self, message: str) -> None:
        """Tell of something that is not a file that was fetched."""
        self.console.print(message, highlight=False, markup=False)

    def finish(self) -> None:
        """Tell that no more files will come."""
        if self.console.is_terminal:
            self.bar.stop()

    def _line(self) -> str:
        elapsed_s = max(time.monotonic() - self.started, 1e-6)
        left_s = (self.todo - self.finished) * elapsed_s / self.finished
        return (
            f"{self.size_bytes / 1e9:,.2f} GB, {self.size_bytes / 1e6 / elapsed_s:,.1f} MB/s; "
            f"{format_duration(left_s)} left"
        )


def describe_slowest(seconds: Counter[str]) -> str:
    """Name the stage that took most of the blocks' time."""
    if not seconds or not sum(seconds.values()):
        return "no stage timed yet"
    stage, spent = seconds.most_common(1)[0]
    return f"slowest stage {stage} ({100 * spent / sum(seconds.values()):.0f} % of block time)"


def describe_without(without_data_km2: Mapping[str, float]) -> str:
    """Write how much of the area has no value, and why."""
    parts = ", ".join(
        f"{reason} {format_km2(km2)}" for reason, km2 in sorted(without_data_km2.items())
    )
    total = f"{format_km2(sum(without_data_km2.values()))} km² without data"
    return f"{total}: {parts}" if parts else total


def describe_replaced(replaced: Sequence[str]) -> str:
    """Say which items were replaced amid a run, and what to do."""
    shown = ", ".join(replaced[:SHOWN_ITEMS]) + ("..." if len(replaced) > SHOWN_ITEMS else "")
    return (
        f"{len(replaced)} items were replaced since the run began ({shown}): the map mixes their "
        "versions; start again with --overwrite"
    )


LEAST_KM2 = 0.001
"""What is told of areas: ten pixels of 10 m."""


def format_km2(km2: float) -> str:
    """Write an area for people: 15,183 or 11.4 or 0.745 or below 0.001."""
    if 0 < km2 < LEAST_KM2:
        return f"below {LEAST_KM2:g}"
    return f"{km2:,.{0 if km2 >= 100 or not km2 else 1 if km2 >= 10 else 3}f}"


def format_duration(seconds: float) -> str:
    """Write a duration for people: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
