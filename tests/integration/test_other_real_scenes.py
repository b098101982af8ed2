"""Real scenes with habits of their own: L1C with a binary mask, JPEG 2000 at the antimeridian."""

import datetime as dt

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.warp import transform_bounds

import bigmap
from bigmap.config import parse_recipe
from bigmap.config.sources import FilesSource
from bigmap.grid import Lattice
from bigmap.scenes.catalog import find_items
from bigmap.scenes.cube.reader import CubeReader, SceneReading
from bigmap.scenes.quality import MaskRule

pytestmark = pytest.mark.real_data


def slovenia_recipe(data, **mask):
    return parse_recipe(
        {
            "name": "slovenia",
            "area": {"bbox": [14.5525, 45.867, 14.5635, 45.874]},
            "grid": {
                "crs": "EPSG:3794", "gsd_m": 10, "core_px": 16, "cell_px": 64, "block_px": 128,
                "shard_px": 128, "chunk_px": 64,
            },
            "source": {
                "kind": "files", "files": [str(data / "slovenia/items.json")],
                "start": "2015-01-01", "end": "2015-12-31",
                "mask": {"kind": "binary", "asset": "clm", "clear_value": 0, **mask},
            },
            "model": {"name": "small-conv"},
            "output": {"path": "unused.zarr"},
        }
    )  # fmt: skip


def test_a_binary_mask_and_l1c_bands_of_an_odd_grid(shared_data):
    cube = bigmap.open_cube(slovenia_recipe(shared_data)).compute()
    assert cube.sizes["time"] == 5
    assert list(cube.band.values) == ["blue", "green", "red", "nir"]
    clear = cube.clear.mean(("y", "x")).values
    assert (clear < 0.01).sum() == 2  # two dates are fully cloudy
    assert (clear > 0.5).sum() >= 2
    # Files of 2015 have no offset: canonical DN are theirs and 1000.
    day = str(cube.time.values[int(clear.argmax())])[:10].replace("-", "")
    with rasterio.open(shared_data / f"slovenia/L1C_{day}/B04.tif") as file:
        raw = np.median(file.read(1))
    red = cube.sel(band="red").isel(time=int(clear.argmax()))
    assert float(np.median(red.values[red.values > 0])) - 1000 == pytest.approx(raw, rel=0.05)


def test_dilation_only_takes_clear_pixels_away(shared_data):
    plain = bigmap.open_cube(slovenia_recipe(shared_data)).clear.compute()
    grown = bigmap.open_cube(slovenia_recipe(shared_data, dilate_px=3)).clear.compute()
    assert not (grown & ~plain).any()


@pytest.mark.parametrize(
    ("crs", "gsd_m", "loader"),
    [("EPSG:32601", 120.0, "stackstac"), ("EPSG:3571", 150.0, "stackstac"),
     ("EPSG:3571", 150.0, "odc-stac")],
)  # fmt: skip
def test_jpeg_2000_beside_the_antimeridian(shared_data, crs, gsd_m, loader):
    """The items say 10 m, the files have 120 m; the item's box spans the whole globe."""
    folder = shared_data / "sentinel-2-l2a-antimeridian"
    source = FilesSource(
        kind="files", files=tuple(str(file) for file in sorted(folder.glob("*/*.json"))),
        start=dt.date(2023, 6, 1), end=dt.date(2023, 6, 5),
    )  # fmt: skip
    beside = shapely.union(
        shapely.box(179.6, 67.4, 180, 67.6), shapely.box(-180, 67.4, -178.5, 67.6)
    )
    catalogue = find_items(source, bands=("red",), mask_asset="scl", geometry_lonlat=beside)
    assert len(catalogue.rows) >= 3
    lattice = Lattice(crs, gsd_m, 16, 64, 64, 1, 64, 64)
    mask = MaskRule("scl", "scl", clear_values=(4, 5, 6, 11))
    reading = SceneReading(lattice, ("red",), mask, resampling="nearest", loader=loader)
    reader = CubeReader.of(reading, catalogue.rows)
    # 300 px around the middle of tile 01WCQ.
    bounds = transform_bounds("EPSG:32601", crs, 340_000, 7_430_000, 376_000, 7_466_000)
    roi = lattice.snap(bounds, 1)
    near = reader.near(roi)
    masks = near.read_masks(near.days, roi)
    found = 0
    for dn, _ in near.read_days(masks, roi).values():
        found += int((dn > 0).sum())
    assert found > 100_000
    # Nothing of it lies where the box of the item would have it: half way around the globe.
    away = lattice.snap((6_000_000, 0, 6_000_000 + 64 * gsd_m, 64 * gsd_m), 1)
    assert near.near(away).rows == ()

    far = shapely.box(0, 67.4, 1, 67.6)
    with pytest.raises(bigmap.BigmapError, match=r"no item|none|found"):
        find_items(source, bands=("red",), mask_asset="scl", geometry_lonlat=far)
