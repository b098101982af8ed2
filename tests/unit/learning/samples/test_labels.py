"""Labels of polygons, rasters and the simulated world, each against values known beforehand."""

import datetime as dt
import shutil

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio._err import CPLE_AppDefinedError

from bigmap.config.sources import Access
from bigmap.config.training import RasterLabels, SimulatedLabels, VectorLabels
from bigmap.errors import ReadError, SamplesError
from bigmap.learning.labels.opening import open_labels
from bigmap.learning.labels.simulated import reduce_by_mode
from bigmap.scenes.cube.resampling import transformer_between
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
    classes = {"wheat": 1, "maize": 2, "wood": 3}
    settings = {"kind": "vector", "file": file, "attribute": "kind", "classes": classes}
    return VectorLabels(**settings | changes)


def read(settings, *, values=(0, 1, 2, 3), grid=GRID):
    reader = open_labels(
        settings, crs=CRS, class_values=values, bounds=BOUNDS, access=Access(retries=0)
    )
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
    last = read(settings.model_copy(update={"overlaps": "last"}))
    assert (last[:10, 5:10] == 2).all()
    with pytest.raises(SamplesError, match=r"overlap at x=400055 y=4599995 \("):
        read(settings.model_copy(update={"overlaps": "refuse"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "absent.gpkg"}, "absent.gpkg: no such file"),
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
        read(vector(file).model_copy(update=changes))


def test_polygons_without_crs_place_or_area_are_refused(tmp_path):
    bare = write_vector(tmp_path / "bare.gpkg", crs=None)
    with pytest.raises(SamplesError, match="has no CRS"):
        read(vector(bare))
    far = write_vector(tmp_path / "far.gpkg", crs="EPSG:32632")
    with pytest.raises(SamplesError, match="no polygon of the classes lies in the area"):
        read(vector(far))
    points = write_vector(tmp_path / "points.gpkg", [(s.centroid, k) for s, k in FIELDS])
    with pytest.raises(SamplesError, match=r"holds no polygons; .* points \(Point\)"):
        read(vector(points))


def test_empty_geometries_are_passed_over(tmp_path):
    file = write_vector(
        tmp_path / "a.gpkg", [*FIELDS, (shapely.Polygon(), "wheat"), (None, "maize")]
    )
    assert (read(vector(file)) == 1).sum() == 200


def test_a_layer_is_named_and_collections_are_opened(tmp_path):
    file = tmp_path / "a.gpkg"
    write_vector(file, [(FIELDS[0][0], "maize"), (FIELDS[1][0], "wheat")])
    inner = shapely.GeometryCollection([FIELDS[2][0], shapely.Point(LEFT, TOP)])
    both = shapely.GeometryCollection([FIELDS[0][0], inner])
    fields = gpd.GeoDataFrame({"kind": ["wheat"]}, geometry=[both], crs=CRS)
    fields.to_file(file, layer="fields")
    settings = vector(str(file), classes={"wheat": 1}, background=0)
    with pytest.raises(SamplesError, match=r"has the layers a, fields; set samples\.labels\.layer"):
        read(settings)
    labels = read(settings.model_copy(update={"layer": "fields"}))
    expected = np.zeros((40, 40))
    expected[:10, :20] = expected[20:, :10] = 1
    np.testing.assert_array_equal(labels, expected)


def test_a_crossing_outline_labels_no_pixel_outside(tmp_path):
    # Made valid, it has a line beside its polygons, which covers no pixel.
    x, y = np.array([0, 100, 100, 0, 0, 50, 50]), np.array([0, 0, 100, 100, 0, -80, 0])
    spike = shapely.Polygon(np.column_stack([LEFT + 100 + x, TOP - 200 - y]))
    file = write_vector(tmp_path / "a.gpkg", [(spike, "wheat")])
    labels = read(vector(file, classes={"wheat": 1}, background=0))
    assert labels[30:].sum() == labels[:20, :10].sum() == labels[:, 30:].sum() == 0


@pytest.mark.parametrize("stored", ["ble\u0301", "bl\u00e9"])
@pytest.mark.parametrize("given", ["ble\u0301", "bl\u00e9"])
def test_accents_are_the_same_composed_or_not(tmp_path, stored, given):
    file = write_vector(tmp_path / "a.gpkg", [(FIELDS[0][0], stored)])
    labels = read(vector(file, classes={given: 1}, background=0))
    assert (labels == 1).sum() == 200


def write_raster(path, values, *, pixel_m=10, crs=CRS, nodata=None, left=LEFT):
    with rasterio.open(
        path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1,
        dtype=values.dtype, crs=crs, transform=Affine(pixel_m, 0, left, 0, -pixel_m, TOP),
        nodata=nodata,
    ) as target:  # fmt: skip
        target.write(values, 1)
    return str(path)


def raster(*files, classes=None):
    return RasterLabels(kind="raster", files=files, classes=classes)


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
        (np.zeros((4, 4), np.uint8), {"nodata": 0}, "has no labels in the area; nodata is 0"),
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


@pytest.mark.parametrize(
    ("values", "nodata", "message"),
    [
        (
            (0, 255),
            None,
            r"all labels are of class 0 in the area; its values \(255\) are no classes",
        ),
        ((0, 1), 0, "all labels are of class 1 in the area; nodata is 0, so that class"),
    ],
)
def test_labels_from_which_nothing_can_be_learnt_are_refused_before_work(
    tmp_path, values, nodata, message
):
    file = write_raster(tmp_path / "a.tif", checkered(values), nodata=nodata)
    with pytest.raises(SamplesError, match=message):
        open_labels(raster(file), crs=CRS, class_values=(0, 1), bounds=BOUNDS)


def test_one_class_is_enough_to_score_but_not_to_learn(tmp_path):
    file = write_raster(tmp_path / "a.tif", np.ones((40, 40), np.uint8))
    assert (read(raster(file)) == 1).all()
    with pytest.raises(SamplesError, match="all labels are of class 1 in the area; use another"):
        open_labels(raster(file), crs=CRS, class_values=(0, 1), bounds=BOUNDS, least_classes=2)
    rare = np.ones((3000, 2500), np.uint8)
    rare[2990, 2400] = 0
    file = write_raster(tmp_path / "b.tif", rare, pixel_m=0.1)
    bounds = (LEFT, TOP - 300, LEFT + 250, TOP)
    open_labels(raster(file), crs=CRS, class_values=(0, 1), bounds=bounds, least_classes=2)


def checkered(values):
    """Squares of 100 m of two values."""
    pattern = np.indices((40, 40)).sum(axis=0) // 10 % 2
    return np.array(values)[pattern].astype(np.uint8)


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [
        (np.uint8, (0, 255)),
        (np.int16, (-32768, 7)),
        (np.uint16, (255, 65535)),
        (np.int32, (-5, 20_240_001)),
        (np.uint32, (3_301_010_500, 3_301_010_501)),
        (np.int64, (-(2**40), 2**40 + 1)),
    ],
)
@pytest.mark.parametrize("pixel_m", [10, 2.5])
def test_any_whole_number_may_be_mapped(tmp_path, dtype, codes, pixel_m):
    places = np.kron(checkered((0, 1)), np.ones((round(10 / pixel_m),) * 2, np.uint8))
    file = write_raster(tmp_path / "a.tif", np.array(codes, dtype)[places], pixel_m=pixel_m)
    labels = read(raster(file, classes={codes[0]: 2, codes[1]: 1}))
    np.testing.assert_array_equal(labels, checkered((2, 1)))


