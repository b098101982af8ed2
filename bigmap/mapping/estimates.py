"""Plan -> hours on each kind of cluster and their cost, with all that is assumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bigmap.clusters.sizes import ClusterSizes, size_cluster
from bigmap.config import Recipe
from bigmap.config.loading import list_clusters, load_cluster
from bigmap.errors import BigmapError
from bigmap.mapping.engine import optimise
from bigmap.mapping.loads import Estimate
from bigmap.mapping.places import list_changes
from bigmap.mapping.purpose import FREE_FIELDS
from bigmap.mapping.run_folder import RunFolder
from bigmap.models.base import MapModel
from bigmap.models.devices import EMULATED_BFLOAT16, SLOW_BFLOAT16, has_bfloat16
from bigmap.models.dry_pass import PassSize
from bigmap.models.facts import COUNTED_DATES, KM2_PX, count_gflop_per_km2
from bigmap.models.trial import choose_trial_px, time_pass

CORE_GFLOPS = {"float32": 24.0, "bfloat16": 67.0}
"""Of one CPU core: measured on the attention of one model, 2 cores of an AMD EPYC."""
GPU_GFLOPS = {"float32": 5_000.0, "bfloat16": 40_000.0}
"""Of one GPU: a quarter and an eighth of the peak of an A100; our choice, not measured."""
READ_CORE_S = 0.06
"""CPU time to decode, place and mask a million samples."""
FINISH_CORE_S = 0.23
"""CPU time to upsample and classify a million output pixels; a GPU does it beside the rest."""
WRITE_CORE_S = 0.05
"""CPU time to compress, write and read back a million output pixels."""
REMOTE_MB_S = 100.0
LOCAL_MB_S = 500.0
"""What a worker reads in a second, uncompressed; our choice. A file is about half as large."""
OVERVIEW_CORE_S = 0.05
"""CPU time to read, halve and write a million pixels of three layers; all levels are a third."""
START_S = 12.0
"""Until driver and then workers have imported all they need, about 6 s of CPU time each."""
UNCOUNTED = ("cluster", "output", "area", "source", "title", "name")
"""Settings that leave the speed of a block as it is, or nearly so."""


@dataclass(frozen=True)
class Measured:
    """What blocks of an earlier run took."""

    output: str
    blocks: int
    device: str
    block_s_per_km2: float
    """Time of a block from start to end, for each square kilometre that it mapped."""


@dataclass(frozen=True)
class ModelLoad:
    """What the model takes for a whole map."""

    gflop: float
    precision: Literal["float32", "bfloat16"]
    trial: Trial | None = None
    """Of this machine; None where no cluster is local, or an earlier run tells more."""

    def core_s(self, sizes: ClusterSizes) -> float:
        """Return its seconds on one core of a cluster."""
        if self.trial is not None and sizes.is_like_driver:
            return self.trial.core_s
        return self.gflop / CORE_GFLOPS[self.precision]


@dataclass(frozen=True)
class Trial:
    """What a window took on this machine, and what the map takes at this speed."""

    side_px: int
    dates: int
    threads: int
    seconds: float
    core_s: float
    """Of the whole map on one core."""


@dataclass(frozen=True)
class ClusterEstimate:
    """What a map takes on one cluster."""

    name: str
    kind: str
    device: str
    workers: int
    cores: float
    """Of one worker."""
    hours: float
    gpu_hours: float
    cost: float | None
    """In the currency of the price; None without a price or a GPU."""
    km2_per_hour: float
    bound: str
    """What takes most of the time: ``reading``, ``CPU cores`` or ``GPU``; or ``measured``."""


def estimate_clusters(
    recipe: Recipe,
    model: MapModel,
    estimate: Estimate,
    *,
    is_remote: bool,
    price_per_gpu_hour: float | None = None,
) -> tuple[list[ClusterEstimate], list[str]]:
    """Estimate the hours of a map on the recipe's cluster and on all that have a name here.

    Parameters
    ----------
    recipe
        Its cluster comes first; its precision decides the speed of the model.
    model
        Its operations are counted on a small window.
    estimate
        What is read, seen by the model and written.
    is_remote
        Whether the scenes lie behind a network.
    price_per_gpu_hour
        In any currency.

    Returns
    -------
    clusters, assumptions
        One estimate for each cluster, and all assumed rates as sentences.
    """
    # The counter runs 12 dates, or as many as the model is built for.
    counted = min(COUNTED_DATES, model.spec.max_dates or COUNTED_DATES)
    gflop_per_km2 = count_gflop_per_km2(model)
    gflop = gflop_per_km2 / KM2_PX / counted * estimate.date_px
    measured = find_measured(recipe)
    clusters = [("recipe", size_cluster(recipe.cluster)), *_named_clusters()]
    like_driver = [sizes for _, sizes in clusters if sizes.is_like_driver]
    trial = None
    if measured is None and like_driver:
        trial = try_model(
            recipe, model, estimate,
            gflop_per_km2=gflop_per_km2, threads=like_driver[0].threads,
        )  # fmt: skip
    load = ModelLoad(gflop, recipe.inference.precision, trial)
    found = [
        _estimate_cluster(
            name, sizes, load, estimate, mb_s=REMOTE_MB_S if is_remote else LOCAL_MB_S,
            measured=measured, price=price_per_gpu_hour,
            wants_cpu=recipe.inference.device == "cpu",
        )
        for name, sizes in clusters
    ]  # fmt: skip
    return found, _describe_assumptions(load, measured, is_remote=is_remote)


def try_model(
    recipe: Recipe, model: MapModel, estimate: Estimate, *, gflop_per_km2: float, threads: int
) -> Trial:
    """Time a small window on this machine, with the threads that a worker of it has."""
    dates = max(1, min(estimate.dates, recipe.dates.max_per_cell))
    precision = recipe.inference.precision
    cost = gflop_per_km2 * dates / COUNTED_DATES
    if precision == "bfloat16" and not has_bfloat16():
        cost *= EMULATED_BFLOAT16
    side_px = choose_trial_px(cost, model.spec.multiple_px)
    size = PassSize(1, dates, side_px, precision)
    seconds = time_pass(optimise(model), size, threads=threads)
    core_s = seconds * threads / (dates * side_px**2) * estimate.date_px
    return Trial(side_px, dates, threads, seconds, core_s)


def emulates_bfloat16(recipe: Recipe) -> bool:
    """Tell whether a run computes in bfloat16 on this machine's processor, which emulates it."""
    is_here = recipe.cluster.kind == "local"
    return is_here and recipe.inference.precision == "bfloat16" and not has_bfloat16()


