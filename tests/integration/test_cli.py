"""The commands on a small catalogue: help, plan, run, status, resume."""

import json
import re
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import bigmap
from bigmap import cli
from tests.integration.small_world import write_recipe, write_scenes

COMMANDS = ["plan", "run", "stage", "status", "models"]
SECRET = "c2VjcmV0c2lnbmF0dXJl"


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    output = capsys.readouterr()
    return stop.value.code or 0, output.out, output.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes, and a recipe beside them."""
    folder = tmp_path_factory.mktemp("cli")
    items = write_scenes(folder / "scenes", query=f"?sig={SECRET}")
    content = json.loads(items.read_text())
    for item in content["features"]:
        for name, asset in item["assets"].items():
            file = folder / "scenes" / item["id"] / f"{name}.tif"
            asset["href"] = f"file://{file}?sig={SECRET}"
    items.write_text(json.dumps(content))
    write_recipe(folder / "recipe.yaml")
    with chdir(folder):
        yield folder


@pytest.fixture(scope="module")
def ran(folder):
    """What one run printed, and its exit code."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main(["run", "recipe.yaml", "--limit", "4", "--workers", "1"])
    return stop.value.code or 0, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(capsys, command):
    code, text, error = call(capsys, command, "--help")
    assert code == 0
    assert error == ""
    assert f"Example: bigmap {command}" in text


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(capsys, arguments):
    code, text, _ = call(capsys, *arguments)
    assert code == 0
    assert all(command in text for command in COMMANDS)


@pytest.mark.slow
def test_models(capsys):
    code, text, _ = call(capsys, "models")
    assert code == 0
    assert "ndvi" in text
    assert "small-conv" in text
    code, text, _ = call(capsys, "models", "--json")
    rows = {row["name"]: row for row in json.loads(text)}
    assert code == 0
    assert rows["ndvi"]["bands"] == ["red", "nir"]
    assert "class" in rows["ndvi"]["layers"]


def test_plan_tells_what_a_run_would_take(folder, capsys):
    code, text, error = call(capsys, "plan", "recipe.yaml")
    assert code == 0
    assert error == ""
    assert "small: 1 km² in EPSG:32631, 10 m to 10 m with ndvi" in text
    assert "6 blocks of 64 px, 3 items on 3 dates" in text
    assert "windows of 32 px around cores of 32 px: the model computes " in text
    assert "items found: 3, kept: 3" in text


def test_plan_for_scripts(folder, capsys):
    code, text, _ = call(capsys, "plan", "recipe.yaml", "--json", "--set", "dates.max_per_cell=2")
    content = json.loads(text)
    assert code == 0
    assert content["estimate"]["blocks"] == 6
    assert content["audit"]["found"] == 3


def test_plan_inside_a_box_and_with_fewer_clouds(folder, capsys):
    small = ["--bbox", "0.601,41.688,0.6014,41.6884", "--set", "source.max_cloud_percent=10"]
    code, text, _ = call(capsys, "plan", "recipe.yaml", "--json", *small)
    content = json.loads(text)
    assert code == 0
    assert content["estimate"]["blocks"] == 1
    assert content["estimate"]["items"] == 1


def test_run_ends_with_its_audit(ran):
    code, text, error = ran
    assert code == 0, error
    assert "audit: 4 planned = 4 done" in text
    assert "map: map.zarr" in text
    assert "ndvi is a baseline" in text
    assert "items found: 3, kept: 3" in text
    assert "no item in 2024-03" in text
    assert "\n0 km² without data\n" in text
    audit = Path("map.run/audit.txt").read_text()
    assert audit.splitlines() == ["items found: 3, kept: 3", "no item in 2024-03"]


