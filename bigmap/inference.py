"""Cube -> map layers, window by window.

Windows are cores of the lattice grown by a halo, and all of one shape. Every cell chooses its
dates by its own mask. A window's result depends on its place alone; windows are added in the
order of cells and then of cores, which is the same whatever region is asked for, so the bytes
of a pixel do not depend on the region, the batch or the number of workers.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import torch
import xarray as xr
from torch import Tensor

from bigmap import grid
from bigmap.cube.given import GivenCube, check_cube
from bigmap.errors import ModelError, ScoresError
from bigmap.grid import ROI, Lattice
from bigmap.models import LayerSpec, MapModel, ModelSpec, build_model, refuse_random
from bigmap.models.base import CLASS, CONFIDENCE, OBSERVATIONS
from bigmap.models.layers import fold_norms
from bigmap.quality import DateRule, choose_dates
from bigmap.radiometry import DN_OFFSET, DN_SCALE, NODATA

DEVICE_LOCK = threading.Lock()
"""Held by the one block of a process that predicts, while others read and write."""

_STORED = {"uint8": torch.uint8, "int16": torch.int16, "uint16": torch.int32}
"""What holds a layer on the device; PyTorch computes with few operations on uint16."""

BLEND_SHARE = 8
"""Neighbouring cores blend over one eighth of a core on each side of their border."""


def optimise(model: MapModel) -> MapModel:
    """Return a copy of a model that computes the same, up to rounding, faster.

    Normalisations are multiplied into the convolutions before them, and channels lie last, which
    the convolutions of CPUs and GPUs prefer.
    """
    faster = copy.deepcopy(model).eval()
    fold_norms(faster)
    return faster.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def limit_threads(threads: int) -> None:
    """Set how many threads one process computes with, so that workers share a machine."""
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class CellData:
    """The chosen dates of a cell, on a window of it."""

    pixels: npt.NDArray[Any]
    """(time, band, y, x): uint16 DN with reflectance = 1e-4 * DN - 0.1 and 0 for nodata, or
    float32 reflectance with NaN for nodata."""
    clear: npt.NDArray[np.bool_]
    """(time, y, x); a clear pixel has data in every band."""


CellReader = Callable[[ROI, ROI], CellData]
"""Reads the chosen dates of a cell: called with the cell and the window wanted of it."""


@dataclass(frozen=True)
class Windowing:
    """How a region is cut into windows and run."""

    overlap: Literal["trim", "blend"] = "trim"
    batch_windows: int = 8
    precision: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"

    @classmethod
    def for_model(
        cls,
        spec: ModelSpec,
        *,
        overlap: Literal["auto", "trim", "blend"] = "auto",
        batch_windows: int = 8,
        precision: Literal["float32", "bfloat16"] = "float32",
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> Windowing:
        """Settle what ``auto`` leaves open: exact models are trimmed, others blended."""
        if overlap == "auto":
            overlap = "trim" if spec.kind == "exact" else "blend"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise ModelError("inference.device: cuda is asked for, but PyTorch sees no GPU here")
        return cls(overlap, batch_windows, precision, device)

    def blend_px(self, lattice: Lattice) -> int:
        """Return how far neighbours blend on each side of their border, in input pixels."""
        return max(1, lattice.core_px // BLEND_SHARE) if self.overlap == "blend" else 0

    def halo_px(self, spec: ModelSpec, lattice: Lattice) -> int:
        """Return the halo of a window: what the model needs beside what is blended."""
        wanted = spec.halo_px + self.blend_px(lattice)
        return math.ceil(wanted / spec.multiple_px) * spec.multiple_px


@dataclass
class Timings:
    """Seconds spent in each stage, added up."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time spent inside the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Engine:
    """A model with everything that decides how regions are cut for it."""

    model: MapModel
    lattice: Lattice
    windowing: Windowing
    layers: tuple[LayerSpec, ...]

    def predict(
        self,
        roi: ROI,
        read_cell: CellReader,
        *,
        is_wanted: Callable[[ROI], bool] | None = None,
        timings: Timings | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Map one region.

        Parameters
        ----------
        roi
            Whole cores, in global pixel indices.
        read_cell
            Gives the chosen dates of a cell on a window.
        is_wanted
            Tells whether a region, in global pixel indices, has anything to map; others are left
            nodata. By default all do.
        timings
            Receives the time of the stages ``wait`` (for the device) and ``predict``.

        Returns
        -------
        dict of str to numpy.ndarray
            One array per layer, (y, x) or (channel, y, x), at output resolution.

        Raises
        ------
        ScoresError
            If the model's scores are not finite.
        """
        timings = timings or Timings()
        canvas = _Canvas(self, roi)
        for cell, cores, window in self.list_reads(roi, is_wanted=is_wanted):
            data = read_cell(cell, window)
            if not data.clear.any():
                continue
            with timings.measure("wait"):
                DEVICE_LOCK.acquire()
            try:
                with timings.measure("predict"):
                    self._predict_cell(canvas, cell, cores, window, data)
            finally:
                DEVICE_LOCK.release()
            del data  # or it would lie in memory beside the next cell, and beside the layers
        return canvas.finish()

    def list_reads(
        self, roi: ROI, *, is_wanted: Callable[[ROI], bool] | None = None
    ) -> Iterator[tuple[ROI, list[ROI], ROI]]:
        """Yield what :meth:`predict` reads for a region: cells, their cores, and one window each.

        Parameters
        ----------
        roi, is_wanted
            As for :meth:`predict`.
        """
        blend_px = self.windowing.blend_px(self.lattice)
        halo_px = self.windowing.halo_px(self.model.spec, self.lattice)
        reach = grid.grow(roi, blend_px)
        for cell in self.lattice.cells(reach):
            cores = [
                core
                for core in self.lattice.cores(grid.intersect(cell, reach))
                if is_wanted is None or is_wanted(grid.intersect(grid.grow(core, blend_px), roi))
            ]
            if cores:
                yield cell, cores, grid.grow(grid.hull(cores), halo_px)

    @torch.inference_mode()
    def _predict_cell(
        self, canvas: _Canvas, cell: ROI, cores: list[ROI], window: ROI, data: CellData
    ) -> None:
        device = torch.device(self.windowing.device)
        model = self.model.to(device)
        pixels, clear = _to_device(data, device)
        dates = torch.ones(1, len(clear), dtype=torch.bool, device=device)
        canvas.count_observations(cell, window, clear)
        halo_px = self.windowing.halo_px(model.spec, self.lattice)
        places = [(core, *grid.window_of(core, halo_px)) for core in cores]
        # A window that never was clear says nothing.
        places = [p for p in places if bool(clear[:, *grid.relative(p[1], window)].any())]
        batch, empty = self.windowing.batch_windows, model.mean_reflectance
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            # One shape for all batches: GPU libraries choose their algorithm by shape.
            padded = chosen + [chosen[-1]] * (batch - len(chosen)) * (device.type == "cuda")
            cuts = [grid.relative(place[1], window) for place in padded]
            with torch.autocast(
                device.type, dtype=torch.bfloat16, enabled=self.windowing.precision == "bfloat16"
            ):
                seen = torch.stack([clear[:, *cut] for cut in cuts])
                reflectance = prepare(
                    torch.stack([pixels[:, :, *cut] for cut in cuts]),
                    seen,
                    empty=empty,
                )
                scores = model(reflectance, dates.expand(len(cuts), -1), seen)
            for index, (core, place, _) in enumerate(chosen):
                canvas.add(core, place, {k: v[index].float() for k, v in scores.items()})


def _to_device(data: CellData, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bring a cell to the device, as small as it is: int16 bits of DN, or float32 reflectance."""
    clear = torch.from_numpy(np.ascontiguousarray(data.clear)).to(device)
    pixels = data.pixels
    # PyTorch computes with few operations on uint16, so the bits travel as int16.
    pixels = pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(device), clear


def prepare(pixels: Tensor, clear: Tensor, *, empty: Tensor) -> Tensor:
    """Turn pixels of windows into finite reflectance.

    A pixel without data in any band takes, in all bands, the mean of its clear dates, or a
    constant where it has none: a hole stays the pixel's own affair.

    Parameters
    ----------
    pixels
        (batch, time, band, y, x): the bits of uint16 DN as int16, or float32 reflectance.
    clear
        bool, (batch, time, y, x).
    empty
        Reflectance of a pixel that is clear on no date, (band,); see
        :attr:`bigmap.models.MapModel.mean_reflectance`.

    Returns
    -------
    torch.Tensor
        float32, (batch, time, band, y, x).
    """
    if pixels.dtype == torch.int16:
        dn = pixels.to(torch.int32) & 0xFFFF
        has_data = (dn != NODATA).all(dim=2)
        reflectance = dn.to(torch.float32) * DN_SCALE + DN_OFFSET
    else:
        reflectance = pixels
        has_data = reflectance.isfinite().all(dim=2)
    if bool(has_data.all()):
        return reflectance
    total = torch.zeros_like(reflectance[:, 0])
    for date in torch.where(clear.unsqueeze(2), reflectance, 0).unbind(1):
        total = total + date
    count = clear.sum(dim=1).unsqueeze(1)
    mean = torch.where(count > 0, total / count.clamp(min=1), empty.to(total)[:, None, None])
    return torch.where(has_data.unsqueeze(2), reflectance, mean.unsqueeze(1))


class _Canvas:
    """Collects the scores of windows for one region."""

    def __init__(self, engine: Engine, roi: ROI) -> None:
        self.spec = engine.model.spec
        self.layers = engine.layers
        self.roi = roi
        self.upscale = self.spec.upscale
        self.shape = grid.shape_of(grid.scale(roi, self.upscale))
        self.blend_px = engine.windowing.blend_px(engine.lattice)
        self.device = torch.device(engine.windowing.device)
        self.observations = torch.zeros(grid.shape_of(roi), dtype=torch.int32, device=self.device)
        self.sums: dict[str, Tensor] = {}
        self.weights: Tensor | None = None
        self.results: dict[str, Tensor] = {}

    def count_observations(self, cell: ROI, window: ROI, clear: Tensor) -> None:
        """Count the clear dates of the cell's pixels."""
        part = grid.intersect(grid.intersect(cell, self.roi), window)
        if not grid.is_empty(part):
            count = clear[:, *grid.relative(part, window)].sum(dim=0, dtype=torch.int32)
            self.observations[grid.relative(part, self.roi)] = count

    def add(self, core: ROI, window: ROI, scores: Mapping[str, Tensor]) -> None:
        """Put the scores of one window, (channel, y, x) at output resolution, in their place."""
        part = grid.intersect(grid.grow(core, self.blend_px), self.roi)
        if grid.is_empty(part):
            return
        cut = grid.scale(grid.relative(part, window), self.upscale)
        place = grid.scale(grid.relative(part, self.roi), self.upscale)
        kept = {name: values[:, *cut] for name, values in scores.items()}
        self._check_finite(kept, part)
        if not self.blend_px:
            for layer, values in self._layers_of(kept).items():
                self._result(layer)[..., *place] = values
            return
        weight = self._weight(core, part)
        if self.weights is None:
            self.weights = torch.zeros(self.shape, device=self.device)
        self.weights[place] += weight
        for name, values in kept.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((len(values), *self.shape), device=self.device)
            self.sums[name][:, *place] += values * weight

    def _check_finite(self, scores: Mapping[str, Tensor], part: ROI) -> None:
        """Refuse scores of which stored values could be made, but none that means anything."""
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                rows, cols = part
                raise ScoresError(
                    f"the {name} that {self.spec.name} gives is not finite in rows {rows.start} to "
                    f"{rows.stop}, columns {cols.start} to {cols.stop} of the grid; check its "
                    "weights, or set inference.precision: float32"
                )

    def finish(self) -> dict[str, npt.NDArray[Any]]:
        """Return all layers; nodata where no clear date or no window was."""
        if self.weights is not None:
            scores = {name: total / self.weights for name, total in self.sums.items()}
            self.results = self._layers_of(scores)
            missing = self.weights == 0
            for name, values in self.results.items():
                values.masked_fill_(missing, self._spec(name).nodata)
        unseen = _repeat(self.observations == 0, self.upscale)
        arrays = {}
        for layer in self.layers:
            if layer.name == OBSERVATIONS.name:
                values = _repeat(self.observations.clamp(max=254), self.upscale)
            else:
                values = self._result(layer.name)
            values = values.masked_fill(unseen, layer.nodata)
            arrays[layer.name] = values.cpu().numpy().astype(layer.dtype, copy=False)
        return arrays

    def _result(self, name: str) -> Tensor:
        if name not in self.results:
            layer = self._spec(name)
            lead = (len(layer.channels),) if layer.channels else ()
            self.results[name] = torch.full(
                (*lead, *self.shape),
                layer.nodata,
                dtype=_STORED[layer.dtype],
                device=self.device,
            )
        return self.results[name]

    def _layers_of(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn scores into stored values, int32."""
        values: dict[str, Tensor] = {}
        wanted = {layer.name: layer for layer in self.layers}
        if "probability" in scores and self.spec.legend:
            best, codes = _find_best(scores["probability"], self.spec)
            if CLASS.name in wanted:
                values[CLASS.name] = codes
            if CONFIDENCE.name in wanted:
                values[CONFIDENCE.name] = CONFIDENCE.quantise(best * 100)
        for layer in self.spec.extra_layers:
            if layer.name in wanted:
                score = scores[layer.name] * (100 if layer.units == "percent" else 1)
                values[layer.name] = layer.quantise(score if layer.channels else score[0])
        return values

    def _spec(self, name: str) -> LayerSpec:
        return next(layer for layer in self.layers if layer.name == name)

    def _weight(self, core: ROI, part: ROI) -> Tensor:
        """Return a core's weights on a part, which with its neighbours' sum to one."""
        rows, cols = (
            _ramp(axis, wanted, self.blend_px, self.upscale).to(self.device)
            for axis, wanted in zip(core, part, strict=True)
        )
        return rows[:, None] * cols[None, :]


def _find_best(probability: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return the greatest probability and its class's value; of equal ones the first class.

    Going through whole planes, class by class, is several times faster than a maximum over the
    leading axis.
    """
    best = probability[0]
    codes = torch.full_like(best, spec.legend[0].value, dtype=torch.int32)
    for plane, entry in zip(probability[1:], spec.legend[1:], strict=True):
        codes = codes.masked_fill(plane > best, entry.value)
        best = torch.maximum(best, plane)
    return best, codes


def _ramp(core: slice, part: slice, blend_px: int, upscale: int) -> Tensor:
    """Return 1-D weights of a core.

    They are one inside, and fall to zero from ``blend_px`` within the border to ``blend_px``
    beyond. A falling flank is one minus the neighbour's rising one, so they sum to one exactly.
    """
    centres = torch.arange(part.start * upscale, part.stop * upscale) + 0.5
    rising = ((centres / upscale - core.start + blend_px) / (2 * blend_px)).clamp(0, 1)
    falling = 1 - ((centres / upscale - core.stop + blend_px) / (2 * blend_px)).clamp(0, 1)
    return torch.minimum(rising, falling)


def _repeat(values: Tensor, upscale: int) -> Tensor:
    """Repeat pixels (y, x) onto the output grid."""
    return values.repeat_interleave(upscale, dim=0).repeat_interleave(upscale, dim=1)


def predict(
    cube: xr.DataArray,
    model: MapModel | str,
    *,
    dates: DateRule | None = None,
    core_px: int = 128,
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
        Sides of window cores and cells, in input pixels.
    allow_random_weights
        Map even by a network that has learnt nothing, which is refused otherwise.
    **windowing
        ``overlap``, ``batch_windows``, ``precision`` and ``device`` as in a recipe.

    Returns
    -------
    xarray.Dataset
        The layers of the model at output resolution, backed by Dask, one chunk per cell.

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
    gsd_m = given.gsd_m
    origin, anchor_m = _place_of(given)
    lattice = Lattice(
        crs="", gsd_m=gsd_m, core_px=core_px, cell_px=cell_px, block_px=cell_px,
        upscale=spec.upscale, shard_px=cell_px * spec.upscale, chunk_px=cell_px * spec.upscale,
        anchor_m=anchor_m,
    )  # fmt: skip
    windows = Windowing.for_model(spec, **windowing)
    engine = Engine(optimise(model), lattice, windows, spec.default_layers)
    extent = (
        slice(origin[0], origin[0] + len(given.y)),
        slice(origin[1], origin[1] + len(given.x)),
    )
    rule = dates or DateRule(max_per_cell=given.pixels.sizes["time"], min_clear_percent=0.0)
    read_cell = _CubeCells(given, extent, rule)
    # One key for all cells, so that the cube does not travel with each.
    shared = dask.delayed(read_cell, traverse=False)
    rows = [
        [_lazy_cell(engine, cell, extent, shared) for cell in row]
        for row in _rows_of_cells(lattice, extent)
    ]
    upscale = spec.upscale
    coords: dict[str, Any] = {
        "y": _fine_coordinates(given.y, upscale, -gsd_m),
        "x": _fine_coordinates(given.x, upscale, gsd_m),
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
    result = xr.Dataset(data, coords=coords, attrs={"model": spec.name} | weights)
    if given.crs is not None:
        result = result.rio.write_crs(given.crs)
    return result


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


def _rows_of_cells(lattice: Lattice, extent: ROI) -> Iterator[list[ROI]]:
    columns = len(list(grid.tiles_of((slice(0, 1), extent[1]), lattice.cell_px)))
    cells = list(lattice.cells(extent))
    for first in range(0, len(cells), columns):
        yield cells[first : first + columns]


def _lazy_cell(engine: Engine, cell: ROI, extent: ROI, shared: Any) -> dict[str, da.Array]:
    inside = grid.intersect(cell, extent)
    cut = grid.scale(grid.relative(inside, cell), engine.model.spec.upscale)

    @dask.delayed(pure=False)  # type: ignore[untyped-decorator]
    def compute(read_cell: _CubeCells) -> dict[str, npt.NDArray[Any]]:
        layers = engine.predict(cell, read_cell)
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
