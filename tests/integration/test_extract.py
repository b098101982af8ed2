"""Chips of tiny scenes: the pixels of the cube, the labels of the file, whatever the blocks."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import geopandas as gpd
import numpy as np
import pytest
import rasterio.features
import shapely
import yaml
from rasterio.io import MemoryFile
from typer.testing import CliRunner

import bigmap
from bigmap.cli import app
from bigmap.config import parse_recipe
from bigmap.errors import OutputError
from bigmap.learning.chips import ChipSet
from bigmap.learning.samples import extract_chips, plan_samples, purpose_of_samples
from bigmap.mapping.places import Attempt
from bigmap.mapping.planning import make_plan
from bigmap.mapping.reporting import SilentReporter
from bigmap.mapping.run_folder import RunFolder
from tests.integration.local import start_cluster
from tests.integration.tiny_scenes import write_tiny_scenes

BBOX = [1.95, 41.3, 2.5, 41.75]
DAYS = ("2024-05-03", "2024-05-08", "2024-06-02")


@pytest.fixture(scope="module")
def client():
    with start_cluster() as (_, client):
        yield client


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extract")
    items = write_tiny_scenes(folder / "scenes", days=DAYS)
    x, y = np.meshgrid(np.arange(400_000, 470_000, 7_000), np.arange(4_560_000, 4_630_000, 7_000))
    boxes = [shapely.box(a, b, a + 6_300, b + 6_300) for a, b in zip(x.flat, y.flat, strict=True)]
    kinds = ["wood" if number % 3 else "field" for number in range(len(boxes))]
    file = folder / "labels.gpkg"
    gpd.GeoDataFrame({"kind": kinds}, geometry=boxes, crs="EPSG:32631").to_file(file)
    return folder, items, file


def make_recipe(world, path, *, block_px=16, **samples):
    _, items, file = world
    return parse_recipe(
        {
            "name": "tiny", "area": {"bbox": BBOX},
            "grid": {
                "crs": "EPSG:32631", "gsd_m": 600, "core_px": 8, "cell_px": 8,
                "block_px": block_px, "shard_px": 16, "chunk_px": 8,
            },
            "source": {
                "kind": "files", "files": [str(items)], "start": "2024-05-01", "end": "2024-06-30",
            },
            "model": {"name": "ndvi", "options": {"upscale": 2}},
            "output": {"path": "unused.zarr"},
            "cluster": {"kind": "local", "workers": 1},
            "samples": {
                "path": str(path), "chip_px": 4, "max_dates": 3, "min_clear_percent": 50,
                "min_labelled_percent": 40, "split": {"kind": "cells", "cell_km": 9.6,
                                                      "buffer_m": 0, "train": 0.6,
                                                      "validation": 0.2, "test": 0.2},
                "labels": {"kind": "vector", "file": str(file), "attribute": "kind",
                           "classes": {"wood": 0, "field": 1}},
            } | samples,
        }
    )  # fmt: skip


def extract(recipe, client, reporter=None, **attempt):
    plan = make_plan(recipe, purpose=purpose_of_samples(recipe), resume="resume" in attempt)
    return extract_chips(plan_samples(plan), client, Attempt(**attempt), reporter=reporter)


def files_of(path):
    """The bytes of all objects; attributes hold the set's own path."""
    root = Path(path)
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != "zarr.json"
    }


@pytest.fixture(scope="module")
def made(world, client, tmp_path_factory):
    recipe = make_recipe(world, tmp_path_factory.mktemp("made") / "chips.zarr")
    summary = extract(recipe, client)
    assert summary.exit_code == 0
    return recipe, summary


def test_chips_hold_the_cube_and_the_labels_of_their_place(world, made):
    recipe, summary = made
    chips = ChipSet(recipe.samples.path)
    assert len(chips) == sum(summary.counts.chips.values()) > 40
    cube = bigmap.open_cube(recipe).compute()
    frame = gpd.read_file(world[2])
    upscale, gsd_m = 2, 600
    for index in range(0, len(chips), 7):
        chip = chips.read(index)
        left, top = chip.col * gsd_m, -chip.row * gsd_m
        part = cube.sel(
            x=slice(left, left + 4 * gsd_m), y=slice(top, top - 4 * gsd_m),
            time=[np.datetime64(day) for day in chip.days],
        )  # fmt: skip
        np.testing.assert_array_equal(chip.images, part.values)
        np.testing.assert_array_equal(chip.clear, part["clear"].values)
        assert [day.isoformat() for day in chip.days] == list(DAYS)
        transform = rasterio.transform.from_origin(left, top, gsd_m / upscale, gsd_m / upscale)
        shapes = [(s, int(k == "field")) for s, k in zip(frame.geometry, frame.kind, strict=True)]
        expected = rasterio.features.rasterize(shapes, (8, 8), fill=255, transform=transform)
        np.testing.assert_array_equal(chip.labels, expected)
        assert (chip.labels != 255).mean() >= 0.4


