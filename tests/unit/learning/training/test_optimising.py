"""Parameter groups, learning rates against their formulas, the moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bigmap.config.training import (
    ConstantSchedule,
    CosineSchedule,
    OptimiserConfig,
    PlateauSchedule,
    StepSchedule,
)
from bigmap.learning.training.optimising import (
    MovingAverage,
    Schedule,
    group_parameters,
    make_optimiser,
)
from bigmap.models import build_model


def test_the_segmentation_network_has_a_decay_of_its_own() -> None:
    model = build_model("dbpn-segnet", {"size": "small", "upscale": 4})
    objective = nn.Conv2d(1, 1, 1)
    settings = OptimiserConfig(weight_decay=1e-4, segmentation_weight_decay=5e-4)
    outside, inside = group_parameters(model, objective, settings)
    assert (outside["weight_decay"], inside["weight_decay"]) == (1e-4, 5e-4)
    segmenter = {id(each) for each in model.network.segmenter.parameters()}
    assert {id(each) for each in inside["params"]} == segmenter
    rest = [*model.parameters(), *objective.parameters()]
    assert {id(each) for each in outside["params"]} == {id(each) for each in rest} - segmenter


def test_adam_adds_the_decay_to_the_gradient_and_adamw_to_the_weight() -> None:
    moved = {}
    for kind in ("adam", "adamw"):
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 2.0)
        settings = OptimiserConfig(kind=kind, learning_rate=0.1, weight_decay=0.5)
        optimiser = make_optimiser(layer, nn.Identity(), settings)
        layer.weight.grad = torch.full((1, 1), 1e-12)
        optimiser.step()
        moved[kind] = layer.weight.item()
    # Adam's step is the rate times the sign of gradient + decay * weight.
    assert moved["adam"] == pytest.approx(2.0 - 0.1, abs=1e-5)
    assert moved["adamw"] == pytest.approx(2.0 * (1 - 0.1 * 0.5), abs=1e-4)


def factors(settings, *, epochs: int, steps: int) -> list[float]:
    schedule = Schedule(settings, epochs=epochs, steps_per_epoch=steps)
    return [schedule.factor(step) for step in range(epochs * steps)]


def test_schedules_follow_their_formulas() -> None:
    assert factors(ConstantSchedule(), epochs=2, steps=2) == [1.0] * 4
    assert factors(StepSchedule(kind="step", at=0.5, factor=0.1), epochs=4, steps=2) == (
        [1.0] * 4 + [0.1] * 4
    )
    cosine = factors(CosineSchedule(kind="cosine", warmup_epochs=1), epochs=5, steps=4)
    assert cosine[:4] == [0.25, 0.5, 0.75, 1.0]
    expected = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert cosine[4:] == pytest.approx(expected)
    no_rise = factors(CosineSchedule(kind="cosine"), epochs=1, steps=10)
    assert no_rise[0] == 1.0
    assert no_rise[5] == pytest.approx(0.5)


def test_a_plateau_lowers_the_rate_after_its_patience_and_survives_a_checkpoint() -> None:
    settings = PlateauSchedule(kind="plateau", patience_epochs=1, factor=0.5)
    schedule = Schedule(settings, epochs=10, steps_per_epoch=1)
    seen = []
    for loss in (1.0, 0.9, 0.95, 0.9, math.nan, 0.91, 0.8):
        schedule.end_epoch(loss)
        again = Schedule(settings, epochs=10, steps_per_epoch=1)
        again.load(schedule.state())
        schedule = again
        seen.append(schedule.factor(0))
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_the_moving_average_follows_its_formula_and_takes_statistics_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 0.0)
    average = MovingAverage(model, 0.3)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 4.0, -1.0)):
        nn.init.constant_(model[0].weight, value)
        model[1].running_mean.fill_(value)
        average.update(model, step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.model[0].weight.item() == pytest.approx(expected)
    assert average.model[1].running_mean.item() == -1.0
    assert not any(each.requires_grad for each in average.model.parameters())
