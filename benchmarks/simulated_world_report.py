"""Compare the simulated world with real scenes and write docs/simulation.md with its plots.

    python -m benchmarks.simulated_world_report [--real ../shared/data] [--cache FOLDER]

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

from benchmarks.simulated_checks import (
    estimate_shift,
    estimate_transfer,
    fuse_images,
    label_truth,
    measure_psnr,
    measure_spectrum,
    sharpen_image,
)
from bigmap.simulate import SceneRequest, write_scenes
from bigmap.simulate.acquisitions import list_datatakes
from bigmap.simulate.covers import CROPS, Cover
from bigmap.simulate.landscape import build_landscape
from bigmap.simulate.observation import MARGIN_M, start_observation
from bigmap.simulate.painting import paint_ground
from bigmap.simulate.patch import Patch
from bigmap.simulate.sensor import MSI, Optics
from bigmap.simulate.spectra import mix_spectra

mpl.use("Agg")
import matplotlib.dates
import matplotlib.pyplot as plt
import matplotlib.ticker

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BANDS = ("blue", "green", "red", "nir")
SEED = 1
AREAS = tuple(
    SceneRequest(
        "EPSG:32633",
        (left, bottom, left + 9_600, bottom + 9_600),
        dt.date(2023, 8, 8),
        dt.date(2023, 8, 21),
        BANDS,
        SEED,
        scene_px=366,
    )
    for left in (522_000, 580_560)
    for bottom in (5_039_100, 5_139_120)
)
"""Squares on a plain lattice over the two real tiles, each within 3 x 3 parts."""
WINDOW_PX = 80
"""Side of a square at 120 m."""
FEWEST = 20
"""Pixels that a distribution needs."""
CLASSES = {"vegetation": (4,), "bare": (5,), "water": (6,)}
PATCH = Patch("EPSG:32631", 452_040, 4_631_040, 180, 180)
FRAME = MARGIN_M * 2 // 5
SCL_NAMES = (
    "no data", "defective", "dark", "shadow", "vegetation", "bare", "water", "unclassified",
    "cloud, medium", "cloud, high", "cirrus", "snow",
)  # fmt: skip


@dataclass
class Scenes:
    """Scenes at 120 m: images (band, y, x) and scene classifications (y, x)."""

    images: list[np.ndarray]
    scl: list[np.ndarray]

    def take(self, codes: tuple[int, ...]) -> np.ndarray:
        """Return the pixels of some classes, (band, pixel)."""
        chosen = [
            image[:, np.isin(scl, codes) & (image > 0).all(axis=0)]
            for image, scl in zip(self.images, self.scl, strict=True)
        ]
        return np.concatenate(chosen, axis=1)


@dataclass
class Squares:
    """One clear date of each area: images at 120 m and the near infrared at 10 m."""

    averaged: list[np.ndarray]
    picked: list[np.ndarray]
    fine: list[np.ndarray]


def read_real(folder: Path) -> Scenes:
    scenes = Scenes([], [])
    for item in json.loads((folder / "items.json").read_text())["features"]:
        assets = item["assets"]
        image = np.stack([read_band(folder / assets[band]["href"]) for band in BANDS]) / 1e4
        scenes.images.append(image)
        scenes.scl.append(read_band(folder / assets["scl"]["href"]))
    return scenes


def read_band(file: Path) -> np.ndarray:
    with rasterio.open(file) as source:
        return source.read(1)


def read_simulated(cache: Path) -> tuple[Scenes, Scenes, Squares]:
    """Bring the areas to 120 m by averages and by picking every twelfth pixel."""
    averaged, picked = Scenes([], []), Scenes([], [])
    squares = Squares([], [], [])
    for area in AREAS:
        best = -1.0
        for fine, scl in mosaic_days(write_scenes(area, cache), area):
            coarse = fine.reshape(4, WINDOW_PX, 12, WINDOW_PX, 12).mean((2, 4))
            sparse = fine[:, 5::12, 5::12]
            blocks = scl.reshape(WINDOW_PX, 6, WINDOW_PX, 6)
            # A mean is called by the class that most of its pixels have, if one has.
            counts = np.stack([(blocks == code).mean(axis=(1, 3)) for code in range(12)])
            most = np.where(counts.max(axis=0) > 0.5, counts.argmax(axis=0), 0)
            averaged.images.append(coarse)
            averaged.scl.append(most)
            picked.images.append(sparse)
            picked.scl.append(scl[2::6, 2::6])
            clear = np.isin(scl, (4, 5, 6)).mean()
            if clear > best:
                best, chosen = clear, (coarse, sparse, fine[3])
        for group, image in zip(
            (squares.averaged, squares.picked, squares.fine), chosen, strict=True
        ):
            group.append(image)
    return averaged, picked, squares


def mosaic_days(items: Path, area: SceneRequest):
    """Yield the mosaics of each day: bands (band, y, x) and classes (y, x)."""
    features = json.loads(items.read_text())["features"]
    for day in sorted({item["properties"]["datetime"][:10] for item in features}):
        chosen = [item for item in features if item["properties"]["datetime"][:10] == day]
        layers = [
            merge([items.parent / item["assets"][name]["href"] for item in chosen],
                  bounds=area.bounds)[0][0]
            for name in (*BANDS, "scl")
        ]  # fmt: skip
        yield np.stack(layers[:-1]).astype(np.float32) / 1e4, layers[-1]


def plot_histograms(scenes: dict[str, Scenes]) -> str:
    figure, axes = plt.subplots(len(CLASSES), 5, figsize=(17, 8))
    rows = ["| class, band | " + " | ".join(f"{name} 5 / 50 / 95 %" for name in scenes) + " |",
            "|---" * (len(scenes) + 1) + "|"]  # fmt: skip
    for line, (label, codes) in zip(axes, CLASSES.items(), strict=True):
        pixels = {name: part.take(codes) for name, part in scenes.items()}
        for axis, band in zip(line, (*BANDS, "NDVI"), strict=True):
            values = {name: select(part, band) for name, part in pixels.items()}
            high = 0.6 if band == "nir" and label != "water" else 0.25
            draw_histograms(axis, values, (-1, 1) if band == "NDVI" else (0, high))
            axis.set_title(f"{label}: {band}")
            cells = " | ".join(quantiles(part) for part in values.values())
            rows.append(f"| {label}, {band} | {cells} |")
    axes[0, 0].legend()
    save(figure, "histograms")
    lines = ["", "| correlation | " + " | ".join(scenes) + " |", "|---" * (len(scenes) + 1) + "|"]
    matrices = [np.corrcoef(part.take((4, 5))) for part in scenes.values()]
    for i in range(4):
        for j in range(i):
            cells = " | ".join(f"{matrix[i, j]:.2f}" for matrix in matrices)
            lines.append(f"| {BANDS[j]}, {BANDS[i]} | {cells} |")
    return "\n".join(rows + lines)


def select(pixels: np.ndarray, band: str) -> np.ndarray:
    if band == "NDVI":
        return (pixels[3] - pixels[2]) / (pixels[3] + pixels[2])
    return pixels[BANDS.index(band)]


def draw_histograms(axis, values: dict[str, np.ndarray], span: tuple[float, float]) -> None:
    for order, (name, part) in enumerate(values.items()):
        if len(part) >= FEWEST:
            axis.hist(part, bins=60, range=span, density=True, histtype="step", label=name,
                      color=f"C{order}")  # fmt: skip
    axis.set_yticks([])


def quantiles(values: np.ndarray) -> str:
    if len(values) < FEWEST:
        return f"only {len(values)} pixels"
    return " / ".join(f"{part:.3f}" for part in np.percentile(values, (5, 50, 95)))


def plot_spectra(real: Scenes, squares: Squares, slovenia: Path) -> str:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    rows = ["| slope of the power spectrum | real | simulated, averaged | simulated, picked |",
            "|---|---|---|---|"]  # fmt: skip
    clearest = max(range(len(real.scl)), key=lambda k: np.isin(real.scl[k], (4, 5, 6)).mean())
    for axis, band in zip(axes, ("red", "nir"), strict=False):
        index = BANDS.index(band)
        image = real.images[clearest][index]
        windows = [
            image[r : r + WINDOW_PX, c : c + WINDOW_PX]
            for r in (200, 450, 650) for c in (200, 450, 650)
        ]  # fmt: skip
        groups = {
            "real": windows,
            "simulated, averaged": [part[index] for part in squares.averaged],
            "simulated, picked": [part[index] for part in squares.picked],
        }
        cells = draw_spectra(axis, groups)
        axis.set_title(f"{band} at 120 m")
        rows.append(f"| {band}, 120 m | {' | '.join(cells)} |")
    pieces = [fine[r : r + 100, c : c + 100] for fine in squares.fine
              for r in (100, 400, 700) for c in (100, 400, 700)]  # fmt: skip
    cells = draw_spectra(
        axes[2], {"real": read_slovenian_nir(slovenia), "simulated, averaged": pieces}
    )
    axes[2].set_title("nir at 10 m, squares of 1 km")
    rows.append(f"| nir, 10 m | {' | '.join(cells)} | |")
    axes[0].legend()
    save(figure, "spectra")
    return "\n".join(rows)


def draw_spectra(axis, groups: dict[str, list[np.ndarray]]) -> list[str]:
    """Draw the spectra of groups of images; return their slopes: lowest, median, highest."""
    cells = []
    for order, (name, images) in enumerate(groups.items()):
        spectra = [measure_spectrum(image) for image in images]
        for number, (frequency, power) in enumerate(spectra):
            label = name if number == 0 else None
            axis.loglog(frequency, power, color=f"C{order}", alpha=0.45, lw=1, label=label)
        slopes = [fit_slope(*spectrum) for spectrum in spectra]
        cells.append(f"{min(slopes):.2f} / {np.median(slopes):.2f} / {max(slopes):.2f}")
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.set_xlabel("cycles per pixel")
    return cells


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


LAND_USE = {
    "cultivated": (1, CROPS),
    "forest": (2, (Cover.BROADLEAF,)),
    "grassland": (3, (Cover.MEADOW, Cover.PASTURE)),
}
"""Codes in the real land use, and the covers that stand for them."""
TOP_BANDS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir16": "B11"}
SLOVENIAN_PATCH = Patch("EPSG:32633", 510_000, 5_120_000, 200, 200)


def raise_to_top(surface: np.ndarray, band: str, day: dt.date) -> np.ndarray:
    """Return reflectance at the top of a clean atmosphere, by single scattering.

    Rayleigh optical depth after J. Hansen and L. Travis (1974, doi:10.1007/BF00168069); aerosol
    of depth 0.15 at 0.55 um with an Angstrom exponent of 1.3 and a Henyey-Greenstein phase of
    asymmetry 0.65, all assumed.
    """
    wave = MSI[band].wavelength_um
    rayleigh = 0.008569 * wave**-4 * (1 + 0.0113 * wave**-2 + 0.00013 * wave**-4)
    aerosol = 0.15 * (wave / 0.55) ** -1.3
    sun = sine_of_sun(day)
    phase = 0.75 * (1 + sun**2)
    haze = (1 - 0.65**2) / (1 + 0.65**2 + 2 * 0.65 * sun) ** 1.5
    path = (rayleigh * phase + 0.95 * aerosol * haze) / (4 * sun)
    return path + surface * np.exp(-(0.5 * rayleigh + 0.2 * aerosol) * (1 / sun + 1))


def sine_of_sun(day: dt.date) -> float:
    """Return the sine of the sun's elevation over Slovenia at 10:00 UTC."""
    declination = np.radians(-23.44 * np.cos(2 * np.pi * (day.timetuple().tm_yday + 10) / 365))
    latitude, hour = np.radians(46.2), np.radians(-14.4)
    return float(
        np.sin(latitude) * np.sin(declination)
        + np.cos(latitude) * np.cos(declination) * np.cos(hour)
    )


