"""Prediction of one window, arrays in memory: bigmap's engine against plain networks, in turn.

Each has a process of its own, bigmap's with the environment of a worker, and waits for its turn.
The plain network takes a chunk with as much overlap as the network reaches, of the side with which
it needs the least processor time for each pixel kept.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import plain_networks
from benchmarks.measuring import (
    ROOT,
    WORK,
    describe_machine,
    format_spread,
    paired_ratios,
    spread,
    table,
    write_results,
)
from bigmap.clusters.settings import ENVIRONMENT
from bigmap.grid import Lattice
from bigmap.machine import count_cores
from bigmap.mapping.engine import CellData, Engine, optimise
from bigmap.mapping.geometry import choose_windows, count_computed
from bigmap.mapping.windows import Windowing
from bigmap.models import MapModel, build_model

BLOCK_PX = 2048
"""As in a recipe that says nothing of it: its cores share the windows around them."""
LEAST_SAVING = 0.1
"""Larger chunks are tried, up to a cell, while they compute so much less for a pixel that is kept
and fit into memory."""
PATIENCE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""For the plain network, as for bigmap's: threads that spin while they wait for another, which a
busy machine lets wait, would count as work, and did so up to tenfold."""
TIMES = ("core_s", "user_s", "system_s", "seconds")
NAMES = {"bigmap": "bigmap", "by_hand": "by hand"}


@dataclass(frozen=True)
class Case:
    """A network, and how many dates it sees; networks of one image see one, as in their papers."""

    name: str
    dates: int
    options: dict[str, Any]
    cell_px: int = 1024

    def build(self) -> MapModel:
        """Build bigmap's model; its weights are random and always the same."""
        return build_model(self.name, self.options).eval()

    def cut(self, model: MapModel) -> tuple[Lattice, Windowing]:
        """Return the windows that a run on a CPU has by default."""
        lattice = Lattice(
            crs="", gsd_m=10, core_px=self.cell_px, cell_px=self.cell_px, block_px=BLOCK_PX,
            upscale=model.spec.upscale, shard_px=BLOCK_PX, chunk_px=512,
        )  # fmt: skip
        windowing = Windowing.for_model(model.spec, device="cpu")
        lattice = choose_windows(lattice, model, windowing, dates=self.dates, core_px=None)
        return lattice, windowing

    def make_dn(self, bands: int, side_px: int, margin_px: int) -> np.ndarray:
        """Make uint16 pixels (date, band, y, x) of a square at (0, 0) and a margin around it."""
        place = np.arange(-margin_px, side_px + margin_px)
        rows, cols = place[:, None], place[None, :]
        planes = np.arange(self.dates * bands).reshape(self.dates, bands, 1, 1)
        waves = np.sin(rows / (7 + planes)) * np.cos(cols / (5 + planes)) + np.sin(rows * cols)
        return (2500 + 600 * waves).astype(np.uint16)


CASES = (
    Case("highres-net", 8, {"size": "full", "max_dates": 8}),
    Case("dual", 1, {"size": "full"}),
    Case("dbpn-segnet", 1, {"size": "full"}),
)
QUICK_CASES = (
    Case("highres-net", 3, {"size": "small", "max_dates": 8}, 64),
    Case("dual", 1, {"size": "small", "backbone": "resnet101"}, 128),
    Case("dbpn-segnet", 1, {"size": "small"}, 64),
)

Job = Callable[[], np.ndarray]
"""Maps one square; what it needs lies in memory."""


def find_depth(model: MapModel) -> int:
    """Return the overlap of chunks: what the network reaches, in whole steps of its strides."""
    step_px = model.spec.multiple_px
    return math.ceil(model.spec.halo_px / step_px) * step_px


