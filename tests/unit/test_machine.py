"""The cores of this machine are those that this process may use."""

import os
import subprocess
import sys

import pytest

from bigmap import machine


def test_affinity_limits_the_cores():
    """In a process of its own: affinity is inherited by all that starts later."""
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}})\n"
        "from bigmap.machine import count_cores; print(count_cores())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stdout == "1\n"


@pytest.mark.parametrize(("quota", "cores"), [(400_000, 4), (150_000, 2), (50_000, 1)])
def test_a_control_group_limits_the_cores(monkeypatch, quota, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("os.process_cpu_count", lambda: 64, raising=False)
    monkeypatch.setattr("dask.system.psutil", None)
    monkeypatch.setattr("dask.system._try_extract_cgroup_cpu_quota", lambda: (quota, 100_000))
    assert machine.count_cores() == cores
