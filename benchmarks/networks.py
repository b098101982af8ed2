"""`bigmap run` with SPInet against a script with a plain network, in turn, on the same files.

Scenes are one simulated patch with all twelve bands, on the files' own grid, so that nothing is
warped but bands of 20 and 60 m. The script takes the chunks, workers and threads with which it was
fastest on a part of the area.
"""

import argparse
import datetime as dt
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely
import yaml
import zarr

from benchmarks.end_to_end import (
    CORNER_M,
    MARGIN_PX,
    PATCH_M,
    RUN_BIGMAP,
    group_by_day,
    write_scene,
)
from benchmarks.measuring import (
    ROOT,
    WORK,
    describe_machine,
    format_spread,
    paired_ratios,
    run_in_turn,
    run_measured,
    spread,
    table,
    write_results,
)
from bigmap.config.strict_yaml import read_yaml
from bigmap.models import build_model
from bigmap.models.card import Training, find_weights
from bigmap.models.checkpoint import save_weights
from bigmap.simulate import SceneRequest, write_scenes
from bigmap.simulate.requests import VERSION

DATES = 12
SIDES_PX = {"small": 1024, "full": 512}
SIDE_PX = max(SIDES_PX.values())
TUNING_PX = 512
CHUNKS_PX = (256, 512)
PROCESSES = ((2, 1), (1, 2))
"""Workers of the script, and threads of PyTorch in each."""
UNTRAINED = Training(data="nothing: for a benchmark of speed", is_simulated=True)


@dataclass(frozen=True)
class Case:
    """A network and a square to map."""

    size: str
    side_px: int
    dates: int = DATES

    @property
    def folder(self) -> Path:
        """Where its files and maps lie."""
        return WORK / f"networks-{self.size}-{self.side_px}-{self.dates}"

    @property
    def area_km2(self) -> float:
        """Area that is mapped."""
        return (self.side_px / 100) ** 2


def write_dates(dates: int) -> Path:
    """Write scenes with all bands that cover the largest square, once; return their items."""
    folder = WORK / f"scenes-{VERSION}-networks-{SIDE_PX}-{dates}"
    items = folder / "items.json"
    if not items.exists():
        request = SceneRequest(
            crs="EPSG:32631",
            bounds=PATCH_M,
            start=dt.date(2024, 5, 1),
            end=dt.date(2024, 5, 1) + dt.timedelta(days=5 * dates),
            bands=build_model("spinet").spec.bands,
            seed=0,
            scene_px=366,
        )
        parts = write_scenes(request, WORK / "parts-networks")
        corner = (CORNER_M[0] - MARGIN_PX * 10, CORNER_M[1] + MARGIN_PX * 10)
        groups = group_by_day(json.loads(parts.read_text())["features"])
        scenes = [
            write_scene(group, parts.parent, folder, corner, SIDE_PX + 2 * MARGIN_PX)
            for group in itertools.islice(groups, dates)
        ]
        for item in scenes:
            for asset in item["assets"].values():
                asset["href"] = str((folder / asset["href"]).resolve())
        items.write_text(json.dumps({"type": "FeatureCollection", "features": scenes}))
    return items


