"""Vector files of any format and CRS: the layer that is meant, read whole or in a box."""

from __future__ import annotations

import math
import struct
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import fsspec
import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyogrio
import pyogrio.errors
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely.errors import ShapelyError

from bigmap.errors import BigmapError, ReadError
from bigmap.files import parse_json

# What GDAL remarks while it reads (measures that are dropped, for example) changes no polygon, and
# coordinates that are no numbers are refused below.
warnings.filterwarnings("ignore", module=r"pyogrio|bigmap\.vectors")
warnings.filterwarnings("ignore", message="invalid value encountered in from_wkb")

Bounds = tuple[float, float, float, float]
WHOLE: Bounds = (-1.7e308, -1.7e308, 1.7e308, 1.7e308)
"""A box around everything: within one, GDAL tells of features that are damaged; without, not."""
KML_DRIVERS = ("KML", "LIBKML")
LINES = {"LineString", "MultiLineString"}
OTHER_KINDS = {
    "polygons": {"Point", "MultiPoint", *LINES},
    "points": {"Polygon", "MultiPolygon", *LINES},
}
"""Kinds of layers that hold none of what is wanted; those of other kinds may."""
MOST_NESTED = 32
"""Collections within collections, as GDAL has it: GEOS recurses, and deep ones end the process."""
LEAST_NESTED_BYTES = 4096
"""Shorter ones cannot be so deep that it matters."""

