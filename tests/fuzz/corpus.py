"""Small valid inputs of all kinds that bigmap reads, from which mutations start.

One folder for each target and each form of its input: ``TARGET/FORM/files``.
"""

from __future__ import annotations

import copy
import datetime as dt
import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
import yaml
from affine import Affine

from bigmap.api import plan
from bigmap.config import load_recipe
from bigmap.config.sources import FilesSource
from bigmap.learning.training.folder import TrainingFolder
from bigmap.lease import Lease
from bigmap.mapping.ledger import BlockRecord
from bigmap.mapping.planning import make_plan
from bigmap.mapping.plans import Plan
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.staging.stages import stage_plan
from bigmap.mapping.store.template import complete_map, create_root
from bigmap.models import Training, build_model, save_weights
from bigmap.scenes.catalog import find_items, save_items
from bigmap.simulate import FLAVOURS, SceneRequest, write_geoparquet, write_static_catalog
from bigmap.simulate.flavours import list_scene_files, restyle_item
from bigmap.simulate.items import COLLECTION, describe_item
from bigmap.simulate.rendering import SCL_FIELDS, list_datatakes_of
from bigmap.simulate.requests import list_request_parts
from tests.fuzz.mutating import Files
from tests.integration.small_world import BBOX, raw_recipe, write_recipe, write_scenes
from tests.unit.learning.training.chip_cases import write_chips

ROOT = Path(__file__).resolve().parents[2]
HERE = b"@HERE@"
"""Stands for the folder that a form lies in, since a run keeps absolute paths."""
TEXTS = (".yaml", ".json", ".jsonl")
UNCHANGED = (".tif",)
"""Suffixes of files that no target reads, and that would only be copied."""
SOURCE_DAYS = {"start": "2024-03-01", "end": "2024-06-30"}
FINGERPRINT = {"training": {"epochs": 3}, "samples": {"chips": 4}}
CRS = "EPSG:32631"
LEFT, TOP = 300_000, 4_620_000
WORLD = shapely.box(-180, -90, 180, 90)
API = "http://api.invalid/v1"
"""Stands for the address of the server that answers for a STAC API."""


def write_corpus(folder: Path) -> None:
    """Write the valid inputs of all targets."""
    for kind in ("recipes", "cluster"):
        for file in sorted((ROOT / kind).glob("*.yaml")):
            copy_file(file, folder / kind / file.stem / "file.yaml")
    for flavour in FLAVOURS:
        write_catalogues(folder, flavour, describe_items(flavour))
    write_areas(folder / "area")
    write_labels(folder / "labels")
    write_runs(folder)
    write_models(folder)
    write_chips(folder / "chips" / "labels" / "chips.zarr", train=2, validation=1, chip_px=4)
    write_commands(folder / "commands")


def read_forms(folder: Path) -> dict[str, Files]:
    """Return the forms of a target's input, by name."""
    return {form.name: read_files(form) for form in sorted(folder.iterdir())}


def read_files(folder: Path) -> Files:
    """Return the files below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): path for path in paths if path.suffix not in UNCHANGED}
    return {
        name: path.read_bytes().replace(bytes(folder), HERE)
        if path.suffix in TEXTS
        else path.read_bytes()
        for name, path in files.items()
    }


def write_files(files: Files, folder: Path) -> None:
    """Write files into a folder, which holds nothing else then."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_text = path.suffix in TEXTS
        path.write_bytes(content.replace(HERE, bytes(folder)) if is_text else content)
    folder.mkdir(parents=True, exist_ok=True)


def copy_file(file: Path, target: Path) -> None:
    """Copy a file into a folder that need not be there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def write_json(file: Path, content: Any) -> Path:
    """Write JSON into a folder that need not be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def describe_items(flavour: str) -> list[dict[str, Any]]:
    """Describe two scenes as a catalogue would, without rendering their pixels."""
    bands = ("blue", "red", "nir")
    bounds = (LEFT, TOP - 2_000, LEFT + 2_000, TOP)
    request = SceneRequest(
        CRS, bounds, dt.date(2024, 4, 1), dt.date(2024, 4, 12), bands, 0, flavour, 366
    )
    return list(_describe(request))[:2]


def _describe(request: SceneRequest) -> Iterator[dict[str, Any]]:
    for part in list_request_parts(request):
        for datatake in list_datatakes_of(part, request.seed, request.start, request.end):
            item = describe_item(
                part,
                datatake,
                sun=(150.0, 40.0),
                percentages=dict.fromkeys(SCL_FIELDS, 8.0),
                footprint=list(shapely.box(*part.bounds).exterior.coords),
            )
            files = list_scene_files(request.bands, request.flavour, datatake.node.date())
            yield restyle_item(item, request.flavour, {file: file.path for file in files})


