"""What files hold: checked against what is expected, and what they declare applied."""

import gzip
import io

import numpy as np
import pytest
import rasterio
import requests
from affine import Affine
from pydantic import TypeAdapter
from rasterio.enums import ColorInterp

from bigmap.config.masks import MaskConfig
from bigmap.config.sources import Access
from bigmap.errors import ReadError, UnfitFileError
from bigmap.scenes.cube.pixels import BANDS, MaskPixels
from bigmap.scenes.cube.reader import mask_rule
from bigmap.scenes.cube.reading import RasterReader
from bigmap.scenes.cube.resampling import TargetGrid
from bigmap.scenes.cube.staging import Reach, copy_parts, copy_whole
from bigmap.scenes.quality import CLEAR, NO_DATA, SPOILT, MaskRule

SIZE = 16
TARGET = TargetGrid("EPSG:32633", 10.0)
ROI = (slice(-510_000, -510_000 + SIZE), slice(40_000, 40_000 + SIZE))
BINARY = MaskRule("binary", "clm", clear_values=(0,), nodata=255)
PERCENT = MaskRule("probability", "clp", max_percent=40)
SHARE = MaskRule("probability", "clp", max_percent=40, max_value=1)
SCL = MaskRule("scl", "scl", clear_values=(4,))


@pytest.fixture
def write(tmp_path):
    """Write a file on the grid whose first row holds other values than the rest."""

    def write_file(first, rest, dtype, *, nodata=None, scale=1.0, offset=0.0, hide=None):
        path = str(tmp_path / "file.tif")
        values = np.full((SIZE, SIZE), rest, dtype)
        values[0] = first
        seen = np.full((SIZE, SIZE), 255, np.uint8)
        seen[0] = 0
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", driver="GTiff", height=SIZE, width=SIZE, dtype=dtype, nodata=nodata,
                count=2 if hide == "alpha" else 1, crs="EPSG:32633", tiled=True, blockxsize=16,
                blockysize=16, transform=Affine(10, 0, 400_000, 0, -10, 5_100_000),
            ) as file,
        ):  # fmt: skip
            file.write(values, 1)
            if (scale, offset) != (1, 0):
                file.scales, file.offsets = [scale] * file.count, [offset] * file.count
            if hide == "alpha":
                file.write(seen.astype(dtype), 2)
                file.colorinterp = (ColorInterp.gray, ColorInterp.alpha)
            elif hide == "mask":
                file.write_mask(seen)
        return path

    return write_file


def read(path, expected, method="nearest"):
    """Read the first pixel of the first row and of the last."""
    got = RasterReader(TARGET, method, expected, Access(retries=0)).read(path, ROI)
    assert got.dtype == expected.dtype
    return [int(got[0, 0]), int(got[-1, 0])]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32"])
def test_digital_numbers_of_any_wide_integer_pass(write, dtype):
    assert read(write(1, 32767, dtype), BANDS) == [1, 32767]


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int8"])
def test_bands_that_are_no_digital_numbers_are_refused_by_name(write, dtype):
    with pytest.raises(ReadError, match=rf"file\.tif: holds {dtype}, but Sentinel-2's"):
        read(write(0, 1, dtype), BANDS)


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, "int16"), (-9999, "int32"), (65536, "int32"), (70_000, "uint32")]
)
def test_digital_numbers_out_of_range_neither_wrap_nor_stop_at_the_border(write, value, dtype):
    with pytest.raises(ReadError, match=rf"file\.tif: holds {value}, but digital numbers are 0"):
        read(write(value, 7, dtype), BANDS)


@pytest.mark.parametrize(
    ("value", "dtype"), [(65535, "uint16"), (-9999, "int16"), (-1, "int32"), (70_000, "int32")]
)
@pytest.mark.parametrize("method", ["nearest", "cubic"])
def test_declared_nodata_of_a_band_is_no_data(write, value, dtype, method):
    assert read(write(value, 7, dtype, nodata=value), BANDS, method) == [0, 7]


@pytest.mark.parametrize("hide", ["mask", "alpha"])
@pytest.mark.parametrize("nodata", [None, 0, 3])
def test_a_mask_inside_a_file_and_its_alpha_band_hide_pixels(write, hide, nodata):
    assert read(write(5, 7, "uint16", hide=hide, nodata=nodata), BANDS) == [0, 7]
    path = write(0, 0, "uint8", hide=hide, nodata=nodata or 3)
    assert read(path, MaskPixels(BINARY)) == [NO_DATA, CLEAR]


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (1e-4, -0.1), (1.0, 0.0)])
def test_scale_and_offset_of_sentinel_2_pass(write, scale, offset):
    assert read(write(5, 7, "uint16", scale=scale, offset=offset), BANDS) == [5, 7]


@pytest.mark.parametrize(
    ("scale", "offset", "said"), [(2.75e-5, -0.2, "scale 2.75e-05"), (1e-4, -0.2, "offset -0.2"),
                                  (1e-3, 0, "scale 0.001"), (1.0, -1000.0, "scale 1")],
)  # fmt: skip
def test_other_scales_and_offsets_inside_a_file_are_refused(write, scale, offset, said):
    with pytest.raises(ReadError, match=rf"file\.tif: declares the {said}"):
        read(write(5, 7, "uint16", scale=scale, offset=offset), BANDS)


