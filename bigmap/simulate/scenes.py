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
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from bigmap.errors import OutputError, PlanError
from bigmap.simulate.acquisitions import Datatake, list_datatakes
from bigmap.simulate.items import describe_item, name_file, name_item
from bigmap.simulate.landscape import build_landscape
from bigmap.simulate.observation import MARGIN_M, Observation, start_observation
from bigmap.simulate.patch import NODE_M, Patch
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import PART_M, Part, list_parts

VERSION = 1
"""Of the world: part of every path, so that a changed world never mixes with an older one."""

SCL_FIELDS = {
    "nodata_pixel": 0, "saturated_defective_pixel": 1, "dark_features": 2, "cloud_shadow": 3,
    "vegetation": 4, "not_vegetated": 5, "water": 6, "unclassified": 7,
    "medium_proba_clouds": 8, "high_proba_clouds": 9, "thin_cirrus": 10, "snow_ice": 11,
}  # fmt: skip
_COG_TILE_PX = 1024


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


def write_scenes(request: SceneRequest, cache: Path) -> Path:
    """Write the scenes of a request that the cache lacks, and the list of its items.

    Parameters
    ----------
    cache
        Folder, created if need be. Several processes may use it at once.

    Returns
    -------
    pathlib.Path
        A STAC ItemCollection (JSON) like Earth Search's answer, with hrefs relative to itself.
        DN = 10,000 x reflectance: the offset of baseline 04.00 has been applied.

    Raises
    ------
    PlanError
        If a band, the days or the bounds are impossible, or nothing was acquired.
    OutputError
        If the cache cannot be written.
    """
    parts = list_request_parts(request)
    try:
        with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
            written = pool.map(lambda part: write_part(request, part, cache), parts)
            items = [item for items in written for item in items]
        if not items:
            raise PlanError(
                f"no simulated datatake from {request.start} to {request.end} sees the area; "
                "give at least five days"
            )
        return _write_collection(request, cache, items)
    except (OSError, rasterio.errors.RasterioIOError) as error:
        raise OutputError(f"{cache}: simulated scenes cannot be written ({error})") from error


def list_request_parts(request: SceneRequest) -> list[Part]:
    """Check a request and list the parts of tiles that it needs; see :func:`write_part`."""
    unknown = [band for band in request.bands if band not in MSI]
    if unknown:
        raise PlanError(f"{unknown[0]} is no band of L2A; choose from {', '.join(MSI)}")
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
        The part's items in the order of time, with hrefs relative to ``cache``.
    """
    patch = _patch_of(part)
    # Swath edges are nearly straight, so the corners of a part stand for all of it.
    longitude, latitude = (nodes[:: len(nodes) - 1, :: len(nodes) - 1] for nodes in patch.lonlat)
    datatakes = list_datatakes(request.seed, longitude, latitude, request.start, request.end)
    assets = (*dict.fromkeys(request.bands), "scl")
    folders = [_folder(request.seed, part, datatake) for datatake in datatakes]
    missing = [
        (datatake, folder)
        for datatake, folder in zip(datatakes, folders, strict=True)
        if any(not (cache / folder / name_file(name)).exists() for name in assets)
        or not (cache / folder / "item.json").exists()
    ]
    if missing:
        landscape = build_landscape(request.seed, patch.grow(MARGIN_M))
        for datatake, folder in missing:
            observation = start_observation(datatake, landscape)
            _write_observation(observation, part, cache / folder, assets)
    return [_load_item(cache, folder, assets) for folder in folders]


def _patch_of(part: Part) -> Patch:
    left, _, _, top = part.bounds
    side = PART_M // NODE_M
    return Patch(f"EPSG:{part.tile.epsg}", int(left), int(top), side, side)


def _folder(seed: int, part: Part, datatake: Datatake) -> Path:
    root = Path(f"world-{VERSION}", f"seed-{seed}", part.tile.name)
    return root / f"{part.row:02d}{part.column:02d}" / name_item(part, datatake)


def _write_observation(
    observation: Observation, part: Part, folder: Path, assets: Iterable[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scl: npt.NDArray[np.uint8] | None = None
    for name in assets:
        file = folder / name_file(name)
        if file.exists():
            continue
        if name == "scl":
            scl = observation.classify()
            write_cog(file, scl, _transform(part, 20), part.tile.epsg)
        else:
            numbers = quantise(observation.observe_band(name))
            write_cog(file, numbers, _transform(part, MSI[name].gsd_m), part.tile.epsg)
    if not (folder / "item.json").exists():
        scl = observation.classify() if scl is None else scl
        left, bottom, right, top = part.bounds
        ring = [(left, bottom), (right, bottom), (right, top), (left, top)]
        item = describe_item(
            part,
            observation.datatake,
            sun=_mean_sun(observation),
            percentages=_count(scl),
            footprint=ring,
        )
        _replace(folder / "item.json", json.dumps(item).encode())


def quantise(reflectance: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Turn reflectance into digital numbers, 1 to 65535; 0 where it is NaN."""
    numbers = np.clip(np.rint(reflectance * 10_000), 1, 65_535)
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


def _transform(part: Part, gsd_m: int) -> Affine:
    left, _, _, top = part.bounds
    return Affine(gsd_m, 0, left, 0, -gsd_m, top)


def write_cog(
    file: Path, values: npt.NDArray[np.generic], transform: Affine, epsg: int | str
) -> None:
    """Write one band (y, x) as a Cloud-Optimized GeoTIFF that appears whole or not at all."""
    temporary = _temporary(file)
    side = -(-max(values.shape) // 16) * 16
    options = {
        "driver": "COG", "count": 1, "dtype": values.dtype.name,
        "height": values.shape[0], "width": values.shape[1], "crs": epsg, "transform": transform,
        "compress": "deflate", "predictor": 2 if values.dtype.itemsize < 4 else 3,
        "blocksize": min(_COG_TILE_PX, side),
        "overviews": "auto", "overview_resampling": "nearest",
    }  # fmt: skip
    if values.dtype.kind == "u":
        options["nodata"] = 0
    try:
        with rasterio.open(temporary, "w", **options) as target:
            target.write(values, 1)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _load_item(cache: Path, folder: Path, assets: Iterable[str]) -> dict[str, Any]:
    item: dict[str, Any] = json.loads((cache / folder / "item.json").read_text())
    item["assets"] = {
        name: item["assets"][name] | {"href": (folder / name_file(name)).as_posix()}
        for name in assets
    }
    return item


def _write_collection(request: SceneRequest, cache: Path, items: list[dict[str, Any]]) -> Path:
    items = sorted(items, key=lambda item: (item["properties"]["datetime"], item["id"]))
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = "../" + asset["href"]
    content = json.dumps({"type": "FeatureCollection", "features": items}).encode()
    name = hashlib.blake2b(repr(request).encode(), digest_size=8).hexdigest()
    file = cache / "requests" / f"{name}.json"
    if not file.exists() or file.read_bytes() != content:
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, content)
    return file


def _replace(file: Path, content: bytes) -> None:
    temporary = _temporary(file)
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(file: Path) -> Path:
    return file.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:8]}-{file.name}")
