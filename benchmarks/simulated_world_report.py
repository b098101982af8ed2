"""Compare the simulated world with real scenes and write docs/simulation.md with its plots.

    python benchmarks/simulated_world_report.py [--real ../shared/data] [--cache FOLDER]

Without the real scenes it stops and says so: half a comparison would be none.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import rasterio
from rasterio.merge import merge

from bigmap.simulate import SceneRequest, write_scenes
from bigmap.simulate.acquisitions import list_datatakes
from bigmap.simulate.checks import (
    estimate_shift,
    estimate_transfer,
    fuse_images,
    measure_psnr,
    measure_spectrum,
    sharpen_image,
)
from bigmap.simulate.classification import label_truth
from bigmap.simulate.covers import CROPS, Cover
from bigmap.simulate.landscape import build_landscape
from bigmap.simulate.observation import MARGIN_M, start_observation
from bigmap.simulate.patch import Patch
from bigmap.simulate.sensor import MSI, Optics
from bigmap.simulate.spectra import mix_spectra

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BANDS = ("blue", "green", "red", "nir")
SEED = 1
REAL_AREA = SceneRequest(
    "EPSG:32633",
    (530_000, 4_990_000, 552_000, 5_012_000),
    dt.date(2023, 8, 8),
    dt.date(2023, 8, 21),
    BANDS,
    SEED,
)
PATCH = Patch("EPSG:32631", 452_040, 4_631_040, 180, 180)
FRAME = MARGIN_M * 2 // 5
SCL_NAMES = (
    "no data", "defective", "dark", "shadow", "vegetation", "bare", "water", "unclassified",
    "cloud, medium", "cloud, high", "cirrus", "snow",
)  # fmt: skip


@dataclass
class Scenes:
    """Scenes at 120 m: images (date, band, y, x), and the scene classification."""

    images: list[np.ndarray]
    scl: list[np.ndarray]
    clear: list[np.ndarray]
    fine: list[np.ndarray]

    def clear_pixels(self) -> np.ndarray:
        """Return all clear pixels, (band, pixel)."""
        pairs = zip(self.images, self.clear, strict=True)
        return np.concatenate([image[:, clear] for image, clear in pairs], axis=1)


def read_real(folder: Path) -> Scenes:
    scenes = Scenes([], [], [], [])
    for item in json.loads((folder / "items.json").read_text())["features"]:
        assets = item["assets"]
        image = np.stack([read_band(folder / assets[band]["href"]) for band in BANDS]) / 1e4
        scl = read_band(folder / assets["scl"]["href"])
        scenes.images.append(image)
        scenes.scl.append(scl)
        scenes.clear.append(np.isin(scl, (4, 5)) & (image > 0).all(axis=0))
    return scenes


def read_band(file: Path) -> np.ndarray:
    with rasterio.open(file) as source:
        return source.read(1)


def read_simulated(items: Path) -> Scenes:
    """Mosaic the parts of each day and average to 120 m."""
    features = json.loads(items.read_text())["features"]
    scenes = Scenes([], [], [], [])
    for day in sorted({item["properties"]["datetime"][:10] for item in features}):
        chosen = [item for item in features if item["properties"]["datetime"][:10] == day]
        layers = [
            merge([items.parent / item["assets"][name]["href"] for item in chosen],
                  bounds=REAL_AREA.bounds)[0][0]
            for name in (*BANDS, "scl")
        ]  # fmt: skip
        fine, scl = np.stack(layers[:-1]) / 1e4, layers[-1]
        side = fine.shape[1] // 12
        coarse = fine[:, : 12 * side, : 12 * side].reshape(4, side, 12, side, 12).mean((2, 4))
        blocks = scl[: 6 * side, : 6 * side].reshape(side, 6, side, 6)
        clear = np.isin(blocks, (4, 5)).mean(axis=(1, 3)) > 0.5
        scenes.images.append(coarse)
        scenes.scl.append(blocks[:, 3, :, 3])
        scenes.clear.append(clear)
        scenes.fine.append(fine)
    return scenes


def plot_histograms(real: Scenes, simulated: Scenes) -> str:
    first, second = real.clear_pixels(), simulated.clear_pixels()
    figure, axes = plt.subplots(1, 5, figsize=(18, 3.4))
    rows = []
    for index, name in enumerate((*BANDS, "NDVI")):
        values = [
            (part[3] - part[2]) / (part[3] + part[2]) if name == "NDVI" else part[index]
            for part in (first, second)
        ]
        span = (0, 1) if name in ("NDVI",) else (0, 0.6 if name == "nir" else 0.2)
        for part, label in zip(values, ("real", "simulated"), strict=True):
            axes[index].hist(part, bins=80, range=span, density=True, histtype="step", label=label)
        axes[index].set_title(name)
        quantiles = [np.percentile(part, (5, 50, 95)) for part in values]
        cells = [f"{part[0]:.3f} / {part[1]:.3f} / {part[2]:.3f}" for part in quantiles]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} |")
    axes[0].legend()
    save(figure, "histograms")
    table = ["| band | real 5 / 50 / 95 % | simulated 5 / 50 / 95 % |", "|---|---|---|", *rows]
    correlations = [np.round(np.corrcoef(part), 2) for part in (first, second)]
    lines = ["", "| correlation | real | simulated |", "|---|---|---|"]
    for i in range(4):
        for j in range(i):
            cells = " | ".join(f"{matrix[i, j]:.2f}" for matrix in correlations)
            lines.append(f"| {BANDS[j]}, {BANDS[i]} | {cells} |")
    return "\n".join(table + lines)


def plot_spectra(real: Scenes, simulated: Scenes, slovenia: Path) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    rows = []
    clearest = [
        max(range(len(s.clear)), key=lambda k: s.clear[k].mean()) for s in (real, simulated)
    ]
    for axis, band in zip(axes, ("red", "nir"), strict=False):
        index = BANDS.index(band)
        image = real.images[clearest[0]][index]
        # The same size as the simulated area, away from the tile's nodata.
        windows = [
            image[r : r + 183, c : c + 183] for r in (200, 450, 650) for c in (200, 450, 650)
        ]
        windows.append(simulated.images[clearest[1]][index])
        spectra = [measure_spectrum(window) for window in windows]
        for frequency, power in spectra[:-1]:
            axis.loglog(frequency, power, color="tab:blue", alpha=0.35)
        axis.loglog(*spectra[-1], color="tab:orange", label="simulated")
        axis.set_title(f"{band} at 120 m")
        axis.set_xlabel("cycles per pixel")
        slopes = [fit_slope(*spectrum) for spectrum in spectra]
        rows.append(
            f"| {band}, 120 m | {min(slopes[:-1]):.2f} to {max(slopes[:-1]):.2f} "
            f"| {slopes[-1]:.2f} |"
        )
    scenes = read_slovenian_nir(slovenia)
    pieces = [simulated.fine[clearest[1]][3][r : r + 100, c : c + 100]
              for r in range(200, 2000, 300) for c in range(200, 2000, 300)]  # fmt: skip
    spectra = [[measure_spectrum(image) for image in group] for group in (scenes, pieces)]
    for group, colour in zip(spectra, ("tab:blue", "tab:orange"), strict=True):
        for frequency, power in group:
            axes[2].loglog(frequency, power, color=colour, alpha=0.35)
    axes[2].set_title("nir at 10 m (1 km squares)")
    axes[2].set_xlabel("cycles per pixel")
    axes[0].legend()
    save(figure, "spectra")
    slopes = [[fit_slope(*spectrum) for spectrum in group] for group in spectra]
    cells = [f"{min(group):.2f} to {max(group):.2f}" for group in slopes]
    rows.append(f"| nir, 10 m | {cells[0]} | {cells[1]} |")
    head = ["| slope of the power spectrum | real | simulated |", "|---|---|---|"]
    return "\n".join(head + rows)


def fit_slope(frequency: np.ndarray, power: np.ndarray) -> float:
    """Return the exponent of a power law between 0.04 and 0.4 cycles per pixel."""
    used = (frequency > 0.04) & (frequency < 0.4)
    return float(np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)[0])


def read_slovenian_nir(folder: Path) -> list[np.ndarray]:
    images = []
    for item in json.loads((folder / "items.json").read_text())["features"]:
        assets = item["assets"]
        name = next((key for key in assets if key.lower() in ("b08", "nir")), None)
        mask = next((key for key in assets if key.lower() == "clm"), None)
        if name is None or mask is None:
            continue
        if read_band(folder / assets[mask]["href"]).mean() < 0.02:
            images.append(read_band(folder / assets[name]["href"]).astype(float))
    return images


def plot_seasons(slovenia: Path) -> str:
    with rasterio.open(slovenia / "ndvi_68_dates.tif") as source:
        ndvi = source.read().astype(float)
    with rasterio.open(slovenia / "cloud_mask_68_dates.tif") as source:
        cloudy = source.read() > 0
    classes = read_band(slovenia / "lulc_10m.tif")
    days = read_days(slovenia)
    ndvi[cloudy | ~np.isfinite(ndvi)] = np.nan
    patch = Patch("EPSG:32633", 510_000, 5_120_000, 200, 200)
    landscape = build_landscape(SEED, patch)
    groups = {
        "cultivated": (1, CROPS),
        "forest": (2, (Cover.BROADLEAF,)),
        "grassland": (3, (Cover.MEADOW, Cover.PASTURE)),
    }
    figure, axes = plt.subplots(1, 3, figsize=(16, 3.6), sharey=True)
    rows = []
    for axis, (name, (code, covers)) in zip(axes, groups.items(), strict=True):
        with np.errstate(all="ignore"):
            real = np.array([np.nanmean(image[classes == code]) for image in ndvi])
        share = np.array([np.isfinite(image[classes == code]).mean() for image in ndvi])
        real[share < 0.5] = np.nan
        simulated = np.array([simulate_ndvi(landscape, covers, day) for day in days])
        axis.plot(days, real, "o", label="real, top of atmosphere")
        axis.plot(days, simulated, "-", label="simulated, surface")
        axis.set_title(name)
        good = np.isfinite(real)
        bias = float(np.mean(simulated[good] - real[good]))
        correlation = np.corrcoef(simulated[good], real[good])[0, 1]
        rows.append(f"| {name} | {good.sum()} | {correlation:.2f} | {bias:+.2f} |")
    axes[0].legend()
    save(figure, "seasons")
    head = ["| class | clear dates | correlation | simulated - real |", "|---|---|---|---|"]
    return "\n".join(head + rows)


def read_days(folder: Path) -> list[dt.date]:
    stamps = json.loads((folder / "timestamps_68_dates.json").read_text())
    stamps = stamps if isinstance(stamps, list) else next(iter(stamps.values()))
    return [dt.datetime.fromisoformat(stamp.replace("Z", "+00:00")).date() for stamp in stamps]


def simulate_ndvi(landscape, covers, day: dt.date) -> float:
    mean, _ = mix_spectra(landscape.units, day)
    weight = np.bincount(landscape.unit.ravel(), minlength=len(mean))
    weight = weight * np.isin(landscape.units.cover, covers)
    red, nir = mean[:, 3], mean[:, 7]
    return float(np.average((nir - red) / (nir + red), weights=weight))


def compare_classifications(real: Scenes, simulated: Scenes) -> str:
    shares = [count_classes(scenes.scl) for scenes in (real, simulated)]
    rows = ["| class | real % | simulated % |", "|---|---|---|"]
    rows += [
        f"| {name} | {shares[0][code]:.1f} | {shares[1][code]:.1f} |"
        for code, name in enumerate(SCL_NAMES)
        if code > 1
    ]
    landscape = build_landscape(SEED, PATCH.grow(MARGIN_M))
    confusion = np.zeros((12, 12))
    for datatake in list_takes(dt.date(2024, 1, 1), dt.date(2024, 12, 31))[::2]:
        observation = start_observation(datatake, landscape)
        truth, guess = label_truth(observation.describe_scene()), observation.classify()
        np.add.at(confusion, (truth[guess > 0], guess[guess > 0]), 1)
    groups = {"cloud": (8, 9), "cirrus": (10,), "shadow": (3,), "water": (6,),
              "vegetation": (4,), "bare": (5,), "snow": (11,)}  # fmt: skip
    called = {"cloud": (8, 9), "cirrus": (10,), "shadow or dark": (2, 3), "vegetation": (4,),
              "bare": (5,), "water": (6,), "unclassified": (7,), "snow": (11,)}  # fmt: skip
    rows += ["", "| truly | " + " | ".join(called) + " |", "|---" * (len(called) + 1) + "|"]
    for name, codes in groups.items():
        row = confusion[list(codes)].sum(axis=0)
        if row.sum():
            cells = [f"{100 * row[list(c)].sum() / row.sum():.1f}" for c in called.values()]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def count_classes(images: list[np.ndarray]) -> np.ndarray:
    counts = np.bincount(np.concatenate([image.ravel() for image in images]), minlength=13)
    counts[0] = 0
    return 100 * counts / counts.sum()


def list_takes(start: dt.date, end: dt.date) -> list:
    longitude, latitude = (nodes[::180, ::180] for nodes in PATCH.lonlat)
    return list_datatakes(SEED, longitude, latitude, start, end)


def recover_instrument() -> str:
    landscape = build_landscape(SEED, PATCH.grow(MARGIN_M))
    takes = list_takes(dt.date(2024, 4, 1), dt.date(2024, 9, 30))
    seen = [start_observation(take, landscape) for take in takes]
    clear = [o for o in seen if max(o.weather.cloud.max(), o.weather.cirrus.max()) == 0]
    rows = ["| band | MTF at Nyquist put in | recovered |", "|---|---|---|"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for name, band in MSI.items():
        pixels = 3600 // band.gsd_m
        optics = Optics(band, pixels=pixels, margin_m=MARGIN_M, shift_m=(0, 0))
        ground = clear[0].paint(name)
        inner = ground[FRAME:-FRAME, FRAME:-FRAME]
        frequency, transfer = estimate_transfer(
            optics.observe(ground), inner, factor=band.gsd_m * 2 // 5
        )
        axes[0].plot(frequency, transfer, ".", label=band.code)
        rows.append(f"| {name} | {band.mtf:.2f} | {transfer[-1]:.3f} |")
    axes[0].set(xlabel="cycles per pixel", ylabel="modulation transfer")
    axes[0].legend(ncols=3, fontsize=7)
    pairs = np.array([recover_shift(observation) for observation in clear[:24]])
    axes[1].plot(pairs[:, :2].ravel(), pairs[:, 2:].ravel(), "o")
    axes[1].plot([-6, 6], [-6, 6], "k-", lw=0.5)
    axes[1].set(xlabel="shift put in, m", ylabel="shift recovered, m")
    save(figure, "instrument")
    error = np.abs(pairs[:, :2] - pairs[:, 2:])
    text = (
        f"\nShifts of {len(pairs)} clear datatakes (red, both axes) are recovered by phase "
        f"correlation with a mean error of {error.mean():.2f} m and at most {error.max():.2f} m.\n"
    )
    return "\n".join(rows) + "\n" + text + "\n" + measure_gain(clear, landscape)


def recover_shift(observation) -> tuple[float, float, float, float]:
    ground = observation.paint("red")[FRAME:-FRAME, FRAME:-FRAME]
    reference = ground.reshape(360, 4, 360, 4).mean(axis=(1, 3))
    right, down = estimate_shift(observation.observe_band("red"), reference)
    return *observation.datatake.shift_m("red", 10), 10 * right, -10 * down


def measure_gain(clear: list, landscape) -> str:
    """Measure what several dates add: one ground, datatakes of different shift and noise."""
    first = clear[0].datatake
    takes = [replace(first, seed=o.datatake.seed) for o in clear[:12]]
    images = [start_observation(take, landscape).observe_band("red") for take in takes]
    shifts = [estimate_shift(image, images[0]) for image in images]
    ground = clear[0].paint("red")[FRAME:-FRAME, FRAME:-FRAME]
    truth = ground.reshape(720, 2, 720, 2).mean(axis=(1, 3))

    def score(image: np.ndarray) -> float:
        aligned = fuse_images([image], [estimate_shift(image, truth)], factor=1)[20:-20, 20:-20]
        slope, level = np.polyfit(aligned.ravel(), truth[20:-20, 20:-20].ravel(), 1)
        return measure_psnr(slope * aligned + level, truth[20:-20, 20:-20])

    rows = ["| dates | PSNR of the mean, dB | and sharpened, dB |", "|---|---|---|"]
    for count in (1, 2, 4, 8, 12):
        if count <= len(images):
            mean = fuse_images(images[:count], shifts[:count], factor=2)
            sharp = sharpen_image(mean, sigma_px=MSI["red"].sigma_m / 5, noise=0.003)
            rows.append(f"| {count} | {score(mean):.2f} | {score(sharp):.2f} |")
    return "\n".join(rows)


def draw_scene() -> None:
    landscape = build_landscape(SEED, PATCH.grow(MARGIN_M))
    takes = list_takes(dt.date(2024, 4, 1), dt.date(2024, 8, 31))
    seen = [start_observation(take, landscape) for take in takes]
    clear = next(o for o in seen if o.weather.cloud.max() == 0 and o.weather.cirrus.max() == 0)
    cloudy = next(o for o in seen if 0.1 < o.weather.cloud.mean() < 0.4)
    figure, axes = plt.subplots(1, 4, figsize=(20, 5.4))
    for axis, observation in zip(axes, (clear, cloudy), strict=False):
        image = np.dstack([observation.observe_band(band) for band in ("red", "green", "blue")])
        axis.imshow(np.clip(image / 0.28, 0, 1) ** 0.7)
        axis.set_title(f"{observation.datatake.node:%Y-%m-%d}, 10 m")
    fine = np.dstack([clear.paint(band)[FRAME:-FRAME, FRAME:-FRAME] for band in BANDS[2::-1]])
    axes[2].imshow(np.clip(fine[400:800, 400:800] / 0.28, 0, 1) ** 0.7)
    axes[2].set_title("ground at 2.5 m, 1 km")
    cover = landscape.cover[FRAME:-FRAME, FRAME:-FRAME][400:800, 400:800]
    axes[3].imshow(cover, cmap="tab20", interpolation="nearest")
    axes[3].set_title("cover at 2.5 m, 1 km")
    for axis in axes:
        axis.axis("off")
    save(figure, "scene")


def save(figure: plt.Figure, name: str) -> None:
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(DOCS / "img" / f"simulation_{name}.png", dpi=70)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, default=ROOT / ".." / "shared" / "data")
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    if not (options.real / "sentinel-2-l2a" / "items.json").exists():
        sys.exit(f"{options.real}: no real scenes to compare with; name their folder with --real")
    real = read_real(options.real / "sentinel-2-l2a")
    with tempfile.TemporaryDirectory() as folder:
        simulated = read_simulated(write_scenes(REAL_AREA, options.cache or Path(folder)))
    slovenia = options.real / "slovenia"
    draw_scene()
    sections = {
        "HISTOGRAMS": plot_histograms(real, simulated),
        "SPECTRA": plot_spectra(real, simulated, slovenia),
        "SEASONS": plot_seasons(slovenia),
        "CLASSIFICATION": compare_classifications(real, simulated),
        "INSTRUMENT": recover_instrument(),
    }
    text = (DOCS / "simulation.template.md").read_text()
    for name, content in sections.items():
        text = text.replace(f"{{{{{name}}}}}", content)
    (DOCS / "simulation.md").write_text(text)
    print("\n\n".join(sections.values()))


if __name__ == "__main__":
    main()