def prepare_bigmap(case: Case) -> Callable[[int], Job]:
    """Return what maps a core by the engine."""
    model = case.build()
    lattice, windowing = case.cut(model)
    wanted = "class" if model.spec.legend else "image"
    layers = tuple(layer for layer in model.spec.layers if layer.name == wanted)
    engine = Engine(optimise(model), lattice, windowing, layers)
    core = (slice(lattice.shift_px, lattice.shift_px + lattice.core_px),) * 2

    def prepare(side_px: int) -> Job:
        halo_px = windowing.halo_px(model.spec, lattice)
        dn = case.make_dn(len(model.spec.bands), side_px, halo_px)
        data = CellData(dn, np.ones((case.dates, *dn.shape[2:]), dtype=bool))
        # Windows of neighbours that blend with it are counted by `measure_case`.
        return lambda: engine.predict(core, lambda *_: data, is_wanted=core.__eq__)[wanted]

    return prepare


def prepare_by_hand(case: Case) -> Callable[[int], Job]:
    """Return what maps a chunk by the plain network."""
    model = case.build()
    network = plain_networks.load(case.name, model.state_dict())
    margin_px, bands = find_depth(model), len(model.spec.bands)
    codes = np.array([entry.value for entry in model.spec.legend], np.uint8)
    cut = slice(model.spec.upscale * margin_px, -model.spec.upscale * margin_px)
    del model

    def prepare(side_px: int) -> Job:
        dn = case.make_dn(bands, side_px, margin_px)

        def predict() -> np.ndarray:
            reflectance = dn.astype(np.float32) * np.float32(1e-4) - np.float32(0.1)
            with torch.inference_mode():
                scores = network(torch.from_numpy(reflectance))[0, :, cut, cut]
                if len(codes):
                    return codes[scores.argmax(dim=0).numpy()]
                return np.rint((scores.numpy() + 0.1) * 1e4).astype(np.uint16)

        return predict

    return prepare


