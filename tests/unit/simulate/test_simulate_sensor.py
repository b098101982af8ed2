"""What the simulated instrument does can be recovered from its images."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.simulated_checks import (
    estimate_shift,
    estimate_transfer,
    fuse_images,
    measure_psnr,
    sharpen_image,
)
from bigmap.draws import hash_ints
from bigmap.simulate.acquisitions import Datatake, list_datatakes
from bigmap.simulate.covers import Cover
from bigmap.simulate.landscape import Landscape, build_landscape
from bigmap.simulate.noise import sample_noise, to_normal
from bigmap.simulate.observation import MARGIN_M, Observation, start_observation
from bigmap.simulate.patch import Patch
from bigmap.simulate.rendering import quantise
from bigmap.simulate.sensor import MSI, Optics, draw_noise
from bigmap.simulate.spectra import mix_spectra
from bigmap.simulate.weather import draw_layer

SEED = 3
PATCH = Patch("EPSG:32631", 452_040, 4_631_040, 120, 120)
FRAME = MARGIN_M * 2 // 5
"""Pixels of 2.5 m around the image."""


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return build_landscape(SEED, PATCH.grow(MARGIN_M))


@pytest.fixture(scope="module")
def clear(landscape: Landscape) -> list[Observation]:
    longitude, latitude = (nodes[::120, ::120] for nodes in PATCH.lonlat)
    datatakes = list_datatakes(SEED, longitude, latitude, dt.date(2024, 5, 1), dt.date(2024, 8, 30))
    seen = [
        start_observation(datatake, landscape)
        for datatake in datatakes
        if draw_layer(datatake.seed).amount < -4
    ]
    return [observation for observation in seen if not observation.weather.cirrus.any()]


def crop_ground(observation: Observation, band: str) -> npt.NDArray[np.float32]:
    return observation.paint(band)[FRAME:-FRAME, FRAME:-FRAME]


def test_shifts_are_recovered(clear: list[Observation]) -> None:
    for observation in clear[:6]:
        ground = crop_ground(observation, "red")
        reference = ground.reshape(240, 4, 240, 4).mean(axis=(1, 3))
        right, down = estimate_shift(observation.observe_band("red"), reference)
        east, north = observation.datatake.shift_m("red", 10)
        assert 10 * right == pytest.approx(east, abs=0.6)
        assert -10 * down == pytest.approx(north, abs=0.6)


@pytest.mark.parametrize("name", ["blue", "red", "nir", "swir16", "coastal"])
def test_mtf_is_recovered(clear: list[Observation], name: str) -> None:
    band = MSI[name]
    optics = Optics(band, pixels=2400 // band.gsd_m, margin_m=MARGIN_M, shift_m=(0, 0))
    image = optics.observe(clear[0].paint(name))
    frequency, transfer = estimate_transfer(
        image, crop_ground(clear[0], name), factor=band.gsd_m * 2 // 5
    )
    assert frequency[-1] == 0.5
    # 40 pixels of 60 m leave few samples per ring.
    assert transfer[-1] == pytest.approx(band.mtf, abs=0.06 if band.gsd_m == 60 else 0.03)


def test_snr_is_that_of_the_mission() -> None:
    band = MSI["red"]
    elevation = np.full((400, 400), 90.0, dtype=np.float32)
    level = np.full((400, 400), np.pi * band.radiance / band.irradiance, dtype=np.float32)
    noise = draw_noise(1, band, level, corner=(-7, 5), sun_elevation=elevation)
    assert float(level[0, 0] / noise.std()) == pytest.approx(band.snr, rel=0.02)


def test_several_dates_hold_more_than_one(clear: list[Observation], landscape: Landscape) -> None:
    """One ground, seen by datatakes that differ in shift and noise alone."""
    first = clear[0].datatake
    takes = [replace(first, seed=observation.datatake.seed) for observation in clear[:8]]
    images = [start_observation(take, landscape).observe_band("red") for take in takes]
    shifts = [estimate_shift(image, images[0]) for image in images]
    ground = crop_ground(clear[0], "red").reshape(480, 2, 480, 2).mean(axis=(1, 3))

    def score(image: npt.NDArray[np.float64]) -> float:
        aligned = fuse_images([image], [estimate_shift(image, ground)], factor=1)[20:-20, 20:-20]
        truth = ground[20:-20, 20:-20]
        slope, level = np.polyfit(aligned.ravel(), truth.ravel(), 1)
        return measure_psnr(slope * aligned + level, truth)

    one = fuse_images(images[:1], [(0, 0)], factor=2)
    many = fuse_images(list(images), shifts, factor=2)
    assert score(many) > score(one) + 0.02
    sharp_one, sharp_many = (
        sharpen_image(image, sigma_px=MSI["red"].sigma_m / 5, noise=0.003) for image in (one, many)
    )
    assert score(sharp_many) > score(sharp_one) + 0.5


def test_a_window_alone_equals_the_same_window_of_a_larger_area(clear: list[Observation]) -> None:
    small = Patch(PATCH.crs, PATCH.left_m + 600, PATCH.top_m - 360, 60, 72)
    alone = start_observation(clear[0].datatake, build_landscape(SEED, small.grow(MARGIN_M)))
    for name in ("red", "swir22", "coastal"):
        gsd = MSI[name].gsd_m
        # Optics are square, so the larger side decides.
        part = Patch(small.crs, small.left_m, small.top_m, 60, 60)
        square = start_observation(alone.datatake, build_landscape(SEED, part.grow(MARGIN_M)))
        window = slice(360 // gsd, 1560 // gsd), slice(600 // gsd, 1800 // gsd)
        whole = quantise(clear[0].observe_band(name))[window]
        np.testing.assert_array_equal(quantise(square.observe_band(name)), whole)
    np.testing.assert_array_equal(square.classify(), clear[0].classify()[18:78, 30:90])


def test_overlapping_tiles_show_the_same(clear: list[Observation]) -> None:
    """Tiles of one zone share the lattice of 60 m, and with it ground, sky and noise."""
    other = Patch(PATCH.crs, PATCH.left_m + 1200, PATCH.top_m + 900, 120, 120)
    neighbour = start_observation(clear[0].datatake, build_landscape(SEED, other.grow(MARGIN_M)))
    mine = quantise(clear[0].observe_band("nir"))[:150, 120:]
    theirs = quantise(neighbour.observe_band("nir"))[90:, :120]
    np.testing.assert_array_equal(mine, theirs)


def test_dates_and_orbits_are_the_real_ones() -> None:
    """Tile 33TWM in August 2023, as its publisher's items list it."""
    found = list_datatakes(
        0, np.array([15.7]), np.array([45.55]), dt.date(2023, 8, 10), dt.date(2023, 8, 20)
    )
    assert [
        (take.platform[-1], take.relative_orbit, take.absolute_orbit) for take in found
    ] == [
        ("b", 79, 33567), ("b", 122, 33610), ("a", 79, 42547), ("a", 122, 42590), ("b", 79, 33710),
    ]  # fmt: skip
    real = dt.datetime(2023, 8, 18, 10, 8, 1, tzinfo=dt.UTC)
    assert abs(found[3].time_at(45.55) - real) < dt.timedelta(seconds=30)
    azimuth, elevation = found[2].locate_sun(np.array([15.7]), np.array([45.56]))
    assert azimuth[0] == pytest.approx(151.83, abs=0.5)
    assert elevation[0] == pytest.approx(55.76, abs=0.5)


