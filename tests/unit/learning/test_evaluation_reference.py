"""A reference sample on a map: which points count, which strata, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely

from bigmap.config import parse_recipe
from bigmap.errors import SamplesError
from bigmap.learning.evaluation.maps import open_grids
from bigmap.learning.evaluation.reference import (
    ReferenceSample,
    read_areas,
    sample_grids,
    score_reference,
)
from bigmap.learning.evaluation.reports import format_markdown, list_sample_tables
from tests.integration.small_world import raw_recipe
from tests.unit.learning.evaluation_maps import GSD_M, write_map, write_zones

NAMES = ("deforestation", "forest gain", "stable forest", "stable non-forest")
OLOFSSON = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
SHARES_PX = (2_000, 1_500, 32_000, 64_500)
"""Of the published example, a hundredth."""
LEGEND = {
    "long_name": "Class", "flag_values": [1, 2, 3, 4],
    "flag_meanings": " ".join(name.replace(" ", "_") for name in NAMES),
}  # fmt: skip
CLASSES = [{"value": index + 1, "name": name} for index, name in enumerate(NAMES)]
RECIPE = parse_recipe(
    raw_recipe(model={"name": "deeplabv3plus", "options": {"size": "small"}, "legend": CLASSES})
)


def centre_of(path: str, rows: Any, cols: Any, *, crs: str = "EPSG:25831") -> gpd.GeoSeries:
    left, _, _, top = open_grids(path)[0].bounds
    x, y = left + (np.asarray(cols) + 0.5) * GSD_M, top - (np.asarray(rows) + 0.5) * GSD_M
    return gpd.GeoSeries.from_xy(x, y, crs=crs)


def write_example(folder: Path) -> tuple[str, gpd.GeoDataFrame]:
    """Write a map of the published areas, and points of the published matrix on it."""
    classes = np.full(320 * 320, 255, dtype=np.uint8)
    edges = np.cumsum((0, *SHARES_PX))
    for index, (start, stop) in enumerate(itertools.pairwise(edges)):
        classes[start:stop] = index + 1
    path = write_map(folder / "map.zarr", classes.reshape(320, 320), legend=LEGEND)
    rng = np.random.default_rng(0)
    flat, reference = [], []
    for row, counts in enumerate(OLOFSSON):
        flat += rng.choice(np.arange(edges[row], edges[row + 1]), counts.sum(), False).tolist()
        reference += np.repeat(NAMES, counts).tolist()
    rows, cols = np.unravel_index(flat, (320, 320))
    return path, gpd.GeoDataFrame({"class": reference}, geometry=centre_of(path, rows, cols))


def score(path: str, file: Path, **sample: Any):
    columns = {"attribute": "class", **sample}
    evaluation = score_reference(RECIPE, path, ReferenceSample(str(file), **columns), run=map)
    found = evaluation.models[0].sample
    assert found is not None
    return evaluation, found


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    path, frame = write_example(folder)
    return path, frame


@pytest.mark.parametrize("crs", ["EPSG:25831", "EPSG:4326", "EPSG:3035"])
def test_the_published_example_on_a_map(example, tmp_path, crs) -> None:
    path, frame = example
    file = tmp_path / "points.gpkg"
    frame.to_crs(crs).to_file(file)
    evaluation, found = score(path, file)
    assert found.points == 640
    assert found.design.counts.tolist() == OLOFSSON.tolist()
    assert found.design.accuracy.value == pytest.approx(0.947, abs=5e-4)
    # A hundredth of the published pixels, each of 25 square metres.
    area = found.class_areas()[0]
    assert area.value == pytest.approx(2350.86 * 25 / 10_000, abs=1e-4)
    assert area.half_width == pytest.approx(684.18 * 25 / 10_000, abs=1e-4)
    assert found.mapped_ha == pytest.approx([px * 25 / 10_000 for px in SHARES_PX])
    text = format_markdown(evaluation)
    assert "| deforestation | 0.880 ± 0.074 | 0.749 ± 0.213 | 5.9 ± 1.7 | 5.0 |" in text
    assert "| deforestation | 0.0176 (66) |" in text
    assert "Left out: none." in text
    assert "deforestation 2.00% with 75 points" in text
    content = evaluation.to_dict()["models"][0]["sample"]
    assert content["class_areas_ha"][0]["value"] == pytest.approx(5.877, abs=1e-3)
    assert content["design"]["accuracy"]["half_width"] == pytest.approx(0.0185, abs=1e-4)


def test_values_and_names_are_classes_and_others_are_refused(example, tmp_path) -> None:
    path, frame = example
    file = tmp_path / "points.gpkg"
    values = frame["class"].map({name: index + 1 for index, name in enumerate(NAMES)})
    frame.assign(**{"class": values}).to_file(file)
    assert score(path, file)[1].design.counts.tolist() == OLOFSSON.tolist()
    frame.assign(**{"class": frame["class"].replace("forest gain", "forest_gain")}).to_file(file)
    assert score(path, file)[1].points == 640
    frame.assign(**{"class": frame["class"].replace("forest gain", "forrest")}).to_file(file)
    with pytest.raises(SamplesError, match="has 'forrest', which is no class of the map; there a"):
        score(path, file)


def test_points_that_cannot_be_compared_are_counted(example, tmp_path) -> None:
    path, frame = example
    extra = centre_of(path, [-1, 5, 319, 0, 0], [5, 320, 319, 0, 1])
    wrong = gpd.GeoDataFrame(
        {"class": ["forest gain"] * 3 + [None, "stable forest"]}, geometry=extra
    )
    file = tmp_path / "points.gpkg"
    gpd.GeoDataFrame(np.concatenate([frame.to_numpy(), wrong.to_numpy()]), columns=frame.columns,
                     geometry="geometry", crs=frame.crs).to_file(file)  # fmt: skip
    evaluation, found = score(path, file)
    assert found.points == 641
    assert list(found.left_out.values()) == [2, 1, 1]
    assert (
        "Left out: 2 outside the map or the area, 1 where the map has no class, 1 without a "
        "reference class." in evaluation.method
    )
    only = tmp_path / "outside.gpkg"
    wrong.iloc[:2].to_file(only)
    with pytest.raises(SamplesError, match=r"of 2 points none can be compared: 2 outside"):
        score(path, only)


def test_a_stratum_with_one_point_is_one_message(example, tmp_path) -> None:
    path, frame = example
    file = tmp_path / "points.gpkg"
    mapped = np.repeat(NAMES, OLOFSSON.sum(axis=1))
    kept = (mapped != "forest gain") | (np.cumsum(mapped == "forest gain") == 1)
    frame[kept].to_file(file)
    with pytest.raises(SamplesError) as error:
        score(path, file)
    assert "needs at least 2 points" in str(error.value)
    assert "forest gain (1.50% of the area) 1;" in str(error.value)


def test_strata_are_the_map_s_classes_or_have_areas(example, tmp_path) -> None:
    path, frame = example
    file, areas = tmp_path / "points.gpkg", tmp_path / "areas.csv"
    mapped = np.repeat(NAMES, OLOFSSON.sum(axis=1))
    frame.assign(stratum=mapped).to_file(file)
    same, plain = score(path, file, stratum="stratum")[1], score(path, file)[1]
    assert same.design.accuracy == plain.design.accuracy
    forest = np.where(np.isin(mapped, NAMES[:3]), "forest", "other")
    frame.assign(stratum=forest).to_file(file)
    with pytest.raises(SamplesError, match=r"at 640 of 640 points the stratum is not the class"):
        score(path, file, stratum="stratum")
    areas.write_text("stratum,area_ha\nforest,100\nother,300\n")
    evaluation, found = score(path, file, stratum="stratum", stratum_areas=str(areas))
    assert found.area_ha == 400
    right = 0.25 * (66 + 55 + 153) / 315 + 0.75 * 313 / 325
    assert found.design.accuracy.value == pytest.approx(right)
    assert "Stehman 2014" in evaluation.method[3]
    areas.write_text("stratum,area_ha\nforest,100\n")
    with pytest.raises(SamplesError, match="has no area of the stratum 'other', in which 325 po"):
        score(path, file, stratum="stratum", stratum_areas=str(areas))
    areas.write_text("stratum,area_ha\nforest,100\nother,300\nsea,9\n")
    with pytest.raises(SamplesError, match=r"sea \(2.20% of the area\) 0;"):
        score(path, file, stratum="stratum", stratum_areas=str(areas))
    frame.assign(stratum=np.where(forest == "forest", "forest", None)).to_file(file)
    with pytest.raises(SamplesError, match=r"325 points of .* have none; every point was drawn"):
        score(path, file, stratum="stratum")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stratum,area\na,1\n", "each row needs a name"),
        ("stratum,area_ha\na,many\n", "each row needs a name"),
        ("stratum,area_ha\na\n", "each row needs a name"),
        ("stratum,area_ha\na,0\n", "an area above 0"),
        ("stratum,area_ha\na,1\na,2\n", "one row"),
        ("", "one row"),
    ],
)
def test_areas_of_strata_that_are_wrong(tmp_path, text, message) -> None:
    file = tmp_path / "areas.csv"
    file.write_text(text)
    with pytest.raises(SamplesError, match=message):
        read_areas(str(file))
    with pytest.raises(SamplesError, match="cannot be read"):
        read_areas(str(tmp_path / "none.csv"))


def test_files_that_are_no_sample(example, tmp_path) -> None:
    path, frame = example
    file = tmp_path / "points.gpkg"
    with pytest.raises(SamplesError, match=r"points.gpkg: no such file"):
        score(path, file)
    frame.to_file(file)
    with pytest.raises(SamplesError, match=r"^--attribute land: .* has no such attribute; it has"):
        score(path, file, attribute="land")
    with pytest.raises(SamplesError, match=r"^--stratum layer: "):
        score(path, file, stratum="layer")
    frame.buffer(1).to_frame("geometry").assign(**{"class": 1}).to_file(tmp_path / "circles.gpkg")
    with pytest.raises(SamplesError, match=r"holds no points; .* circles \(Polygon\)"):
        score(path, tmp_path / "circles.gpkg")
    placeless = frame.set_geometry([None, *frame.geometry[1:]], crs=frame.crs)
    placeless.to_file(tmp_path / "placeless.gpkg")
    with pytest.raises(SamplesError, match="a sample is points, one a row"):
        score(path, tmp_path / "placeless.gpkg")
    for layer in ("first", "second"):
        frame.to_file(tmp_path / "two.gpkg", layer=layer)
    with pytest.raises(SamplesError, match="has the layers first, second; give --layer"):
        score(path, tmp_path / "two.gpkg")
    assert score(path, tmp_path / "two.gpkg", layer="second")
    bare = gpd.GeoDataFrame(frame.drop(columns="geometry"), geometry=frame.geometry.to_numpy())
    bare.to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(SamplesError, match="has no CRS"):
        score(path, tmp_path / "bare.parquet")
    (tmp_path / "text.gpkg").write_text("nothing")
    with pytest.raises(SamplesError, match="is not a vector file"):
        score(path, tmp_path / "text.gpkg")


def test_points_are_looked_up_in_their_zone(tmp_path) -> None:
    maps = {"31n": np.zeros((32, 32), np.uint8), "32n": np.ones((32, 32), np.uint8)}
    path = write_zones(tmp_path / "zones.zarr", maps)
    grids = open_grids(path)
    places = [
        gpd.GeoSeries([shapely.box(*grid.bounds).centroid], crs=grid.lattice.crs).to_crs(4326)
        for grid in grids
    ]
    points = gpd.GeoSeries([place.iloc[0] for place in places], crs=4326)
    assert sample_grids(points, grids, [None, None]).tolist() == [0, 1]


def test_a_sample_has_two_tables(example, tmp_path) -> None:
    path, frame = example
    file = tmp_path / "points.gpkg"
    frame.to_file(file)
    evaluation, _ = score(path, file)
    assert [title[:9] for title, _, _ in list_sample_tables(evaluation)] == [
        "Estimates", "Error mat",
    ]  # fmt: skip
