"""What the tests of the segmentation networks share: a simulated window, training, windows."""

from __future__ import annotations

import datetime as dt
from functools import lru_cache

import torch
import torch.nn.functional as F
from affine import Affine

from bigmap.simulate import render_reflectance, render_truth

DAY = dt.date(2024, 5, 8)
CRS, SEED, CORNER = "EPSG:32631", 3, (450_000, 4_590_000)


@lru_cache
def simulate_window(*, upscale, side, bands, layer):
    """Return reflectance (1, 1, band, y, x) at 10 m, the image and the truth at 10 m / upscale.

    2.5 m is averaged to the grids of the images; the truth is that of the pixel's first 2.5 m.
    """
    place = (CRS, Affine(2.5, 0, CORNER[0], 0, -2.5, CORNER[1]), (4 * side, 4 * side))
    image = torch.from_numpy(render_reflectance(*place, seed=SEED, day=DAY, bands=bands))
    truth = torch.from_numpy(render_truth(*place, seed=SEED, layer=layer).astype("int64"))
    factor = 4 // upscale
    noise = torch.randn(len(bands), side, side, generator=torch.Generator().manual_seed(1)) * 0.002
    return (
        (F.avg_pool2d(image, 4) + noise)[None, None],
        F.avg_pool2d(image, factor)[None],
        truth[None, ::factor, ::factor],
    )


def make_inputs(model, *, size, time=1, batch=1, seed=0):
    """Return random reflectance, all dates valid, all pixels clear."""
    generator = torch.Generator().manual_seed(seed)
    bands = len(model.spec.bands)
    reflectance = torch.rand(batch, time, bands, *size, generator=generator) * 0.5
    return (
        reflectance,
        torch.ones(batch, time, dtype=torch.bool),
        torch.ones(batch, time, *size, dtype=torch.bool),
    )


def clear_inputs(reflectance):
    """Return reflectance with all dates valid and all pixels clear."""
    batch, time, _, height, width = reflectance.shape
    return (
        reflectance,
        torch.ones(batch, time, dtype=torch.bool),
        torch.ones(batch, time, height, width, dtype=torch.bool),
    )


def encode_classes(truth, legend):
    """Turn values of a legend into the positions of their classes."""
    codes = torch.zeros_like(truth)
    for index, entry in enumerate(legend):
        codes[truth == entry.value] = index
    return codes


def classify_loss(logits, classes):
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], classes.float())
    return F.cross_entropy(logits, classes)


def cut_chips(values, places, size):
    return torch.cat([values[..., y : y + size, x : x + size] for y, x in places])


def train(model, reflectance, classes, *, steps, chip, batch=4, rate=3e-3, image=None, seed=0):
    """Train on random chips of a window; return the losses of all steps.

    One thread, as the order of sums, and so the trained network, depends on their number.
    """
    torch.set_num_threads(1)
    model.train()
    upscale = model.spec.upscale
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    losses = []
    for _ in range(steps):
        high = reflectance.shape[-1] - chip + 1
        places = torch.randint(high, (batch, 2), generator=generator).tolist()
        fine = [(y * upscale, x * upscale) for y, x in places]
        outputs = model.compute(*clear_inputs(cut_chips(reflectance, places, chip)))
        loss = classify_loss(outputs["logits"], cut_chips(classes, fine, chip * upscale))
        if image is not None:
            wanted = cut_chips(image, fine, chip * upscale)
            deviation = model.statistics.std[:, None, None]
            loss = loss + F.mse_loss(outputs["image"] / deviation, wanted / deviation)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    everywhere = range(0, high, max(chip // 2, 1))
    settle_norms(
        model, [cut_chips(reflectance, [(y, x) for x in everywhere], chip) for y in everywhere]
    )
    return losses


@torch.no_grad()
def settle_norms(model, batches):
    """Take the statistics of normalisations from some batches, and switch to evaluation.

    Running means of a short training still hold its first steps, and lag behind its last ones.
    """
    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches:
        model.compute(*clear_inputs(batch))
    model.eval()


def measure_mcc(probability, classes):
    """Return the multi-class Matthews correlation of a map with its truth (Gorodkin 2004)."""
    count = probability.shape[1]
    predicted = probability.argmax(dim=1).flatten()
    table = torch.bincount(classes.flatten() * count + predicted, minlength=count**2)
    table = table.reshape(count, count).double()
    right, total = table.trace(), table.sum()
    truth, guess = table.sum(dim=1), table.sum(dim=0)
    spread = (total**2 - guess.square().sum()) * (total**2 - truth.square().sum())
    return ((right * total - truth @ guess) / spread.sqrt()).item()


@torch.inference_mode()
def compare_windows(model, reflectance, *, core, halo, layer="probability"):
    """Return the mean absolute difference of scores of windows and of the whole, core by core.

    Windows whose halo lies within the image, on a lattice of the cores.
    """
    upscale = model.spec.upscale
    whole = model(*clear_inputs(reflectance))[layer]
    differences = []
    first = -(-halo // core) * core
    for y in range(first, reflectance.shape[-2] - core - halo + 1, core):
        for x in range(first, reflectance.shape[-1] - core - halo + 1, core):
            rows, cols = (slice(at - halo, at + core + halo) for at in (y, x))
            part = model(*clear_inputs(reflectance[..., rows, cols]))[layer]
            inner = slice(halo * upscale, (halo + core) * upscale)
            fine = [slice(at * upscale, (at + core) * upscale) for at in (y, x)]
            differences.append(
                (part[..., inner, inner] - whole[..., fine[0], fine[1]]).abs().mean()
            )
    return [each.item() for each in differences]


@torch.inference_mode()
def measure_shift(model, reflectance, *, size, steps, margin=48):
    """Return how far windows moved by each of some steps differ from one at the origin.

    The mean absolute difference of the scores that all windows have ``margin`` within them.
    """
    upscale = model.spec.upscale
    inner = size - margin - max(steps)

    def score(step):
        window = reflectance[..., step : step + size, step : step + size]
        fine = slice((margin - step) * upscale, (inner - step) * upscale)
        return model(*clear_inputs(window))["probability"][..., fine, fine]

    first = score(0)
    return [(score(step) - first).abs().mean().item() for step in steps]
