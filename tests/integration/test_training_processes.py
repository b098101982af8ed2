"""Training by several processes, killed and resumed: the same losses, and the same bits."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from bigmap.config import parse_recipe
from bigmap.errors import LostRankError
from bigmap.learning.training import TrainingSummary, train_on_cluster, train_recipe
from tests.integration.local import find_workers, wait_until
from tests.services.processes import free_port
from tests.unit.learning.training.chip_cases import recipe_content, write_chips

pytestmark = [pytest.mark.slow, pytest.mark.training]

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = {
    "epochs": 3, "accumulate": 2, "checkpoint_minutes": 0.0005, "ema_decay": 0.9, "clip_norm": 1.0,
    "schedule": {"kind": "plateau", "patience_epochs": 0},
    "augment": {"date_dropout": 0.3, "shuffle_dates": True, "jitter": 0.05},
    # At ten times this rate rounding alone grows to 1e-4 within three steps.
    "optimiser": {"learning_rate": 3e-4, "weight_decay": 1e-4},
}  # fmt: skip


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_chips(tmp_path_factory.mktemp("chips") / "chips.zarr", train=12, validation=3)


@pytest.fixture(scope="module")
def server() -> Any:
    """Processes that start fast: they are forked from one that has imported all they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bigmap.learning.training.starting", "torch.utils.tensorboard"])
    return context


