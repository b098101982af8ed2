"""The weights that come with bigmap: what their card says, half precision, and real scenes."""

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import bigmap
from bigmap.cli import app
from bigmap.models import build_model, read_card

WEIGHTS = "bigmap://spinet-small.safetensors"


def test_the_card_says_where_the_weights_come_from():
    card = read_card(WEIGHTS)
    assert card.name == "spinet"
    assert card.options["size"] == "small"
    assert card.training.is_simulated
    assert card.training.scores["mcc"] > 0.6
    model = build_model("spinet", weights=WEIGHTS)
    assert model.spec.is_simulated
    assert "simulated scenes" in model.spec.notice
    with pytest.raises(bigmap.BigmapError, match=r"there are bigmap://spinet-small\.safetensors"):
        build_model("spinet", weights="bigmap://another.safetensors")


@pytest.mark.slow
def test_half_precision_changes_few_classes():
    recipe = bigmap.load_recipe(
        "recipes/catalonia.yaml",
        ["source.start=2024-05-01", "source.end=2024-05-31", "source.scene_px=366",
         "grid.cell_px=256", "grid.block_px=256", "grid.shard_px=1024"],
        simulated=True,
    )  # fmt: skip
    cube = bigmap.open_cube(recipe, (0.605, 41.625, 0.611, 41.6295)).compute()
    model = build_model("spinet", weights=WEIGHTS)
    maps = [
        bigmap.predict(cube, model, precision=precision)["class"].values
        for precision in ("float32", "bfloat16")
    ]
    assert 0.1 < (maps[0] == 1).mean() < 0.95
    changed = (maps[0] != maps[1]).mean()
    assert changed < 0.005, f"{100 * changed:.2f} % of {maps[0].size} pixels"


@pytest.mark.real_data
def test_a_run_on_real_scenes_warns_and_names_the_commands(shared_data, tmp_path):
    raw = {
        "name": "real", "area": {"bbox": [14.5525, 45.867, 14.5635, 45.874]},
        "grid": {
            "crs": "EPSG:32633", "gsd_m": 10, "core_px": 64, "cell_px": 64, "block_px": 128,
            "shard_px": 512, "chunk_px": 128,
        },
        "source": {
            "kind": "files", "files": [str(shared_data / "slovenia/items.json")],
            "start": "2015-01-01", "end": "2015-12-31",
            "mask": {"kind": "binary", "asset": "clm", "clear_value": 0},
        },
        "model": {"name": "spinet", "weights": WEIGHTS},
        "output": {"path": str(tmp_path / "map.zarr")},
        "cluster": {"workers": 1},
    }  # fmt: skip
    file = tmp_path / "real.yaml"
    file.write_text(yaml.safe_dump(raw))
    result = CliRunner().invoke(app, ["run", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    assert "warning: these weights have never seen a real scene" in result.output
    assert f"bigmap extract {file}, then bigmap train {file}" in result.output
    opened = bigmap.open_map(str(tmp_path / "map.zarr"))
    assert "simulated scenes" in opened.attrs["bigmap:model"]["notice"]
    assert set(np.unique(opened["class"])) <= {0, 1, 255}
