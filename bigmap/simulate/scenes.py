"""Write the scenes of a request: COGs and STAC items, each once, into a cache.

A file depends on the seed, the part of the tile, the datatake and the band, never on the
request, so requests share what they have in common and any number of processes may fill one
cache: files appear whole, by renaming, and two processes that make the same file make the same
bytes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rasterio

from bigmap.errors import OutputError, PlanError
from bigmap.machine import count_cores
from bigmap.simulate.acquisitions import Datatake
from bigmap.simulate.files import COG_TILE_PX, mark_used, replace_file, trim_cache
from bigmap.simulate.flavours import (
    FLAVOURS,
    SceneFile,
    has_offset,
    list_scene_files,
    native_gsd_m,
    restyle_item,
)
from bigmap.simulate.items import name_item
from bigmap.simulate.pool import run_tasks
from bigmap.simulate.rendering import SceneJob, list_datatakes_of, render_scenes
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import PIECE_PX, SCENE_SIDES_PX, Part, list_parts

VERSION = 6
"""Of the world: part of every path, so that a changed world never mixes with an older one."""

MOST_PROCESSES = 8
"""Each needs 0.5 to 0.9 GB."""
PIECES_PER_PROCESS = 8
"""At least, of 366 px and one datatake each; fewer are written sooner than a process starts."""
_IMAGE_BYTES = 100e6
"""Of the scenes that a process has in hand."""
_BYTES_PER_PIXEL = 1.7
"""Of a compressed band without overviews, at most (measured: 1.45)."""
_OVERVIEW_SHARE = 0.25
_BYTES_PER_SCL_PIXEL = 1.0
_BYTES_PER_ITEM = 7_000

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneRequest:
    """Which scenes are needed."""

    crs: str
    """Projected CRS of ``bounds``, in metres."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top, grown by the caller by whatever context it reads."""
    start: dt.date
    """First day, included."""
    end: dt.date
    """Last day, included."""
    bands: tuple[str, ...]
    """Common names; the scene classification always comes with them."""
    seed: int
    """Seed of the world, 0 or more."""
    flavour: str = "earth-search"
    """Catalogue whose ways the items follow, of :data:`bigmap.simulate.flavours.FLAVOURS`."""
    scene_px: int = 1098
    """Side of a scene's files in pixels of 10 m, of :data:`bigmap.simulate.tiles.SCENE_SIDES_PX`.

    It changes no pixel. Files of 366 px suit small areas: fewer pixels outside are written.
    """


@dataclass(frozen=True)
class SceneTask:
    """What one process renders at a time: some scenes of one part of a tile."""

    part: Part
    datatakes: tuple[Datatake, ...]


Renderer = Callable[[SceneRequest, Sequence[SceneTask], Path], None]
"""Does tasks, in any order and in whatever processes."""


def render_here(request: SceneRequest, tasks: Sequence[SceneTask], cache: Path) -> None:
    """Do tasks on all cores of this machine where there is work for more than one.

    Raises
    ------
    OutputError
        If the cache cannot be written.
    RunError
        If a process ends, for example for lack of memory.
    """
    tasks = split_tasks(request, tasks, min(MOST_PROCESSES, count_cores()))
    processes = min(MOST_PROCESSES, count_cores(), _most_workers(request, tasks), len(tasks))
    if processes > 1:
        run_tasks((request, cache), tasks, processes=processes)
        return
    for task in tasks:
        write_task(request, task, cache)


