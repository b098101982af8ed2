"""Whether the workers of a cluster can do their work: what they are, and what fails on each."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import rasterio
from distributed import Client, Future, wait
from distributed.scheduler import KilledWorker
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from bigmap.clusters import open_cluster
from bigmap.clusters.sizes import size_cluster
from bigmap.config.cluster import ClusterConfig
from bigmap.config.sources import Access
from bigmap.errors import OutputError, ReadError
from bigmap.machine import count_cores
from bigmap.models.devices import DeviceReport, describe_device
from bigmap.scenes.cube.reading import use_raster

PROBE_LIMIT_S = 180
WAIT_STEP_S = 0.5
SIDE_PX = 512
PACKAGES = ("bigmap", "dask", "distributed", "torch", "numpy", "rasterio", "zarr")


@dataclass(frozen=True)
class WorkerReport:
    """What one worker is, and what it cannot do."""

    worker: str
    """Its name in the cluster."""
    host: str = ""
    cores: int = 0
    """Cores that its process may use."""
    memory_gb: float = 0.0
    """Its limit."""
    blocks: int = 0
    """Blocks that it has in hand at once."""
    device: DeviceReport | None = None
    versions: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """What fails, each without a full stop; empty where all is well."""


@dataclass(frozen=True)
class ClusterReport:
    """What a check of a cluster found."""

    workers: tuple[WorkerReport, ...]
    wanted: int
    waited_s: float
    """Until the workers had come."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each failing worker, and one for workers that did not come."""
        failing = tuple(
            f"worker {report.worker} on {report.host or 'an unknown host'}: "
            + "; ".join(report.problems)
            for report in self.workers
            if report.problems
        )
        late = self.wanted - len(self.workers)
        came = f"{late} of {self.wanted} workers did not come within {self.waited_s:.0f} s"
        return (*failing, came) if late > 0 else failing


@dataclass(frozen=True)
class _Probe:
    """What each worker is to try."""

    folder: str
    """Folder or URL below the output, in which each worker writes an object."""
    cog: str
    """A COG of ours, written by the driver."""
    mean: float
    """Mean of the window that is read from it."""
    reads: str | None
    """A COG of the user, to be read too."""
    needs_gpu: bool
    versions: dict[str, str]
    """The driver's; a worker with others could compute other values."""


def check_cluster(
    settings: ClusterConfig,
    output: str,
    *,
    reads: str | None = None,
    wait_s: float = 600.0,
    note: Callable[[str], None],
) -> ClusterReport:
    """Start a cluster, let each worker try what a run needs, and stop it.

    Parameters
    ----------
    settings
        The cluster section.
    output
        Folder or URL where maps will go; a folder in it is written, read and removed.
    reads
        A COG that workers must be able to read, such as one band of a scene.
    wait_s
        How long to wait for all workers, in seconds, once the first has come.
    note
        Tells the user of waiting.

    Raises
    ------
    ClusterError
        If the cluster cannot be started or reached.
    OutputError
        If not even this process can write to ``output``.
    """
    sizes = size_cluster(settings)
    folder = f"{output.rstrip('/')}/.bigmap-check-{uuid.uuid4().hex[:12]}"
    filesystem, root = fsspec.core.url_to_fs(folder)
    try:
        cog, mean = _write_cog(filesystem, root, folder)
        probe = _Probe(folder, cog, mean, reads, sizes.has_gpu, list_versions())
        started = time.monotonic()
        with open_cluster(settings, note=note) as client:
            # All workers of a cluster that already runs are there.
            wanted = max(sizes.sure_workers, len(_worker_infos(client)))
            addresses = _wait_for_workers(client, wanted, wait_s)
            waited_s = time.monotonic() - started
            return ClusterReport(_probe_all(client, addresses, probe), wanted, waited_s)
    finally:
        if filesystem.exists(root):
            filesystem.rm(root, recursive=True)


def _write_cog(filesystem: Any, root: str, folder: str) -> tuple[str, float]:
    """Write a small COG and return its place and the mean of the window that workers read."""
    values = np.random.default_rng(0).integers(1, 10_000, (SIDE_PX, SIDE_PX)).astype(np.uint16)
    with MemoryFile() as memory:
        with memory.open(
            driver="COG", height=SIDE_PX, width=SIDE_PX, count=1, dtype="uint16", blocksize=128,
            crs="EPSG:3035", transform=rasterio.Affine(10, 0, 4e6, 0, -10, 3e6),
        ) as target:  # fmt: skip
            target.write(values, 1)
        content = memory.read()
    try:
        filesystem.makedirs(root, exist_ok=True)
        filesystem.pipe_file(f"{root}/probe.tif", content)
    except OSError as error:
        raise OutputError(f"--output {folder}: cannot be written ({error})") from None
    return f"{folder}/probe.tif", float(values[_window().toslices()].mean())


