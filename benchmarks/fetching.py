"""Bytes that a map fetches over HTTP, against those of the tiles of files that it touches.

8 x 8 cells with NDVI, whose pixels lie in COGs behind a server that counts.
"""

import argparse
import datetime as dt
import json
import re
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import rasterio
import yaml
from rasterio.windows import Window, from_bounds, intersect

from benchmarks.end_to_end import RUN_BIGMAP, Case, prepare_simulated
from benchmarks.measuring import (
    describe_machine,
    format_spread,
    run_measured,
    spread,
    table,
    write_results,
)
from bigmap.config import parse_recipe
from bigmap.grid import grow
from bigmap.mapping.planning import make_plan

WORKERS = (1, 2)
SIDE_BLOCKS = 8
LAST_DAY = dt.date(2024, 5, 16)
ASSETS = ("red", "nir", "scl")


class Server(ThreadingHTTPServer):
    """Serves parts of files below a folder and counts what it sends."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.sent_bytes = 0
        self.requests = 0
        self.counting = threading.Lock()

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers requests for a range, and for the size of a file."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        """Tell the size of a file."""
        self.answer()

    def do_GET(self) -> None:
        """Send a range of a file."""
        body = self.answer()
        with self.server.counting:
            self.server.sent_bytes += len(body)
            self.server.requests += 1
        self.wfile.write(body)

    def answer(self) -> bytes:
        """Send the head of an answer; return its body."""
        file = self.server.folder / self.path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not file.is_file():
            self.send_response(HTTPStatus.NOT_FOUND)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return b""
        size = file.stat().st_size
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        with file.open("rb") as source:
            source.seek(first)
            return source.read(last + 1 - first) if self.command == "GET" else b""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


def write_recipe(case: Case, address: str, workers: int) -> Path:
    """Write the recipe of a map whose files lie behind the server."""
    root = case.items.parent.resolve()
    items = json.loads((case.folder / "items.json").read_text())
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"{address}/{Path(asset['href']).relative_to(root)}"
    listed = case.folder / "items-over-http.json"
    listed.write_text(json.dumps(items))
    recipe = case.recipe | {"cluster": {"kind": "local", "workers": workers}}
    recipe["source"] = recipe["source"] | {"files": [str(listed)]}
    recipe["grid"] = {k: v for k, v in recipe["grid"].items() if k != "block_px"}
    path = case.folder / f"over-http-{workers}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def count_touched_bytes(case: Case, recipe: Path) -> int:
    """Return the bytes of all tiles with a pixel that the map needs, each counted once."""
    part = make_plan(parse_recipe(yaml.safe_load(recipe.read_text()))).only
    margin_px = part.halo_px + part.recipe.source.mask.dilate_px
    bounds = part.lattice.bounds(grow(part.extent, margin_px))
    total = 0
    for file in sorted(case.items.parent.glob("*/*.tif")):
        if file.stem not in ASSETS:
            continue
        with rasterio.open(file) as dataset:
            wanted = from_bounds(*bounds, dataset.transform)
            for (row, col), window in dataset.block_windows(1):
                if intersect(Window(*window.flatten()), wanted):
                    total += dataset.block_size(1, row, col)
    return total


def measure(case: Case, server: Server, workers: int, runs: int) -> dict[str, Any]:
    """Make the map some times; return what it fetched each time."""
    recipe = write_recipe(case, server.address, workers)
    touched = count_touched_bytes(case, recipe)
    fetched = []
    for _ in range(runs):
        server.sent_bytes = server.requests = 0
        command = [sys.executable, "-c", RUN_BIGMAP, str(recipe)]
        seconds = run_measured(command, case.folder / "over-http.log").seconds
        fetched.append(
            {"bytes": server.sent_bytes, "requests": server.requests, "seconds": seconds}
        )
        sys.stderr.write(f"{workers} workers: {fetched[-1]}, {touched} touched\n")
    return {"workers": workers, "touched_bytes": touched, "fetched": fetched}


def main(arguments: list[str]) -> None:
    """Measure with one worker and with two, and write the results."""
    parser = argparse.ArgumentParser(prog="fetching")
    parser.add_argument("--quick", action="store_true", help="a trial of 2 x 2 cells, not a result")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    side = 2 if options.quick else SIDE_BLOCKS
    case = prepare_simulated(side, LAST_DAY)
    case.write()
    with Server(case.items.parent.resolve()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        results = [measure(case, server, n, 1 if options.quick else options.runs) for n in WORKERS]
        server.shutdown()
    rows = []
    for result in results:
        ratios = spread([run["bytes"] / result["touched_bytes"] for run in result["fetched"]])
        requests = spread([run["requests"] for run in result["fetched"]])
        megabytes = f"{result['touched_bytes'] / 1e6:,.0f}"
        rows.append(
            (result["workers"], megabytes, format_spread(ratios, 2), format_spread(requests, 0))
        )
    body = (
        f"{case.title}; {side} x {side} cells of 1,024 px in blocks of 2,048 px, COGs with tiles "
        f"of 1,024 px (10 m) and 512 px (20 m) behind a server on this machine.\n\n"
    ) + table(("workers", "MB of tiles touched", "fetched / touched", "requests"), rows)
    write_results(
        "fetching", "Bytes fetched over HTTP", body, {"machine": machine, "results": results},
        quick=options.quick,
    )  # fmt: skip
