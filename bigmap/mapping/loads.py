"""What a plan will take: bytes, pixels, and the memory of a worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import shapely

from bigmap import grid
from bigmap.errors import PlanError
from bigmap.mapping.engine import Engine, optimise
from bigmap.mapping.plans import Part, Plan
from bigmap.mapping.worker_memory import (
    APPLYING_BYTES,
    PREPARED_BYTES,
    SAMPLING_BYTES,
    CanvasLoad,
    CellLoad,
    count_peak_bytes,
)
from bigmap.models.dry_pass import PassSize, count_pass_bytes
from bigmap.models.layers import count_weight_bytes
from bigmap.scenes.cube.reading import FETCHED_BYTES
from bigmap.scenes.items import AssetRow

WEIGHT_COPIES = 3
"""In a worker: as the model is trained, as it predicts, and as kernels lay them out."""
PASS_SCRATCH = 1.05
"""What kernels take beside their tensors; our choice. Without it and the third copy of weights, the
largest networks took 2 to 4 % more than was said (hrnet and sr-hrnet, full, one window of 2 dates).
"""
COMPILER_BYTES = 100e6
"""Of Numba and what it compiled, for resampling and for models: measured, 0.06 GB to import and
at most 0.09 GB with its loops. Our choice, with which estimates fit what workers took."""
RESAMPLING_PLANS = 6
"""Kept for the grids of the files that cells in hand lie in."""
COUNTED_BLOCKS = 64
"""Whose cells and windows are counted one by one; the others read as much for each pixel."""


@dataclass(frozen=True)
class _Reads:
    """Pixels for each pixel of blocks, at the resolution of the input."""

    bands: float
    masks: float
    windows: float
    """Those that the model sees, halos included."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take, before anything is spent."""

    area_km2: float
    blocks: int
    items: int
    dates: int
    read_gb: float
    """Uncompressed size of what is read at native resolution, windows' overlap included."""
    written_gb: float
    """Uncompressed size of the map without overviews."""
    memory_gb: float
    """Peak memory of one worker."""
    samples: float
    """Values of bands and masks to read, each at its own resolution."""
    output_px: float
    date_px: float
    """Input pixels that the model sees, halos included, counted once for each date."""
    block_km2: float
    """Area of the blocks, what lies outside the area included."""
    window_km2: float
    """Area of the windows that the model sees for them, halos and what blends included."""


def estimate_plan(plan: Plan) -> Estimate:
    """Estimate what a run will take; an item that two parts read counts twice, a date once."""
    found = [estimate_part(part) for part in plan.parts]
    sums = {field.name: sum(getattr(each, field.name) for each in found)
            for field in fields(Estimate)}  # fmt: skip
    days = [part.catalogue.rows.column("solar_day") for part in plan.parts]
    return replace(
        Estimate(**sums),
        dates=len(np.unique(np.concatenate(days))),
        memory_gb=max(each.memory_gb for each in found),
    )


def estimate_part(part: Part) -> Estimate:
    """Estimate what one part of a run will take."""
    lattice, spec, per_px = part.lattice, part.model.spec, _count_reads(part)
    pixel_m = {name: abs(a.transform[0]) for name, a in part.catalogue.rows[0].assets.items()}
    native = sum((lattice.gsd_m / pixel_m[band]) ** 2 for band in spec.bands)
    mask_m = pixel_m.get(part.reading.mask.asset or "", math.inf)
    rows, cols = np.array([grid.shape_of(block) for block in part.blocks]).T
    input_px = float((rows * cols).sum())
    per_block = _count_items(part, np.array(lattice.bounds_of(part.blocks)), whole=False)
    most_dates = part.purpose.dates.max_per_cell
    date_px = float((rows * cols * np.minimum(per_block, most_dates)).sum())
    item_px = float((rows * cols * per_block).sum())
    samples = date_px * per_px.bands * native
    masked = item_px * per_px.masks * (lattice.gsd_m / mask_m) ** 2
    output_px = input_px * lattice.upscale**2
    return Estimate(
        area_km2=part.area.area_km2,
        blocks=len(part.blocks),
        items=len(part.catalogue.rows),
        dates=_count_dates(part)[0],
        read_gb=(2 * samples + masked) / 1e9,
        written_gb=output_px * _layer_bytes(part) / 1e9,
        memory_gb=count_memory_gb(part),
        samples=samples + masked,
        output_px=output_px,
        date_px=date_px * per_px.windows,
        block_km2=input_px * lattice.gsd_m**2 / 1e6,
        window_km2=per_px.windows * input_px * lattice.gsd_m**2 / 1e6,
    )


def most_items(part: Part) -> int:
    """Return how many items a cell reads the masks of, at most."""
    if not len(part.catalogue.rows):
        return 0
    margin_m = part.halo_px * part.lattice.gsd_m
    boxes = part.lattice.bounds_of(part.blocks) + margin_m * np.array((-1, -1, 1, 1))
    return int(_count_items(part, boxes, whole=True).max(initial=0))


