"""``bigmap plan`` on Europe with up to a million items: time and memory.

The items are those of simulated orbits over all of Sentinel-2's tiles on Europe's land, whole
tiles, none of them rendered; their cloud covers are drawn by hash. They are
written as the columns of a saved catalogue, so no search is timed.
"""

import argparse
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import yaml
from pyproj import Transformer

from benchmarks.measuring import (
    ROOT,
    WORK,
    describe_machine,
    run_measured,
    table,
    write_results,
)
from bigmap.area import read_area
from bigmap.draws import hash_ints, to_uniform
from bigmap.scenes.catalog import Audit
from bigmap.scenes.catalog.projection import footprint_of
from bigmap.scenes.items import AssetRow, ItemRow, pack_assets
from bigmap.simulate.acquisitions import HALF_SWATH_KM, Datatake, list_datatakes
from bigmap.simulate.flavours import baseline_of, native_gsd_m
from bigmap.simulate.sensor import MSI
from bigmap.simulate.tiles import TILE_PX, Tile

RECIPE = ROOT / "recipes" / "europe.yaml"
FIRST, LAST = dt.date(2020, 1, 1), dt.date(2024, 12, 31)
ZONES = range(26, 42)
ROWS = range(37, 92)
"""Squares of 100 km north of the equator, from 34 to 82 degrees north."""
SIZES = (10_000, 100_000, 1_000_000)
SEED = 1
HOST = "https://scenes.example.org"
TILE_M = 10.0 * TILE_PX
LEAST_SUN_DEG = 8.0
"""The mission takes no images where the sun stands lower."""
REACH_KM = HALF_SWATH_KM + 50
"""How far a tile's centre may lie from the ground track."""


def bounds_of(tile: Tile) -> tuple[float, float, float, float]:
    """Return left, bottom, right, top of a tile in its CRS."""
    left, top = tile.corner
    return float(left), top - TILE_M, left + TILE_M, float(top)


def list_tiles() -> list[Tile]:
    """List the tiles that show land of Europe, each in the zones that it belongs to."""
    land = shapely.from_geojson(json.dumps(json.loads(
        RECIPE.with_suffix(".geojson").read_text(encoding="utf-8"))["geometry"]))  # fmt: skip
    shapely.prepare(land)
    found = []
    for zone in ZONES:
        west = 6.0 * zone - 186
        strip = shapely.intersection(land, shapely.box(west, 30, west + 6, 84))
        shapely.prepare(strip)
        tiles = (Tile(zone, False, column, row) for column in range(1, 9) for row in ROWS)
        found += [t for t in tiles if strip.intersects(footprint_of(bounds_of(t), t.epsg))]
    return found


def locate(tiles: list[Tile]) -> tuple[Any, Any]:
    """Return longitudes and latitudes of the tiles' centres."""
    centres = []
    for tile in tiles:
        left, bottom, right, top = bounds_of(tile)
        to_lonlat = Transformer.from_crs(tile.epsg, 4326, always_xy=True)
        centres.append(to_lonlat.transform((left + right) / 2, (bottom + top) / 2))
    return tuple(np.array(values) for values in zip(*centres, strict=True))


def list_items(tiles: list[Tile], most: int) -> tuple[list[Datatake], Any, Any]:
    """List the first items in time.

    Returns
    -------
    datatakes, passes, places
        The datatakes, and for each item the index of its datatake and of its tile.
    """
    longitude, latitude = locate(tiles)
    datatakes = list_datatakes(SEED, longitude, latitude, FIRST, LAST)
    passes, places, count = [], [], 0
    for index, datatake in enumerate(datatakes):
        _, height_deg = datatake.locate_sun(longitude, latitude)
        near = np.abs(datatake.cross_track_km(longitude, latitude)) < REACH_KM
        seen = np.flatnonzero(near & (height_deg > LEAST_SUN_DEG))
        passes.append(np.full(len(seen), index))
        places.append(seen)
        count += len(seen)
        if count >= most:
            break
    return datatakes, np.concatenate(passes)[:most], np.concatenate(places)[:most]


def layout_of(tile: Tile) -> str:
    """Return the layout that all items share: twelve bands and the classification."""
    left, bottom, right, top = bounds_of(tile)
    assets = {}
    for name in (*MSI, "scl"):
        gsd = float(native_gsd_m(name))
        size = round(TILE_M / gsd)
        file = f"{HOST}/x/{MSI[name].code if name in MSI else 'SCL'}.tif"
        assets[name] = AssetRow(file, (size, size), (gsd, 0.0, left, 0.0, -gsd, top))
    day = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    row = ItemRow("x", "c", day, day.date(), tile.epsg, (left, bottom, right, top), 0, 0.0, None,
                  None, assets)  # fmt: skip
    return pack_assets(row)[2]