def test_the_most_frequent_of_close_large_codes_counts(tmp_path):
    first, second = 3_301_010_500, 3_301_010_501  # equal in float32
    values = np.full((160, 160), first, np.uint32)
    values[:, ::4] = values[:, 1::4] = values[::4] = second  # 10 of 16
    file = write_raster(tmp_path / "a.tif", values, pixel_m=2.5)
    assert (read(raster(file, classes={first: 0, second: 1})) == 1).all()


def test_a_code_that_is_nodata_cannot_be_mapped(tmp_path):
    file = write_raster(tmp_path / "a.tif", checkered((0, 1)), nodata=0)
    with pytest.raises(SamplesError, match=r"classes: maps 0, which is nodata in .*a\.tif"):
        read(raster(file, classes={0: 0, 1: 1}))


def write_masked(path, values, *, mask, alpha=False, nodata=None):
    """Write labels of which some are hidden by an alpha band, or by a mask inside the file."""
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", width=40, height=40, count=1 + alpha, dtype=values.dtype,
            crs=CRS, transform=Affine(10, 0, LEFT, 0, -10, TOP), nodata=nodata,
            **({"alpha": "YES"} if alpha else {}),
        ) as target,
    ):  # fmt: skip
        target.write(values, 1)
        shown = np.where(mask, 255, 0).astype(values.dtype)
        target.write(shown, 2) if alpha else target.write_mask(shown.astype(np.uint8))
    return str(path)


