"""Our reader against rasterio's WarpedVRT: time per pixel, and whether chunks change pixels."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds

from benchmarks.measuring import (
    WORK,
    describe_machine,
    format_spread,
    spread,
    table,
    write_results,
)
from bigmap import grid
from bigmap.grid import ROI
from bigmap.scenes.cube.pixels import BANDS
from bigmap.scenes.cube.reading import RasterReader
from bigmap.scenes.cube.resampling import TargetGrid, plan_sampling

CRS = "EPSG:3035"
GSD_M = 10.0
FILE_CRS = "EPSG:32631"
FILE_PX = 5490
METHODS = ("nearest", "bilinear", "cubic")
Pixels = npt.NDArray[Any]
Read = Callable[[ROI], Pixels]


def write_noise(file: Path) -> None:
    """Write a COG in which any shift of a sample shows: a smooth field with strong noise."""
    rng = np.random.default_rng(1)
    rows, cols = np.ogrid[:FILE_PX, :FILE_PX]
    pixels = 3000 + 1500 * np.sin(rows / 40) * np.cos(cols / 60)
    pixels = (pixels + rng.integers(0, 500, pixels.shape)).astype(np.uint16)
    pixels[:, :50] = 0
    transform = Affine(GSD_M, 0, 300000, 0, -GSD_M, 4700040)
    with rasterio.open(
        file, "w", driver="COG", dtype="uint16", count=1, height=FILE_PX, width=FILE_PX, nodata=0,
        crs=FILE_CRS, transform=transform, compress="deflate", predictor=2, blocksize=1024,
    ) as target:  # fmt: skip
        target.write(pixels, 1)


def choose_region(file: Path, side_px: int) -> ROI:
    """Return a square in the middle of the file, in global pixel indices of the grid."""
    with rasterio.open(file) as source:
        left, bottom, right, top = transform_bounds(source.crs, CRS, *source.bounds)
    row = round(-(bottom + top) / 2 / GSD_M) - side_px // 2
    col = round((left + right) / 2 / GSD_M) - side_px // 2
    return slice(row, row + side_px), slice(col, col + side_px)


def read_with_ours(file: Path, method: str) -> Read:
    """Return our reader."""
    reader = RasterReader(TargetGrid(CRS, GSD_M), method, BANDS)
    return lambda roi: reader.read(str(file), roi)


def read_with_vrt(file: Path, method: str, **options: Any) -> Read:
    """Return a reader of a part of a WarpedVRT over the whole file, as stackstac has it."""
    with rasterio.open(file) as source:
        left, bottom, right, top = transform_bounds(source.crs, CRS, *source.bounds)
    col, row = math.floor(left / GSD_M), math.floor(-top / GSD_M)
    size = {"width": math.ceil(right / GSD_M) - col, "height": math.ceil(-bottom / GSD_M) - row}
    transform = Affine(GSD_M, 0, col * GSD_M, 0, -GSD_M, -row * GSD_M)

    def read(roi: ROI) -> Pixels:
        window = tuple(
            (part.start - first, part.stop - first)
            for part, first in zip(roi, (row, col), strict=True)
        )
        with (
            rasterio.open(file, sharing=False) as source,
            WarpedVRT(
                source,
                crs=CRS,
                transform=transform,
                resampling=Resampling[method],
                **size,
                **options,
            ) as vrt,
        ):
            return vrt.read(1, window=window)

    return read


def readers_of(file: Path, method: str) -> dict[str, Read]:
    """Return all readers by name."""
    exact = {"tolerance": 1e-9, "XSCALE": 1.0, "YSCALE": 1.0}
    return {
        "bigmap": read_with_ours(file, method),
        "WarpedVRT, default": read_with_vrt(file, method),
        "WarpedVRT, exact": read_with_vrt(file, method, **exact),
    }


def read_in_chunks(read: Read, roi: ROI, chunk_px: int) -> Pixels:
    """Read a region chunk by chunk, from chunks' own corner."""
    rows, cols = roi
    return np.block(
        [
            [
                read(
                    (slice(r, min(r + chunk_px, rows.stop)), slice(c, min(c + chunk_px, cols.stop)))
                )
                for c in range(cols.start, cols.stop, chunk_px)
            ]
            for r in range(rows.start, rows.stop, chunk_px)
        ]
    )


def time_reads(read: Read, roi: ROI, repeats: int) -> list[float]:
    """Return nanoseconds per pixel of whole reads."""
    pixels = math.prod(grid.shape_of(roi))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        read(roi)
        found.append((time.perf_counter() - start) / pixels * 1e9)
    return found


def measure_method(file: Path, method: str, roi: ROI, repeats: int) -> list[dict[str, Any]]:
    """Measure all readers with one kind of resampling."""
    results = []
    for name, read in readers_of(file, method).items():
        whole = read(roi)
        chunked = read_in_chunks(read, roi, 500)
        plan_sampling.cache_clear()
        first = time_reads(read, roi, 1)[0]
        later = time_reads(read, roi, repeats)
        results.append(
            {
                "method": method,
                "reader": name,
                "first_ns_per_px": first,
                "ns_per_px": later,
                "pixels": int(np.count_nonzero(whole)),
                "changed_by_chunks": int(np.count_nonzero(whole != chunked)),
                "greatest_change_dn": int(np.abs(whole.astype(int) - chunked.astype(int)).max()),
            }
        )
    return results


def main(arguments: list[str]) -> None:
    """Measure all readers and write the results."""
    parser = argparse.ArgumentParser(prog="resampling")
    parser.add_argument("--quick", action="store_true", help="a trial, not a result")
    options, _ = parser.parse_known_args(arguments)
    machine = describe_machine()
    WORK.mkdir(parents=True, exist_ok=True)
    file = WORK / "noise.tif"
    if not file.exists():
        write_noise(file)
    roi = choose_region(file, 700 if options.quick else 2048)
    repeats = 2 if options.quick else 7
    results = [r for method in METHODS for r in measure_method(file, method, roi, repeats)]
    rows = [
        (
            f"{r['method']}, {r['reader']}",
            f"{r['first_ns_per_px']:.0f}",
            format_spread(spread(r["ns_per_px"]), 0),
            f"{r['changed_by_chunks']:,} of {r['pixels']:,}",
            r["greatest_change_dn"],
        )
        for r in results
    ]
    header = ("", "first file, ns/px", "next files, ns/px", "changed by chunks", "by DN, at most")
    side = grid.shape_of(roi)[0]
    body = (
        f"A COG in {FILE_CRS} read onto {CRS} at {GSD_M:g} m, {side} x {side} px at once, opening "
        "and decoding included; median (least to greatest). The first file of a grid pays for "
        "bigmap's plan of places and weights, the next ones on the same grid share it. Then once "
        "more in chunks of 500 px, and compared.\n\n" + table(header, rows)
    )
    found = {"machine": machine, "side_px": side, "results": results}
    write_results("resampling", "Resampling", body, found, quick=options.quick)