def write_scenes(
    request: SceneRequest,
    cache: Path,
    *,
    max_bytes: int | None = None,
    render: Renderer = render_here,
) -> Path:
    """Write the scenes of a request that the cache lacks, and the list of its items.

    Parameters
    ----------
    cache
        Folder, created if need be. Several processes may use it at once.
    max_bytes
        Limit of the cache: scenes that were not used for the longest time are removed, except
        those of this request and those used in the last hours.
    render
        Does the work; by default processes of this machine.

    Returns
    -------
    pathlib.Path
        A STAC ItemCollection (JSON) like the answer of a catalogue, with hrefs relative to
        itself. By default DN = 10,000 x reflectance, as in Earth Search.

    Raises
    ------
    PlanError
        If a band, the days, the flavour or the bounds are impossible, if nothing was acquired,
        or if the request alone exceeds the limit.
    OutputError
        If the cache cannot be written.
    """
    parts = list_request_parts(request)
    if max_bytes is not None:
        _check_size(request, parts, max_bytes)
    with explain_failures(cache):
        tasks = list_tasks(request, parts, cache)
    if tasks:
        LOG.info("simulating %d scenes into %s", sum(len(task.datatakes) for task in tasks), cache)
        render(request, tasks, cache)
    with explain_failures(cache):
        file = write_items(request, cache, _load_items(request, parts, cache))
        if max_bytes is not None:
            keep = {cache / folder for part in parts for _, folder in _plan_part(request, part)}
            trim_cache(cache, max_bytes=max_bytes, keep=keep)
    return file


@contextmanager
def explain_failures(cache: Path) -> Iterator[None]:
    """Turn what storage raises into an :class:`~bigmap.errors.OutputError` that names the cache."""
    try:
        yield
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise OutputError(f"{cache}: simulated scenes cannot be written ({error})") from error


def list_request_parts(request: SceneRequest) -> list[Part]:
    """Check a request and list the parts of tiles that it needs.

    Raises
    ------
    PlanError
        As :func:`write_scenes`.
    """
    unknown = [band for band in request.bands if band not in MSI]
    if unknown:
        raise PlanError(f"{unknown[0]} is no band of L2A; choose from {', '.join(MSI)}")
    if request.flavour not in FLAVOURS:
        raise PlanError(f"flavour {request.flavour!r} is unknown; choose from {FLAVOURS}")
    if request.end < request.start:
        raise PlanError(f"end {request.end} is before start {request.start}")
    if request.seed < 0:
        raise PlanError(f"seed {request.seed} is negative; give 0 or more")
    if request.scene_px not in SCENE_SIDES_PX:
        raise PlanError(f"scene_px {request.scene_px} is not one of {SCENE_SIDES_PX}")
    return list_parts(request.crs, request.bounds, side_px=request.scene_px)