def write_items(path: Path, most: int) -> int:
    """Write the first items in time as the columns of a saved catalogue; return their number."""
    tiles = list_tiles()
    datatakes, passes, places = list_items(tiles, most)
    longitude, _latitude = locate(tiles)
    moments = [datatake.time_at(55.0) for datatake in datatakes[: int(passes.max()) + 1]]
    days = [f"{moment:%Y%m%d}" for moment in moments]
    names = [tile.name for tile in tiles]
    ids = [
        f"{datatakes[p].platform[-2:].upper()}_{names[t]}_{days[p]}_{datatakes[p].seed % 1000}_L2A"
        for p, t in zip(passes.tolist(), places.tolist(), strict=True)
    ]
    folders = [f"{HOST}/{names[t][:2]}/{names[t][2]}/{names[t][3:]}/{name}/"
               for t, name in zip(places.tolist(), ids, strict=True)]  # fmt: skip
    stamps = np.array([moment.replace(tzinfo=None) for moment in moments], "datetime64[us]")
    solar = stamps[passes] + (longitude[places] * 240e6).astype("timedelta64[us]")
    cloud = 100 * to_uniform(hash_ints(SEED, np.arange(len(passes))), draw=1)
    boxes = np.array([bounds_of(tile) for tile in tiles])[places]
    # Rows stand in the total order: solar day, time, id.
    order = np.lexsort((np.array(ids), stamps[passes], solar.astype("datetime64[D]")))
    count, layout = len(order), layout_of(tiles[0])
    columns = {
        "id": pa.array(ids),
        "collection": pa.array(["sentinel-2-l2a"] * count).dictionary_encode(),
        "datetime": pa.array(stamps[passes], pa.timestamp("us", "UTC")),
        "bigmap:solar_day": pa.array(np.datetime_as_string(solar, unit="D")),
        "proj:code": pa.array([f"EPSG:{tiles[t].epsg}" for t in places]),
        "proj:bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4),
        "bigmap:dn_shift": pa.array(np.zeros(count, np.int16)),
        "eo:cloud_cover": pa.array(np.round(cloud, 2)),
        "s2:processing_baseline": pa.array([baseline_of(moments[p].date()) for p in passes]),
        "grid:code": pa.array([f"MGRS-{names[t]}" for t in places]),
        "bigmap:folder": pa.array(folders),
        "bigmap:stem": pa.array([""] * count),
        "bigmap:layout": pa.array([layout] * count),
    }
    audit = Audit(count, count, (), (), (), ())
    written = pa.table(columns).take(pa.array(order))
    metadata = {b"bigmap:audit": json.dumps(audit.to_dict()).encode()}
    pq.write_table(written.replace_schema_metadata(metadata), path, compression="zstd")
    return count


def write_recipe(path: Path, items: Path) -> None:
    """Write the recipe of Europe with its items in a file, of all days and any cloud."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    kept = {name: recipe["source"][name] for name in ("collection", "harmonise", "mask")}
    recipe["area"]["file"] = str(RECIPE.with_suffix(".geojson"))
    recipe["output"]["path"] = str(items.with_suffix(".zarr"))
    # Masks of years of scenes at once need much more memory than those of a season.
    recipe["cluster"] = {"kind": "local", "memory_gb": 256}
    recipe["source"] = {
        "kind": "files", "files": [str(items)], "start": str(FIRST), "end": str(LAST), **kept,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")


def measure(size: int) -> dict[str, Any]:
    """Plan Europe with so many items, in a process of its own."""
    WORK.mkdir(parents=True, exist_ok=True)
    items = WORK / f"europe-{size}.parquet"
    if not items.exists():
        write_items(items, size)
    recipe = WORK / f"europe-{size}.yaml"
    write_recipe(recipe, items)
    command = [sys.executable, "-c", "from bigmap.cli import main; main()"]
    command += ["plan", str(recipe), "--json"]
    measured = run_measured(command, WORK / f"europe-{size}.log")
    estimate = json.loads(measured.output)["estimate"]
    return {
        "items": estimate["items"],
        "blocks": estimate["blocks"],
        "area_km2": estimate["area_km2"],
        "file_mb": items.stat().st_size / 1e6,
        "seconds": measured.seconds,
        "peak_gb": measured.peak_bytes / 1e9,
        "estimate": estimate,
    }


def main(arguments: list[str]) -> None:
    """Plan Europe with more and more items and write the results."""
    parser = argparse.ArgumentParser(prog="plan_continent")
    parser.add_argument("--quick", action="store_true", help="a trial, not a result")
    options, _ = parser.parse_known_args(arguments)
    machine = describe_machine()
    runs = [measure(size) for size in (SIZES[:1] if options.quick else SIZES)]
    rows = [
        (f"{run['items']:,}", f"{run['blocks']:,}", f"{run['file_mb']:,.0f}",
         f"{run['seconds']:.1f}", f"{run['peak_gb']:.2f}")
        for run in runs
    ]  # fmt: skip
    area = read_area(crs="EPSG:3035", file=str(RECIPE.with_suffix(".geojson"))).area_km2
    body = (
        f"`bigmap plan` on Europe, {area:,.0f} km² in EPSG:3035 at 10 m in blocks of 1024 px, from "
        "a saved catalogue; one process each, start and imports included, once.\n\n"
        + table(("items", "blocks", "file, MB", "seconds", "peak memory, GB"), rows)
    )
    write_results("plan_continent", "Planning a continent", body,
                  {"machine": machine, "runs": runs}, quick=options.quick)  # fmt: skip
