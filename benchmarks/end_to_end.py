"""`bigmap run` against a script written by hand, in turn, on the same files.

The simulated case is the recipe of Catalonia as it is, but with all dates, so that both map the
same ones; its scenes are one rendered patch, mirrored until it covers the area. The real case,
where the scenes are there, resamples whole products to EPSG:3035.
"""

import argparse
import datetime as dt
import itertools
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import yaml
import zarr
from affine import Affine
from rasterio.merge import merge
from rasterio.warp import transform_bounds, transform_geom

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
from bigmap import api, grid
from bigmap.clusters import open_client
from bigmap.clusters.sizes import size_cluster
from bigmap.config import parse_recipe
from bigmap.config.strict_yaml import read_yaml
from bigmap.grid import ROI
from bigmap.mapping.blocks import BlockJob, name_block
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.running import run_plan
from bigmap.scenes.items import ItemRow
from bigmap.simulate import SceneRequest, write_scenes
from bigmap.simulate.requests import VERSION

REAL_ITEMS = ROOT.parent / "shared" / "data" / "sentinel-2-l2a" / "items.json"
CORNER_M = (317440.0, 4628480.0)
"""Upper left corner of the simulated area, on the lattice of blocks, in fields near Lleida."""
PATCH_M = (318310.0, 4608550.0, 329270.0, 4619510.0)
"""What is rendered, EPSG:32631: three by three parts of one tile."""
MARGIN_PX = 64
DRIVER_BLOCKS = 2500
UPSCALE = 4
RUN_BIGMAP = """
import json, sys, bigmap
if __name__ == "__main__":
    summary = bigmap.run(bigmap.load_recipe(sys.argv[1]), overwrite=True)
    print(json.dumps([summary.elapsed_s, summary.planned, dict(summary.seconds)]))
    sys.exit(summary.exit_code)
"""
"""``bigmap run`` without its progress."""


@dataclass(frozen=True)
class Case:
    """One map that both make."""

    name: str
    title: str
    items: Path
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top in metres: whole blocks."""
    recipe: dict[str, Any]

    @property
    def area_km2(self) -> float:
        """Area that is mapped."""
        left, bottom, right, top = self.bounds
        return (right - left) * (top - bottom) / 1e6

    @property
    def folder(self) -> Path:
        """Where the case and its maps lie."""
        return WORK / self.name

    @property
    def outputs(self) -> dict[str, Path]:
        """Maps by who makes them."""
        return {who: self.folder / f"{who}.zarr" for who in ("bigmap", "by_hand")}

    def write(self) -> None:
        """Write the recipe, its area, and what the script by hand needs to know."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A little smaller than whole blocks, so that no neighbour is touched by rounding.
        area = shapely.box(*self.bounds).buffer(-0.01, join_style="mitre")
        gpd.GeoSeries([area], crs=self.recipe["grid"]["crs"]).to_file(self.folder / "area.gpkg")
        # Catalogues answer with full hrefs, and pystac follows no others.
        items = json.loads(self.items.read_text())
        for item in items["features"]:
            for asset in item["assets"].values():
                asset["href"] = str((self.items.parent / asset["href"]).resolve())
        absolute = self.folder / "items.json"
        absolute.write_text(json.dumps(items))
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(self.recipe, sort_keys=False))
        recipe = parse_recipe(self.recipe)
        mask, settings = recipe.source.mask, recipe.grid
        by_hand = {
            "items": str(absolute),
            "epsg": int(settings.crs.split(":")[1]),
            "resolution": settings.gsd_m,
            "bounds": self.bounds,
            "chunksize": settings.block_px,
            "chunk_px": settings.chunk_px,
            "shard_px": settings.shard_px,
            "clear_values": mask.clear_values,
            "dilate": mask.dilate_px,
            "threshold": recipe.model.options["threshold"],
            "scale": UPSCALE,
            "workers": size_cluster(recipe.cluster).workers,
            "threads": recipe.cluster.blocks_per_worker,
        }
        (self.folder / "case.json").write_text(json.dumps(by_hand))

    def command(self, who: str) -> list[str]:
        """Return the command that makes the map."""
        folder, output = self.folder, str(self.outputs[who])
        if who == "bigmap":
            return [sys.executable, "-c", RUN_BIGMAP, str(folder / "recipe.yaml")]
        script = str(ROOT / "benchmarks" / "by_hand.py")
        return [sys.executable, script, str(folder / "case.json"), output]


