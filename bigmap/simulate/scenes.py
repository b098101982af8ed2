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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import shapely
from affine import Affine

from bigmap.errors import OutputError, PlanError
from bigmap.simulate.acquisitions import Datatake, list_datatakes
from bigmap.simulate.files import mark_used, replace_file, trim_cache, write_cog
from bigmap.simulate.flavours import FLAVOURS, has_offset, restyle_item
from bigmap.simulate.items import describe_item, name_file, name_item
from bigmap.simulate.landscape import Landscape, build_landscape
from bigmap.simulate.observation import MARGIN_M, Observation, start_observation
from bigmap.simulate.patch import NODE_M, Patch
from bigmap.simulate.pool import count_cores, run_tasks
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import PART_M, Part, list_parts

VERSION = 5
"""Of the world: part of every path, so that a changed world never mixes with an older one."""

SCL_FIELDS = {
    "nodata_pixel": 0, "saturated_defective_pixel": 1, "dark_features": 2, "cloud_shadow": 3,
    "vegetation": 4, "not_vegetated": 5, "water": 6, "unclassified": 7,
    "medium_proba_clouds": 8, "high_proba_clouds": 9, "thin_cirrus": 10, "snow_ice": 11,
}  # fmt: skip


MOST_PROCESSES = 8
"""Each needs 0.5 to 0.9 GB."""
SCENES_PER_PROCESS = 8
"""At least; fewer are written sooner than a process has started."""
_BYTES_PER_PIXEL = 1.7
"""Of a compressed band, at most (measured: 1.45)."""
_BYTES_PER_SCENE = 40_000
"""Of the scene classification and the item."""

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


def write_scenes(request: SceneRequest, cache: Path, *, max_bytes: int | None = None) -> Path:
    """Write the scenes of a request that the cache lacks, and the list of its items.

    Parameters
    ----------
    cache
        Folder, created if need be. Several processes may use it at once.
    max_bytes
        Limit of the cache: scenes that were not used for the longest time are removed, except
        those of this request and those used in the last hours.

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
    _render_missing(request, parts, cache)
    with explain_failures(cache):
        written = [write_part(request, part, cache) for part in parts]
        file = write_items(request, cache, [item for items in written for item in items])
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
    """Check a request and list the parts of tiles that it needs; see :func:`write_part`.

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
    return list_parts(request.crs, request.bounds)


def write_part(request: SceneRequest, part: Part, cache: Path) -> list[dict[str, Any]]:
    """Write what is missing of one part: the unit of work for a pool or a cluster.

    Returns
    -------
    list of dict
        The part's items in the order of time, for :func:`write_items`.
    """
    landscape: Landscape | None = None
    items = []
    for datatake, folder in _plan_part(request, part):
        names = _name_files(request, datatake)
        if _is_missing(cache / folder, names):
            if landscape is None:
                landscape = build_landscape(request.seed, _patch_of(part).grow(MARGIN_M))
            observation = start_observation(datatake, landscape)
            _write_observation(observation, part, cache / folder, names)
        items.append(_load_item(cache, folder, names, request.flavour))
    return items


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


