"""Vector files: which layer is meant, what is refused, and what is read of what is damaged."""

import json
import struct
import subprocess
import sys
import zipfile

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from bigmap.errors import SamplesError
from bigmap.vectors import measure_nesting, name_values, open_vector, take_polygons

WEST, EAST = shapely.box(2, 41, 2.1, 41.1), shapely.box(3, 41, 3.1, 41.1)
GEO = {
    "version": "1.0.0",
    "primary_column": "geometry",
    "columns": {"geometry": {"encoding": "WKB", "geometry_types": []}},
}


def frame_of(*shapes, crs=4326):
    return gpd.GeoDataFrame({"name": list("abcdef")[: len(shapes)]}, geometry=list(shapes), crs=crs)


def open_file(file, layer=None, **more):
    return open_vector(
        str(file), layer, where="f", choose="set f.layer", error=SamplesError, **more
    )


def write_layers(file, **layers):
    for layer, frame in layers.items():
        frame.to_file(file, layer=layer)
    return file


def write_parquet(file, geo, values):
    table = pa.table({"geometry": pa.array(values, pa.binary())})
    content = geo if isinstance(geo, bytes) else json.dumps(geo).encode()
    pq.write_table(table.replace_schema_metadata({b"geo": content} if geo else {}), file)
    return file


def nest(depth, code, order, inside=WEST):
    byte = b"\x01" if order == "<" else b"\x00"
    return (byte + struct.pack(f"{order}II", code, 1)) * depth + shapely.to_wkb(inside)


def test_a_layer_is_named_where_there_are_several(tmp_path):
    file = write_layers(tmp_path / "a.gpkg", draft=frame_of(WEST), final=frame_of(EAST))
    with pytest.raises(SamplesError, match=r"^f: has the layers draft, final; set f\.layer$"):
        open_file(file)
    with pytest.raises(SamplesError, match="has no layer finale; it has draft, final"):
        open_file(file, "finale")
    assert open_file(file, "final").read().geometry.iloc[0].equals(EAST)


def test_layers_that_cannot_be_meant_do_not_count(tmp_path):
    points, table = frame_of(shapely.Point(2, 41)), frame_of(WEST).drop(columns="geometry")
    file = write_layers(tmp_path / "a.gpkg", places=points, fields=frame_of(WEST))
    pyogrio.write_dataframe(table, file, layer="styles", append=True)
    assert open_file(file).read().geometry.iloc[0].equals(WEST)
    assert open_file(file, kind="points").read().geom_type.tolist() == ["Point"]
    with pytest.raises(SamplesError, match=r"layer places holds no polygons; .*styles \(a table\)"):
        open_file(file, "places")


