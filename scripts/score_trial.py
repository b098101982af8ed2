"""Score a map of simulated scenes against the truth below them, and draw both.

    python scripts/score_trial.py maps/catalonia-trial.zarr

Prints how well the map finds cropland and writes ``<map>.truth.png`` beside it: map and truth.
The truth is rendered on the map's own pixels, block by block. Scores are those of the pixels
that the map classifies (formulas in ``bigmap.learning.metrics``), nan where they are undefined, and
``area mapped`` is their share of the recipe's area.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from affine import Affine

import bigmap
from bigmap.area import read_area
from bigmap.config.sources import SimulatedSource
from bigmap.errors import BigmapError, OutputError
from bigmap.learning.metrics import ClassScores, ConfusionMatrix
from bigmap.mapping.run_folder import RunFolder
from bigmap.simulate import render_truth

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

TRUTH_M = 2.5
"""Pixel size of the truth; the map's pixels are compared with those that hold their centres."""
BLOCK_PX = 2048
PICTURE_PX = 1600
INK = "#1f2421"
CROPLAND = "cropland"


class Trial:
    """A map of simulated scenes, its grid and its legend."""

    def __init__(self, path: str) -> None:
        """Open the map.

        Raises
        ------
        OutputError
            If the map was made from real scenes, whose truth nobody knows, or has no cropland.
        """
        recipe, _ = RunFolder(path.rstrip("/")).read_recipe()
        if not isinstance(recipe.source, SimulatedSource):
            raise OutputError(
                f"{path}: was made from real scenes (source.kind {recipe.source.kind}), whose "
                "truth is unknown; score a map made with --source simulated"
            )
        self.layer = bigmap.open_map(path)["class"]
        attributes = self.layer.attrs
        names = [name.replace("_", " ") for name in attributes["flag_meanings"].split()]
        colours = attributes["flag_colors"].split()
        values = attributes["flag_values"]
        self.legend = {n: (v, c) for n, v, c in zip(names, values, colours, strict=True)}
        if CROPLAND not in self.legend:
            raise OutputError(f"{path}: has no class {CROPLAND}, only {', '.join(names)}")
        self.nodata = attributes["nodata"]
        self.crs, self.seed = recipe.grid.crs, recipe.source.seed
        self.area_km2 = read_area(crs=self.crs, **recipe.area.model_dump()).area_km2
        self.gsd_m = abs(float(self.layer.x[1] - self.layer.x[0]))

    def blocks(self):
        """Yield the classes and the true cropland of blocks that hold mapped pixels.

        Yields
        ------
        place, classes, truth
            Slices (y, x) in the map, and uint8 and bool arrays of that size.
        """
        height, width = self.layer.shape
        for row in range(0, height, BLOCK_PX):
            for column in range(0, width, BLOCK_PX):
                place = slice(row, row + BLOCK_PX), slice(column, column + BLOCK_PX)
                block = self.layer[place]
                classes = block.values
                if (classes != self.nodata).any():
                    yield place, classes, self.render(block.x.values, block.y.values)

    def render(self, x, y):
        """True cropland at pixel centres, bool (y, x)."""
        columns = np.floor(x / TRUTH_M).astype(int)
        rows = np.floor(-y / TRUTH_M).astype(int)
        shape = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        corner = Affine(TRUTH_M, 0, columns[0] * TRUTH_M, 0, -TRUTH_M, -rows[0] * TRUTH_M)
        truth = render_truth(self.crs, corner, shape, seed=self.seed, layer="cropland")
        return truth[np.ix_(rows - rows[0], columns - columns[0])] > 0


def name_scores(scores: ClassScores) -> dict[str, float]:
    """Scores of cropland, the second of the two classes, by the names that are printed."""
    return {
        "MCC": scores.mcc,
        "IoU of cropland": float(scores.iou[1]),
        "precision": float(scores.precision[1]),
        "recall": float(scores.recall[1]),
        "overall accuracy": scores.accuracy,
    }


def score_map(path: str) -> tuple[dict[str, float], Path | None]:
    """Score a map and draw it beside the truth; the picture is None where nothing is mapped."""
    trial = Trial(path)
    cropland = trial.legend[CROPLAND][0]
    matrix = ConfusionMatrix((0, 1))
    # A power of two, so that every step-th pixel of each block is one of the picture.
    step = 2 ** max(0, math.ceil(math.log2(max(trial.layer.shape) / PICTURE_PX)))
    thumbs = np.full((2, *(math.ceil(side / step) for side in trial.layer.shape)), trial.nodata)
    other = next(value for name, (value, _) in trial.legend.items() if name != CROPLAND)
    for place, classes, truth in trial.blocks():
        mapped = classes != trial.nodata
        matrix.update(classes == cropland, truth, valid=mapped)
        true_classes = np.where(mapped, np.where(truth, cropland, other), trial.nodata)
        small = tuple(slice(part.start // step, part.stop // step) for part in place)
        thumbs[0][small] = classes[::step, ::step]
        thumbs[1][small] = true_classes[::step, ::step]
    counted = matrix.compute()
    mapped_km2 = counted.pixels * trial.gsd_m**2 / 1e6
    scores = {**name_scores(counted), "area mapped": mapped_km2 / trial.area_km2}
    if not mapped_km2:
        return scores, None
    picture = Path(path.rstrip("/").removesuffix(".zarr") + ".truth.png")
    draw(trial, thumbs, step, picture)
    return scores, picture


def draw(trial: Trial, thumbs, step: int, picture: Path) -> None:
    """Draw map and truth side by side, cut to what is mapped, in the colours of the legend."""
    rows, columns = (np.flatnonzero((thumbs[0] != trial.nodata).any(axis=axis)) for axis in (1, 0))
    thumbs = thumbs[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    painted = np.ones((*thumbs.shape, 3))
    for value, colour in trial.legend.values():
        painted[thumbs == value] = to_rgb(colour)
    height, width = thumbs.shape[1:]
    size = (10.4, 5.2 * height / width + 0.9)
    figure, axes = plt.subplots(1, 2, figsize=size, facecolor="white", dpi=130)
    drawn = f", one pixel in {step} along each axis" if step > 1 else ""
    for axis, image, name in zip(axes, painted, ("map", "truth"), strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(f"{name}, {trial.gsd_m:g} m{drawn}", loc="left", fontsize=11, color=INK)
        axis.set_axis_off()
    handles = [Patch(color=colour, label=name) for name, (_, colour) in trial.legend.items()]
    axes[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=4, frameon=False)
    figure.tight_layout()
    figure.savefig(picture, facecolor="white")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("map", help="a map that bigmap run has made from simulated scenes")
    try:
        scores, picture = score_map(parser.parse_args().map)
    except BigmapError as error:
        sys.stderr.write(f"score_trial: {error}\n")
        sys.exit(2)
    print("against the truth of the simulated world:")
    for name, value in scores.items():
        print(f"  {name:<17}{value:7.3f}")
    print(f"map | truth: {picture}" if picture else "nothing is mapped, so nothing is drawn")


if __name__ == "__main__":
    main()