def plot_land_use(slovenia: Path) -> str:
    """Compare pixels of 10 m by band and land use at the top of the atmosphere."""
    classes = read_band(slovenia / "lulc_10m.tif")
    landscape = build_landscape(SEED, SLOVENIAN_PATCH)
    covers = landscape.cover.reshape(400, 4, 400, 4)
    names = list(TOP_BANDS)
    real = {name: [] for name in LAND_USE}
    simulated = {name: [] for name in LAND_USE}
    for day, images in read_clear_dates(slovenia):
        spectra = mix_spectra(landscape.units, day)
        ground = []
        for band in names:
            fine = paint_ground(landscape, spectra, {band: 1.0})
            coarse = fine.reshape(400, 4, 400, 4).mean(axis=(1, 3))
            ground.append(raise_to_top(coarse, band, day))
        for name, (code, chosen) in LAND_USE.items():
            pure = np.isin(covers, chosen).all(axis=(1, 3))
            simulated[name].append(np.stack(ground)[:, pure])
            real[name].append(images[:, classes == code])
    figure, axes = plt.subplots(len(LAND_USE), len(names), figsize=(17, 8))
    rows = ["| land use, band | real 5 / 50 / 95 % | simulated 5 / 50 / 95 % |", "|---|---|---|"]
    for line, name in zip(axes, LAND_USE, strict=True):
        pair = [np.concatenate(part[name], axis=1) for part in (real, simulated)]
        for index, (axis, band) in enumerate(zip(line, names, strict=True)):
            values = {"real": pair[0][index], "simulated": pair[1][index]}
            draw_histograms(axis, values, (0, 0.6 if band in ("nir", "swir16") else 0.25))
            axis.set_title(f"{name}: {band}")
            cells = " | ".join(quantiles(part) for part in values.values())
            rows.append(f"| {name}, {band} | {cells} |")
    axes[0, 0].legend()
    save(figure, "land_use")
    return "\n".join(rows)


