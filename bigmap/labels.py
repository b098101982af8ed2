"""Labels: polygons, rasters or simulated truth -> values of classes on any grid.

A pixel's label depends on its place alone: polygons are taken at pixel centres, rasters by the
most frequent of the values below a pixel, or by the nearest where their pixels are larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyogrio
import pyogrio.errors
import pystac
import rasterio
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from bigmap import simulate
from bigmap.errors import SamplesError

UNLABELLED = 255
FINE_M = 2.5
"""Pixel size of the simulated truth."""
SAMPLE_PX = 512
"""Side to which a raster is reduced to look at its values before any work."""
SIMULATED_VALUES = {"cropland": (0, 1), "building": (0, 1)}
"""Values of truth layers whose classes are always these; others follow the legend."""

UInt8Array = npt.NDArray[np.uint8]
Bounds = tuple[float, float, float, float]


class LabelReader(Protocol):
    """Gives the labels of any place; travels to workers."""

    def near(self, bounds: Bounds) -> LabelReader:
        """Return a reader for a small region, left, bottom, right, top, which it may load."""

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Return values of classes, (y, x), 255 where unlabelled.

        Raises
        ------
        SamplesError
            If the labels cannot be read, or are refused by a rule of the recipe.
        """


def open_labels(
    settings: Mapping[str, Any],
    *,
    crs: str,
    class_values: Sequence[int],
    bounds: Bounds,
    seed: int = 0,
) -> LabelReader:
    """Check labels and make what reads them.

    Parameters
    ----------
    settings
        ``samples.labels`` of the recipe, as a mapping.
    crs
        Of the grid they are wanted on.
    class_values
        Of the legend; labels of other values are refused.
    bounds
        Left, bottom, right, top of the area in ``crs``.
    seed
        Of the simulated world.

    Raises
    ------
    SamplesError
        If a file cannot be read, has no CRS, no such attribute or class, or misses the area.
    """
    fields = {key: value for key, value in settings.items() if key != "kind"}
    match settings["kind"]:
        case "vector":
            reader: LabelReader = _open_vector(fields, crs, bounds)
            values = [*fields["classes"].values()]
            values += [] if fields["background"] is None else [fields["background"]]
        case "raster":
            reader = _open_rasters(fields, crs, bounds, class_values)
            values = list((fields["classes"] or {}).values())
        case _:
            reader = SimulatedLabelReader(fields["layer"], seed, crs)
            values = list(SIMULATED_VALUES.get(fields["layer"], ()))
    unknown = sorted(set(values) - set(class_values))
    if unknown:
        raise SamplesError(
            f"samples.labels: gives the class value {unknown[0]}, but the model's legend has "
            f"{', '.join(map(str, class_values))}; set model.legend or the classes"
        )
    return reader


