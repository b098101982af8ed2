"""What the tests of the image models share: a simulated window, tiling, and reach."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import torch
import torch.nn.functional as F
from affine import Affine

from bigmap.simulate import render_reflectance

DAYS = (dt.date(2024, 4, 3), dt.date(2024, 5, 8), dt.date(2024, 5, 28), dt.date(2024, 6, 12))


@lru_cache
def simulate_window(*, upscale, dates, side=24, bands=("red", "green", "blue")):
    """Return dates (1, time, band, y, x) at 10 m and the image of the first at 10 m / upscale.

    Dates differ by the season and by a noise of 0.002; 2.5 m is averaged to the grids.
    """
    corner = Affine(2.5, 0, 450_000, 0, -2.5, 4_590_000)
    factor = 4 // upscale
    images = [
        torch.from_numpy(
            render_reflectance(
                "EPSG:32631", corner, (4 * side, 4 * side), seed=3, day=day, bands=bands
            )
        )
        for day in DAYS[:dates]
    ]
    coarse = torch.stack([F.avg_pool2d(image, 4) for image in images])
    noise = torch.randn(coarse.shape, generator=torch.Generator().manual_seed(1)) * 0.002
    target = F.avg_pool2d(images[0], factor) if factor > 1 else images[0]
    return (coarse + noise)[None], target[None]


def make_dates(*, time, bands=3, size=(24, 24), batch=1, seed=0):
    """Return random reflectance, all dates valid, all pixels clear."""
    generator = torch.Generator().manual_seed(seed)
    reflectance = torch.rand(batch, time, bands, *size, generator=generator) * 0.5
    return (
        reflectance,
        torch.ones(batch, time, dtype=torch.bool),
        torch.ones(batch, time, *size, dtype=torch.bool),
    )


def overfit(model, reflectance, target, *, steps, rate=1e-2):
    """Train on one window with the mean squared error; return its first and last value."""
    model.train()
    dates = torch.ones(reflectance.shape[:2], dtype=torch.bool)
    clear = torch.ones(reflectance.shape[:2] + reflectance.shape[3:], dtype=torch.bool)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model.compute(reflectance, dates, clear)["image"], target)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def differing_windows(model, inputs, *, core, origins):
    """Return the origins of windows whose image differs, in any bit, from the whole image's."""
    reflectance, dates, clear = inputs
    halo, upscale = model.spec.halo_px, model.spec.upscale
    differing = []
    with torch.inference_mode():
        whole = model(*inputs)["image"]
        for row, col in origins:
            rows, cols = (slice(at, at + core + 2 * halo) for at in (row, col))
            part = model(reflectance[..., rows, cols], dates, clear[..., rows, cols])["image"]
            inner = slice(halo * upscale, (halo + core) * upscale)
            top, left = (row + halo) * upscale, (col + halo) * upscale
            size = core * upscale
            wanted = whole[..., top : top + size, left : left + size]
            if not torch.equal(part[..., inner, inner], wanted):
                differing.append((row, col))
    return differing


def measure_reach(model, *, time, side):
    """Return how far, in input pixels, any output pixel of one input pixel looks."""
    reflectance, dates, clear = make_dates(time=time, bands=len(model.spec.bands), size=(side,) * 2)
    model = model.double().eval()
    reflectance = reflectance.double().requires_grad_()
    middle, upscale = side // 2, model.spec.upscale
    fine = slice(middle * upscale, (middle + 1) * upscale)
    model(reflectance, dates, clear)["image"][0, 0, fine, fine].sum().backward()
    touched = reflectance.grad.abs().sum(dim=(0, 1, 2)).nonzero() - middle
    return touched.abs().max().item()