def count_memory_gb(part: Part) -> float:
    """Estimate a worker's peak memory: each block in hand, and one that predicts."""
    lattice, spec, (days, dates) = part.lattice, part.model.spec, _count_dates(part)
    masks = most_items(part)
    cell = CellLoad(
        pixels=(lattice.cell_px + 2 * part.halo_px) ** 2,
        bands=len(spec.bands),
        dates=dates,
        items=dates * math.ceil(masks / max(days, 1)),
        masks=masks,
    )
    canvas = CanvasLoad(
        (lattice.block_px * lattice.upscale) ** 2,
        spec,
        part.layers,
        blended=4 * part.windowing.blend_px(lattice) / lattice.core_px,
    )
    shared = (
        WEIGHT_COPIES * count_weight_bytes(part.model)
        + _resampling_bytes(part, cell)
        + COMPILER_BYTES
        + FETCHED_BYTES * part.is_remote
    )
    peak = count_peak_bytes(
        cell,
        canvas,
        pass_bytes=_pass_bytes(part, dates),
        shared_bytes=shared,
        blocks=part.sizes.blocks,
    )
    return peak / 1e9


def check_memory(part: Part) -> None:
    """Refuse what does not fit into the memory of a worker.

    Raises
    ------
    PlanError
        If it does not.
    """
    need_gb, limit_gb = count_memory_gb(part), part.sizes.memory_gb
    if need_gb > limit_gb:
        raise PlanError(
            f"cluster: a worker needs about {need_gb:.1f} GB but has {limit_gb:.1f} GB; lower "
            "grid.core_px, grid.block_px, dates.max_per_cell, inference.batch_windows or "
            "cluster.blocks_per_worker, or use fewer workers"
        )


def _count_reads(part: Part) -> _Reads:
    """Count what blocks read and predict: neighbours too where these blend."""
    engine = Engine(part.model, part.lattice, part.windowing, part.layers)
    blocks = part.blocks[:: math.ceil(len(part.blocks) / COUNTED_BLOCKS)]
    bands = masks = windows = 0
    for block in blocks:
        for cell, cores, window in engine.list_reads(block, is_wanted=part.is_wanted):
            bands += math.prod(grid.shape_of(window))
            masks += math.prod(grid.shape_of(grid.hull([cell, window])))
            windows += len(cores) * (part.lattice.core_px + 2 * part.halo_px) ** 2
    input_px = sum(math.prod(grid.shape_of(block)) for block in blocks)
    return _Reads(bands / input_px, masks / input_px, windows / input_px)


def _count_dates(part: Part) -> tuple[int, int]:
    """Return the number of dates, and how many of them a cell uses at most."""
    dates = len(np.unique(part.catalogue.rows.column("solar_day")))
    return dates, min(part.purpose.dates.max_per_cell, max(dates, 1))


def _count_items(
    part: Part, boxes: npt.NDArray[np.float64], *, whole: bool
) -> npt.NDArray[np.intp]:
    """Count the items that meet boxes, (n, 4), or only their middles."""
    left, bottom, right, top = boxes.T
    middles = shapely.points((left + right) / 2, (bottom + top) / 2)
    tree, indices = part.footprints
    box, place = tree.query(shapely.box(*boxes.T) if whole else middles, "intersects")
    lengths = np.array([len(each) for each in indices], dtype=float)
    counts = np.bincount(box, weights=lengths[place], minlength=len(boxes))
    return counts.astype(np.intp)


def _layer_bytes(part: Part) -> int:
    """Return the size of an output pixel, all layers together."""
    return sum(
        np.dtype(layer.dtype).itemsize * max(1, len(layer.channels)) for layer in part.layers
    )


def _pass_bytes(part: Part, dates: int) -> float:
    """Return what the heap takes for a batch of windows; on a GPU it is the GPU's memory."""
    if part.windowing.device == "cuda":
        return 0.0
    lattice = part.lattice
    size = PassSize(
        windows=min(part.windowing.batch_windows, (lattice.cell_px // lattice.core_px) ** 2),
        dates=dates,
        side_px=lattice.core_px + 2 * part.halo_px,
        precision=part.windowing.precision,
    )
    samples = size.windows * dates * len(part.model.spec.bands) * size.side_px**2
    tensors = PASS_SCRATCH * count_pass_bytes(optimise(part.model), size)
    return part.model.heap_share * max(tensors, PREPARED_BYTES * samples)


def _resampling_bytes(part: Part, cell: CellLoad) -> float:
    """Return what plans of resampling take, and threads that apply them."""
    method = SAMPLING_BYTES[part.reading.resampling]
    assets: list[AssetRow] = [a for row in part.catalogue.rows[:1] for a in row.assets.values()]
    # Finer files are read with all they hold below a cell.
    finer = max([1.0, *((part.lattice.gsd_m / abs(a.transform[0])) ** 2 for a in assets)])
    threads = part.reading.threads * part.sizes.blocks
    return cell.pixels * (RESAMPLING_PLANS * method + threads * (APPLYING_BYTES + 8 * (finer - 1)))
