"""Labels of polygons, taken at pixel centres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import rasterio.features
import shapely
from odc.geo.geobox import GeoBox

from bigmap.config.training import VectorLabels
from bigmap.errors import SamplesError
from bigmap.learning.labels.raster_files import transform_bounds
from bigmap.learning.labels.reader import UNLABELLED, Bounds, UInt8Array, bounds_of
from bigmap.vectors import VectorFile, name_values, normalise, open_vector, take_polygons


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
            return self.near(bounds_of(geobox)).read(geobox)
        empty = UNLABELLED if self.background is None else self.background
        labels = np.full(geobox.shape, empty, dtype=np.uint8)
        box = shapely.box(*bounds_of(geobox))
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


def open_polygons(settings: VectorLabels, crs: str, bounds: Bounds) -> VectorLabelReader:
    """Check a file of polygons, and make what reads it."""
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


def _centre_of(geobox: GeoBox, row: int, col: int) -> tuple[float, float]:
    x, y = geobox.pix2wld(col + 0.5, row + 0.5)
    return float(x), float(y)
