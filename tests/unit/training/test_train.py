"""Training from end to end on few small chips."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bigmap.models import build_model, read_card
from bigmap.training import train_recipe
from tests.unit.training.chip_cases import make_recipe, write_chips

pytestmark = pytest.mark.training


def test_training_learns_and_leaves_weights_that_load_with_their_scores(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr", train=16)
    summary = train_recipe(make_recipe(tmp_path, chips, training={"epochs": 5}))
    assert (summary.epochs, summary.steps, summary.exit_code) == (5, 20, 0)
    assert summary.scores["mcc"] > 0.5
    card = read_card(summary.weights)
    assert card.training.is_simulated
    assert card.training.scores["mcc"] == pytest.approx(summary.scores["mcc"])
    notice = build_model("spinet", weights=summary.weights).spec.notice
    assert notice is not None
    assert "simulated" in notice
    with (tmp_path / "weights.run" / "epochs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert list((tmp_path / "weights.run" / "samples").glob("epoch-*.png"))
