"""Which scenes a request needs, how large they are, and which of them a cache holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bigmap.errors import PlanError
from bigmap.simulate.acquisitions import Datatake
from bigmap.simulate.files import COG_TILE_PX
from bigmap.simulate.flavours import FLAVOURS, SceneFile, list_scene_files
from bigmap.simulate.items import name_item
from bigmap.simulate.rendering import corners_of, list_datatakes_of
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import SCENE_SIDES_PX, Part, list_parts

VERSION = 6
"""Of the world: part of every path, so that a changed world never mixes with an older one."""

_BYTES_PER_PIXEL = 1.7
"""Of a compressed band without overviews, at most (measured: 1.45)."""
_OVERVIEW_SHARE = 0.25
_BYTES_PER_SCL_PIXEL = 1.0
_BYTES_PER_ITEM = 7_000


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
class Scene:
    """What one datatake sees of one part of a tile."""

    part: Part
    datatake: Datatake
    folder: Path
    """Of its files and its item, relative to the cache."""

    @property
    def day(self) -> dt.date:
        """Day of acquisition, UTC."""
        _, latitude = corners_of(self.part)
        return self.datatake.time_at(float(np.mean(latitude))).date()

    def list_files(self, request: SceneRequest) -> list[SceneFile]:
        """List the files that a request wants of it."""
        return list_scene_files(request.bands, request.flavour, self.datatake.node.date())

    def list_missing(self, request: SceneRequest, cache: Path) -> list[SceneFile] | None:
        """List the files that a cache lacks, perhaps its item alone; None where it is whole."""
        folder = cache / self.folder
        files = [file for file in self.list_files(request) if not (folder / file.path).exists()]
        return files if files or not (folder / "item.json").exists() else None


@dataclass(frozen=True)
class SceneStock:
    """The scenes that requests need, and those that the cache holds whole."""

    requests: tuple[SceneRequest, ...]
    """They differ in CRS and bounds alone, so that they may share scenes."""
    cache: Path
    max_bytes: int
    """Limit of the cache."""
    scenes: frozenset[Scene]
    cached: frozenset[Scene]

    @classmethod
    def of(cls, request: SceneRequest, cache: Path, *, max_bytes: int) -> SceneStock:
        """Look for the scenes of one request; nothing is written.

        Raises
        ------
        PlanError
            As :func:`list_scenes`.
        """
        scenes = frozenset(list_scenes(request))
        cached = frozenset(each for each in scenes if each.list_missing(request, cache) is None)
        return cls((request,), cache, max_bytes, scenes, cached)

    @classmethod
    def join(cls, stocks: Sequence[SceneStock]) -> SceneStock:
        """Join the stocks of a map's parts, which have one cache; a shared scene counts once."""
        return cls(
            tuple(request for stock in stocks for request in stock.requests),
            stocks[0].cache,
            stocks[0].max_bytes,
            frozenset(scene for stock in stocks for scene in stock.scenes),
            frozenset(scene for stock in stocks for scene in stock.cached),
        )

    def check_size(self, limit: str) -> None:
        """Refuse what the cache cannot hold; see :func:`check_size`."""
        _refuse_bytes(self.bytes, self.max_bytes, limit)

    @property
    def lacking(self) -> int:
        """Number of scenes that must be rendered, at least in part."""
        return len(self.scenes) - len(self.cached)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len({scene.part.tile for scene in self.scenes})

    @cached_property
    def days(self) -> int:
        """Number of days, UTC."""
        return len({scene.day for scene in self.scenes})

    @property
    def pixels(self) -> int:
        """Pixels of all files, without overviews."""
        sides = [_side_px(self.requests[0], file) for file in _list_typical(self.requests[0])]
        return len(self.scenes) * sum(side**2 for side in sides)

    @property
    def bytes(self) -> float:
        """Estimated size of all scenes."""
        return len(self.scenes) * _estimate_bytes(self.requests[0])

    @property
    def cached_bytes(self) -> float:
        """Estimated size of the scenes that the cache holds whole."""
        return len(self.cached) * _estimate_bytes(self.requests[0])


def list_request_parts(request: SceneRequest) -> list[Part]:
    """Check a request and list the parts of tiles that it needs.

    Raises
    ------
    PlanError
        If a band, the days, the flavour or the bounds are impossible.
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


def list_scenes(request: SceneRequest) -> list[Scene]:
    """List the scenes of a request: all that the orbits show of its parts on its days.

    Raises
    ------
    PlanError
        As :func:`list_request_parts`, or if nothing was acquired.
    """
    scenes = [
        locate_scene(request, part, datatake)
        for part in list_request_parts(request)
        for datatake in _list_datatakes(request, part)
    ]
    if not scenes:
        raise PlanError(
            f"no simulated datatake from {request.start} to {request.end} sees the area; "
            "give at least five days"
        )
    return scenes


def locate_scene(request: SceneRequest, part: Part, datatake: Datatake) -> Scene:
    """Return a scene with its place in a cache."""
    root = Path(f"world-{VERSION}", f"seed-{request.seed}", part.tile.name, part.place)
    return Scene(part, datatake, root / name_item(part, datatake))


def check_size(request: SceneRequest, max_bytes: int, *, limit: str = "the limit") -> None:
    """Refuse a request whose scenes would not fit into a cache, before they are listed.

    Parameters
    ----------
    max_bytes
        What the cache may hold.
    limit
        Name of the setting that says so.

    Raises
    ------
    PlanError
        As :func:`list_request_parts`, or if they would not fit.
    """
    count = sum(len(_list_datatakes(request, part)) for part in list_request_parts(request))
    _refuse_bytes(count * _estimate_bytes(request), max_bytes, limit)


def _refuse_bytes(needed: float, max_bytes: int, limit: str) -> None:
    if needed > max_bytes:
        raise PlanError(
            f"the simulated scenes need about {needed / 1e9:.1f} GB and the cache may hold "
            f"{max_bytes / 1e9:.1f} GB; ask for a smaller area or fewer days, or raise {limit}"
        )


def _list_datatakes(request: SceneRequest, part: Part) -> tuple[Datatake, ...]:
    return list_datatakes_of(part, request.seed, request.start, request.end)


def _estimate_bytes(request: SceneRequest) -> float:
    """Estimate the size of a scene, its item included."""
    return _BYTES_PER_ITEM + sum(_estimate_file_bytes(request))


def _estimate_file_bytes(request: SceneRequest) -> Iterator[float]:
    for file in _list_typical(request):
        side = _side_px(request, file)
        share = _OVERVIEW_SHARE if side > COG_TILE_PX else 0
        per_pixel = _BYTES_PER_SCL_PIXEL if file.band == "scl" else _BYTES_PER_PIXEL
        yield side**2 * per_pixel * (1 + share)


def _list_typical(request: SceneRequest) -> list[SceneFile]:
    """List the files of a scene; those of all days are alike in size."""
    return list_scene_files(request.bands, request.flavour, request.start)


def _side_px(request: SceneRequest, file: SceneFile) -> int:
    return 10 * request.scene_px // file.gsd_m
