"""Labels: polygons, rasters or simulated truth -> values of classes on any grid.

A pixel's label depends on its place alone: polygons are taken at pixel centres, rasters by the
most frequent of the values below a pixel, or by the nearest where their pixels are larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, assert_never

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pystac
import rasterio.crs
import rasterio.features
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import ProjError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.io import DatasetReader, MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from bigmap import simulate
from bigmap.config.sources import Access
from bigmap.config.training import RasterLabels, SimulatedLabels, VectorLabels
from bigmap.cube.reading import use_raster
from bigmap.cube.resampling import transformer_between
from bigmap.errors import ReadError, SamplesError, UnfitFileError
from bigmap.vectors import VectorFile, name_values, normalise, open_vector, take_polygons

UNLABELLED = 255
MOST_VALUES, OPAQUE = 65_536, 65_535
HALF_TURN = 180.0
SCAN_PX = 2048
"""Side of the pieces in which rasters are looked through before any work."""
FINE_M = 2.5
"""Pixel size of the simulated truth."""
SIMULATED_VALUES = {"cropland": (0, 1), "building": (0, 1)}
"""Values of truth layers whose classes are always these; others follow the legend."""

UInt8Array = npt.NDArray[np.uint8]
Bounds = tuple[float, float, float, float]
T = TypeVar("T")


class LabelReader(Protocol):
    """Gives the labels of any place; travels to workers."""

    def near(self, bounds: Bounds) -> LabelReader:
        """Return a reader for a small region, left, bottom, right, top, which it may load."""

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Return values of classes, (y, x), 255 where unlabelled.

        Raises
        ------
        ReadError
            If a file cannot be read at present; trying again may help.
        SamplesError
            If the labels are refused by a rule of the recipe, or their file is unfit.
        """


def open_labels(
    settings: VectorLabels | RasterLabels | SimulatedLabels,
    *,
    crs: str,
    class_values: Sequence[int],
    bounds: Bounds,
    seed: int = 0,
    least_classes: int = 1,
    access: Access = Access(),
) -> LabelReader:
    """Check labels and make what reads them.

    Parameters
    ----------
    settings
        ``samples.labels`` of the recipe.
    crs
        Of the grid they are wanted on.
    class_values
        Of the legend; labels of other values are refused.
    bounds
        Left, bottom, right, top of the area in ``crs``.
    seed
        Of the simulated world.
    least_classes
        How many rasters must hold in the area; nothing can be learnt from one.
    access
        How rasters are fetched.

    Raises
    ------
    ReadError
        If a raster cannot be read after all retries.
    SamplesError
        If a file is unfit, has no CRS, no such attribute or class, or misses the area.
    """
    reader: LabelReader
    match settings:
        case VectorLabels():
            reader = _open_vector(settings, crs, bounds)
            values = [*settings.classes.values()]
            values += [] if settings.background is None else [settings.background]
        case RasterLabels():
            reader = _open_rasters(
                settings, crs, bounds, class_values, least=least_classes, access=access
            )
            values = list((settings.classes or {}).values())
        case SimulatedLabels():
            reader = SimulatedLabelReader(settings.layer, seed, crs)
            values = list(SIMULATED_VALUES.get(settings.layer, ()))
        case _:
            assert_never(settings)
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

    source: VectorFile
    attribute: str | None
    classes: Mapping[str, int]
    """By the values of the attribute, with accents composed."""
    background: int | None
    overlaps: Literal["unlabelled", "last", "refuse"]
    crs: str
    loaded: tuple[tuple[int, Any], ...] | None = None
    """Class and polygon in ``crs``, in the order of the file, of a region that was loaded."""

    def near(self, bounds: Bounds) -> VectorLabelReader:
        """Load the polygons of a region."""
        frame = self.read_frame(bounds)
        values = name_values(frame[self.attribute]) if self.attribute else [None] * len(frame)
        only = next(iter(self.classes.values()))
        polygons = take_polygons(frame.to_crs(self.crs).geometry.to_numpy())
        loaded = [
            (only if value is None else self.classes[value], polygon)
            for value, polygon in zip(values, polygons, strict=True)
            if (value is None or value in self.classes) and not polygon.is_empty
        ]
        return replace(self, loaded=tuple(loaded))

    def read_frame(self, bounds: Bounds) -> gpd.GeoDataFrame:
        """Read what lies in a region, with a margin for its curvature in the file's CRS."""
        left, bottom, right, top = transform_bounds(bounds, self.crs, self.source.crs)
        margin = 0.01 * max(right - left, top - bottom)
        box = left - margin, bottom - margin, right + margin, top + margin
        return self.source.read(bounds=box, columns=[self.attribute] if self.attribute else [])

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
                    f"{self.source.where}: polygons of two classes overlap at "
                    f"x={x:.12g} y={y:.12g} ({self.crs}); mend them, or set samples.labels.overlaps"
                )
            last = _burn([(polygon, value) for value, polygon in inside], geobox)
            labels = np.where(covered > 1, last, labels).astype(np.uint8)
        return labels


