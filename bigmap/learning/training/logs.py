"""What a run writes down: CSV and TensorBoard, by step and by epoch."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack

from bigmap.learning.training.folder import Table, TrainingFolder

STEP_COLUMNS = ("step", "epoch", "loss", "learning_rate", "gradient_norm", "chips_per_s",
                "wait_percent")  # fmt: skip


class TrainingLog:
    """Logs of the first process.

    Parameters
    ----------
    folder
        Where they lie.
    score_names
        Columns of the epochs' table.
    step, epoch
        Where the run goes on: later rows are of work that is done again. None where it starts.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        score_names: tuple[str, ...],
        *,
        step: int | None,
        epoch: int | None,
    ) -> None:
        # It takes a second to import, and most commands do without.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        folder.check_held()
        self.folder = folder
        self.steps = Table(folder.path / "steps.csv", STEP_COLUMNS, last=step)
        columns = ("epoch", "step", "train_loss", "validation_loss", *score_names, "is_best",
                   "learning_rate", "chips_per_s", "wait_percent")  # fmt: skip
        self.epochs = Table(folder.path / "epochs.csv", columns, last=epoch)
        # TensorBoard writes in a thread, whose error the next call raises once more.
        self.hook, threading.excepthook = threading.excepthook, self._hear
        self.board = SummaryWriter(
            str(folder.path / "tensorboard"), purge_step=None if step is None else step + 1
        )

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step, counted from 1."""
        self.folder.check_held()
        self.steps.add(step=step, **{name: _write(value) for name, value in values.items()})
        self._board("step", step, values)

    def add_epoch(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Add an epoch, counted from 1."""
        self.folder.check_held()
        rounded = {name: _write(value) for name, value in values.items()}
        self.epochs.add(epoch=epoch, step=step, **rounded)
        self._board("epoch", step, values)

    def _board(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, step)

    def _hear(self, failure: threading.ExceptHookArgs) -> None:
        if not isinstance(failure.exc_value, OSError):
            self.hook(failure)

    def close(self) -> None:
        """Write what is left, and close all files, also where one cannot be written."""
        with ExitStack() as closing:
            closing.callback(setattr, threading, "excepthook", self.hook)
            for each in (self.board, self.epochs, self.steps):
                closing.callback(each.close)


def _write(value: float) -> str:
    return f"{value:.9g}"
