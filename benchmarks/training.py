"""`bigmap train` with SPInet small against a plain loop over the same chips in memory, in turn."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.measuring import (
    ROOT,
    WORK,
    describe_machine,
    format_spread,
    paired_ratios,
    run_in_turn,
    spread,
    table,
    write_results,
)
from bigmap.learning.chips import ChipSet

STEPS = 30
BATCH_CHIPS = 8
LAST_DAYS = {True: "2024-05-15", False: "2024-06-30"}
"""By whether it is a quick trial."""


def list_settings(folder: Path, *, quick: bool) -> list[str]:
    """Return the settings of the recipe: 7 km² of simulated scenes, float32, every date."""
    settings = {
        "samples.path": folder / "chips.zarr",
        "samples.min_dates": 1,
        "samples.split.cell_km": 1,
        "training.weights": folder / "weights.safetensors",
        "training.precision": "float32",
        "training.augment.date_dropout": 0,
        "training.epochs": 1,
        "training.steps_per_epoch": 5 if quick else STEPS,
        "training.batch_chips": BATCH_CHIPS,
        "model.weights": "null",
        "source.start": "2024-05-01",
        "source.end": LAST_DAYS[quick],
        "source.scene_px": 366,
        "grid.cell_px": 256,
        "grid.block_px": 256,
        "grid.shard_px": 1024,
    }
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def write_chips(folder: Path, settings: list[str]) -> Path:
    """Extract chips, once, and write those to train on as arrays."""
    path = folder / "chips.npz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "bigmap", "extract", str(ROOT / "recipes" / "catalonia.yaml")]
    place = ["--source", "simulated", "--bbox", "0.60,41.62,0.63,41.645", "--overwrite"]
    pairs = zip(settings[::2], settings[1::2], strict=True)
    kept = [word for pair in pairs if not pair[1].startswith("training.") for word in pair]
    subprocess.run([*command, *place, *kept], check=True, cwd=ROOT)
    chips = ChipSet(folder / "chips.zarr")
    read = [chips.read(index) for index in chips.indices("train")]
    most = max(len(chip.images) for chip in read)
    padded = [np.pad(c.images, [(0, most - len(c.images)), *[(0, 0)] * 3]) for c in read]
    np.savez(
        path, images=np.stack(padded), labels=np.stack([chip.labels for chip in read]),
        dates=[len(chip.images) for chip in read],
    )  # fmt: skip
    return path


def main(arguments: list[str]) -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="training")
    parser.add_argument("--quick", action="store_true", help="few dates and steps, not a result")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs after the warm-up")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    folder = WORK / f"training-{LAST_DAYS[options.quick]}"
    settings = list_settings(folder, quick=options.quick)
    chips = write_chips(folder, settings)
    steps = 5 if options.quick else STEPS
    train = [sys.executable, "-m", "bigmap", "train", str(ROOT / "recipes" / "catalonia.yaml")]
    commands = {
        "bigmap": [*train, "--overwrite", "--json", *settings],
        "by_hand": [sys.executable, str(ROOT / "benchmarks" / "train_by_hand.py"), str(chips),
                    str(steps)],
    }  # fmt: skip
    done = run_in_turn(commands, folder, pairs=1 if options.quick else options.pairs)
    rates = {
        who: [json.loads(run.output.splitlines()[-1])["chips_per_s"] for run in runs]
        for who, runs in done.items()
    }
    with np.load(chips) as stored:
        count, dates = len(stored["images"]), float(np.mean(stored["dates"]))
    ratio = spread(paired_ratios(rates["by_hand"], rates["bigmap"]))
    rows = [
        (name, format_spread(spread(rates[who]), 2))
        for who, name in (("bigmap", "`bigmap train`"), ("by_hand", "plain loop"))
    ]
    body = (
        f"{count} chips of 32 px with {dates:.1f} dates on average, {steps} steps of "
        f"{BATCH_CHIPS} chips, float32, whole processes in turn; of the steps alone, median (least "
        f"to greatest).\n\n{table(('', 'chips/s'), rows)}\n\n"
        f"**bigmap trains {format_spread(ratio, 2)} times as fast as the plain loop.**"
    )
    results = {"machine": machine, "rates": rates, "chips": count, "dates": dates}
    write_results("training", "Training of SPInet small", body, results, quick=options.quick)
