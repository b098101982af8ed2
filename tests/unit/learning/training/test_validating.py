"""Which epoch is the best."""

import math

import pytest

from bigmap.learning.training.validating import Validation

UNDEFINED = -math.inf


@pytest.mark.parametrize(
    ("mcc", "loss", "best_score", "best_loss", "is_better"),
    [
        (0.5, 0.9, 0.4, 0.1, True),
        (0.4, 0.1, 0.4, 0.9, False),
        (-0.1, 0.9, UNDEFINED, 0.1, True),
        (math.nan, 0.1, -0.1, 0.9, False),
        (math.nan, 0.1, UNDEFINED, 0.9, True),
        (math.nan, 0.9, UNDEFINED, 0.1, False),
        (math.nan, 0.9 - 1e-4, UNDEFINED, 0.9, False),
        (math.nan, -0.9995, UNDEFINED, -1.0, False),
        (math.nan, -1.1, UNDEFINED, -1.0, True),
        (math.nan, math.nan, UNDEFINED, 0.9, False),
        (math.nan, 5.0, UNDEFINED, math.inf, True),
    ],
)
def test_the_loss_decides_where_the_score_is_undefined(mcc, loss, best_score, best_loss, is_better):
    found = Validation(loss, {"mcc": mcc, "accuracy": 1.0}, "mcc")
    assert found.is_better(best_score, best_loss) is is_better
