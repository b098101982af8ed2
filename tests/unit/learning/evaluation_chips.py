"""Small sets of chips whose right scores are known."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np

from bigmap.learning.chips import (
    ChipPlaces,
    ChipTemplate,
    complete_chips,
    create_chips,
    stack_days,
    write_chips,
)

DAYS = (dt.date(2024, 4, 1), dt.date(2024, 5, 1), dt.date(2024, 6, 1))
CROPLAND = {"class_values": (0, 1), "class_names": ("other", "cropland")}


def make_template(**changes: Any) -> ChipTemplate:
    settings: dict[str, Any] = {
        "crs": "EPSG:25831", "gsd_m": 10.0, "chip_px": 16, "max_dates": 3,
        "bands": ("blue", "red", "nir"), "upscale": 2, **CROPLAND,
    }  # fmt: skip
    return ChipTemplate(**settings | changes)


def to_dn(reflectance: Any) -> Any:
    """Return DN of reflectance, as chips hold them."""
    return np.rint((np.asarray(reflectance) + 0.1) / 1e-4).astype(np.uint16)


def write_set(
    path: Path, template: ChipTemplate, arrays: dict[str, Any], *, split: list[int],
    facts: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write a whole set; ``arrays`` lacks ``days`` where all chips have all dates."""
    count = len(split)
    side = template.chip_px
    arrays = {"days": np.stack([stack_days(DAYS, template.max_dates)] * count), **arrays}
    labels = arrays.get("labels")
    values = template.class_values
    places = ChipPlaces(
        split=np.array(split, dtype=np.uint8),
        row=np.zeros(count, dtype=np.int64) - 3 * side,
        col=np.arange(count, dtype=np.int64) * side,
        dates=(arrays["days"] > -(2**31)).sum(axis=1).astype(np.int32),
        class_px=np.array(
            [[int((chip == value).sum()) for value in values] for chip in labels]
            if labels is not None else np.zeros((count, 0)), dtype=np.int64,
        ),
    )  # fmt: skip
    bands = len(template.bands)
    statistics = {"mean": [0.2] * bands, "std": [0.1] * bands}
    create_chips(str(path), template, places, facts={"statistics": statistics, **(facts or {})})
    step = template.shard_chips
    for first in range(0, count, step):
        part = {name: each[first : first + step] for name, each in arrays.items()}
        write_chips(str(path), first, part)
    complete_chips(str(path))
    return path


def make_fields(template: ChipTemplate, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Return chips with green fields in random coarse pixels, clear on all dates.

    NDVI is 0.8 on fields and 0.1 elsewhere, so that ``ndvi`` finds them all without upsampling.
    Labels say the same at the fine pixels.
    """
    rng = np.random.default_rng(seed)
    side, dates = template.chip_px, template.max_dates
    fields = rng.random((count, side, side)) < 0.4
    red = np.where(fields, 0.05, 0.20)
    nir = np.where(fields, 0.45, 0.2444)
    blue = np.full(red.shape, 0.08)
    images = to_dn(np.stack([blue, red, nir], axis=1))[:, None].repeat(dates, axis=1)
    labels = fields.repeat(template.upscale, axis=1).repeat(template.upscale, axis=2)
    return {
        "images": images,
        "clear": np.ones((count, dates, side, side), dtype=bool),
        "labels": labels.astype(np.uint8),
    }