def test_a_map_without_a_pixel_is_no_success(folder, capsys):
    """The whole area is vegetation, which this mask calls a cloud."""
    code, text, _ = call(
        capsys, "run", "recipe.yaml", "--output", "blank.zarr", "--limit", "1",
        "--set", "source.mask={kind: scl, asset: scl, clear_values: [6]}",
    )  # fmt: skip
    assert code == 3
    assert "0 km² in " in text
    assert re.search(r"^(0\.\d{3}) km² without data: too cloudy \1$", text, re.MULTILINE)
    assert "empty: no pixel has a value; check " in text
    code, text, _ = call(capsys, "status", "blank.zarr", "--json")
    content = json.loads(text)
    assert content["mapped_km2"] == 0
    assert list(content["without_data_km2"]) == ["too cloudy"]
    assert 0.05 < content["without_data_km2"]["too cloudy"] < 64**2 * 1e-4
    assert "without data: too cloudy" in call(capsys, "status", "blank.zarr")[1]


def test_an_area_without_a_pixel_is_refused(folder, capsys):
    code, text, error = call(
        capsys, "plan", "recipe.yaml", "--bbox", "0.605,41.69,0.60501,41.69001"
    )
    assert (code, text) == (2, "")
    assert "area: holds no pixel of the grid" in error
    assert len(error.splitlines()) == 1


def test_plan_knows_the_speed_of_an_earlier_run(ran, capsys):
    code, text, _ = call(capsys, "plan", "recipe.yaml", "--json")
    content = json.loads(text)
    assert code == 0
    assert content["clusters"][0]["bound"] == "measured"
    assert content["clusters"][0]["hours"] > 0
    assert any(line.startswith("measured: 4 blocks of map.zarr") for line in content["assumptions"])
    # Another model is not as fast.
    text = call(capsys, "plan", "recipe.yaml", "--json", "--set", "model.name=small-conv")[1]
    assert json.loads(text)["clusters"][0]["bound"] != "measured"


def test_map_opens_with_its_recipe(ran):
    opened = bigmap.open_map("map.zarr")
    assert opened["class"].dtype == "uint8"
    # NDVI of 600 and 3000, and so cropland, wherever there is a value.
    assert set(opened["class"].values.ravel().tolist()) == {1, 255}
    assert opened.attrs["bigmap:recipe"]["name"] == "small"
    assert "cluster" not in opened.attrs["bigmap:recipe"], "hosts and accounts are not published"


def test_status_of_the_run(ran, capsys):
    for name in ("map.zarr", "map.zarr/", "map.run"):
        code, text, error = call(capsys, "status", name)
        assert code == 0, error
        assert "6 blocks planned: 4 done, 2 missing" in text
        assert "not running" in text


def test_status_for_scripts(ran, capsys):
    code, text, _ = call(capsys, "status", "map.zarr", "--json")
    content = json.loads(text)
    assert code == 0
    assert content["planned"] == 6
    assert content["states"] == {"done": 4}
    assert content["missing"] == 2
    assert content["running"] is False


def test_status_of_nothing(folder, capsys):
    code, text, error = call(capsys, "status", "nothing.zarr")
    assert (code, text) == (2, "")
    assert error == "bigmap: nothing.zarr: there is no run here\n"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "add --resume to go on with it or --overwrite"),
        (["--resume", "--set", "model.options.threshold=0.3"], "model.options.threshold"),
        (["--resume", "--set", "grid.gsd_m=20"], "another grid.gsd_m"),
        (["--resume", "--set", "source.end=2024-06-29"], "another source.end"),
    ],
)
def test_taken_output_is_refused(ran, capsys, flags, words):
    code, _, error = call(capsys, "run", "recipe.yaml", *flags)
    assert code == 2
    assert len(error.splitlines()) == 1
    assert "output.path: map.zarr" in error
    assert words in error


def test_no_secret_is_kept(ran, folder):
    files = [f for f in folder.glob("map.*/**/*") if f.is_file()]
    assert len(files) > 10
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]


def test_resume_for_scripts_prints_one_object(ran, capsys):
    code, text, error = call(
        capsys, "run", "recipe.yaml", "--resume", "--json", "--set", "cluster.blocks_per_worker=1"
    )
    assert code == 0, error
    assert len(text.splitlines()) == 1
    content = json.loads(text)
    assert content["exit_code"] == 0
    assert content["planned"] == 6
    assert content["sent"] == 2
    assert content["states"] == {"done": 6}
    assert "audit: 6 planned = 6 done" in error
