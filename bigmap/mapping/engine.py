"""Chosen dates of cells -> map layers, window by window, on one device."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bigmap import grid
from bigmap.grid import ROI, Lattice
from bigmap.mapping.windows import Canvas, Windowing
from bigmap.models import LayerSpec, MapModel
from bigmap.models.layers import fold_norms
from bigmap.scenes.radiometry import DN_OFFSET, DN_SCALE, NODATA
from bigmap.timings import Timings

DEVICE_LOCK = threading.Lock()
"""Held by the one block of a process that predicts, while others read and write."""


def optimise(model: MapModel) -> MapModel:
    """Return a copy of a model that computes the same, up to rounding, faster.

    Normalisations are multiplied into the convolutions before them, and channels lie last, which
    the convolutions of CPUs and GPUs prefer.
    """
    faster = copy.deepcopy(model).eval()
    fold_norms(faster)
    return faster.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


LEAST_THREADS = 2
"""With one thread PyTorch takes other code for convolutions of one pixel than with several, which
gives other last bits; a map must not tell how many cores a worker had."""


def limit_threads(threads: int) -> None:
    """Set how many threads one process computes with, so that workers share a machine."""
    torch.set_num_threads(max(LEAST_THREADS, threads))


@dataclass(frozen=True)
class CellData:
    """The chosen dates of a cell, on a window of it."""

    pixels: Sequence[npt.NDArray[Any]] | npt.NDArray[Any]
    """For each date (band, y, x): uint16 DN with reflectance = 1e-4 * DN - 0.1 and 0 for nodata,
    or float32 reflectance with NaN for nodata."""
    clear: npt.NDArray[np.bool_]
    """(time, y, x); a clear pixel has data in every band."""


CellReader = Callable[[ROI, ROI], CellData]
"""Reads the chosen dates of a cell: called with the cell and the window wanted of it."""


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
        """Map one region; while a cell is predicted, the next one is read.

        Parameters
        ----------
        roi
            Whole cores, in global pixel indices.
        read_cell
            Gives the chosen dates of a cell on a window; asked for one cell after the other, from
            another thread.
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
        canvas = Canvas(
            roi,
            self.layers,
            spec=self.model.spec,
            lattice=self.lattice,
            windowing=self.windowing,
        )
        device = torch.device(self.windowing.device)

        def bring(cell: ROI, window: ROI) -> _OnDevice:
            return _bring(read_cell(cell, window), device)

        reads = list(self.list_reads(roi, is_wanted=is_wanted))
        with ThreadPoolExecutor(1, thread_name_prefix="bigmap-ahead") as ahead:
            reading = [ahead.submit(bring, cell, window) for cell, _, window in reads[:1]]
            for number, (cell, cores, window) in enumerate(reads, start=1):
                data = reading.pop().result()
                with timings.measure("wait"):
                    DEVICE_LOCK.acquire()
                try:
                    # Not before: a block that waits holds one cell.
                    for following, _, its_window in reads[number : number + 1]:
                        reading.append(ahead.submit(bring, following, its_window))
                    if data.clear.any():
                        with timings.measure("predict"):
                            self._predict_cell(canvas, cell, cores, window, data)
                finally:
                    DEVICE_LOCK.release()
                del data  # or it would lie in memory beside two more cells, and beside the layers
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
        self, canvas: Canvas, cell: ROI, cores: list[ROI], window: ROI, data: _OnDevice
    ) -> None:
        device = data.clear.device
        model = self.model.to(device)
        pixels, clear = data.pixels, data.clear
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
                    torch.stack([torch.stack([d[:, *cut] for d in pixels]) for cut in cuts]),
                    seen,
                    empty=empty,
                )
                scores = model(reflectance, dates.expand(len(cuts), -1), seen)
            for index, (core, place, _) in enumerate(chosen):
                canvas.add(core, place, {k: v[index].float() for k, v in scores.items()})


@dataclass(frozen=True)
class _OnDevice:
    """A cell where it is computed, as small as it is."""

    pixels: list[Tensor]
    """For each date (band, y, x): the bits of uint16 DN as int16, with which PyTorch computes, or
    float32 reflectance."""
    clear: Tensor
    """bool, (time, y, x)."""


def _bring(data: CellData, device: torch.device) -> _OnDevice:
    """Bring a cell to the device; to a GPU beside what it computes meanwhile."""
    pixels = []
    for date in map(np.ascontiguousarray, data.pixels):
        small = date.view(np.int16) if date.dtype == np.uint16 else date.astype(np.float32)
        pixels.append(torch.from_numpy(small))
    clear = torch.from_numpy(np.ascontiguousarray(data.clear))
    if device.type == "cpu":
        return _OnDevice(pixels, clear)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        *pixels, clear = (
            each.pin_memory().to(device, non_blocking=True) for each in (*pixels, clear)
        )
    stream.synchronize()
    for each in (*pixels, clear):  # their memory is free again when what computes with them ends
        each.record_stream(torch.cuda.default_stream(device))
    return _OnDevice(pixels, clear)


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
        reflectance = dn.to(torch.float32).mul_(DN_SCALE).add_(DN_OFFSET)
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
