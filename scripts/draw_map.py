"""Draw a finished map beside the clearest scene it was made from.

    python scripts/draw_map.py maps/catalonia-trial.zarr docs/img/catalonia-trial.png

The scene is true colour (red, green, blue), the map the class layer in the legend's colours.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

import bigmap
from bigmap.config import parse_recipe
from bigmap.mapping.run_folder import RunFolder

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

INK, SURFACE = "#1f2421", "#ffffff"
MAX_PX = 1500


def open_scene(recipe):
    """The clearest date in true colour: reflectance (y, x, 3), its day, and left, top, gsd."""
    # A cube has the bands of the recipe's model; this one has those of a true-colour picture.
    raw = recipe.model_dump(mode="json")
    raw["model"] = {"name": "small-conv", "options": {"upscale": 1}}
    raw["output"]["layers"] = None
    raw["grid"]["shard_px"] = raw["grid"]["block_px"]
    raw["grid"]["chunk_px"] = raw["grid"]["core_px"]
    masks = bigmap.open_cube(recipe).clear
    clear = masks.mean(("y", "x")).compute(scheduler="threads")
    day = str(clear.time.values[int(clear.values.argmax())])[:10]
    raw["source"] |= {"start": day, "end": day}
    cube = bigmap.open_cube(parse_recipe(raw)).isel(time=0)
    cube = cube.sel(band=["red", "green", "blue"]).compute(scheduler="threads")
    reflectance = cube.values * cube.attrs["dn_scale"] + cube.attrs["dn_offset"]
    reflectance = np.where(cube.values == 0, np.nan, reflectance).transpose(1, 2, 0)
    return reflectance, day, cube


def stretch(reflectance):
    """Reflectance to display values: 2nd to 98th percentile, square root; white without data."""
    low, high = np.nanpercentile(reflectance, [1, 99])
    shown = np.sqrt(np.clip((reflectance - low) / (high - low), 0, 1))
    return np.nan_to_num(shown, nan=1.0)


def draw(path: str, picture: Path) -> None:
    """Draw scene and map side by side."""
    recipe, _ = RunFolder(path).read_recipe()
    dataset = bigmap.open_map(path)
    scene, day, cube = open_scene(recipe)
    half = float(cube.x[1] - cube.x[0]) / 2
    layer = dataset["class"].sel(
        x=slice(float(cube.x[0]) - half, float(cube.x[-1]) + half),
        y=slice(float(cube.y[0]) + half, float(cube.y[-1]) - half),
    )
    step = max(1, max(layer.shape) // MAX_PX)
    values = layer.values[::step, ::step]
    attributes = layer.attrs
    colours = attributes["flag_colors"].split()
    names = attributes["flag_meanings"].split()
    painted = np.ones((*values.shape, 3))
    for value, colour in zip(attributes["flag_values"], colours, strict=True):
        painted[values == value] = to_rgb(colour)

    height, width = values.shape
    size = 5.2
    figure, axes = plt.subplots(
        1, 2, figsize=(2 * size, size * height / width + 0.9), facecolor=SURFACE, dpi=130
    )
    simulated = recipe.source.kind == "simulated"
    fine = recipe.grid.gsd_m * scene.shape[0] / layer.shape[0]
    titles = (
        f"{'Simulated scene' if simulated else 'Sentinel-2'}, {day}, {recipe.grid.gsd_m:g} m",
        f"{recipe.model.name}, {fine:g} m",
    )
    for axis, image, title in zip(axes, (stretch(scene), painted), titles, strict=True):
        axis.imshow(image, interpolation="nearest", aspect="equal")
        axis.set_title(title, loc="left", fontsize=11, color=INK)
        axis.set_axis_off()
    present = [i for i, value in enumerate(attributes["flag_values"]) if (values == value).any()]
    axes[1].legend(
        handles=[Patch(color=colours[i], label=names[i].replace("_", " ")) for i in present],
        loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False, labelcolor=INK,
    )  # fmt: skip
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, facecolor=SURFACE)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", help="a map made by bigmap run")
    parser.add_argument("picture", type=Path, help="a PNG file to write")
    given = parser.parse_args()
    draw(given.map, given.picture)


if __name__ == "__main__":
    main()
