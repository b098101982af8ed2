"""Objectives: a batch in parts has the loss and gradients that it has as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bigmap.config.training import (
    DualObjective,
    EndToEndObjective,
    ImageObjective,
    SegmentationObjective,
)
from bigmap.learning import losses
from bigmap.learning.training.batches import Batch, to_reflectance
from bigmap.learning.training.objectives import SeededDropout, make_objective

SIDE = 16


def make_batch(chips: int = 4, *, side: int = SIDE, bands: int = 3, classes: int = 3) -> Batch:
    """Chips of which each has another share of valid pixels, one of them none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (chips, side, side), generator=generator)
    target = torch.randint(1, 9000, (chips, bands, side, side), generator=generator)
    for chip in range(chips - 1):
        labels[chip, : chip * 4] = 255
        target[chip, :, :, : chip * 4] = 0
    labels[-1], target[-1] = 255, 0
    clear = torch.rand(chips, side // 2, side // 2, generator=generator) > 0.3
    reference = torch.randint(1, 9000, (chips, bands, side // 2, side // 2), generator=generator)
    return Batch(
        chips=tuple(range(10, 10 + chips)), pixels=torch.zeros(chips, 1, 1, 1, 1),
        clear=torch.ones(chips, 1, 1, 1, dtype=torch.bool),
        dates=torch.ones(chips, 1, dtype=torch.bool), labels=labels.to(torch.uint8),
        target=target.to(torch.int16), reference=reference.to(torch.int16), reference_clear=clear,
    )  # fmt: skip


def make_outputs(batch: Batch, *, logits: int, bands: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(batch), *batch.labels.shape[1:])
    sizes = {"logits": logits, "image": bands, "log_scale": bands,
             "segmentation_features": 4, "image_features": 5}  # fmt: skip
    return {
        name: torch.randn(shape[0], size, *shape[1:], generator=generator) * 0.3 + 0.2
        for name, size in sizes.items()
    }


def cut(batch: Batch, start: int, stop: int) -> Batch:
    return replace(batch.map(lambda tensor: tensor[start:stop]), chips=batch.chips[start:stop])


CASES = [
    (SegmentationObjective(), 3),
    (SegmentationObjective(weighted=False), 3),
    (SegmentationObjective(), 1),
    (DualObjective(kind="dual", image_weight=0.7, affinity_weight=1.3), 3),
    (EndToEndObjective(kind="end-to-end", alpha=0.1, beta=2.0), 3),
    (ImageObjective(kind="image", loss="mae"), 3),
    (ImageObjective(kind="image", loss="mse", consistency_weight=0.9), 3),
    (ImageObjective(kind="image", loss="ssim"), 3),
    (ImageObjective(kind="image", loss="uncertainty"), 3),
]


@pytest.mark.parametrize(("settings", "logits"), CASES)
@pytest.mark.parametrize("parts", [((0, 4),), ((0, 1), (1, 4)), ((0, 2), (2, 3), (3, 4))])
def test_parts_add_up_to_the_loss_and_gradients_of_the_whole(settings, logits, parts) -> None:
    batch = make_batch(classes=max(2, logits))
    outputs = make_outputs(batch, logits=logits)
    weights = losses.class_weights(torch.tensor([5.0, 3.0, 1.0]))
    objective = make_objective(settings, outputs, class_weights=weights, seed=0)
    coefficients = torch.tensor(list(objective.coefficients.values())).double()

    def lose(pieces) -> tuple[float, dict[str, Tensor]]:
        leaves = {name: values.clone().requires_grad_() for name, values in outputs.items()}
        found = [cut(batch, *piece) for piece in pieces]
        held = torch.stack([objective.weigh(piece) for piece in found])
        total = torch.zeros(())
        for piece, (start, stop), share in zip(found, pieces, held / held.sum(0), strict=True):
            terms = objective({k: v[start:stop] for k, v in leaves.items()}, piece)
            total = total + (terms * (share * coefficients)).sum()
        total.backward()
        return total.item(), {k: v.grad for k, v in leaves.items() if v.grad is not None}

    whole, gradients = lose(((0, 4),))
    value, in_parts = lose(parts)
    assert value == pytest.approx(whole, rel=1e-6)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_mean_of_the_parts_means_is_another_number() -> None:
    """What the weights are for: chips have different numbers of labelled pixels."""
    batch = make_batch()
    outputs = make_outputs(batch, logits=3)
    objective = make_objective(SegmentationObjective(), outputs, class_weights=None, seed=0)
    whole = objective(outputs, batch).item()
    means = [
        objective({k: v[i : i + 1] for k, v in outputs.items()}, cut(batch, i, i + 1)).item()
        for i in range(4)
    ]
    assert abs(sum(means) / 4 - whole) > 0.05


def test_objectives_are_the_papers_sums() -> None:
    batch = make_batch()
    outputs = make_outputs(batch, logits=3)
    weights = losses.class_weights(torch.tensor([5.0, 3.0, 1.0]))
    valid, labelled, target = batch.target_valid, batch.labelled, to_reflectance(batch.target)

    def total(settings) -> float:
        made = make_objective(settings, outputs, class_weights=weights, seed=0)
        return (made(outputs, batch) * torch.tensor([*made.coefficients.values()])).sum().item()

    plain = losses.cross_entropy(outputs["logits"], batch.labels, valid=labelled)
    weighted = losses.cross_entropy(
        outputs["logits"], batch.labels, valid=labelled, weights=weights
    )
    assert total(SegmentationObjective()) == pytest.approx(float(weighted))
    assert total(SegmentationObjective(weighted=False)) == pytest.approx(float(plain))
    difference = losses.mae_loss(outputs["image"], target, valid=valid)
    end_to_end = float(0.1 * difference + 1000 * plain)
    assert total(EndToEndObjective(kind="end-to-end")) == pytest.approx(end_to_end)
    dual = total(DualObjective(kind="dual", image_weight=0.5, affinity_weight=0.0))
    image = losses.mse_loss(outputs["image"], target, valid=valid)
    assert dual == pytest.approx(float(weighted + 0.5 * image))


def test_consistency_is_in_standard_deviations_of_each_band() -> None:
    batch = make_batch()
    outputs = make_outputs(batch, logits=3)
    settings = ImageObjective(kind="image", loss="mae", consistency_weight=1.0)
    std = torch.tensor([0.5, 0.1, 0.02])[: outputs["image"].shape[1]]
    made = make_objective(settings, outputs, class_weights=None, band_std=std, seed=0)
    alone = (made(outputs, batch) * torch.tensor([*made.coefficients.values()])).sum().item()
    each = [
        losses.radiometric_consistency(
            outputs["image"][:, band : band + 1],
            to_reflectance(batch.reference)[:, band : band + 1],
            valid=batch.reference_clear,
        ).item()
        / std[band].item() ** 2
        for band in range(len(std))
    ]
    assert alone == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_registered_images_draw_the_same_dropout_in_any_batch() -> None:
    batch = make_batch(side=128)
    outputs = make_outputs(batch, logits=3)
    settings = ImageObjective(kind="image", loss="mse", registered=True, consistency_weight=0.5)
    objective = make_objective(settings, outputs, class_weights=None, seed=3).train()
    dropout = objective.dropout
    assert isinstance(dropout, SeededDropout)
    features = torch.ones(2, 1000)
    dropout.keys = [(3, 0, 11), (3, 0, 12)]
    both = dropout(features)
    dropout.keys = [(3, 0, 12)]
    assert torch.equal(dropout(features[:1]), both[1:])
    assert not torch.equal(both[0], both[1])
    assert float((both == 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert set(both.unique().tolist()) == {0.0, 2.0}
    objective(outputs, batch)
    assert dropout.keys == [(3, 0, chip) for chip in batch.chips]
