"""Where a run stands: which epoch is the best."""

from __future__ import annotations

import math

from bigmap.learning.training.standing import Position, Stopwatch
from bigmap.learning.training.validating import Validation


def test_the_best_epoch_is_kept_until_a_better_one_comes() -> None:
    position = Position()
    for epoch, (mcc, loss) in enumerate([(0.5, 1.0), (0.4, 0.5), (0.6, math.nan)]):
        position.epoch = epoch
        position.take(Validation(loss, {"mcc": mcc}, "mcc"))
        assert position.best_epoch == (1, 1, 3)[epoch]
    assert (position.best_score, position.best_loss) == (0.6, math.inf)
    assert position.scores == {"mcc": 0.6}


def test_without_validation_the_last_epoch_is_the_best() -> None:
    position = Position(epoch=4, best_epoch=4)
    position.take(None)
    assert (position.best_epoch, position.best_score, position.scores) == (5, -math.inf, {})


def test_a_stopwatch_before_the_first_step_tells_nothing() -> None:
    watch = Stopwatch()
    assert (watch.chips_per_s, watch.wait_share) == (0, 0)
    watch.add(8, 2.0, 0.5)
    assert (watch.chips_per_s, watch.wait_share) == (4, 0.25)