@dataclass(frozen=True)
class VectorLabelReader:
    """Polygons of a file, rasterised."""

    file: str
    layer: str | None
    attribute: str | None
    classes: Mapping[str, int]
    background: int | None
    overlaps: Literal["unlabelled", "last", "refuse"]
    file_crs: str
    crs: str
    loaded: tuple[tuple[int, Any], ...] | None = None
    """Class and polygon in ``crs``, in the order of the file, of a region that was loaded."""

    def near(self, bounds: Bounds) -> VectorLabelReader:
        """Load the polygons of a region."""
        frame = _read_frame(self.file, self.layer, self.attribute, self.locate_in_file(bounds))
        frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty)]
        values = name_values(frame[self.attribute]) if self.attribute else [None] * len(frame)
        only = next(iter(self.classes.values()))
        polygons = shapely.make_valid(frame.to_crs(self.crs).geometry.to_numpy())
        loaded = [
            (only if value is None else self.classes[value], polygon)
            for value, polygon in zip(values, polygons, strict=True)
            if value is None or value in self.classes
        ]
        return replace(self, loaded=tuple(loaded))

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Rasterise at pixel centres; where classes overlap, by the recipe's rule."""
        if self.loaded is None:
            return self.near(_bounds_of(geobox)).read(geobox)
        empty = UNLABELLED if self.background is None else self.background
        labels = np.full(geobox.shape, empty, dtype=np.uint8)
        box = shapely.box(*_bounds_of(geobox))
        inside = [entry for entry in self.loaded if entry[1].intersects(box)]
        covered = np.zeros(geobox.shape, dtype=np.uint8)
        for value in sorted({value for value, _ in inside}):
            own = _burn([(polygon, 1) for v, polygon in inside if v == value], geobox) == 1
            labels[own] = value
            covered += own
        if self.overlaps == "unlabelled":
            labels[covered > 1] = UNLABELLED
        elif (covered > 1).any():
            if self.overlaps == "refuse":
                x, y = _centre_of(geobox, *np.argwhere(covered > 1)[0])
                raise SamplesError(
                    f"samples.labels.file: {self.file}: polygons of two classes overlap at x={x:g} "
                    f"y={y:g} ({self.crs}); mend them, or set samples.labels.overlaps"
                )
            last = _burn([(polygon, value) for value, polygon in inside], geobox)
            labels = np.where(covered > 1, last, labels).astype(np.uint8)
        return labels

    def locate_in_file(self, bounds: Bounds) -> Bounds:
        """Return a box around a region in the CRS of the file, with a margin for its curvature."""
        transformer = Transformer.from_crs(self.crs, self.file_crs, always_xy=True)
        left, bottom, right, top = transformer.transform_bounds(*bounds, densify_pts=21)
        margin = 0.01 * max(right - left, top - bottom)
        return left - margin, bottom - margin, right + margin, top + margin


def _burn(shapes: list[tuple[Any, int]], geobox: GeoBox) -> UInt8Array:
    burnt: UInt8Array = rasterio.features.rasterize(
        shapes, out_shape=tuple(geobox.shape), transform=geobox.transform, fill=UNLABELLED,
        dtype="uint8",
    )  # fmt: skip
    return burnt


def _open_vector(fields: Mapping[str, Any], crs: str, bounds: Bounds) -> VectorLabelReader:
    file, attribute, classes = fields["file"], fields["attribute"], fields["classes"]
    where = f"samples.labels.file: {file}"
    columns, file_crs = _describe_vector(file, fields["layer"])
    if file_crs is None:
        raise SamplesError(f"{where}: has no CRS, so its place is unknown; assign one")
    if attribute is None and len(classes) > 1:
        raise SamplesError("samples.labels.attribute: is needed to tell several classes apart")
    if attribute is not None and attribute not in columns:
        raise SamplesError(
            f"samples.labels.attribute: {file} has no attribute {attribute}; it has "
            f"{', '.join(columns) or 'none'}"
        )
    if len({*classes.values(), fields["background"]} - {None}) < 2:
        raise SamplesError(
            "samples.labels.classes: all labels are of one class, from which nothing can be "
            "learnt; give samples.labels.background, or map the attribute to several classes"
        )
    reader = VectorLabelReader(**fields, file_crs=file_crs, crs=crs)
    if attribute is not None:
        found = set(name_values(_read_attribute(file, fields["layer"], attribute)))
        absent = sorted(set(classes) - found)
        if absent:
            raise SamplesError(
                f"samples.labels.classes: no polygon of {file} has {attribute} {absent[0]!r}; "
                f"there are {', '.join(map(repr, sorted(found)[:20]))}"
            )
    frame = _read_frame(file, fields["layer"], attribute, reader.locate_in_file(bounds))
    kinds = set(frame.geometry.dropna().geom_type)
    if kinds - {"Polygon", "MultiPolygon", "GeometryCollection"}:
        raise SamplesError(f"{where}: holds {min(kinds)}s; labels need polygons")
    if not len(reader.near(bounds).loaded or ()):
        raise SamplesError(f"{where}: no polygon of the classes lies in the area; check its CRS")
    return reader


def name_values(values: Any) -> list[str]:
    """Return values of an attribute as the recipe writes them; whole numbers without a point."""
    return [
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        for value in values
    ]


