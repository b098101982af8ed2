"""What cannot work is refused in one sentence that names the field, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigmap.errors import BigmapError, RecipeError
from bigmap.learning.losses import class_weights
from bigmap.learning.training.preparing import prepare_training
from bigmap.models.layers import BandStatistics
from tests.unit.learning.training.chip_cases import BANDS, make_recipe, write_chips

RGB = ("red", "green", "blue")
HIGHRES = {"name": "highres-net", "bands": list(RGB), "options": {"size": "small", "upscale": 2}}
SPINET = {"name": "spinet", "bands": list(BANDS), "options": {"size": "small"}}
IMAGE = {"kind": "image"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_chips(tmp_path_factory.mktemp("labelled") / "chips.zarr")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_chips(
        tmp_path_factory.mktemp("paired") / "chips.zarr", upscale=2, classes=(), target_bands=RGB
    )


@pytest.mark.parametrize(
    ("kind", "model", "training", "message"),
    [
        ("labelled", {"name": "ndvi"}, {}, "model.name: ndvi has no weights"),
        ("labelled", {**SPINET, "bands": ["swir16"]}, {},
         "model.bands: spinet needs swir16, but the samples have blue"),
        ("labelled", HIGHRES, {}, "objective: segmentation needs a model of classes"),
        ("labelled", HIGHRES, {"objective": IMAGE}, "objective: image needs a target image"),
        ("labelled", {**SPINET, "legend": "s2glc"}, {},
         "model.legend: spinet has the classes 0 .* samples have 0 other, 1 crop"),
        ("labelled", {"name": "deeplabv3plus", "bands": list(BANDS), "legend": "cropland",
                      "options": {"size": "small", "upscale": 2}}, {}, "model.options.upscale"),
        ("labelled", SPINET, {"objective": {"kind": "dual"}}, "objective: dual needs a target"),
        ("labelled", SPINET, {"batch_chips": 9}, "training.batch_chips: 9 chips are wanted"),
        ("labelled", SPINET, {"batch_chips": 2, "accumulate": 3}, "training.batch_chips: 2 in 3"),
        ("labelled", SPINET, {"optimiser": {"segmentation_weight_decay": 0.1}},
         "segmentation_weight_decay: is of the segmentation network"),
        ("labelled", SPINET, {"weights": "s3://place/w.safetensors"}, "not to a URL"),
        ("paired", SPINET, {}, "segmentation needs labels"),
        ("paired", HIGHRES, {"objective": IMAGE | {"loss": "uncertainty"}},
         "image with uncertainty needs a model with the output log_scale"),
        ("paired", HIGHRES, {"objective": IMAGE | {"registered": True}},
         "objective.registered: shifts are read from 128 px"),
        ("paired", {**HIGHRES, "bands": ["nir"]}, {"objective": IMAGE},
         "samples.target: the images .* have no band nir"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    tmp_path: Path, labelled: str, paired: str, kind: str, model: dict[str, Any],
    training: dict[str, Any], message: str,
) -> None:  # fmt: skip
    chips = labelled if kind == "labelled" else paired
    with pytest.raises(BigmapError, match=message) as caught:
        prepare_training(make_recipe(tmp_path, chips, model=model, training=training))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("training", "message"),
    [({"schedule": {"kind": "plateau"}}, "schedule: plateau needs validation chips"),
     ({"early_stop_epochs": 1}, "early_stop_epochs needs validation chips")],
)  # fmt: skip
def test_what_needs_validation_chips_is_refused_without(tmp_path, training, message) -> None:
    chips = write_chips(tmp_path / "chips.zarr", validation=0)
    with pytest.raises(BigmapError, match=message):
        prepare_training(make_recipe(tmp_path, chips, training=training))


def test_a_recipe_without_the_section_and_missing_chips_are_named(tmp_path, labelled) -> None:
    recipe = make_recipe(tmp_path, labelled)
    for section in ("training", "samples"):
        with pytest.raises(RecipeError, match=f"^{section}: the recipe has no such section"):
            prepare_training(recipe.model_copy(update={section: None}))
    with pytest.raises(BigmapError, match="there are no samples here"):
        prepare_training(make_recipe(tmp_path, str(tmp_path / "none.zarr")))


def test_the_model_takes_the_statistics_of_its_bands(tmp_path: Path, labelled: str) -> None:
    model = {**SPINET, "bands": ["nir", "green"]}
    job = prepare_training(make_recipe(tmp_path, labelled, model=model))
    statistics = next(
        each for each in job.build_model().modules() if isinstance(each, BandStatistics)
    )
    mean, std = job.chips.statistics
    assert statistics.mean.tolist() == pytest.approx([mean[3], mean[1]])
    assert statistics.std.tolist() == pytest.approx([std[3], std[1]])
    assert job.view.bands == (3, 1)


def test_seeds_give_other_weights_and_the_same_seed_the_same(tmp_path, labelled) -> None:
    def first_weight(seed: int) -> torch.Tensor:
        job = prepare_training(make_recipe(tmp_path, labelled, training={"seed": seed}))
        return next(job.build_model().parameters()).detach()

    assert torch.equal(first_weight(1), first_weight(1))
    assert not torch.equal(first_weight(1), first_weight(2))


def test_class_weights_follow_the_training_chips_in_the_order_of_the_legend(tmp_path) -> None:
    names = ("a", "b", "c")
    chips = write_chips(tmp_path / "chips.zarr", classes=names)
    legend = [{"value": v, "name": names[v], "colour": "#000000"} for v in (2, 0, 1)]
    job = prepare_training(make_recipe(tmp_path, chips, model={**SPINET, "legend": legend}))
    pixels = job.chips.places.class_px[list(job.train)].sum(axis=0)
    expected = class_weights(torch.from_numpy(pixels[[2, 0, 1]]))
    torch.testing.assert_close(job.class_weights, expected)
    assert job.view.classes[[2, 0, 1]].tolist() == [0, 1, 2]
    assert (np.delete(job.view.classes, [0, 1, 2]) == 255).all()
