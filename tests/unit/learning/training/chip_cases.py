"""Chip sets and recipes for tests of training."""

from __future__ import annotations

import datetime as dt
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bigmap.config import Recipe, parse_recipe
from bigmap.learning.chips import ChipPlaces, ChipTemplate, complete_chips, create_chips, stack_days
from bigmap.learning.chips import write_chips as write_arrays

BANDS = ("blue", "green", "red", "nir")


def write_chips(
    path: Path,
    *,
    train: int = 8,
    validation: int = 2,
    chip_px: int = 16,
    dates: tuple[int, ...] = (3, 2),
    upscale: int = 4,
    bands: tuple[str, ...] = BANDS,
    classes: tuple[str, ...] = ("other", "cropland"),
    target_bands: tuple[str, ...] = (),
    target_px: int = 0,
    seed: int = 0,
) -> str:
    """Write chips whose labels follow from their pixels: the brighter half is the last class."""
    rng = np.random.default_rng(seed)
    count, most = train + validation, max(dates)
    template = ChipTemplate(
        crs="EPSG:25831", gsd_m=10.0, chip_px=chip_px, max_dates=most, bands=bands,
        upscale=upscale, class_values=tuple(range(len(classes))), class_names=classes,
        target_bands=target_bands, target_px=target_px or chip_px * upscale,
        is_simulated=True, source="invented chips",
    )  # fmt: skip
    fine = rng.normal(size=(count, chip_px * upscale // 4, chip_px * upscale // 4))
    fine = np.kron(fine, np.ones((4, 4)))
    level = 2000 + 800 * np.tanh(fine)
    coarse = level.reshape(count, chip_px, upscale, chip_px, upscale).mean(axis=(2, 4))
    noise = rng.normal(scale=50, size=(count, most, len(bands), chip_px, chip_px))
    gains = np.linspace(0.6, 1.4, len(bands))[:, None, None]
    images = (coarse[:, None, None] * gains + noise).round().astype(np.uint16)
    clear = rng.random((count, most, chip_px, chip_px)) > 0.1
    numbers = np.array([dates[index % len(dates)] for index in range(count)], dtype=np.int32)
    days = np.stack([
        stack_days([dt.date(2024, 4, 1) + dt.timedelta(days=5 * d) for d in range(n)], most)
        for n in numbers
    ])  # fmt: skip
    for index, number in enumerate(numbers):
        images[index, number:], clear[index, number:] = 0, False
    arrays: dict[str, Any] = {"images": images, "clear": clear, "days": days}
    class_px = np.zeros((count, len(classes)), dtype=np.int64)
    if classes:
        edges = np.quantile(fine, np.linspace(0, 1, len(classes) + 1)[1:-1])
        labels = np.digitize(fine, edges).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.05] = 255
        arrays["labels"] = labels
        class_px = np.stack(
            [(labels == value).sum(axis=(1, 2)) for value in range(len(classes))], 1
        )
    if target_bands:
        side = template.target_px
        rows = np.arange(side) * fine.shape[1] // side
        target = level[:, rows][:, :, rows]
        scales = np.linspace(0.6, 1.4, len(target_bands))[:, None, None]
        target = (target[:, None] * scales).round().astype(np.uint16)
        target[:, :, :1, :2] = 0
        arrays["target"] = target
    places = ChipPlaces(
        split=np.array([0] * train + [1] * validation, dtype=np.uint8),
        row=np.arange(count), col=np.zeros(count, dtype=np.int64), dates=numbers,
        class_px=class_px,
    )  # fmt: skip
    valid = images[:train][images[:train].all(axis=2, keepdims=True).repeat(len(bands), 2)]
    pixels = valid.reshape(-1) * 1e-4 - 0.1
    means = [float(pixels.mean() * gain) for gain in np.linspace(0.6, 1.4, len(bands))]
    facts = {"statistics": {"mean": means, "std": [float(pixels.std())] * len(bands)}}
    create_chips(str(path), template, places, facts=facts)
    step = template.shard_chips
    for first in range(0, count, step):
        part = {name: values[first : first + step] for name, values in arrays.items()}
        write_arrays(str(path), first, part)
    complete_chips(str(path))
    return str(path)


def make_recipe(
    folder: Path,
    chips: str,
    *,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Recipe:
    """Return a recipe that trains a small model on chips."""
    raw = recipe_content(folder, chips, model=model, training=training)
    return parse_recipe(raw, origin="test")


def recipe_content(
    folder: Path,
    chips: str,
    *,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the same as the content of a YAML file."""
    return {
        "name": "trial",
        "area": {"bbox": [0.6, 41.6, 0.61, 41.61]},
        "grid": {"crs": "EPSG:25831"},
        "source": {"kind": "simulated", "start": "2024-04-01", "end": "2024-05-01"},
        "model": model or {"name": "spinet", "bands": list(BANDS), "options": {"size": "small"}},
        "output": {"path": str(folder / "map.zarr")},
        "samples": {"path": chips, "labels": {"kind": "simulated"}},
        "training": {
            "weights": str(folder / "weights.safetensors"),
            "epochs": 2,
            "batch_chips": 4,
            "optimiser": {"learning_rate": 0.003},
            **(training or {}),
        },
    }


@contextmanager
def limit_files(size: int) -> Iterator[None]:
    """Refuse to let any file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