def _is_parquet(file: str) -> bool:
    return Path(file).suffix in (".parquet", ".geoparquet")


@lru_cache(maxsize=2)
def _load_parquet(file: str, stamp: float) -> gpd.GeoDataFrame:
    """Read a GeoParquet file whole: it has no index that all writers give it."""
    del stamp
    return gpd.read_parquet(file)


_VECTOR_ERRORS = (
    pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError,
)  # fmt: skip


def _parquet(file: str) -> gpd.GeoDataFrame:
    return _load_parquet(file, Path(file).stat().st_mtime)


def _describe_vector(file: str, layer: str | None) -> tuple[list[str], str | None]:
    """Return the attributes of a file and its CRS as WKT."""
    try:
        if _is_parquet(file):
            frame = _parquet(file)
            columns = [name for name in frame.columns if name != frame.geometry.name]
            return columns, frame.crs.to_wkt() if frame.crs else None
        info = pyogrio.read_info(file, layer=layer)
        crs = CRS.from_user_input(info["crs"]).to_wkt() if info["crs"] else None
    except (*_VECTOR_ERRORS, ProjError) as error:
        raise SamplesError(f"samples.labels.file: {file}: cannot be read ({error})") from None
    return list(info["fields"]), crs


def _read_attribute(file: str, layer: str | None, attribute: str) -> Any:
    if _is_parquet(file):
        return _parquet(file)[attribute]
    frame = pyogrio.read_dataframe(file, layer=layer, columns=[attribute], read_geometry=False)
    return frame[attribute]


def _read_frame(
    file: str, layer: str | None, attribute: str | None, bounds: Bounds
) -> gpd.GeoDataFrame:
    """Read the polygons that meet a box in the file's CRS."""
    try:
        if _is_parquet(file):
            frame = _parquet(file)
            return frame.iloc[np.sort(frame.sindex.query(shapely.box(*bounds)))]
        columns = [attribute] if attribute else []
        return pyogrio.read_dataframe(file, layer=layer, columns=columns, bbox=bounds)
    except _VECTOR_ERRORS as error:
        raise SamplesError(f"samples.labels.file: {file}: cannot be read ({error})") from None


