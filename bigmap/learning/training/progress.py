"""Progress of training: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from bigmap.mapping.progress import LINE_EVERY_S, format_duration


@dataclass(frozen=True)
class StepReport:
    """What is told after each step."""

    epoch: int
    """Counted from 1."""
    epochs: int
    done: int
    """Steps done, over all epochs."""
    steps: int
    """Steps of the whole training."""
    loss: float
    """Mean of the epoch so far."""
    chips_per_s: float
    wait_share: float
    """Of the time: waiting for data."""
    left_s: float

    def line(self) -> str:
        """Write it for people."""
        return (
            f"epoch {self.epoch} of {self.epochs}, loss {self.loss:.4g}, "
            f"{self.chips_per_s:.1f} chips/s, {100 * self.wait_share:.0f} % waiting for data, "
            f"{format_duration(self.left_s)} left"
        )


class TrainingReporter(Protocol):
    """Shows how training goes on."""

    def add_step(self, report: StepReport) -> None:
        """Tell of a step."""

    def add_epoch(self, epoch: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Tell of an epoch, counted from 1, and its scores."""

    def note(self, message: str) -> None:
        """Tell of something else."""

    def finish(self) -> None:
        """Tell that it has ended."""


class SilentTraining:
    """Shows nothing."""

    def add_step(self, report: StepReport) -> None:
        """Ignore a step."""

    def add_epoch(self, epoch: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Ignore an epoch."""

    def note(self, message: str) -> None:
        """Ignore a message."""

    def finish(self) -> None:
        """Ignore the end."""


class TrainingProgress:
    """Shows loss, chips a second, the share of waiting for data, time left and scores."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last_line = time.monotonic()
        self.bar = Progress(
            TextColumn("steps"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"), console=console,
        )  # fmt: skip
        self.task = self.bar.add_task("steps", total=None, line="")

    def add_step(self, report: StepReport) -> None:
        """Tell of a step."""
        if self.console.is_terminal:
            self.bar.start()
            self.bar.update(
                self.task, total=report.steps, completed=report.done, line=report.line()
            )
        elif time.monotonic() - self.last_line > LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.console.print(f"{report.done}/{report.steps} steps: {report.line()}")

    def add_epoch(self, epoch: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Tell of an epoch, counted from 1, and its scores."""
        scores = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        best = ", the best so far" if is_best else ""
        self.console.print(f"epoch {epoch}: {scores}{best}", highlight=False, markup=False)

    def note(self, message: str) -> None:
        """Tell of something else."""
        self.console.print(message, highlight=False, markup=False)

    def finish(self) -> None:
        """Tell that it has ended."""
        if self.console.is_terminal:
            self.bar.stop()
