"""Write the scenes of a request: COGs and STAC items, each once, into a cache.

A file depends on the seed, the part of the tile, the datatake and the band, never on the
request, so requests share what they have in common and any number of processes may fill one
cache: files appear whole, by renaming, and two processes that make the same file make the same
bytes.
"""

from __future__ import annotations

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

from bigmap.errors import OutputError
from bigmap.files import write_and_sync
from bigmap.machine import count_cores
from bigmap.simulate.acquisitions import Datatake
from bigmap.simulate.files import mark_used, trim_cache
from bigmap.simulate.flavours import has_offset, native_gsd_m, restyle_item
from bigmap.simulate.pool import run_tasks
from bigmap.simulate.rendering import SceneJob, forecast_item, render_scenes
from bigmap.simulate.requests import (
    VERSION,
    Scene,
    SceneRequest,
    check_size,
    list_scenes,
    locate_scene,
)
from bigmap.simulate.tiles import PIECE_PX, Part

MOST_PROCESSES = 8
"""Each needs 0.5 to 0.9 GB."""
PIECES_PER_PROCESS = 8
"""At least, of 366 px and one datatake each; fewer are written sooner than a process starts."""
_IMAGE_BYTES = 100e6
"""Of the scenes that a process has in hand."""

LOG = logging.getLogger(__name__)


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
    if max_bytes is not None:
        check_size(request, max_bytes)
    scenes = list_scenes(request)
    with explain_failures(cache):
        tasks = list_tasks(request, scenes, cache)
    if tasks:
        LOG.info("simulating %d scenes into %s", sum(len(task.datatakes) for task in tasks), cache)
        render(request, tasks, cache)
    with explain_failures(cache):
        items = [_load_item(request, scene, cache) for scene in scenes]
        file = write_items(request, cache, items)
        if max_bytes is not None:
            keep = {cache / scene.folder for scene in scenes}
            trim_cache(cache, max_bytes=max_bytes, keep=keep)
    return file


@contextmanager
def explain_failures(cache: Path) -> Iterator[None]:
    """Turn what storage raises into an :class:`~bigmap.errors.OutputError` that names the cache."""
    try:
        yield
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise OutputError(f"{cache}: simulated scenes cannot be kept there ({error})") from error


def list_tasks(request: SceneRequest, scenes: Sequence[Scene], cache: Path) -> list[SceneTask]:
    """List what the cache lacks, in tasks whose images fit into the memory of a process.

    What is there already counts as used from now on, so that no other process removes it.
    """
    side_px = request.scene_px
    pixels = sum((10 * side_px // native_gsd_m(band)) ** 2 for band in (*request.bands, "scl"))
    most = max(1, int(_IMAGE_BYTES / (2 * pixels)))
    missing: dict[Part, list[Datatake]] = {scene.part: [] for scene in scenes}
    for scene in scenes:
        if scene.list_missing(request, cache) is not None:
            missing[scene.part].append(scene.datatake)
        if (cache / scene.folder / "item.json").exists():
            mark_used(cache / scene.folder / "item.json")
    return [
        SceneTask(part, chunk)
        for part, datatakes in missing.items()
        for chunk in _cut(datatakes, most)
    ]


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
            scene = locate_scene(request, task.part, datatake)
            files = scene.list_missing(request, cache)
            if files is not None:
                is_shifted = has_offset(request.flavour, datatake.node.date())
                shift = 1000 if is_shifted else 0
                folder = cache / scene.folder
                jobs.append(SceneJob(task.part, datatake, folder, tuple(files), shift))
        render_scenes(request.seed, task.part, jobs)


def forecast_items(request: SceneRequest, cache: Path) -> list[dict[str, Any]]:
    """Return the items of a request as :func:`write_scenes` will write them; nothing is written.

    Those of scenes that the cache lacks tell no cloud cover, and their outlines are forecast.

    Raises
    ------
    PlanError
        As :func:`write_scenes`.
    OutputError
        If the cache cannot be read.
    """
    items = []
    with explain_failures(cache):
        for scene in list_scenes(request):
            try:
                items.append(_load_item(request, scene, cache))
            except FileNotFoundError:
                item = forecast_item(request.seed, scene.part, scene.datatake)
                items.append(_restyle(request, scene, item))
    return items


def locate_items(request: SceneRequest, cache: Path) -> Path:
    """Return where :func:`write_scenes` writes the list of a request's items."""
    name = hashlib.blake2b(repr((VERSION, request)).encode(), digest_size=8).hexdigest()
    return cache / "requests" / f"{name}.json"


def write_items(request: SceneRequest, cache: Path, items: list[dict[str, Any]]) -> Path:
    """Write the ItemCollection of a request from the items of all its scenes."""
    features = sorted(items, key=lambda item: (item["properties"]["datetime"], item["id"]))
    content = json.dumps({"type": "FeatureCollection", "features": features}).encode()
    file = locate_items(request, cache)
    if not file.exists() or file.read_bytes() != content:
        write_and_sync(file, content)
    return file


def _load_item(request: SceneRequest, scene: Scene, cache: Path) -> dict[str, Any]:
    """Load the item of a rendered scene, in the way of the request's flavour."""
    item: dict[str, Any] = json.loads((cache / scene.folder / "item.json").read_text())
    return _restyle(request, scene, item)


def _restyle(request: SceneRequest, scene: Scene, item: dict[str, Any]) -> dict[str, Any]:
    files = scene.list_files(request)
    hrefs = {file: f"../{(scene.folder / file.path).as_posix()}" for file in files}
    return restyle_item(item, request.flavour, hrefs)


def _cut(datatakes: Sequence[Datatake], most: int) -> list[tuple[Datatake, ...]]:
    return [tuple(datatakes[at : at + most]) for at in range(0, len(datatakes), max(1, most))]