def adapt_recipe(name: str, **grid_settings: Any) -> dict[str, Any]:
    """Return the recipe of Catalonia for the items of a case, with NDVI, every date, two layers."""
    recipe = read_yaml(ROOT / "recipes" / "catalonia.yaml")
    folder = WORK / name
    mask = recipe["source"]["mask"]
    recipe |= {
        "name": name,
        "area": {"file": str(folder / "area.gpkg")},
        "source": {
            "kind": "files",
            "files": [str(folder / "items.json")],
            "start": dt.date(2015, 1, 1),
            "end": dt.date(2100, 1, 1),
            "mask": mask,
        },
        "dates": {"max_per_cell": 400, "min_clear_percent": 0},
        "output": {
            "path": str(folder / "bigmap.zarr"),
            "layers": ["class", "ndvi"],
            "overviews": 0,
        },
    }
    recipe["grid"] |= grid_settings
    recipe["model"] = {"name": "ndvi", "options": {"threshold": 0.45, "upscale": UPSCALE}}
    del recipe["samples"], recipe["training"]
    return recipe


def prepare_simulated(side_blocks: int, last_day: dt.date) -> Case:
    """Write scenes that cover a square of blocks, once."""
    name = f"simulated-{side_blocks}x{side_blocks}-{last_day}"
    folder = WORK / f"scenes-{VERSION}-{name}"
    items = folder / "items.json"
    recipe = adapt_recipe(name, block_px=1024)
    block_px, gsd_m = recipe["grid"]["block_px"], recipe["grid"]["gsd_m"]
    side_px = side_blocks * block_px
    left, top = CORNER_M
    if not items.exists():
        request = SceneRequest(
            crs="EPSG:32631",
            bounds=PATCH_M,
            start=dt.date(2024, 5, 1),
            end=last_day,
            bands=("red", "nir"),
            seed=0,
            scene_px=366,
        )
        parts = write_scenes(request, WORK / "parts")
        margin_m = MARGIN_PX * gsd_m
        corner = (left - margin_m, top + margin_m)
        scenes = [
            write_scene(group, parts.parent, folder, corner, side_px + 2 * MARGIN_PX)
            for group in group_by_day(json.loads(parts.read_text())["features"])
        ]
        items.write_text(json.dumps({"type": "FeatureCollection", "features": scenes}))
    dates = len(json.loads(items.read_text())["features"])
    bounds = (left, top - side_px * gsd_m, left + side_px * gsd_m, top)
    title = f"simulated, {side_px} x {side_px} px of 10 m, {dates} dates, no warp needed"
    return Case(name, title, items, bounds, recipe)


