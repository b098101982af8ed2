"""The map on disk: metadata, whole shards, overviews, and what is missing is found."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import bigmap
from bigmap.errors import OutputError
from bigmap.grid import Lattice
from bigmap.mapping.store.overviews import (
    halve_classes,
    halve_values,
    overview_places,
    write_overview,
)
from bigmap.mapping.store.shards import MapWriter, ShardKey, check_shards, list_shard_keys
from bigmap.mapping.store.template import LayerTemplate, MapTemplate, complete_map, has_map
from bigmap.mapping.store.zarr_stores import remove_store

LATTICE = Lattice("EPSG:25831", 10.0, 8, 16, 32, 2, 32, 16)
LEGEND = {"long_name": "Class", "flag_values": [0, 1], "flag_meanings": "other cropland"}


def make_template(**changes):
    settings = {
        "lattice": LATTICE,
        "extent": (slice(-320, -256), slice(64, 160)),
        "layers": (
            LayerTemplate("class", "uint8", 255, LEGEND),
            LayerTemplate("ndvi", "int16", -32768, {"scale": 1e-4}),
            LayerTemplate("probability", "uint8", 255, {}, ("other", "cropland")),
        ),
        "overviews": 2,
        "attributes": {"title": "test", "bigmap:recipe": {"name": "test"}},
    }
    return MapTemplate(**settings | changes)


@pytest.fixture
def path(tmp_path):
    path = str(tmp_path / "map.zarr")
    complete_map(path, make_template())
    return path


def random_layers(shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "class": rng.integers(0, 2, shape).astype(np.uint8),
        "ndvi": rng.integers(-9000, 9000, shape).astype(np.int16),
        "probability": rng.integers(0, 101, (2, *shape)).astype(np.uint8),
    }


def test_xarray_opens_the_map_with_crs_and_classes(path):
    for dataset in (
        bigmap.open_map(path),
        xr.open_zarr(path, consolidated=False, mask_and_scale=False),
    ):
        assert dataset.rio.crs.to_epsg() == 25831
        assert tuple(dataset.rio.transform())[:6] == (5.0, 0.0, 640.0, 0.0, -5.0, 3200.0)
        assert dataset["class"].shape == (128, 192)
        assert dataset["class"].dtype == np.uint8
        assert dataset["class"].attrs["flag_meanings"] == "other cropland"
        assert dataset["ndvi"].attrs["scale"] == 1e-4
        assert dataset["probability"].dims == ("probability_channel", "y", "x")
        assert float(dataset.x[0]) == 642.5
        assert float(dataset.y[0]) == 3197.5
        assert (dataset["class"].values == 255).all()
        assert dataset["class"].rio.nodata == 255


def test_plain_xarray_knows_crs_and_nodata(path):
    MapWriter(path).write(random_layers((64, 64)), (slice(0, 64), slice(0, 64)))
    dataset = xr.open_zarr(path, consolidated=False)
    assert dataset.rio.crs.to_epsg() == 25831
    assert dataset["class"].rio.crs.to_epsg() == 25831
    assert dataset["class"].rio.encoded_nodata == 255
    assert np.isnan(dataset["class"].values[64:]).all()
    assert set(np.unique(dataset["class"].values[:64, :64])) == {0.0, 1.0}
    assert dataset["class"].attrs["flag_values"] == [0, 1]


def test_a_datatree_holds_the_map_and_its_overviews(path):
    tree = xr.open_datatree(path, engine="zarr", consolidated=False)
    assert tree["class"].shape == (128, 192)
    assert tree["1/class"].dims == ("y_1", "x_1")
    assert tree["2/class"].shape == (32, 48)
    assert tree["1/class"].rio.crs.to_epsg() == 25831
    assert tuple(tree["2/class"].rio.transform())[:6] == (20, 0, 640, 0, -20, 3200)
    overview = bigmap.open_map(path, level=1)
    assert overview["class"].dims == ("y", "x")
    assert overview["probability"].dims == ("probability_channel", "y", "x")


def test_a_flipped_bit_is_an_error_and_no_other_value(path, tmp_path):
    place = slice(0, 64), slice(0, 64)
    layers = random_layers((64, 64))
    layers["class"][:] = 1  # what packs best has the fewest bits to tell a change by
    writer = MapWriter(path)
    shards = writer.write(layers, place)
    rng = np.random.default_rng(0)
    sentences: list[tuple[str, str]] = []
    for shard in (shards[0], shards[-1]):
        file = tmp_path / "map.zarr" / shard.key
        name, content = shard.key.partition("/")[0], file.read_bytes()
        for bit in rng.choice(8 * len(content), 20, replace=False):
            spoilt = bytearray(content)
            spoilt[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(spoilt)
            try:
                read = writer.read(name, place)
            except OutputError as error:
                sentences.append((shard.key, str(error)))
            else:
                assert np.array_equal(read, layers[name])
        # Who does the block again replaces it.
        assert {each.key for each in writer.write(layers, place)} == {s.key for s in shards}
        assert file.read_bytes() == content
    assert len(sentences) >= 35
    for key, sentence in sentences:
        assert f"map.zarr/{key}: is damaged (" in sentence
        assert "make it again with --resume" in sentence


def test_coordinates_have_checksums_too(path, tmp_path):
    file = next(file for file in (tmp_path / "map.zarr" / "x" / "c").rglob("*") if file.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises((RuntimeError, ValueError)):
        xr.open_zarr(path, consolidated=False)


@pytest.mark.parametrize("damage", ["removed", "cut", "zeroed", "newer"])
def test_damaged_metadata_are_made_anew_and_shards_stay(path, tmp_path, damage):
    layers = random_layers((64, 64))
    MapWriter(path).write(layers, (slice(0, 64), slice(0, 64)))
    before = {
        file: file.read_bytes() for file in (tmp_path / "map.zarr").rglob("*") if file.is_file()
    }
    for key in ("zarr.json", "class/zarr.json", "1/zarr.json", "y/c/0"):
        file = tmp_path / "map.zarr" / key
        content = before[file]
        if damage == "removed":
            file.unlink()
        else:
            newer = content.replace(b'"zarr_format": 3', b'"zarr_format": 4')
            file.write_bytes(
                {"cut": content[:-9], "zeroed": bytes(len(content)), "newer": newer}[damage]
            )
        changed = not file.exists() or file.read_bytes() != content
        assert has_map(path, ["class"]) is not (changed and key in ("zarr.json", "class/zarr.json"))
        assert complete_map(path, make_template()) == ([key] if changed else [])
        assert file.read_bytes() == content
    after = {
        file: file.read_bytes() for file in (tmp_path / "map.zarr").rglob("*") if file.is_file()
    }
    assert after == before


def test_a_link_stays_when_its_map_is_replaced(tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "map.zarr"
    disk.mkdir()
    link.symlink_to(disk)
    (disk / "old").mkdir()
    remove_store(str(link))
    complete_map(str(link), make_template())
    assert link.is_symlink()
    assert (disk / "zarr.json").exists()
    assert not (disk / "old").exists()
    remove_store(str(link))
    assert link.is_symlink()
    assert not list(disk.iterdir())


def test_objects_of_a_block_are_known_before_they_are_written(path):
    template = make_template()
    block = slice(-320, -304), slice(96, 112)
    written = MapWriter(path).write(random_layers((32, 32)), (slice(0, 32), slice(64, 96)))
    keys = ["class/c/0/2", "ndvi/c/0/2", "probability/c/0/0/2"]
    assert list(list_shard_keys(template, block)) == keys == [shard.key for shard in written]


def test_attributes_follow_the_zarr_conventions(path):
    root = json.loads((Path(path) / "zarr.json").read_text())
    attributes = root["attributes"]
    assert {entry["name"] for entry in attributes["zarr_conventions"]} == {
        "multiscales", "proj:", "spatial:",
    }  # fmt: skip
    assert attributes["proj:code"] == "EPSG:25831"
    assert attributes["spatial:transform"] == [5.0, 0.0, 640.0, 0.0, -5.0, 3200.0]
    assert attributes["spatial:shape"] == [128, 192]
    layout = attributes["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == [".", "1", "2"]
    assert layout[2]["derived_from"] == "1"
    assert layout[2]["spatial:transform"][0] == 20.0


def test_whole_shards_are_written_and_empty_ones_are_not(path):
    writer = MapWriter(path)
    layers = random_layers((64, 64))
    layers["class"][:32, :32] = 255
    shards = writer.write(layers, (slice(64, 128), slice(0, 64)))
    keys = {shard.key for shard in shards}
    assert "class/c/2/0" not in keys
    assert {"class/c/2/1", "class/c/3/0", "ndvi/c/2/0", "probability/c/0/2/0"} <= keys
    assert all(shard.size_bytes > 0 for shard in shards)
    back = bigmap.open_map(path)
    assert np.array_equal(back["ndvi"].values[64:, :64], layers["ndvi"])
    assert (back["ndvi"].values[:64] == -32768).all()
    with pytest.raises(AssertionError, match="whole shards"):
        writer.write(layers, (slice(8, 72), slice(0, 64)))


def test_missing_and_damaged_shards_are_found(path, tmp_path):
    shards = MapWriter(path).write(random_layers((64, 64)), (slice(0, 64), slice(0, 64)))
    assert check_shards(path, iter(shards)) == []
    (tmp_path / "map.zarr" / shards[0].key).unlink()
    cut = tmp_path / "map.zarr" / shards[1].key
    cut.write_bytes(cut.read_bytes()[:-3])
    assert check_shards(path, iter(shards)) == [shards[0].key, shards[1].key]
    assert check_shards(path, iter([ShardKey("class/c/9/9", 5)])) == ["class/c/9/9"]


def test_overviews_halve_the_whole_map(path):
    template = make_template()
    layers = random_layers((128, 192))
    MapWriter(path).write(layers, (slice(0, 128), slice(0, 192)))
    for level in (1, 2):
        for place in overview_places(template, level):
            write_overview(path, template, level=level, place=place)
    first = bigmap.open_map(path, level=1)
    assert np.array_equal(first["class"].values, halve_classes(layers["class"], 255))
    assert np.array_equal(first["ndvi"].values, halve_values(layers["ndvi"], -32768))
    assert tuple(first.rio.transform())[:6] == (10.0, 0.0, 640.0, 0.0, -10.0, 3200.0)
    second = bigmap.open_map(path, level=2)
    assert second["class"].shape == (32, 48)
    assert np.array_equal(second["class"].values, halve_classes(first["class"].values, 255))
    with pytest.raises(OutputError, match="no level 3"):
        bigmap.open_map(path, level=3)


def test_classes_are_halved_by_the_most_frequent_and_values_by_the_mean():
    classes = np.array([[1, 1, 0, 2, 255, 255], [1, 0, 2, 0, 255, 3]], np.uint8)
    assert halve_classes(classes, 255).tolist() == [[1, 0, 3]]
    values = np.array([[1, 3, -4, 255, 255, 255], [5, 7, 255, -8, 255, 255]], np.int16)
    assert halve_values(values, 255).tolist() == [[4, -6, 255]]
    assert halve_classes(np.array([[7]], np.uint8), 255).tolist() == [[7]]
    assert halve_values(np.array([[2, 4, 9]], np.uint8), 255).tolist() == [[3, 9]]


def test_no_map_is_one_sentence(tmp_path):
    with pytest.raises(OutputError, match="there is no map here"):
        bigmap.open_map(str(tmp_path / "nothing.zarr"))


def edit_metadata(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


BROKEN = [b"", b"{", b"\xff\xfe", b"[" * 2_000, b"[]", b"null", b"1" * 5_000]


@pytest.mark.parametrize("name", ["zarr.json", "class/zarr.json", "x/zarr.json", "1/zarr.json"])
def test_metadata_that_are_damaged_are_one_sentence(path, name):
    for content in BROKEN:
        (Path(path) / name).write_bytes(content)
        with pytest.raises(OutputError, match=r"map\.zarr.*: is damaged or cannot be read \(.+\)"):
            bigmap.open_map(path)


@pytest.mark.parametrize("name", ["zarr.json", "class/zarr.json"])
def test_a_writer_tells_damaged_metadata_too(path, name):
    (Path(path) / name).write_bytes(b"[")
    with pytest.raises(OutputError, match="is damaged or cannot be read"):
        MapWriter(path).read("class", (slice(0, 32), slice(0, 32)))


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("class", {"codecs": [{"name": "unknown"}]}, "unknown"),
        ("class", {"dimension_names": 3}, "damaged"),
        ("class", {"shape": [2**40, 192]}, "chunks"),
        ("x", {"shape": [2**40]}, "is declared with 8796093022208 bytes"),
        ("x", {"fill_value": {}}, "damaged"),
    ],
)
def test_an_array_that_cannot_have_been_written_is_told(path, name, changes, reason):
    edit_metadata(Path(path) / name / "zarr.json", **changes)
    with pytest.raises(OutputError, match=reason):
        bigmap.open_map(path)


def test_a_damaged_coordinate_is_one_sentence(path):
    file = Path(path) / "x" / "c" / "0"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(OutputError, match="is damaged or cannot be read"):
        bigmap.open_map(path)


def test_a_map_without_its_crs_is_one_sentence(path):
    remove_store(f"{path}/spatial_ref")
    with pytest.raises(OutputError, match="spatial_ref"):
        bigmap.open_map(path)


def test_several_damaged_arrays_leave_nothing_that_python_prints_later(path, caplog):
    for name in ("class", "ndvi", "probability", "x", "y"):
        (Path(path) / name / "zarr.json").write_text("[")
    with pytest.raises(OutputError, match="is damaged"):
        bigmap.open_map(path)
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_level_that_is_not_there_is_named(path):
    with pytest.raises(OutputError, match=r"map\.zarr/7: there is no .* no level 7"):
        bigmap.open_map(path, level=7)
