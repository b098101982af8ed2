"""Training as tasks of a real SLURM."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bigmap.learning.training import train_recipe
from tests.services.slurm import Slurm
from tests.unit.learning.training.chip_cases import make_recipe, recipe_content, write_chips

ROOT = Path(__file__).resolve().parents[2]
# At thirty times this rate rounding alone grows to 1e-4 within three steps, as Adam divides by the
# size of gradients that are nearly zero.
SETTINGS = {
    "epochs": 8, "accumulate": 2, "checkpoint_minutes": 0.01,
    "optimiser": {"learning_rate": 1e-4},
}  # fmt: skip


def read_losses(file: Path) -> list[float]:
    with file.open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def test_two_nodes_train_as_one_process_and_go_on_after_the_time_limit(
    tmp_path: Path, slurm: Slurm
) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    train_recipe(make_recipe(alone, chips, training=SETTINGS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_content(shared, chips, training=SETTINGS)))
    env = os.environ | slurm.env | {
        "PYTHONPATH": str(ROOT), "BIGMAP": f"{sys.executable} -m bigmap.cli",
        # Both nodes are this machine.
        "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1",
        "--mem=1500M", f"--chdir={tmp_path}", "--output=train.log",
        str(ROOT / "cluster" / "train.sbatch"), str(recipe),
    ]  # fmt: skip
    job = subprocess.check_output(command, env=env, text=True).strip()
    log, steps = tmp_path / "train.log", shared / "weights.run" / "steps.csv"

    def wait_until(is_so: Callable[[], bool], limit_s: float = 240) -> None:
        deadline = time.monotonic() + limit_s
        while not is_so():
            said = log.read_text() if log.exists() else ""
            assert time.monotonic() < deadline, f"{said}\n{slurm.explain()}"
            time.sleep(0.1)

    wait_until(lambda: steps.exists() and len(read_losses(steps)) > 2)
    # What SLURM sends before the time limit, to the script alone.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    wait_until(lambda: "ended with 75" in log.read_text())
    wait_until(lambda: "Restarts=1" in slurm.call("scontrol", "show", "job", job))
    wait_until(lambda: "JobState=COMPLETED" in slurm.call("scontrol", "show", "job", job))
    text = log.read_text()
    assert "start 1" in text
    assert text.count("trained: 8 epochs, 16 steps") == 1, "only the first task tells"
    expected = read_losses(alone / "weights.run" / "steps.csv")
    assert len(expected) == 16
    assert read_losses(steps) == pytest.approx(expected, abs=1e-4)
