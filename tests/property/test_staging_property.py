"""What is staged holds all that any read touches, and reads the same."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from bigmap.config.sources import Access
from bigmap.errors import ReadError
from bigmap.scenes.cube.pixels import BANDS
from bigmap.scenes.cube.reading import RasterReader, covers, staged_parts_of
from bigmap.scenes.cube.resampling import FileGrid, TargetGrid, bound_sampling, plan_sampling
from bigmap.scenes.cube.staging import Reach, copy_parts, join_tiles

UTM = rasterio.CRS.from_epsg(32633).to_wkt()
METHODS = st.sampled_from(["nearest", "bilinear", "cubic"])
CENTRE_M = {"EPSG:3035": (4_730_000, 2_550_000), "EPSG:32633": (530_000, 5_070_000),
            "EPSG:32634": (65_000, 5_080_000)}  # fmt: skip
"""Of the file below, roughly."""


@st.composite
def reads(draw):
    """A grid, a region near a file, and the file's grid."""
    crs = draw(st.sampled_from(sorted(CENTRE_M)))
    gsd_m = draw(st.sampled_from([10.0, 60.0, 333.0, 3000.0]))
    x, y = CENTRE_M[crs]
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    # Around the middle of the file, give or take 20 km: on its whole, a part, or beside it.
    row = int((draw(st.integers(-20_000, 20_000)) - y) // gsd_m) - height // 2
    col = int((draw(st.integers(-20_000, 20_000)) + x) // gsd_m) - width // 2
    pixel_m = draw(st.sampled_from([20.0, 120.0, 600.0]))
    shape = (draw(st.integers(20, 700)), draw(st.integers(20, 700)))
    left = 530_000 - shape[1] * pixel_m / 2 + draw(st.floats(-50, 50))
    transform = Affine(pixel_m, 0, left, 0, -pixel_m, 5_070_000 + shape[0] * pixel_m / 2)
    roi = (slice(row, row + height), slice(col, col + width))
    return TargetGrid(crs, gsd_m), roi, FileGrid(UTM, transform, shape)


@settings(max_examples=100, deadline=None)
@given(reads(), METHODS)
def test_the_bound_holds_every_window_that_is_read(read, method):
    target, roi, source = read
    rows, cols = bound_sampling(target, roi, source, method)
    assert 0 <= rows.start <= rows.stop <= source.shape[0]
    assert 0 <= cols.start <= cols.stop <= source.shape[1]
    sampling = plan_sampling(target, roi, source, method)
    if sampling is None:
        return
    for bound, window in zip((rows, cols), sampling.window, strict=True):
        assert bound.start <= window.start
        assert window.stop <= bound.stop
    # And not much more: a knot and a few pixels on each side.
    margin = 2 * (18 * target.gsd_m / source.transform.a * 1.1 + 12)
    if sampling.inside.all():
        for bound, window in zip((rows, cols), sampling.window, strict=True):
            assert bound.stop - bound.start <= window.stop - window.start + margin


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_joined_tiles_are_those_marked_each_once(marks):
    touched = np.array(marks)
    shape = (len(marks) * 16 - 5, 4 * 32 - 9)
    parts = join_tiles(touched, FileGrid(UTM, Affine.identity(), shape), (16, 32))
    held = np.zeros(shape, int)
    for part in parts:
        held[part] += 1
    expected = np.repeat(np.repeat(touched, 16, 0), 32, 1)[: shape[0], : shape[1]]
    assert np.array_equal(held, expected.astype(int))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A tiled file of 300 x 400 px with holes."""
    path = tmp_path_factory.mktemp("staging") / "file.tif"
    data = np.random.default_rng(5).integers(1, 9000, (300, 400)).astype(np.uint16)
    data[100:110, 100:300] = 0
    data[:, 399] = 0
    with rasterio.open(
        path, "w", driver="GTiff", height=300, width=400, count=1, dtype="uint16", tiled=True,
        blockxsize=64, blockysize=32, compress="deflate", nodata=0, crs="EPSG:32633",
        transform=Affine(20, 0, 520_000, 0, -20, 5_080_000),
    ) as target:  # fmt: skip
        target.write(data, 1)
    return path


@settings(max_examples=25, deadline=None)
@given(st.data(), METHODS, st.sampled_from(sorted(CENTRE_M)), st.sampled_from([10.0, 20.0, 70.0]))
def test_a_staged_file_reads_the_same_bits_and_nothing_beyond(file, data, method, crs, gsd_m):
    target = TargetGrid(crs, gsd_m)
    with rasterio.open(file) as dataset:
        left, _, _, top = rasterio.warp.transform_bounds(dataset.crs, crs, *dataset.bounds)
    row, col = target.index_of(left, top)
    spans = [data.draw(st.tuples(st.integers(-20, 150), st.integers(1, 90))) for _ in range(4)]
    regions = tuple(
        (slice(row + a, row + a + n), slice(col + b, col + b + m))
        for (a, n), (b, m) in (spans[:2], spans[2:])
    )
    copy = file.with_name(f"{crs[5:]}.tif")
    reach = Reach(target, regions, method)
    copy_parts(str(file), copy, reach, access=Access(retries=0), check=lambda: None)
    reader = RasterReader(target, method, BANDS, Access(retries=0))
    for region in regions:
        assert np.array_equal(reader.read(str(copy), region), reader.read(str(file), region))
    with rasterio.open(copy) as staged, rasterio.open(file) as whole:
        assert (staged.transform, staged.shape, staged.crs) == (
            whole.transform, whole.shape, whole.crs,
        )  # fmt: skip
        parts = staged_parts_of(staged)
        pixels, original = staged.read(1), whole.read(1)
    held = np.zeros(pixels.shape, bool)
    for part in parts:
        held[part] = True
    assert np.array_equal(pixels[held], original[held])
    assert not pixels[~held].any()
    everywhere = (slice(row, row + int(6000 / gsd_m)), slice(col, col + int(8000 / gsd_m)))
    if not held.all():
        with pytest.raises(ReadError, match="the part that was staged does not hold"):
            reader.read(str(copy), everywhere)


def test_parts_cover_what_lies_across_them():
    parts = [(slice(0, 10), slice(0, 20)), (slice(10, 20), slice(0, 10))]
    assert covers(parts, (slice(5, 15), slice(2, 9)))
    assert not covers(parts, (slice(5, 15), slice(2, 11)))
    assert not covers([], (slice(0, 1), slice(0, 1)))