def _burn(shapes: list[tuple[Any, int]], geobox: GeoBox) -> UInt8Array:
    burnt: UInt8Array = rasterio.features.rasterize(
        shapes, out_shape=tuple(geobox.shape), transform=geobox.transform, fill=UNLABELLED,
        dtype="uint8",
    )  # fmt: skip
    return burnt


def _open_vector(settings: VectorLabels, crs: str, bounds: Bounds) -> VectorLabelReader:
    file, classes = settings.file, settings.classes
    where = f"samples.labels.file: {file}"
    source = open_vector(
        file, settings.layer, where=where, choose="set samples.labels.layer", error=SamplesError
    )
    if settings.attribute is None and len(classes) > 1:
        raise SamplesError("samples.labels.attribute: is needed to tell several classes apart")
    attribute = source.find_column(settings.attribute) if settings.attribute else None
    if attribute is None and settings.attribute is not None:
        raise SamplesError(
            f"samples.labels.attribute: {file} has no attribute {settings.attribute}; it has "
            f"{', '.join(source.columns) or 'none'}"
        )
    if len({*classes.values(), settings.background} - {None}) < 2:
        raise SamplesError(
            "samples.labels.classes: all labels are of one class, from which nothing can be "
            "learnt; give samples.labels.background, or map the attribute to several classes"
        )
    classes = {normalise(value): class_value for value, class_value in classes.items()}
    reader = VectorLabelReader(
        source, attribute, classes, settings.background, settings.overlaps, crs
    )
    if attribute is not None:
        found = set(name_values(source.read_attribute(attribute)))
        absent = sorted(set(classes) - found)
        if absent:
            raise SamplesError(
                f"samples.labels.classes: no polygon of {file} has {attribute} {absent[0]!r}; "
                f"there are {', '.join(map(repr, sorted(found)[:20]))}"
            )
    kinds = set(reader.read_frame(bounds).geom_type)
    if kinds - {"Polygon", "MultiPolygon", "GeometryCollection"}:
        raise SamplesError(f"{where}: holds {min(kinds)}s; labels need polygons")
    if not len(reader.near(bounds).loaded or ()):
        raise SamplesError(f"{where}: no polygon of the classes lies in the area; check its CRS")
    return reader


@dataclass(frozen=True)
class RasterFile:
    """Where a raster lies."""

    path: str
    crs: str
    """As WKT."""
    bounds: Bounds
    """Left, bottom, right, top of all its corners in ``crs``."""

    def find_turns(self, bounds: Bounds, crs: str) -> list[Turn]:
        """Return how to lay it around the Earth so that it reaches into a region; none if not."""
        try:
            left, bottom, right, top = transform_bounds(bounds, crs, self.crs)
        except ProjError as error:
            raise SamplesError(
                f"samples.labels.files: {self.path}: its CRS leads nowhere from {crs} ({error}); "
                "correct it"
            ) from None
        if not math.isfinite(left + bottom + right + top):
            return []
        west, south, east, north = self.bounds
        if south > top or north < bottom:
            return []
        # PROJ counts longitudes from -180 to 180; only what lies beyond needs more than that.
        if max(-west, east, -left, right) <= HALF_TURN or not _is_in_degrees(self.crs):
            return [Turn()] if west <= right and east >= left else []
        shifts = (turns * 2 * HALF_TURN for turns in (-2, -1, 0, 1, 2))
        return [
            Turn(shift, (left + right) / 2)
            for shift in shifts
            if west + shift <= right and east + shift >= left
        ]


