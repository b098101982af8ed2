"""``bigmap evaluate`` as users meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigmap.cli import main
from tests.integration.small_world import write_recipe
from tests.unit.evaluation_chips import make_fields, make_template, write_set

NDVI = {"model": {"name": "ndvi", "options": {"upscale": 1}}}


def call(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    template = make_template(upscale=1, is_simulated=True, source="a drawing")
    arrays = make_fields(template, 6)
    # Of four test chips one tenth of a chip's pixels is wrong, and one row is unlabelled.
    arrays["labels"][4, :, :2] ^= 1
    arrays["labels"][5, 0] = 255
    write_set(tmp_path / "chips.zarr", template, arrays, split=[0, 1, 2, 2, 2, 2])
    samples = {"path": str(tmp_path / "chips.zarr"), "labels": {"kind": "simulated"}}
    return write_recipe(tmp_path / "recipe.yaml", **NDVI, samples=samples)


def test_a_model_and_baselines_stand_in_one_table(recipe: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores"
    baseline = "ndvi:threshold=-0.9"
    code, text, _ = call(
        capsys, "evaluate", str(recipe), "--baseline", baseline, "--out", str(out), "--json"
    )
    assert code == 0
    printed = json.loads(text)
    assert printed == json.loads((out / "scores.json").read_text())
    first, second = printed["models"]
    # 4 chips of 256 px without one row of 16; 2 columns of 16 px are wrong.
    assert first["classes"]["pixels"] == 4 * 256 - 16
    assert first["classes"]["accuracy"] == pytest.approx(1 - 32 / 1008)
    confusion = np.array(second["classes"]["confusion"])
    assert confusion[:, 0].sum() == 0, "everything is above the threshold"
    assert second["classes"]["precision"][0] is None
    assert second["classes"]["mcc"] is None
    table = (out / "scores.md").read_text()
    assert f"|  | ndvi | {baseline} |" in table
    assert "| MCC | 0.93" in table
    assert "| - |" in table
    assert "The samples are simulated" in table
    assert {file.name for file in out.iterdir()} == {
        "scores.json", "scores.md", "confusion.png", "confusion-ndvi-threshold-0-9.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "--split tset: is unknown; there are train, validation, test"),
        (["--set", "samples.path=/nowhere.zarr"], "there are no samples here"),
        (["--set", "model.name=spinet", "--set", "model.options={}"], "model.bands: spinet needs"),
        (["--baseline", "ndvi:threshold"], "write it as NAME:option=value"),
        (["--baseline", "nothing"], "'nothing' is unknown; there are"),
        (["--baseline", "bicubic:composite=worst"], "composite 'worst' is unknown"),
        (["--baseline", "ndvi:upscale=2"], "model.options.upscale: ndvi:upscale=2 makes 2"),
        (
            ["--set", "model={name: segnet, bands: [red], legend: buildings}"],
            "model.legend: segnet has the classes 0 other, 1 building, but the samples have 0 o",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(recipe: Path, capsys, arguments, message) -> None:
    code, _, error = call(capsys, "evaluate", str(recipe), *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_split_without_chips_and_a_recipe_without_samples(tmp_path: Path, capsys) -> None:
    template = make_template(upscale=1)
    write_set(tmp_path / "chips.zarr", template, make_fields(template, 2), split=[0, 0])
    samples = {"path": str(tmp_path / "chips.zarr"), "labels": {"kind": "simulated"}}
    recipe = write_recipe(tmp_path / "recipe.yaml", **NDVI, samples=samples)
    code, _, error = call(capsys, "evaluate", str(recipe))
    assert code == 2
    assert "has no chips of the split test (2 train, 0 validation, 0 test)" in error
    recipe = write_recipe(tmp_path / "other.yaml", **NDVI)
    code, _, error = call(capsys, "evaluate", str(recipe))
    assert code == 2
    assert "samples: is missing from the recipe" in error
