"""Sizes of each kind of cluster, and what limits of this process make of them."""

from __future__ import annotations

import math

import pytest
from pydantic import TypeAdapter

from bigmap.clusters import sizes
from bigmap.clusters.sizes import ClusterSizes, size_cluster
from bigmap.config.cluster import ClusterConfig

SLURM = {"kind": "slurm", "interface": "lo"}
EXISTING = {"kind": "existing", "address": "tcp://127.0.0.1:8786"}


def size(**cluster) -> ClusterSizes:
    return size_cluster(TypeAdapter(ClusterConfig).validate_python(cluster))


@pytest.fixture(autouse=True)
def _limits(monkeypatch):
    """Eight cores, two GPUs and 48 GB, whatever machine runs the tests."""
    monkeypatch.setattr(sizes, "GROUP_LIMITS", {})
    monkeypatch.setattr(sizes, "count_cores", lambda: 8)
    monkeypatch.setattr(sizes, "count_gpus", lambda: 2)
    monkeypatch.setattr(sizes, "memory_limit", lambda: 48_000_000_000)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, ClusterSizes("local", 4, 4, 2.0, 12.0, 2, has_gpu=False, is_local=True)),
        (
            {"kind": "local", "workers": 3, "memory_gb": 5, "blocks_per_worker": 4},
            ClusterSizes("local", 3, 3, 8 / 3, 5.0, 4, has_gpu=False, is_local=True),
        ),
        (
            {"kind": "local", "workers": 16},
            ClusterSizes("local", 16, 16, 1.0, 3.0, 2, has_gpu=False, is_local=True),
        ),
        (
            {"kind": "local-cuda"},
            ClusterSizes("local-cuda", 2, 2, 4.0, 24.0, 3, has_gpu=True, is_local=True),
        ),
        (
            {"kind": "local-cuda", "gpus": [0, 2, 5], "memory_gb": 7},
            ClusterSizes("local-cuda", 3, 3, 8 / 3, 7.0, 3, has_gpu=True, is_local=True),
        ),
        (
            SLURM | {"min_jobs": 2, "max_jobs": 5, "workers_per_job": 3, "cpus_per_worker": 6},
            ClusterSizes("slurm", 15, 6, 6.0, 16.0, 2, has_gpu=False, is_local=False),
        ),
        (
            SLURM | {"max_jobs": 2, "gpus_per_job": 4, "memory_gb": 12},
            ClusterSizes("slurm", 8, 4, 4.0, 12.0, 2, has_gpu=True, is_local=False),
        ),
        (EXISTING, ClusterSizes("existing", 1, 1, 2.0, math.inf, 2, has_gpu=False, is_local=False)),
        (
            EXISTING | {"gpu": True, "cpus_per_worker": 8, "memory_gb": 9},
            ClusterSizes("existing", 1, 1, 8.0, 9.0, 2, has_gpu=True, is_local=False),
        ),
    ],
)
def test_sizes_of_each_kind(cluster, expected):
    assert size(**cluster) == expected


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_a_worker_computes_with_whole_cores_at_least_one(workers, threads):
    assert size(kind="local", workers=workers).threads == threads


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 2), (4, 2), (64, 32)])
def test_workers_are_for_the_cores_that_may_be_used(monkeypatch, cores, workers):
    monkeypatch.setattr(sizes, "count_cores", lambda: cores)
    found = size(kind="local")
    assert (found.workers, found.workers * found.cores) == (workers, max(cores, workers))


def test_a_machine_without_gpus_has_one_worker_to_say_so(monkeypatch):
    monkeypatch.setattr(sizes, "count_gpus", lambda: 0)
    assert size(kind="local-cuda").workers == 1


def test_only_local_workers_without_gpus_are_like_the_driver():
    like = [
        size(**each).is_like_driver
        for each in ({}, {"kind": "local-cuda"}, SLURM, SLURM | {"gpus_per_job": 1}, EXISTING)
    ]
    assert like == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("lines", "limits", "memory_gb"),
    [
        ("0::/job_7/step_0\n", {"memory.max": "9000000000\n"}, 9),
        ("0::/job_7/step_0\n", {"job_7/memory.max": "4000000000\n"}, 4),
        (
            "0::/job_7/step_0\n",
            {"job_7/memory.max": "4000000000\n", "job_7/step_0/memory.max": "max\n"}, 4,
        ),
        (
            "0::/job_7/step_0\n",
            {"job_7/memory.max": "4000000000\n", "job_7/step_0/memory.max": "3000000000\n"}, 3,
        ),
        ("0::/\n", {"job_7/memory.max": "4000000000\n"}, 48),
        (
            "5:cpu,cpuacct:/job_7\n4:memory:/job_7\n0::/\n",
            {"memory/job_7/memory.limit_in_bytes": "2000000000\n"}, 2,
        ),
        (
            "4:memory:/job_7\n0::/\n",
            {"memory/job_7/memory.limit_in_bytes": "9223372036854771712\n"}, 48,
        ),
        (None, {"memory.max": "4000000000\n"}, 48),
    ],
)  # fmt: skip
def test_the_least_limit_around_this_process_is_its_memory(
    tmp_path, monkeypatch, lines, limits, memory_gb
):
    """As a container, SLURM and systemd limit it, in both versions of control groups."""
    if lines is not None:
        (tmp_path / "own").write_text(lines)
    for place, content in limits.items():
        file = tmp_path / "groups" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    v2, v1 = tmp_path / "groups", tmp_path / "groups" / "memory"
    places = {"": (v2, "memory.max"), "memory": (v1, "memory.limit_in_bytes")}
    monkeypatch.setattr(sizes, "GROUP_LIMITS", places)
    monkeypatch.setattr(sizes, "OWN_GROUPS", tmp_path / "own")
    assert size(kind="local", workers=1).memory_gb == memory_gb