def _render_missing(request: SceneRequest, parts: list[Part], cache: Path) -> None:
    """Write what the cache lacks, on all cores where there is work for more than one."""
    missing = {
        number: count
        for number, part in enumerate(parts)
        if (count := _count_missing(request, part, cache))
    }
    scenes = sum(missing.values())
    if scenes:
        LOG.info("simulating %d scenes into %s", scenes, cache)
    processes = min(MOST_PROCESSES, count_cores(), len(missing), scenes // SCENES_PER_PROCESS)
    if processes > 1:
        setup = {
            "request": asdict(request)
            | {"start": request.start.isoformat(), "end": request.end.isoformat()},
            "cache": str(cache),
        }
        run_tasks(setup, list(missing), processes=processes)


def _count_missing(request: SceneRequest, part: Part, cache: Path) -> int:
    return sum(
        _is_missing(cache / folder, _name_files(request, datatake))
        for datatake, folder in _plan_part(request, part)
    )


def _is_missing(folder: Path, names: Mapping[str, str]) -> bool:
    return not all((folder / name).exists() for name in (*names.values(), "item.json"))


def _name_files(request: SceneRequest, datatake: Datatake) -> dict[str, str]:
    """Return the file of each asset, relative to the folder of its scene."""
    assets = (*dict.fromkeys(request.bands), "scl")
    return {asset: _name_file(asset, request.flavour, datatake) for asset in assets}


def _check_size(request: SceneRequest, parts: list[Part], max_bytes: int) -> None:
    """Refuse a request whose scenes would not fit into the cache, before any is written."""
    scenes = sum(len(_plan_part(request, part)) for part in parts)
    pixels = sum((PART_M // MSI[band].gsd_m) ** 2 for band in request.bands)
    needed = scenes * (pixels * _BYTES_PER_PIXEL + _BYTES_PER_SCENE)
    if needed > max_bytes:
        raise PlanError(
            f"the simulated scenes need about {needed / 1e9:.1f} GB and the cache may hold "
            f"{max_bytes / 1e9:.1f} GB; ask for a smaller area or fewer days, or raise the limit"
        )


def _plan_part(request: SceneRequest, part: Part) -> list[tuple[Datatake, Path]]:
    """List a part's datatakes and the folders of their files, relative to the cache."""
    datatakes = _list_datatakes_of(part, request.seed, request.start, request.end)
    root = Path(f"world-{VERSION}", f"seed-{request.seed}", part.tile.name)
    place = root / f"{part.row:02d}{part.column:02d}"
    return [(datatake, place / name_item(part, datatake)) for datatake in datatakes]


@lru_cache(maxsize=4096)
def _list_datatakes_of(part: Part, seed: int, start: dt.date, end: dt.date) -> tuple[Datatake, ...]:
    # Swath edges are nearly straight, so the corners of a part stand for all of it.
    ends = PART_M // NODE_M
    longitude, latitude = (nodes[::ends, ::ends] for nodes in _patch_of(part).lonlat)
    return tuple(list_datatakes(seed, longitude, latitude, start, end))


def _patch_of(part: Part) -> Patch:
    left, _, _, top = part.bounds
    side = PART_M // NODE_M
    return Patch(f"EPSG:{part.tile.epsg}", int(left), int(top), side, side)


def _name_file(asset: str, flavour: str, datatake: Datatake) -> str:
    """Return the file of an asset: that with the offset in it, where the flavour has one."""
    name = name_file(asset)
    is_shifted = asset != "scl" and has_offset(flavour, datatake.node.date())
    return f"offset/{name}" if is_shifted else name


def _write_observation(
    observation: Observation, part: Part, folder: Path, names: Mapping[str, str]
) -> None:
    epsg = part.tile.epsg
    scl: npt.NDArray[np.uint8] | None = None
    for asset, name in names.items():
        file = folder / name
        if file.exists():
            continue
        if asset == "scl":
            scl = observation.classify()
            write_cog(file, scl, _transform(part, 20), epsg)
        else:
            shift = 1000 if name.startswith("offset/") else 0
            numbers = quantise(observation.observe_band(asset), shift=shift)
            write_cog(file, numbers, _transform(part, MSI[asset].gsd_m), epsg)
    if not (folder / "item.json").exists():
        scl = observation.classify() if scl is None else scl
        item = describe_item(
            part,
            observation.datatake,
            sun=_mean_sun(observation),
            percentages=_count(scl),
            footprint=_outline(part, scl),
        )
        replace_file(folder / "item.json", json.dumps(item).encode())


def quantise(reflectance: npt.NDArray[np.float32], *, shift: int = 0) -> npt.NDArray[np.uint16]:
    """Turn reflectance into digital numbers, 1 to 65535; 0 where it is NaN.

    Parameters
    ----------
    shift
        Added to 10,000 x reflectance: 0, or 1,000 for files of baseline 04.00 and later.
    """
    numbers = np.clip(np.rint(reflectance * 10_000) + shift, 1, 65_535)
    return np.asarray(np.nan_to_num(numbers, nan=0).astype(np.uint16))


def _mean_sun(observation: Observation) -> tuple[float, float]:
    azimuth, elevation = (float(angle.mean()) for angle in observation.sun)
    return azimuth, elevation


def _count(scl: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Return the share of each class: of all pixels for nodata, of valid ones else."""
    counts = np.bincount(scl.ravel(), minlength=12)
    valid = max(1, int(counts[1:].sum()))
    return {
        name: round(100 * float(counts[code]) / (scl.size if code == 0 else valid), 6)
        for name, code in SCL_FIELDS.items()
    }


def _outline(part: Part, scl: npt.NDArray[np.uint8]) -> list[tuple[float, float]]:
    """Return the convex hull of the valid pixels as a ring in the part's CRS."""
    valid = scl != 0
    rows = np.flatnonzero(valid.any(axis=1))
    # Only the ends of rows can be corners of a hull.
    columns = np.concatenate(
        [valid.argmax(axis=1)[rows], scl.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)[rows]]
    )
    rows = np.tile(rows, 2)
    if not len(rows):
        rows, columns = np.array([0, 0, scl.shape[0] - 1]), np.array([0, scl.shape[1] - 1, 0])
    corners = np.concatenate(
        [np.column_stack([columns + right, rows + down]) for right in (0, 1) for down in (0, 1)]
    )
    left, _, _, top = part.bounds
    hull = shapely.convex_hull(shapely.MultiPoint(corners))
    return [(left + 20 * x, top - 20 * y) for x, y in shapely.get_coordinates(hull)]


def _transform(part: Part, gsd_m: int) -> Affine:
    left, _, _, top = part.bounds
    return Affine(gsd_m, 0, left, 0, -gsd_m, top)


def _load_item(cache: Path, folder: Path, names: Mapping[str, str], flavour: str) -> dict[str, Any]:
    file = cache / folder / "item.json"
    item: dict[str, Any] = json.loads(file.read_text())
    mark_used(file)
    item["assets"] = {
        asset: item["assets"][asset] | {"href": f"../{(folder / name).as_posix()}"}
        for asset, name in names.items()
    }
    return restyle_item(item, flavour)
