"""The lattice: every partition covers a region once, and windows hold their cores."""

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from bigmap import grid
from bigmap.grid import Area, Lattice, area_mask

POWERS = st.sampled_from([1, 2, 4, 8])


@st.composite
def lattices(draw):
    core_px = draw(POWERS)
    cell_px = core_px * draw(POWERS)
    upscale = draw(st.integers(1, 5))
    chunk_px = upscale * draw(POWERS)
    shard_px = chunk_px * draw(POWERS)
    step_px = np.lcm(cell_px, shard_px // np.gcd(shard_px, upscale))
    return Lattice(
        crs="EPSG:3035",
        gsd_m=draw(st.sampled_from([10.0, 2.5, 100.0])),
        core_px=core_px,
        cell_px=cell_px,
        block_px=int(step_px) * draw(st.integers(1, 3)),
        upscale=upscale,
        shard_px=shard_px,
        chunk_px=chunk_px,
        shift_px=draw(st.integers(0, core_px - 1)),
    )


@st.composite
def rois(draw, limit=200):
    starts = [draw(st.integers(-limit, limit)) for _ in range(2)]
    sizes = [draw(st.integers(1, 60)) for _ in range(2)]
    return tuple(slice(a, a + n) for a, n in zip(starts, sizes, strict=True))


def count_cover(parts, roi):
    covered = np.zeros(grid.shape_of(roi), dtype=int)
    for part in parts:
        common = grid.intersect(part, roi)
        if not grid.is_empty(common):
            covered[grid.relative(common, roi)] += 1
    return covered


@given(lattices(), rois())
def test_cores_and_cells_cover_each_pixel_once(lattice, roi):
    for parts in (list(lattice.cores(roi)), list(lattice.cells(roi))):
        assert (count_cover(parts, roi) == 1).all()


@given(lattices(), rois())
def test_blocks_are_whole_cells_and_whole_shards(lattice, roi):
    extent = lattice.snap(lattice.bounds(roi), lattice.extent_step_px)
    blocks = list(lattice.blocks(extent))
    assert (count_cover(blocks, extent) == 1).all()
    assert grid.intersect(roi, extent) == roi
    for block in blocks:
        for part, start in zip(block, (extent[0].start, extent[1].start), strict=True):
            assert part.start % lattice.cell_px == 0
            assert part.stop % lattice.cell_px == 0
            offset = (part.start - start) * lattice.upscale
            assert offset % lattice.shard_px == 0
            assert (part.stop - part.start) * lattice.upscale % lattice.shard_px == 0


@given(lattices(), rois(), st.floats(0, 1), st.floats(0, 1))
def test_blocks_of_an_area_are_those_it_meets_in_their_order(lattice, roi, x, y):
    left, bottom, right, top = lattice.bounds(roi)
    corner = (left + x * (right - left), bottom + y * (top - bottom))
    area = Area((shapely.Polygon([(left, top), corner, (right, bottom)]).buffer(0.1),))
    extent = lattice.snap(area.bounds, lattice.extent_step_px)
    blocks = list(lattice.blocks(extent))
    expected = [b for b in blocks if area.intersects(lattice.bounds(b))]
    assert lattice.blocks_in(area, extent) == expected


@given(rois(), st.integers(0, 30))
def test_window_trims_back_to_its_core(core, halo_px):
    window, trim = grid.window_of(core, halo_px)
    rows = np.arange(window[0].start, window[0].stop)
    cols = np.arange(window[1].start, window[1].stop)
    assert rows[trim[0]].tolist() == list(range(core[0].start, core[0].stop))
    assert cols[trim[1]].tolist() == list(range(core[1].start, core[1].stop))
    assert grid.shape_of(window) == tuple(size + 2 * halo_px for size in grid.shape_of(core))


def test_window_refuses_a_negative_halo_and_an_empty_core():
    with pytest.raises(ValueError, match="halo"):
        grid.window_of((slice(0, 4), slice(0, 4)), -1)
    with pytest.raises(ValueError, match="empty"):
        grid.window_of((slice(4, 4), slice(0, 4)), 1)


@given(lattices(), rois())
def test_geobox_has_the_bounds_of_its_region(lattice, roi):
    for upscale in (1, lattice.upscale):
        box = lattice.geobox(roi, upscale=upscale)
        assert box.shape == tuple(upscale * size for size in grid.shape_of(roi))
        assert tuple(box.boundingbox) == pytest.approx(lattice.bounds(roi))


@given(rois(), st.integers(1, 40))
def test_the_area_of_a_pixel_does_not_depend_on_the_region(roi, radius_px):
    lattice = Lattice("EPSG:3035", 10.0, 4, 16, 32, 2, 32, 16)
    rows, cols = roi
    # An edge that runs close to pixel centres is where rounding would show.
    circle = shapely.Point(10 * cols.start + 5.0, -10 * rows.start - 5.0).buffer(10 * radius_px)
    area = Area((circle, shapely.box(-900, -900, 700, 800)))
    whole = grid.grow(roi, 37)
    expected = area_mask(area, lattice, whole)[grid.scale(grid.relative(roi, whole), 2)]
    assert np.array_equal(area_mask(area, lattice, roi), expected)


def test_area_mask_takes_pixels_by_their_centre():
    lattice = Lattice("EPSG:3035", 10.0, 4, 8, 8, 1, 8, 8)
    area = Area((shapely.box(0, -30, 26, 0),))
    mask = area_mask(area, lattice, (slice(0, 8), slice(0, 8)))
    assert mask.sum() == 3 * 3
    assert mask[:3, :3].all()
