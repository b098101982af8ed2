"""What a model is and costs, as tables of models show it."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from bigmap.models.base import MapModel
from bigmap.models.layers import count_parameters

COUNTED_DATES = 12
COUNTED_PX = 32
"""Side of the window that is counted. Operations on whole windows, such as gates, weigh a little
more in it than in larger ones."""
KM2_PX = 10_000
"""Input pixels of 10 m in a square kilometre."""


@dataclass(frozen=True)
class ModelFacts:
    """One row of the table of models."""

    name: str
    title: str
    paper: str
    kind: str
    bands: tuple[str, ...]
    upscale: int
    halo_px: int
    multiple_px: int
    layers: tuple[str, ...]
    parameters: int
    """Trainable ones."""
    gflop_per_km2: float
    """Of matrix products and convolutions, forward, for 12 dates of 10 m, without halos."""
    options: dict[str, bool | int | float | str]


def describe_model(model: MapModel) -> ModelFacts:
    """Gather the facts of a model; runs it once on a small window to count operations."""
    spec = model.spec
    return ModelFacts(
        name=spec.name,
        title=spec.title,
        paper=spec.paper,
        kind=spec.kind,
        bands=spec.bands,
        upscale=spec.upscale,
        halo_px=spec.halo_px,
        multiple_px=spec.multiple_px,
        layers=tuple(layer.name for layer in spec.layers),
        parameters=count_parameters(model),
        gflop_per_km2=count_gflop_per_km2(model),
        options=dict(model.options),
    )


def facts_dict(facts: ModelFacts) -> dict[str, object]:
    """Return the facts as JSON holds them."""
    return asdict(facts)


def describe_class(kind: type[MapModel]) -> str:
    """Return the text that documents a model: what it is, and its options."""
    return inspect.cleandoc(kind.__doc__ or "")


@torch.inference_mode()
def count_gflop_per_km2(model: MapModel) -> float:
    """Count the operations of a model, two for each multiplication with addition."""
    dates = min(COUNTED_DATES, model.spec.max_dates or COUNTED_DATES)
    side = max(COUNTED_PX, 2 * model.spec.multiple_px)
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(1, dates, len(model.spec.bands), side, side, generator=generator)
    valid = torch.ones(1, dates, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        model(reflectance, valid, torch.ones(1, dates, side, side, dtype=torch.bool))
    operations = int(counter.get_total_flops())
    return round(operations / side**2 * KM2_PX / 1e9, 3)
