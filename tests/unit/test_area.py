"""The AOI: boxes and files into the CRS of the grid, and back to degrees."""

import geopandas as gpd
import pytest
import shapely

from bigmap.area import list_utm_zones, lonlat_of, read_area
from bigmap.errors import RecipeError


def test_edges_of_a_box_are_curved_on_the_map():
    outline = read_area(crs="EPSG:3035", bbox=[0, 45, 20, 55]).parts[0]
    corners = gpd.GeoSeries([shapely.box(0, 45, 20, 55)], crs=4326).to_crs(3035).iloc[0]
    assert shapely.get_num_coordinates(outline) > 1000
    # The parallel bulges south of the straight line between its ends by kilometres.
    bulge_m = corners.bounds[1] - outline.bounds[1]
    assert 10_000 < bulge_m < 100_000
    south = gpd.GeoSeries.from_xy([10], [45], crs=4326).to_crs(3035).iloc[0]
    assert outline.distance(south) < 1


def test_buffer_grows_by_metres():
    plain = read_area(crs="EPSG:32631", bbox=[2, 41, 2.1, 41.1])
    grown = read_area(crs="EPSG:32631", bbox=[2, 41, 2.1, 41.1], buffer_m=500)
    differences = [b - a for a, b in zip(plain.bounds, grown.bounds, strict=True)]
    assert differences == pytest.approx([-500, -500, 500, 500], abs=1)


def test_clip_keeps_the_outline():
    whole = read_area(crs="EPSG:32631", bbox=[2, 41, 2.2, 41.1])
    clipped = read_area(crs="EPSG:32631", bbox=[2, 41, 2.2, 41.1], clip_bbox=[2, 41, 2.1, 42])
    assert clipped.parts[0].equals(whole.parts[0])
    assert clipped.area_km2 == pytest.approx(whole.area_km2 / 2, rel=1e-3)


def test_clip_outside_is_refused():
    with pytest.raises(RecipeError, match=r"--bbox.*does not meet"):
        read_area(crs="EPSG:32631", bbox=[2, 41, 2.1, 41.1], clip_bbox=[3, 41, 3.1, 42])


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660", "EPSG:3413"])
def test_box_across_the_antimeridian(crs):
    area = read_area(crs=crs, bbox=[179, 65, -179, 66])
    # Two degrees by one at 65.5 N.
    assert area.area_km2 == pytest.approx(10_320, rel=0.05)
    lonlat = lonlat_of(area.parts[0], crs)
    assert lonlat.geom_type == "MultiPolygon"
    west, east = sorted(lonlat.geoms, key=lambda part: part.bounds[0])
    assert west.bounds == pytest.approx((-180, 65, -179, 66), abs=1e-6)
    assert east.bounds == pytest.approx((179, 65, 180, 66), abs=1e-6)
    assert -180 <= lonlat.bounds[0] <= lonlat.bounds[2] <= 180
    assert lonlat.is_valid


def test_area_around_a_pole_covers_all_longitudes():
    around = read_area(crs="EPSG:3413", bbox=[0, 85, 10, 86]).parts[0].buffer(1_000_000)
    west, _, east, north = lonlat_of(around, "EPSG:3413").bounds
    assert (west, east, north) == (-180, 180, 90)


def test_area_beyond_what_the_crs_can_show_is_the_world():
    around = read_area(crs="EPSG:32601", bbox=[-178, 65, -177, 66]).parts[0].buffer(1e9)
    assert lonlat_of(around, "EPSG:32601").bounds == (-180, -90, 180, 90)


def test_lonlat_returns_to_the_box():
    outline = read_area(crs="EPSG:32631", bbox=[2, 41, 2.1, 41.1]).parts[0]
    assert lonlat_of(outline, "EPSG:32631").bounds == pytest.approx((2, 41, 2.1, 41.1), abs=1e-6)


@pytest.fixture
def fields():
    """Two squares with a common edge, and a point that counts for nothing.

    Their edges are short, so that it hardly matters in which CRS they are straight.
    """
    squares = [shapely.box(2, 41, 2.1, 41.1), shapely.box(2.1, 41, 2.2, 41.1)]
    shapes = [*(square.segmentize(0.005) for square in squares), shapely.Point(2, 2)]
    return gpd.GeoDataFrame({"name": list("abc")}, geometry=shapes, crs=4326)


def test_files_read_alike(tmp_path, fields):
    fields.to_file(tmp_path / "a.geojson")
    fields.to_file(tmp_path / "a.gpkg")
    fields.to_parquet(tmp_path / "a.parquet")
    fields.to_parquet(tmp_path / "b.geoparquet")
    fields.to_crs(3035).to_file(tmp_path / "c.gpkg")
    areas = [read_area(crs="EPSG:32631", file=str(file)) for file in sorted(tmp_path.iterdir())]
    assert len(areas) == 5
    for area in areas:
        assert area.parts[0].symmetric_difference(areas[0].parts[0]).area < 100


