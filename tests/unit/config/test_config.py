"""Recipes: the schema, round trips, overrides, and nothing but RecipeError for nonsense."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigmap.config import Recipe, load_recipe, parse_recipe
from bigmap.config.loading import write_schema
from bigmap.config.strict_yaml import parse_yaml
from bigmap.errors import RecipeError
from tests.integration.small_world import raw_recipe, write_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))
SOURCES = [
    {"kind": "files", "files": ["a.json", "s3://b/c.parquet"], "collection": "c"},
    {"kind": "stac-api", "url": "https://a.b/v1", "collection": "c"},
    {"kind": "static-catalog", "files": ["catalog.json"]},
    {"kind": "simulated", "seed": 3, "cache": "scenes"},
]
MASKS = [
    {"kind": "scl", "clear_values": [4, 5], "dilate_px": 2},
    {"kind": "binary", "asset": "clm", "clear_value": 1},
    {"kind": "probability", "asset": "cld", "max_percent": 20},
    {"kind": "probability", "asset": "clp", "max_value": 255},
    {"kind": "bits", "asset": "fmask", "bits": [1, 2, 3], "nodata": 255},
    {"kind": "none"},
]


def test_schema_is_in_sync(tmp_path):
    write_schema(tmp_path / "schema.json")
    assert (tmp_path / "schema.json").read_text() == (RECIPES / "recipe.schema.json").read_text()


def test_schema_knows_the_fields():
    schema = json.loads((RECIPES / "recipe.schema.json").read_text())
    assert set(schema["properties"]) == set(Recipe.model_fields)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_recipes_are_valid_and_name_their_schema(file):
    assert file.read_text().startswith(
        "# yaml-language-server: $schema=recipe.schema.json\n"
    )  # fmt: skip
    recipe = load_recipe(file)
    if recipe.area.file:
        assert Path(recipe.area.file).is_file()


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source["kind"])
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask["kind"])
def test_round_trip(source, mask):
    source = {**source, "mask": mask, "start": "2024-03-01", "end": "2024-06-30"}
    recipe = parse_recipe(
        raw_recipe(source=source, title="Ñandú: a # b", output__path="s3://b/m.zarr/")
    )
    again = parse_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.output.path == "s3://b/m.zarr"
    assert again.to_yaml() == recipe.to_yaml()


def test_overrides_win_in_their_order(tmp_path):
    file = write_recipe(tmp_path / "r.yaml")
    settings = [
        "grid.gsd_m=20", "grid.gsd_m=40", "model.options.threshold=0.3", "inference.device=cpu",
        "source.start=2024-04-02", "source.mask={kind: none}", "name=a=b".replace("=b", "-b"),
    ]  # fmt: skip
    recipe = load_recipe(file, settings)
    assert recipe.grid.gsd_m == 40
    assert recipe.model.options == {"upscale": 1, "threshold": 0.3}
    assert recipe.inference.device == "cpu"
    assert recipe.source.start.isoformat() == "2024-04-02"
    assert recipe.source.mask.kind == "none"
    assert recipe.name == "a-b"


def test_value_of_an_override_may_hold_an_equals_sign(tmp_path):
    file = write_recipe(tmp_path / "r.yaml")
    assert load_recipe(file, ["title=a=b"]).title == "a=b"


def test_inputs_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    file = write_recipe(
        Path("recipes/r.yaml"),
        area={"file": "area.gpkg"},
        source__files=["../items.json", "/data/items.json", "s3://b/items.parquet"],
        model__weights="w.safetensors",
    )
    recipe = load_recipe(file)
    assert recipe.area.file == str(tmp_path / "recipes/area.gpkg")
    assert recipe.source.files == (
        str(tmp_path / "items.json"), "/data/items.json", "s3://b/items.parquet",
    )  # fmt: skip
    assert recipe.model.weights == str(tmp_path / "recipes/w.safetensors")
    assert recipe.output.path == "map.zarr"


def test_home_in_the_output(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_recipe(raw_recipe(output__path="~/m.zarr")).output.path == "/home/me/m.zarr"


@pytest.mark.parametrize("place", ["me@home/m.zarr", "s3://bucket/a@b/m.zarr", "a?b=c/m.zarr"])
def test_harmless_places_are_no_credentials(place):
    assert parse_recipe(raw_recipe(output__path=place)).output.path == place


@pytest.mark.parametrize(
    "url",
    ["https://a:b@c.d/", "https://token@c.d/", "https://c.d/?X-Amz-Signature=1", "https://c.d/?a=1&sig=2",
     "https://c.d/?subscription-key=1", "https://c.d/?access_token=1"],
)  # fmt: skip
def test_credentials_are_refused_and_not_repeated(url):
    source = {"kind": "files", "files": [url], "start": "2024-03-01", "end": "2024-06-30"}
    with pytest.raises(RecipeError, match=r"source\.files\.0: must not hold credentials") as error:
        parse_recipe(raw_recipe(source=source))
    assert url not in str(error.value)


def test_recipe_is_frozen():
    recipe = parse_recipe(raw_recipe())
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


def refuse_or_accept(call):
    """Let through no exception but a RecipeError, and that with a message of one line."""
    message = "-"
    try:
        call()
    except RecipeError as error:
        message = str(error)
    assert len(message.splitlines()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "crs", "bbox", "files"]) | st.text(max_size=4), inner, max_size=3
    ),
    max_leaves=6,
)  # fmt: skip
FIELDS = [
    (part, field)
    for part, content in raw_recipe().items()
    for field in (content if isinstance(content, dict) else [""])
]
FAST = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FAST
@given(raw=st.dictionaries(st.sampled_from(list(Recipe.model_fields)) | st.text(), VALUES))
def test_any_mapping_is_a_recipe_or_refused(raw):
    refuse_or_accept(lambda: parse_recipe(raw))


@FAST
@given(place=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_of_a_field_is_taken_or_refused(place, value):
    part, field = place
    name = f"{part}__{field}" if field else part
    refuse_or_accept(lambda: parse_recipe(raw_recipe(**{name: value})))


YAML_PIECES = st.lists(
    st.sampled_from(
        ["name: ", "area:\n", "  ", "- ", "[", "]", "{", "}", ": ", "\n", "&a ", "*a", "!!int ",
         "!!python/name:os.system ", "!!timestamp ", "!!set ", "!!omap ", "!!binary ", "<<: ",
         "2024-02-31", "0x", ".nan", "1e400", "'", '"', "\\", "|", ">", "%YAML 9.9", "---", "? "]
    )
    | st.text(max_size=3),
    max_size=14,
).map("".join)  # fmt: skip


@FAST
@given(
    content=st.binary(max_size=60) | YAML_PIECES.map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_file_is_a_recipe_or_refused(tmp_path, content):
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    refuse_or_accept(lambda: load_recipe(file))


@FAST
@given(override=st.text(max_size=12) | YAML_PIECES.map(lambda text: f"area.bbox={text}")
       | YAML_PIECES.map(lambda text: f"source.files={text}"))  # fmt: skip
def test_any_override_is_taken_or_refused(tmp_path, override):
    file = write_recipe(tmp_path / "r.yaml")
    refuse_or_accept(lambda: load_recipe(file, [override]))


def test_numbers_too_long_for_python(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("name: " + "9" * 5000)
    with pytest.raises(RecipeError, match="line 1: a value is no int"):
        load_recipe(file)


@pytest.mark.parametrize("tag", ["set", "map", "omap", "pairs", "seq", "timestamp", "float"])
def test_tags_that_the_value_does_not_fit(tmp_path, tag):
    file = tmp_path / "r.yaml"
    file.write_text(f"name: !!{tag} 2024-02-31")
    with pytest.raises(RecipeError, match="line 1"):
        load_recipe(file)


@pytest.mark.parametrize("number", ["010", "0010.5", "-08"])
def test_numbers_with_a_leading_zero_are_refused(tmp_path, number):
    file = write_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=f"grid.gsd_m: {number} may be meant as octal"):
        load_recipe(file, [f"grid.gsd_m={number}"])


@pytest.mark.parametrize("text", ["1:30", "1_000", "0x10", "=", "<<", "no", "2024-03-01"])
def test_what_only_some_yaml_takes_for_a_number_is_a_text(tmp_path, text):
    assert parse_yaml(text, origin="r") == text
    file = write_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match=f"grid.gsd_m: .*number, not '{text}'"):
        load_recipe(file, [f"grid.gsd_m={text}"])


def test_plain_numbers_are_read_as_people_write_them():
    raw = parse_yaml("[1e-4, 10, -0.5, .5, 1.5e3, true, null, ~]", origin="r")
    assert raw == [0.0001, 10, -0.5, 0.5, 1500.0, True, None, None]
    assert parse_yaml("!!int 010", origin="r") == 10


def test_words_and_codes_name_classes_and_come_back_from_the_stored_recipe(tmp_path):
    file = write_recipe(tmp_path / "r.yaml")
    legend = "[{value: 0, name: no}, {value: 1, name: on}, {value: 2, name: 010}]"
    classes = "{no: 0, 010: 1, 7: 2, true: 0}"
    labels = f"{{kind: vector, file: a.gpkg, attribute: code, classes: {classes}}}"
    samples = f"{{path: c.zarr, labels: {labels}}}"
    recipe = load_recipe(file, [f"model.legend={legend}", f"samples={samples}", "title=1e-4 %"])
    assert [entry.name for entry in recipe.model.legend] == ["no", "on", "010"]
    assert recipe.samples.labels.classes == {"no": 0, "010": 1, "7": 2, "True": 0}
    for title in ("1e-4", "010", "no", "1_0", "12:30"):
        named = recipe.model_copy(update={"title": title})
        again = parse_recipe(parse_yaml(named.to_yaml(), origin="r"))
        assert again == named
        assert yaml.safe_load(named.to_yaml())["title"] == title


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: a\nname: b", "at line 1: the key name stands twice"),
        (b'a: 1\nb: "\\ud800"', "at line 2: a text holds half a character"),
        (b'"\\ud800": 1', "at line 1: a text holds half a character"),
        (b"a: &x [1]\nb: [*x, *x]", "at line 2: anchors and aliases are refused"),
        (b"grid:\n\tcrs: 1", "at line 2: found character"),
        ("name: ñ".encode("latin-1"), "is not a text in UTF-8"),
        ("name: a".encode("utf-16"), "is not a text in UTF-8"),
        (b"[" * 50_000, "too deeply nested"),
        (b"a: 1\n---\nb: 2", "another document"),
        (b"#" * 1_000_001, "larger than"),
    ],
)
def test_files_that_are_no_recipe_end_in_one_sentence(tmp_path, content, message):
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    file = write_recipe(tmp_path / "r.yaml")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_recipe(file).name == "small"


def test_a_layer_is_one_of_a_file(tmp_path):
    file = write_recipe(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="area: layer is one of a file"):
        load_recipe(file, ["area.layer=a"])


@pytest.mark.parametrize("stored", ["e\u0301te\u0301.gpkg", "\u00e9t\u00e9.gpkg"])
@pytest.mark.parametrize("given", ["e\u0301te\u0301.gpkg", "\u00e9t\u00e9.gpkg"])
def test_names_of_files_are_found_with_accents_composed_or_not(tmp_path, stored, given):
    file = write_recipe(tmp_path / "r.yaml")
    (tmp_path / stored).touch()
    recipe = load_recipe(file, [f"area={{file: {given}}}"])
    assert recipe.area.file == str(tmp_path / stored)


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: mask["kind"])
def test_a_field_is_named_without_the_kind_that_it_is_of(mask):
    wrong = {**mask, "dilate_px": "wide", "nodata_value": 3}
    with pytest.raises(RecipeError, match=r"recipe: source\.mask\.(nodata_value|dilate_px)") as why:
        parse_recipe(raw_recipe(source__mask=wrong))
    assert f"mask.{mask['kind']}." not in str(why.value)
