"""A rendered window and checks for networks that see one image."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import numpy as np
import torch
from affine import Affine

from bigmap.models.layers import fold_norms
from bigmap.simulate import render_reflectance, render_truth


@lru_cache
def render_pair(size: int, upscale: int):
    """Return an input (batch, time, band, y, x), its fine image and its cropland."""
    place = ("EPSG:32631", Affine(2.5, 0, 300_000, 0, -2.5, 4_620_000), (size, size))
    bands = ("red", "green", "blue")
    image = render_reflectance(*place, seed=1, day=dt.date(2024, 6, 1), bands=bands)
    fine = torch.from_numpy(image)[None]
    cropland = render_truth(*place, seed=1, layer="cropland").astype(np.int64)
    coarse = torch.nn.functional.avg_pool2d(fine, upscale)
    return coarse[:, None], fine, torch.from_numpy(cropland)[None]


def all_clear(reflectance):
    batch, time, _, height, width = reflectance.shape
    return torch.ones(batch, time, dtype=torch.bool), torch.ones(
        batch, time, height, width, dtype=torch.bool
    )


def compute(model, reflectance):
    return model.compute(reflectance, *all_clear(reflectance))


def compare_tiles(model, windows, *, size):
    """Assert that windows (row, column, height, width) have the bits of the whole image."""
    fold_norms(model.eval())
    spec = model.spec
    halo = -(-spec.halo_px // spec.multiple_px) * spec.multiple_px
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, len(spec.bands), size, size, generator=generator) * 0.5
    with torch.inference_mode():
        whole = compute(model, image)
        for row, col, height, width in windows:
            part = compute(model, image[..., row : row + height, col : col + width])
            assert min(height, width) > 2 * halo
            for name, values in part.items():
                top, left, bottom, right = (
                    side * spec.upscale
                    for side in (row + halo, col + halo, row + height - halo, col + width - halo)
                )
                edge = halo * spec.upscale
                inside = values[..., edge:-edge, edge:-edge]
                assert torch.equal(inside, whole[name][..., top:bottom, left:right]), name


def measure_reach(network, *, bands: int, size: int, pixel: tuple[int, int]) -> int:
    """Return how far an output pixel's gradient reaches, in pixels of the input around it.

    Gradients in float64: those that pass many layers vanish in float32.
    """
    network = network.double().eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, bands, size, size, generator=generator, dtype=torch.float64) + 1
    image.requires_grad_()
    result = network(image)
    upscale = result.shape[-1] // size
    result[..., pixel[0], pixel[1]].sum().backward()
    rows, cols = image.grad.abs().sum(dim=(0, 1)).nonzero().T
    centre = [each // upscale for each in pixel]
    return max(int((rows - centre[0]).abs().max()), int((cols - centre[1]).abs().max()))
