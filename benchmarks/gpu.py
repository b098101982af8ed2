"""What a GPU does: prediction, its share of the GPU's rates, compilers, training, how busy it is.

With `make test-gpu` under nine minutes on a machine with one GPU and no network. Where there is
none it says so and ends.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks import networks
from benchmarks import training as training_benchmark
from benchmarks.end_to_end import RUN_BIGMAP
from benchmarks.measuring import (
    ROOT,
    WORK,
    describe_machine,
    run_measured,
    table,
    write_results,
)
from bigmap.config.strict_yaml import read_yaml
from bigmap.grid import Lattice
from bigmap.mapping.engine import CellData, Engine, optimise
from bigmap.mapping.geometry import choose_windows, count_computed
from bigmap.mapping.windows import Windowing
from bigmap.models import build_model
from bigmap.models.facts import COUNTED_DATES, count_gflop_per_km2

NETWORKS = (
    ("spinet", {"size": "full"}, 12),
    ("highres-net", {"size": "full", "max_dates": 8}, 8),
    ("dual", {"size": "full"}, 1),
    ("dbpn-segnet", {"size": "full"}, 1),
)
PRECISIONS = ("float32", "bfloat16")
CELL_PX = 1024
REPEATS = 3
MATRIX_SIDE = 8192
COPIED_BYTES = 2**30
SAMPLE_S = 0.2


def time_on_gpu(do: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the seconds of one turn, after one that warms up."""
    do()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        do()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure_rates() -> dict[str, float]:
    """Return what the GPU reaches in products of matrices, TFLOP/s, and in copies, GB/s."""
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device="cuda", dtype=dtype)
        seconds = time_on_gpu(lambda matrix=matrix: matrix @ matrix, 10)
        rates[f"{name} TFLOP/s"] = 2 * MATRIX_SIDE**3 / seconds / 1e12
    block = torch.empty(COPIED_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(block)
    rates["memory GB/s"] = 2 * COPIED_BYTES / time_on_gpu(lambda: target.copy_(block), 10) / 1e9
    return rates


def measure_network(name: str, options: dict[str, Any], dates: int, precision: str) -> dict:
    """Map a cell from memory by the engine; also time one batch eagerly and compiled."""
    model = build_model(name, options).eval()
    windowing = Windowing.for_model(model.spec, precision=precision, device="cuda")
    lattice = Lattice(
        crs="", gsd_m=10, core_px=CELL_PX, cell_px=CELL_PX, block_px=2 * CELL_PX,
        upscale=model.spec.upscale, shard_px=2 * CELL_PX, chunk_px=512,
    )  # fmt: skip
    lattice = choose_windows(lattice, model, windowing, dates=dates, core_px=None)
    wanted = "class" if model.spec.legend else "image"
    layers = tuple(layer for layer in model.spec.layers if layer.name == wanted)
    engine = Engine(optimise(model), lattice, windowing, layers)
    halo_px = windowing.halo_px(model.spec, lattice)
    first = lattice.shift_px
    roi = (slice(first, first + CELL_PX),) * 2
    side_px = CELL_PX + 2 * halo_px
    noise = np.random.default_rng(0)
    dn = noise.integers(1100, 4000, (dates, len(model.spec.bands), side_px, side_px), np.uint16)
    data = CellData(list(dn), np.ones((dates, side_px, side_px), dtype=bool))

    def is_inside(core: tuple[slice, slice]) -> bool:
        return all(first <= part.start and part.stop <= first + CELL_PX for part in core)

    seconds = time_on_gpu(
        lambda: engine.predict(roi, lambda *_: data, is_wanted=is_inside), repeats=1
    )
    cores = (CELL_PX // lattice.core_px) ** 2
    window_px = lattice.core_px + 2 * halo_px
    computed = cores * window_px**2
    counted = min(COUNTED_DATES, model.spec.max_dates or COUNTED_DATES)
    tflop = count_gflop_per_km2(model) / 1e3 * (computed / 1e4) * dates / counted
    again = count_computed(lattice, model.spec, windowing) * CELL_PX**2 / computed
    passes = time_passes(engine.model, windowing, dates, window_px)
    return {
        "network": name,
        "precision": precision,
        "km2_per_hour": (CELL_PX / 100) ** 2 / (seconds * again) * 3600,
        "tflop_per_s": tflop / seconds,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        **passes,
    }


def time_passes(model: Any, windowing: Windowing, dates: int, side_px: int) -> dict[str, Any]:
    """Time one batch of one shape: eager, by the compiler, and replayed as a graph."""
    batch = windowing.batch_windows
    images = torch.rand(batch, dates, len(model.spec.bands), side_px, side_px, device="cuda")
    known = torch.ones(batch, dates, dtype=torch.bool, device="cuda")
    clear = torch.ones(batch, dates, side_px, side_px, dtype=torch.bool, device="cuda")
    found: dict[str, Any] = {}
    modes: dict[str, str | None] = {
        "eager_s": None, "compiled_s": "default", "graph_s": "reduce-overhead",
    }  # fmt: skip
    for key, mode in modes.items():
        try:
            run = model if mode is None else torch.compile(model, mode=mode)
            with (
                torch.inference_mode(),
                torch.autocast("cuda", torch.bfloat16, enabled=windowing.precision == "bfloat16"),
            ):
                found[key] = time_on_gpu(lambda run=run: run(images, known, clear))
        except Exception as error:  # noqa: BLE001 - compilers fail in ways of their own
            found[key] = f"{type(error).__name__}"
        torch.cuda.empty_cache()
    return found


@contextmanager
def watch_gpu() -> Iterator[list[int]]:
    """Collect how busy the first GPU is, in percent."""
    seen: list[int] = []
    stop = threading.Event()
    ask = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-i", "0"]

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            done = subprocess.run(ask, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                seen.append(int(done.stdout.split()[0]))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def measure_run() -> dict[str, Any]:
    """Map 105 km² from local COGs by `local-cuda`; tell how busy the GPU was meanwhile."""
    case = networks.Case("small", networks.SIDE_PX)
    networks.write_case(case, networks.write_dates(case.dates))
    recipe = read_yaml(case.folder / "recipe.yaml") | {"cluster": {"kind": "local-cuda"}}
    recipe["output"]["path"] = str(case.folder / "gpu.zarr")
    path = case.folder / "gpu.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    with watch_gpu() as busy:
        done = run_measured([sys.executable, "-c", RUN_BIGMAP, str(path)], case.folder / "gpu.log")
    stages = json.loads(done.output.splitlines()[-1])[2]
    working = [each for each in busy if each]
    return {
        "seconds": done.seconds,
        "stages": stages,
        "busy_percent": float(np.mean(working)) if working else 0.0,
    }


def measure_training() -> float:
    """Return the chips a second of `bigmap train` in bfloat16."""
    folder = WORK / f"training-{training_benchmark.LAST_DAYS[True]}"
    settings = training_benchmark.list_settings(folder, quick=True)
    training_benchmark.write_chips(folder, settings)
    steps = ["--set", f"training.steps_per_epoch={training_benchmark.STEPS}"]
    precise = ["--set", "training.precision=bfloat16", "--json", "--overwrite"]
    recipe = str(ROOT / "recipes" / "catalonia.yaml")
    command = [sys.executable, "-m", "bigmap", "train", recipe, *settings, *steps, *precise]
    done = run_measured(command, folder / "gpu.log")
    rate: float = json.loads(done.output.splitlines()[-1])["chips_per_s"]
    return rate


def main(arguments: list[str]) -> None:
    """Measure and write the results; say that there is no GPU where there is none."""
    parser = argparse.ArgumentParser(prog="gpu")
    parser.add_argument("--quick", action="store_true", help="networks alone, not a result")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stdout.write("gpu: skipped: no GPU\n")
        return
    machine = describe_machine() | {"gpu": torch.cuda.get_device_name(0)}
    rates = measure_rates()
    found = []
    for (name, settings, dates), precision in [(n, p) for n in NETWORKS for p in PRECISIONS]:
        torch.cuda.reset_peak_memory_stats()
        found.append(measure_network(name, settings, dates, precision))
        sys.stderr.write(f"{found[-1]}\n")
    rows = [
        (
            each["network"],
            each["precision"],
            f"{each['km2_per_hour']:,.0f}",
            f"{each['tflop_per_s'] / rates[each['precision'] + ' TFLOP/s']:.0%}",
            f"{each['peak_gb']:.1f}",
            *(
                f"{1e3 * each[key]:.1f}" if isinstance(each[key], float) else each[key]
                for key in ("eager_s", "compiled_s", "graph_s")
            ),
        )
        for each in found
    ]
    header = (
        "network", "precision", "km²/h", "share of matrix rate", "peak, GB", "eager, ms",
        "compiled, ms", "graph, ms",
    )  # fmt: skip
    said = ", ".join(f"{value:,.0f} {name}" for name, value in rates.items())
    parts = [f"{machine['gpu']}: {said} (measured).", table(header, rows)]
    results: dict[str, Any] = {"machine": machine, "rates": rates, "networks": found}
    if not options.quick:
        results["run"], results["chips_per_s"] = measure_run(), measure_training()
        parts.append(
            f"SPInet small, 105 km² from local COGs: {results['run']['seconds']:.0f} s in all, the "
            f"GPU busy for {results['run']['busy_percent']:.0f} % while it worked. Training: "
            f"{results['chips_per_s']:.0f} chips/s in bfloat16."
        )
    write_results("gpu", "On a GPU", "\n\n".join(parts), results, quick=options.quick)


if __name__ == "__main__":
    main(sys.argv[1:])
