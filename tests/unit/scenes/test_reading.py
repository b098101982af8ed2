"""Reading: equal to GDAL's exact warp, and the same whatever window is asked for."""

import threading
from functools import partial
from http.server import ThreadingHTTPServer

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from scipy.ndimage import map_coordinates, minimum_filter

from bigmap import grid
from bigmap.config.sources import Access
from bigmap.errors import ReadError
from bigmap.scenes.cube.pixels import BANDS, MaskPixels
from bigmap.scenes.cube.reading import RasterReader, find_origin, open_raster
from bigmap.scenes.cube.resampling import FileGrid, TargetGrid
from bigmap.scenes.quality import CLEAR, NO_DATA, MaskRule
from tests.unit.simulate.range_server import RangeHandler

SIZE = 160


def write_raster(
    path, *, crs="EPSG:32633", transform=None, dtype="uint16", nodata=0, data=None, driver="GTiff"
):
    if data is None:
        rng = np.random.default_rng(7)
        data = rng.integers(1, 9000, (SIZE, SIZE)).astype(dtype)
        data[:20, :30] = 0
        data[70:72, 90] = 0
    transform = transform or Affine(120, 0, 499980, 0, -120, 5100000)
    profile = {
        "driver": driver, "height": data.shape[0], "width": data.shape[1], "count": 1,
        "dtype": dtype, "crs": crs, "transform": transform, "nodata": nodata,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(data, 1)
    return data


def reader_of(method, *, crs="EPSG:3035", gsd_m=100.0, expected=BANDS):
    return RasterReader(TargetGrid(crs, gsd_m), method, expected, Access(retries=0))


def warp_exactly(path, roi, method, *, crs="EPSG:3035", gsd_m=100.0, source_m=120.0):
    rows, cols = roi
    height, width = grid.shape_of(roi)
    with (
        rasterio.open(path) as file,
        WarpedVRT(
            file, crs=crs, width=width, height=height, resampling=Resampling[method],
            transform=Affine(gsd_m, 0, cols.start * gsd_m, 0, -gsd_m, -rows.start * gsd_m),
            tolerance=1e-9, XSCALE=source_m / gsd_m, YSCALE=source_m / gsd_m,
        ) as vrt,
    ):  # fmt: skip
        return vrt.read(1)


# The raster above in EPSG:3035 at 100 m.
ROI = (slice(-25800, -25560), slice(47050, 47300))


@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("gsd_m", [100.0, 300.0])
def test_equals_an_exact_warp_by_gdal(tmp_path, method, gsd_m):
    path = str(tmp_path / "a.tif")
    data = write_raster(path)
    left, bottom, right, top = rasterio.warp.transform_bounds(
        "EPSG:32633", "EPSG:3035", *rasterio.open(path).bounds
    )
    roi = (
        slice(int(-top // gsd_m) - 3, int(-bottom // gsd_m) + 3),
        slice(int(left // gsd_m) - 3, int(right // gsd_m) + 3),
    )
    ours = reader_of(method, gsd_m=gsd_m).read(path, roi)
    theirs = warp_exactly(path, roi, method, gsd_m=gsd_m)
    assert (ours > 0).sum() > 0.4 * data.size * (120 / gsd_m) ** 2
    both = (ours > 0) & (theirs > 0)
    if method == "cubic":
        # Where a cubic kernel misses a neighbour, GDAL's own fall-back depends on the kernel's
        # width; ours does not, so those places are left out here.
        both &= minimum_filter(theirs > 0, size=11)
    # GDAL's own edge rules differ by a pixel along the edge of the file; nowhere else.
    assert ((ours > 0) != (theirs > 0)).sum() < 0.02 * both.sum()
    difference = np.abs(ours.astype(int) - theirs.astype(int))[both]
    if method == "nearest":
        assert (difference == 0).mean() > 0.999
    else:
        assert (difference <= 1).mean() > 0.99
    assert np.median(difference) == 0


@pytest.mark.parametrize("method", ["nearest", "bilinear", "cubic"])
def test_a_pixel_does_not_depend_on_the_window(tmp_path, method):
    path = str(tmp_path / "a.tif")
    write_raster(path)
    with rasterio.open(path) as file:
        left, _, _, top = rasterio.warp.transform_bounds(file.crs, "EPSG:3035", *file.bounds)
    row, col = int(-top // 100), int(left // 100)
    reader = reader_of(method)
    whole_roi = (slice(row - 5, row + 205), slice(col - 5, col + 205))
    whole = reader.read(path, whole_roi)
    assert (whole > 0).any()
    for step in (7, 33, 64, 201):
        for part in grid.tiles_of(whole_roi, step):
            common = grid.intersect(part, whole_roi)
            piece = reader.read(path, common)
            assert np.array_equal(piece, whole[grid.relative(common, whole_roi)])


def test_coinciding_grids_are_copied_whatever_the_crs_is_called(tmp_path):
    path = str(tmp_path / "a.tif")
    data = write_raster(path, crs="EPSG:32631")
    reader = reader_of("cubic", crs="EPSG:25831", gsd_m=120.0)
    with rasterio.open(path) as file:
        source = FileGrid(file.crs.to_wkt(), file.transform, file.shape)
        origin = find_origin(reader.target, source)
    assert origin is None  # 499980 is no multiple of 120: the lattice starts at the origin
    write_raster(path, crs="EPSG:32631", transform=Affine(120, 0, 480000, 0, -120, 5100000))
    roi = (slice(-42500 - 2, -42500 + 30), slice(4000 - 3, 4000 + 40))
    got = reader.read(path, roi)
    assert np.array_equal(got[2:, 3:], data[:30, :40])
    assert not got[:2].any()
    assert not got[:, :3].any()


@pytest.mark.parametrize(("method", "order"), [("nearest", 0), ("bilinear", 1)])
@pytest.mark.parametrize("pixel_m", [20, 60])
def test_20_and_60_m_bands_come_onto_the_10_m_grid(tmp_path, pixel_m, method, order):
    path = str(tmp_path / "band.tif")
    data = np.random.default_rng(3).integers(1, 9000, (40, 40)).astype(np.uint16)
    write_raster(path, data=data, transform=Affine(pixel_m, 0, 399960, 0, -pixel_m, 5100000))
    factor = pixel_m // 10
    roi = (slice(-510000, -510000 + 40 * factor), slice(39996, 39996 + 40 * factor))
    got = reader_of(method, crs="EPSG:32633", gsd_m=10.0).read(path, roi)
    places = (np.arange(40 * factor) + 0.5) / factor - 0.5
    expected = map_coordinates(
        data.astype(float), np.meshgrid(places, places, indexing="ij"), order=order, mode="nearest"
    )
    assert np.abs(got - expected).max() <= 0.51
    if method == "nearest":
        assert np.array_equal(got[::factor, ::factor], data)


def test_half_a_pixel_of_shift_is_resampled_and_not_copied(tmp_path):
    path = str(tmp_path / "a.tif")
    data = write_raster(path, transform=Affine(100, 0, 480050, 0, -100, 5100000))
    reader = reader_of("bilinear", crs="EPSG:32633")
    got = reader.read(path, (slice(-51000 + 100, -51000 + 130), slice(4801 + 40, 4801 + 60)))
    left, right = data[100:130, 40:60].astype(float), data[100:130, 41:61].astype(float)
    assert np.abs(got - np.rint((left + right) / 2)).max() <= 1


def test_a_mask_without_nodata_is_filled_outside(tmp_path):
    path = str(tmp_path / "m.tif")
    data = np.zeros((SIZE, SIZE), np.uint8)
    write_raster(path, dtype="uint8", nodata=None, data=data)
    with rasterio.open(path) as file:
        left, _, _, top = rasterio.warp.transform_bounds(file.crs, "EPSG:3035", *file.bounds)
    row, col = int(-top // 100), int(left // 100)
    rule = MaskRule("binary", "clm", clear_values=(0,))
    reader = reader_of("nearest", expected=MaskPixels(rule))
    mask = reader.read(path, (slice(row - 50, row + 100), slice(col - 50, col + 100)))
    assert set(np.unique(mask)) == {NO_DATA, CLEAR}
    assert (mask == CLEAR).sum() > 5000


def test_no_valid_pixel_becomes_nodata_by_rounding(tmp_path):
    path = str(tmp_path / "a.tif")
    data = np.ones((SIZE, SIZE), np.uint16)
    data[::2] = 6  # a cubic kernel undershoots between these
    write_raster(path, data=data, transform=Affine(100, 0, 480030, 0, -100, 5100030))
    reader = reader_of("cubic", crs="EPSG:32633")
    got = reader.read(path, (slice(-51000 + 10, -51000 + 90), slice(4801 + 10, 4801 + 90)))
    assert got.min() >= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not a raster at all" * 50), "not recognized"),
    ],
)
def test_unreadable_files_are_named(tmp_path, make, message):
    path = tmp_path / "broken.tif"
    make(path)
    with pytest.raises(ReadError, match=message) as caught:
        reader_of("nearest").read(str(path), ROI)
    assert "broken.tif" in str(caught.value)


def test_a_truncated_file_is_an_error_and_not_a_hole(tmp_path):
    path = tmp_path / "cut.tif"
    write_raster(str(path))
    path.write_bytes(path.read_bytes()[: SIZE * SIZE])
    with rasterio.open(str(path)) as file:
        left, bottom, right, top = rasterio.warp.transform_bounds(
            file.crs, "EPSG:3035", *file.bounds
        )
    roi = (
        slice(int(-top // 100), int(-bottom // 100)),
        slice(int(left // 100), int(right // 100)),
    )
    with pytest.raises(ReadError, match=r"cut\.tif"):
        reader_of("nearest").read(str(path), roi)


def write_vrt(path, source):
    """Write a VRT whose pixels are the bytes of another file."""
    path.write_text(
        '<VRTDataset rasterXSize="160" rasterYSize="160"><SRS>EPSG:32633</SRS>'
        "<GeoTransform>499980, 120, 0, 5100000, 0, -120</GeoTransform>"
        '<VRTRasterBand dataType="UInt16" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativetoVRT="0">{source}</SourceFilename>'
        "<PixelOffset>2</PixelOffset><LineOffset>320</LineOffset></VRTRasterBand></VRTDataset>"
    )


def test_only_geotiff_and_jpeg_2000_are_opened(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * SIZE * SIZE)
    write_vrt(tmp_path / "B04.tif", secret)
    with pytest.raises(ReadError, match=r"B04\.tif: .*[Oo]nly GeoTIFF and JPEG 2000 are opened"):
        reader_of("nearest").read(str(tmp_path / "B04.tif"), ROI)
    write_raster(str(tmp_path / "B04.jp2"), driver="JP2OpenJPEG", nodata=None)
    assert reader_of("nearest").read(str(tmp_path / "B04.jp2"), ROI).any()


def test_files_beside_a_file_change_nothing(tmp_path):
    path = tmp_path / "a.tif"
    write_raster(str(path))
    alone = reader_of("nearest").read(str(path), ROI)
    write_vrt(tmp_path / "a.tif.ovr", path)
    write_raster(str(tmp_path / "a.tif.msk"), dtype="uint8", data=np.zeros((SIZE, SIZE), np.uint8))
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Scale>0.5</Scale></PAMRasterBand></PAMDataset>'
    )
    assert alone.any()
    assert np.array_equal(reader_of("nearest").read(str(path), ROI), alone)


def test_a_file_that_names_another_as_its_overviews_is_refused(tmp_path):
    path, other = str(tmp_path / "a.tif"), str(tmp_path / "other.tif")
    write_raster(path)
    write_raster(other)
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=other)
    with (
        pytest.raises(ReadError, match=r"a\.tif: has its overviews in another file"),
        open_raster(path, Access(retries=0)),
    ):
        pass


def test_blocks_too_large_for_memory_are_refused_by_what_the_file_declares(tmp_path):
    path = str(tmp_path / "strip.tif")
    profile = {
        "driver": "GTiff", "width": 400_000, "height": 1000, "count": 1, "dtype": "uint16",
        "crs": "EPSG:32633", "transform": Affine(0.1, 0, 499980, 0, -0.1, 5100000),
        "blockysize": 1000, "compress": "deflate", "SPARSE_OK": True,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile):
        pass
    with pytest.raises(ReadError, match=r"strip\.tif: declares blocks of 1000 x 400000 px"):
        reader_of("nearest").read(path, ROI)


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("s3://bucket/my scene/a+b#1?.tif", "/vsis3/bucket/my scene/a+b#1?.tif"),
        ("gs://bucket/a b.tif", "/vsigs/bucket/a b.tif"),
        ("https://a.example/my%20scene/x.tif?v=1", "https://a.example/my%20scene/x.tif?v=1"),
    ],
)
def test_gdal_is_given_whole_names(monkeypatch, href, name):
    given = []

    def note(path, **_):
        given.append(path)
        raise rasterio.errors.RasterioIOError("HTTP response code: 403")

    monkeypatch.setattr("bigmap.scenes.cube.reading.DatasetReader", note)
    with pytest.raises(ReadError, match=r"403; give access by source\.access"):
        reader_of("nearest").read(href, ROI)
    assert given == [name]


class CountingHandler(RangeHandler):
    """Counts the bytes of the bodies that it sends."""

    sent = 0

    def copyfile(self, source, outputfile):
        body = source.read()
        type(self).sent += len(body)
        outputfile.write(body)


def test_tiles_that_windows_share_are_fetched_once(tmp_path):
    noise = np.random.default_rng(1).integers(1, 9000, (1024, 1024)).astype(np.uint16)
    with rasterio.open(
        tmp_path / "band.tif", "w", driver="COG", height=1024, width=1024, count=1, dtype="uint16",
        crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_100_000), blocksize=256,
        nodata=0, overviews="none",
    ) as file:  # fmt: skip
        file.write(noise, 1)
    handler = partial(CountingHandler, directory=tmp_path)
    reader = reader_of("nearest", crs="EPSG:32633", gsd_m=10.0)
    starts = range(0, 1024, 128)
    CountingHandler.sent = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        href = f"http://127.0.0.1:{server.server_address[1]}/band.tif"
        for row in starts:
            for col in starts:
                # With a margin into the tiles around.
                rows = slice(-510_000 + row - 20, -510_000 + row + 148)
                cols = slice(50_000 + col - 20, 50_000 + col + 148)
                part = reader.read(href, (rows, cols))
                assert (part[20:148, 20:148] == noise[row : row + 128, col : col + 128]).all()
        server.shutdown()
    assert CountingHandler.sent < 1.1 * (tmp_path / "band.tif").stat().st_size