def test_long_edges_of_a_file_are_straight_in_its_own_coordinates(tmp_path):
    gpd.GeoDataFrame(geometry=[shapely.box(0, 45, 20, 55)], crs=4326).to_file(tmp_path / "a.gpkg")
    from_file = read_area(crs="EPSG:3035", file=str(tmp_path / "a.gpkg")).parts[0]
    from_box = read_area(crs="EPSG:3035", bbox=[0, 45, 20, 55]).parts[0]
    assert from_file.symmetric_difference(from_box).area < 1


def test_polygons_are_united(tmp_path, fields):
    fields.to_file(tmp_path / "a.gpkg")
    outline = read_area(crs="EPSG:32631", file=str(tmp_path / "a.gpkg")).parts[0]
    assert outline.geom_type == "Polygon"


def test_bow_tie_is_repaired(tmp_path):
    tie = shapely.Polygon([(2, 41), (2.1, 41.1), (2.1, 41), (2, 41.1)])
    gpd.GeoDataFrame(geometry=[tie], crs=4326).to_file(tmp_path / "a.gpkg")
    area = read_area(crs="EPSG:32631", file=str(tmp_path / "a.gpkg"))
    assert area.parts[0].is_valid
    assert area.area_km2 == pytest.approx(46.6, rel=0.01)


@pytest.mark.parametrize(
    ("crs", "bbox"),
    [
        ("EPSG:25831", [-71, -34, -70, -33]),
        ("EPSG:25831", [177, -17, 178, -16]),
        ("EPSG:25831", [-180, -90, 180, 90]),
        ("EPSG:3035", [-71, -34, -70, -33]),
        ("EPSG:3857", [10, 70, 11, 71]),
        ("EPSG:2154", [20, -34, 21, -33]),
    ],
)
def test_crs_for_another_place_is_refused(crs, bbox):
    with pytest.raises(RecipeError, match=rf"area.bbox.*{crs}.*not made"):
        read_area(crs=crs, bbox=bbox)


@pytest.mark.parametrize(
    ("crs", "bbox"),
    [
        ("EPSG:32631", [-5, 42, 9, 51]),  # France, wider than its zone
        ("EPSG:3035", [-10, 35, 40, 70]),  # Europe
        ("EPSG:32719", [-71, -34, -70, -33]),
        ("EPSG:32619", [-71, -34, -70, -33]),  # Landsat counts south of the equator so
        ("EPSG:3857", [0, 41, 1, 42]),
        ("EPSG:6933", [-180, -60, 180, 60]),
        ("+proj=laea +lat_0=5 +lon_0=20 +units=m", [-20, -35, 52, 38]),  # Africa
    ],
)
def test_crs_may_reach_beyond_its_own_area(crs, bbox):
    assert read_area(crs=crs, bbox=bbox).area_km2 > 1000


def test_a_layer_of_a_file_is_the_area(tmp_path, fields):
    file = tmp_path / "a.gpkg"
    fields.iloc[:1].to_file(file, layer="draft")
    fields.iloc[:2].to_file(file, layer="outline")
    with pytest.raises(RecipeError, match=r"has the layers draft, outline; set area\.layer"):
        read_area(crs="EPSG:32631", file=str(file))
    draft, outline = (
        read_area(crs="EPSG:32631", file=str(file), layer=layer).area_km2
        for layer in ("draft", "outline")
    )
    assert outline == pytest.approx(2 * draft, rel=1e-3)
    assert [z.name for z in list_utm_zones(file=str(file), layer="outline")] == ["31n"]


def test_polygons_within_collections_are_part_of_the_area(tmp_path, fields):
    inner = shapely.GeometryCollection([fields.geometry[1], fields.geometry[2]])
    nested = shapely.GeometryCollection([fields.geometry[0], inner])
    gpd.GeoDataFrame(geometry=[nested], crs=4326).to_file(tmp_path / "a.geojson")
    fields.to_file(tmp_path / "b.geojson")
    nested_area, flat = (
        read_area(crs="EPSG:32631", file=str(tmp_path / name)).parts[0]
        for name in ("a.geojson", "b.geojson")
    )
    assert nested_area.equals(flat)


def test_heights_play_no_part(tmp_path, fields):
    fields.to_file(tmp_path / "a.gpkg")
    fields.set_geometry(shapely.force_3d(fields.geometry.values, 700)).to_file(tmp_path / "b.gpkg")
    flat, high = (
        read_area(crs="EPSG:32631", file=str(tmp_path / name)).parts[0]
        for name in ("a.gpkg", "b.gpkg")
    )
    assert flat.equals(high)
    assert not high.has_z
