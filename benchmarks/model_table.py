"""Every model, its cost and its speed on this machine: writes docs/models.md."""

import argparse
import inspect
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

import torch
from torch import Tensor

from benchmarks.measuring import QUICK_RESULTS, ROOT, describe_in_words, describe_machine, table
from bigmap.grid import Lattice
from bigmap.mapping.engine import optimise
from bigmap.mapping.windows import Windowing
from bigmap.models import MapModel, build_model, list_models
from bigmap.models.facts import COUNTED_DATES, ModelFacts, describe_class, describe_model

PAGE = ROOT / "docs" / "models.md"
TEMPLATE = PAGE.with_suffix(".template.md")
GSD_KM = 0.01
CORE_PX = 128
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One row: a model in one size."""

    name: str
    size: str
    model: MapModel


def list_cases(names: Sequence[str]) -> list[Case]:
    """List all models in all sizes."""
    return [
        Case(name, size, build_model(name, {"size": size} if size else {}))
        for name, kind in list_models().items()
        if not names or name in names
        for size in list_sizes(kind)
    ]


def list_sizes(kind: type[MapModel]) -> tuple[str, ...]:
    """Return the sizes of a model; an empty name where it has one only."""
    has_sizes = "size" in inspect.signature(kind.__init__).parameters
    return ("full", "small") if has_sizes else ("",)


def measure_km2_per_h(model: MapModel, precision: str, *, rounds: int) -> float:
    """Run windows through a model as a run does; return the fastest round's speed."""
    spec = model.spec
    lattice = Lattice(
        crs="", gsd_m=10, core_px=CORE_PX, cell_px=CORE_PX, block_px=CORE_PX,
        upscale=spec.upscale, shard_px=CORE_PX, chunk_px=CORE_PX,
    )  # fmt: skip
    side = CORE_PX + 2 * Windowing.for_model(spec).halo_px(spec, lattice)
    inputs = make_input(model, side)
    faster = optimise(model)
    enabled = precision == "bfloat16"
    seconds = []
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        for _ in range(rounds + 1):
            start = time.perf_counter()
            faster(*inputs)
            seconds.append(time.perf_counter() - start)
    return (CORE_PX * GSD_KM) ** 2 / min(seconds[1:]) * 3600


def make_input(model: MapModel, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random reflectance of clear dates."""
    dates = min(COUNTED_DATES, model.spec.max_dates or COUNTED_DATES)
    generator = torch.Generator().manual_seed(0)
    reflectance = torch.rand(1, dates, len(model.spec.bands), side, side, generator=generator)
    shape = (1, dates, side, side)
    return 0.5 * reflectance, torch.ones(1, dates, dtype=torch.bool), torch.ones(shape) > 0


def write_row(case: Case, facts: ModelFacts, speeds: Sequence[float]) -> list[str]:
    """Return the cells of one row."""
    spec = case.model.spec
    tolerance = f" (within {spec.tolerance:g})" if spec.tolerance else ""
    return [
        f"`{case.name}`" + (f", {case.size}" if case.size else ""),
        facts.paper or "-",
        facts.kind + tolerance,
        str(len(facts.bands)),
        f"x{facts.upscale}",
        f"{facts.halo_px} px",
        f"{facts.parameters:,}",
        *(write_number(value) for value in (facts.gflop_per_km2, *speeds)),
    ]


def main(arguments: Sequence[str]) -> None:
    """Measure all models and write the page; a quick trial goes elsewhere."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks models", description=__doc__)
    parser.add_argument("names", nargs="*", help="models; by default all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="float32 once, not into docs")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    precisions = PRECISIONS[:1] if options.quick else PRECISIONS
    torch.set_num_threads(os.cpu_count() or 1)
    rows, texts = [], []
    for case in list_cases(options.names):
        facts = describe_model(case.model)
        rounds = 1 if options.quick else options.rounds
        speeds = [measure_km2_per_h(case.model, p, rounds=rounds) for p in precisions]
        rows.append(write_row(case, facts, speeds))
        sys.stderr.write(" ".join(rows[-1]) + "\n")
        if case.size != "small":
            texts.append(write_text(case, facts))
    header = [
        "model", "paper", "kind", "bands", "upscale", "halo", "parameters", "GFLOP/km²",
        *(f"km²/h, {precision}" for precision in precisions),
    ]  # fmt: skip
    body = Template(TEMPLATE.read_text()).substitute(
        dates=COUNTED_DATES,
        core=CORE_PX,
        table=table(header, rows),
        machine=describe_in_words(machine),
        models="\n".join(texts),
    )
    page = QUICK_RESULTS / "models.md" if options.quick or options.names else PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(body.rstrip() + "\n")
    sys.stdout.write(f"{page}\n")


def write_number(value: float) -> str:
    """Write a number with three digits or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_text(case: Case, facts: ModelFacts) -> str:
    """Return what a model is, and its options, from its own documentation."""
    summary = describe_class(type(case.model)).partition("\nParameters\n")[0].strip()
    options = ", ".join(f"`{key}: {value}`" for key, value in facts.options.items()) or "none"
    layers = ", ".join(f"`{layer}`" for layer in facts.layers)
    return f"## {case.name}\n\n{summary}\n\nOptions: {options}. Layers: {layers}.\n"
