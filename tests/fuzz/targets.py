"""What is called with mutated files: the public ways in which bigmap reads them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from rich.console import Console

from bigmap import cli
from bigmap.api import open_map, plan
from bigmap.area import list_utm_zones, read_area
from bigmap.cli.ending import USER_ERROR
from bigmap.cli.status import show_status, status_dict
from bigmap.config import load_recipe, parse_recipe
from bigmap.config.loading import load_cluster
from bigmap.config.sources import Access, FilesSource, StacApiSource, StaticCatalogSource
from bigmap.config.strict_yaml import parse_yaml
from bigmap.config.training import RasterLabels, VectorLabels
from bigmap.learning.chips import ChipSet
from bigmap.learning.labels.opening import open_labels
from bigmap.learning.training.folder import TrainingFolder
from bigmap.lease import Lease
from bigmap.mapping.loads import estimate_plan
from bigmap.mapping.places import Attempt, check_place
from bigmap.mapping.planning import make_plan
from bigmap.mapping.purpose import Purpose
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.staging.stages import verify_stage
from bigmap.mapping.status import read_status
from bigmap.mapping.store.template import has_map
from bigmap.models import read_tensors
from bigmap.models.published import import_weights
from bigmap.scenes.catalog import Catalogue, find_items, load_items, save_items
from bigmap.simulate.items import COLLECTION
from tests.fuzz.corpus import API, CRS, FINGERPRINT, LEFT, SOURCE_DAYS, TOP, WORLD
from tests.fuzz.mutating import Files

Check = Callable[[Path], object]
"""Reads the files of a folder in one way."""
RED = {"bands": ("red", "nir"), "geometry_lonlat": WORLD}
GOOD_CODES = (0, USER_ERROR)
LABELS = {"attribute": "kind", "classes": {"wheat": 1, "maize": 2}, "overlaps": "last"}


@dataclass(frozen=True)
class Target:
    """A kind of input, with the ways in which it is read."""

    name: str
    """Also of its folder in the corpus."""
    checks: tuple[Check, ...]
    share: int = 10
    """Of all mutations, against other targets; dear ones have less."""
    mend: Callable[[Files], Files] = dict
    """Makes what a mutation must not break, or nothing behind it would be reached."""


def file_of(case: Path, name: str) -> Path:
    """Return the only file, whatever its name, or the place where it was before it went."""
    return next(case.iterdir(), case / name)


def read_recipe(case: Path) -> None:
    """Load a recipe, and write and read it as a run folder does."""
    recipe = load_recipe(case / "file.yaml")
    again = parse_recipe(parse_yaml(recipe.to_yaml(), origin="recipe.yaml"))
    assert again == recipe, "the recipe is another one after it was written and read"


def read_cluster(case: Path) -> None:
    """Load a cluster file."""
    load_cluster(str(case / "file.yaml"))


def use_catalogue(catalogue: Catalogue, case: Path) -> None:
    """Do with a catalogue what a run does: keep it, say it, go through its rows."""
    list(catalogue.rows)
    catalogue.audit.lines()
    save_items(catalogue, str(case / "kept.parquet"))
    load_items(str(case / "kept.parquet"))


def search_files(case: Path) -> None:
    """Search the items of the files."""
    file = file_of(case, "items.json")
    source = FilesSource(kind="files", files=(str(file),), **SOURCE_DAYS)
    use_catalogue(find_items(source, mask_asset="scl", **RED), case)


def search_static(case: Path) -> None:
    """Follow a static catalogue."""
    source = StaticCatalogSource(
        kind="static-catalog", files=(str(case / "catalog.json"),), **SOURCE_DAYS
    )
    use_catalogue(find_items(source, mask_asset="scl", **RED), case)


def search_api(case: Path) -> None:
    """Search a STAC API that answers with the files."""
    server = _serve()
    server.case = case
    source = StacApiSource(
        kind="stac-api", url=f"{server.address}/v1", collection=COLLECTION,
        max_cloud_percent=80.0, access={"retries": 2, "timeout_s": 5.0}, **SOURCE_DAYS,
    )  # fmt: skip
    use_catalogue(find_items(source, mask_asset="scl", **RED), case)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    case = Path()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2].partition("?")[0]
        file = self.server.case / {"v1": "landing.json", "search": "page-0.json"}.get(
            name, f"{name}.json"
        )
        body = file.read_bytes() if file.is_file() else b"{}"
        body = body.replace(API.encode(), f"{self.server.address}/v1".encode())
        try:
            head = json.loads((self.server.case / "http.json").read_text())[file.name]
            status, headers = int(head["status"]), dict(head["headers"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            status, headers = 200, {}
        self.send_response_only(status if 200 <= status <= 999 else 500, "")
        for key, value in ({"Content-Length": len(body)} | headers).items():
            line = f"{key}: {value}".encode("latin-1", "replace")[:60_000]
            self._headers_buffer.append(line.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@cache
def _serve() -> _Server:
    """Start the server of this process, which ends with it."""
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def read_areas(case: Path) -> None:
    """Read an area onto a grid, and find its UTM zones."""
    file = file_of(case, "area.geojson")
    list_utm_zones(file=str(file))
    read_area(crs=CRS, file=str(file))


def read_labels(case: Path) -> None:
    """Read labels onto pixels."""
    file = file_of(case, "labels.geojson")
    settings: VectorLabels | RasterLabels = VectorLabels(kind="vector", file=str(file), **LABELS)
    if file.suffix == ".tiff":
        settings = RasterLabels(kind="raster", files=(str(file),))
    bounds = (LEFT, TOP - 400, LEFT + 400, TOP)
    reader = open_labels(
        settings, crs=CRS, class_values=(0, 1, 2), bounds=bounds, access=Access(retries=0)
    )
    reader.near(bounds).read(GeoBox((40, 40), Affine(10, 0, LEFT, 0, -10, TOP), CRS))


def plan_map(case: Path) -> None:
    """Plan a map, as far as its cost."""
    estimate_plan(plan(load_recipe(case / "recipe.yaml")))


def show_run(case: Path) -> None:
    """Show how far a run is, to scripts and to people."""
    status = read_status(str(case / "map.run"))
    json.dumps(status_dict(status))
    show_status(Console(file=io.StringIO()), status)


def resume_run(case: Path) -> None:
    """Read what a run needs to go on, up to its first block."""
    recipe = load_recipe(case / "recipe.yaml", [f"output.path={case}/map.zarr"])
    check_place(recipe, Purpose.of_map(recipe), Attempt(resume=True))
    make_plan(recipe, resume=True)


def keep_ledger(case: Path) -> None:
    """Take the lease of a run and go on with its ledger."""
    folder = RunFolder(str(case / "map.zarr"))
    lease = Lease(folder.path)
    lease.acquire()
    try:
        book = folder.part("").open_ledger(lease)
        book.mend()
        book.latest()
        book.compact()
    finally:
        lease.release()


def read_earlier(case: Path) -> None:
    """Read what the blocks of an earlier run can be reused by."""
    output = str(case / "map.zarr")
    folder = RunFolder(output)
    folder.part(min(folder.parts())).read_plan()


def open_maps(case: Path) -> None:
    """Open a map."""
    open_map(str(case / "map.zarr"))


def open_overview(case: Path) -> None:
    """Open the first overview of a map."""
    open_map(str(case / "map.zarr"), level=1)


def replace_map(case: Path) -> None:
    """Tell whether a map is there and may be removed."""
    has_map(str(case / "map.zarr"))
    RunFolder(str(case / "map.zarr")).check_removable("output.path")


def seal_card(files: Files) -> Files:
    """Write the true checksum into a card that holds any."""
    weights, card = files.get("weights.safetensors"), files.get("weights.json")
    if weights is None or card is None:
        return files
    before, mark, after = card.partition(b'"1220')
    if not mark:
        return files
    sealed = before + mark + hashlib.sha256(weights).hexdigest().encode() + after[64:]
    return files | {"weights.json": sealed}


def show_card(case: Path) -> None:
    """Show weights with their card."""
    call_command(["models", "show", str(case / "weights.safetensors")])


def import_others(case: Path) -> None:
    """Import weights of others."""
    file = file_of(case, "weights.safetensors")
    options = {"width": 2, "depth": 1}
    read_tensors(file)
    import_weights("small-conv", file, case / "out.safetensors", options=options)


def resume_training(case: Path) -> None:
    """Read the checkpoint of a training that goes on."""
    folder = TrainingFolder(case / "weights.safetensors")
    if folder.check(resume=True, overwrite=False):
        folder.load(FINGERPRINT)


def read_chips(case: Path) -> None:
    """Read chips."""
    chips = ChipSet(str(case / "chips.zarr"))
    np.asarray(chips.statistics)
    for index in chips.indices("train"):
        chips.read(int(index))


def read_stage(case: Path) -> None:
    """Plan with staged scenes, and compare them with their checksums."""
    verify_stage(case / "stage", jobs=1)
    recipe = load_recipe(case / "recipe.yaml")
    make_plan(recipe, staged=case / "stage")


def give_command(case: Path) -> None:
    """Give a command line."""
    try:
        arguments = json.loads((case / "arguments.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(arguments, list):
        return
    with contextlib.chdir(case):
        call_command([str(argument) for argument in arguments])


def call_command(arguments: list[str]) -> None:
    """Call the command line, and expect one of its exit codes and at most one line of error."""
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace")  # as Python's own
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
    errors.seek(0)
    lines = errors.read().splitlines()
    assert code in GOOD_CODES, f"exit code {code}"
    assert code == 0 or len(lines) == 1, f"{len(lines)} lines of error"


TARGETS = {
    target.name: target
    for target in (
        Target("recipes", (read_recipe,), 12),
        Target("cluster", (read_cluster,), 6),
        Target("items", (search_files,), 22),
        Target("parquet", (search_files,), 14),
        Target("static", (search_static,), 10),
        Target("api", (search_api,), 14),
        Target("area", (read_areas,), 8),
        Target("labels", (read_labels,), 8),
        Target("plan", (plan_map,), 6),
        # The last of them writes.
        Target("run", (show_run, resume_run, read_earlier, keep_ledger), 14),
        Target("map", (open_maps, open_overview, replace_map), 8),
        Target("card", (show_card,), 8, seal_card),
        Target("weights", (import_others,), 8),
        Target("training", (resume_training,), 4),
        Target("chips", (read_chips,), 6),
        Target("staged", (read_stage,), 4),
        Target("commands", (give_command,), 8),
    )
}
