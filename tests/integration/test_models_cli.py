"""``bigmap models``, models of other packages, and weights of others, as users meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigmap.cli import main
from bigmap.models import build_model, read_card
from bigmap.models.layers import TYPICAL_STATISTICS
from tests.integration.small_world import write_recipe, write_scenes

OUTSIDE = '''
"""A model of another package: the mean of one band above a threshold."""

import torch
from bigmap.models import ClassEntry, MapModel, ModelSpec


class BrightModel(MapModel):
    """Bright ground.

    Parameters
    ----------
    threshold
        Reflectance above which ground is bright.
    """

    has_weights = False

    def __init__(self, *, threshold: float = 0.2) -> None:
        super().__init__()
        self.threshold = threshold
        self.spec = ModelSpec(
            name="bright", title="Bright ground", bands=("red",), upscale=2, halo_px=0,
            kind="exact", paper="nobody 2026",
            legend=(ClassEntry(3, "dark", "#000000"), ClassEntry(7, "bright", "#ffffff")),
        )

    def forward(self, reflectance, dates, clear):
        mean = (reflectance[:, :, 0] * clear).sum(1) / clear.sum(1).clamp(min=1)
        bright = (mean > self.threshold).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
        return {"probability": torch.stack([1 - bright, bright], dim=1)}
'''


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


@pytest.fixture
def outside(tmp_path: Path) -> dict[str, str]:
    """Install a package with a model beside bigmap; returns the environment that has it."""
    site = tmp_path / "site"
    metadata = site / "bright_model-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "bright_model.py").write_text(OUTSIDE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bright-model\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[bigmap.models]\nbright = bright_model:BrightModel\n"
    )
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), root])}


@pytest.mark.slow
def test_a_model_of_another_package_is_shown_and_maps(tmp_path, outside):
    write_scenes(tmp_path / "scenes")
    write_recipe(tmp_path / "recipe.yaml", model={"name": "bright", "options": {"threshold": 0.01}})

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "bigmap.cli", *arguments]
        done = subprocess.run(
            command, env=outside, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    facts = json.loads(run("models", "show", "bright", "--json"))
    assert (facts["paper"], facts["options"]) == ("nobody 2026", {"threshold": 0.2})
    run("run", "recipe.yaml")
    command = (
        "import bigmap; m = bigmap.open_map('map.zarr');"
        "v = m['class'].values; print(sorted(set(v.ravel().tolist())), v.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], env=outside, cwd=tmp_path, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    # Red is DN 600 without offset: 0.06, above the threshold wherever the area is.
    assert "7" in done.stdout
    assert "3" not in done.stdout.partition("]")[0]


def test_show_tells_what_a_model_is(capsys):
    code, text, _ = call(capsys, "models", "show", "spinet", "--set", "size=small")
    assert code == 0
    assert "paper: Valsesia & Magli 2022" in text
    assert "size=small" in text
    assert "fusion" in text
    small = json.loads(call(capsys, "models", "show", "spinet", "--set", "size=small", "--json")[1])
    assert small["upscale"] == 4
    assert len(small["bands"]) == 12
    assert 0 < small["parameters"] < 300_000
    assert small["gflop_per_km2"] > 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nope"], "model.name: 'nope' is unknown"),
        (["show", "spinet", "--set", "sise=small"], "model.options.sise is unknown to spinet"),
        (["show", "spinet", "--set", "size=tiny"], "tiny"),
        (["show", "spinet", "--set", "size"], "write it as option=value"),
        (["show", "absent.safetensors"], "no such file"),
        (["import", "ndvi", "x.pt", "--out", "y.safetensors"], "ndvi has no weights"),
        (["import", "piunet", "absent.pt", "--out", "y.safetensors"], "absent.pt: no such file"),
    ],
)
def test_mistakes_are_one_sentence(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, errors = call(capsys, "models", *arguments)
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1


def test_weights_of_ones_own_training_are_imported_with_a_card(capsys, tmp_path, monkeypatch):
    """A network without published names takes a PyTorch file with our names."""
    monkeypatch.chdir(tmp_path)
    trained = build_model("spinet", {"size": "small"}, bands=("red", "nir"))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01)
    torch.save({"state_dict": trained.network.state_dict()}, "own.pt")
    options = ["--set", "size=small", "--bands", "red,nir", "--data", "my fields"]
    code, text, _ = call(
        capsys, "models", "import", "spinet", "own.pt", "--out", "own.safetensors", *options
    )
    assert code == 0
    assert "own.json" in text
    red, nir = TYPICAL_STATISTICS["red"], TYPICAL_STATISTICS["nir"]
    assert f"with red ({red[0]}, {red[1]}), nir ({nir[0]}, {nir[1]:g})" in text
    assert "where it holds no statistics and --input-* says none, those above are" in text
    card = read_card("own.safetensors")
    assert (card.bands, card.options["size"]) == (("red", "nir"), "small")
    assert card.training.data == "my fields"
    loaded = build_model("spinet", weights="own.safetensors")
    for name, tensor in trained.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], tensor)
    assert "my fields" in call(capsys, "models", "show", "own.safetensors")[1]


def test_an_import_says_what_it_took(capsys, tmp_path, monkeypatch):
    """A whole model of ours, of another scale than reflectance."""
    monkeypatch.chdir(tmp_path)
    torch.save(build_model("srresnet", {"size": "small"}).network.state_dict(), "own.pt")
    command = ["models", "import", "srresnet", "own.pt", "--out", "w.safetensors"]
    options = ["--set", "size=small", "--bands", "red, green, blue", "--input-scale", "1e4"]
    numbers = ["--input-mean", "500,600,700", "--input-std", "1000"]
    code, text, error = call(capsys, *command, *options, *numbers)
    assert code == 0, error
    assert "with red (0.05, 0.1), green (0.06, 0.1), blue (0.07, 0.1)" in text
    assert "output: what the network gives, times deviation, plus mean" in text
    assert "size=small" in text
    statistics = build_model("srresnet", weights="w.safetensors").statistics
    assert statistics.mean.tolist() == pytest.approx([0.05, 0.06, 0.07])
    code, _, error = call(capsys, *command, *options, "--input-mean", "half")
    assert code == 2
    assert "--input-mean 'half': write numbers with commas between" in error


def test_a_checkpoint_of_another_network_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1.weight": torch.zeros(3)}, "own.pt")
    code, _, errors = call(capsys, "models", "import", "piunet", "own.pt", "--out", "y.safetensors")
    assert code == 2
    assert "it is not a published PIUnet" in errors
    assert not Path("y.safetensors").exists()
