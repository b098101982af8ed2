"""One simulated window with its truth, for networks to overfit."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass

import torch
from affine import Affine
from torch import Tensor

from bigmap.simulate import render_reflectance, render_truth

CRS = "EPSG:32631"
DAYS = (dt.date(2024, 4, 10), dt.date(2024, 6, 1), dt.date(2024, 7, 20))
FINE_M = 2.5


@dataclass(frozen=True)
class SimulatedWindow:
    """Inputs with a batch of one, and what they should become."""

    reflectance: Tensor
    """float32 (1, time, band, y, x)."""
    dates: Tensor
    clear: Tensor
    image: Tensor
    """float32 (1, band, y * upscale, x * upscale), of the last day."""
    cropland: Tensor
    """int64 (1, y * upscale, x * upscale)."""


@functools.cache
def make_window(
    *, bands: tuple[str, ...], upscale: int, size: int = 16, seed: int = 5
) -> SimulatedWindow:
    """Render days at 2.5 m, and average them to coarse pixels of 2.5 m * upscale."""
    fine = size * upscale
    place = Affine(FINE_M, 0, 320_000, 0, -FINE_M, 4_610_000)
    days = [
        torch.from_numpy(
            render_reflectance(CRS, place, (fine, fine), seed=seed, day=day, bands=bands)
        )
        for day in DAYS
    ]
    truth = render_truth(CRS, place, (fine, fine), seed=seed, layer="cropland")
    images = torch.stack(days)
    coarse = torch.nn.functional.avg_pool2d(images, upscale)
    return SimulatedWindow(
        coarse[None],
        torch.ones(1, len(days), dtype=torch.bool),
        torch.ones(1, len(days), size, size, dtype=torch.bool),
        images[-1:],
        torch.from_numpy(truth.astype("int64"))[None],
    )