def read_clear_dates(folder: Path):
    """Yield day and bands (band, y, x) of the L1C scenes without clouds."""
    for item in json.loads((folder / "items.json").read_text())["features"]:
        assets = {key.lower(): value["href"] for key, value in item["assets"].items()}
        if read_band(folder / assets["clm"]).mean() < 0.02:
            day = dt.datetime.fromisoformat(item["properties"]["datetime"]).date()
            images = [read_band(folder / assets[code.lower()]) for code in TOP_BANDS.values()]
            yield day, np.stack(images) / 1e4


def plot_seasons(slovenia: Path) -> str:
    with rasterio.open(slovenia / "ndvi_68_dates.tif") as source:
        ndvi = source.read().astype(float)
    with rasterio.open(slovenia / "cloud_mask_68_dates.tif") as source:
        cloudy = source.read() > 0
    classes = read_band(slovenia / "lulc_10m.tif")
    days = read_days(slovenia)
    ndvi[cloudy | ~np.isfinite(ndvi)] = np.nan
    landscape = build_landscape(SEED, SLOVENIAN_PATCH)
    figure, axes = plt.subplots(1, 3, figsize=(16, 3.6), sharey=True)
    rows = [("| class | clear dates | correlation | simulated - real, April to October "
            "| November to March |"), "|---|---|---|---|---|"]  # fmt: skip
    for axis, (name, (code, covers)) in zip(axes, LAND_USE.items(), strict=True):
        with np.errstate(all="ignore"):
            real = np.array([np.nanmean(image[classes == code]) for image in ndvi])
        share = np.array([np.isfinite(image[classes == code]).mean() for image in ndvi])
        real[share < 0.5] = np.nan
        ground, top = np.array([simulate_ndvi(landscape, covers, day) for day in days]).T
        axis.plot(days, real, "o", label="real, top of atmosphere")
        axis.plot(days, ground, "-", alpha=0.5, label="simulated, ground")
        axis.plot(days, top, "-", label="simulated, top of atmosphere")
        axis.set_title(name)
        axis.xaxis.set_major_locator(mpl.dates.YearLocator())
        good = np.isfinite(real)
        summer = np.array([4 <= day.month <= 10 for day in days])
        biases = [np.mean((top - real)[good & part]) for part in (summer, ~summer)]
        correlation = np.corrcoef(top[good], real[good])[0, 1]
        rows.append(
            f"| {name} | {good.sum()} | {correlation:.2f} | {biases[0]:+.2f} | {biases[1]:+.2f} |"
        )
    axes[0].legend(fontsize=8)
    save(figure, "seasons")
    return "\n".join(rows)