def test_clouds_hide_the_ground_and_shadows_lie_away_from_the_sun(landscape: Landscape) -> None:
    longitude, latitude = (nodes[::120, ::120] for nodes in PATCH.lonlat)
    takes = list_datatakes(SEED, longitude, latitude, dt.date(2024, 1, 1), dt.date(2024, 12, 31))
    observations = (start_observation(take, landscape) for take in takes)
    cloudy = next(o for o in observations if 0.2 < o.weather.cloud.mean() < 0.6)
    sky = cloudy.weather
    thick = sky.cloud[:-1, :-1] > 0.95
    blue = cloudy.observe_band("blue").reshape(120, 2, 120, 2).mean(axis=(1, 3))
    assert blue[thick].min() > 0.3
    layer = draw_layer(cloudy.datatake.seed)
    azimuth, elevation = (float(part.mean()) for part in cloudy.sun)
    reach = layer.base_m / np.tan(np.radians(elevation)) / 20
    right, down = estimate_shift(sky.shade, sky.cloud, highest=0.03)
    # A shadow shows what lies towards the sun: north-west of it in the morning.
    expected = reach * np.sin(np.radians(azimuth)), -reach * np.cos(np.radians(azimuth))
    if reach < 25:
        assert (right, down) == pytest.approx(expected, abs=6)