_FAILURES = (
    pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, pyogrio.errors.FeatureError,
    pyogrio.errors.GeometryError, pyogrio.errors.FieldError, pyogrio.errors.CRSError,
    ShapelyError, ProjError, pa.ArrowException, OSError, ValueError, LookupError, TypeError,
    AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class VectorFile:
    """One layer of a vector file, or the folders of a KML; it travels to workers."""

    file: str
    layers: tuple[int, ...]
    """Indices; none of a GeoParquet file."""
    columns: tuple[str, ...]
    """Attributes."""
    crs: str
    """As WKT."""
    features: int
    """How many there are, those without a geometry included."""
    where: str
    """Names the setting and the file in messages."""
    error: type[BigmapError]

    def read(
        self, *, bounds: Bounds | None = None, columns: Sequence[str] | None = None
    ) -> gpd.GeoDataFrame:
        """Read the features that have a place, in two dimensions.

        Parameters
        ----------
        bounds
            Left, bottom, right, top in the file's CRS: only what meets this box.
        columns
            Attributes wanted; by default all.

        Raises
        ------
        ReadError
            If the file, which could be opened before, cannot be opened at present.
        BigmapError
            ``error``, if the file is damaged or holds coordinates that are no places.
        """
        try:
            if _is_parquet(self.file):
                frame = _load_parquet(self.file, _stamp_of(self.file))
                if bounds is not None:
                    frame = frame.iloc[np.sort(frame.sindex.query(shapely.box(*bounds)))]
            else:
                frames = [
                    pyogrio.read_dataframe(
                        self.file, layer=layer, columns=columns, bbox=bounds or WHOLE, force_2d=True
                    )
                    for layer in self.layers
                ]
                frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        except (pyogrio.errors.DataSourceError, OSError) as failure:
            raise _refuse(self.where, failure, ReadError) from None
        except _FAILURES as failure:
            raise _refuse(self.where, failure, self.error) from None
        frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
        if not np.isfinite(shapely.get_coordinates(frame.geometry.values)).all():
            raise self.error(f"{self.where}: has coordinates that are no finite numbers")
        return frame

    def read_attribute(self, name: str) -> pd.Series[Any]:
        """Read one attribute of all features."""
        try:
            if _is_parquet(self.file):
                values: pd.Series[Any] = _load_parquet(self.file, _stamp_of(self.file))[name]
                return values
            parts = [
                pyogrio.read_dataframe(self.file, layer=layer, columns=[name], read_geometry=False)
                for layer in self.layers
            ]
        except _FAILURES as failure:
            raise _refuse(self.where, failure, self.error) from None
        joined: pd.Series[Any] = pd.concat(parts, ignore_index=True)[name]
        return joined

    def find_column(self, name: str) -> str | None:
        """Return the attribute of a name, whose accents may be written in the other way."""
        return next((each for each in self.columns if normalise(each) == normalise(name)), None)


def open_vector(
    file: str, layer: str | None = None, *, where: str, choose: str, error: type[BigmapError],
    kind: Literal["polygons", "points"] = "polygons",
) -> VectorFile:  # fmt: skip
    """Find the layer of a vector file that is meant, and check what can be checked unread.

    Parameters
    ----------
    file
        GeoPackage, GeoParquet, FlatGeobuf, GeoJSON, shapefile or whatever else GDAL reads.
    layer
        Its name; by default the only one that may hold such features. A KML's folders are united.
    where
        Names the setting and the file in messages.
    choose
        How a layer is chosen, for example ``set area.layer``.
    error
        Raised where the file cannot be used.
    kind
        ``polygons`` or ``points``, which are wanted.

    Raises
    ------
    BigmapError
        ``error``, if the file cannot be read, has several layers and none is named, no CRS, or
        coordinates that do not fit its CRS.
    """
    is_local = "://" not in file and not file.startswith("/vsi") and "!" not in file
    if is_local and not Path(file).exists():
        raise error(f"{where}: no such file")
    try:
        if _is_parquet(file):
            if layer is not None:
                raise error(f"{where}: GeoParquet has no layers, so {layer} cannot be one")
            layers: tuple[int, ...] = ()
            columns, crs, features, bounds = _describe_parquet(file)
        else:
            layers = _choose_layers(file, layer, where=where, choose=choose, error=error, kind=kind)
            infos = [
                pyogrio.read_info(
                    file, layer=each, force_feature_count=True, force_total_bounds=True
                )
                for each in layers
            ]
            columns = list(dict.fromkeys(name for info in infos for name in info["fields"]))
            crs = infos[0]["crs"]
            features = sum(info["features"] for info in infos)
            bounds = [info["total_bounds"] for info in infos if info["total_bounds"] is not None]
        known = CRS.from_user_input(crs) if crs else None
    except _FAILURES as failure:
        raise _refuse(where, failure, error) from None
    if known is None:
        raise error(f"{where}: has no CRS, so its place is unknown; assign one")
    _check_places(known, bounds, where=where, error=error)
    return VectorFile(file, layers, tuple(columns), known.to_wkt(), features, where, error)


def _choose_layers(
    file: str,
    layer: str | None,
    *,
    where: str,
    choose: str,
    error: type[BigmapError],
    kind: str,
) -> tuple[int, ...]:
    found = [
        (normalise(name), None if geometry is None else str(geometry).split()[0])
        for name, geometry in pyogrio.list_layers(file)
    ]
    names = [name for name, _ in found]
    if layer is not None and normalise(layer) not in names:
        raise error(f"{where}: has no layer {layer}; it has {', '.join(names) or 'none'}")
    wanted = [
        index
        for index, (name, geometry) in enumerate(found)
        if geometry is not None
        and geometry not in OTHER_KINDS[kind]
        and (layer is None or name == normalise(layer))
    ]
    if not wanted:
        layers = ", ".join(f"{name} ({geometry or 'a table'})" for name, geometry in found)
        chosen = "" if layer is None else f"layer {layer} "
        held = f"the file has the layers {layers}" if layers else "the file has no layer"
        raise error(f"{where}: {chosen}holds no {kind}; {held}")
    if len(wanted) > 1 and pyogrio.read_info(file, layer=0)["driver"] not in KML_DRIVERS:
        listed = ", ".join(names[index] for index in wanted)
        raise error(f"{where}: has the layers {listed}; {choose}")
    return tuple(wanted)


def _check_places(crs: CRS, bounds: Iterable[Any], *, where: str, error: type[BigmapError]) -> None:
    """Refuse a CRS of no known place, and degrees that cannot be any."""
    try:
        Transformer.from_crs(crs, "EPSG:4326")
    except ProjError:
        raise error(f"{where}: has a CRS whose place on the Earth is unknown") from None
    if not crs.is_geographic:
        return
    quarter = math.pi / 2 / crs.axis_info[0].unit_conversion_factor
    for left, bottom, right, top in bounds:
        x, y = max(left, right, key=abs), max(bottom, top, key=abs)
        if not math.isfinite(x + y):
            continue  # there is nothing
        # Some count longitudes from 0 to 360.
        if abs(y) > quarter * (1 + 1e-6) or abs(x) > 4 * quarter * (1 + 1e-6):
            raise error(
                f"{where}: reaches {x:.1f}, {y:.1f}, but its CRS ({crs.name}) is in degrees; it "
                "seems to hold metres, so give it the CRS that they are in"
            )


def take_polygons(geometries: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """Return the polygons of geometries, valid, those within collections included.

    A geometry without polygons becomes an empty one.
    """
    valid = np.atleast_1d(shapely.make_valid(geometries))
    others = np.flatnonzero(~np.isin(shapely.get_type_id(valid), _POLYGONAL))
    for index in others:
        parts = valid[index : index + 1]
        while (shapely.get_type_id(parts) == shapely.GeometryType.GEOMETRYCOLLECTION).any():
            parts = shapely.get_parts(parts)
        valid[index] = shapely.union_all(parts[np.isin(shapely.get_type_id(parts), _POLYGONAL)])
    parts, owners = shapely.get_parts(valid, return_index=True)
    rings, of_parts = shapely.get_rings(parts, return_index=True)
    # GEOS takes a hole without points for valid, and ends the process where it cuts its edges.
    hollow = np.unique(owners[of_parts[shapely.is_empty(rings)]])
    valid[hollow] = shapely.make_valid(valid[hollow], method="structure", keep_collapsed=False)
    return valid


_POLYGONAL = (shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON)


def normalise(text: str) -> str:
    """Return a text with its accents composed: files from macOS hold them apart."""
    return unicodedata.normalize("NFC", str(text))


def name_values(values: Any) -> list[str]:
    """Return values of an attribute as the recipe writes them; whole numbers without a point."""
    return [
        str(int(value))
        if isinstance(value, float | np.floating) and value.is_integer()
        else normalise(value)
        for value in values
    ]


def _refuse(where: str, failure: Exception, error: type[BigmapError]) -> BigmapError:
    """Say in one line what a library found; its advice is for programmers."""
    reason = str(failure).partition("\n")[0].partition("; ")[0]
    if "not recognized as being in a supported file format" in reason:
        return error(f"{where}: is not a vector file that can be read")
    return error(f"{where}: cannot be read ({reason or type(failure).__name__})")


def _is_parquet(file: str) -> bool:
    return file.lower().endswith((".parquet", ".geoparquet"))


def _stamp_of(file: str) -> float:
    return Path(file).stat().st_mtime if "://" not in file else 0.0


def _describe_parquet(file: str) -> tuple[list[str], Any, int, list[npt.NDArray[np.float64]]]:
    frame = _load_parquet(file, _stamp_of(file))
    columns = [str(name) for name in frame.columns if name != frame.geometry.name]
    return columns, frame.crs, len(frame), [frame.total_bounds]


@lru_cache(maxsize=2)
def _load_parquet(file: str, stamp: float) -> gpd.GeoDataFrame:
    """Read a GeoParquet file whole: it has no index that all writers give it."""
    del stamp
    filesystem, path = fsspec.core.url_to_fs(file)
    stored = pyarrow.dataset.dataset(path, filesystem=filesystem, format="parquet")
    content = (stored.schema.metadata or {}).get(b"geo")
    if content is None:
        raise ValueError("it has no geo metadata: write it as GeoParquet, with its CRS")
    facts = parse_json(content)
    name = facts.get("primary_column") if isinstance(facts, dict) else None
    if name not in stored.schema.names:
        raise ValueError(f"its geo metadata name the column {name}, which it lacks")
    kind = stored.schema.field(name).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        is_long = pc.binary_length(pc.field(name)) > LEAST_NESTED_BYTES
        table = stored.to_table(columns=[name], filter=is_long)
        if any(measure_nesting(value.as_py()) > MOST_NESTED for value in table[name]):
            raise ValueError("it has geometries that are too deeply nested")
    frame = gpd.read_parquet(file)
    frame[frame.geometry.name] = frame.geometry.force_2d()
    return frame


def measure_nesting(wkb: bytes) -> int:
    """Return how deep the collections of a geometry lie in each other.

    It needs no recursion, as those who read such a geometry do.

    Parameters
    ----------
    wkb
        Well-known binary, of OGC, ISO or PostGIS. A damaged one is followed as far as it goes.
    """
    place, deepest = 0, 0
    open_parts = [1]
    try:
        while open_parts:
            if not open_parts[-1]:
                open_parts.pop()
                continue
            open_parts[-1] -= 1
            order = "<" if wkb[place] else ">"
            code, count = struct.unpack_from(f"{order}II", wkb, place + 1)
            has_srid, flags = bool(code & 0x20000000), code >> 30
            if has_srid:
                (count,) = struct.unpack_from(f"{order}I", wkb, place + 9)
            shape, iso = (code & 0x1FFFFFFF) % 1000, (code & 0x1FFFFFFF) // 1000
            step = 8 * (2 + (flags.bit_count() or (0, 1, 1, 2)[iso % 4]))
            place += 9 + 4 * has_srid
            if shape == 1:
                place += step - 4  # a point has no count
            elif shape == 2:
                place += count * step
            elif shape == 3:
                for _ in range(count):
                    (points,) = struct.unpack_from(f"{order}I", wkb, place)
                    place += 4 + points * step
            else:
                open_parts.append(count)
                deepest = max(deepest, len(open_parts) - 1)
    except (struct.error, IndexError):
        pass
    return deepest