@dataclass(frozen=True)
class RasterLabelReader:
    """Rasters of classes, warped by the most frequent value; where several hold a pixel, the first.

    Values that are no class are unlabelled.
    """

    files: tuple[str, ...]
    boxes: tuple[Bounds, ...]
    """Of the files, in ``crs``."""
    table: tuple[int, ...]
    """Class of each value from 0 to 255, 255 where unlabelled."""
    crs: str

    def near(self, bounds: Bounds) -> RasterLabelReader:
        """Keep the files that meet a region."""
        meets = shapely.intersects(shapely.box(*np.array(self.boxes).T), shapely.box(*bounds))
        kept = np.flatnonzero(meets)
        return replace(
            self,
            files=tuple(self.files[index] for index in kept),
            boxes=tuple(self.boxes[index] for index in kept),
        )

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Warp the files onto a grid."""
        labels = np.full(geobox.shape, UNLABELLED, dtype=np.uint8)
        table = np.array(self.table, dtype=np.uint8)
        for file in self.near(_bounds_of(geobox)).files if self.files else ():
            values, has_data = _warp(file, geobox)
            found = np.where(has_data, table[values], UNLABELLED)
            labels = np.where(labels == UNLABELLED, found, labels).astype(np.uint8)
        return labels


def _warp(file: str, geobox: GeoBox) -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
    """Read a raster on a grid by the most frequent value; values beyond uint8 count as no data."""
    try:
        with rasterio.open(file) as source:
            ratio = _size_ratio(source, geobox)
            with WarpedVRT(
                source, crs=str(geobox.crs), transform=geobox.transform, width=geobox.shape[1],
                height=geobox.shape[0], resampling=Resampling.mode, tolerance=1e-9, XSCALE=ratio,
                YSCALE=ratio, add_alpha=source.nodata is None,
            ) as warped:  # fmt: skip
                values = warped.read(1)
                has_data = warped.dataset_mask() > 0
    except (RasterioError, OSError) as error:
        raise SamplesError(f"samples.labels.files: {file}: cannot be read ({error})") from None
    fits = (values >= 0) & (values < UNLABELLED)
    return np.where(fits, values, 0).astype(np.uint8), has_data & fits


def _size_ratio(source: rasterio.DatasetReader, geobox: GeoBox) -> float:
    """Return source pixels per pixel along one axis, at most 1 below which nothing is averaged."""
    crs = source.crs.to_wkt()
    left, bottom, right, top = _bounds_of(geobox)
    transformer = Transformer.from_crs(str(geobox.crs), crs, always_xy=True)
    box = transformer.transform_bounds(left, bottom, right, top, densify_pts=5)
    spans_px = (
        (box[2] - box[0]) / abs(source.transform.a),
        (box[3] - box[1]) / abs(source.transform.e),
    )
    ratio = max(spans_px[0] / geobox.shape[1], spans_px[1] / geobox.shape[0])
    return 1 / max(1.0, round(float(ratio), 2))


def _open_rasters(
    fields: Mapping[str, Any], crs: str, bounds: Bounds, class_values: Sequence[int]
) -> RasterLabelReader:
    files = [file for each in fields["files"] for file in _list_rasters(each)]
    classes = fields["classes"] or {value: value for value in class_values}
    table = np.full(256, UNLABELLED, dtype=np.uint8)
    for value, class_value in classes.items():
        if not 0 <= value < UNLABELLED:
            raise SamplesError(f"samples.labels.classes: the raster value {value} is not 0 to 254")
        table[value] = class_value
    boxes = [_check_raster(file, crs) for file in files]
    reader = RasterLabelReader(
        tuple(files), tuple(boxes), tuple(int(value) for value in table), crs
    ).near(bounds)
    if not reader.files:
        raise SamplesError(
            f"samples.labels.files: none of the {len(files)} rasters lies in the area; check "
            "the CRS"
        )
    _check_values(reader.files[0], table)
    return reader


def _list_rasters(place: str) -> list[str]:
    """Return the rasters that a file names: itself, or the data assets of a STAC collection."""
    if not place.endswith(".json"):
        return [place]
    try:
        catalog = pystac.read_file(place)
    except (OSError, ValueError, KeyError, pystac.STACError) as error:
        raise SamplesError(f"samples.labels.files: {place}: is no STAC file ({error})") from None
    if isinstance(catalog, pystac.Item):
        items = [catalog]
    elif isinstance(catalog, pystac.Catalog):
        items = list(catalog.get_items(recursive=True))
    else:
        items = list(catalog)  # type: ignore[call-overload]
    files = []
    for item in items:
        assets = sorted(item.assets.items(), key=lambda pair: "data" not in (pair[1].roles or ()))
        rasters = [a.get_absolute_href() for _, a in assets if "tiff" in (a.media_type or "")]
        if not rasters or rasters[0] is None:
            raise SamplesError(f"samples.labels.files: {place}: item {item.id} has no GeoTIFF")
        files.append(rasters[0])
    if not files:
        raise SamplesError(f"samples.labels.files: {place}: holds no item")
    return files


def _check_raster(file: str, crs: str) -> Bounds:
    """Refuse a raster that cannot hold classes; returns its box in ``crs``."""
    where = f"samples.labels.files: {file}"
    try:
        with rasterio.open(file) as source:
            if source.crs is None:
                raise SamplesError(f"{where}: has no CRS, so its place is unknown; assign one")
            if not np.issubdtype(np.dtype(source.dtypes[0]), np.integer):
                raise SamplesError(f"{where}: holds {source.dtypes[0]}; classes need whole numbers")
            transformer = Transformer.from_crs(source.crs.to_wkt(), crs, always_xy=True)
            west, south, east, north = source.bounds
            left, bottom, right, top = transformer.transform_bounds(
                west, south, east, north, densify_pts=21
            )
    except (RasterioError, OSError, ProjError) as error:
        raise SamplesError(f"{where}: cannot be read ({error})") from None
    return left, bottom, right, top


def _check_values(file: str, table: UInt8Array) -> None:
    """Refuse a raster without a single value that is a class."""
    with rasterio.open(file) as source:
        shape = tuple(min(side, SAMPLE_PX) for side in source.shape)
        sample = source.read(1, out_shape=shape, masked=True).compressed()
    found = np.unique(sample)
    fits = found[(found >= 0) & (found < UNLABELLED)]
    if found.size and not (table[fits.astype(np.uint8)] != UNLABELLED).any():
        raise SamplesError(
            f"samples.labels.files: {file}: its values ({', '.join(map(str, found[:10]))}) are no "
            "classes of the legend; map them by samples.labels.classes"
        )


@dataclass(frozen=True)
class SimulatedLabelReader:
    """The truth of the simulated world; coarser pixels take its most frequent value."""

    layer: str
    seed: int
    crs: str
    loaded: tuple[float, float, UInt8Array] | None = None
    """Left, top and labels at 2.5 m, (y, x), of a region that was rendered."""

    def near(self, bounds: Bounds) -> SimulatedLabelReader:
        """Render a region once."""
        left, bottom, right, top = bounds
        box = (
            math.floor(left / FINE_M) * FINE_M, math.floor(bottom / FINE_M) * FINE_M,
            math.ceil(right / FINE_M) * FINE_M, math.ceil(top / FINE_M) * FINE_M,
        )  # fmt: skip
        return replace(self, loaded=(box[0], box[3], self._render(box)))

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Take the truth; pixels must be whole ones of 2.5 m, on their lattice."""
        bounds = _bounds_of(geobox)
        factor = (bounds[2] - bounds[0]) / geobox.shape[1] / FINE_M
        if factor != round(factor):
            raise SamplesError(
                f"samples.labels.kind: simulated labels need pixels of whole multiples of {FINE_M} "
                f"m, not {factor * FINE_M:g} m; change grid.gsd_m or the model's upscale"
            )
        return reduce_by_mode(self._cut(bounds), round(factor))

    def _cut(self, bounds: Bounds) -> UInt8Array:
        left, bottom, right, top = bounds
        if self.loaded is not None:
            west, north, labels = self.loaded
            row, col = (north - top) / FINE_M, (left - west) / FINE_M
            shape = round((top - bottom) / FINE_M), round((right - left) / FINE_M)
            fits = row >= 0 and col >= 0 and row + shape[0] <= labels.shape[0]
            if fits and row.is_integer() and col.is_integer() and col + shape[1] <= labels.shape[1]:
                return labels[int(row) : int(row) + shape[0], int(col) : int(col) + shape[1]]
        return self._render(bounds)

    def _render(self, bounds: Bounds) -> UInt8Array:
        left, bottom, right, top = bounds
        shape = round((top - bottom) / FINE_M), round((right - left) / FINE_M)
        transform = Affine(FINE_M, 0, left, 0, -FINE_M, top)
        truth = simulate.render_truth(self.crs, transform, shape, seed=self.seed, layer=self.layer)
        return np.asarray(truth != 0 if self.layer == "building" else truth).astype(np.uint8)


def reduce_by_mode(labels: UInt8Array, step: int) -> UInt8Array:
    """Take the most frequent label of squares of ``step`` pixels, the smaller of equal ones."""
    if step == 1:
        return labels
    rows, cols = labels.shape[0] // step, labels.shape[1] // step
    squares = labels.reshape(rows, step, cols, step)
    values = np.unique(labels)
    counts = np.stack([(squares == value).sum(axis=(1, 3)) for value in values])
    most: UInt8Array = values[counts.argmax(axis=0)]
    return most


def _bounds_of(geobox: GeoBox) -> Bounds:
    box = geobox.boundingbox
    return float(box.left), float(box.bottom), float(box.right), float(box.top)


def _centre_of(geobox: GeoBox, row: int, col: int) -> tuple[float, float]:
    x, y = geobox.pix2wld(col + 0.5, row + 0.5)
    return float(x), float(y)
