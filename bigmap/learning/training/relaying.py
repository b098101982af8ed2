"""Progress of a process elsewhere, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from bigmap.learning.training.progress import StepReport, TrainingReporter


class RelayingReporter:
    """Writes progress as lines of JSON, which :func:`relay` reads elsewhere.

    Parameters
    ----------
    write
        Sends a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def add_step(self, report: StepReport) -> None:
        """Tell of a step."""
        self.write(json.dumps({"step": asdict(report)}))

    def add_epoch(self, epoch: int, values: Mapping[str, float], *, is_best: bool) -> None:
        """Tell of an epoch, counted from 1, and its scores."""
        content = {"epoch": epoch, "values": dict(values), "is_best": is_best}
        self.write(json.dumps({"epoch": content}))

    def note(self, message: str) -> None:
        """Tell of something else."""
        self.write(json.dumps({"note": message}))

    def finish(self) -> None:
        """Leave the end to whoever relays."""


def relay(message: Mapping[str, Any], reporter: TrainingReporter) -> None:
    """Tell a reporter what a :class:`RelayingReporter` elsewhere was told."""
    if "step" in message:
        reporter.add_step(StepReport(**message["step"]))
    elif "epoch" in message:
        told = message["epoch"]
        reporter.add_epoch(told["epoch"], told["values"], is_best=told["is_best"])
    elif "note" in message:
        reporter.note(message["note"])
