"""Labels of polygons, rasters and the simulated world, each against values known beforehand."""

import datetime as dt

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from bigmap.errors import SamplesError
from bigmap.labels import open_labels, reduce_by_mode
from bigmap.simulate import render_truth

CRS = "EPSG:32631"
LEFT, TOP = 400_000, 4_600_000
BOUNDS = (LEFT, TOP - 400, LEFT + 400, TOP)
GRID = GeoBox((40, 40), Affine(10, 0, LEFT, 0, -10, TOP), CRS)


def box(left, top, width, height):
    """A rectangle, in metres right and down of the corner."""
    x, y = LEFT + left, TOP - top
    return shapely.box(x, y - height, x + width, y)


FIELDS = [(box(0, 0, 200, 100), "wheat"), (box(200, 0, 200, 100), "maize"),
          (box(0, 200, 100, 200), "wood"), (box(300, 300, 50, 50), "lake")]  # fmt: skip


def write_vector(path, fields=FIELDS, *, crs=CRS, attribute="kind", to_crs=None):
    frame = gpd.GeoDataFrame(
        {attribute: [kind for _, kind in fields]}, geometry=[shape for shape, _ in fields], crs=crs
    )
    if to_crs is not None:
        frame = frame.to_crs(to_crs)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_file(path)
    return str(path)


def vector(file, **changes):
    return {
        "kind": "vector", "file": file, "layer": None, "attribute": "kind",
        "classes": {"wheat": 1, "maize": 2, "wood": 3}, "background": None,
        "overlaps": "unlabelled",
    } | changes  # fmt: skip


def read(settings, *, values=(0, 1, 2, 3), grid=GRID):
    reader = open_labels(settings, crs=CRS, class_values=values, bounds=BOUNDS)
    labels = reader.read(grid)
    np.testing.assert_array_equal(labels, reader.near(BOUNDS).read(grid))
    return labels


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".fgb", ".geojson"])
def test_polygons_of_every_format_become_classes(tmp_path, suffix):
    crs = "EPSG:4326" if suffix == ".geojson" else CRS
    labels = read(vector(write_vector(tmp_path / f"fields{suffix}", to_crs=crs)))
    expected = np.full((40, 40), 255)
    expected[:10, :20], expected[:10, 20:], expected[20:, :10] = 1, 2, 3
    # The lake is no class, so it stays unlabelled.
    np.testing.assert_array_equal(labels, expected)


def test_whole_numbers_name_classes_without_a_point(tmp_path):
    fields = [
        (shape, number) for (shape, _), number in zip(FIELDS, (1.0, 2.0, 2.0, 7.0), strict=True)
    ]
    labels = read(vector(write_vector(tmp_path / "a.gpkg", fields), classes={"1": 1, "2": 2}))
    assert set(np.unique(labels)) == {1, 2, 255}


def test_a_finer_grid_takes_pixel_centres(tmp_path):
    shape = box(0, 0, 13, 13)  # covers the centres of 5 pixels of 2.5 m, at 1.25 ... 11.25
    file = write_vector(tmp_path / "a.gpkg", [(shape, "wheat"), (box(100, 0, 9, 9), "maize")])
    fine = GeoBox((20, 20), Affine(2.5, 0, LEFT, 0, -2.5, TOP), CRS)
    labels = read(vector(file, classes={"wheat": 1, "maize": 2}), grid=fine)
    assert (labels == 1).sum() == 25
    assert (labels[:5, :5] == 1).all()


def test_background_is_a_class_where_no_polygon_lies(tmp_path):
    labels = read(vector(write_vector(tmp_path / "a.gpkg"), background=0))
    assert (labels == 0).sum() == 40 * 40 - 200 - 200 - 200
    only = read(vector(write_vector(tmp_path / "b.gpkg"), attribute=None, classes={"any": 1},
                       background=0))  # fmt: skip
    assert (only == 1).sum() == 600 + 25