def _named_clusters() -> list[tuple[str, ClusterSizes]]:
    found = []
    for name, file in list_clusters().items():
        try:
            found.append((name, size_cluster(load_cluster(file or name))))
        except BigmapError:
            continue  # `bigmap cluster list` says what is wrong with it
    return found


def find_measured(recipe: Recipe) -> Measured | None:
    """Return what the blocks of an earlier run of this recipe took, None where there are none."""
    folder = RunFolder(recipe.output.path)
    try:
        if not folder.exists():
            return None
        stored, _ = folder.read_recipe()
        records = [
            record
            for name in folder.parts()
            for record in folder.part(name).ledger.latest().values()
            if record.state in ("done", "degraded")
        ]
    except BigmapError:
        return None
    if list_changes(stored, recipe, (*FREE_FIELDS, *UNCOUNTED)):
        return None
    # Copied blocks took no time, and tell nothing.
    records = [record for record in records if record.seconds and record.mapped_km2]
    if not records:
        return None
    device = Counter(record.device for record in records).most_common(1)[0][0]
    records = [record for record in records if record.device == device]
    seconds = sum(sum(record.seconds.values()) for record in records)
    mapped_km2 = sum(record.mapped_km2 for record in records)
    return Measured(folder.output, len(records), device, seconds / mapped_km2)


