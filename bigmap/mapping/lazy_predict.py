"""Any cube -> map layers, lazily: one task for each cell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from bigmap import grid
from bigmap.grid import ROI, Lattice
from bigmap.mapping.engine import CellData, Engine, optimise
from bigmap.mapping.geometry import choose_windows
from bigmap.mapping.windows import Windowing
from bigmap.models import MapModel, build_model, refuse_random
from bigmap.scenes.cube.given import GivenCube, check_cube
from bigmap.scenes.quality import DateRule, choose_dates


def predict(
    cube: xr.DataArray,
    model: MapModel | str,
    *,
    dates: DateRule | None = None,
    core_px: int | None = None,
    cell_px: int = 1024,
    allow_random_weights: bool = False,
    **windowing: Any,
) -> xr.Dataset:
    """Map any cube lazily.

    Parameters
    ----------
    cube
        (time, band, y, x) with coordinates ``x`` and ``y`` on a square grid, as
        :func:`bigmap.open_cube` returns it: uint16 with ``dn_scale`` and ``dn_offset`` in its
        attributes, or floats, which are reflectance or, with these attributes, DN. NaN is
        nodata, and so is 0 of DN and what attributes or encoding declare as ``_FillValue`` or
        ``nodata``. A coordinate ``clear``, bool (time, y, x), marks clear pixels; without it
        every pixel with data is clear. Without ``time`` it is one date. Coordinates are centres
        of pixels, or corners where a ``transform`` or ``GeoTransform`` says so, as stackstac's.
    model
        A model, or the name of one.
    dates
        Which dates a cell is mapped from; by default all with a clear pixel.
    core_px, cell_px
        Sides of window cores and of cells and chunks, in input pixels; by default the core with
        which the model computes the fewest pixels twice.
    allow_random_weights
        Map even by a network that has learnt nothing, which is refused otherwise.
    **windowing
        ``overlap``, ``batch_windows``, ``precision`` and ``device`` as in a recipe.

    Returns
    -------
    xarray.Dataset
        The layers of the model at output resolution, backed by Dask, one chunk for each square of
        the size of a cell.

    Raises
    ------
    ModelError
        If the cube lacks a band of the model, it cannot be understood, or the model is a network
        without weights; what its values tell is told when they are computed.
    """
    model = build_model(model) if isinstance(model, str) else model
    spec = model.spec
    if not allow_random_weights:
        refuse_random(
            spec,
            f'give bigmap.models.build_model("{spec.name}", weights="FILE.safetensors") as the '
            "model, or add allow_random_weights=True",
        )
    given = check_cube(cube, spec.bands)
    origin, anchor_m = _place_of(given)
    lattice = Lattice(
        crs="", gsd_m=given.gsd_m, core_px=cell_px, cell_px=cell_px, block_px=cell_px,
        upscale=spec.upscale, shard_px=cell_px * spec.upscale, chunk_px=cell_px * spec.upscale,
        anchor_m=anchor_m,
    )  # fmt: skip
    windows = Windowing.for_model(spec, **windowing)
    rule = dates or DateRule(max_per_cell=given.pixels.sizes["time"], min_clear_percent=0.0)
    lattice = choose_windows(lattice, model, windows, dates=rule.max_per_cell, core_px=core_px)
    engine = Engine(optimise(model), lattice, windows, spec.default_layers)
    extent = (
        slice(origin[0], origin[0] + len(given.y)),
        slice(origin[1], origin[1] + len(given.x)),
    )
    read_cell = _CubeCells(given, extent, rule)
    # One key for all blocks, so that the cube does not travel with each.
    shared = dask.delayed(read_cell, traverse=False)
    rows = [
        [_lazy_block(engine, block, extent, shared) for block in row]
        for row in _rows_of_blocks(lattice, extent)
    ]
    result = _join_cells(engine, given, rows)
    if given.crs is not None:
        result = result.rio.write_crs(given.crs)
    return result


def _join_cells(
    engine: Engine, cube: GivenCube, rows: list[list[dict[str, da.Array]]]
) -> xr.Dataset:
    """Return the layers of all cells as one dataset, with coordinates of the fine pixels."""
    spec = engine.model.spec
    coords: dict[str, Any] = {
        "y": _fine_coordinates(cube.y, spec.upscale, -cube.gsd_m),
        "x": _fine_coordinates(cube.x, spec.upscale, cube.gsd_m),
    }
    data = {}
    for layer in engine.layers:
        lead = ("legend" if layer.name == "probability" else f"{layer.name}_channel",)
        dims = (*(lead if layer.channels else ()), "y", "x")
        joined = da.block([[cell[layer.name] for cell in row] for row in rows])
        attributes = layer.describe(spec.legend) | {"nodata": layer.nodata}
        data[layer.name] = xr.DataArray(joined, dims=dims, attrs=attributes)
        if layer.channels:
            coords[lead[0]] = np.array(layer.channels)
    weights = {"weights": spec.weights} if spec.weights else {}
    return xr.Dataset(data, coords=coords, attrs={"model": spec.name} | weights)


def _place_of(cube: GivenCube) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return the global index of the first pixel, and the anchor of the lattice it lies on."""
    gsd_m = cube.gsd_m
    left, top = float(cube.x[0]) - gsd_m / 2, float(cube.y[0]) + gsd_m / 2
    row, col = round(-top / gsd_m), round(left / gsd_m)
    return (row, col), (left - col * gsd_m, top + row * gsd_m)