def write_case(case: Case, items: Path) -> dict[str, Any]:
    """Write what both need; returns the settings of the script, but for what is tuned."""
    case.folder.mkdir(parents=True, exist_ok=True)
    left, top = CORNER_M
    side_m = 10 * case.side_px
    bounds = (left, top - side_m, left + side_m, top)
    area = shapely.box(*bounds).buffer(-0.01, join_style="mitre")
    gpd.GeoSeries([area], crs="EPSG:32631").to_file(case.folder / "area.gpkg")
    model = build_model("spinet", {"size": case.size})
    if case.size == "small":
        weights = find_weights("bigmap://spinet-small.safetensors")
    else:
        weights = case.folder / "weights.safetensors"
        save_weights(model, weights, training=UNTRAINED)
    recipe = read_yaml(ROOT / "recipes" / "spinet.yaml")
    mask = recipe["source"]["mask"]
    recipe |= {
        "area": {"file": str(case.folder / "area.gpkg")},
        "source": {
            "kind": "files",
            "files": [str(items)],
            "start": dt.date(2015, 1, 1),
            "end": dt.date(2100, 1, 1),
            "mask": mask,
        },
        "dates": {"max_per_cell": case.dates, "min_clear_percent": 0},
        "model": {
            "name": "spinet",
            "legend": "cropland",
            "options": {"size": case.size},
            "weights": str(weights),
        },
        "inference": {"precision": "float32"},
        "output": {
            "path": str(case.folder / "bigmap.zarr"), "layers": ["class"], "overviews": 0,
        },
    }  # fmt: skip
    recipe["grid"]["crs"] = "EPSG:32631"
    del recipe["samples"], recipe["training"]
    (case.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return {
        "items": str(items),
        "epsg": 32631,
        "resolution": 10,
        "bounds": bounds,
        "bands": list(model.spec.bands),
        "clear_values": list(mask["clear_values"]),
        "dilate": mask["dilate_px"],
        "depth": model.spec.halo_px,
        "weights": str(weights),
        "chunk_px": 512,
    }


def command_of(who: str, case: Case) -> list[str]:
    """Return the command that makes a map."""
    if who == "bigmap":
        return [sys.executable, "-c", RUN_BIGMAP, str(case.folder / "recipe.yaml")]
    script = str(ROOT / "benchmarks" / "network_by_hand.py")
    output = str(case.folder / "by_hand.zarr")
    return [sys.executable, script, str(case.folder / "case.json"), output]


def tune(case: Case, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the chunks and processes with which the script is fastest on a part of the area."""
    left, _, _, top = settings["bounds"]
    side_m = 10 * min(TUNING_PX, case.side_px)
    part = settings | {"bounds": (left, top - side_m, left + side_m, top)}
    found = {}
    for chunk_px, (workers, threads) in itertools.product(CHUNKS_PX, PROCESSES):
        choice = {"chunksize": chunk_px, "workers": workers, "threads": threads}
        (case.folder / "case.json").write_text(json.dumps(part | choice))
        seconds = run_measured(command_of("by_hand", case), case.folder / "tuning.log").seconds
        sys.stderr.write(f"{case.folder.name} {choice}: {seconds:.1f} s\n")
        found[seconds] = choice
    return found[min(found)]


def measure_case(case: Case, pairs: int, items: Path) -> dict[str, Any]:
    """Run both in turn and compare what they made."""
    settings = write_case(case, items)
    choice = tune(case, settings)
    (case.folder / "case.json").write_text(json.dumps(settings | choice))
    commands = {who: command_of(who, case) for who in ("bigmap", "by_hand")}
    runs = {
        who: [
            {
                "seconds": each.seconds,
                "user_s": each.user_s,
                "system_s": each.system_s,
                "peak_gb": each.peak_bytes / 1e9,
            }
            for each in done
        ]
        for who, done in run_in_turn(commands, case.folder, pairs=pairs).items()
    }
    side = 4 * case.side_px  # blocks reach farther
    ours, theirs = (
        np.asarray(zarr.open_group(case.folder / f"{who}.zarr", mode="r")["class"][:side, :side])
        for who in commands
    )
    return {
        "title": f"SPInet {case.size}, {case.dates} dates, {case.area_km2:.1f} km²",
        "area_km2": case.area_km2,
        "choice": choice,
        "runs": runs,
        "share_of_equal_classes": float((ours == theirs).mean()),
    }


def describe_case(result: dict[str, Any]) -> str:
    """Write the results of a case as Markdown."""
    rows, ratios = [], {}
    names = {"bigmap": "`bigmap run`", "by_hand": "by hand"}
    figures = ("seconds", "user_s", "system_s", "peak_gb")
    for who, runs in result["runs"].items():
        rows.append([names[who], *(format_spread(spread([r[f] for r in runs])) for f in figures)])
    for figure in ("seconds", "peak_gb", "core_s"):
        ours, theirs = (
            [r["user_s"] + r["system_s"] if figure == "core_s" else r[figure] for r in runs]
            for runs in result["runs"].values()
        )
        ratios[figure] = format_spread(spread(paired_ratios(ours, theirs)), 2)
    choice = result["choice"]
    return "\n\n".join(
        (
            f"## {result['title']}",
            table(("", "seconds", "user, s", "system, s", "peak memory, GB"), rows),
            (
                f"**By hand takes {ratios['seconds']} times as long as `bigmap run`**, "
                f"{ratios['core_s']} times the processor time and {ratios['peak_gb']} times the "
                f"memory. Its best choice: chunks of {choice['chunksize']} px, {choice['workers']} "
                f"workers of {choice['threads']} threads. Equal classes: "
                f"{result['share_of_equal_classes']:.3%}; its means are over windows, which "
                "are not the same."
            ),
        )
    )


def main(arguments: list[str]) -> None:
    """Measure all cases and write the results."""
    parser = argparse.ArgumentParser(prog="networks")
    parser.add_argument("--quick", action="store_true", help="a trial on few dates, not a result")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs after the warm-up")
    parser.add_argument("--sizes", nargs="+", choices=SIDES_PX, default=list(SIDES_PX))
    options = parser.parse_args(arguments)
    machine = describe_machine()
    cases = [Case(size, SIDES_PX[size]) for size in options.sizes]
    if options.quick:
        cases = [Case("small", 256, 3)]
    items = write_dates(cases[0].dates)
    pairs = 1 if options.quick else options.pairs
    results = [measure_case(case, pairs, items) for case in cases]
    setting = (
        "Whole processes in turn, files in the page cache; median (least to greatest). Processor "
        "time is that of all processes."
    )
    body = "\n\n".join([setting, *map(describe_case, results)])
    write_results(
        "networks", "SPInet, end to end", body, {"machine": machine, "cases": results},
        quick=options.quick,
    )  # fmt: skip