def _window() -> Window:
    return Window(130, 70, 200, 150)


def _worker_infos(client: Client) -> dict[str, dict[str, Any]]:
    infos: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return infos


def _wait_for_workers(client: Client, wanted: int, limit_s: float) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + limit_s
    while len(infos := _worker_infos(client)) < wanted and time.monotonic() < deadline:
        time.sleep(WAIT_STEP_S)
    return infos


def _probe_all(
    client: Client, infos: dict[str, dict[str, Any]], probe: _Probe
) -> tuple[WorkerReport, ...]:
    futures = {
        address: client.submit(
            probe_worker, probe, str(info["name"]), workers=[address], allow_other_workers=False,
            pure=False,
        )
        for address, info in infos.items()
    }  # fmt: skip
    with contextlib.suppress(TimeoutError):
        wait(list(futures.values()), timeout=PROBE_LIMIT_S)
    reports = [_report_of(futures[address], info) for address, info in infos.items()]
    return tuple(sorted(reports, key=lambda report: report.worker))


def _report_of(future: Future[WorkerReport], info: dict[str, Any]) -> WorkerReport:
    """Return what a worker reported, or what became of it."""
    name, memory_gb = str(info["name"]), float(info["memory_limit"]) / 1e9
    blocks = int(info["nthreads"])
    if future.status == "finished":
        found: WorkerReport = future.result()
        return WorkerReport(
            name, found.host, found.cores, memory_gb, blocks, found.device, found.versions,
            found.problems,
        )  # fmt: skip
    error = future.exception() if future.status == "error" else None
    if future.status == "pending":
        problem = f"has not answered within {PROBE_LIMIT_S} s"
    elif error is None or isinstance(error, KilledWorker):
        problem = "was lost while it was checked"
    else:
        problem = f"cannot run bigmap ({type(error).__name__}: {error})"
    return WorkerReport(name, str(info["host"]), 0, memory_gb, blocks, problems=(problem,))


def list_versions() -> dict[str, str]:
    """Return the versions that decide what this process computes."""
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "gdal": rasterio.__gdal_version__} | packages


def probe_worker(probe: _Probe, worker: str) -> WorkerReport:
    """Try, on a worker, what a run needs there."""
    device, versions = describe_device(), list_versions()
    tried = (
        _say_device(device, probe),
        *(_say_version(name, versions[name], wanted) for name, wanted in probe.versions.items()),
        _try_reading(probe.cog, probe.mean),
        _try_reading(probe.reads, None) if probe.reads else None,
        _try_writing(probe.folder),
    )
    return WorkerReport(
        worker, socket.gethostname(), count_cores(), device=device, versions=versions,
        problems=tuple(problem for problem in tried if problem is not None),
    )  # fmt: skip


def _say_device(device: DeviceReport, probe: _Probe) -> str | None:
    if device.error is not None:
        return f"cannot compute on its {device.kind} ({device.error})"
    if probe.needs_gpu and device.kind == "cpu":
        return "PyTorch sees no GPU; check the driver, the CUDA of PyTorch and --gres"
    return None


def _say_version(name: str, here: str, wanted: str) -> str | None:
    # 2.13.0+cu128 and 2.13.0+cpu are the same code, built for different devices.
    same = here.partition("+")[0] == wanted.partition("+")[0]
    return None if same else f"{name} is {here}, but {wanted} with the driver; make them equal"


def _try_reading(place: str, mean: float | None) -> str | None:
    """Read a window of a COG; of our own the mean is known."""
    try:
        if mean is None or "://" not in place:
            values = use_raster(place, Access(unsigned_s3=False), _read_window, one_band=False)
        else:
            # What lies on an object store is read with the same client as the map is written.
            with MemoryFile(fsspec.open(place).open().read()).open() as source:
                values = _read_window(source)
    except ReadError as error:
        return f"cannot read {error}"
    except (RasterioError, OSError) as error:
        return f"cannot read {place} ({error})"
    if mean is not None and float(values.mean()) != mean:
        return f"reads other values from {place} than the driver wrote"
    return None


def _read_window(source: DatasetReader) -> npt.NDArray[Any]:
    return np.asarray(source.read(1, window=_window()))


def _try_writing(folder: str) -> str | None:
    """Write an object to the output and read it back."""
    filesystem, root = fsspec.core.url_to_fs(folder)
    path, content = f"{root}/{socket.gethostname()}-{os.getpid()}", os.urandom(64)
    try:
        # The driver made the folder: where it is missing, this is another file system.
        if not filesystem.exists(root):
            return f"does not see {folder}, which the driver wrote; choose a shared --output"
        filesystem.pipe_file(path, content)
        back = filesystem.cat_file(path)
    except OSError as error:
        return f"cannot write to {folder} ({error})"
    return None if back == content else f"reads back other bytes than it wrote to {folder}"
