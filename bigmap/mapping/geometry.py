"""Sides of windows: little is computed twice, in a memory that a laptop has.

Bytes depend on the core, so it follows from the model and the recipe alone: a map that one machine
begins, another can go on with.
"""

from __future__ import annotations

from dataclasses import replace

from bigmap.grid import Lattice
from bigmap.mapping.engine import optimise
from bigmap.mapping.windows import Windowing
from bigmap.models import MapModel, ModelSpec
from bigmap.models.dry_pass import PassSize, count_pass_bytes

LEAST_CORE_PX = 32
MOST_CORE_PX = 512
"""Larger windows save little more, and their arrays leave every cache. Our choice."""
PASS_GB = 6.0
"""What one window may take of a worker, computed in float32; our choice."""


def choose_windows(
    lattice: Lattice, model: MapModel, windowing: Windowing, *, dates: int, core_px: int | None
) -> Lattice:
    """Return a lattice with cores of the side that is asked for, or else of the best.

    The best is the one with which the fewest pixels are computed for each that is kept, of those
    whose windows take no more than :data:`PASS_GB`; where none does, the smallest.

    Parameters
    ----------
    lattice
        Its cells and blocks count.
    model
        Its halo decides, and what a pass takes.
    windowing
        Where it blends, cores lie half a core off the blocks.
    dates
        The most that a cell is mapped from.
    core_px
        Obeyed where it is given.
    """
    spec = model.spec
    if core_px is not None:
        return _with_core(lattice, spec, windowing, core_px)
    sides = [2**power for power in range(1, 16)]
    least, most = max(LEAST_CORE_PX, spec.multiple_px), min(MOST_CORE_PX, lattice.cell_px)
    cut = [
        _with_core(lattice, spec, windowing, side)
        for side in sides
        if min(least, most) <= side <= most and side % spec.multiple_px == 0
    ]
    cut.sort(key=lambda each: count_computed(each, spec, windowing))
    for each in cut:
        side_px = each.core_px + 2 * windowing.halo_px(spec, each)
        if count_pass_bytes(optimise(model), PassSize(1, dates, side_px)) <= PASS_GB * 1e9:
            return each
    return min(cut, key=lambda each: each.core_px)


def count_computed(lattice: Lattice, spec: ModelSpec, windowing: Windowing) -> float:
    """Return the pixels computed for each that is kept of a whole block."""
    side_px = lattice.core_px + 2 * windowing.halo_px(spec, lattice)
    cores = lattice.block_px / lattice.core_px
    # Along an axis: a window more at each end, unless one alone reaches over the border.
    start, blend_px = lattice.shift_px, windowing.blend_px(lattice)
    ends = ((start - blend_px) // lattice.core_px, -(-(start + blend_px) // lattice.core_px))
    cut = ends[1] - ends[0] if blend_px else 0
    return float(((cores + cut) * side_px / lattice.block_px) ** 2)


def _with_core(lattice: Lattice, spec: ModelSpec, windowing: Windowing, core_px: int) -> Lattice:
    """Return a lattice with another core; half of it is moved to where windows may begin."""
    cut = replace(lattice, core_px=core_px, shift_px=0)
    if windowing.overlap != "blend":
        return cut
    half_px = core_px // 2 // spec.multiple_px * spec.multiple_px
    return replace(cut, shift_px=half_px + windowing.halo_px(spec, cut) % spec.multiple_px)