def test_overlaps_follow_their_rule(tmp_path):
    fields = [(box(0, 0, 100, 100), "wheat"), (box(50, 0, 100, 100), "maize"),
              (box(0, 0, 30, 30), "wheat")]  # fmt: skip
    file = write_vector(tmp_path / "a.gpkg", fields)
    settings = vector(file, classes={"wheat": 1, "maize": 2})
    unlabelled = read(settings)
    assert (unlabelled[:10, 5:10] == 255).all()
    assert (unlabelled[:3, :3] == 1).all(), "polygons of one class may overlap"
    last = read(settings | {"overlaps": "last"})
    assert (last[:10, 5:10] == 2).all()
    with pytest.raises(SamplesError, match=r"overlap at x=400055 y=4\.6"):
        read(settings | {"overlaps": "refuse"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "absent.gpkg"}, "absent.gpkg: cannot be read"),
        ({"attribute": "sort"}, "has no attribute sort; it has kind"),
        ({"classes": {"wheat": 1, "rye": 2}}, "no polygon of .* has kind 'rye'; there are 'lake'"),
        ({"classes": {"wheat": 1, "maize": 1}}, "all labels are of one class"),
        ({"classes": {"wheat": 1, "maize": 9}}, "class value 9, but the model's legend has 0, 1"),
        ({"attribute": None}, "attribute: is needed"),
    ],
)
def test_bad_polygons_end_in_one_sentence(tmp_path, changes, message):
    file = write_vector(tmp_path / "fields.gpkg")
    with pytest.raises(SamplesError, match=message):
        read(vector(file) | changes)


def test_polygons_without_crs_place_or_area_are_refused(tmp_path):
    bare = write_vector(tmp_path / "bare.gpkg", crs=None)
    with pytest.raises(SamplesError, match="has no CRS"):
        read(vector(bare))
    far = write_vector(tmp_path / "far.gpkg", crs="EPSG:32632")
    with pytest.raises(SamplesError, match="no polygon of the classes lies in the area"):
        read(vector(far))
    points = write_vector(tmp_path / "points.gpkg", [(s.centroid, k) for s, k in FIELDS])
    with pytest.raises(SamplesError, match="holds Points; labels need polygons"):
        read(vector(points))


def test_empty_geometries_are_passed_over(tmp_path):
    file = write_vector(
        tmp_path / "a.gpkg", [*FIELDS, (shapely.Polygon(), "wheat"), (None, "maize")]
    )
    assert (read(vector(file)) == 1).sum() == 200


def write_raster(path, values, *, pixel_m=10, crs=CRS, nodata=None, left=LEFT):
    with rasterio.open(
        path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1,
        dtype=values.dtype, crs=crs, transform=Affine(pixel_m, 0, left, 0, -pixel_m, TOP),
        nodata=nodata,
    ) as target:  # fmt: skip
        target.write(values, 1)
    return str(path)


def raster(*files, classes=None):
    return {"kind": "raster", "files": files, "classes": classes}


def test_rasters_on_the_grid_are_copied_and_mapped(tmp_path):
    values = np.random.default_rng(0).integers(1, 5, (40, 40)).astype(np.uint8)
    file = write_raster(tmp_path / "a.tif", values, nodata=4)
    same = read(raster(file))
    np.testing.assert_array_equal(same, np.where(values == 4, 255, values))
    mapped = read(raster(file, classes={1: 3, 2: 0}))
    np.testing.assert_array_equal(mapped, np.select([values == 1, values == 2], [3, 0], 255))


