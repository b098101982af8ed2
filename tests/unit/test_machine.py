"""What a machine has is what its container may use."""

import os

import pytest

from bigmap import machine


def test_a_container_limits_the_memory(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("2000000000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit, tmp_path / "missing"))
    assert machine.machine_memory_gb() == 2.0


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712\n"])
def test_without_a_limit_the_machine_counts(tmp_path, monkeypatch, text):
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit,))
    whole_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    assert machine.machine_memory_gb() == whole_gb


def test_cores_are_those_of_this_process():
    assert 1 <= machine.count_cores() <= len(os.sched_getaffinity(0))
