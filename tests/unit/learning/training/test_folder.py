"""The run folder: whole checkpoints, changed recipes, tables that go on."""

from __future__ import annotations

import contextlib
import json
import pickle
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bigmap.errors import OutputError, TrainingError
from bigmap.learning.training.folder import Table, TrainingFolder
from bigmap.learning.training.logs import TrainingLog
from bigmap.mapping.run_folder import MARK
from bigmap.models import Training, build_model
from tests.unit.learning.training.chip_cases import limit_files

FINGERPRINT = {
    "training": {"epochs": 3, "optimiser": {"learning_rate": 0.1}},
    "samples": {"n": (1,)},
}


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file grow beyond 50 kB, as if the disc were full."""
    with limit_files(50_000):
        yield


def make_folder(tmp_path: Path) -> TrainingFolder:
    folder = TrainingFolder(tmp_path / "deep" / "weights.safetensors")
    folder.check(resume=False, overwrite=False)
    folder.start()
    return folder


def save(folder: TrainingFolder, **content: object) -> None:
    folder.save({"fingerprint": json.dumps(FINGERPRINT), **content})


def test_a_full_disc_leaves_the_old_checkpoint_and_no_half_of_a_new_one(
    tmp_path: Path, small_files: None
) -> None:
    folder = make_folder(tmp_path)
    save(folder, position={"step": 1})
    with pytest.raises(OSError, match="File too large"):
        save(folder, model=torch.ones(100_000))
    assert folder.load(FINGERPRINT)["position"] == {"step": 1}
    model = build_model("small-conv", {"width": 64})
    with pytest.raises(OSError, match="File too large"):
        folder.save_weights(model, Training("a test"))
    assert [file.name for file in folder.path.iterdir()] == ["checkpoint.pt"]
    assert not folder.weights.exists()


def test_logs_close_all_files_though_one_is_full(tmp_path: Path, small_files: None) -> None:
    folder = make_folder(tmp_path)
    log = TrainingLog(folder, (), step=None, epoch=None)
    with pytest.raises(OSError, match="File too large"):
        deque((log.add_step(step, {"loss": 0.123456789}) for step in range(100_000)), maxlen=0)
    with contextlib.suppress(OSError):
        log.close()
    assert log.steps.stream.closed
    assert log.epochs.stream.closed


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(layer.parameters(), fused=True)
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    state = optimiser.state_dict()
    save(folder, model=layer.state_dict(), optimiser=state, position={"best_score": -float("inf")})
    found = folder.load(FINGERPRINT)
    assert torch.equal(found["model"]["weight"], layer.weight)
    assert torch.equal(found["optimiser"]["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert found["position"] == {"best_score": -float("inf")}
    assert [file.name for file in folder.path.iterdir()] == ["checkpoint.pt"]


def test_a_changed_recipe_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    save(folder)
    changed = {**FINGERPRINT, "training": {"epochs": 3, "optimiser": {"learning_rate": 0.2}}}
    with pytest.raises(TrainingError, match=r"another training\.optimiser\.learning_rate; set it"):
        folder.load(changed)
    assert folder.load(FINGERPRINT)["version"] == 1


def test_a_damaged_checkpoint_and_one_with_code_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    save(folder, model={"weight": torch.ones(100)})
    content = folder.checkpoint.read_bytes()
    for spoilt in (content[: len(content) // 2], b"", b"nonsense", pickle.dumps({"a": Path})):
        folder.checkpoint.write_bytes(spoilt)
        with pytest.raises(TrainingError, match="is no checkpoint that can be read"):
            folder.load(FINGERPRINT)
    torch.save({"version": 1, "fingerprint": Path("x")}, folder.checkpoint)
    with pytest.raises(TrainingError, match="is no checkpoint that can be read"):
        folder.load(FINGERPRINT)


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch) -> None:
    folder = make_folder(tmp_path)
    save(folder, position={"step": 1})
    monkeypatch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save(folder, position={"step": 2})
    monkeypatch.undo()
    assert folder.load(FINGERPRINT)["position"] == {"step": 1}


def test_what_is_there_is_not_overwritten_unasked(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder.path / "lease").mkdir()
    assert folder.check(resume=False, overwrite=False) is False, "it holds a lease only"
    (folder.path / MARK).write_text('{"kind": "training"}')
    with pytest.raises(TrainingError, match="exists; add --resume"):
        folder.check(resume=False, overwrite=False)
    with pytest.raises(TrainingError, match="contradict"):
        folder.check(resume=True, overwrite=True)
    assert folder.check(resume=True, overwrite=False) is False, "killed before its first checkpoint"
    save(folder)
    assert folder.check(resume=True, overwrite=False) is True
    assert folder.check(resume=False, overwrite=True) is False
    folder.weights.write_bytes(b"")
    folder.start()
    assert not folder.weights.exists()
    assert not folder.checkpoint.exists()
    imported = TrainingFolder(tmp_path / "imported.safetensors")
    imported.weights.write_bytes(b"")
    with pytest.raises(TrainingError, match="exists without its run folder"):
        imported.check(resume=True, overwrite=False)


def test_the_run_folder_of_a_map_is_no_place_for_a_training(tmp_path: Path) -> None:
    folder = TrainingFolder(tmp_path / "weights.safetensors")
    (folder.path / "ledger").mkdir(parents=True)
    (folder.path / "ledger" / "000000001.jsonl").write_text("of a map")
    for content in (None, '{"kind": "map"}'):
        if content:
            (folder.path / MARK).write_text(content)
        for settings in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(
                OutputError, match=r"weights\.run: exists and is not the run folder"
            ):
                folder.check(**{"resume": False, "overwrite": False} | settings)
    assert (folder.path / "ledger" / "000000001.jsonl").read_text() == "of a map"


def test_a_table_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    file = tmp_path / "steps.csv"
    table = Table(file, ("step", "loss"), last=None)
    for step in range(1, 5):
        table.add(step=step, loss=step / 10)
    table.close()
    with file.open("a") as stream:
        stream.write("5")  # Killed in the middle of a row.
    table = Table(file, ("step", "loss"), last=2)
    table.add(step=3, loss=0.7)
    table.close()
    assert file.read_text().split() == ["step,loss", "1,0.1", "2,0.2", "3,0.7"]