def test_finer_rasters_take_the_most_frequent_value(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.choice([1, 2, 3], (160, 160), p=[0.5, 0.3, 0.2]).astype(np.uint8)
    labels = read(raster(write_raster(tmp_path / "a.tif", values, pixel_m=2.5)))
    squares = values.reshape(40, 4, 40, 4)
    counts = np.stack([(squares == value).sum(axis=(1, 3)) for value in (1, 2, 3)])
    clear = np.sort(counts, axis=0)[-1] > np.sort(counts, axis=0)[-2]  # ties may go either way
    np.testing.assert_array_equal(labels[clear], counts.argmax(axis=0)[clear] + 1)


def test_coarser_rasters_repeat_and_the_first_of_several_counts(tmp_path):
    coarse = np.array([[1, 2], [3, 1]], np.uint8)
    first = write_raster(tmp_path / "a.tif", coarse, pixel_m=100, nodata=0)
    second = write_raster(tmp_path / "b.tif", np.full((4, 4), 2, np.uint8), pixel_m=100, nodata=0)
    labels = read(raster(first, second))
    np.testing.assert_array_equal(labels[:20, :20], np.kron(coarse, np.ones((10, 10))))
    assert (labels[20:] == 2).all()
    assert (labels[:, 20:] == 2).all()


def test_beyond_a_raster_nothing_is_labelled(tmp_path):
    for nodata in (None, 0):
        file = write_raster(
            tmp_path / f"{nodata}.tif",
            np.full((10, 10), 1, np.uint8),
            nodata=nodata,
            left=LEFT + 100,
        )
        labels = read(raster(file))
        assert (labels[:10, 10:20] == 1).all()
        assert (labels == 255).sum() == 1600 - 100


def test_a_stac_collection_names_its_rasters(tmp_path):
    values = np.full((40, 40), 2, np.uint8)
    write_raster(tmp_path / "a.tif", values)
    square = shapely.geometry.mapping(shapely.box(0, 0, 1, 1))
    item = pystac.Item("a", square, [0, 0, 1, 1], dt.datetime(2020, 1, 1), {})
    item.add_asset("map", pystac.Asset("../a.tif", media_type=pystac.MediaType.COG, roles=["data"]))
    extent = pystac.Extent(
        pystac.SpatialExtent([[0, 0, 1, 1]]), pystac.TemporalExtent([[None, None]])
    )
    collection = pystac.Collection("labels", "Labels", extent, license="other")
    collection.add_item(item)
    collection.normalize_hrefs(str(tmp_path))
    collection.save(pystac.CatalogType.SELF_CONTAINED)
    assert (read(raster(str(tmp_path / "collection.json"))) == 2).all()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((4, 4), np.float32), {}, "holds float32; classes need whole numbers"),
        (np.ones((4, 4), np.uint8), {"crs": None}, "has no CRS"),
        (np.full((4, 4), 77, np.uint8), {}, r"its values \(77\) are no classes"),
        (np.ones((4, 4), np.uint8), {"left": LEFT + 90_000}, "none of the 1 rasters lies in"),
    ],
)
def test_bad_rasters_end_in_one_sentence(tmp_path, values, options, message):
    file = write_raster(tmp_path / "a.tif", values, **options)
    with pytest.raises(SamplesError, match=message):
        read(raster(file))


def test_simulated_labels_are_the_truth_and_its_most_frequent_value():
    crs, left, top = "EPSG:25831", 300_000, 4_615_000
    settings = {"kind": "simulated", "layer": "cropland"}
    reader = open_labels(settings, crs=crs, class_values=(0, 1), bounds=(0, 0, 1, 1), seed=3)
    fine = reader.read(GeoBox((32, 48), Affine(2.5, 0, left, 0, -2.5, top), crs))
    truth = render_truth(
        crs, Affine(2.5, 0, left, 0, -2.5, top), (32, 48), seed=3, layer="cropland"
    )
    np.testing.assert_array_equal(fine, truth)
    coarse = GeoBox((8, 12), Affine(10, 0, left, 0, -10, top), crs)
    expected = truth.reshape(8, 4, 12, 4).sum(axis=(1, 3)) > 8
    np.testing.assert_array_equal(reader.read(coarse), expected)
    near = reader.near((left - 7, top - 200, left + 303, top + 11))
    np.testing.assert_array_equal(near.read(coarse), expected)
    with pytest.raises(SamplesError, match=r"whole multiples of 2\.5 m, not 3 m"):
        reader.read(GeoBox((8, 8), Affine(3, 0, left, 0, -3, top), crs))


def test_modes_of_squares_take_the_smaller_of_equal_values():
    labels = np.array([[5, 5, 1, 2], [5, 9, 2, 1]], np.uint8)
    np.testing.assert_array_equal(reduce_by_mode(labels, 2), [[5, 1]])
