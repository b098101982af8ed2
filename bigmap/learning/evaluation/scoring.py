"""``bigmap evaluate RECIPE``: the recipe's model and baselines on a split of its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bigmap.config import Recipe
from bigmap.errors import SamplesError
from bigmap.learning.chips import SPLITS, ChipSet, ChipTemplate, Split
from bigmap.learning.evaluation.chip_scores import ChipSettings, score_chips
from bigmap.learning.evaluation.contenders import build_baseline, build_contender
from bigmap.learning.evaluation.results import Evaluation
from bigmap.models import ClassEntry, ModelSpec

BATCH_CHIPS = 8
"""Seen at once by default: chips are small."""

Advance = Callable[[int, int], None]
"""Told how many are done, and of how many."""


@dataclass(frozen=True)
class ScoringOptions:
    """What is scored, and how."""

    split: Split = "test"
    weights: str | None = None
    """In place of ``model.weights``."""
    baselines: Sequence[str] = ()
    """As for :func:`~bigmap.learning.evaluation.contenders.build_baseline`."""
    max_dates: int | None = None
    """Of a chip, the clearest first; by default all."""
    instances: bool = False
    """Score connected areas of the second class too."""
    register: bool = False
    """Score images after a shift too."""


def score_models(
    recipe: Recipe, options: ScoringOptions | None = None, *, advance: Advance | None = None
) -> Evaluation:
    """Score the recipe's model and baselines on a split of its samples.

    Parameters
    ----------
    recipe
        With ``samples``; its ``inference`` says with which precision, batches and device.
    options
        What is scored.
    advance
        Told of progress, in chips.

    Raises
    ------
    BigmapError
        If there are no such chips, or a model does not fit them; the message names the field.
    """
    options = options or ScoringOptions()
    chips = open_samples(recipe)
    indices = chips.indices(options.split)
    if not len(indices):
        counts = [f"{len(chips.indices(split))} {split}" for split in SPLITS]
        raise SamplesError(
            f"samples.path: {chips.path}: has no chips of the split {options.split} "
            f"({', '.join(counts)})"
        )
    main = build_contender(recipe, options.weights)
    contenders = [main]
    contenders += [build_baseline(text, main.spec, chips.template) for text in options.baselines]
    settings = ChipSettings(
        batch_chips=recipe.inference.batch_windows or BATCH_CHIPS,
        precision=recipe.inference.precision,
        device=recipe.inference.device,
        max_dates=options.max_dates,
        instances=options.instances,
        register=options.register,
    )
    done = 0

    def count(chips_done: int) -> None:
        nonlocal done
        done += chips_done
        if advance is not None:
            advance(done, len(indices))

    models = score_chips(contenders, chips, indices, settings=settings, advance=count)
    return Evaluation(
        title=f"{recipe.title or recipe.name}, split {options.split}",
        models=tuple(models),
        legend=order_legend(main.spec, chips.template),
        method=_describe_method(
            chips.template,
            len(indices),
            options,
            has_images=any(model.images is not None for model in models),
        ),
        notes=_describe_samples(chips.template),
    )


def open_samples(recipe: Recipe) -> ChipSet:
    """Open the chips of a recipe.

    Raises
    ------
    SamplesError
        If it names none, or there are none.
    """
    if recipe.samples is None:
        raise SamplesError(
            "samples: is missing from the recipe; say where its chips and labels are"
        )
    return ChipSet(recipe.samples.path)


def order_legend(spec: ModelSpec, template: ChipTemplate) -> tuple[ClassEntry, ...]:
    """Return a model's classes in the order of the chips', which is that of the scores."""
    by_value = {entry.value: entry for entry in spec.legend}
    return tuple(
        by_value.get(value, ClassEntry(value, name, "#808080"))
        for value, name in zip(template.class_values, template.class_names, strict=True)
    )


def _describe_method(
    template: ChipTemplate, chips: int, options: ScoringOptions, *, has_images: bool
) -> tuple[str, ...]:
    side_m = template.chip_px * template.gsd_m
    first = (
        f"{chips} chips of {side_m:g} m of the split {options.split}, each predicted as one "
        "window, and counted whole."
    )
    lines = [first]
    if options.max_dates is not None:
        lines.append(f"At most {options.max_dates} dates of a chip, the clearest.")
    if template.class_values:
        lines.append(
            f"Classes are compared at {template.gsd_m / template.upscale:g} m; classes of a "
            "coarser model are repeated. Pixels that are unlabelled, or clear on no date, do not "
            "count."
        )
    if template.target_bands:
        lines.append(
            f"Images are compared at {side_m / template.target_px:.4g} m, resampled bicubically "
            "where they have other pixels; PSNR and SSIM are those of reflectance from 0 to 1. "
            "Sharpness: share of power above the input's Nyquist frequency, relative to the "
            "target's."
        )
    if has_images:
        lines.append(
            "Colour error of images: root mean square of the image, averaged down to Sentinel-2's "
            "pixels, minus the clearest date."
        )
    if options.register:
        lines.append(
            "Registered: after the best shift of whole pixels up to 3 along each axis, and "
            "without the mean difference of each band and chip."
        )
    return tuple(lines)


def _describe_samples(template: ChipTemplate) -> tuple[str, ...]:
    notes = [f"Samples: {template.source}."] if template.source else []
    if template.is_simulated:
        notes.append(
            "The samples are simulated: these scores say nothing about real Sentinel-2 scenes."
        )
    return tuple(notes)
