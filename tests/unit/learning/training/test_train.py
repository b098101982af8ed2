"""Training from end to end on few small chips."""

from __future__ import annotations

import csv
import errno
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr

import bigmap
from bigmap.cli import main
from bigmap.errors import LeaseError, TrainingError
from bigmap.learning.chips import META
from bigmap.learning.training import train_recipe
from bigmap.learning.training.folder import TrainingFolder
from bigmap.learning.training.progress import SilentTraining
from bigmap.lease import Lease, LeaseState, read_lease
from bigmap.models import build_model, read_card, read_tensors
from tests.unit.learning.training.chip_cases import (
    BANDS,
    limit_files,
    make_recipe,
    recipe_content,
    write_chips,
)

pytestmark = pytest.mark.training


def test_training_learns_and_leaves_weights_that_load_with_their_scores(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr", train=16)
    summary = train_recipe(make_recipe(tmp_path, chips, training={"epochs": 5}))
    assert (summary.epochs, summary.steps, summary.exit_code) == (5, 20, 0)
    assert summary.scores["mcc"] > 0.5
    card = read_card(summary.weights)
    assert card.training.is_simulated
    assert card.training.scores["mcc"] == pytest.approx(summary.scores["mcc"])
    notice = build_model("spinet", weights=summary.weights).spec.notice
    assert notice is not None
    assert "simulated" in notice
    with (tmp_path / "weights.run" / "epochs.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert list((tmp_path / "weights.run" / "samples").glob("epoch-*.png"))


def test_two_trainings_of_the_same_weights_do_not_meet(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, write_chips(tmp_path / "chips.zarr"), training={"epochs": 1})
    other = Lease(str(tmp_path / "weights.run"))
    other.acquire()
    (tmp_path / "weights.run" / "checkpoint.pt").write_text("of the other")
    for settings in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(
            LeaseError, match=r"weights\.run: another run .* writes here; wait for it"
        ):
            train_recipe(recipe, **settings)
    assert (tmp_path / "weights.run" / "checkpoint.pt").read_text() == "of the other"
    other.release()
    assert train_recipe(recipe, overwrite=True).exit_code == 0
    assert read_lease(str(tmp_path / "weights.run")) is None


class TakenOver(SilentTraining):
    """Lets another training take over after an epoch, and remembers what it finds."""

    def __init__(self, folder: Path, *, after_epoch: int) -> None:
        self.folder, self.after_epoch = folder, after_epoch
        self.found: dict[Path, bytes] = {}

    def read(self) -> dict[Path, bytes]:
        files = [self.folder.with_suffix(end) for end in (".safetensors", ".json")]
        files += [file for file in self.folder.rglob("*") if file.is_file()]
        return {file: file.read_bytes() for file in files if file.parent.name != "lease"}

    def add_epoch(self, epoch: int, values: Any, *, is_best: bool) -> None:
        if epoch == self.after_epoch:
            successor = LeaseState("another", "elsewhere", 1, time.time(), term=2)
            file = self.folder / "lease" / "000000002.json"
            file.write_text(json.dumps(asdict(successor)))
            self.found = self.read()


def test_a_training_that_was_taken_over_writes_no_more(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    recipe = make_recipe(tmp_path, chips, training={"epochs": 5, "checkpoint_minutes": 1e-6})
    folder = tmp_path / "weights.run"
    reporter = TakenOver(folder, after_epoch=2)
    with pytest.raises(LeaseError, match=r"another run .* on elsewhere\) took this output over"):
        train_recipe(recipe, reporter=reporter)
    assert folder / "checkpoint.pt" in reporter.found
    after = reporter.read()
    # TensorBoard's own file is of one process, and what it still has in memory is written.
    events = [file for file in after if "tensorboard" in file.parts]
    assert events
    for file in events:
        del reporter.found[file], after[file]
    assert after == reporter.found


RGB = ["red", "green", "blue"]
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "dual": (
        {"upscale": 2, "chip_px": 32, "target_bands": BANDS},
        {"name": "dual", "bands": list(BANDS), "legend": "cropland", "options": {"size": "small"}},
        {"objective": {"kind": "dual"}},
    ),
    "end-to-end": (
        {"upscale": 2, "chip_px": 32, "target_bands": tuple(RGB)},
        {"name": "dbpn-segnet", "bands": RGB, "options": {"size": "small", "upscale": 2}},
        {
            "objective": {"kind": "end-to-end", "beta": 1.0},
            "optimiser": {"segmentation_weight_decay": 5e-4, "learning_rate": 1e-3},
        },
    ),
    "uncertainty": (
        {"upscale": 2, "classes": (), "target_bands": ("nir",)},
        {"name": "piunet", "bands": ["nir"], "options": {"size": "small", "upscale": 2}},
        {"objective": {"kind": "image", "loss": "uncertainty"}, "precision": "bfloat16"},
    ),
    "registered": (
        {"upscale": 2, "classes": (), "target_bands": tuple(RGB), "chip_px": 64, "target_px": 134},
        {"name": "highres-net", "bands": RGB, "options": {"size": "small", "upscale": 2}},
        {
            "objective": {
                "kind": "image", "loss": "ssim", "registered": True, "consistency_weight": 0.9
            },
            "schedule": {"kind": "cosine", "warmup_epochs": 0.5},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_each_objective_trains_the_model_of_its_paper(tmp_path: Path, kind: str) -> None:
    made, model, training = OBJECTIVES[kind]
    chips = write_chips(tmp_path / "chips.zarr", train=4, validation=2, **made)
    settings = {"batch_chips": 2, **training}
    summary = train_recipe(make_recipe(tmp_path, chips, model=model, training=settings))
    assert summary.steps == 4
    score = summary.scores["mcc" if "classes" not in made else "psnr"]
    assert math.isfinite(score)
    trained = read_tensors(summary.weights)
    fresh = make_recipe(tmp_path, chips, model=model).model
    first = build_model(fresh.name, fresh.options, bands=fresh.bands, legend=None)
    moved = [
        name
        for name, values in first.state_dict().items()
        if values.is_floating_point() and name in trained and values.shape == trained[name].shape
        and not np.array_equal(values.numpy(), trained[name].numpy())
    ]  # fmt: skip
    assert len(moved) > len(trained) / 2


def test_training_ends_where_the_score_rises_no_more_and_keeps_the_best(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    # So small a rate changes no class, so that the first epoch stays the best.
    settings = {"epochs": 9, "early_stop_epochs": 2, "optimiser": {"learning_rate": 1e-9}}
    settings |= {"ema_decay": 0.5, "augment": {"flips": False, "turns": False}}
    recipe = make_recipe(tmp_path, chips, training=settings)
    summary = bigmap.train(recipe)
    assert summary.stopped_early
    assert summary.epochs == summary.best_epoch + 2 < 9
    again = bigmap.train(recipe, resume=True)
    assert (again.epochs, again.steps) == (summary.epochs, summary.steps), "it is at its end"


class Notes(SilentTraining):
    """Keeps what is noted, and the validation loss of each epoch."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.losses: list[float] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def add_epoch(self, epoch: int, values: Any, *, is_best: bool) -> None:
        self.losses.append(values["validation_loss"])


def test_where_validation_holds_one_class_the_loss_tells_the_best_epoch(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    labels = zarr.open_group(chips)["labels"]
    labels[8:] = np.where(labels[8:] == 255, 255, 0)
    notes = Notes()
    summary = train_recipe(make_recipe(tmp_path, chips, training={"epochs": 4}), reporter=notes)
    assert math.isnan(summary.scores["mcc"])
    assert summary.chosen_by == "loss"
    assert summary.best_epoch == 1 + int(np.argmin(notes.losses)) > 1
    assert len(notes.notes) == 1
    assert "mcc is undefined on the validation chips" in notes.notes[0]


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr", train=4, validation=0)
    summary = train_recipe(make_recipe(tmp_path, chips))
    assert (summary.best_epoch, summary.scores, summary.chosen_by) == (2, {}, "")
    card = read_card(summary.weights)
    assert "epoch 2" in card.training.data


def test_a_full_disc_is_one_sentence_and_training_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chips = write_chips(tmp_path / "chips.zarr", train=4)
    recipe = make_recipe(tmp_path, chips)
    said = (
        r"^training\.weights: .*weights\.run cannot be written \(.*\); make room, then .*--resume$"
    )
    with limit_files(100_000), pytest.raises(TrainingError, match=said):
        train_recipe(recipe)
    save = TrainingFolder.save

    def save_once(folder: TrainingFolder, content: Any) -> None:
        if folder.checkpoint.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        save(folder, content)

    monkeypatch.setattr(TrainingFolder, "save", save_once)
    with pytest.raises(TrainingError, match=said):
        train_recipe(recipe, resume=True)
    monkeypatch.setattr(TrainingFolder, "save", save)
    assert "Traceback" not in capfd.readouterr().err
    assert train_recipe(recipe, resume=True).epochs == 2
    again = make_recipe(tmp_path / "again", chips)
    other = train_recipe(again).weights
    assert Path(other).read_bytes() == (tmp_path / "weights.safetensors").read_bytes()


def test_a_loss_that_is_no_number_ends_with_advice(tmp_path: Path) -> None:
    chips = write_chips(tmp_path / "chips.zarr")
    recipe = make_recipe(tmp_path, chips, training={"optimiser": {"learning_rate": 1.0}})
    # Reflectance less such a mean, over such a deviation, is beyond float32.
    root = zarr.open_group(chips, mode="r+")
    facts: Any = root.attrs[META]
    root.attrs[META] = {**facts, "statistics": {"mean": [1e38] * 4, "std": [1e-4] * 4}}
    with pytest.raises(TrainingError, match=r"the loss is nan in step 1; lower"):
        train_recipe(recipe)


def test_the_command_reports_as_json_and_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chips = write_chips(tmp_path / "chips.zarr", train=4)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_content(tmp_path, chips)))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["train", str(file), *arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    code, out, err = run("--json", "--set", "training.epochs=1")
    assert code == 0
    summary = json.loads(out)
    assert (summary["epochs"], summary["is_simulated"], summary["exit_code"]) == (1, True, 0)
    assert "the chips are of simulated scenes" in err
    code, out, err = run("--resume")
    assert code == 2
    assert "was started with another training.epochs" in err
    assert len(err.splitlines()) == 1
    code, _, err = run("--processes", "2", "--cluster", "local")
    assert (code, "--processes and --cluster contradict" in err) == (2, True)
    code, _, err = run("--processes", "5", "--overwrite")
    assert code == 2
    assert "training.batch_chips: 4 in 1 parts are too few for 5 processes" in err
    code, out, _ = run("--overwrite", "--set", "training.epochs=1")
    assert code == 0
    assert "trained: 1 epochs, 1 steps" in out
