"""A world of chips in which every pixel and every label tells its place, read without a file."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import shapely
from odc.geo.geobox import GeoBox

from bigmap.errors import ReadError
from bigmap.grid import ROI, Area, Lattice
from bigmap.learning.chips import UNLABELLED, ChipTemplate
from bigmap.learning.samples.candidates import ChipLattice
from bigmap.learning.samples.cutting import PARTS, ChipJob
from bigmap.learning.samples.splits import SplitAreas
from bigmap.scenes.cube.reader import DayMasks
from bigmap.scenes.quality import DateRule

LATTICE = Lattice("EPSG:32631", 10, 16, 32, 32, 2, 64, 32)
BANDS = ("red", "nir")
DAYS = (dt.date(2024, 5, 3), dt.date(2024, 5, 8), dt.date(2024, 6, 2))
CHIP_PX = 8
EVERYWHERE = shapely.box(-1e6, -1e6, 1e6, 1e6)
BLOCK = (slice(-32, 0), slice(32, 64))
"""One tile of four by four chips."""
Grid = npt.NDArray[np.int64]


def indices(roi: ROI) -> tuple[Grid, Grid]:
    """Return the global row and column of each pixel of a region, both (y, x)."""
    rows, cols = (np.arange(part.start, part.stop) for part in roi)
    found: tuple[Grid, Grid] = np.broadcast_arrays(rows[:, None], cols[None])  # type: ignore[assignment]
    return found


def dn_at(day: dt.date, roi: ROI) -> npt.NDArray[np.uint16]:
    """Return what a day shows of a region, (band, y, x): day, band, row and column in one number.

    It is unambiguous within 64 pixels.
    """
    rows, cols = indices(roi)
    place = 1 + 20_000 * DAYS.index(day) + 100 * (rows % 64) + cols % 64
    return np.stack([place, place + 10_000]).astype(np.uint16)


@dataclass
class Scenes:
    """Stands in for a reader of the cube."""

    days: Sequence[dt.date] = DAYS
    clouds: Mapping[dt.date, Callable[[Grid, Grid], Any]] = field(default_factory=dict)
    """Where a day is cloudy, by global rows and columns."""
    unread: Collection[dt.date] = ()
    """Days whose bands cannot be read."""

    def near(self, roi: ROI) -> Scenes:
        """Return all: every day shows every place."""
        del roi
        return self

    def clear_at(self, day: dt.date, roi: ROI) -> npt.NDArray[np.bool_]:
        """Return where a day is clear, (y, x)."""
        rows, cols = indices(roi)
        cloudy = self.clouds[day](rows, cols) if day in self.clouds else False
        return ~np.broadcast_to(np.asarray(cloudy, dtype=bool), rows.shape)

    def read_masks(self, days: Sequence[dt.date], roi: ROI) -> dict[dt.date, DayMasks]:
        """Return the masks of one item a day."""
        clear = {day: self.clear_at(day, roi)[np.newaxis] for day in days}
        return {day: DayMasks(own, np.ones_like(own)) for day, own in clear.items()}

    def read_days(self, masks: Mapping[dt.date, DayMasks], roi: ROI) -> dict[dt.date, Any]:
        """Return DN and clear pixels of each day; the masks must be those of the region."""
        for day in masks:
            if day in self.unread:
                raise ReadError(f"{day}.tif: is cut")
            np.testing.assert_array_equal(masks[day].clear[0], self.clear_at(day, roi))
        return {day: (dn_at(day, roi), self.clear_at(day, roi)) for day in masks}


@dataclass(frozen=True)
class Labels:
    """Stands in for a reader of labels: classes by fine row and column, 255 left of a column."""

    first_col: int = -(10**6)
    """Fine column of the first label."""

    def near(self, bounds: tuple[float, float, float, float]) -> Labels:
        """Return all: every label is known everywhere."""
        del bounds
        return self

    def read(self, geobox: GeoBox) -> npt.NDArray[np.uint8]:
        """Return the labels of a grid, (y, x)."""
        fine_m = LATTICE.gsd_m / 2
        row, col = round(-geobox.affine.f / fine_m), round(geobox.affine.c / fine_m)
        height, width = geobox.shape
        return self.at((slice(row, row + height), slice(col, col + width)))

    def at(self, fine: ROI) -> npt.NDArray[np.uint8]:
        """Return the labels of a region in fine pixels, (y, x)."""
        rows, cols = indices(fine)
        classes = ((rows // 3 + cols // 5) % 2).astype(np.uint8)
        return np.where(cols >= self.first_col, classes, UNLABELLED).astype(np.uint8)


def make_template(**changes: Any) -> ChipTemplate:
    """Return the shape of chips of 8 px with labels of 16 px."""
    common: dict[str, Any] = {
        "crs": LATTICE.crs, "gsd_m": LATTICE.gsd_m, "chip_px": CHIP_PX, "max_dates": len(DAYS),
        "bands": BANDS, "upscale": 2, "class_values": (0, 1), "class_names": ("bare", "green"),
    }  # fmt: skip
    return ChipTemplate(**common | changes)


def make_lattice(
    *, span_px: int = CHIP_PX, area: Any = EVERYWHERE, splits: SplitAreas | None = None
) -> ChipLattice:
    """Return places of chips, all of them for training by default."""
    nothing = shapely.Polygon()
    splits = splits or SplitAreas((EVERYWHERE, nothing, nothing), 0)
    return ChipLattice(LATTICE, span_px, Area((area,)), splits, 7, (1.0, 1.0, 1.0))


def make_job(folder: Path, **changes: Any) -> ChipJob:
    """Return what blocks have in common; scenes are given to blocks as their rows."""
    common: dict[str, Any] = {
        "run_folder": str(folder), "lease_owner": None, "chips": make_lattice(),
        "template": make_template(), "reading": SimpleNamespace(on_error="fail"),
        "dates": DateRule(3, 50.0), "min_dates": 1, "min_labelled_percent": 50.0,
        "labels": Labels(), "target": None, "reduction": None,
    }  # fmt: skip
    return ChipJob(**common | changes)


def read_parts(folder: Path, block: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the entries of a block's index, each with the arrays of its chip, and the refusals."""
    table = pq.read_table(io.BytesIO((folder / PARTS / f"{block}.parquet").read_bytes()))
    chips = table.to_pylist()
    for chip in chips:
        with np.load(folder / PARTS / f"{chip['tile']}.npz") as part:
            chip["arrays"] = {name: part[name][chip["position"]] for name in part.files}
    return chips, json.loads(table.schema.metadata[b"refused"])
