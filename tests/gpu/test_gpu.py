"""What a GPU must do as a processor does: ``make test-gpu``; skipped where there is none."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import bigmap
from bigmap.config import parse_recipe
from bigmap.learning.training import train_recipe
from bigmap.models import build_model
from bigmap.models.registry import list_models
from tests.integration.small_world import raw_recipe, write_scenes
from tests.unit.learning.training.chip_cases import make_recipe, write_chips
from tests.unit.mapping.cubes import make_cube

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
MOST_APART = {"float32": 0.005, "bfloat16": 0.02}
"""Share of classes that may differ: weights are random, so that many pixels are undecided."""
MOST_DN_APART = {"float32": 10, "bfloat16": 300}
LOSS_APART = 0.02


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Multiply in whole float32: TF32 has 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def predict_on(device: str, name: str, precision: str) -> xr.Dataset:
    model = build_model(name)
    cube = make_cube(bands=model.spec.bands, time=min(3, model.spec.max_dates or 3), size=160)
    lazy = bigmap.predict(
        cube, model, core_px=64, cell_px=128, device=device, precision=precision,
        allow_random_weights=True,
    )  # fmt: skip
    return lazy.compute(scheduler="synchronous")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(list_models()))
def test_a_gpu_maps_as_a_processor_does(name: str, precision: str) -> None:
    here, there = (predict_on(device, name, precision) for device in ("cpu", "cuda"))
    assert set(here) == set(there)
    for layer in here:
        a, b = (each[layer].values for each in (here, there))
        nodata = here[layer].attrs["nodata"]
        assert ((a == nodata) == (b == nodata)).all()
        if layer == "class":
            assert (a != b).mean() < MOST_APART[precision]
        elif layer == "image":
            off = np.abs(a.astype(int) - b.astype(int))
            assert np.percentile(off, 99) <= MOST_DN_APART[precision]


def test_windows_come_out_alike_in_any_batch() -> None:
    model = build_model("spinet", {"size": "small"})
    cube = make_cube(bands=model.spec.bands, size=160)
    found = [
        bigmap.predict(
            cube, model, core_px=32, cell_px=cell_px, device="cuda", batch_windows=8,
            allow_random_weights=True,
        ).compute(scheduler="synchronous")
        for cell_px in (64, 128)
    ]  # fmt: skip
    # Dates are chosen by cell, and here all are taken, so cells decide only about batches.
    xr.testing.assert_identical(*found)


def test_a_cluster_of_gpus_makes_the_map_of_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_cuda", reason="the extra cuda is not installed")
    monkeypatch.chdir(tmp_path)
    write_scenes(tmp_path / "scenes")
    classes = []
    for kind in ("local", "local-cuda"):
        raw = raw_recipe(cluster={"kind": kind}, output__path=f"{kind}.zarr")
        summary = bigmap.run(parse_recipe(raw, origin="test"))
        assert summary.exit_code == 0
        classes.append(bigmap.open_map(f"{kind}.zarr")["class"].values)
    assert (classes[0] == classes[1]).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_goes_as_on_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    losses = []
    for device in ("cuda", "cpu"):
        if device == "cpu":
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        folder = tmp_path / device
        folder.mkdir()
        training = {"precision": precision, "epochs": 4}
        summary = train_recipe(make_recipe(folder, chips, training=training))
        assert summary.device == device
        with (Path(summary.folder) / "steps.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert losses[0] == pytest.approx(losses[1], rel=LOSS_APART)


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_train_by_nccl(tmp_path: Path, processes: int) -> None:
    if processes > torch.cuda.device_count():
        pytest.skip(f"there are {torch.cuda.device_count()} GPUs")
    os.environ["OMP_NUM_THREADS"] = "1"
    chips = write_chips(tmp_path / "chips.zarr", train=16)
    recipe = make_recipe(tmp_path, chips, training={"batch_chips": 8})
    summary = bigmap.train(recipe, processes=processes)
    assert summary.processes == processes
    assert Path(summary.weights).exists()
