"""Bad recipes and command lines: exit code 2, one line that names the culprit, nothing written."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import geopandas as gpd
import pytest
import shapely
import torch
from safetensors.torch import save_file

import bigmap
from bigmap import cli
from bigmap.errors import RecipeError
from bigmap.models import build_model, save_weights
from tests.integration.small_world import write_recipe, write_scenes

SLOWEST_S = 10.0
"""What an answer may take on a busy machine; a host is tried for some seconds."""
SIMULATED = {"kind": "simulated", "start": "2024-04-01", "end": "2024-04-10", "cache": "cache"}
API = {"kind": "stac-api", "collection": "sentinel-2-l2a", "start": "2024-04-01",
       "end": "2024-04-10"}  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with scenes and all kinds of files that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    write_scenes(tmp_path / "scenes")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.geojson").touch()
    (tmp_path / "text.gpkg").write_text("no vector file")
    (tmp_path / "answer.json").write_text("<html></html>")
    return tmp_path


def snapshot(folder):
    return sorted(
        (str(path.relative_to(folder)), path.stat().st_size if path.is_file() else -1)
        for path in folder.rglob("*")
    )


def call(capsys, *arguments):
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    output = capsys.readouterr()
    return stop.value.code or 0, output.out, output.err


def refuse(capsys, folder, *arguments, words):
    """Expect one line on stderr that holds all words, soon, and nothing written."""
    before, start = snapshot(folder), time.monotonic()
    code, _, error = call(capsys, *arguments)
    assert time.monotonic() - start < SLOWEST_S
    assert code == 2, error
    assert error.startswith("bigmap: ")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert snapshot(folder) == before
    return error


# Recipe fields: changes of the small recipe, and words of the message.
RECIPES = {
    "unknown key": ({"grid__core_pixels": 32}, ["grid.core_pixels", "did you mean core_px?"]),
    "unknown part": ({"grids": {}}, ["grids is not a known field", "did you mean grid?"]),
    "field of another kind": ({"source__url": "https://a.b"}, ["source.url is not a known field"]),
    "wrong type": ({"grid__gsd_m": "ten"}, ["grid.gsd_m", "'ten'"]),
    "bool for a number": ({"dates__max_per_cell": True}, ["dates.max_per_cell", "True"]),
    "part without fields": ({"model": None}, ["model: must hold fields"]),
    "list index": ({"source__files": ["scenes/items.json", 3]}, ["source.files.1", "not 3"]),
    "missing part": ({"output": ...}, ["output is missing"]),
    "missing field": ({"source__start": ...}, ["source.start is missing"]),
    "missing kind": ({"source__kind": ...}, ["source.kind is missing"]),
    "misspelt kind": ({"source__kind": "fils"}, ["source.kind", "'fils'", "'files'"]),
    "misspelt mask": ({"source__mask": {"kind": "sci"}}, ["source.mask.kind", "'sci'", "'scl'"]),
    "misspelt enum": ({"reading__resampling": "cubik"}, ["reading.resampling", "'cubik'"]),
    "bad name": ({"name": "a b/c"}, ["name", "'a b/c'"]),
    "bad date": ({"source__start": "2024-02-31"}, ["source.start", "2024-02-31"]),
    "end before start": ({"source__end": "2024-01-01"}, ["source", "end 2024-01-01 is before"]),
    "nan": ({"grid__gsd_m": float("nan")}, ["grid.gsd_m", "finite"]),
    "inf": ({"area__buffer_m": float("inf")}, ["area.buffer_m", "finite"]),
    "tiny pixels": ({"grid__gsd_m": 1e-300}, ["grid.gsd_m", "0.1"]),
    "huge block": ({"grid__block_px": 2**40}, ["grid.block_px"]),
    "no dates per cell": ({"dates__max_per_cell": 0}, ["dates.max_per_cell", "1"]),
    "two areas": ({"area__file": "a.gpkg"}, ["area", "either bbox or file"]),
    "bbox in metres": ({"area__bbox": [3e5, 4e6, 4e5, 5e6]}, ["area", "not in degrees"]),
    "empty bbox": ({"area__bbox": [0.6, 42, 0.7, 41]}, ["area", "is empty"]),
    "CRS in degrees": ({"grid__crs": "EPSG:4326"}, ["grid.crs", "no metres"]),
    "CRS in feet": ({"grid__crs": "EPSG:2263"}, ["grid.crs", "no metres"]),
    "unknown CRS": ({"grid__crs": "EPSG:1"}, ["grid.crs", "'EPSG:1'", "PROJ"]),
    "CRS for elsewhere": ({"grid__crs": "EPSG:32760"}, ["area.bbox", "EPSG:32760", "not made"]),
    "CRS for one pole": ({"grid__crs": "EPSG:3031"}, ["area.bbox", "EPSG:3031", "not made"]),
    "core not a power of two": ({"grid__core_px": 48}, ["core_px 48", "power of two"]),
    "cell not of cores": ({"grid__core_px": 128}, ["cell_px 64", "multiple of core_px 128"]),
    "block not of cells": ({"grid__block_px": 96}, ["block_px 96", "multiple of cell_px 64"]),
    "chunk does not divide": ({"grid__chunk_px": 24}, ["shard_px 64", "chunk_px 24"]),
    "block not of shards": (
        {"grid__shard_px": 128}, ["grid.block_px", "multiple of grid.shard_px 128"],
    ),
    "too many blocks": (
        {"area__bbox": [0, 41, 9, 45], "grid__gsd_m": 1.0}, ["area", "blocks", "grid.block_px"],
    ),
    "output elsewhere": ({"output__path": "map.tif"}, ["output.path", ".zarr"]),
    "output on the web": ({"output__path": "http://a.b/m.zarr"}, ["output.path", "s3://"]),
    "output without user": ({"output__path": "~nobody-here/m.zarr"}, ["output.path", "not a path"]),
    "control character": ({"output__path": "a\0b.zarr"}, ["output.path", "cannot be printed"]),
    "output in a scene": (
        {"output__path": "scenes/S2A_31TCG_20240401_0_L2A/deep/m.zarr"},
        ["output.path", "among the files of S2A_31TCG_20240401_0_L2A"],
    ),
    "output holds the input": (
        {"source__files": ["in.zarr/items.json"], "output__path": "in.zarr"},
        ["output.path", "holds the input", "items.json"],
    ),
    "output in the cache": (
        {"source": SIMULATED, "output__path": "cache/m.zarr"}, ["output.path", "among the scenes"],
    ),
    "unknown model": ({"model__name": "nvdi"}, ["model.name", "'nvdi'", "ndvi"]),
    "unknown option": ({"model__options": {"tau": 1}}, ["model.options.tau", "threshold"]),
    "bad option": ({"model__options": {"upscale": 9}}, ["model.options", "upscale 9"]),
    "option of a wrong type": ({"model__options": {"upscale": "x"}}, ["model.options"]),
    "weights missing": (
        {"model": {"name": "small-conv", "weights": "w.safetensors"}},
        ["model.weights", "w.safetensors", "no such file"],
    ),
    "weights for ndvi": ({"model__weights": "noise"}, ["model.weights", "ndvi has no weights"]),
    "noise as weights": (
        {"model": {"name": "small-conv", "weights": "noise"}},
        ["model.weights", "no model card"],
    ),
    "unknown layer": ({"output__layers": ["klass"]}, ["output.layers", "klass", "class"]),
    "no layers": ({"output__layers": []}, ["output.layers"]),
    "memory": ({"cluster__memory_gb": 0.1}, ["cluster", "GB", "grid.block_px"]),
    "memory of simulated scenes": (
        {"source": SIMULATED, "cluster__memory_gb": 0.1}, ["cluster", "GB"],
    ),
    "password in the output": (
        {"output__path": "s3://me:pass@bucket/m.zarr"}, ["output.path", "credentials"],
    ),
    "password in the URL": (
        {"source": API | {"url": "https://me:pass@a.b/"}}, ["source.url", "credentials"],
    ),
    "signature in a file": (
        {"source__files": ["https://a.b/items.json?se=1&sig=abc"]},
        ["source.files.0", "credentials"],
    ),
    "not a URL": ({"source": API | {"url": "ftp://a.b/"}}, ["source.url", "https?"]),
    "no dates with scenes": (
        {"source__start": "2019-01-01", "source__end": "2019-02-01"},
        ["2019-01-01", "outside the dates"],
    ),
    "no clear scene": ({"source__max_cloud_percent": 1}, ["at most 1 % cloud", "too-cloudy"]),
    "no such collection": ({"source__collection": "s2"}, ["s2", "outside the collection"]),
    "area outside scenes": ({"area__bbox": [2, 41, 2.1, 41.1]}, ["area", "3 outside the area"]),
    "no such mask": (
        {"source__mask": {"kind": "binary", "asset": "clm"}}, ["missing-asset", "clm"],
    ),
    "items missing": ({"source__files": ["no.json"]}, ["no.json", "does not exist"]),
    "items are HTML": ({"source__files": ["answer.json"]}, ["answer.json", "not JSON"]),
    "items are noise": ({"source__files": ["noise"]}, ["noise", "not JSON"]),
    "area file missing": (
        {"area": {"file": "no.gpkg"}}, ["area.file", "no.gpkg", "no such file"],
    ),
    "area file empty": ({"area": {"file": "empty.geojson"}}, ["area.file", "empty.geojson"]),
    "area file is text": ({"area": {"file": "text.gpkg"}}, ["area.file", "not a vector file"]),
    "area file is a folder": ({"area": {"file": "scenes"}}, ["area.file", "not a vector file"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_recipe_is_refused(folder, capsys, command, changes, words):
    write_recipe(folder / "recipe.yaml", **changes)
    error = refuse(capsys, folder, command, "recipe.yaml", words=words)
    assert "pass@" not in error


TEXTS = {
    "empty": ("", ["holds no fields"]),
    "comments": ("# nothing\n", ["holds no fields"]),
    "list": ("- a\n- b\n", ["holds no fields"]),
    "text": ("hello", ["holds no fields"]),
    "not YAML": ("name: [a\n", ["not valid YAML", "line 2"]),
    "tab": ("name:\n\t- a\n", ["not valid YAML", "line 2"]),
    "tag": ("name: !!python/object/apply:os.system ['touch pwned']\n", ["line 1", "tag"]),
    "duplicate key": ("name: a\nname: b\n", ["name stands twice"]),
    "bomb": (BOMB, ["anchors and aliases are refused"]),
    "endless list": ("name: &a [*a]\n", ["anchors and aliases are refused"]),
    "deep": ("[" * 20_000, ["too deeply nested"]),
    "bad base64": ("name: !!binary ü\n", ["not valid YAML"]),
    "bad tag value": ("name: !!int x\n", ["not valid YAML", "no int"]),
    "key that is no text": ("1: a\n", ["1: Keys should be strings"]),
}


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_text_is_refused(folder, capsys, text, words):
    (folder / "recipe.yaml").write_text(text)
    refuse(capsys, folder, "plan", "recipe.yaml", words=["recipe.yaml", *words])


@pytest.mark.parametrize(
    "content", [bytes(range(256)) * 4, b"\xff\xfen\0a\0", b"\x89PNG\r\n\x1a\n"]
)
def test_noise_is_refused(folder, capsys, content):
    (folder / "recipe.yaml").write_bytes(content)
    refuse(capsys, folder, "plan", "recipe.yaml", words=["recipe.yaml", "UTF-8"])


def test_very_long_recipe_is_refused(folder, capsys):
    (folder / "recipe.yaml").write_text("a: b\n" * 300_000)
    refuse(capsys, folder, "plan", "recipe.yaml", words=["recipe.yaml", "larger than"])


LINES = {
    "unknown command": (["paln", "R"], ["paln"]),
    "unknown option": (["plan", "R", "--bboxes", "1"], ["--bboxes"]),
    "option of another command": (["plan", "R", "--limit", "1"], ["--limit"]),
    "no recipe": (["plan"], ["recipe"]),
    "missing recipe": (["plan", "no.yaml"], ["no.yaml", "no such file"]),
    "recipe is a folder": (["plan", "scenes"], ["scenes", "directory"]),
    "recipe with a long name": (["plan", "a" * 300], ["too long"]),
    "limit 0": (["run", "R", "--limit", "0"], ["--limit", "1"]),
    "limit text": (["run", "R", "--limit", "x"], ["--limit"]),
    "workers 0": (["run", "R", "--workers", "0"], ["--workers", "1"]),
    "workers -1": (["run", "R", "--workers", "-1"], ["--workers"]),
    "other source": (["plan", "R", "--source", "other"], ["--source other", "simulated"]),
    "set without =": (["plan", "R", "--set", "name"], ["--set 'name'", "dotted.key=value"]),
    "set nothing": (["plan", "R", "--set", "=1"], ["--set", "dotted.key=value"]),
    "set into a value": (["plan", "R", "--set", "name.x=1"], ["--set name.x", "name is a value"]),
    "set unknown": (["plan", "R", "--set", "grid.gsd=1"], ["grid.gsd", "did you mean gsd_m?"]),
    "set to no YAML": (["plan", "R", "--set", "name=["], ["--set name", "not valid YAML"]),
    "set to a tag": (
        ["plan", "R", "--set", "name=!!python/object/apply:os.system [touch pwned]"],
        ["--set name", "tag"],
    ),
    "bbox of three": (["plan", "R", "--bbox", "1,2,3"], ["--bbox '1,2,3'", "west,south,east"]),
    "bbox of words": (["plan", "R", "--bbox", "a,b,c,d"], ["--bbox 'a,b,c,d'", "degrees"]),
    "bbox of nan": (["plan", "R", "--bbox", "nan,1,2,3"], ["--bbox", "degrees"]),
    "bbox outside the area": (["plan", "R", "--bbox", "1,41,2,42"], ["--bbox", "does not meet"]),
    "bbox far away": (["plan", "R", "--bbox", "170,-40,171,-39"], ["--bbox", "EPSG:32631"]),
    "output elsewhere": (["run", "R", "--output", "map"], ["output.path", ".zarr"]),
    "both flags": (["run", "R", "--resume", "--overwrite"], ["--resume", "--overwrite", "one"]),
    "parent is a file": (["run", "R", "--output", "noise/m.zarr"], ["output.path", "noise"]),
    "kernel's folder": (["run", "R", "--output", "/proc/bigmap/m.zarr"], ["output.path", "/proc"]),
    "long name": (["run", "R", "--output", "a" * 300 + ".zarr"], ["output.path", "too long"]),
    "no such storage": (["status", "foo://m.zarr"], ["foo"]),
    "status of nothing": (["status", "no.zarr"], ["no.zarr", "no run here"]),
    "status of a folder": (["status", "scenes"], ["scenes", "no run here"]),
}


@pytest.mark.parametrize(("arguments", "words"), LINES.values(), ids=LINES)
def test_command_line_is_refused(folder, capsys, arguments, words):
    write_recipe(folder / "recipe.yaml")
    arguments = ["recipe.yaml" if argument == "R" else argument for argument in arguments]
    refuse(capsys, folder, *arguments, words=words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(folder, capsys):
    write_recipe(folder / "recipe.yaml", inference__device="cuda")
    refuse(capsys, folder, "run", "recipe.yaml", words=["inference.device", "cuda", "no GPU"])


def write_vector(file, geometry, crs):
    frame = gpd.GeoDataFrame(geometry=[geometry], crs=crs)
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    else:
        frame.to_file(file)


BOX = shapely.box(0.6, 41.6, 0.7, 41.7)
VECTORS = {
    "no CRS": ("a.gpkg", BOX, None, "has no CRS"),
    "no CRS in parquet": ("a.parquet", BOX, None, "has no CRS"),
    "lines": ("a.gpkg", shapely.LineString(BOX.exterior), 4326, "holds no polygons"),
    "empty polygon": ("a.parquet", shapely.Polygon(), 4326, "holds no polygons"),
    "wild numbers": ("a.gpkg", shapely.box(0, 41, 1, 1e9), 4326, "it seems to hold metres"),
}


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize(("name", "geometry", "crs", "words"), VECTORS.values(), ids=VECTORS)
def test_area_file_is_refused(folder, capsys, name, geometry, crs, words):
    write_vector(folder / name, geometry, crs)
    write_recipe(folder / "recipe.yaml", area={"file": name})
    refuse(capsys, folder, "plan", "recipe.yaml", words=["area.file", name, words])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bands": ("green", "blue", "red", "nir")}, "bands"),
        ({"name": "other"}, "name other"),
        ({"upscale": 4}, "upscale"),
    ],
)
def test_weights_of_another_model(folder, capsys, change, words):
    model = build_model("small-conv")
    object.__setattr__(model, "spec", model.spec.__class__(**vars(model.spec) | change))
    save_weights(model, folder / "w.safetensors")
    write_recipe(folder / "recipe.yaml", model={"name": "small-conv", "weights": "w.safetensors"})
    refuse(capsys, folder, "run", "recipe.yaml", words=["model.weights", "w.json", words])


def test_weights_without_a_card(folder, capsys):
    save_file({"a": torch.zeros(1)}, folder / "w.safetensors")
    write_recipe(folder / "recipe.yaml", model={"name": "small-conv", "weights": "w.safetensors"})
    refuse(capsys, folder, "run", "recipe.yaml", words=["model.weights", "no model card"])


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize("holds", ["notes", "a foreign Zarr", "nothing but its name"])
def test_what_is_no_map_is_never_removed(folder, capsys, flags, holds):
    if holds == "nothing but its name":
        (folder / "map.zarr").write_text("a file")
    else:
        (folder / "map.zarr").mkdir()
        name = "notes.txt" if holds == "notes" else "zarr.json"
        (folder / "map.zarr" / name).write_text('{"attributes": {}}')
    write_recipe(folder / "recipe.yaml")
    refuse(capsys, folder, "run", "recipe.yaml", *flags, words=["output.path", "map.zarr"])


@pytest.mark.skipif(sys.platform != "linux", reason="needs a read-only mount")
def test_read_only_mount(folder, capsys):
    write_recipe(folder / "recipe.yaml", output__path="/sys/fs/m.zarr")
    refuse(capsys, folder, "run", "recipe.yaml", words=["output.path", "/sys/fs"])


def test_storage_without_credentials(folder, capsys, monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    write_recipe(folder / "recipe.yaml", output__path="s3://bucket/m.zarr")
    refuse(capsys, folder, "run", "recipe.yaml", words=["s3://bucket", "credentials"])


def closed_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def test_unreachable_host(folder, capsys):
    url = f"http://127.0.0.1:{closed_port()}"
    write_recipe(folder / "recipe.yaml", source=API | {"url": url})
    words = [url, "cannot be reached", "source.url"]
    refuse(capsys, folder, "plan", "recipe.yaml", words=words)


class HtmlHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Please log in</html>")

    def do_POST(self):
        self.do_GET()

    def log_message(self, *_):
        pass


def test_host_that_answers_html(folder, capsys):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HtmlHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        source = API | {"url": url, "access": {"retries": 1}}
        write_recipe(folder / "recipe.yaml", source=source)
        words = [url, "not JSON", "source.url"]
        refuse(capsys, folder, "plan", "recipe.yaml", words=words)
        server.shutdown()


@pytest.mark.parametrize(
    ("bbox", "words"),
    [
        ((0.6, 41.69), "area.clip_bbox"),
        ("0.6,41.6,0.7,41.7", "area.clip_bbox"),
        ((0.62, 41.68, 0.61, 41.69), "goes around the Earth"),
        ((0.6, 41.7, 0.7, 41.6), "is empty"),
        ((300_000, 4_600_000, 301_000, 4_601_000), "is not in degrees"),
        ((41.68, 0.61, 41.69, 0.62), "is not made"),
    ],
)
def test_box_of_a_cube_is_refused(folder, bbox, words):
    recipe = bigmap.load_recipe(write_recipe(folder / "r.yaml"))
    with pytest.raises(RecipeError, match=words):
        bigmap.open_cube(recipe, bbox)


@pytest.mark.real_data
def test_area_outside_real_scenes(folder, shared_data, capsys):
    items = str(shared_data / "sentinel-2-l2a/items.json")
    source = {"kind": "files", "files": [items], "start": "2023-08-01", "end": "2023-08-31"}
    write_recipe(folder / "recipe.yaml", source=source)
    refuse(capsys, folder, "plan", "recipe.yaml", words=["items.json", "outside the area"])


@pytest.mark.parametrize("output", ["scenes/m.zarr", "scenes/maps/er/m.zarr"])
def test_a_map_may_lie_beside_the_scenes(folder, capsys, output):
    write_recipe(folder / "recipe.yaml", output__path=output)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", "recipe.yaml"])
    assert not stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["plan", "no.yaml"], ["--nonsense"], ["status", "no.zarr"], ["run", "recipe.yaml"]],
)
def test_process_ends_with_2(folder, arguments):
    write_recipe(folder / "recipe.yaml", area__bbx=[1, 2, 3, 4])
    before = snapshot(folder)
    done = subprocess.run(
        [Path(sys.executable).with_name("bigmap"), *arguments], cwd=folder, timeout=60,
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert snapshot(folder) == before
