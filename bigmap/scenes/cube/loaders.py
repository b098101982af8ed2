"""The two loaders: item rows -> lazy stack (item, asset, y, x) through our reader."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import pystac
import stackstac
from odc.geo.geobox import GeoBox
from odc.stac import load as odc_load
from pyproj import CRS, Transformer
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from bigmap.grid import ROI, Lattice
from bigmap.scenes.cube.reading import CLAIM_MARGIN_M, RasterReader
from bigmap.scenes.items import ItemRow

Bounds = tuple[float, float, float, float]
EDGE_POINTS = 41
Loader = Callable[[Sequence[ItemRow], Sequence[str], RasterReader, Lattice, ROI, int], da.Array]


class _StackstacReader:
    """stackstac's reader protocol over :class:`RasterReader`.

    stackstac hands over what it would use itself (resampling, scale, GDAL environment); all of
    that is settled by the :class:`RasterReader`, which a factory puts in.
    """

    def __init__(self, reader: RasterReader, *, url: str, spec: Any, **_: Any) -> None:
        self.reader = reader
        self.url = url
        self.row, self.col = reader.target.index_of(spec.bounds[0], spec.bounds[3])

    def read(self, window: Window, **_: Any) -> npt.NDArray[Any]:
        """Read a window given relative to the bounds of the stack."""
        rows, cols = window.toslices()
        roi = (
            slice(self.row + rows.start, self.row + rows.stop),
            slice(self.col + cols.start, self.col + cols.stop),
        )
        return self.reader.read(self.url, roi)

    def close(self) -> None:
        """Do nothing: every read opens and closes its file, so none is left open."""


class _ReaderFactory:
    """Stands for a reader class in stackstac's eyes, and carries our settings along."""

    def __init__(self, reader: RasterReader) -> None:
        self.reader = reader

    def __dask_tokenize__(self) -> str:
        """Return any name: Dask would pickle the reader for one, and nothing is shared by it."""
        return uuid.uuid4().hex

    def __call__(self, **settings: Any) -> _StackstacReader:
        return _StackstacReader(self.reader, **settings)


def load_with_stackstac(
    rows: Sequence[ItemRow], assets: Sequence[str], reader: RasterReader,
    lattice: Lattice, roi: ROI, chunk_px: int,
) -> da.Array:  # fmt: skip
    """Stack assets with stackstac; see :data:`LOADERS`."""
    stack = stackstac.stack(
        [_plain_item(row, assets, lattice.crs, number) for number, row in enumerate(rows)],
        assets=list(assets),
        epsg=epsg_of(lattice.crs),
        resolution=lattice.gsd_m,
        bounds=lattice.bounds(roi),
        snap_bounds=False,
        chunksize=chunk_px,
        dtype=np.dtype(reader.dtype),
        fill_value=np.dtype(reader.dtype).type(reader.nodata),
        rescale=False,
        sortby_date=False,
        properties=False,
        band_coords=False,
        reader=_ReaderFactory(reader),
    )
    # stackstac leaves out items that lie outside the bounds; the others keep their places.
    kept = stack["id"].values.tolist() if stack.shape[1] else []
    found = {number: place for place, number in enumerate(kept)}
    if len(found) == len(rows):
        return cast("da.Array", stack.data)
    shape = (len(assets), *stack.shape[2:])
    empty = da.full(shape, reader.nodata, dtype=reader.dtype, chunks=(1, *stack.data.chunks[2:]))
    parts = [stack.data[found[i]] if i in found else empty for i in range(len(rows))]
    return cast("da.Array", da.stack(parts))


def _plain_item(row: ItemRow, assets: Sequence[str], crs: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "properties": {
            "datetime": row.datetime.isoformat(),
            "proj:epsg": epsg_of(crs),
            # stackstac skips files that do not meet a chunk, by bounds that it projects from
            # corners alone; ours, given in the CRS of the grid, lose no pixel of a curved edge.
            "proj:bbox": list(bounds_on(crs, row.epsg, row.bounds)),
        },
        "assets": {name: {"href": row.assets[name].href} for name in assets},
    }


@lru_cache(maxsize=65536)
def bounds_on(crs: str, epsg: int, bounds: Bounds) -> Bounds:
    """Return left, bottom, right, top of an item in another CRS, with a margin of 500 m."""
    left, bottom, right, top = _between(epsg, crs).transform_bounds(
        *bounds, densify_pts=EDGE_POINTS
    )
    # The kernel reaches over the edge, and the edge is curved between the points.
    margin_m = CLAIM_MARGIN_M
    return left - margin_m, bottom - margin_m, right + margin_m, top + margin_m