def test_classification_errs_in_stated_ways(landscape: Landscape, clear: list[Observation]) -> None:
    scl = clear[0].classify()
    assert set(np.unique(scl)) <= set(range(2, 12))
    cover = landscape.cover[FRAME:-FRAME, FRAME:-FRAME][4::8, 4::8]
    woods = np.isin(cover, (Cover.BROADLEAF, Cover.CONIFER))
    assert (scl[woods] == 4).mean() > 0.9


def test_noise_has_the_stated_variance() -> None:
    normal = to_normal(hash_ints(5, np.arange(300)[:, None], np.arange(300)[None, :]))
    assert abs(float(normal.mean())) < 0.01
    assert float(normal.std()) == pytest.approx(1, abs=0.01)
    x, y = np.meshgrid(np.arange(0, 40_000, 61.0), np.arange(0, 40_000, 61.0))
    assert float(sample_noise(1, x, y, wavelength_m=500).std()) == pytest.approx(0.78, abs=0.08)


def test_datatakes_differ_only_by_their_own_seed() -> None:
    place = np.array([1.8]), np.array([41.6])
    days = dt.date(2024, 5, 1), dt.date(2024, 5, 31)
    first, second = (list_datatakes(seed, *place, *days) for seed in (1, 2))

    def name(take: Datatake) -> tuple[str, dt.datetime]:
        return take.platform, take.node

    assert [name(take) for take in first] == [name(take) for take in second]
    assert {take.seed for take in first}.isdisjoint(take.seed for take in second)


def test_seasons_have_no_jump(landscape: Landscape) -> None:
    """One day changes no NDVI much, least of all New Year."""
    days = [dt.date(2024, 12, 20) + dt.timedelta(days=step) for step in range(25)]
    spectra = [mix_spectra(landscape.units, day)[0] for day in days]
    ndvi = np.array([(part[:, 7] - part[:, 3]) / (part[:, 7] + part[:, 3]) for part in spectra])
    assert float(np.abs(np.diff(ndvi, axis=0)).max()) < 0.05


def test_dates_are_those_of_the_real_scenes(shared_data: Path) -> None:
    file = shared_data / "sentinel-2-l2a" / "items.json"
    for item in json.loads(file.read_text())["features"]:
        west, south, east, north = item["bbox"]
        place = np.array([(west + east) / 2]), np.array([(south + north) / 2])
        real = dt.datetime.fromisoformat(item["properties"]["datetime"])
        takes = list_datatakes(SEED, *place, real.date(), real.date())
        assert [take.platform for take in takes] == [item["properties"]["platform"]]
        assert f"R{takes[0].relative_orbit:03d}" in item["properties"]["s2:product_uri"]
        assert abs(takes[0].time_at(float(place[1][0])) - real) < dt.timedelta(seconds=30)