def serve(who: str, case: Case, folder: Path) -> None:
    """Map a square of each side that standard input names; answer with what it took."""
    torch.set_num_threads(count_cores())
    prepare = {"bigmap": prepare_bigmap, "by_hand": prepare_by_hand}[who](case)
    for line in sys.stdin:
        job = prepare(int(line))
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        values = job()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        np.save(folder / f"{who}.npy", values)
        answer = {
            "seconds": seconds,
            "user_s": after.ru_utime - before.ru_utime,
            "system_s": after.ru_stime - before.ru_stime,
            "peak_bytes": 1024 * after.ru_maxrss,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Server:
    """A process that maps squares, one whenever it is asked."""

    def __init__(self, who: str, case: Case, folder: Path) -> None:
        self.who = who
        environment = os.environ | (ENVIRONMENT if who == "bigmap" else PATIENCE)
        command = [sys.executable, "-m", "benchmarks.prediction", who, json.dumps(asdict(case))]
        self.process = subprocess.Popen(
            [*command, str(folder)], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def map_square(self, side_px: int) -> dict[str, float]:
        """Return what one square took.

        Raises
        ------
        RuntimeError
            If the process ended; its messages are on standard error.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{side_px}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.who} ended while it mapped {side_px} px")
        answer: dict[str, float] = json.loads(line)
        answer["core_s"] = answer["user_s"] + answer["system_s"]
        sys.stderr.write(f"{self.who} {side_px} px: {answer['core_s']:.1f} s of processor\n")
        return answer


def time_chunks(case: Case, server: Server, core_px: int, depth: int) -> dict[int, float]:
    """Return the processor seconds of a pixel for chunks of half a core and larger ones."""

    def count_computed_px(side_px: int) -> float:
        return (side_px + 2 * depth) ** 2

    found: dict[int, float] = {}
    side_px = core_px // 2
    server.map_square(side_px)
    while True:
        taken = server.map_square(side_px)
        found[side_px] = taken["core_s"] / side_px**2
        growth = count_computed_px(2 * side_px) / count_computed_px(side_px)
        saves = growth / 4 < 1 - LEAST_SAVING
        fits = growth * taken["peak_bytes"] < psutil.virtual_memory().available
        if not saves or not fits or 2 * side_px > case.cell_px:
            return found
        side_px *= 2


def measure_case(case: Case, pairs: int) -> dict[str, Any]:
    """Let both map in turn; figures are of a square kilometre that is kept."""
    folder = WORK / "prediction"
    folder.mkdir(parents=True, exist_ok=True)
    model = case.build()
    lattice, windowing = case.cut(model)
    core_px, depth = lattice.core_px, find_depth(model)
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(Server(who, case, folder)) for who in NAMES)
        ours.map_square(core_px)
        tried = time_chunks(case, theirs, core_px, depth)
        chunk_px = min(tried, key=tried.__getitem__)
        taken = [(ours.map_square(core_px), theirs.map_square(chunk_px)) for _ in range(pairs)]
    computed = {
        "bigmap": count_computed(lattice, model.spec, windowing),
        "by_hand": (1 + 2 * depth / chunk_px) ** 2,
    }
    # Windows of a whole block for each of its cores: with those around it that blend.
    window_px = core_px + 2 * windowing.halo_px(model.spec, lattice)
    windows = computed["bigmap"] * (core_px / window_px) ** 2
    shares = {"bigmap": windows / core_px**2, "by_hand": 1 / chunk_px**2}
    runs = {
        who: [{key: 1e4 * shares[who] * run[key] for key in TIMES} for run in done]
        for who, done in zip(NAMES, zip(*taken, strict=True), strict=True)
    }
    return {
        "title": f"{case.name}, {case.options['size']}, dates: {case.dates}",
        "core_px": core_px,
        "chunk_px": chunk_px,
        "tried": list(tried),
        "computed": computed,
        "runs": runs,
        "share_of_equal_values": compare(folder),
    }


def compare(folder: Path) -> float:
    """Return the share of values that are equal, those of an image within their last digit."""
    ours, theirs = (np.load(folder / f"{who}.npy").astype(int) for who in NAMES)
    side = min(ours.shape[-1], theirs.shape[-1])
    off = np.abs(ours[..., :side, :side] - theirs[..., :side, :side])
    has_channels = off.ndim == 3  # so it is an image
    return float((off <= has_channels).mean())


def describe_case(result: dict[str, Any]) -> str:
    """Write the results of a network as Markdown."""
    rows = []
    for who, side in (("bigmap", result["core_px"]), ("by_hand", result["chunk_px"])):
        runs = result["runs"][who]
        system = sum(run["system_s"] for run in runs) / sum(run["core_s"] for run in runs)
        times = (spread([run[key] for run in runs]) for key in ("core_s", "seconds"))
        cells = (
            f"{side} px",
            f"{result['computed'][who]:.2f}",
            *(format_spread(each, 2) for each in times),
        )
        rows.append((NAMES[who], *cells, f"{system:.1%}"))
    ours, theirs = ([run["core_s"] for run in runs] for runs in result["runs"].values())
    header = (
        "", "core or chunk", "pixels computed per pixel", "processor, s/km²", "s/km²", "system",
    )  # fmt: skip
    return "\n\n".join(
        (
            f"## {result['title']}",
            table(header, rows),
            (
                f"**By hand takes {format_spread(spread(paired_ratios(ours, theirs)), 2)} times "
                f"the processor time.** Its chunks were tried with "
                f"{', '.join(map(str, result['tried']))} px. Equal values: "
                f"{result['share_of_equal_values']:.3%}."
            ),
        )
    )


def main(arguments: list[str]) -> None:
    """Measure all networks and write the results."""
    parser = argparse.ArgumentParser(prog="prediction")
    parser.add_argument("--quick", action="store_true", help="small networks, not a result")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of windows after the warm-up")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    cases = QUICK_CASES if options.quick else CASES
    results = [measure_case(case, options.pairs) for case in cases]
    setting = (
        f"One window each in turn, from arrays in memory, {count_cores()} threads, float32; for a "
        "square kilometre that is kept; median (least to greatest). To bigmap's, those windows are "
        f"added that a block of {BLOCK_PX} px computes around it, so that neighbours blend."
    )
    body = "\n\n".join([setting, *map(describe_case, results)])
    write_results(
        "prediction", "Prediction of a window", body, {"machine": machine, "cases": results},
        quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    serve(sys.argv[1], Case(**json.loads(sys.argv[2])), Path(sys.argv[3]))
