"""Render scenes piece by piece and write their files and items."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from affine import Affine

from bigmap.draws import F64
from bigmap.files import write_and_sync
from bigmap.simulate.acquisitions import Datatake, list_datatakes
from bigmap.simulate.files import write_cog, write_jp2
from bigmap.simulate.flavours import SceneFile, native_gsd_m
from bigmap.simulate.items import describe_item
from bigmap.simulate.landscape import build_landscape
from bigmap.simulate.observation import MARGIN_M, Observation, start_observation
from bigmap.simulate.patch import NODE_M, Patch
from bigmap.simulate.tiles import PIECE_M, Part

Numbers = npt.NDArray[np.unsignedinteger[Any]]
"""uint8 for the scene classification, uint16 for bands."""

SCL_FIELDS = {
    "nodata_pixel": 0, "saturated_defective_pixel": 1, "dark_features": 2, "cloud_shadow": 3,
    "vegetation": 4, "not_vegetated": 5, "water": 6, "unclassified": 7,
    "medium_proba_clouds": 8, "high_proba_clouds": 9, "thin_cirrus": 10, "snow_ice": 11,
}  # fmt: skip
_DAY = dt.timedelta(days=1)


@dataclass
class SceneJob:
    """The files to be written of one part and datatake."""

    part: Part
    datatake: Datatake
    folder: Path
    files: tuple[SceneFile, ...]
    """Those that are missing."""
    shift: int
    """Added to 10,000 x reflectance."""
    images: dict[str, Numbers] = field(init=False)
    """By band, at its own pixel size; 0 where nothing is seen."""
    sun: list[tuple[float, float]] = field(init=False, default_factory=list)
    """Azimuth and elevation of each piece, in degrees."""

    def __post_init__(self) -> None:
        bands = dict.fromkeys(file.band for file in self.files)
        if not (self.folder / "item.json").exists():
            bands["scl"] = None
        sides = {band: 10 * self.part.side_px // native_gsd_m(band) for band in bands}
        self.images = {
            band: np.zeros((side, side), dtype=np.uint8 if band == "scl" else np.uint16)
            for band, side in sides.items()
        }

    def add(self, piece: Part, observation: Observation) -> None:
        """Take what is seen of a piece."""
        left, _, _, top = self.part.bounds
        down_m, right_m = round(top - piece.bounds[3]), round(piece.bounds[0] - left)
        for band, image in self.images.items():
            if band == "scl":
                pixels: Numbers = observation.classify()
            else:
                pixels = quantise(observation.observe_band(band), shift=self.shift)
            gsd, (height, width) = native_gsd_m(band), pixels.shape
            row, column = down_m // gsd, right_m // gsd
            image[row : row + height, column : column + width] = pixels
        azimuth, elevation = (float(angle.mean()) for angle in observation.sun)
        self.sun.append((azimuth, elevation))

    def write(self) -> None:
        """Write the files, and the item last: where it is, so are the others."""
        epsg = self.part.tile.epsg
        for file in self.files:
            values = resize_numbers(self.images[file.band], file)
            write = write_jp2 if file.path.endswith(".jp2") else write_cog
            write(self.folder / file.path, values, _transform(self.part, file.gsd_m), epsg)
        if (self.folder / "item.json").exists():
            return
        scl = self.images["scl"]
        azimuth, elevation = (float(np.mean(angles)) for angles in zip(*self.sun, strict=True))
        item = describe_item(
            self.part,
            self.datatake,
            sun=(azimuth, elevation),
            percentages=_count(scl),
            footprint=_outline(self.part, scl),
        )
        write_and_sync(self.folder / "item.json", json.dumps(item).encode())


def render_scenes(seed: int, part: Part, jobs: Sequence[SceneJob]) -> None:
    """Render and write scenes of one part, each as soon as its last piece is seen.

    Parameters
    ----------
    seed
        Seed of the world.
    jobs
        Of ``part``; their images are held at once.
    """
    pieces = {id(job): _list_pieces(seed, part, job.datatake) for job in jobs}
    for piece in part.pieces:
        seen = [job for job in jobs if piece in pieces[id(job)]]
        if not seen:
            continue
        landscape = build_landscape(seed, _patch_of(piece).grow(MARGIN_M))
        for job in seen:
            job.add(piece, start_observation(job.datatake, landscape))
            if piece == pieces[id(job)][-1]:
                job.write()
                job.images = {}


def forecast_item(seed: int, part: Part, datatake: Datatake) -> dict[str, Any]:
    """Describe a scene before it is rendered.

    Its outline is that of the pieces that the datatake sees, in which its pixels will lie, and
    its clouds are left out.
    """
    seen = [shapely.box(*piece.bounds) for piece in _list_pieces(seed, part, datatake)]
    azimuth, elevation = (float(angle.mean()) for angle in datatake.locate_sun(*corners_of(part)))
    hull = shapely.convex_hull(shapely.union_all(seen))
    footprint = [(float(x), float(y)) for x, y in shapely.get_coordinates(hull)]
    return describe_item(
        part, datatake, sun=(azimuth, elevation), percentages={}, footprint=footprint
    )


def _list_pieces(seed: int, part: Part, datatake: Datatake) -> list[Part]:
    """List the pieces that a datatake sees; the others are without data."""
    day = datatake.node.date()
    return [
        piece
        for piece in part.pieces
        if datatake in list_datatakes_of(piece, seed, day - _DAY, day + _DAY)
    ]


@lru_cache(maxsize=16384)
def list_datatakes_of(part: Part, seed: int, start: dt.date, end: dt.date) -> tuple[Datatake, ...]:
    """List the datatakes that see a part on some days, both included, in the order of time."""
    return tuple(list_datatakes(seed, *corners_of(part), start, end))


@lru_cache(maxsize=16384)
def corners_of(part: Part) -> tuple[F64, F64]:
    """Return longitude and latitude of the corners of a part's pieces, in degrees.

    Swath edges are nearly straight, so the corners of a piece stand for all of it.
    """
    count = PIECE_M // NODE_M
    longitude, latitude = (nodes[::count, ::count] for nodes in _patch_of(part).lonlat)
    return longitude.copy(), latitude.copy()


def _patch_of(part: Part) -> Patch:
    left, _, _, top = part.bounds
    side = 10 * part.side_px // NODE_M
    return Patch(f"EPSG:{part.tile.epsg}", int(left), int(top), side, side)


def quantise(reflectance: npt.NDArray[np.float32], *, shift: int = 0) -> npt.NDArray[np.uint16]:
    """Turn reflectance into digital numbers, 1 to 65535; 0 where it is NaN.

    Parameters
    ----------
    shift
        Added to 10,000 x reflectance: 0, or 1,000 for files of baseline 04.00 and later.
    """
    numbers = np.clip(np.rint(reflectance * 10_000) + shift, 1, 65_535)
    return np.asarray(np.nan_to_num(numbers, nan=0).astype(np.uint16))


def resize_numbers(numbers: Numbers, file: SceneFile) -> Numbers:
    """Bring a band to the pixel size of a file; our choice of how.

    Coarser pixels are the rounded mean of those they hold, and 0 where one of these is 0; classes
    are those of the middle pixel. Finer pixels repeat the coarse ones.

    Parameters
    ----------
    numbers
        (y, x) at the band's own pixel size.
    """
    native = native_gsd_m(file.band)
    if file.gsd_m == native:
        return numbers
    if file.gsd_m < native:
        factor = native // file.gsd_m
        return np.asarray(np.repeat(np.repeat(numbers, factor, axis=0), factor, axis=1))
    factor = file.gsd_m // native
    if file.band == "scl":
        return numbers[factor // 2 :: factor, factor // 2 :: factor]
    side = len(numbers) // factor
    squares = numbers.reshape(side, factor, side, factor)
    mean = np.rint(squares.mean(axis=(1, 3))).astype(numbers.dtype)
    return np.where(squares.min(axis=(1, 3)) > 0, mean, 0).astype(numbers.dtype)


def _count(scl: Numbers) -> dict[str, float]:
    """Return the share of each class: of all pixels for nodata, of valid ones else."""
    counts = np.bincount(scl.ravel(), minlength=12)
    valid = max(1, int(counts[1:].sum()))
    return {
        name: round(100 * float(counts[code]) / (scl.size if code == 0 else valid), 6)
        for name, code in SCL_FIELDS.items()
    }


def _outline(part: Part, scl: Numbers) -> list[tuple[float, float]]:
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
