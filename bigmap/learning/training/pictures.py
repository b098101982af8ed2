"""Sample predictions as PNG: what goes in, what is wanted, what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigmap.learning.chips import UNLABELLED
from bigmap.learning.training.batches import Batch, to_reflectance
from bigmap.learning.training.validating import predict_classes
from bigmap.models import ModelSpec

RGB = ("red", "green", "blue")
SIDE_INCHES = 2.5
MISSING = "#ffffff"
FloatArray = npt.NDArray[np.float32]


def draw_samples(file: Path, batch: Batch, outputs: dict[str, Tensor], spec: ModelSpec) -> None:
    """Draw chips in rows: the clearest date, then labels and classes, then target and image.

    Colours are red, green and blue where the bands have them, else the first three; each row is
    stretched between the 2nd and 98th percentile of its input.

    Parameters
    ----------
    file
        A PNG.
    batch, outputs
        Of the chips, on the CPU.
    spec
        Of the model.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and few commands draw

    image_bands = next(
        (each.channels for each in spec.extra_layers if each.name == "image"), spec.bands
    )
    rows = [_list_panels(batch, outputs, spec, image_bands, row) for row in range(len(batch))]
    size = (SIDE_INCHES * len(rows[0]), SIDE_INCHES * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for line, panels in zip(axes, rows, strict=True):
        for axis, (title, image, colours) in zip(line, panels, strict=True):
            axis.imshow(image, interpolation="nearest", **colours)
            axis.set_title(title, fontsize=8)
            axis.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png")


def _list_panels(
    batch: Batch,
    outputs: dict[str, Tensor],
    spec: ModelSpec,
    image_bands: tuple[str, ...],
    row: int,
) -> list[tuple[str, npt.NDArray[Any], dict[str, Any]]]:
    best = int(batch.clear[row].sum(dim=(1, 2)).argmax())
    given = batch.prepare(torch.zeros(len(spec.bands)))[row, best].numpy()
    low, high = np.percentile(_pick(given, spec.bands), (2, 98))

    def stretch(image: FloatArray, bands: tuple[str, ...]) -> FloatArray:
        shown = (_pick(image, bands) - low) / max(high - low, 1e-6)
        clipped: FloatArray = np.clip(np.moveaxis(shown, 0, -1), 0, 1).astype(np.float32)
        return clipped

    panels: list[tuple[str, npt.NDArray[Any], dict[str, Any]]] = [
        (f"chip {batch.chips[row]}, clearest date", stretch(given, spec.bands), {})
    ]
    if batch.labels is not None and "logits" in outputs:
        colours = _colour_classes(spec)
        labels = batch.labels[row].numpy().astype(np.int64)
        labels[labels == UNLABELLED] = len(spec.legend)
        found = predict_classes(outputs["logits"][row : row + 1])[0].numpy()
        panels += [("labels", labels, colours), ("prediction", found, colours)]
    if batch.target is not None and "image" in outputs:
        target = to_reflectance(batch.target[row]).numpy()
        image = outputs["image"][row].float().numpy()
        panels += [("target", stretch(target, image_bands), {}),
                   ("prediction", stretch(image, image_bands), {})]  # fmt: skip
    return panels


def _pick(image: FloatArray, bands: tuple[str, ...]) -> FloatArray:
    """Choose three bands of (band, y, x), or one three times."""
    if set(RGB) <= set(bands):
        return image[[bands.index(band) for band in RGB]]
    return image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)


def _colour_classes(spec: ModelSpec) -> dict[str, Any]:
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 - as above

    colours = ListedColormap([*(entry.colour for entry in spec.legend), MISSING])
    return {"cmap": colours, "vmin": -0.5, "vmax": len(spec.legend) + 0.5}
