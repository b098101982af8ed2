"""What a process can compute on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from bigmap.machine import count_cores

PROBE_SIZE = 256
EMULATED_BFLOAT16 = 6.0
"""Processor time of a pass in bfloat16 against float32 on AVX2: SPInet, measured, 4.6 to 6.2."""
SLOW_BFLOAT16 = (
    "inference.precision: this machine's processor has no bfloat16 instructions, so that "
    "bfloat16 takes several times as long as float32"
)


@dataclass(frozen=True)
class DeviceReport:
    """The device that models run on in one process."""

    kind: str
    """``cuda`` or ``cpu``."""
    name: str = ""
    """Name of the GPU."""
    memory_gb: float = 0.0
    """Memory of the GPU."""
    error: str | None = None
    """Why it cannot compute, where it cannot."""


def describe_device() -> DeviceReport:
    """Return the first GPU that this process sees, or the CPU, after computing with it.

    A driver that is too old for this PyTorch, or a GPU that it was not built for, shows only when
    something is computed.
    """
    if not torch.cuda.is_available():
        return DeviceReport("cpu", error=_try_device("cpu"))
    properties = torch.cuda.get_device_properties(0)
    memory_gb = properties.total_memory / 1e9
    return DeviceReport("cuda", properties.name, memory_gb, _try_device("cuda"))


def has_bfloat16() -> bool:
    """Tell whether the processor computes in bfloat16; without, PyTorch emulates it slowly."""
    return torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX", "SVE"))


def _try_device(kind: str) -> str | None:
    try:
        image = torch.ones(1, 1, PROBE_SIZE, PROBE_SIZE, device=kind)
        summed = float(torch.nn.functional.conv2d(image, image[..., :3, :3]).sum())
    except RuntimeError as error:
        return str(error).splitlines()[0]
    expected = 9.0 * (PROBE_SIZE - 2) ** 2
    return None if summed == expected else f"a convolution gave {summed}, not {expected}"


def run_threads(tasks: Sequence[Callable[[], object]]) -> None:
    """Run tasks side by side that release the interpreter's lock; the first here."""
    others = [_pool(os.getpid()).submit(task) for task in tasks[1:]]
    for task in tasks[:1]:
        task()
    for each in others:
        each.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process; a fork has none of those of its parent."""
    del process
    return ThreadPoolExecutor(count_cores(), thread_name_prefix="bigmap-compute")
