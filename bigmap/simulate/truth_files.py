"""Write the truth: layers as COGs, parcels and buildings as GeoParquet."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from pathlib import Path

import geopandas
import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine

from bigmap.files import replace_whole
from bigmap.simulate.covers import Cover, is_crop, land_cover_of
from bigmap.simulate.files import write_cog
from bigmap.simulate.images import render_reflectance
from bigmap.simulate.patch import FINE_M
from bigmap.simulate.tiles import Bounds
from bigmap.simulate.truth import LAYERS, render_truth


def write_truth(
    folder: Path, crs: str, bounds: Bounds, *, seed: int, layers: Iterable[str] = LAYERS
) -> dict[str, Path]:
    """Write layers of the truth of an area as COGs at 2.5 m.

    Parameters
    ----------
    bounds
        Left, bottom, right, top in metres of ``crs``; grown to whole pixels of 2.5 m.
    layers
        Names from :data:`bigmap.simulate.truth.LAYERS`.

    Returns
    -------
    dict
        The files, ``folder/<layer>.tif``, by layer. In ``cropland`` 0 is a value, not nodata.

    Raises
    ------
    PlanError
        If a layer is unknown.
    """
    transform, shape = place_window(bounds)
    files = {}
    for layer in layers:
        values = render_truth(crs, transform, shape, seed=seed, layer=layer)
        files[layer] = folder / f"{layer}.tif"
        write_cog(files[layer], values, transform, crs, nodata=None)
    return files


def write_true_image(
    file: Path, crs: str, bounds: Bounds, *, seed: int, day: dt.date, bands: tuple[str, ...]
) -> Path:
    """Write the true reflectance of a day at 2.5 m as a COG of float32 bands."""
    transform, shape = place_window(bounds)
    image = render_reflectance(crs, transform, shape, seed=seed, day=day, bands=bands)
    write_cog(file, image, transform, crs, nodata=None)
    return file


def write_truth_polygons(folder: Path, crs: str, bounds: Bounds, *, seed: int) -> dict[str, Path]:
    """Write parcels and buildings of an area as GeoParquet.

    Outlines follow the pixels of 2.5 m; what crosses the bounds is cut there.

    Returns
    -------
    dict
        ``parcels`` (fields ``parcel``, ``cover``, ``land_cover``, ``cropland``) and ``buildings``
        (fields ``building``, ``roof``), each a file in ``folder``.
    """
    transform, shape = place_window(bounds)
    parcel, building, cover = (
        render_truth(crs, transform, shape, seed=seed, layer=layer)
        for layer in ("parcel", "building", "cover")
    )
    files = {}
    for name, numbers in (("parcel", parcel), ("building", building)):
        frame = _outline(numbers, cover, transform, crs, name)
        files[f"{name}s"] = file = folder / f"{name}s.parquet"
        with replace_whole(file) as temporary:
            frame.to_parquet(temporary)
    return files


def place_window(bounds: Bounds) -> tuple[Affine, tuple[int, int]]:
    """Return transform and shape of the smallest window of the 2.5 m lattice over a box."""
    left, right = math.floor(bounds[0] / FINE_M), math.ceil(bounds[2] / FINE_M)
    top, bottom = math.ceil(bounds[3] / FINE_M), math.floor(bounds[1] / FINE_M)
    transform = Affine(FINE_M, 0, left * FINE_M, 0, -FINE_M, top * FINE_M)
    return transform, (top - bottom, right - left)


def _outline(
    numbers: npt.NDArray[np.generic],
    cover: npt.NDArray[np.generic],
    transform: Affine,
    crs: str,
    name: str,
) -> geopandas.GeoDataFrame:
    names, first, index = np.unique(numbers, return_index=True, return_inverse=True)
    image = index.reshape(numbers.shape).astype(np.int32)
    shapes = rasterio.features.shapes(image, mask=names[image] != 0, transform=transform)
    pieces = [(int(value), shapely.geometry.shape(outline)) for outline, value in shapes]
    which = [number for number, _ in pieces]
    kinds = cover.ravel()[first].astype(np.uint8)[which]
    fields: dict[str, object] = {name: names[which]}
    labels = [Cover(kind).name.lower() for kind in kinds]
    if name == "building":
        fields["roof"] = labels
    else:
        fields |= {
            "cover": labels,
            "land_cover": land_cover_of()[kinds],
            "cropland": is_crop()[kinds],
        }
    outlines = [outline for _, outline in pieces]
    frame = geopandas.GeoDataFrame(fields, geometry=outlines, crs=crs)
    rest = {column: "first" for column in fields if column != name}
    return frame.dissolve(by=name, aggfunc=rest).reset_index()