@pytest.mark.parametrize("rule", [BINARY, PERCENT, SHARE])
@pytest.mark.parametrize(
    ("value", "dtype"), [(-9999, "int16"), (-1, "int16"), (255, "uint8"), (-32768, "int32")]
)
def test_declared_nodata_of_a_mask_is_never_clear(write, rule, value, dtype):
    path = write(value, 0, dtype, nodata=value)
    assert read(path, MaskPixels(rule)) == [NO_DATA, CLEAR]


@pytest.mark.parametrize("nodata", [np.nan, -9999.0])
def test_declared_nodata_of_shares_is_never_clear(write, nodata):
    path = write(nodata, 0.3, "float32", nodata=nodata)
    assert read(path, MaskPixels(SHARE)) == [NO_DATA, CLEAR]


@pytest.mark.parametrize("rule", [BINARY, PERCENT, SCL, MaskRule("bits", "qa60", bits=(1,))])
def test_masks_of_floats_are_refused_unless_the_rule_says_their_scale(write, rule):
    path = write(0.97, 0.1, "float32")
    with pytest.raises(UnfitFileError, match=r"file\.tif: holds float32, but a mask of kind"):
        read(path, MaskPixels(rule))
    assert read(path, MaskPixels(SHARE)) == [SPOILT, CLEAR]


def test_a_bit_that_a_mask_does_not_have_is_refused(write):
    path = write(0, 0, "uint8")
    with pytest.raises(ReadError, match="has 8 bits, and no bit 11"):
        read(path, MaskPixels(MaskRule("bits", "qa60", bits=(10, 11))))


@pytest.mark.parametrize(
    ("mask", "first", "rest", "dtype", "states"),
    [
        ({"kind": "binary"}, 255, 1, "uint8", [NO_DATA, SPOILT]),
        ({"kind": "binary", "nodata": None}, 255, 0, "uint8", [SPOILT, CLEAR]),
        ({"kind": "probability", "max_value": 255}, 255, 102, "uint8", [SPOILT, CLEAR]),
        ({"kind": "probability", "max_value": 1}, 0.5, 0.4, "float64", [SPOILT, CLEAR]),
        ({"kind": "probability", "nodata": 255}, 255, 40, "uint8", [NO_DATA, CLEAR]),
        ({"kind": "bits", "bits": [1, 2, 3], "nodata": 255}, 255, 0b110001, "uint8",
         [NO_DATA, CLEAR]),
        ({"kind": "bits", "bits": [10, 11]}, 1 << 10, 1, "uint16", [SPOILT, CLEAR]),
    ],
)  # fmt: skip
def test_masks_are_read_as_the_recipe_says(write, mask, first, rest, dtype, states):
    rule = mask_rule(TypeAdapter(MaskConfig).validate_python({"asset": "file", **mask}))
    assert read(write(first, rest, dtype), MaskPixels(rule)) == states


def test_scl_whose_file_declares_another_nodata_has_both(write):
    assert read(write(255, 4, "uint8", nodata=255), MaskPixels(SCL)) == [NO_DATA, CLEAR]
    assert read(write(0, 9, "uint8", nodata=255), MaskPixels(SCL)) == [NO_DATA, SPOILT]


def test_a_scaled_mask_is_refused(write):
    path = write(0, 40, "uint16", scale=0.01)
    with pytest.raises(ReadError, match=r"file\.tif: declares a scale of 0\.01"):
        read(path, MaskPixels(PERCENT))


@pytest.mark.parametrize("hide", ["mask", "alpha"])
def test_a_staged_part_keeps_what_its_file_declares(write, tmp_path, hide):
    path, copy = write(5, 7, "uint16", hide=hide, scale=1e-3), tmp_path / "copy.tif"
    reach = Reach(TARGET, (ROI,), "nearest")
    copy_parts(path, copy, reach, access=Access(retries=0), check=lambda: None)
    with pytest.raises(ReadError, match=r"copy\.tif: declares the scale 0\.001"):
        read(str(copy), BANDS)
    path, copy = write(5, 7, "uint16", hide=hide), tmp_path / "second.tif"
    copy_parts(path, copy, reach, access=Access(retries=0), check=lambda: None)
    assert read(str(copy), BANDS) == [0, 7]


def test_complex_numbers_are_refused(write):
    with pytest.raises(ReadError, match=r"file\.tif: holds complex numbers"):
        read(write(0, 1, "complex64"), BANDS)


def test_a_window_too_large_for_memory_is_refused_before_it_is_read(write, monkeypatch):
    path = write(5, 7, "uint16")
    monkeypatch.setattr("bigmap.scenes.cube.pixels.MAX_READ_PX", SIZE * SIZE - 1)
    with pytest.raises(ReadError, match=r"file\.tif: 16 x 16 of its pixels would be read at once"):
        read(path, BANDS)


def test_a_compressed_answer_is_not_unpacked(tmp_path, monkeypatch):
    answer = requests.Response()
    answer.status_code, answer.raw = 200, io.BytesIO(gzip.compress(bytes(1000)))
    answer.headers.update({"Content-Encoding": "gzip", "Content-Length": "1000"})
    monkeypatch.setattr(requests, "get", lambda *_, **__: answer)
    path = tmp_path / "file.tif"
    with pytest.raises(ReadError, match="the answer is compressed"):
        copy_whole("http://a.b/c.tif", path, (1, 1), access=Access(retries=0), check=lambda: None)
    assert not path.exists()
