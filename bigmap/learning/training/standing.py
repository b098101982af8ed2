"""Where a training run is, how fast it goes, and what it came to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bigmap.learning.training.validating import Validation


@dataclass
class Position:
    """Where a run is."""

    epoch: int = 0
    """Epochs that are done, validation included."""
    step: int = 0
    """Steps of the epoch that are done."""
    total: int = 0
    """Steps of all epochs that are done."""
    loss_sum: float = 0.0
    """Of the epoch's steps."""
    best_epoch: int = 0
    """Counted from 1; 0 before the first."""
    best_score: float = -math.inf
    best_loss: float = math.inf
    """Of the best epoch; decides where the score is undefined."""
    is_finished: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    """Of the best epoch."""

    def take(self, found: Validation | None) -> None:
        """Note the epoch as the best one if it is; without validation each is, as it comes."""
        is_best = (
            found is None
            or self.best_epoch == 0
            or found.is_better(self.best_score, self.best_loss)
        )
        if not is_best:
            return
        self.best_epoch = self.epoch + 1
        self.scores = {} if found is None else found.scores
        if found is not None:
            self.best_score = found.score
            self.best_loss = math.inf if math.isnan(found.loss) else found.loss


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to."""

    weights: str
    folder: str
    epochs: int
    """Done, those of earlier attempts included."""
    steps: int
    best_epoch: int
    scores: dict[str, float]
    """Of the best epoch, on the validation chips."""
    chosen_by: str
    """The score that tells the best epoch; ``loss`` where it is undefined, empty where there are
    no validation chips and the last epoch counts."""
    processes: int
    device: str
    is_simulated: bool
    elapsed_s: float
    """Of this attempt."""
    chips_per_s: float
    """In training steps of this attempt, over all processes."""
    wait_share: float
    """Of the time of those steps: waiting for data, in the first process."""
    stopped: bool = False
    stopped_early: bool = False
    """Whether the score had not risen for so long as the recipe allows."""

    @property
    def exit_code(self) -> int:
        """0 done, 75 stopped and can be resumed."""
        return 75 if self.stopped else 0


class Stopwatch:
    """Chips and seconds of training steps, of this attempt and since the last look."""

    def __init__(self) -> None:
        self.chips = 0
        self.seconds = self.waited = 0.0

    def add(self, chips: int, seconds: float, waited: float) -> None:
        """Add a step."""
        self.chips += chips
        self.seconds += seconds
        self.waited += waited

    @property
    def chips_per_s(self) -> float:
        """Chips a second, 0 before the first step."""
        return self.chips / self.seconds if self.seconds else 0.0

    @property
    def wait_share(self) -> float:
        """Share of the time that was spent waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0
