"""Slim rows of STAC items: all that planning and workers need to know of a scene.

A million rows as objects would fill ten gigabytes, so they are kept as columns. Hrefs take most
of the room, and those of one item differ little: an item keeps the folder and the stem that its
files share, and points to a layout, which most items have in common.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from bigmap.files import parse_json

BANDS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3",
    "nir", "nir08", "nir09", "cirrus", "swir16", "swir22",
)  # fmt: skip
"""Common names of Sentinel-2's bands B01 to B08, B8A, B09 to B12, in the order of wavelength."""


@dataclass(frozen=True, slots=True)
class AssetRow:
    """One file of an item."""

    href: str
    """Where the file lies, unsigned."""
    shape: tuple[int, int]
    """Size in pixels, (y, x)."""
    transform: tuple[float, float, float, float, float, float]
    """Affine coefficients a, b, c, d, e, f: pixel (column, row) to metres of the item's CRS."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One product of one MGRS tile, as a worker reads it."""

    id: str
    collection: str
    datetime: dt.datetime
    """Time of acquisition, UTC."""
    solar_day: dt.date
    """Day of acquisition in solar time at the item's centre."""
    epsg: int
    """EPSG code of the item's CRS."""
    bounds: tuple[float, float, float, float]
    """Left, bottom, right, top in the item's CRS."""
    dn_shift: int
    """What to add to a valid DN of a band so that reflectance = 1e-4 * DN - 0.1: 0 or 1000."""
    cloud_percent: float | None
    baseline: str | None
    """Processing baseline, for example ``05.09``."""
    mgrs_tile: str | None
    assets: Mapping[str, AssetRow]
    """By common band name, and the mask under the name of its asset."""


_TEXT = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "collection": _TEXT,
        "datetime": pa.timestamp("us", "UTC"),
        "solar_day": pa.date32(),
        "epsg": pa.int32(),
        "left": pa.float64(),
        "bottom": pa.float64(),
        "right": pa.float64(),
        "top": pa.float64(),
        "dn_shift": pa.int16(),
        "cloud_percent": pa.float64(),
        "baseline": _TEXT,
        "mgrs_tile": _TEXT,
        "folder": pa.string(),
        "stem": pa.string(),
        "layout": _TEXT,
    }
)
"""Columns of a table of items; ``folder``, ``stem`` and ``layout`` together are the assets."""

_PLAIN = pa.schema(
    {
        field.name: pa.string() if pa.types.is_dictionary(field.type) else field.type
        for field in SCHEMA
    }
)
_BATCH_ROWS = 20_000
STEM = "\0"
"""Stands for the stem in a layout; no href holds it."""