def _fine_coordinates(centres: npt.NDArray[Any], upscale: int, step_m: float) -> npt.NDArray[Any]:
    shifts = ((np.arange(upscale) + 0.5) / upscale - 0.5) * step_m
    fine: npt.NDArray[Any] = (centres[:, None] + shifts[None, :]).ravel()
    return fine


def _rows_of_blocks(lattice: Lattice, extent: ROI) -> Iterator[list[ROI]]:
    columns = len(list(grid.tiles_of((slice(0, 1), extent[1]), lattice.block_px)))
    blocks = list(grid.tiles_of(extent, lattice.block_px))
    for first in range(0, len(blocks), columns):
        yield blocks[first : first + columns]


def _lazy_block(engine: Engine, block: ROI, extent: ROI, shared: Any) -> dict[str, da.Array]:
    inside = grid.intersect(block, extent)
    cut = grid.scale(grid.relative(inside, block), engine.model.spec.upscale)

    @dask.delayed(pure=False)  # type: ignore[untyped-decorator]
    def compute(read_cell: _CubeCells) -> dict[str, npt.NDArray[Any]]:
        layers = engine.predict(block, read_cell)
        return {name: values[..., *cut] for name, values in layers.items()}

    result = compute(shared)
    shape = grid.shape_of(cut)
    return {
        layer.name: da.from_delayed(
            result[layer.name],
            shape=(*((len(layer.channels),) if layer.channels else ()), *shape),
            dtype=layer.dtype,
        )
        for layer in engine.layers
    }


@dataclass(frozen=True)
class _CubeCells:
    """Reads cells from a cube that was given; beyond its edge there is no data."""

    cube: GivenCube
    extent: ROI
    rule: DateRule

    def __call__(self, cell: ROI, window: ROI) -> CellData:
        """Choose the cell's dates by its clear pixels and read them on the window."""
        bands, dtype = self.cube.pixels.sizes["band"], self.cube.pixels.dtype
        shape = grid.shape_of(window)
        inside = grid.intersect(cell, self.extent)
        if grid.is_empty(inside):  # a neighbour beyond the edge, asked for by blending
            return CellData(np.zeros((0, bands, *shape), np.uint16), np.zeros((0, *shape), bool))
        count = self.cube.count_clear(grid.relative(inside, self.extent))
        chosen = choose_dates(100.0 * count / math.prod(grid.shape_of(inside)), self.rule)
        part = grid.intersect(window, self.extent)
        place = grid.relative(part, window)
        is_dn = dtype == np.uint16
        pixels = np.full(
            (len(chosen), bands, *shape), 0 if is_dn else np.nan, np.uint16 if is_dn else np.float32
        )
        clear = np.zeros((len(chosen), *shape), dtype=bool)
        pixels[:, :, *place], clear[:, *place] = self.cube.read(
            chosen, grid.relative(part, self.extent)
        )
        return CellData(pixels, clear)