def test_a_zip_of_two_shapefiles_has_two_layers(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, shape in (("west", WEST), ("east", EAST)):
            frame_of(shape).to_file(tmp_path / f"{name}.shp")
            for suffix in ("shp", "shx", "dbf", "prj"):
                archive.write(tmp_path / f"{name}.{suffix}", f"{name}.{suffix}")
    with pytest.raises(SamplesError, match="has the layers west, east; set"):
        open_file(tmp_path / "a.zip")
    assert open_file(tmp_path / "a.zip", "east").read().geometry.iloc[0].equals(EAST)


def test_the_folders_of_a_kml_are_united(tmp_path):
    def place(shape):
        ring = " ".join(f"{x},{y},7" for x, y in shape.exterior.coords)
        return (f"<Placemark><Polygon><outerBoundaryIs><LinearRing><coordinates>{ring}"
                "</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark>")  # fmt: skip

    (tmp_path / "a.kml").write_text(
        '<kml xmlns="http://www.opengis.net/kml/2.2"><Document><Folder><name>x</name>'
        f"<Folder><name>in</name>{place(WEST)}</Folder></Folder>"
        f"<Folder><name>x</name>{place(EAST)}</Folder></Document></kml>"
    )
    frame = open_file(tmp_path / "a.kml").read()
    assert shapely.union_all(frame.geometry).equals(shapely.union_all([WEST, EAST]))
    assert not frame.has_z.any()


def test_nothing_is_printed_about_layers(tmp_path):
    file = write_layers(tmp_path / "a.gpkg", draft=frame_of(WEST), final=frame_of(EAST))
    code = (
        "from bigmap.vectors import open_vector; from bigmap.errors import RecipeError\n"
        f"vector = open_vector({str(file)!r}, 'final', where='f', choose='', error=RecipeError)\n"
        "vector.read(); vector.read(bounds=(0, 0, 5, 50)); vector.read_attribute('name')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


@pytest.mark.parametrize("suffix", ["shp", "fgb", "geojsonl", "gpkg", "geojson", "parquet"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix):
    frame = frame_of(*[WEST] * 6)
    frame = frame.loc[np.repeat(frame.index, 50)]
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(whole)
    else:
        frame.to_file(whole, driver="GeoJSONSeq" if suffix == "geojsonl" else None)
    for file in tmp_path.glob("whole.*"):
        file.with_stem("cut").write_bytes(file.read_bytes())
    cut.write_bytes(whole.read_bytes()[: int(0.9 * whole.stat().st_size) - 7])
    assert len(open_file(whole).read()) == 300
    with pytest.raises(SamplesError, match=r"^f: cannot be read \("):
        open_file(cut).read()


@pytest.mark.parametrize(
    ("geo", "values", "message"),
    [
        (None, [WEST.wkb], "it has no geo metadata: write it as GeoParquet, with its CRS"),
        (GEO | {"primary_column": "shape"}, [WEST.wkb], "the column shape, which it lacks"),
        (b"{", [WEST.wkb], "cannot be read"),
        (b"5", [WEST.wkb], "the column None, which it lacks"),
        (GEO | {"columns": 5}, [WEST.wkb], "cannot be read"),
        (GEO, [b"\x01\x03"], "cannot be read"),
        (GEO, [nest(50_000, 7, "<")], "too deeply nested"),
        (GEO, [nest(50_000, 6, ">")], "too deeply nested"),
        (GEO, [nest(50_000, 1007, "<")], "too deeply nested"),
    ],
)
def test_parquet_that_is_no_geoparquet_ends_in_one_sentence(tmp_path, geo, values, message):
    file = write_parquet(tmp_path / "a.parquet", geo, values)
    with pytest.raises(SamplesError, match=message) as caught:
        open_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pandas", [b"[" * 100_000, b"{"])
def test_damaged_notes_of_pandas_end_in_one_sentence(tmp_path, pandas):
    table = pa.table({"geometry": pa.array([WEST.wkb], pa.binary())})
    notes = {b"geo": json.dumps(GEO).encode(), b"pandas": pandas}
    pq.write_table(table.replace_schema_metadata(notes), tmp_path / "a.parquet")
    with pytest.raises(SamplesError, match=r"^f: cannot be read \("):
        open_file(tmp_path / "a.parquet")


def test_geoparquet_is_read_by_its_primary_column_without_what_has_no_place(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", GEO, [None, WEST.wkb, shapely.Polygon().wkb])
    source = open_file(file)
    assert source.features == 3
    assert source.read().geometry.tolist() == [WEST]
    assert len(source.read(bounds=(5, 41, 6, 42))) == 0
    with pytest.raises(SamplesError, match="GeoParquet has no layers"):
        open_file(file, "a")
    frame = frame_of(WEST).assign(other=gpd.GeoSeries([EAST], crs=4326))
    frame.to_parquet(tmp_path / "two.parquet")
    assert open_file(tmp_path / "two.parquet").read().geometry.tolist() == [WEST]


@pytest.mark.parametrize(
    "shape", [WEST, shapely.box(0, 0, 1, 1), shapely.MultiPolygon([WEST, EAST])]
)
@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("flavor", ["iso", "extended"])
def test_nesting_is_counted_through_all_kinds_of_geometries(shape, dimensions, flavor):
    shapes = [shapely.Point(1, 2), shapely.LineString([(0, 0), (1, 1)]), shape]
    collection = shapely.GeometryCollection([shapely.GeometryCollection(shapes), shape, *shapes])
    given = shapely.force_3d(collection) if dimensions == 3 else collection
    for order in (0, 1):
        wkb = shapely.to_wkb(given, flavor=flavor, output_dimension=dimensions, byte_order=order)
        assert measure_nesting(wkb) == (3 if "Multi" in shape.geom_type else 2)
    srid = shapely.to_wkb(shapely.set_srid(given, 4326), include_srid=True)
    assert measure_nesting(srid) == (3 if "Multi" in shape.geom_type else 2)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet", ".shp"])
def test_metres_in_a_file_in_degrees_are_named(tmp_path, suffix):
    frame = frame_of(shapely.box(300_000, 4_600_000, 301_000, 4_601_000))
    file = tmp_path / f"a{suffix}"
    frame.to_parquet(file) if suffix == ".parquet" else frame.to_file(file)
    with pytest.raises(
        SamplesError, match=r"reaches 301000\.0, 4601000\.0, but its CRS \(WGS 84\)"
    ):
        open_file(file)


def test_degrees_and_grads_are_no_metres(tmp_path):
    for shape, crs in (
        (shapely.box(-180, -90, 180, 90), 4326),
        (shapely.box(190, 10, 200, 20), 4326),
        (shapely.box(1, 99, 2, 100), 4807),  # grads: 100 of them are the pole
    ):
        frame_of(shape, crs=crs).to_file(tmp_path / "a.gpkg")
        assert len(open_file(tmp_path / "a.gpkg").read()) == 1
        (tmp_path / "a.gpkg").unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.geojson", b"", "is not a vector file that can be read"),
        ("a.txt", b"hello", "is not a vector file that can be read"),
        ("a.csv", b"x,y\n1,2\n", "holds no polygons; the file has the layers a "),
        ("a.geojson", b'{"type":"Polygon","coordinates":[[[2,41],[NaN,41],[2,42],[2,41]]]}',
         "has coordinates that are no finite numbers"),
        ("a.geojson", b'{"type":"Polygon","coordinates":[[[0,0],[1,1]]]}', "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_vector_file_ends_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SamplesError, match=message):
        open_file(tmp_path / name).read()


def test_missing_files_folders_and_places_are_named(tmp_path):
    with pytest.raises(SamplesError, match="no such file"):
        open_file(tmp_path / "a.gpkg")
    with pytest.raises(SamplesError, match="is not a vector file"):
        open_file(tmp_path)
    frame_of(WEST).to_file(tmp_path / "a.shp")
    (tmp_path / "a.prj").unlink()
    with pytest.raises(SamplesError, match="has no CRS, so its place is unknown"):
        open_file(tmp_path / "a.shp")
    frame_of(WEST, crs='LOCAL_CS["x",UNIT["metre",1]]').to_file(tmp_path / "b.gpkg")
    with pytest.raises(SamplesError, match="has a CRS whose place on the Earth is unknown"):
        open_file(tmp_path / "b.gpkg")


def test_polygons_are_taken_out_of_collections_and_made_valid():
    line = shapely.LineString([(0, 0), (1, 1)])
    tie = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    inner = shapely.GeometryCollection([EAST, line, shapely.Point(0, 0)])
    given = np.array(
        [WEST, shapely.GeometryCollection([WEST, inner]), line, tie, shapely.GeometryCollection(),
         shapely.GeometryCollection([WEST, WEST.buffer(0.1)])], dtype=object,
    )  # fmt: skip
    found = take_polygons(given)
    assert found[0] == WEST
    assert found[1].equals(shapely.union_all([WEST, EAST]))
    assert found[2].is_empty
    assert found[3].area == pytest.approx(0.5)
    assert found[4].is_empty
    assert found[5].area == pytest.approx(WEST.buffer(0.1).area)
    assert set(shapely.get_type_id(found[[0, 1, 3, 5]])) <= {3, 6}


def test_holes_without_points_are_dropped_before_edges_are_cut():
    outer, hole = [(0, 0), (0, 4), (4, 4), (4, 0), (0, 0)], [(1, 1), (1, 2), (2, 2), (2, 1), (1, 1)]
    content = {"type": "Polygon", "coordinates": [outer, hole, []]}
    hollow = shapely.from_geojson(json.dumps(content))
    both = shapely.MultiPolygon([hollow, shapely.box(8, 0, 9, 1)])
    given = np.array([hollow, both, shapely.GeometryCollection([hollow, WEST])], dtype=object)
    found = take_polygons(given)
    assert not shapely.is_empty(shapely.get_rings(shapely.get_parts(found))).any()
    # GEOS ends the process here where such a hole is left.
    areas = shapely.area(shapely.segmentize(found, 0.5))
    assert areas == pytest.approx([15, 16, 15.01])


def test_names_and_accents_are_compared_as_they_look(tmp_path):
    frame = gpd.GeoDataFrame({"anne\u0301e": ["ble\u0301", "b"]}, geometry=[WEST, EAST], crs=4326)
    frame.to_file(tmp_path / "a.gpkg", layer="e\u0301te\u0301")
    source = open_file(tmp_path / "a.gpkg", "\u00e9t\u00e9")
    assert source.find_column("ann\u00e9e") == "anne\u0301e"
    assert source.find_column("annee") is None
    assert name_values(source.read_attribute("anne\u0301e")) == ["bl\u00e9", "b"]
    assert name_values([1.0, np.float32(2), 3.5, 4, True, None]) == [
        "1", "2", "3.5", "4", "True", "None",
    ]  # fmt: skip