@pytest.mark.parametrize("alpha", [True, False])
@pytest.mark.parametrize("nodata", [None, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_alpha_masks_and_nodata_are_unlabelled(tmp_path, alpha, nodata, dtype):
    values = checkered((0, 1)).astype(dtype)
    values[:, :5] = 3
    mask = np.ones((40, 40), bool)
    mask[:15] = False
    file = write_masked(tmp_path / "a.tif", values, mask=mask, alpha=alpha, nodata=nodata)
    hidden = ~mask | (values == nodata if nodata is not None else False)
    np.testing.assert_array_equal(read(raster(file)), np.where(hidden, 255, values))


def test_files_whose_labels_would_be_taken_for_others_are_refused(tmp_path):
    values = checkered((0, 1))
    with rasterio.open(
        tmp_path / "rgb.tif", "w", driver="GTiff", width=40, height=40, count=3, dtype="uint8",
        crs=CRS, transform=Affine(10, 0, LEFT, 0, -10, TOP),
    ) as target:  # fmt: skip
        target.write(np.stack([values] * 3))
    with pytest.raises(SamplesError, match=r"rgb\.tif: has 3 bands, but labels need one"):
        read(raster(str(tmp_path / "rgb.tif")))
    file = write_raster(tmp_path / "a.tif", values)
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="40" rasterYSize="40"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{file}</SourceFilename></SimpleSource></VRTRasterBand>"
        "</VRTDataset>"
    )
    with pytest.raises(ReadError, match=r"^samples\.labels\.files: .*a\.vrt: .* Only GeoTIFF"):
        read(raster(str(tmp_path / "a.vrt")))
    with rasterio.open(file, "r+") as target, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        target.write_mask(np.full((40, 40), 255, np.uint8))
    with pytest.raises(SamplesError, match=r"has a mask in .*a\.tif\.msk, which is not read"):
        read(raster(file))


@pytest.mark.parametrize("degrees", [-30, 90, 180])
def test_rotated_rasters_are_read_where_they_lie(tmp_path, degrees):
    values = (np.indices((60, 60)).sum(axis=0) // 6 % 4).astype(np.uint8)
    turned = (Affine.translation(LEFT + 200, TOP - 200) * Affine.rotation(degrees)
              * Affine.scale(10, -10) * Affine.translation(-30, -30))  # fmt: skip
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=60, height=60, count=1, dtype="uint8",
        crs=CRS, transform=turned,
    ) as target:  # fmt: skip
        target.write(values, 1)
    labels = read(raster(str(tmp_path / "a.tif")))
    cols, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    source_cols, source_rows = ~turned * (LEFT + 10 * cols, TOP - 10 * rows)
    inside = (abs(source_cols - 30) < 29) & (abs(source_rows - 30) < 29)
    expected = values[source_rows.clip(0, 59).astype(int), source_cols.clip(0, 59).astype(int)]
    assert inside.mean() > 0.9
    # Pixels that straddle a step may go either way.
    assert (labels == expected)[inside].mean() > (0.99 if degrees % 90 == 0 else 0.9)


WORLD = {"EPSG:32601": (200_000, 7_000_000), "EPSG:32660": (750_000, 7_000_000),
         "EPSG:32631": (-200_000, 4_600_000), "EPSG:32719": (400_000, 6_000_000)}  # fmt: skip


@pytest.mark.parametrize("west", [-180, 0, -180.5])
@pytest.mark.parametrize("crs", WORLD)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_rasters_of_the_whole_earth_are_read_on_both_sides_of_their_seam(
    tmp_path, west, crs, dtype
):
    rows, cols = np.indices((360, 720))
    values = ((rows // 2 + cols // 2) % 4).astype(dtype)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=720, height=360, count=1, dtype=dtype,
        crs="EPSG:4326", transform=Affine(0.5, 0, west, 0, -0.5, 90),
    ) as target:  # fmt: skip
        target.write(values, 1)
    grid = GeoBox((60, 60), Affine(5000, 0, WORLD[crs][0], 0, -5000, WORLD[crs][1]), crs)
    box = grid.boundingbox
    bounds = (box.left, box.bottom, box.right, box.top)
    reader = open_labels(raster(str(tmp_path / "a.tif")), crs=crs, class_values=(0, 1, 2, 3),
                         bounds=bounds)  # fmt: skip
    labels = reader.read(grid)
    cols, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(60) + 0.5)
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(
        box.left + 5000 * cols, box.top - 5000 * rows
    )
    source_cols = np.floor((lon - west) % 360 / 0.5).astype(int)
    expected = values[np.floor((90 - lat) / 0.5).astype(int), source_cols]
    assert (labels != 255).all()
    assert (labels == expected).mean() > 0.8  # the others straddle a step


def test_simulated_labels_are_the_truth_and_its_most_frequent_value():
    crs, left, top = "EPSG:25831", 300_000, 4_615_000
    settings = SimulatedLabels(kind="simulated", layer="cropland")
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


def test_pixels_of_no_size_are_refused(tmp_path):
    file = write_raster(tmp_path / "a.tif", np.eye(8, dtype=np.uint8))
    with rasterio.open(file, "r+") as target:
        target.transform = Affine(10, 0, LEFT, 0, 0, 0)
    with pytest.raises(SamplesError, match=r"a\.tif: has pixels of no size; correct its transform"):
        read(raster(file))


def test_a_crs_that_leads_nowhere_is_told(tmp_path):
    file = write_raster(tmp_path / "a.tif", np.eye(8, dtype=np.uint8))
    with rasterio.open(file, "r+") as target:
        target.crs = 'LOCAL_CS["somewhere",UNIT["metre",1]]'
    with pytest.raises(SamplesError, match=r"a\.tif: its CRS leads nowhere from"):
        read(raster(file))


def test_what_gdal_raises_without_a_type_of_rasterio_is_told(tmp_path, monkeypatch):
    file = write_raster(tmp_path / "a.tif", np.eye(8, dtype=np.uint8))

    def fail(source):
        raise CPLE_AppDefinedError(3, 1, "custom tag 0 is not read")

    monkeypatch.setattr("bigmap.learning.labels.rasters.has_alpha_band", fail)
    with pytest.raises(ReadError, match=r"a\.tif: custom tag 0 is not read"):
        read(raster(file))


VALUES = (np.indices((40, 40)).sum(axis=0) // 10 % 4).astype(np.uint8)


def fail_at_first(monkeypatch, failures):
    """Let GDAL fail to open files so often; returns how each was opened."""
    opened = []

    def open_dataset(name, **options):
        opened.append(rasterio.env.getenv())
        if len(opened) <= failures:
            raise rasterio.errors.RasterioIOError("HTTP response code: 503")
        return rasterio.io.DatasetReader(name, **options)

    monkeypatch.setattr("bigmap.scenes.cube.reading.DatasetReader", open_dataset)
    return opened


def test_a_raster_that_fails_twice_is_read(tmp_path, monkeypatch):
    file = write_raster(tmp_path / "a.tif", VALUES)
    access = Access(retries=2, timeout_s=7)
    reader = open_labels(raster(file), crs=CRS, class_values=(0, 1, 2, 3), bounds=BOUNDS,
                         access=access)  # fmt: skip
    opened = fail_at_first(monkeypatch, 2)
    np.testing.assert_array_equal(reader.near(BOUNDS).read(GRID), VALUES)
    assert [each["GDAL_HTTP_CONNECTTIMEOUT"] for each in opened] == [7, 7, 7]
    assert [each["AWS_NO_SIGN_REQUEST"] for each in opened] == ["NO"] * 3, "they are the user's own"
    fail_at_first(monkeypatch, 3)
    with pytest.raises(ReadError, match=r"^samples\.labels\.files: .*a\.tif: .*code: 503"):
        reader.read(GRID)


def test_hrefs_of_rasters_are_signed(tmp_path, monkeypatch):
    file = write_raster(tmp_path / "a.tif", VALUES)
    href = "https://maps.blob.core.windows.net/labels/a.tif"
    signed = {(href, "planetary-computer"): file}
    monkeypatch.setattr("bigmap.scenes.cube.reading.sign_href", lambda *given: signed[given])
    reader = open_labels(raster(href), crs=CRS, class_values=(0, 1, 2, 3), bounds=BOUNDS,
                         access=Access(sign="planetary-computer"))  # fmt: skip
    np.testing.assert_array_equal(reader.read(GRID), VALUES)


def test_a_raster_that_has_become_another_kind_ends_the_work(tmp_path):
    file = write_raster(tmp_path / "a.tif", VALUES)
    reader = open_labels(raster(file), crs=CRS, class_values=(0, 1, 2, 3), bounds=BOUNDS)
    with rasterio.open(file, "r+") as target:
        target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "other.tif"))
    with pytest.raises(SamplesError, match=r"^samples\.labels\.files: .*a\.tif: "):
        reader.read(GRID)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_polygons_that_are_away_for_a_moment_can_be_read_again(tmp_path, suffix):
    file = write_vector(tmp_path / f"fields{suffix}")
    reader = open_labels(vector(file), crs=CRS, class_values=(0, 1, 2, 3), bounds=BOUNDS)
    expected = reader.read(GRID)
    away = (tmp_path / "away").joinpath(f"fields{suffix}")
    away.parent.mkdir()
    shutil.move(file, away)
    with pytest.raises(ReadError, match=rf"^samples\.labels\.file: .*\{suffix}: cannot be read"):
        reader.read(GRID)
    shutil.move(away, file)
    np.testing.assert_array_equal(reader.read(GRID), expected)
    assert (expected != 255).any()


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_transformations_are_made_once_for_all_places(tmp_path, dtype):
    values = VALUES.astype(dtype)
    crs = "EPSG:25831"  # the same coordinates as those of the grid
    file = write_raster(tmp_path / "a.tif", values, crs=crs)
    reader = open_labels(raster(file), crs=CRS, class_values=(0, 1, 2, 3), bounds=BOUNDS)
    reader.read(GRID[:8, :8])
    made = transformer_between.cache_info().misses
    for row in range(8, 40, 8):
        part = reader.near(BOUNDS).read(GRID[row : row + 8, 3:11])
        np.testing.assert_array_equal(part, values[row : row + 8, 3:11])
    assert transformer_between.cache_info().misses == made
