"""Models on chips: dates, batches, classes of coarser models, instances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bigmap.errors import SamplesError
from bigmap.learning.chips import ChipSet
from bigmap.learning.evaluation import Contender, build_baseline
from bigmap.learning.evaluation.chip_scores import ChipSettings, score_chips
from bigmap.models import ClassEntry, build_model
from tests.unit.learning.evaluation_chips import DAYS, make_fields, make_template, to_dn, write_set

RIGHT_SCORES = {
    None: ([[10110, 844], [6415, 522]], (14.46401055, 0.04398648680, 0.1131581024)),
    2: ([[9100, 1125], [5803, 671]], (14.38951699, 0.05620294506, 0.09709054305)),
}
"""By the most dates of a chip: confusion of ndvi, and PSNR, SSIM and colour error of bicubic."""


def score(chips: ChipSet, *models: Any, **settings: Any):
    contenders = [Contender(str(index), model) for index, model in enumerate(models)]
    every = np.arange(len(chips))
    return score_chips(contenders, chips, every, settings=ChipSettings(**settings))


def make_set(tmp_path, template, count: int = 5, **changes: Any) -> ChipSet:
    arrays = make_fields(template, count) | changes
    return ChipSet(str(write_set(tmp_path / "chips.zarr", template, arrays, split=[2] * count)))


def test_classes_of_a_coarser_model_are_repeated(tmp_path) -> None:
    chips = make_set(tmp_path, make_template(upscale=2))
    (scores,) = score(chips, build_model("ndvi", {"upscale": 1}))
    assert scores.classes is not None
    assert scores.classes.pixels == 5 * 32 * 32
    assert scores.classes.mcc == 1
    assert scores.images is None


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_scores_do_not_depend_on_the_batch(tmp_path, batch: int) -> None:
    template = make_template()
    arrays = make_fields(template, 5)
    # Chips of 1, 2 and 3 dates; what lies beyond their dates is not theirs.
    rng = np.random.default_rng(1)
    arrays["images"] = to_dn(rng.uniform(0, 0.5, arrays["images"].shape))
    arrays["clear"] = rng.random(arrays["clear"].shape) < 0.7
    days = np.full((5, 3), np.iinfo(np.int32).min, dtype=np.int32)
    for index, number in enumerate((1, 2, 3, 1, 3)):
        days[index, :number] = [(day - DAYS[0]).days + 19814 for day in DAYS[:number]]
        arrays["clear"][index, number:] = False
    chips = make_set(tmp_path, template, **arrays, days=days)
    (scores,) = score(chips, build_model("ndvi", {"upscale": 2}), batch_chips=batch)
    (alone,) = score(chips, build_model("ndvi", {"upscale": 2}), batch_chips=3)
    assert scores.classes is not None
    assert alone.classes is not None
    np.testing.assert_array_equal(scores.classes.confusion, alone.classes.confusion)
    assert 0 < scores.classes.pixels < 5 * 32 * 32, "what was never clear has no class"
    assert scores.facts["labelled_px"] == 5 * 32 * 32


def test_the_clearest_dates_are_taken(tmp_path) -> None:
    template = make_template(upscale=1)
    arrays = make_fields(template, 3)
    # The first and the last date show bare soil; the second is right, and the clearest.
    arrays["images"][:, ::2] = to_dn(0.2)
    arrays["clear"][:, ::2, :2] = False
    chips = make_set(tmp_path, template, count=3, **arrays)
    model = build_model("ndvi", {"upscale": 1})
    (three,), (one,) = score(chips, model), score(chips, model, max_dates=1)
    assert one.classes is not None
    assert three.classes is not None
    assert one.classes.mcc == 1
    assert three.classes.mcc < 0.5
    assert one.facts["max_dates"] == 1


def test_an_instance_across_two_chips_is_one(tmp_path) -> None:
    template = make_template(upscale=1)
    arrays = make_fields(template, 2)
    fields = np.zeros((2, 16, 16), dtype=bool)
    fields[0, 4:8, 10:] = fields[1, 4:8, :5] = True  # the chips lie side by side
    fields[1, 12:14, 12:14] = True
    labels = fields.astype(np.uint8)
    labels[1, 12:14, 12:14] = 0
    pair = np.stack([np.where(fields, 0.05, 0.2), np.where(fields, 0.45, 0.24)], axis=1)
    arrays["images"][:, :, 1:] = to_dn(pair)[:, None]
    chips = make_set(tmp_path, template, count=2, **arrays | {"labels": labels})
    (scores,) = score(chips, build_model("ndvi", {"upscale": 1}), instances=True)
    found = scores.instances
    assert found is not None
    assert (found.true, found.predicted, found.matched) == (1, 2, 1)
    assert (found.precision, found.recall) == (0.5, 1)


def test_instances_need_two_classes(tmp_path) -> None:
    names = tuple(f"c{value}" for value in range(3))
    template = make_template(upscale=2, class_values=(0, 1, 2), class_names=names)
    chips = make_set(tmp_path, template)
    classes = tuple(ClassEntry(value, names[value], "#000000") for value in range(3))
    model = build_model("segnet", {"size": "small", "upscale": 2}, bands=("red",), legend=classes)
    with pytest.raises(SamplesError, match=r"--instances: .* has 3"):
        score(chips, model, instances=True)


def test_images_and_classes_stand_beside_each_other(tmp_path) -> None:
    template = make_template(upscale=2, target_bands=("red", "blue"), target_px=32)
    arrays = make_fields(template, 2)
    arrays["images"][:, :, 0] += np.random.default_rng(0).integers(0, 500, (2, 1, 16, 16), "uint16")
    clearest = arrays["images"][:, 0][:, [1, 0]]
    arrays["target"] = clearest.repeat(2, axis=2).repeat(2, axis=3)
    chips = make_set(tmp_path, template, count=2, **arrays)
    ndvi = build_model("ndvi", {"upscale": 2})
    bicubic = build_baseline("bicubic:composite=clearest", ndvi.spec, template)
    assert bicubic.spec.bands == ("red", "blue"), "those of the target"
    first, second = score(chips, ndvi, bicubic.model)
    assert first.images is None
    assert second.classes is None
    assert second.images is not None
    assert 15 < second.images.psnr < 40
    assert second.images.sharpness < 0.5
    wrong = build_model("bicubic", {"upscale": 2}, bands=("red", "nir"))
    with pytest.raises(SamplesError, match="image of red, nir, but the samples' target has blue"):
        score(chips, wrong)


def test_a_model_that_makes_nothing_known_is_refused(tmp_path) -> None:
    template = make_template(class_values=(), class_names=(), target_bands=("red",), target_px=32)
    arrays = make_fields(template, 2)
    del arrays["labels"]
    arrays["target"] = np.ones((2, 1, 32, 32), dtype=np.uint16)
    path = write_set(tmp_path / "chips.zarr", template, arrays, split=[2, 2])
    with pytest.raises(SamplesError, match="makes nothing that the samples know"):
        score(ChipSet(str(path)), build_model("ndvi", {"upscale": 2}))


def test_the_scores_of_a_set_are_these(tmp_path) -> None:
    template = make_template(upscale=4, target_bands=("red", "blue"), target_px=40)
    rng = np.random.default_rng(7)
    arrays = make_fields(template, 5)
    arrays["images"] = to_dn(rng.uniform(0, 0.5, arrays["images"].shape))
    arrays["images"][rng.random(arrays["images"].shape) < 0.01] = 0
    arrays["clear"] = rng.random(arrays["clear"].shape) < 0.7
    arrays["target"] = to_dn(rng.uniform(0, 0.5, (5, 2, 40, 40)))
    arrays["labels"][rng.random(arrays["labels"].shape) < 0.1] = 255
    chips = make_set(tmp_path, template, **arrays)
    ndvi = build_model("ndvi", {"upscale": 2})
    bicubic = build_baseline("bicubic:composite=clearest", ndvi.spec, template).model
    for most, (confusion, image_scores) in RIGHT_SCORES.items():
        first, second = score(chips, ndvi, bicubic, batch_chips=2, max_dates=most)
        assert first.classes is not None
        assert first.classes.confusion.tolist() == confusion
        image = second.images
        assert image is not None
        assert (image.psnr, image.ssim, image.colour_error) == pytest.approx(image_scores, 1e-6)
        assert image.colour_pixels == 911
