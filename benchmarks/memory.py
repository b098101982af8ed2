"""Peak memory of a worker against what `plan` says of it, for every model.

A worker of Dask, a process of its own, maps blocks of made-up scenes with everything that a run
has. Scenes are clear on a few windows only: a cell is read with all its dates, but the network,
whose weights are random, runs on one batch or two.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds

import bigmap
from benchmarks.measuring import WORK, describe_machine, table, write_results
from bigmap.clusters import open_cluster
from bigmap.config import Recipe, parse_recipe
from bigmap.mapping.loads import count_memory_gb
from bigmap.mapping.running import run_plan
from bigmap.models.layers import TYPICAL_STATISTICS

EPSG = 32631
LEFT, TOP = 40_960 * 10, 46_080 * 10 * 10
"""Of the first block in metres: a corner of the lattice of cells."""
MARGIN_PX = 1024
LIMITS = (1.0, 1.4)
WORKER_GB = 20


@dataclass(frozen=True)
class Case:
    """One row: a model and what a run of it would set."""

    model: str
    options: str = ""
    """As words ``name=value``."""
    dates: int = 12
    cell_px: int = 512
    """Side of a cell, which is a block."""
    core_px: int = 128
    batch_windows: int = 2
    precision: str = "float32"
    crs: str = "EPSG:32631"

    @property
    def clear_px(self) -> slice:
        """Rows, or columns, of a cell that are clear: they lie in windows that fill a batch."""
        first = 7 * self.core_px // 4  # within a core, be it half a core off the cells or not
        return slice(first, first + 4 + (math.isqrt(self.batch_windows - 1)) * self.core_px)


CASES = (
    Case("small-conv"),
    Case("small-conv", "width=64", batch_windows=8),
    Case("ndvi"),
    Case("bicubic"),
    Case("bicubic", dates=40, cell_px=1024, batch_windows=8),
    Case("bicubic", "composite=mean", dates=40),
    Case("bicubic", "composite=clearest", dates=40),
    Case("spinet", "size=small"),
    Case("spinet", "size=small", precision="bfloat16"),
    Case("spinet", "size=small", dates=24, core_px=64, crs="EPSG:3035"),
    Case("spinet", "size=full", dates=3, batch_windows=1),
    Case("piunet", "size=small"),
    Case("piunet", "size=full", dates=3, batch_windows=1),
    Case("hrnet", "size=small", dates=6, core_px=256, batch_windows=1),
    Case("hrnet", "size=full", dates=2, core_px=256, batch_windows=1),
    Case("sr-hrnet", "size=small", dates=6, core_px=256, batch_windows=1),
    Case("sr-hrnet", "size=full", dates=2, core_px=256, batch_windows=1),
    Case("highres-net", "size=small"),
    Case("highres-net", "size=full", dates=4, batch_windows=1),
    Case("srresnet", "size=small"),
    Case("srresnet", "size=full", dates=4, batch_windows=1),
    Case("dbpn", "size=small"),
    Case("dbpn", "size=full", dates=2, core_px=64, batch_windows=1),
    Case("dbpn-segnet", "size=small"),
    Case("dbpn-segnet", "size=full", dates=2, core_px=64, batch_windows=1),
    Case("deeplabv3plus", "size=small", dates=6, core_px=256, batch_windows=1),
    Case("deeplabv3plus", "size=full", dates=2, core_px=256, batch_windows=1),
    Case("segnet", "size=small"),
    Case("segnet", "size=full", dates=2, batch_windows=1),
    Case("dual", "size=small", dates=6, core_px=256, batch_windows=1),
    Case("dual", "size=full", dates=1, core_px=256, batch_windows=1),
)
"""Full networks see few dates, and the spot that is clear lies in one of their windows."""


def write_scenes(folder: Path, case: Case) -> Path:
    """Write one tile in files of 10 m that all dates share; return its items."""
    side = 2 * MARGIN_PX + 2 * case.cell_px, 2 * MARGIN_PX + 4 * case.cell_px
    folder.mkdir(parents=True, exist_ok=True)
    transform = Affine(10, 0, LEFT - 10 * MARGIN_PX, 0, -10, TOP + 10 * MARGIN_PX)
    bounds = rasterio.transform.array_bounds(*side, transform)
    west, south, east, north = transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", *bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    rng = np.random.default_rng(0)
    assets = {}
    for band in (*TYPICAL_STATISTICS, "scl"):
        file = folder / f"{band}.tif"
        is_mask = band == "scl"
        values = np.full(side, 9, np.uint8) if is_mask else rng.integers(1100, 1356, side)
        if is_mask:
            for first in (0, case.cell_px):
                cell = values[MARGIN_PX:, MARGIN_PX + first :]
                cell[case.clear_px, case.clear_px] = 4
        with rasterio.open(
            file, "w", driver="GTiff", height=side[0], width=side[1], count=1, nodata=0,
            crs=f"EPSG:{EPSG}", dtype="uint8" if is_mask else "uint16", transform=transform,
            tiled=True, compress="deflate", zlevel=1,
        ) as target:  # fmt: skip
            target.write(values.astype(target.dtypes[0]), 1)
        assets[band] = {
            "href": f"./{file.name}", "type": "image/tiff; application=geotiff", "roles": ["data"],
            "proj:shape": list(side), "proj:transform": list(transform)[:6],
        }  # fmt: skip
    features = [
        {
            "type": "Feature", "stac_version": "1.0.0", "id": f"S2A_31TDF_{day}_0_L2A",
            "collection": "sentinel-2-l2a", "bbox": [west, south, east, north], "links": [],
            "geometry": {"type": "Polygon", "coordinates": [ring]}, "assets": assets,
            "properties": {
                "datetime": f"{day}T10:50:31Z", "created": f"{day}T20:00:00Z",
                "platform": "sentinel-2a", "proj:epsg": EPSG, "grid:code": "MGRS-31TDF",
                "eo:cloud_cover": 5.0, "s2:processing_baseline": "05.10",
                "earthsearch:boa_offset_applied": True,
            },
        }
        for day in (np.datetime64("2024-05-01") + np.arange(case.dates)).astype(str)
    ]  # fmt: skip
    items = folder / "items.json"
    items.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return items


def make_recipe(case: Case, folder: Path) -> Recipe:
    """Return the recipe of two blocks side by side."""
    items, options = (
        write_scenes(folder / "scenes", case),
        dict(word.split("=") for word in case.options.split()),
    )
    inset = 50
    box = (LEFT + inset, TOP - 10 * case.cell_px + inset, LEFT + 20 * case.cell_px - inset,
           TOP - inset)  # fmt: skip
    return parse_recipe({
        "name": "memory",
        "area": {"bbox": list(transform_bounds(f"EPSG:{EPSG}", "EPSG:4326", *box))},
        "grid": {"crs": case.crs, "gsd_m": 10, "core_px": case.core_px, "cell_px": case.cell_px,
                 "block_px": case.cell_px, "shard_px": case.cell_px, "chunk_px": case.cell_px},
        "source": {"kind": "files", "files": [str(items)], "start": "2024-05-01",
                   "end": "2024-12-31"},
        "dates": {"max_per_cell": case.dates, "min_clear_percent": 0},
        "model": {"name": case.model, "options": {
            name: int(value) if value.isdigit() else value for name, value in options.items()}},
        "inference": {"batch_windows": case.batch_windows, "precision": case.precision},
        "cluster": {"kind": "local", "workers": 1, "memory_gb": WORKER_GB},
        "output": {"path": str(folder / "map.zarr"), "overviews": 2},
    })  # fmt: skip


def peak_bytes() -> int:
    """Return the most memory that this process ever had.

    The system's `ru_maxrss` would not do: a process takes over that of the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Plan and run a case; its worker is a process of its own."""
    plan = bigmap.plan(make_recipe(case, folder))
    with open_cluster(plan.recipe.cluster) as client:
        idle = client.run(peak_bytes)
        summary = run_plan(plan, client)
        peaks = client.run(peak_bytes)
    assert not summary.failures, summary.failures
    if not peaks or peaks.keys() != idle.keys():
        raise RuntimeError(f"{case}: the worker was lost, and what it took with it")
    peak_gb = max(peaks.values()) / 1e9
    estimate_gb = count_memory_gb(plan.only)
    return asdict(case) | {
        "estimate_gb": estimate_gb, "peak_gb": peak_gb, "idle_gb": max(idle.values()) / 1e9,
        "ratio": estimate_gb / peak_gb, "seconds": summary.elapsed_s,
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure all cases, each with a worker of its own."""
    parser = argparse.ArgumentParser(prog="memory")
    parser.add_argument("--quick", action="store_true", help="small-conv and bicubic only")
    options, _ = parser.parse_known_args(arguments)
    machine, rows = describe_machine(), []
    folder = WORK / "memory"
    for case in CASES[:4] if options.quick else CASES:
        shutil.rmtree(folder, ignore_errors=True)
        rows.append(measure(case, folder))
        sys.stderr.write(f"{write_row(rows[-1])}\n")
    shutil.rmtree(folder)
    write_results("memory", "Memory of a worker, estimated and measured", describe(rows),
                  {"machine": machine, "rows": rows}, quick=options.quick)  # fmt: skip


def write_row(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row."""
    return [
        f"`{row['model']}`" + (f", {row['options']}" if row["options"] else ""),
        *(str(row[name]) for name in ("dates", "cell_px", "core_px", "batch_windows", "precision")),
        f"{row['estimate_gb']:.2f}", f"{row['peak_gb']:.2f}", f"{row['ratio']:.2f}",
    ]  # fmt: skip


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """Write the figures as text and a table."""
    outside = [row for row in rows if not LIMITS[0] <= row["ratio"] <= LIMITS[1]]
    header = ("model", "dates", "cell, px", "core, px", "windows", "precision",
              "estimate, GB", "peak, GB", "estimate / peak")  # fmt: skip
    return (
        "One worker of Dask with two blocks of one cell each in hand. Its peak is "
        "the most resident memory that the system counted for its process. "
        f"{len(rows) - len(outside)} of {len(rows)} estimates lie between {LIMITS[0]:g} and "
        f"{LIMITS[1]:g} times the peak.\n\n" + table(header, [write_row(row) for row in rows])
    )
