"""A plan counts the memory of its model, and is refused where workers have less."""

import pytest

import bigmap
from bigmap.config import parse_recipe
from bigmap.errors import PlanError
from bigmap.mapping.loads import count_memory_gb
from tests.integration.tiny_scenes import write_tiny_scenes


def make_recipe(folder, *, width=16, batch_windows=8, cluster=None):
    items = write_tiny_scenes(folder / "scenes")
    return parse_recipe(
        {
            "name": "x", "area": {"bbox": [2.0, 41.6, 2.1, 41.7]},
            "grid": {"crs": "EPSG:25831", "gsd_m": 10, "core_px": 128, "cell_px": 512,
                     "block_px": 512, "shard_px": 512, "chunk_px": 512},
            "source": {"kind": "files", "files": [str(items)], "start": "2024-05-01",
                       "end": "2024-05-31"},
            "model": {"name": "small-conv", "options": {"width": width, "upscale": 1}},
            "inference": {"batch_windows": batch_windows},
            "cluster": cluster or {"kind": "local", "workers": 1, "memory_gb": 64},
            "output": {"path": str(folder / "x.zarr")},
        }
    )  # fmt: skip


def test_a_wider_network_and_a_larger_batch_need_more(tmp_path):
    narrow = count_memory_gb(bigmap.plan(make_recipe(tmp_path)).only)
    wide = count_memory_gb(bigmap.plan(make_recipe(tmp_path, width=64)).only)
    # 8 windows of 134 px, 48 channels more, float32: at least one such tensor more.
    assert wide - narrow > 8 * 134**2 * 48 * 4 / 1e9
    assert (
        count_memory_gb(bigmap.plan(make_recipe(tmp_path, width=64, batch_windows=1)).only) < wide
    )


def test_automatic_workers_share_what_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setattr("bigmap.clusters.sizes.count_cores", lambda: 8)
    monkeypatch.setattr("bigmap.clusters.sizes.memory_limit", lambda: 4_000_000_000)
    need_gb = count_memory_gb(bigmap.plan(make_recipe(tmp_path, width=64)).only)
    assert need_gb > 1.0
    with pytest.raises(PlanError, match=r"a worker needs about .* GB but has 1\.0 GB"):
        bigmap.plan(make_recipe(tmp_path, width=64, cluster={"kind": "local"}))
