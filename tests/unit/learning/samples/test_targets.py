"""Images of a second sensor, read where they have data."""

import datetime as dt

import numpy as np
import pytest
import rasterio
from affine import Affine

from bigmap.config.sources import Access
from bigmap.errors import ReadError, SamplesError
from bigmap.learning.samples.targets import open_sensor

CRS, BOUNDS = "EPSG:32631", (400_000, 4_599_800, 400_200, 4_600_000)


def write_image(path, *, alpha):
    """Write one band of 0.2 of reflectance, of which the upper half is hidden."""
    with rasterio.open(
        path, "w", driver="GTiff", width=40, height=40, count=1 + alpha, dtype="uint16", crs=CRS,
        transform=Affine(5, 0, 400_000, 0, -5, 4_600_000), nodata=None if alpha else 0,
        **({"alpha": "YES"} if alpha else {}),
    ) as target:  # fmt: skip
        shown = np.zeros((40, 40), np.uint16)
        shown[20:] = 1
        target.write(2000 * (np.ones_like(shown) if alpha else shown), 1)
        if alpha:
            target.write(65_535 * shown, 2)
    return str(path)


@pytest.mark.parametrize("alpha", [False, True])
def test_what_nodata_or_alpha_hide_is_no_target(tmp_path, alpha):
    sensor = open_sensor([write_image(tmp_path / "a.tif", alpha=alpha)], ("red",), scale=1e-4,
                         offset=0, seed=0)  # fmt: skip
    image = sensor.read(CRS, BOUNDS, 40, dt.date(2024, 4, 1))
    assert (image[0, 20:] == 3000).all()
    assert (image[0, :20] == 0).all()


def test_other_files_and_too_few_bands_are_named(tmp_path):
    file = write_image(tmp_path / "a.tif", alpha=True)
    with pytest.raises(SamplesError, match=r"^samples\.target\.files: .*has 1 bands, but .* 2"):
        open_sensor([file], ("red", "nir"), scale=1e-4, offset=0, seed=0)
    (tmp_path / "a.vrt").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    with pytest.raises(ReadError, match=r"^samples\.target\.files: .*a\.vrt: .* Only GeoTIFF"):
        open_sensor([str(tmp_path / "a.vrt")], ("red",), scale=1e-4, offset=0, seed=0,
                    access=Access(retries=0))  # fmt: skip


def test_an_image_that_fails_twice_is_read(tmp_path, monkeypatch):
    file = write_image(tmp_path / "a.tif", alpha=False)
    sensor = open_sensor([file], ("red",), scale=1e-4, offset=0, seed=0, access=Access(retries=2))
    expected = sensor.read(CRS, BOUNDS, 40, dt.date(2024, 4, 1))
    failures = iter([True, True, False])

    def open_dataset(name, **options):
        if next(failures, True):
            raise rasterio.errors.RasterioIOError("HTTP response code: 503")
        return rasterio.io.DatasetReader(name, **options)

    monkeypatch.setattr("bigmap.scenes.cube.reading.DatasetReader", open_dataset)
    image = sensor.read(CRS, BOUNDS, 40, dt.date(2024, 4, 1))
    np.testing.assert_array_equal(image, expected)
    assert (image[0, 20:] == 3000).all()
    with pytest.raises(ReadError, match=r"^samples\.target\.files: .*a\.tif: .*code: 503"):
        sensor.read(CRS, BOUNDS, 40, dt.date(2024, 4, 1))
