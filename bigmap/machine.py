"""What this machine has: memory, cores, GPUs; no library of the GPU's maker is needed to ask."""

from __future__ import annotations

import os
from pathlib import Path


def machine_memory_gb() -> float:
    """Return the memory of this machine, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def count_cores() -> int:
    """Return how many cores this process may use; a job often may not use all of its machine."""
    return len(os.sched_getaffinity(0))


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this process may use: those of CUDA_VISIBLE_DEVICES, or all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([number for number in visible.split(",") if number.strip() not in ("", "-1")])
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