def group_by_day(features: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Group the items of parts by their acquisition."""

    def day(feature: dict[str, Any]) -> str:
        return str(feature["properties"]["datetime"])[:10]

    for _, group in itertools.groupby(sorted(features, key=day), day):
        yield list(group)


def write_scene(
    parts: list[dict[str, Any]], root: Path, folder: Path, corner: tuple[float, float], side_px: int
) -> dict[str, Any]:
    """Join the parts of a tile, mirror them until they fill a square, and write it as COGs.

    Parts are small files so that a trial renders little; real products are whole tiles, and a
    script by hand would suffer from hundreds of small files as it would not from real ones.
    """
    day = parts[0]["properties"]["datetime"][:10]
    item = json.loads(json.dumps(parts[0])) | {"id": f"S2_31TCG_{day.replace('-', '')}_0_L2A"}
    left, top = corner
    side_m = side_px * 10
    for name, asset in item["assets"].items():
        step = asset["proj:transform"][0]
        size = side_px * 10 // step
        with_sources = [rasterio.open(root / part["assets"][name]["href"]) for part in parts]
        patch, _ = merge(with_sources)
        for source in with_sources:
            source.close()
        pixels = np.pad(patch[0], [(0, size - n) for n in patch[0].shape], mode="symmetric")
        file = folder / item["id"] / f"{name}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        transform = Affine(step, 0, left, 0, -step, top)
        with rasterio.open(
            file, "w", driver="COG", dtype=pixels.dtype, count=1, height=size, width=size, nodata=0,
            crs="EPSG:32631", transform=transform, compress="deflate", predictor="yes",
            blocksize=1024 if step == 10 else 512, overview_resampling="nearest",
        ) as target:  # fmt: skip
            target.write(pixels, 1)
        asset |= {
            "href": str(file.relative_to(folder)),
            "proj:shape": [size, size],
            "proj:transform": list(transform)[:6],
        }
    outline = shapely.geometry.mapping(shapely.box(left, top - side_m, left + side_m, top))
    item["geometry"] = transform_geom("EPSG:32631", "EPSG:4326", outline)
    item["bbox"] = list(shapely.geometry.shape(item["geometry"]).bounds)
    return item


def prepare_real() -> Case:
    """Take whole blocks inside the real products."""
    features = json.loads(REAL_ITEMS.read_text())["features"]
    boxes = [asset_bounds(feature["assets"]["red"]) for feature in features]
    outline = shapely.union_all([shapely.box(*box) for box in boxes]).bounds
    left, bottom, right, top = transform_bounds("EPSG:32633", "EPSG:3035", *outline)
    gsd_m, block_px = 100.0, 512
    step = gsd_m * block_px
    bounds = (
        math.ceil(left / step) * step,
        math.ceil(bottom / step) * step,
        math.floor(right / step) * step,
        math.floor(top / step) * step,
    )
    recipe = adapt_recipe(
        "real", crs="EPSG:3035", gsd_m=gsd_m, cell_px=512, block_px=block_px,
        shard_px=UPSCALE * block_px,
    )  # fmt: skip
    title = f"real products at 120 m, warped to EPSG:3035 at 100 m, {len(features)} items"
    return Case("real", title, REAL_ITEMS, bounds, recipe)


def asset_bounds(asset: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a north-up asset."""
    step_x, _, left, _, step_y, top = asset["proj:transform"][:6]
    height, width = asset["proj:shape"]
    return left, top + height * step_y, left + width * step_x, top


def compare_maps(case: Case) -> dict[str, float]:
    """Compare the two maps pixel by pixel, where both have a value."""
    ours, theirs = (zarr.open_group(path, mode="r") for path in case.outputs.values())
    shape, step = ours["class"].shape, ours["class"].shards[0]
    totals = dict.fromkeys(
        ("pixels", "both", "one", "classes_equal", "ndvi_equal", "ndvi_within_1", "ndvi_sum"), 0.0
    )
    greatest = 0
    for row, col in itertools.product(*(range(0, size, step) for size in shape)):
        cut = np.s_[row : row + step, col : col + step]
        a, b = (np.asarray(group["class"][cut]) for group in (ours, theirs))
        both = (a != 255) & (b != 255)
        x, y = (np.asarray(group["ndvi"][cut])[both].astype(int) for group in (ours, theirs))
        off = np.abs(x - y)
        totals["pixels"] += a.size
        totals["both"] += both.sum()
        totals["one"] += ((a != 255) ^ (b != 255)).sum()
        totals["classes_equal"] += (a == b)[both].sum()
        totals["ndvi_equal"] += (off == 0).sum()
        totals["ndvi_within_1"] += (off <= 1).sum()
        totals["ndvi_sum"] += off.sum()
        greatest = max(greatest, int(off.max(initial=0)))
    both = max(totals["both"], 1.0)
    return {
        "pixels": totals["pixels"],
        "share_mapped_by_both": totals["both"] / totals["pixels"],
        "share_mapped_by_one": totals["one"] / totals["pixels"],
        "share_of_equal_classes": totals["classes_equal"] / both,
        "share_of_equal_ndvi": totals["ndvi_equal"] / both,
        "share_of_ndvi_within_1e-4": totals["ndvi_within_1"] / both,
        "mean_ndvi_difference": totals["ndvi_sum"] / both * 1e-4,
        "greatest_ndvi_difference": greatest * 1e-4,
    }


def record_nothing(job: BlockJob, block: ROI, rows: tuple[ItemRow, ...]) -> BlockRecord:
    """Stand for a block without any work."""
    del rows
    return BlockRecord(name_block(job.lattice, block), "empty")


def measure_driver(case: Case, blocks: int) -> float:
    """Return the driver's milliseconds for a block: planning of rows, sending, recording."""
    recipe = parse_recipe(case.recipe)
    recipe = recipe.model_copy(
        update={
            "output": recipe.output.model_copy(update={"path": str(case.folder / "empty.zarr")})
        }
    )
    plan = api.plan(recipe)
    rows, cols = plan.only.extent
    side = 16
    lattice = replace(
        plan.only.lattice, core_px=side, cell_px=side, block_px=side, shard_px=side * UPSCALE,
        chunk_px=side * UPSCALE,
    )  # fmt: skip
    tiles = tuple(itertools.islice(grid.tiles_of((rows, cols), side), blocks))
    plan = replace(plan, parts=(replace(plan.only, lattice=lattice, blocks=tiles),))
    with open_client(recipe) as client:
        summary = run_plan(plan, client, task=record_nothing)
    return summary.elapsed_s / len(tiles) * 1e3


def measure_case(case: Case, pairs: int) -> dict[str, Any]:
    """Run both in turn and compare what they made."""
    case.write()
    commands = {who: case.command(who) for who in case.outputs}
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in commands}
    for who, done in run_in_turn(commands, case.folder, pairs=pairs).items():
        for measured in done:
            run = {"seconds": measured.seconds, "peak_gb": measured.peak_bytes / 1e9}
            if who == "bigmap":
                found = json.loads(measured.output)
                run |= dict(zip(("elapsed_s", "planned", "stages"), found, strict=True))
            runs[who].append(run)
    seconds = {who: [run["seconds"] for run in done] for who, done in runs.items()}
    return {
        "title": case.title,
        "area_km2": case.area_km2,
        "runs": runs,
        "ratios": paired_ratios(seconds["bigmap"], seconds["by_hand"]),
        "comparison": compare_maps(case),
    }


