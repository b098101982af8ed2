"""Real labels: land parcels of one square kilometre in Slovenia, west for training, east for test.

    python -m benchmarks.real_parcels --data ../shared/data/slovenia --work maps/parcels

Cuts chips at 10 m and at 2.5 m from the three clear scenes of 2015, trains small networks, three
seeds each, and scores each on the eastern half, 50 m away from any training chip: on chips, and as
a map of the whole, whose windows reach beyond the square kilometre that has data.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
import torch

import bigmap
from benchmarks.measuring import describe_machine, table, write_results
from bigmap.config import parse_recipe
from bigmap.learning.chips import ChipSet, is_complete

BANDS = [
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
]  # fmt: skip
LEGEND = [
    {"value": 1, "name": "cultivated", "colour": "#fdd327"},
    {"value": 2, "name": "forest", "colour": "#239800"},
    {"value": 3, "name": "grassland", "colour": "#f99627"},
    {"value": 4, "name": "shrubland", "colour": "#8d8b00"},
    {"value": 8, "name": "artificial", "colour": "#d20000"},
]
MIDDLE_M, BUFFER_M = 465_680, 50
LEFT_M, BOTTOM_M, RIGHT_M, TOP_M = 465_181, 5_079_245, 466_180, 5_080_254
NETWORKS = {
    "spinet": {"size": "small"},
    "deeplabv3plus": {"size": "small"},
    "segnet": {"size": "small"},
}
SEEDS = 3
SCORED = ("chips", "map")
BODY = """\
One square kilometre in Slovenia with three clear scenes of 2015 (EO-Learn's example data, MIT;
contains modified Copernicus Sentinel data; parcels of Slovenia's RABA register). Small networks,
trained on the chips of the western half for 150 epochs, and scored on the eastern half, 50 m away.
Accuracies are means of three seeds, with the least and greatest.

{table}

The majority class is that of the test chips; of all labelled pixels of the east it is 0.703. A
linear model on 30 dates of NDVI and the five scenes reaches 0.896 at 10 m, on the whole east.

Maps are worse than chips, probably because the networks were trained on squares of 160 m full of
data, while large parts of a map's windows lie beyond this square kilometre.
"""


def main() -> None:
    """Cut, train, score and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    write_halves(work / "halves.gpkg")
    rows, found = [], {}
    for upscale, names in ((1, ("deeplabv3plus", "segnet")), (4, ("spinet", "deeplabv3plus"))):
        for name in names:
            runs = [score(arguments.data, work, name, upscale, seed) for seed in range(SEEDS)]
            found[f"{name}-{upscale}"] = runs
            rows += [describe(f"{10 / upscale:g} m", name, where, runs) for where in SCORED]
        rows.append(describe_majority(f"{10 / upscale:g} m", work, upscale))
    classes = ", ".join(entry["name"] for entry in LEGEND)
    header = ("grid", "network", "scored", "accuracy", "MCC", "mean IoU", f"IoU: {classes}")
    body = BODY.format(table=table(header, rows))
    write_results(
        "real_parcels", "Real parcels", body, {"machine": describe_machine(), "runs": found},
        quick=False,
    )  # fmt: skip


def write_halves(file: Path) -> None:
    """Write the areas of the two splits."""
    west = shapely.box(LEFT_M, BOTTOM_M, MIDDLE_M, TOP_M)
    east = shapely.box(MIDDLE_M, BOTTOM_M, RIGHT_M, TOP_M)
    frame = gpd.GeoDataFrame({"split": ["train", "test"]}, geometry=[west, east], crs="EPSG:32633")
    frame.to_file(file)


def make_recipe(data: Path, work: Path, name: str, upscale: int, seed: int) -> Any:
    """Return the recipe of one network."""
    options: dict[str, Any] = dict(NETWORKS[name])
    if name != "spinet":
        options["upscale"] = upscale
    return parse_recipe({
        "name": f"parcels-{name}",
        "area": {"bbox": [14.5514, 45.8659, 14.5643, 45.8751]},
        "grid": {"crs": "EPSG:32633", "gsd_m": 10, "anchor_m": [LEFT_M, TOP_M],
                 "core_px": 64, "cell_px": 64, "block_px": 64,
                 "shard_px": 64, "chunk_px": 64},
        "source": {"kind": "files", "files": [str((data / "items.json").resolve())],
                   "start": "2015-01-01", "end": "2015-12-31",
                   "mask": {"kind": "binary", "asset": "clm", "clear_value": 0}},
        "dates": {"max_per_cell": 5, "min_clear_percent": 50},
        "model": {"name": name, "bands": BANDS, "legend": LEGEND, "options": options},
        "output": {"path": str(work / f"{name}-{upscale}-{seed}.zarr"), "overviews": 0},
        "samples": {
            "path": str(work / f"chips-{upscale}.zarr"), "chip_px": 16, "max_dates": 5,
            "min_clear_percent": 50, "min_labelled_percent": 25,
            "labels": {"kind": "vector", "file": str((data / "lulc_parcels.gpkg").resolve()),
                       "attribute": "LULC_ID", "classes": {"1": 1, "2": 2, "3": 3, "4": 4, "8": 8}},
            "split": {"kind": "polygons", "file": str(work / "halves.gpkg"), "buffer_m": BUFFER_M},
        },
        "training": {
            "weights": str(work / f"{name}-{upscale}-{seed}.safetensors"), "seed": seed,
            "objective": {"kind": "segmentation", "weighted": False}, "epochs": 150,
            "batch_chips": 6,
            "optimiser": {"learning_rate": 0.003, "kind": "adamw", "weight_decay": 0.01},
            "schedule": {"kind": "cosine", "warmup_epochs": 2}, "clip_norm": 1.0,
            "augment": {"jitter": 0.02},
        },
    })  # fmt: skip


def score(data: Path, work: Path, name: str, upscale: int, seed: int) -> dict[str, Any]:
    """Train one network, unless its scores are there, and score it on the eastern half."""
    file = work / f"scores-{name}-{upscale}-{seed}.json"
    if not file.exists():
        recipe = make_recipe(data, work, name, upscale, seed)
        if not is_complete(recipe.samples.path):
            summary = bigmap.extract(recipe, overwrite=True)
            assert summary.exit_code == 0, summary.failures
        bigmap.train(recipe, overwrite=True)
        trained = recipe.model.model_copy(update={"weights": recipe.training.weights})
        mapped = recipe.model_copy(update={"model": trained})
        assert bigmap.run(mapped, overwrite=True).exit_code == 0
        found = {
            "chips": bigmap.evaluate_model(recipe, weights=recipe.training.weights, split="test"),
            "map": bigmap.evaluate_map(mapped, mapped.output.path, split="test"),
        }
        scores = {
            where: {key: values[0] for key, values in evaluation.rows().items()}
            for where, evaluation in found.items()
        }
        file.write_text(json.dumps(scores))
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def describe(grid: str, name: str, where: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return a row: means over the seeds, and the spread of the first score."""
    runs = [run[where] for run in found]
    mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
    accuracy = [run["pixel accuracy"] for run in runs]
    iou = ", ".join(f"{mean.get('IoU of ' + entry['name'], float('nan')):.2f}" for entry in LEGEND)
    spread = f"{mean['pixel accuracy']:.3f} ({min(accuracy):.3f} to {max(accuracy):.3f})"
    return grid, name, where, spread, f"{mean['MCC']:.3f}", f"{mean['mean IoU']:.3f}", iou


def describe_majority(grid: str, work: Path, upscale: int) -> tuple[str, ...]:
    """Return the row of the class that is most frequent in the test chips."""
    places = ChipSet(str(work / f"chips-{upscale}.zarr")).places
    counts = places.class_px[places.split == 2].sum(axis=0)
    return grid, "majority class", "chips", f"{counts.max() / counts.sum():.3f}", "-", "-", "-"


if __name__ == "__main__":
    main()