class ItemTable(Sequence[ItemRow]):
    """Rows of many items in columns; a sequence of :class:`ItemRow`, each made when asked for.

    Parameters
    ----------
    columns
        Of :data:`SCHEMA`.
    """

    __slots__ = ("columns",)

    def __init__(self, columns: pa.Table) -> None:
        self.columns = columns

    @classmethod
    def of(cls, rows: Iterable[ItemRow]) -> ItemTable:
        """Gather rows, in their order."""
        if isinstance(rows, ItemTable):
            return rows
        waiting, parts = iter(rows), []
        while batch := list(islice(waiting, _BATCH_ROWS)):
            parts.append(pa.Table.from_pylist([_pack(row) for row in batch], schema=SCHEMA))
        table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()
        return cls(table.unify_dictionaries().combine_chunks())

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @overload
    def __getitem__(self, index: int) -> ItemRow: ...
    @overload
    def __getitem__(self, index: slice) -> ItemTable: ...
    def __getitem__(self, index: int | slice) -> ItemRow | ItemTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        place = range(len(self))[index]
        (row,) = self.columns.slice(place, 1).to_pylist()
        return _unpack(row)

    def __iter__(self) -> Iterator[ItemRow]:
        for batch in self.columns.to_batches(max_chunksize=_BATCH_ROWS):
            yield from map(_unpack, batch.to_pylist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        pairs = zip(self, other, strict=True)
        return len(self) == len(other) and all(mine == theirs for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemTable.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """Return the rows as one message, without what other rows need of the dictionaries."""
        columns = [column.combine_chunks() for column in self.columns.cast(_PLAIN).columns]
        message: bytes = pa.record_batch(columns, _PLAIN).serialize().to_pybytes()
        return message

    @classmethod
    def from_bytes(cls, message: bytes) -> ItemTable:
        """Return the rows of a message of :meth:`to_bytes`."""
        batch = pa.ipc.read_record_batch(pa.py_buffer(message), _PLAIN)
        return cls(pa.Table.from_batches([batch]).cast(SCHEMA))

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> ItemTable:
        """Return some of the rows, in the order of their indices."""
        return ItemTable(self.columns.take(pa.array(indices)))

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of numbers or times as an array."""
        values: npt.NDArray[Any] = self.columns[name].to_numpy()
        return values

    def count_hosts(self) -> Counter[str]:
        """Count the items that have files at each ``scheme://host``; local ones at ``://``."""
        # What hrefs share may end within a host, or be nothing, so that the rest tells.
        shared = pc.replace_substring_regex(
            self.columns["folder"], r"^([^/?#:]+://[^/?#]+/|/[^/]).*$", r"\1"
        )
        kinds = pa.table({"shared": shared, "layout": self.columns["layout"].cast(pa.string())})
        counts: Counter[str] = Counter()
        for kind in kinds.group_by(kinds.column_names).aggregate([([], "count_all")]).to_pylist():
            suffixes = [entry[1] for entry in parse_layout(kind["layout"])[1]]
            urls = [urlsplit(kind["shared"] + suffix) for suffix in suffixes]
            for host in {f"{url.scheme}://{url.netloc}" for url in urls}:
                counts[host] += kind["count_all"]
        return counts

    def find_around(self, folder: Path) -> ItemTable:
        """Return the items that may have files in a folder of this machine, or in one above."""
        shared, inside = self.columns["folder"], f"{folder}/"
        above = pa.array(["", "/", inside, *(f"{parent}/" for parent in folder.parents)])
        found = pc.or_(pc.is_in(shared, value_set=above), pc.starts_with(shared, pattern=inside))
        return self.take(np.flatnonzero(found.to_numpy()))

    def places(self) -> list[tuple[int, tuple[float, float, float, float], npt.NDArray[np.intp]]]:
        """Return each EPSG code and bounds that occur, with the indices of its rows, rising.

        All products of a tile lie in one place, so that there are few.
        """
        names = ("epsg", "left", "bottom", "right", "top")
        if not len(self):
            return []
        codes = np.zeros(len(self), dtype=np.intp)
        # Column by column, since NumPy sorts rows of a table much more slowly.
        for name in names:
            values, found = np.unique(self.column(name), return_inverse=True)
            _, codes = np.unique(codes * len(values) + found, return_inverse=True)
        order = np.argsort(codes, kind="stable")
        groups = np.split(order, np.cumsum(np.bincount(codes))[:-1])
        columns = [self.column(name) for name in names]
        return [
            (
                int(columns[0][first]),
                (
                    float(columns[1][first]),
                    float(columns[2][first]),
                    float(columns[3][first]),
                    float(columns[4][first]),
                ),
                indices,
            )
            for indices in groups
            for first in indices[:1]
        ]


def _pack(row: ItemRow) -> dict[str, Any]:
    """Turn a row into the values of :data:`SCHEMA`."""
    left, bottom, right, top = row.bounds
    folder, stem, layout = pack_assets(row)
    return {
        "id": row.id, "collection": row.collection, "datetime": row.datetime,
        "solar_day": row.solar_day, "epsg": row.epsg, "left": left, "bottom": bottom,
        "right": right, "top": top, "dn_shift": row.dn_shift, "cloud_percent": row.cloud_percent,
        "baseline": row.baseline, "mgrs_tile": row.mgrs_tile, "folder": folder, "stem": stem,
        "layout": layout,
    }  # fmt: skip


def _unpack(values: Mapping[str, Any]) -> ItemRow:
    bounds = values["left"], values["bottom"], values["right"], values["top"]
    return ItemRow(
        id=values["id"],
        collection=values["collection"],
        datetime=values["datetime"].astimezone(dt.UTC),
        solar_day=values["solar_day"],
        epsg=values["epsg"],
        bounds=bounds,
        dn_shift=values["dn_shift"],
        cloud_percent=values["cloud_percent"],
        baseline=values["baseline"],
        mgrs_tile=values["mgrs_tile"],
        assets=_unpack_assets(values["folder"], values["stem"], values["layout"], bounds),
    )


def pack_assets(row: ItemRow) -> tuple[str, str, str]:
    """Return the folder that the files share, the stem of their names, and the layout as JSON."""
    hrefs = [asset.href for asset in row.assets.values()]
    shared = _shared_start(hrefs)
    folder = shared[: shared.rfind("/") + 1]
    names = [href.rpartition("/")[2] for href in hrefs]
    stem = _shared_start(names) if len(set(names)) > 1 else ""
    left, top = row.bounds[0], row.bounds[3]
    # Corners are told from that of the item, which makes layouts equal, where nothing is lost.
    origin = (left, top)
    if any(
        (x + (asset.transform[2] - x), y + (asset.transform[5] - y))
        != (asset.transform[2], asset.transform[5])
        for x, y, asset in ((left, top, asset) for asset in row.assets.values())
    ):
        origin = (0.0, 0.0)
    entries = []
    for name, asset in row.assets.items():
        rest = asset.href[len(folder) :]
        start = rest.rfind("/") + 1
        suffix = rest[:start] + STEM + rest[start + len(stem) :]
        a, b, c, d, e, f = asset.transform
        entries.append([name, suffix, *asset.shape, a, b, c - origin[0], d, e, f - origin[1]])
    return folder, stem, json.dumps([origin != (0.0, 0.0), entries])


def _shared_start(texts: list[str]) -> str:
    """Return what all texts start with."""
    first, last = min(texts), max(texts)
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return first[:place]
    return first


def names_in_layout(layout: str) -> set[str]:
    """Return the names of the assets of a layout."""
    return {str(entry[0]) for entry in parse_layout(layout)[1]}


def _unpack_assets(
    folder: str, stem: str, layout: str, bounds: tuple[float, float, float, float]
) -> dict[str, AssetRow]:
    is_relative, entries = parse_layout(layout)
    x, y = (bounds[0], bounds[3]) if is_relative else (0.0, 0.0)
    return {
        name: AssetRow(
            folder + suffix.replace(STEM, stem), (height, width), (a, b, c + x, d, e, f + y)
        )
        for name, suffix, height, width, a, b, c, d, e, f in entries
    }


@lru_cache(maxsize=4096)
def parse_layout(layout: str) -> tuple[bool, tuple[tuple[Any, ...], ...]]:
    """Return whether corners are told from that of the item, and the assets of a layout.

    Each is name, end of the href with :data:`STEM` in it, height and width in pixels, and the six
    coefficients of its transform.
    """
    is_relative, entries = parse_json(layout)
    return is_relative, tuple(tuple(entry) for entry in entries)