def make_content(folder: Path, chips: str, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return recipe_content(folder, chips, training=EVERYTHING | changes)


def train(content: dict[str, Any], **options: Any) -> TrainingSummary:
    return train_recipe(parse_recipe(content, origin="test"), **options)


def read_losses(folder: Path) -> list[float]:
    with (folder / "weights.run" / "steps.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def count_steps(folder: Path) -> int:
    file = folder / "weights.run" / "steps.csv"
    return max(0, len(file.read_text().splitlines()) - 1) if file.exists() else 0


def assert_same_bits(first: Path, second: Path) -> None:
    def read(folder: Path) -> dict[str, Any]:
        file = folder / "weights.run" / "checkpoint.pt"
        return torch.load(file, weights_only=True)

    one, other = read(first), read(second)
    for part in ("model", "average"):
        assert one[part].keys() == other[part].keys()
        for name, tensor in one[part].items():
            assert torch.equal(tensor, other[part][name]), (part, name)
    assert one["position"] == other["position"]
    assert one["schedule"] == other["schedule"]
    files = [folder / "weights.safetensors" for folder in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_losses(first) == read_losses(second)


@pytest.fixture(scope="module")
def alone(chips: str, tmp_path_factory: pytest.TempPathFactory, server: Any) -> Path:
    """A run by one process that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone")
    process = server.Process(target=train, args=(make_content(folder, chips),))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


def test_a_run_killed_at_any_step_ends_in_the_same_bits(
    tmp_path: Path, chips: str, alone: Path, server: Any
) -> None:
    content = make_content(tmp_path, chips)
    rng, kills = random.Random(7), 0
    while True:
        process = server.Process(target=train, args=(content,), kwargs={"resume": True})
        before, wanted = count_steps(tmp_path), rng.randint(1, 3)
        process.start()
        if kills < 5:
            wait_until(
                lambda before=before, wanted=wanted, process=process: (
                    count_steps(tmp_path) >= before + wanted or process.exitcode is not None
                )
            )
            time.sleep(rng.random() * 0.1)
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        assert process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert_same_bits(tmp_path, alone)


def test_a_signal_stops_with_75_and_the_run_goes_on(
    tmp_path: Path, chips: str, alone: Path
) -> None:
    # A checkpoint because of the signal, not of the time.
    content = make_content(tmp_path, chips, checkpoint_minutes=60)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "bigmap.cli", "train", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: count_steps(tmp_path) >= 4)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 75, said
    assert "go on with the same command and --resume" in said
    assert 4 <= count_steps(tmp_path) < 9
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "exists; add --resume" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    summary = train(content, resume=True)
    assert (summary.epochs, summary.steps, summary.stopped) == (3, 9, False)
    assert_same_bits(tmp_path, alone)


@pytest.fixture(scope="module")
def pair(chips: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pair")
    assert train(make_content(folder, chips), processes=2).processes == 2
    return folder


def test_two_processes_train_as_one(alone: Path, pair: Path) -> None:
    assert len(read_losses(alone)) == 9
    assert read_losses(pair) == pytest.approx(read_losses(alone), abs=1e-4)
    assert read_losses(pair) != read_losses(alone)


def is_rank(process: psutil.Process) -> bool:
    """Tell whether a process trains; one that has ended does not."""
    try:
        return "bigmap.learning.training" in process.cmdline()
    except psutil.Error:
        return False


class Disturbs:
    """Sends a signal to one of the processes of a training after its fourth step."""

    def __init__(self, find: Callable[[], list[psutil.Process]], number: signal.Signals) -> None:
        self.find, self.number = find, number

    def add_step(self, report: Any) -> None:
        if report.done == 4:
            self.find()[-1].send_signal(self.number)

    def add_epoch(self, epoch: int, values: Any, *, is_best: bool) -> None: ...

    def note(self, message: str) -> None: ...

    def finish(self) -> None: ...


def find_ranks(number: int) -> list[psutil.Process]:
    """Return this process's children that train as the rank of a number."""
    ranks = [each for each in psutil.Process().children() if is_rank(each)]
    return [each for each in ranks if each.environ()["RANK"] == str(number)]


def test_a_lost_process_ends_the_run_and_a_resumed_one_has_the_same_bits(
    tmp_path: Path, chips: str, pair: Path
) -> None:
    content = make_content(tmp_path, chips)
    started = time.monotonic()
    with pytest.raises(LostRankError, match="process 1 of 2 was ended by SIGKILL; go on with"):
        train(content, processes=2, reporter=Disturbs(partial(find_ranks, 1), signal.SIGKILL))
    assert time.monotonic() - started < 240
    assert not find_ranks(0) + find_ranks(1), "no process is left behind"
    train(content, processes=2, resume=True)
    assert_same_bits(tmp_path, pair)


def test_a_silent_process_is_lost_and_ends_with_the_others(
    tmp_path: Path, chips: str, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGMAP_TRAIN_TIMEOUT_S", "20")
    content = make_content(tmp_path, chips)
    with pytest.raises(LostRankError, match="go on with the same command and --resume"):
        train(content, processes=2, reporter=Disturbs(partial(find_ranks, 1), signal.SIGSTOP))
    assert not find_ranks(0) + find_ranks(1), "no process is left behind"
    train(content, processes=2, resume=True)
    assert_same_bits(tmp_path, pair)


def test_torchrun_starts_the_same_training(tmp_path: Path, chips: str, pair: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(make_content(tmp_path, chips)))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
        "--master-addr=127.0.0.1", f"--master-port={free_port()}",
        "-m", "bigmap.cli", "train", str(file),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: 3 epochs") == 1, "only the first process tells"
    assert read_losses(tmp_path) == read_losses(pair)


def test_workers_of_a_dask_cluster_train_as_one_process(
    tmp_path: Path, chips: str, alone: Path
) -> None:
    content = make_content(tmp_path, chips) | {"cluster": {"kind": "local", "workers": 2}}
    told: list[int] = []

    class Reporter:
        def add_step(self, report: Any) -> None: ...

        def add_epoch(self, epoch: int, values: Any, *, is_best: bool) -> None:
            told.append(epoch)

        def note(self, message: str) -> None: ...

        def finish(self) -> None: ...

    summary = train_on_cluster(parse_recipe(content, origin="test"), reporter=Reporter())
    assert (summary.processes, summary.steps) == (2, 9)
    assert read_losses(tmp_path) == pytest.approx(read_losses(alone), abs=1e-4)
    assert told == [1, 2, 3]


def test_a_lost_worker_of_a_dask_cluster_ends_the_run_and_it_can_be_resumed(
    tmp_path: Path, chips: str, alone: Path
) -> None:
    content = make_content(tmp_path, chips) | {"cluster": {"kind": "local", "workers": 2}}
    recipe = parse_recipe(content, origin="test")
    with pytest.raises(LostRankError, match="go on with the same command and --resume"):
        train_on_cluster(recipe, reporter=Disturbs(find_workers, signal.SIGKILL))
    summary = train_on_cluster(recipe, resume=True)
    assert (summary.processes, summary.steps) == (2, 9)
    assert read_losses(tmp_path) == pytest.approx(read_losses(alone), abs=1e-4)
