"""How long a model takes on this machine, from a trial of a second or two."""

from __future__ import annotations

import math
import time

import torch

from bigmap.models.base import MapModel
from bigmap.models.dry_pass import PassSize
from bigmap.models.facts import KM2_PX

TRIAL_GFLOP = 20.0
"""Of one pass of a trial: about half a second on two cores. Our choice."""
LEAST_PX, MOST_PX = 32, 192
ROUNDS = 2


def choose_trial_px(gflop_per_km2: float, multiple_px: int) -> int:
    """Return the side of a window on which a trial of a model takes about a second.

    Parameters
    ----------
    gflop_per_km2
        Of the model, without halos.
    multiple_px
        What sides of its windows are multiples of.
    """
    side_px = MOST_PX
    if gflop_per_km2 > 0:
        side_px = min(MOST_PX, int(math.sqrt(TRIAL_GFLOP / gflop_per_km2 * KM2_PX)))
    return max(LEAST_PX, 2 * multiple_px, side_px // multiple_px * multiple_px)


@torch.inference_mode()
def time_pass(model: MapModel, size: PassSize, *, threads: int) -> float:
    """Return the seconds of a pass on the CPU, the fastest of a few.

    Parameters
    ----------
    model
        As it predicts, see :func:`bigmap.mapping.engine.optimise`.
    size
        What it sees at once.
    threads
        How many it may compute with; afterwards there are as many as before.
    """
    lead, plane = (size.windows, size.dates), (size.side_px, size.side_px)
    generator = torch.Generator().manual_seed(0)
    reflectance = 0.5 * torch.rand(*lead, len(model.spec.bands), *plane, generator=generator)
    dates = torch.ones(lead, dtype=torch.bool)
    clear = torch.rand(*lead, *plane, generator=generator) < 0.8
    before, seconds = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=size.precision == "bfloat16"):
            for _ in range(ROUNDS + 1):
                start = time.perf_counter()
                model(reflectance, dates, clear)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return min(seconds[1:])  # the first prepares what later ones use again
