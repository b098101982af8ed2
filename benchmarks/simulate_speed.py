"""Time the writing of simulated scenes: 10 km x 10 km, 12 dates, 12 bands.

    python -m benchmarks.simulate_speed [--small]

Writes one JSON file to benchmarks/results/ and prints it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import watch_memory
from bigmap.simulate import SceneRequest, list_request_parts, write_scenes
from bigmap.simulate.sensor import MSI

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="20 km x 20 km, 6 dates, 2 bands")
    parser.add_argument("--scene-px", type=int, default=1098, help="side of files, 366 or 1098")
    options = parser.parse_args()
    side_m, days, bands = (
        (20_000, 14, ("red", "nir")) if options.small else (10_000, 59, tuple(MSI))
    )
    left, bottom = 440_000, 4_620_000
    request = SceneRequest(
        "EPSG:25831",
        (left, bottom, left + side_m, bottom + side_m),
        dt.date(2024, 5, 1),
        dt.date(2024, 5, 1) + dt.timedelta(days=days),
        bands,
        seed=1,
        scene_px=options.scene_px,
    )
    with tempfile.TemporaryDirectory() as folder, watch_memory() as peak:
        started = time.perf_counter()
        items = write_scenes(request, Path(folder))
        first_s = time.perf_counter() - started
        started = time.perf_counter()
        write_scenes(request, Path(folder))
        again_s = time.perf_counter() - started
        features = json.loads(items.read_text())["features"]
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.tif"))
    result = {
        "area_km2": side_m**2 / 1e6,
        "scene_px": request.scene_px,
        "written_km2": len(list_request_parts(request)) * (request.scene_px / 100) ** 2,
        "dates": len({item["properties"]["datetime"][:10] for item in features}),
        "items": len(features),
        "bands": len(bands),
        "seconds": round(first_s, 1),
        "seconds_again": round(again_s, 2),
        "peak_memory_mb": peak[0] // 1_000_000,
        "megabytes": round(size / 1e6, 1),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
    }
    RESULTS.mkdir(exist_ok=True)
    name = "simulate-small" if options.small else "simulate-full"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