@dataclass(frozen=True)
class Turn:
    """How a raster in degrees is laid around the Earth."""

    shift: float = 0.0
    """Added to its longitudes."""
    centre: float | None = None
    """Longitude around which they count, None for the usual one."""

    def transform_of(self, source: DatasetReader) -> Affine:
        """Return the moved transform of a raster."""
        moved: Affine = Affine.translation(self.shift, 0) * source.transform
        return moved

    def options(self, source: DatasetReader) -> dict[str, Any]:
        """Return how GDAL is told."""
        if self.centre is None:
            return {}
        wkt = source.crs.to_wkt(version="WKT1_GDAL").removesuffix("]")
        centred = rasterio.crs.CRS.from_wkt(f'{wkt},EXTENSION["CENTER_LONG","{self.centre:.6f}"]]')
        return {"src_crs": centred, "src_transform": self.transform_of(source)}

    def count(self, longitudes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Count longitudes around the centre."""
        if self.centre is None:
            return longitudes
        start = self.centre - HALF_TURN
        return (longitudes - start) % (2 * HALF_TURN) + start


@dataclass(frozen=True)
class RasterLabelReader:
    """Rasters of classes, warped by the most frequent value; where several hold a pixel, the first.

    Values that are no class are unlabelled.
    """

    files: tuple[RasterFile, ...]
    classes: tuple[tuple[int, int], ...]
    """Values and their classes, in rising order."""
    crs: str
    access: Access = Access()

    def near(self, bounds: Bounds) -> RasterLabelReader:
        """Keep the files that meet a region."""
        files = tuple(file for file in self.files if file.find_turns(bounds, self.crs))
        return replace(self, files=files)

    def read(self, geobox: GeoBox) -> UInt8Array:
        """Warp the files onto a grid."""
        labels = np.full(geobox.shape, UNLABELLED, dtype=np.uint8)
        for file in self.files:
            for turn in file.find_turns(_bounds_of(geobox), self.crs):
                warp = partial(_warp, file=file, geobox=geobox, turn=turn)
                values, has_data = use_own_raster(file.path, self.access, warp)
                found = np.where(has_data, self.classify(values), UNLABELLED)
                labels = np.where(labels == UNLABELLED, found, labels).astype(np.uint8)
        return labels

    def classify(self, values: npt.NDArray[Any]) -> UInt8Array:
        """Return the classes of values, 255 where they are none."""
        known, classes = np.array(self.classes).T
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[place] == values, classes[place], UNLABELLED).astype(np.uint8)


def use_own_raster(
    file: str,
    access: Access,
    use: Callable[[DatasetReader], T],
    *,
    field: str = "samples.labels.files",
) -> T:
    """Open a GeoTIFF or JPEG 2000 file that the recipe names, and use it, as scenes are read.

    Parameters
    ----------
    file
        Path or URL.
    access
        Of the recipe. S3 is asked with the user's credentials whatever it says: that scenes lie in
        a public bucket says nothing of the user's own files.
    use
        What to do with the open dataset; done again with backoff where GDAL fails.
    field
        Which names the file, for messages.

    Raises
    ------
    ReadError
        If it cannot be read after all retries, which may pass.
    SamplesError
        If it can be read, but is not what is needed.
    """
    try:
        return use_raster(
            file, access.model_copy(update={"unsigned_s3": False}), use, one_band=False
        )
    except UnfitFileError as error:
        raise SamplesError(f"{field}: {error}") from None
    except ReadError as error:
        raise ReadError(f"{field}: {error}") from None
    except ProjError as error:
        raise SamplesError(f"{field}: {file}: has a CRS that leads nowhere ({error})") from None


def has_alpha_band(source: DatasetReader) -> bool:
    """Tell whether the last of a raster's bands says where it has data."""
    return bool(source.colorinterp[-1] == ColorInterp.alpha) and source.count > 1


def _warp(
    source: DatasetReader, *, file: RasterFile, geobox: GeoBox, turn: Turn
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read a raster on a grid by the most frequent value."""
    ratio = _size_ratio(source, geobox)
    # GDAL takes the mode of wider values as float32, and heeds one way to say nodata only.
    if np.dtype(source.dtypes[0]).itemsize <= 2 and _count_masks(source) <= 1:
        return _warp_dataset(source, geobox, ratio, turn)
    window = _window_of(source, bounds=_bounds_of(geobox), crs=str(geobox.crs), turn=turn)
    values, seen = source.read(1, window=window), _read_seen(source, window)
    if not values.size:
        return np.zeros(geobox.shape, np.uint8), np.zeros(geobox.shape, bool)
    found, codes = np.unique(values, return_inverse=True)
    if len(found) > MOST_VALUES:
        raise SamplesError(
            f"samples.labels.files: {file.path}: has more than {MOST_VALUES:,} values in one "
            "place, which can be no classes"
        )
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=values.shape[1], height=values.shape[0], count=2,
            dtype="uint16", crs=source.crs, transform=source.window_transform(window),
            alpha="YES",
        ) as target:  # fmt: skip
            target.write(codes.reshape(values.shape).astype(np.uint16), 1)
            target.write(np.where(seen, OPAQUE, 0).astype(np.uint16), 2)
        with memory.open() as coded:
            chosen, has_data = _warp_dataset(coded, geobox, ratio, turn)
    return found[np.where(has_data, chosen, 0)], has_data


def _warp_dataset(
    source: DatasetReader, geobox: GeoBox, ratio: float, turn: Turn
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    with WarpedVRT(
        source, crs=str(geobox.crs), transform=geobox.transform, width=geobox.shape[1],
        height=geobox.shape[0], resampling=Resampling.mode, tolerance=1e-9, XSCALE=ratio,
        YSCALE=ratio, add_alpha=source.nodata is None and not has_alpha_band(source),
        **turn.options(source),
    ) as warped:  # fmt: skip
        return warped.read(1), warped.dataset_mask() > 0


def _read_seen(source: DatasetReader, window: Window) -> npt.NDArray[np.bool_]:
    """Tell where a raster has labels: by its nodata, its mask and its alpha band."""
    seen = np.asarray(source.read_masks(1, window=window) > 0)
    if source.nodata is not None:
        seen &= source.read(1, window=window) != source.nodata
    if has_alpha_band(source):
        seen &= source.read(source.count, window=window) > 0
    return seen


def _count_masks(source: DatasetReader) -> int:
    """Return in how many ways a raster says where it has no data."""
    flags = source.mask_flag_enums[0]
    has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
    return (source.nodata is not None) + has_alpha_band(source) + has_mask


def _window_of(source: DatasetReader, *, bounds: Bounds, crs: str, turn: Turn) -> Window:
    """Return the pixels of a raster below a region, with a margin for its curvature."""
    left, bottom, right, top = bounds
    edge = shapely.get_coordinates(
        shapely.box(*bounds).segmentize(max(right - left, top - bottom) / 20)
    )
    x, y = transformer_between(crs, source.crs.to_wkt()).transform(*edge.T)
    places = np.array(~turn.transform_of(source) * (turn.count(np.asarray(x)), np.asarray(y)))
    low, high = np.floor(places.min(axis=1)), np.ceil(places.max(axis=1))
    margin = np.ceil(2 + 0.01 * (high - low))
    limit = np.array([source.width, source.height])
    first = np.clip(low - margin, 0, limit).astype(int)
    size = np.clip(high + margin, 0, limit).astype(int) - first
    return Window(first[0], first[1], size[0], size[1])


def _size_ratio(source: DatasetReader, geobox: GeoBox) -> float:
    """Return source pixels per pixel along one axis, at most 1 below which nothing is averaged."""
    crs = source.crs.to_wkt()
    box = transform_bounds(_bounds_of(geobox), str(geobox.crs), crs, densify_pts=5)
    a, b, _, d, e, _ = source.transform[:6]
    spans_px = (box[2] - box[0]) / math.hypot(a, d), (box[3] - box[1]) / math.hypot(b, e)
    ratio = max(spans_px[0] / geobox.shape[1], spans_px[1] / geobox.shape[0])
    return 1 / max(1.0, round(float(ratio), 2))


@lru_cache(maxsize=256)
def transform_bounds(bounds: Bounds, crs: str, to_crs: str, *, densify_pts: int = 21) -> Bounds:
    """Return the box around a region in another CRS; its right may lie beyond 180 degrees."""
    transformer = transformer_between(crs, to_crs)
    left, bottom, right, top = transformer.transform_bounds(*bounds, densify_pts=densify_pts)
    if right < left and _is_in_degrees(to_crs):
        right += 2 * HALF_TURN
    return left, bottom, right, top


@lru_cache(maxsize=256)
def _is_in_degrees(crs: str) -> bool:
    known = CRS(crs)
    return bool(known.is_geographic and known.axis_info[0].unit_name == "degree")


def _open_rasters(
    settings: RasterLabels, crs: str, bounds: Bounds, class_values: Sequence[int], *,
    least: int, access: Access,
) -> RasterLabelReader:  # fmt: skip
    paths = [path for each in settings.files for path in _list_rasters(each)]
    classes = settings.classes or {value: value for value in class_values}
    files = tuple(_check_raster(path, settings.classes or {}, access) for path in paths)
    reader = RasterLabelReader(files, tuple(sorted(classes.items())), crs, access).near(bounds)
    if not reader.files:
        raise SamplesError(
            f"samples.labels.files: none of the {len(files)} rasters lies in the area; check "
            "the CRS"
        )
    _check_values(reader, bounds, least=least, is_mapped=settings.classes is not None)
    return reader


def _list_rasters(place: str) -> list[str]:
    """Return the rasters that a file names: itself, or the data assets of a STAC collection."""
    if not place.endswith(".json"):
        return [place]
    try:
        catalog = pystac.read_file(place)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pystac.STACError) as error:
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


def _check_raster(path: str, mapped: Mapping[int, int], access: Access) -> RasterFile:
    """Refuse a raster that cannot hold classes."""
    where = f"samples.labels.files: {path}"
    if Path(f"{path}.msk").exists():
        raise SamplesError(f"{where}: has a mask in {path}.msk, which is not read; put it inside")

    def check(source: DatasetReader) -> RasterFile:
        bands = source.count - has_alpha_band(source)
        if source.crs is None or source.transform.is_identity:
            raise SamplesError(f"{where}: has no CRS or no transform inside; assign them")
        if not all(map(math.isfinite, source.transform)) or source.transform.is_degenerate:
            raise SamplesError(f"{where}: has pixels of no size; correct its transform")
        if bands != 1:
            raise SamplesError(f"{where}: has {bands} bands, but labels need one; take it out")
        if not np.issubdtype(np.dtype(source.dtypes[0]), np.integer):
            raise SamplesError(f"{where}: holds {source.dtypes[0]}; classes need whole numbers")
        if source.nodata in mapped:
            raise SamplesError(
                f"samples.labels.classes: maps {source.nodata:.12g}, which is nodata in {path}; "
                "leave it out, or take nodata off the file"
            )
        corners = [(0, 0), (source.width, 0), (0, source.height), (source.width, source.height)]
        x, y = zip(*(source.transform * corner for corner in corners), strict=True)
        return RasterFile(path, source.crs.to_wkt(), (min(x), min(y), max(x), max(y)))

    return use_own_raster(path, access, check)


def _check_values(
    reader: RasterLabelReader, bounds: Bounds, *, least: int, is_mapped: bool
) -> None:
    """Refuse rasters that have no two classes in the area, from which nothing can be learnt.

    They are read until two are found. Where ``least`` is 1, one class alone is refused only if
    values that nobody has mapped, or nodata, say that another was meant.
    """
    found: set[int] = set()
    others: set[int] = set()
    nodata: set[int] = set()
    for file in reader.files:
        for values, empty in _scan(file, bounds, reader):
            classes = reader.classify(values)
            found.update(classes[classes != UNLABELLED].tolist())
            others.update(values[classes == UNLABELLED].tolist()[: 10 - len(others)])
            nodata.update(empty & {value for value, _ in reader.classes})
            if len(found) > 1:
                return
    is_odd = not is_mapped and bool(others or nodata)
    if len(found) >= (2 if is_odd else least):
        return
    name = reader.files[0].path if len(reader.files) == 1 else f"{len(reader.files)} rasters"
    shown = ", ".join(map(str, sorted(others)))
    said = f"all labels are of class {min(found)}" if found else "has no labels"
    hints = [f"nodata is {each}, so that class is unlabelled: take nodata off the file"
             for each in sorted(nodata)]  # fmt: skip
    if others:
        hints.append(f"its values ({shown}) are no classes: map them by samples.labels.classes")
    advice = "; ".join(hints) or "use another file or area"
    raise SamplesError(f"samples.labels.files: {name}: {said} in the area; {advice}")


def _scan(
    file: RasterFile, bounds: Bounds, reader: RasterLabelReader
) -> Iterator[tuple[npt.NDArray[Any], set[int]]]:
    """Yield the values of a raster in a region piece by piece, and nodata where there is some."""
    for turn in file.find_turns(bounds, reader.crs):
        find = partial(_window_of, bounds=bounds, crs=reader.crs, turn=turn)
        whole = use_own_raster(file.path, reader.access, find)
        for row in range(whole.row_off, whole.row_off + whole.height, SCAN_PX):
            for col in range(whole.col_off, whole.col_off + whole.width, SCAN_PX):
                piece = Window(col, row, SCAN_PX, SCAN_PX).intersection(whole)
                yield use_own_raster(file.path, reader.access, partial(_list_values, window=piece))


def _list_values(source: DatasetReader, *, window: Window) -> tuple[npt.NDArray[Any], set[int]]:
    """Return the values of a window, and nodata where it holds some."""
    seen = _read_seen(source, window)
    is_empty = source.nodata is not None and not seen.all()
    values = source.read(1, window=window)[seen]
    return np.unique(values), {int(source.nodata)} if is_empty else set()


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