def describe_case(result: dict[str, Any]) -> str:
    """Write the results of a case as Markdown."""
    area_km2 = result["area_km2"]
    rows = []
    for who, runs in result["runs"].items():
        seconds = [run["seconds"] for run in runs]
        rates = spread([area_km2 / value * 3600 for value in seconds])
        peaks = spread([run["peak_gb"] for run in runs])
        name = {"bigmap": "`bigmap run`", "by_hand": "by hand"}[who]
        rows.append(
            (name, format_spread(spread(seconds)), format_spread(rates, 0), format_spread(peaks, 2))
        )
    ratios = spread(result["ratios"])
    same = result["comparison"]
    agreement = (
        f"Pixels that both map: {same['share_mapped_by_both']:.2%}, that only one maps: "
        f"{same['share_mapped_by_one']:.4%}; equal classes among them: "
        f"{same['share_of_equal_classes']:.4%}; NDVI within 0.0001: "
        f"{same['share_of_ndvi_within_1e-4']:.3%}, mean difference "
        f"{same['mean_ndvi_difference']:.6f}, greatest {same['greatest_ndvi_difference']:.4f}."
    )
    setting = (
        f"{area_km2:,.0f} km², {len(result['ratios'])} pairs of runs in turn, whole processes, "
        "files in the page cache; median (least to greatest)."
    )
    paragraphs = (
        f"## {result['title']}",
        setting,
        table(("", "seconds", "km²/h", "peak memory, GB"), rows),
        f"**By hand takes {format_spread(ratios, 2)} times as long as `bigmap run`.**",
        agreement,
        describe_stages(result["runs"]["bigmap"]),
    )
    return "\n\n".join(paragraphs)


def describe_stages(runs: list[dict[str, Any]]) -> str:
    """Write where bigmap's time went; stages overlap, as blocks are worked on side by side."""
    stages = {name for run in runs for name in run["stages"]}
    blocks = runs[0]["planned"]
    means = {s: spread([run["stages"].get(s, 0.0) for run in runs])["median"] for s in stages}
    total = sum(means.values()) or 1.0
    rows = [
        (stage, f"{seconds:.2f}", f"{seconds / blocks * 1e3:.0f}", f"{seconds / total:.0%}")
        for stage, seconds in sorted(means.items(), key=lambda entry: -entry[1])
    ]
    start = spread([run["seconds"] - run["elapsed_s"] for run in runs])["median"]
    return (
        table(("stage", "seconds of all blocks", "ms per block", "share"), rows)
        + f"\n\nStart, planning, audit and end take {start:.1f} s beside the {blocks} blocks."
    )


def main(arguments: list[str]) -> None:
    """Measure all cases and write the results."""
    parser = argparse.ArgumentParser(prog="end_to_end")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute, not a result")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs after the warm-up")
    parser.add_argument("--side", type=int, default=2, help="blocks along the simulated square")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    if options.quick:
        cases = [prepare_simulated(1, dt.date(2024, 5, 20))]
    else:
        cases = [prepare_simulated(options.side, dt.date(2024, 6, 30))]
        cases += [prepare_real()] if REAL_ITEMS.exists() else []
    pairs = 1 if options.quick else options.pairs
    results = {case.name: measure_case(case, pairs) for case in cases}
    blocks = 200 if options.quick else DRIVER_BLOCKS
    driver_ms = measure_driver(cases[0], blocks)
    driver = (
        f"## Driver\n\n{driver_ms:.2f} ms per block, with {blocks} blocks that do nothing: rows "
        "chosen, sent, received, recorded."
    )
    body = "\n\n".join([*(describe_case(result) for result in results.values()), driver])
    found = {"machine": machine, "cases": results, "driver_ms_per_block": driver_ms}
    write_results("end_to_end", "End to end", body, found, quick=options.quick)
