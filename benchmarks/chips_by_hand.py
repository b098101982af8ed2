"""What one writes today instead of ``bigmap extract``: python chips_by_hand.py case.json folder."""

import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window
from scipy.ndimage import binary_dilation


def main(case, folder):
    """Cut every chip from every date, keep the clearest dates, and write one file each."""
    side, upscale = case["chip_px"], case["upscale"]
    scenes = []
    for item in case["items"]:  # each file is opened once, not once for each chip
        files = {name: rasterio.open(href) for name, href in item["files"].items()}
        scenes.append((item["day"], item["offset"], files))
    labels = rasterio.open(case["labels"])
    bands = case["bands"]
    for number, (col, row) in enumerate(case["chips"]):
        images, clears, days = [], [], []
        for day, offset, files in scenes:
            window = Window(col, row, side, side)
            image = np.stack([files[band].read(1, window=window) for band in bands])
            # The mask is of 20 m, and grows by two pixels of 10 m: so many are read around it.
            half = Window(col // 2 - 1, row // 2 - 1, side // 2 + 2, side // 2 + 2)
            scl = files["scl"].read(1, window=half, boundless=True, fill_value=0)
            scl = scl.repeat(2, axis=0).repeat(2, axis=1)
            bad = (scl != 0) & ~np.isin(scl, case["clear_values"])
            bad = binary_dilation(bad, np.ones((5, 5)))[2:-2, 2:-2]
            clear = (image != 0).all(axis=0) & (scl[2:-2, 2:-2] != 0) & ~bad
            if clear.mean() * 100 < case["min_clear_percent"]:
                continue
            dn = np.where(image == 0, 0, image + np.uint16(1000 + offset * 10_000))
            images.append(dn.astype(np.uint16))
            clears.append(clear)
            days.append(day)
        order = np.argsort([-clear.sum() for clear in clears], kind="stable")[: case["max_dates"]]
        chosen = sorted(order)
        window = Window(
            (col - case["margin"]) * upscale, (row - case["margin"]) * upscale, side * upscale,
            side * upscale,
        )  # fmt: skip
        np.savez_compressed(
            Path(folder) / f"{number}.npz", labels=labels.read(1, window=window),
            images=np.stack([images[i] for i in chosen]),
            clear=np.stack([clears[i] for i in chosen]), days=[days[i] for i in chosen],
        )  # fmt: skip


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    main(json.loads(Path(sys.argv[1]).read_text()), target)