def test_places_splits_and_counts_are_those_of_the_pixels(made):
    recipe, summary = made
    chips = ChipSet(recipe.samples.path)
    assert len({(chip_row, chip_col) for chip_row, chip_col in
                zip(chips.places.row, chips.places.col, strict=True)}) == len(chips)  # fmt: skip
    for split in ("train", "validation", "test"):
        read = [chips.read(index) for index in chips.indices(split)]
        assert len(read) == summary.counts.chips[split]
        for value, name in enumerate(("other", "cropland")):
            pixels = sum(int((chip.labels == value).sum()) for chip in read)
            assert pixels == summary.counts.class_px[split][name]
    assert (chips.places.dates == 3).all()
    train = [chips.read(index) for index in chips.indices("train")]
    seen = np.concatenate([c.images.transpose(0, 2, 3, 1)[c.clear] for c in train]) * 1e-4 - 0.1
    mean, std = chips.statistics
    np.testing.assert_allclose(mean, seen.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(std, seen.std(axis=0), atol=1e-7)
    folder = RunFolder(recipe.samples.path).path
    assert json.loads(Path(f"{folder}/counts.json").read_text())["chips"] == summary.counts.chips
    assert Path(f"{folder}/chips.png").stat().st_size > 10_000
    assert not Path(f"{folder}/parts").exists()


@pytest.mark.parametrize("block_px", [8, 32])
def test_blocks_change_no_byte(world, made, client, tmp_path, block_px):
    recipe = make_recipe(world, tmp_path / "chips.zarr", block_px=block_px)
    assert extract(recipe, client).exit_code == 0
    assert files_of(recipe.samples.path) == files_of(made[0].samples.path)


def test_a_trial_goes_on_to_the_same_bytes(world, made, client, tmp_path):
    recipe = make_recipe(world, tmp_path / "chips.zarr")
    trial = extract(recipe, client, limit=3)
    assert trial.exit_code == 0
    assert 0 < sum(trial.counts.chips.values()) < sum(made[1].counts.chips.values())
    parts = Path(RunFolder(recipe.samples.path).path) / "parts"
    lost = next(parts.glob("*.npz"))
    lost.unlink()
    summary = extract(recipe, client, resume=True)
    assert summary.counts == made[1].counts
    assert files_of(recipe.samples.path) == files_of(made[0].samples.path)
    again = extract(recipe, client, resume=True)  # nothing left to do
    assert again.counts == summary.counts


def test_most_chips_are_drawn_by_place(world, made, client, tmp_path):
    recipe = make_recipe(world, tmp_path / "chips.zarr", max_chips=10, balance="classes")
    summary = extract(recipe, client)
    assert max(summary.counts.chips.values()) == 10
    assert summary.counts.left_out > 0
    all_places = set(zip(*_places(made[0]), strict=True))
    assert set(zip(*_places(recipe), strict=True)) < all_places


def _places(recipe):
    places = ChipSet(recipe.samples.path).places
    return places.row.tolist(), places.col.tolist()


def test_pairs_are_made_by_degrading_the_chip(world, client, tmp_path):
    recipe = make_recipe(world, tmp_path / "chips.zarr", target={"kind": "downsampled"},
                         max_dates=1)  # fmt: skip
    assert extract(recipe, client).exit_code == 0
    chips = ChipSet(recipe.samples.path)
    assert chips.template.gsd_m == 1200
    chip = chips.read(0)
    assert chip.target.shape == (2, 8, 8)
    assert chip.labels.shape == (8, 8)
    means = chip.target.reshape(2, 4, 2, 4, 2).astype(float).mean(axis=(2, 4))
    np.testing.assert_array_equal(chip.images[0], np.rint(means))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"max_dates": 4, "min_dates": 4}, "no chip was cut; .* with too few clear dates"),
        ({"min_dates": 3, "max_dates": 3, "min_clear_percent": 100, "chip_px": 8,
          "split": {"kind": "cells", "cell_km": 1}}, "no chip of 8 px has a place"),
        ({"chip_px": 16}, "a chip covers 16 px of the grid, more than grid.cell_px 8"),
        ({"labels": None, "target": {"kind": "sensor"}}, "is of the simulated world"),
        ({"labels": {"kind": "simulated"}}, "is of the simulated world"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_ends_in_one_sentence(world, client, tmp_path, samples, message):
    with pytest.raises(bigmap.BigmapError, match=message):
        extract(make_recipe(world, tmp_path / "chips.zarr", **samples), client)


def test_the_command_prints_counts_and_refuses_a_place_that_is_taken(world, tmp_path):
    recipe = make_recipe(world, tmp_path / "chips.zarr")
    file = tmp_path / "tiny.yaml"
    raw = recipe.model_dump(mode="json", exclude_none=True)
    file.write_text(yaml.safe_dump(raw))
    result = CliRunner().invoke(app, ["extract", str(file), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout.splitlines()[0])
    assert found["counts"]["chips"]["train"] > 10
    assert "cropland" in result.stderr
    with pytest.raises(OutputError, match="exists; add --resume to go on with it or --overwrite"):
        CliRunner().invoke(app, ["extract", str(file)], catch_exceptions=False)
    other = ["extract", str(file), "--resume", "--set", "samples.chip_px=2"]
    with pytest.raises(OutputError, match=r"was started with another samples\.chip_px"):
        CliRunner().invoke(app, other, catch_exceptions=False)


class _Host(ThreadingHTTPServer):
    """A host of one file, read in ranges, that answers 503 while it is overloaded."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.is_overloaded = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/labels.tif"


class _Handler(BaseHTTPRequestHandler):
    server: _Host

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """Send the head of an answer, and return its body."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        whole = self.server.content
        start, end = (int(found[1]), int(found[2]) + 1) if found else (0, len(whole))
        body = b"" if self.server.is_overloaded else whole[start:end]
        self.send_response(503 if self.server.is_overloaded else 206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if found and body:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(whole)}")
        self.end_headers()
        return body

    def log_message(self, *_) -> None:
        """Say nothing."""


class _Overload(SilentReporter):
    """Overloads a host from the first block until two attempts at blocks have failed."""

    def __init__(self, host: _Host) -> None:
        self.host = host
        self.failed: list[str] = []

    def start(self, *_) -> None:
        self.host.is_overloaded = True

    def note(self, message: str) -> None:
        if "failed" in message:
            self.failed.append(message)
            self.host.is_overloaded = len(self.failed) < 2


def test_labels_that_fail_twice_are_read(world, client, tmp_path, monkeypatch):
    monkeypatch.setattr("bigmap.clusters.driving.RETRY_DELAY_S", 0.01)
    values = np.random.default_rng(5).integers(0, 2, (300, 300)).astype(np.uint8)
    left, top, pixel_m = 390_000, 4_650_000, 300
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=300, height=300, count=1, dtype="uint8", crs="EPSG:32631",
            transform=rasterio.Affine(pixel_m, 0, left, 0, -pixel_m, top),
        ) as target:  # fmt: skip
            target.write(values, 1)
        host = _Host(memory.read())
    Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    labels = {"kind": "raster", "files": [host.url]}
    raw = make_recipe(world, tmp_path / "chips.zarr", labels=labels).model_dump(mode="json")
    raw["source"]["access"]["retries"] = 1
    reporter = _Overload(host)
    summary = extract(parse_recipe(raw), client, reporter=reporter)
    host.shutdown()
    host.server_close()
    assert len(reporter.failed) >= 2
    assert all("samples.labels.files: http://127.0.0.1" in each for each in reporter.failed)
    assert summary.exit_code == 0
    chips = ChipSet(str(tmp_path / "chips.zarr"))
    assert len(chips) > 40
    for index in range(len(chips)):
        chip = chips.read(index)
        row, col = (top // 600 + chip.row) * 2, (chip.col - left // 600) * 2
        np.testing.assert_array_equal(chip.labels, values[row : row + 8, col : col + 8])
