"""The simulated world is a function of place."""

from __future__ import annotations

import numpy as np
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from bigmap.draws import hash_ints, to_uniform
from bigmap.simulate import render_truth
from bigmap.simulate.noise import sample_noise
from bigmap.simulate.patch import Patch, refine
from bigmap.simulate.tiles import SCENE_SIDES_PX, TILE_PX, Tile, list_parts

PLACES = st.tuples(st.floats(-179.9, 179.9), st.floats(-79, 83))


@settings(max_examples=12, deadline=None)
@given(
    row=st.integers(0, 900),
    column=st.integers(0, 900),
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    seed=st.integers(0, 3),
)
def test_truth_of_a_window_is_that_of_the_whole(
    row: int, column: int, height: int, width: int, seed: int
) -> None:
    left, top = 452_000.0, 4_632_000.0
    corner = left + 2.5 * column, top - 2.5 * row
    part = render_truth(
        "EPSG:25831",
        Affine(2.5, 0, corner[0], 0, -2.5, corner[1]),
        (height, width),
        seed=seed,
        layer="parcel",
    )
    # The same window, and 37 more pixels on each side.
    whole = render_truth(
        "EPSG:25831",
        Affine(2.5, 0, corner[0] - 92.5, 0, -2.5, corner[1] + 92.5),
        (height + 74, width + 74),
        seed=seed,
        layer="parcel",
    )
    np.testing.assert_array_equal(part, whole[37:-37, 37:-37])


@settings(max_examples=40, deadline=None)
@given(place=PLACES, side_km=st.floats(0.1, 60), side_px=st.sampled_from(SCENE_SIDES_PX))
def test_parts_cover_any_area(place: tuple[float, float], side_km: float, side_px: int) -> None:
    lon, lat = place
    zone = int((lon + 180) // 6) + 1
    epsg = (32700 if lat < 0 else 32600) + zone
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(lon, lat)
    if lat < 0:
        y = min(y, 10_000_000 - 1000 * side_km)
    bounds = x, y, x + 1000 * side_km, y + 1000 * side_km
    found = list_parts(f"EPSG:{epsg}", bounds, side_px=side_px)
    parts = [part for part in found if part.tile.epsg == epsg]
    covered = shapely.union_all([shapely.box(*part.bounds) for part in parts])
    # Where the area leaves its zone, the next zone's tiles cover it.
    to_lonlat = Transformer.from_crs(epsg, 4326, always_xy=True)
    for east, north in np.random.default_rng(0).uniform(size=(20, 2)):
        point = x + east * 1000 * side_km, y + north * 1000 * side_km
        offset = (to_lonlat.transform(*point)[0] - (6 * zone - 183) + 180) % 360 - 180
        if abs(offset) < 3:
            assert covered.covers(shapely.Point(point))
    assert all(part.bounds[0] % 60 == 0 and part.bounds[3] % 60 == 0 for part in parts)


@given(zone=st.integers(1, 60), column=st.integers(1, 8), row=st.integers(0, 94))
def test_tiles_overlap_and_have_names_of_their_own(zone: int, column: int, row: int) -> None:
    tile, right = Tile(zone, False, column, row), Tile(zone, False, column + 1, row)
    below = Tile(zone, False, column, row - 1)
    assert 9_700 < tile.corner[0] + 10 * TILE_PX - right.corner[0] < 9_900
    assert 9_700 < below.corner[1] - (tile.corner[1] - 10 * TILE_PX) < 9_900
    assert all(TILE_PX % side_px == 0 for side_px in SCENE_SIDES_PX)
    assert len(tile.name) == 5
    if column < 8:
        assert tile.name != right.name


def test_tile_names_are_the_real_ones() -> None:
    assert Tile(33, False, 5, 50).name == "33TWL"
    assert Tile(33, False, 5, 51).name == "33TWM"
    assert Tile(33, False, 5, 50).corner == (499_980, 5_100_000)
    assert Tile(31, False, 4, 46).name == "31TDG"
    assert Tile(1, False, 3, 73).name[:3] == "01W"


@given(
    seed=st.integers(0, 2**62),
    values=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=30),
)
def test_hashes_belong_to_values_and_not_to_arrays(seed: int, values: list[int]) -> None:
    together = hash_ints(seed, np.array(values))
    alone = np.concatenate([hash_ints(seed, value) for value in values])
    np.testing.assert_array_equal(together, alone)
    assert ((to_uniform(together) >= 0) & (to_uniform(together) < 1)).all()


@given(x=st.floats(-1e7, 1e7), y=st.floats(-1e7, 1e7), step=st.floats(1e-3, 1))
def test_noise_is_smooth_and_the_same_in_any_company(x: float, y: float, step: float) -> None:
    alone = sample_noise(7, np.array([x]), np.array([y]), wavelength_m=500)
    company = sample_noise(
        7, np.array([x, x + step, x + 9_000]), np.array([y, y, y - 4_000]), wavelength_m=500
    )
    assert alone[0] == company[0]
    assert abs(company[1] - company[0]) < 0.05 * step + 1e-9


@settings(deadline=None)
@given(left=st.integers(-50, 50), top=st.integers(-50, 50))
def test_interpolation_is_that_of_the_place(left: int, top: int) -> None:
    patch = Patch("EPSG:32631", 400_000 + 20 * left, 4_600_000 + 20 * top, 6, 6)
    inner = Patch("EPSG:32631", patch.left_m + 40, patch.top_m - 20, 3, 3)
    np.testing.assert_array_equal(refine(patch.nodes[0])[8:32, 16:40], refine(inner.nodes[0]))