def read_days(folder: Path) -> list[dt.date]:
    stamps = json.loads((folder / "timestamps_68_dates.json").read_text())
    stamps = stamps if isinstance(stamps, list) else next(iter(stamps.values()))
    return [dt.datetime.fromisoformat(stamp.replace("Z", "+00:00")).date() for stamp in stamps]


def simulate_ndvi(landscape, covers, day: dt.date) -> tuple[float, float]:
    """Return the mean NDVI of some covers on the ground and at the top of the atmosphere."""
    mean, _ = mix_spectra(landscape.units, day)
    weight = np.bincount(landscape.unit.ravel(), minlength=len(mean))
    weight = weight * np.isin(landscape.units.cover, covers)
    ground = mean[:, 3], mean[:, 7]
    top = [raise_to_top(part, band, day) for part, band in zip(ground, ("red", "nir"), strict=True)]
    return tuple(
        float(np.average((nir - red) / (nir + red), weights=weight)) for red, nir in (ground, top)
    )


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
        averaged, picked, squares = read_simulated(options.cache or Path(folder))
    slovenia = options.real / "slovenia"
    draw_scene()
    sections = {
        "HISTOGRAMS": plot_histograms(
            {"real": real, "simulated, averaged": averaged, "simulated, picked": picked}
        ),
        "LANDUSE": plot_land_use(slovenia),
        "SPECTRA": plot_spectra(real, squares, slovenia),
        "SEASONS": plot_seasons(slovenia),
        "CLASSIFICATION": compare_classifications(real, picked),
        "INSTRUMENT": recover_instrument(),
    }
    text = (DOCS / "simulation.template.md").read_text()
    for name, content in sections.items():
        text = text.replace(f"{{{{{name}}}}}", content)
    (DOCS / "simulation.md").write_text(text)
    print("\n\n".join(sections.values()))


if __name__ == "__main__":
    main()