def move_to_web(collection: dict[str, Any]) -> dict[str, Any]:
    """Give assets absolute hrefs, since folders of tests have other names each time."""
    moved = copy.deepcopy(collection)
    for item in moved["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"https://example.org/{asset['href'].removeprefix('./')}"
    return moved


def write_catalogues(folder: Path, flavour: str, items: list[dict[str, Any]]) -> None:
    """Write items in all forms of catalogues."""
    collection = {"type": "FeatureCollection", "features": items}
    file = write_json(folder / "items" / flavour / "items.json", collection)
    write_json(folder / "items" / f"{flavour}-item" / "items.json", items[0])
    web = write_json(folder / "items" / f"{flavour}-web" / "items.json", move_to_web(collection))
    parquet = folder / "parquet"
    (parquet / flavour).mkdir(parents=True)
    write_geoparquet(file, parquet / flavour / "items.parquet")
    source = FilesSource(kind="files", files=(str(web),), **SOURCE_DAYS)
    saved = find_items(source, bands=("red", "nir"), mask_asset="scl", geometry_lonlat=WORLD)
    save_items(saved, str(parquet / f"{flavour}-saved" / "items.parquet"))
    write_static_catalog(file, folder / "static" / flavour)
    landing = {
        "type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "A STAC API",
        "conformsTo": [f"https://api.stacspec.org/v1.0.0/{part}" for part in
                       ("core", "item-search", "item-search#query")],
        "links": [
            {"rel": "self", "href": API, "type": "application/json"},
            {"rel": "root", "href": API, "type": "application/json"},
            {"rel": "search", "href": f"{API}/search", "type": "application/geo+json",
             "method": "POST"},
        ],
    }  # fmt: skip
    answers = {"landing.json": landing}
    for number, item in enumerate(items):
        link = {"rel": "next", "href": f"{API}/page-{number + 1}", "method": "GET"}
        links = [link] if number + 1 < len(items) else []
        answers[f"page-{number}.json"] = {
            "type": "FeatureCollection", "features": [item | {"collection": COLLECTION}],
            "links": links, "numberMatched": len(items), "numberReturned": 1,
        }  # fmt: skip
    heads = {name: {"status": 200, "headers": {"Content-Type": "application/json"}}
             for name in answers}  # fmt: skip
    for name, content in (answers | {"http.json": heads}).items():
        write_json(folder / "api" / flavour / name, content)


def write_areas(folder: Path) -> None:
    """Write an area in the formats of vectors."""
    west, south, east, north = BBOX
    hole = shapely.box(west + 0.002, south + 0.002, west + 0.004, south + 0.004)
    shapes = [
        shapely.box(*BBOX) - hole,
        shapely.MultiPolygon([shapely.box(east, south, 0.62, north)]),
    ]
    frame = gpd.GeoDataFrame({"name": ["a", "b"]}, geometry=shapes, crs="EPSG:4326")
    for name in ("area.geojson", "area.gpkg", "area.parquet"):
        file = folder / name.partition(".")[2] / name
        file.parent.mkdir(parents=True)
        frame.to_parquet(file) if name.endswith("parquet") else frame.to_file(file)


def write_labels(folder: Path) -> None:
    """Write labels as polygons and as a raster."""
    shapes = [shapely.box(LEFT, TOP - 100, LEFT + 100, TOP),
              shapely.box(LEFT, TOP - 300, LEFT + 100, TOP - 200)]  # fmt: skip
    frame = gpd.GeoDataFrame({"kind": ["wheat", "maize"]}, geometry=shapes, crs=CRS)
    for name in ("labels.geojson", "labels.parquet"):
        file = folder / name.partition(".")[2] / name
        file.parent.mkdir(parents=True)
        frame.to_parquet(file) if name.endswith("parquet") else frame.to_file(file)
    file = folder / "raster" / "labels.tiff"
    file.parent.mkdir()
    with rasterio.open(
        file, "w", driver="GTiff", width=40, height=40, count=1, dtype="uint8", crs=CRS, nodata=255,
        transform=Affine(10, 0, LEFT, 0, -10, TOP),
    ) as target:  # fmt: skip
        target.write(np.eye(40, dtype=np.uint8), 1)


def write_runs(folder: Path) -> None:
    """Write recipes that can be planned, and what runs and staging of them leave."""
    for form, changes in {
        "one": {},
        "zones": {"grid__crs": "utm", "area__bbox": [5.995, 41.688, 6.006, 41.694]},
    }.items():
        case = folder / "run" / form
        case.mkdir(parents=True)
        if form == "one":
            collection = json.loads(write_scenes(case / "scenes").read_text())
        else:
            collection = describe_wide_scenes()
        write_json(case / "scenes" / "items.json", move_to_web(collection))
        write_recipe(case / "recipe.yaml", **changes)
        shutil.copytree(case, folder / "plan" / form, ignore=shutil.ignore_patterns("*.tif"))
        with chdir(case):
            write_run(plan(load_recipe("recipe.yaml", [f"output.path={case}/map.zarr"])))
        shutil.copytree(case / "map.zarr", folder / "map" / form / "map.zarr")
        for left in (case / "map.zarr").iterdir():
            if left.is_dir():
                shutil.rmtree(left)
    case = folder / "staged" / "one"
    case.mkdir(parents=True)
    write_scenes(case / "scenes")
    stage_plan(make_plan(load_recipe(write_recipe(case / "recipe.yaml"))), case / "stage")


def describe_wide_scenes() -> dict[str, Any]:
    """Describe an item of each of two UTM zones that meet."""
    items = []
    for epsg, left in ((32631, 745_000), (32632, 247_000)):
        (item, _) = describe_items("earth-search")
        item |= {"id": f"S2A_{epsg}_20240401_0_L2A", "geometry": None}
        item["properties"] |= {
            "proj:epsg": epsg, "proj:code": f"EPSG:{epsg}", "grid:code": f"MGRS-{epsg % 100}TGG",
        }  # fmt: skip
        for asset in item["assets"].values():
            pixel_m = asset["proj:transform"][0]
            asset["proj:transform"][2::3] = [left, 4_621_000]
            asset["proj:shape"] = [8_000 // pixel_m] * 2
        items.append(item)
    return {"type": "FeatureCollection", "features": items}


def write_run(planned: Plan) -> None:
    """Write what a run of a plan leaves, short of pixels."""
    folder = RunFolder(planned.output)
    lease = Lease(folder.path)
    lease.acquire()
    folder.create(planned, lease)
    names = [part.name for part in planned.parts if part.name]
    if names:
        create_root(folder.output, {"title": "zones", "bigmap:recipe": {}}, names)
    for part in planned.parts:
        complete_map(part.store, part.template())
        book = folder.part(part.name).open_ledger(lease)
        for number, block in enumerate(part.blocks):
            book.append(BlockRecord(
                block=part.name_block(block), state=("done", "empty", "failed")[number % 3],
                dates=("2024-04-01",), seconds={"read": 0.5}, shards=(("class/c/0/0", 12),),
                finished="2024-05-01T10:00:00+00:00",
            ))  # fmt: skip
            book.flush()
            if number == 1:
                book.compact()
        folder.part(part.name).mark_overviews(lease, complete=True)
    lease.release()
    # A lease of another process and another time would be another input.
    holder = {"owner": "0" * 32, "host": "elsewhere", "pid": 1, "renewed": 1.7e9, "released": True}
    write_json(Path(lease.path), holder)


def write_models(folder: Path) -> None:
    """Write weights with their card, for import, and a checkpoint of a training."""
    model = build_model("small-conv", {"width": 2, "depth": 1})
    scored = Training("two scenes", is_simulated=True, scores={"mcc": 0.5}, source="model.pt")
    for form, training in (("plain", None), ("scored", scored)):
        place = folder / "card" / form
        place.mkdir(parents=True)
        save_weights(model, place / "weights.safetensors", training=training)
    weights = folder / "weights"
    copy_file(place / "weights.safetensors", weights / "safetensors" / "weights.safetensors")
    (weights / "pytorch").mkdir()
    torch.save({"state_dict": model.state_dict()}, weights / "pytorch" / "weights.pt")
    started = TrainingFolder(folder / "training" / "checkpoint" / "weights.safetensors")
    started.check(resume=False, overwrite=False)
    started.start()
    started.save({"fingerprint": json.dumps(FINGERPRINT), "model": model.state_dict()})


def write_commands(folder: Path) -> None:
    """Write command lines, and a recipe that they name."""
    recipe = yaml.safe_dump(raw_recipe())
    for form, arguments in {
        "plan": ["plan", "recipe.yaml", "--set", "grid.gsd_m=10", "--set",
                 "source.end=2024-05-01", "--bbox", "0.6,41.68,0.61,41.69", "--json"],
        "show": ["models", "show", "small-conv", "--set", "width=4", "--set", "upscale=1"],
        "import": ["models", "import", "small-conv", "w.safetensors", "--out", "o.safetensors",
                   "--bands", "blue,green,red,nir", "--data", "none", "--set", "width=4"],
        "status": ["status", "map.zarr", "--json"],
        "clusters": ["cluster", "list", "--json"],
        "stage": ["stage", "recipe.yaml", "--out", "scenes", "--jobs", "2", "--verify"],
    }.items():  # fmt: skip
        write_json(folder / form / "arguments.json", arguments)
        (folder / form / "recipe.yaml").write_text(recipe)
