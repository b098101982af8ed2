"""What an evaluation has found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from bigmap.learning.evaluation.design import DesignScores, Estimate
from bigmap.learning.evaluation.images import ImageQuality
from bigmap.learning.metrics import ClassScores, InstanceScores
from bigmap.models import ClassEntry


@dataclass(frozen=True, eq=False)
class SampleScores:
    """What a reference sample says of a map."""

    design: DesignScores
    area_ha: float
    """Of all strata."""
    mapped_ha: tuple[float, ...]
    """Of each class, by counting pixels of the map."""
    points: int
    """That were compared."""
    left_out: Mapping[str, int]
    """Points that were not, by the reason."""

    def class_areas(self) -> tuple[Estimate, ...]:
        """Return the estimated area of each class, in hectares."""
        return tuple(share.scale(self.area_ha) for share in self.design.shares)


@dataclass(frozen=True)
class ModelScores:
    """All that was found of one model or map; None what it does not make or nobody knows."""

    label: str
    classes: ClassScores | None = None
    instances: InstanceScores | None = None
    images: ImageQuality | None = None
    sample: SampleScores | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of the model and of what was compared, for JSON."""
    notes: tuple[str, ...] = ()
    """What a reader must know before trusting the scores."""


@dataclass(frozen=True)
class Evaluation:
    """A table: models beside each other, scored on the same."""

    title: str
    models: tuple[ModelScores, ...]
    legend: tuple[ClassEntry, ...]
    method: tuple[str, ...]
    """How it was scored, in sentences."""
    notes: tuple[str, ...] = ()
    """What holds for all of them, such as that labels were simulated."""

    def rows(self) -> dict[str, list[float]]:
        """Return the scores that the table shows, by name, one for each model; NaN of nothing."""
        rows: dict[str, list[float]] = {}
        for position, model in enumerate(self.models):
            for name, value in list_scores(model, self.legend).items():
                rows.setdefault(name, [math.nan] * len(self.models))[position] = value
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON, which has no NaN: None stands for it, and for infinity."""
        content = {
            "title": self.title,
            "legend": [vars(entry) for entry in self.legend],
            "method": list(self.method),
            "notes": list(self.notes),
            "models": [_model_dict(model) for model in self.models],
        }
        plain: dict[str, Any] = plain_json(content)
        return plain


def list_scores(model: ModelScores, legend: tuple[ClassEntry, ...]) -> dict[str, float]:
    """Return the scores of a model's column, by name."""
    found: dict[str, float] = {}
    if model.classes is not None:
        scores = model.classes
        found |= {
            "MCC": scores.mcc,
            "mean IoU": scores.mean_iou,
            "pixel accuracy": scores.accuracy,
            "normalised accuracy": scores.normalised_accuracy,
            "kappa": scores.kappa,
        }
        found |= {
            f"IoU of {entry.name}": float(value)
            for entry, value in zip(legend, scores.iou, strict=True)
        }
        if len(legend) == 2:
            name = legend[1].name
            found |= {
                f"precision of {name}": float(scores.precision[1]),
                f"recall of {name}": float(scores.recall[1]),
                f"F1 of {name}": float(scores.f1[1]),
            }
    if model.instances is not None:
        found |= {
            "instance precision": model.instances.precision,
            "instance recall": model.instances.recall,
            "instance F1": model.instances.f1,
        }
    if model.images is not None:
        images = model.images
        if images.bands:
            found |= {
                "PSNR (dB)": images.psnr,
                "mean PSNR of chips (dB)": images.chip_psnr,
                "SSIM": images.ssim,
                "sharpness": images.sharpness,
            }
        found["colour error"] = images.colour_error
        if not math.isnan(images.registered_psnr):
            found["PSNR, registered (dB)"] = images.registered_psnr
            found["SSIM, registered"] = images.registered_ssim
    if model.sample is not None:
        accuracy = model.sample.design.accuracy
        found |= {"overall accuracy": accuracy.value, "its 95 % interval, +-": accuracy.half_width}
    return found


def _model_dict(model: ModelScores) -> dict[str, Any]:
    content: dict[str, Any] = {"label": model.label, **model.facts, "notes": list(model.notes)}
    if model.classes is not None:
        content["classes"] = vars(model.classes) | {"pixels": model.classes.pixels}
    if model.instances is not None:
        one = model.instances
        content["instances"] = vars(one) | {
            "precision": one.precision, "recall": one.recall, "f1": one.f1,
        }  # fmt: skip
    if model.images is not None:
        content["images"] = vars(model.images)
    if model.sample is not None:
        areas = {"class_areas_ha": model.sample.class_areas()}
        content["sample"] = vars(model.sample) | areas
    return content


def plain_json(value: Any) -> Any:
    """Turn arrays and records into lists and mappings, and what is not finite into None."""
    if is_dataclass(value):
        return plain_json(vars(value))
    if isinstance(value, Mapping):
        return {str(key): plain_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(entry) for entry in value]
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