def _estimate_cluster(
    name: str, sizes: ClusterSizes, load: ModelLoad, estimate: Estimate, *,
    mb_s: float, measured: Measured | None, price: float | None, wants_cpu: bool,
) -> ClusterEstimate:  # fmt: skip
    workers, cores = sizes.workers, sizes.cores
    has_gpu = sizes.has_gpu and not wants_cpu
    core_s = (READ_CORE_S * estimate.samples + WRITE_CORE_S * estimate.output_px) / 1e6
    seconds = {"reading": 1e3 * estimate.read_gb / mb_s}
    if has_gpu:
        gpu_s = load.gflop / GPU_GFLOPS[load.precision]
        seconds |= {"CPU cores": core_s / cores, "GPU": gpu_s}
    else:
        core_s += FINISH_CORE_S * estimate.output_px / 1e6 + load.core_s(sizes)
        seconds["CPU cores"] = core_s / cores
    device = "cuda" if has_gpu else "cpu"
    if measured is not None and measured.device == device:
        spent = measured.block_s_per_km2 * estimate.area_km2
        seconds = {"measured": spent / sizes.blocks}
    # Blocks overlap: one reads while another predicts, so the slowest part decides.
    bound = max(seconds, key=lambda part: seconds[part])
    hours = seconds[bound] / workers / 3600
    if sizes.is_like_driver:
        overviews_s = OVERVIEW_CORE_S * estimate.output_px / 1e6 * 4 / 3 / cores / workers
        hours += (START_S + overviews_s) / 3600
    gpu_hours = hours * workers if has_gpu else 0.0
    cost = price * gpu_hours if price is not None and has_gpu else None
    return ClusterEstimate(
        name, sizes.kind, device, workers, cores, hours, gpu_hours, cost,
        km2_per_hour=estimate.area_km2 / hours, bound=bound,
    )  # fmt: skip


def _describe_assumptions(
    load: ModelLoad, measured: Measured | None, *, is_remote: bool
) -> list[str]:
    where, mb_s = ("remote", REMOTE_MB_S) if is_remote else ("local", LOCAL_MB_S)
    lines = [
        (
            f"the model takes {load.gflop / 1e3:,.1f} TFLOP in all; a core elsewhere does "
            f"{CORE_GFLOPS[load.precision]:g} GFLOP/s in {load.precision}, a GPU "
            f"{GPU_GFLOPS[load.precision]:,g} "
            "(assumed, a part of an A100's peak)"
        ),
        f"a worker reads {mb_s:g} MB/s uncompressed from {where} files (assumed)",
        (
            f"a core takes {READ_CORE_S:g} s to read a million samples, {WRITE_CORE_S:g} s to "
            f"write a million output pixels and, without a GPU, {FINISH_CORE_S:g} s to classify "
            "them (benchmarks/results, end to end, 2 cores)"
        ),
        (
            "reading, cores and GPU work beside each other: the slowest decides; all workers "
            "are there from the start; queues and failures are left out, and overviews where it is "
            "not this machine"
        ),
        f"on this machine driver and workers take {START_S:g} s to start",
        "an existing cluster is counted with one worker",
    ]
    if (trial := load.trial) is not None:
        lines.append(
            f"tried on this machine: a window of {trial.side_px} px with {trial.dates} dates took "
            f"{trial.seconds:.2g} s on {trial.threads} threads; used for workers of this machine"
        )
        if load.precision == "bfloat16" and not has_bfloat16():
            lines.append(SLOW_BFLOAT16)
    if measured is not None:
        lines.append(
            f"measured: {measured.blocks} blocks of {measured.output} on {measured.device} took "
            f"{measured.block_s_per_km2:.3g} s/km² each, used for all clusters with this device"
        )
    return lines


def describe_clusters(clusters: Sequence[ClusterEstimate]) -> list[str]:
    """Write one line for each cluster."""
    lines = []
    for each in clusters:
        line = (
            f"cluster {each.name}: about {each.hours:,.2f} h on {each.workers} workers "
            f"({each.device}, {each.cores:g} cores each), {each.km2_per_hour:,.0f} km²/h, bound by "
            f"{each.bound}"
        )
        if each.gpu_hours:
            line += f", {each.gpu_hours:,.2f} GPU-hours"
        lines.append(line + (f", cost {each.cost:,.2f}" if each.cost is not None else ""))
    return lines