def list_tasks(request: SceneRequest, parts: Sequence[Part], cache: Path) -> list[SceneTask]:
    """List what the cache lacks, in tasks whose images fit into the memory of a process.

    What is there already counts as used from now on, so that no other process removes it.
    """
    side_px = request.scene_px
    pixels = sum((10 * side_px // native_gsd_m(band)) ** 2 for band in (*request.bands, "scl"))
    most = max(1, int(_IMAGE_BYTES / (2 * pixels)))
    tasks = []
    for part in parts:
        missing = []
        for datatake, folder in _plan_part(request, part):
            if _list_missing(request, datatake, cache / folder) is not None:
                missing.append(datatake)
            if (cache / folder / "item.json").exists():
                mark_used(cache / folder / "item.json")
        tasks += [SceneTask(part, chunk) for chunk in _cut(missing, most)]
    return tasks


def split_tasks(request: SceneRequest, tasks: Sequence[SceneTask], workers: int) -> list[SceneTask]:
    """Split tasks where that gives work to more of so many workers; files stay the same."""
    scenes = sum(len(task.datatakes) for task in tasks)
    most = math.ceil(scenes / max(1, min(workers, _most_workers(request, tasks))))
    return [SceneTask(task.part, chunk) for task in tasks for chunk in _cut(task.datatakes, most)]


def _most_workers(request: SceneRequest, tasks: Sequence[SceneTask]) -> int:
    """Return how many processes are worth their start."""
    scenes = sum(len(task.datatakes) for task in tasks)
    return int(scenes * (request.scene_px // PIECE_PX) ** 2 // PIECES_PER_PROCESS)


def write_task(request: SceneRequest, task: SceneTask, cache: Path) -> None:
    """Write what is missing of some scenes: the unit of work for a pool or a cluster.

    Raises
    ------
    OutputError
        If the cache cannot be written.
    """
    jobs = []
    with explain_failures(cache):
        for datatake in task.datatakes:
            folder = cache / _place(request, task.part, datatake)
            files = _list_missing(request, datatake, folder)
            if files is not None:
                is_shifted = has_offset(request.flavour, datatake.node.date())
                shift = 1000 if is_shifted else 0
                jobs.append(SceneJob(task.part, datatake, folder, tuple(files), shift))
        render_scenes(request.seed, task.part, jobs)


def write_items(request: SceneRequest, cache: Path, items: list[dict[str, Any]]) -> Path:
    """Write the ItemCollection of a request from the items of all its parts.

    Raises
    ------
    PlanError
        If there are none.
    """
    if not items:
        raise PlanError(
            f"no simulated datatake from {request.start} to {request.end} sees the area; "
            "give at least five days"
        )
    features = sorted(items, key=lambda item: (item["properties"]["datetime"], item["id"]))
    content = json.dumps({"type": "FeatureCollection", "features": features}).encode()
    name = hashlib.blake2b(repr((VERSION, request)).encode(), digest_size=8).hexdigest()
    file = cache / "requests" / f"{name}.json"
    if not file.exists() or file.read_bytes() != content:
        replace_file(file, content)
    return file


def _load_items(request: SceneRequest, parts: Sequence[Part], cache: Path) -> list[dict[str, Any]]:
    """Load the items of all parts, in the way of the request's flavour."""
    items = []
    for part in parts:
        for datatake, folder in _plan_part(request, part):
            files = _list_files(request, datatake)
            hrefs = {file: f"../{(folder / file.path).as_posix()}" for file in files}
            item = json.loads((cache / folder / "item.json").read_text())
            items.append(restyle_item(item, request.flavour, hrefs))
    return items


def _list_files(request: SceneRequest, datatake: Datatake) -> list[SceneFile]:
    return list_scene_files(request.bands, request.flavour, datatake.node.date())


def _list_missing(
    request: SceneRequest, datatake: Datatake, folder: Path
) -> list[SceneFile] | None:
    """List the files that a scene lacks, which may be its item alone; None where it is whole."""
    files = [f for f in _list_files(request, datatake) if not (folder / f.path).exists()]
    return files if files or not (folder / "item.json").exists() else None


def _check_size(request: SceneRequest, parts: list[Part], max_bytes: int) -> None:
    """Refuse a request whose scenes would not fit into the cache, before any is written."""
    scenes = sum(len(_plan_part(request, part)) for part in parts)
    needed = scenes * (_BYTES_PER_ITEM + sum(_estimate_bytes(request)))
    if needed > max_bytes:
        raise PlanError(
            f"the simulated scenes need about {needed / 1e9:.1f} GB and the cache may hold "
            f"{max_bytes / 1e9:.1f} GB; ask for a smaller area or fewer days, or raise the limit"
        )


def _estimate_bytes(request: SceneRequest) -> Iterator[float]:
    """Estimate the size of each file of a scene."""
    for file in list_scene_files(request.bands, request.flavour, request.start):
        side = 10 * request.scene_px // file.gsd_m
        share = _OVERVIEW_SHARE if side > COG_TILE_PX else 0
        per_pixel = _BYTES_PER_SCL_PIXEL if file.band == "scl" else _BYTES_PER_PIXEL
        yield side**2 * per_pixel * (1 + share)


def _plan_part(request: SceneRequest, part: Part) -> list[tuple[Datatake, Path]]:
    """List a part's datatakes and the folders of their files, relative to the cache."""
    datatakes = list_datatakes_of(part, request.seed, request.start, request.end)
    return [(datatake, _place(request, part, datatake)) for datatake in datatakes]


def _place(request: SceneRequest, part: Part, datatake: Datatake) -> Path:
    root = Path(f"world-{VERSION}", f"seed-{request.seed}", part.tile.name, part.place)
    return root / name_item(part, datatake)


def _cut(datatakes: Sequence[Datatake], most: int) -> list[tuple[Datatake, ...]]:
    return [tuple(datatakes[at : at + most]) for at in range(0, len(datatakes), max(1, most))]
