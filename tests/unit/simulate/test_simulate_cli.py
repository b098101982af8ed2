"""bigmap simulate: what it writes for a tiny area reads back as a source."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import bigmap
from bigmap import cli
from bigmap.config import load_recipe
from tests.integration.small_world import write_recipe

DAYS = {"source__start": "2024-05-01", "source__end": "2024-05-02"}
SMALL = {"area__bbox": [2.420, 41.800, 2.424, 41.803], "grid__cell_px": 32, **DAYS}


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "simulate", "--help")
    assert code == 0
    assert "Example: bigmap simulate" in text
    assert "--no-truth" in text


@pytest.mark.parametrize("flavour", ["earth-search", "cdse"])
def test_a_world_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flavour: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **SMALL)
    has_truth = flavour == "earth-search"
    out = tmp_path / "world"
    code, text, error = call(
        capsys, "simulate", recipe, "--out", out, "--flavour", flavour,
        "--truth" if has_truth else "--no-truth",
    )  # fmt: skip
    assert code == 0, error
    assert error.startswith("simulating ")
    assert (out / "truth" / "cropland.tif").exists() is has_truth
    assert (out / "truth" / "parcels.parquet").exists() is has_truth
    assert ("truth, cropland: " in text) is has_truth

    raw = yaml.safe_load(recipe.read_text())
    raw |= yaml.safe_load(next(line for line in text.splitlines() if line.startswith("source:")))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(raw))
    plan = bigmap.plan(load_recipe(again))
    features = json.loads(Path(raw["source"]["files"][0]).read_text())["features"]
    assert len(plan.only.catalogue.rows) == len(features) > 0
    assert plan.only.catalogue.rows[0].assets.keys() >= {"red", "nir"}

    code, _, error = call(capsys, "simulate", recipe, "--out", out)
    assert code == 2
    assert "exists and is not empty" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--flavour", "moon"], "flavour 'moon' is unknown"),
        (["--max-gb", "0.0001"], "the simulated scenes need about"),
        (["--set", "area.bbox=[1.0, 41.0, 3.0, 42.0]"], "leave out the truth"),
    ],
)
def test_what_cannot_work_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **SMALL)
    code, _, error = call(capsys, "simulate", recipe, "--out", tmp_path / "world", *options)
    assert code == 2
    assert message in error
    assert not (tmp_path / "world").exists()


def test_a_plan_says_what_a_run_would_render_and_renders_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "simulated", "cache": "cache", "start": "2024-05-01", "end": "2024-05-02"}
    source["scene_px"] = 366
    recipe = write_recipe(tmp_path / "recipe.yaml", **{**SMALL, "source": source})
    code, _, error = call(capsys, "plan", recipe, "--set", "source.cache_gb=0.0001")
    assert code == 2
    assert "the cache may hold 0.0 GB" in error
    assert "raise source.cache_gb" in error
    code, text, error = call(capsys, "plan", recipe, "--json")
    assert (code, error) == (0, "")
    content = json.loads(text)
    assert content["estimate"]["items"] == content["audit"]["kept"] == 1
    # Two bands of 10 m and the classes of 20 m: a pixel takes at most 1.7 bytes, and 1 byte.
    pixels = 2 * 366**2, 183**2
    assert content["simulated"] == {
        "scenes": 1, "tiles": 1, "days": 1, "pixels": sum(pixels),
        "bytes": round(7000 + 1.7 * pixels[0] + pixels[1]), "cache": str(tmp_path / "cache"),
        "cached_scenes": 0, "cached_bytes": 0, "limit_bytes": 20_000_000_000,
    }  # fmt: skip
    code, text, error = call(capsys, "plan", recipe)
    assert (code, error) == (0, "")
    assert "simulated: 1 scenes of 1 tiles on 1 days, 0 Mpx, at most 0.00 GB, which fit" in text
    assert f"0 scenes (0.00 GB) are in {tmp_path / 'cache'}, 1 (0.00 GB) would be" in text
    assert "forecast: the clouds" in text
    assert list(tmp_path.iterdir()) == [recipe]

    bigmap.prepare_source(load_recipe(recipe))
    assert capsys.readouterr().err.startswith("simulating 1 scenes into ")
    _, text, _ = call(capsys, "plan", recipe, "--json")
    simulated = json.loads(text)["simulated"]
    assert simulated["cached_scenes"] == simulated["scenes"] == 1
    assert simulated["cached_bytes"] == simulated["bytes"]
    assert "forecast" not in call(capsys, "plan", recipe)[1]


def test_settings_reach_the_simulated_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **SMALL)
    simulated = ("plan", recipe, "--source", "simulated")
    code, _, error = call(capsys, *simulated, "--set", "source.cache_gb=0.0001")
    assert code == 2
    assert "the cache may hold 0.0 GB" in error
    code, _, error = call(capsys, *simulated, "--set", "source.scene_px=500")
    assert code == 2
    assert "source.scene_px" in error


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it."""
    days = {"kind": "simulated", "start": "2024-05-01", "end": "2024-06-30", "cache": "cache"}
    days["scene_px"] = 366
    recipe = write_recipe(tmp_path / "recipe.yaml", **{**SMALL, "source": days})
    options = ["--out", str(tmp_path / "world"), "--no-truth"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bigmap.cli", "simulate", str(recipe), *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(Path(bigmap.__file__).parents[1])},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("item.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if not line.startswith("simulating ")] == [
        "bigmap: interrupted"
    ]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"recipe.yaml"}
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()]