@lru_cache(maxsize=256)
def _between(epsg: int, crs: str) -> Transformer:
    return Transformer.from_crs(epsg, crs, always_xy=True)


def epsg_of(crs: str) -> int:
    """Return the EPSG code of a CRS, which stackstac needs.

    Raises
    ------
    ValueError
        If the CRS has none.
    """
    code = CRS.from_user_input(crs).to_epsg()
    if code is None:
        raise ValueError(f"{crs} has no EPSG code, which stackstac needs")
    return int(code)


class _OdcReader:
    """odc-loader's raster reader over :class:`RasterReader`."""

    def __init__(self, reader: RasterReader, uri: str) -> None:
        self.reader = reader
        self.uri = uri

    def read(
        self, cfg: Any, dst_geobox: GeoBox, *, dst: Any = None, selection: Any = None
    ) -> tuple[ROI, npt.NDArray[Any]]:
        """Read the whole of a GeoBox that lies on our grid."""
        del cfg, selection
        row, col = self.reader.target.index_of(dst_geobox.affine.c, dst_geobox.affine.f)
        height, width = dst_geobox.shape
        data = self.reader.read(self.uri, (slice(row, row + height), slice(col, col + width)))
        if dst is not None:
            dst[...] = data
        return (slice(0, height), slice(0, width)), data


class _OdcDriver:
    """odc-loader's driver interface over :class:`RasterReader`; it holds no state."""

    md_parser = None
    aux_reader = None
    dask_reader = None

    def __init__(self, reader: RasterReader) -> None:
        self.reader = reader

    def new_load(self, geobox: GeoBox, *, chunks: dict[str, int] | None = None) -> None:
        """Start a load; every read opens its file itself."""

    def finalise_load(self, load_state: Any) -> Any:
        """End a load."""
        return load_state

    def capture_env(self) -> dict[str, Any]:
        """Return no environment: the reader carries its own."""
        return {}

    @contextmanager
    def restore_env(self, env: dict[str, Any], load_state: Any) -> Any:
        """Enter no environment: the reader enters its own."""
        del env, load_state
        yield None

    def open(self, src: Any, ctx: Any) -> _OdcReader:
        """Open one asset."""
        del ctx
        return _OdcReader(self.reader, src.uri)


def load_with_odc(
    rows: Sequence[ItemRow], assets: Sequence[str], reader: RasterReader,
    lattice: Lattice, roi: ROI, chunk_px: int,
) -> da.Array:  # fmt: skip
    """Stack assets with odc-stac; see :data:`LOADERS`."""
    data = odc_load(
        [_pystac_item(row, assets) for row in rows],
        bands=list(assets),
        geobox=lattice.geobox(roi),
        chunks={"x": chunk_px, "y": chunk_px},
        groupby="id",
        preserve_original_order=True,
        dtype=reader.dtype,
        nodata=reader.nodata,
        resampling=reader.resampling,
        driver=_OdcDriver(reader),
        fail_on_error=True,
    )
    stack: da.Array = da.stack([data[name].data for name in assets], axis=1)
    return stack


def _pystac_item(row: ItemRow, assets: Sequence[str]) -> pystac.Item:
    west, south, east, north = transform_bounds(
        f"EPSG:{row.epsg}", "EPSG:4326", *row.bounds, densify_pts=EDGE_POINTS
    )
    item = pystac.Item(
        id=row.id,
        geometry={
            "type": "Polygon",
            "coordinates": [
                [[west, south], [east, south], [east, north], [west, north], [west, south]]
            ],
        },
        bbox=[west, south, east, north],
        datetime=row.datetime,
        properties={"proj:code": f"EPSG:{row.epsg}"},
        stac_extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
    )
    for name in assets:
        asset = row.assets[name]
        item.add_asset(
            name,
            pystac.Asset(
                asset.href,
                media_type="image/tiff; application=geotiff",
                roles=["data"],
                extra_fields={
                    "proj:shape": list(asset.shape),
                    "proj:transform": list(asset.transform),
                },
            ),
        )
    return item


LOADERS: dict[str, Loader] = {"stackstac": load_with_stackstac, "odc-stac": load_with_odc}
"""Loaders by name. Each takes items, assets, the reader, the lattice, a region in global pixel
indices and the side of a chunk, and returns a lazy (item, asset, y, x) array, items in the order
given, ``reader.nodata`` where a file holds no data."""
