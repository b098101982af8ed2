"""`bigmap extract` against a loop over rasterio's windows, on the same files and chips.

Then two processes train on the chips, and tell how long they waited for data.
"""

import argparse
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine

import bigmap
from benchmarks.end_to_end import Case, prepare_simulated
from benchmarks.measuring import (
    ROOT,
    describe_machine,
    format_spread,
    paired_ratios,
    run_in_turn,
    spread,
    table,
    write_results,
)
from bigmap.config import Recipe, parse_recipe
from bigmap.learning.chips import ChipSet

BANDS = ["red", "nir"]
CHIP_PX, UPSCALE, MAX_DATES, MIN_CLEAR_PERCENT = 32, 4, 12, 75
FIELD_PX = 40
"""Side of the squares that stand for fields in the labels, in pixels of 2.5 m."""
RUN_BIGMAP = """
import sys, bigmap
if __name__ == "__main__":
    sys.exit(bigmap.extract(bigmap.load_recipe(sys.argv[1]), overwrite=True).exit_code)
"""


def write_labels(case: Case) -> Path:
    """Write squares of two classes over the area, at 2.5 m."""
    left, bottom, right, top = case.bounds
    step_m = 10 / UPSCALE
    height, width = round((top - bottom) / step_m), round((right - left) / step_m)
    fields = np.random.default_rng(0).integers(
        0, 2, (height // FIELD_PX + 1, width // FIELD_PX + 1), dtype=np.uint8
    )
    pixels = fields.repeat(FIELD_PX, axis=0).repeat(FIELD_PX, axis=1)[:height, :width]
    file = case.folder / "labels.tif"
    with rasterio.open(
        file, "w", driver="COG", dtype="uint8", count=1, height=height, width=width, nodata=255,
        crs=case.recipe["grid"]["crs"], transform=Affine(step_m, 0, left, 0, -step_m, top),
        compress="deflate",
    ) as target:  # fmt: skip
        target.write(pixels, 1)
    return file


def make_recipe(case: Case) -> Recipe:
    """Return the recipe of chips and of a training on them."""
    legend = [
        {"value": 0, "name": "other", "colour": "#cccccc"},
        {"value": 1, "name": "field", "colour": "#33aa33"},
    ]
    return parse_recipe(case.recipe | {
        "model": {"name": "deeplabv3plus", "bands": BANDS, "legend": legend,
                  "options": {"size": "small", "upscale": UPSCALE}},
        "output": {"path": str(case.folder / "unused.zarr")},
        "cluster": {"workers": 1, "blocks_per_worker": 1},
        "samples": {
            "path": str(case.folder / "chips.zarr"), "chip_px": CHIP_PX, "max_dates": MAX_DATES,
            "min_clear_percent": MIN_CLEAR_PERCENT,
            "labels": {"kind": "raster", "files": [str(case.folder / "labels.tif")]},
            "split": {"kind": "cells", "cell_km": 2, "buffer_m": 0, "train": 0.9,
                      "validation": 0.1, "test": 0.0},
        },
        "training": {"weights": str(case.folder / "weights.safetensors"), "epochs": 1,
                     "batch_chips": 16},
    })  # fmt: skip


def describe_by_hand(case: Case, recipe: Recipe) -> dict[str, Any]:
    """Return what the loop needs: files, and where bigmap's chips lie in them."""
    items = json.loads((case.folder / "items.json").read_text())["features"]
    chips = ChipSet(recipe.samples.path)
    left_m, top_m = items[0]["assets"]["red"]["proj:transform"][2:6:3]
    first_col, first_row = round(left_m / 10), round(-top_m / 10)
    assert recipe.source.mask.dilate_px == 2, "which the loop takes for granted"
    return {
        "chip_px": CHIP_PX, "upscale": UPSCALE, "max_dates": MAX_DATES, "bands": BANDS,
        "min_clear_percent": MIN_CLEAR_PERCENT,
        "clear_values": recipe.source.mask.clear_values,
        "labels": str(case.folder / "labels.tif"), "margin": round((case.bounds[0] - left_m) / 10),
        "chips": [
            (int(col) - first_col, int(row) - first_row)
            for row, col in zip(chips.places.row, chips.places.col, strict=True)
        ],
        "items": [
            {
                "day": item["properties"]["datetime"][:10],
                "offset": 0.0 if item["properties"]["earthsearch:boa_offset_applied"] else -0.1,
                "files": {name: item["assets"][name]["href"] for name in (*BANDS, "scl")},
            }
            for item in items
        ],
    }  # fmt: skip


def compare_chips(recipe: Recipe, folder: Path) -> dict[str, float]:
    """Compare what both wrote: the shares of chips with equal labels and with equal images."""
    chips = ChipSet(recipe.samples.path)
    labels = images = 0
    for index in range(len(chips)):
        ours, theirs = chips.read(index), np.load(folder / f"{index}.npz")
        labels += np.array_equal(ours.labels, theirs["labels"])
        images += np.array_equal(ours.images, theirs["images"])
    return {"equal_labels": labels / len(chips), "equal_images": images / len(chips)}


def measure(case: Case, pairs: int) -> dict[str, Any]:
    """Run both in turn on the same chips, and compare what they made."""
    case.write()
    write_labels(case)
    recipe = make_recipe(case)
    (case.folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    folder = case.folder / "by_hand"
    script = str(ROOT / "benchmarks" / "chips_by_hand.py")
    commands = {
        "bigmap": [sys.executable, "-c", RUN_BIGMAP, str(case.folder / "recipe.yaml")],
        "by_hand": [sys.executable, script, str(case.folder / "chips.json"), str(folder)],
    }
    # The loop is told where the chips lie.
    bigmap.extract(recipe, overwrite=True)
    (case.folder / "chips.json").write_text(json.dumps(describe_by_hand(case, recipe)))
    runs = {
        who: [{"seconds": each.seconds, "peak_gb": each.peak_bytes / 1e9} for each in done]
        for who, done in run_in_turn(commands, case.folder, pairs=pairs).items()
    }
    seconds = {who: [run["seconds"] for run in done] for who, done in runs.items()}
    return {
        "title": case.title,
        "chips": len(ChipSet(recipe.samples.path)),
        "runs": runs,
        "ratios": paired_ratios(seconds["bigmap"], seconds["by_hand"]),
        "comparison": compare_chips(recipe, folder),
    }


def measure_training(case: Case) -> dict[str, float]:
    """Train two processes on the chips and tell what they waited for data."""
    summary = bigmap.train(make_recipe(case), overwrite=True, processes=2)
    return {"chips_per_s": summary.chips_per_s, "wait_share": summary.wait_share}


def describe(found: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    rows = []
    for who, runs in found["runs"].items():
        seconds = spread([run["seconds"] for run in runs])
        rates = spread([found["chips"] / run["seconds"] for run in runs])
        peak = spread([run["peak_gb"] for run in runs])
        name = {"bigmap": "`bigmap extract`, one worker", "by_hand": "by hand"}[who]
        rows.append((name, format_spread(seconds), format_spread(rates), format_spread(peak, 2)))
    same, training = found["comparison"], found["training"]
    setting = (
        f"{found['title']}: {found['chips']} chips of {CHIP_PX} px, up to {MAX_DATES} dates of "
        "red, near infrared and SCL, and labels at 2.5 m. "
        f"{len(found['ratios'])} pairs of runs in turn, whole processes, files in the page cache; "
        "median (least to greatest)."
    )
    verdict = (
        f"**By hand takes {format_spread(spread(found['ratios']), 2)} times as long as `bigmap "
        f"extract`.** Equal labels: {same['equal_labels']:.1%} of the chips; equal images: "
        f"{same['equal_images']:.1%}."
    )
    waiting = (
        "Two processes that train DeepLabV3+ (small) on these chips do "
        f"{training['chips_per_s']:.1f} chips/s and wait for data {training['wait_share']:.2%} of "
        "the time."
    )
    measured = table(("", "seconds", "chips/s", "peak memory, GB"), rows)
    return "\n\n".join((setting, measured, verdict, waiting))


def main(arguments: list[str]) -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(prog="extraction")
    parser.add_argument("--quick", action="store_true", help="a trial, not a result")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs after the warm-up")
    parser.add_argument("--side", type=int, default=2, help="blocks along the simulated square")
    options = parser.parse_args(arguments)
    last_day = dt.date(2024, 5, 10 if options.quick else 31)
    case = prepare_simulated(1 if options.quick else options.side, last_day)
    found = measure(case, 1 if options.quick else options.pairs)
    found |= {"machine": describe_machine(), "training": measure_training(case)}
    write_results("extraction", "Extraction", describe(found), found, quick=options.quick)
