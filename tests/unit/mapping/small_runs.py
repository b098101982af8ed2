"""Runs of a few blocks that need no cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.clusters.driving import ENDS_ALL
from bigmap.clusters.tasks import Outcome, Policy, Task, Work
from bigmap.errors import BigmapError
from bigmap.lease import Lease
from bigmap.mapping.plans import Plan
from bigmap.mapping.run_folder import RunFolder
from bigmap.mapping.store.template import complete_map
from tests.integration.small_world import TRANSFORM


def start_run(plan: Plan, folder: Path) -> tuple[Plan, RunFolder, Lease]:
    """Begin a run and return its plan, its folder and its lease."""
    output = str(folder / "map.zarr")
    purpose = replace(plan.purpose, path=output)
    plan = replace(plan, purpose=purpose, parts=(replace(plan.only, purpose=purpose),))
    run = RunFolder(output)
    lease = Lease(run.path)
    lease.acquire()
    run.create(plan, lease)
    complete_map(output, plan.only.template())
    return plan, run, lease


def do_here(
    client: None,
    work: Work[Any],
    tasks: Iterable[Task[Any]],
    *,
    policy: Policy,
    note: Callable[[str], None],
    watch: Callable[[], None],
) -> Iterator[Outcome[Any, Any]]:
    """Stand in for :func:`bigmap.clusters.driving.drive`: one attempt at each task, right here."""
    for task in tasks:
        try:
            outcome = Outcome(task.item, 1, None, work.run(task.payload, note))
        except ENDS_ALL:
            raise
        except BigmapError as error:
            outcome = Outcome(task.item, policy.attempts, error)
        yield outcome
        watch()


def map_here(client: None, do: Callable[[Any], Any], items: Iterable[Any], **_: Any) -> list[Any]:
    """Stand in for :func:`bigmap.clusters.driving.map_on`."""
    return [do(item) for item in items]


def write_area(folder: Path, shape: BaseGeometry) -> dict[str, str]:
    """Write a shape, in metres right of and below the scenes' upper left corner."""
    placed = shapely.transform(shape, lambda xy: xy * [1, -1] + [TRANSFORM.c, TRANSFORM.f])
    gpd.GeoSeries([placed], crs="EPSG:32631").to_file(folder / "area.gpkg")
    return {"file": str(folder / "area.gpkg")}


def edit_items(folder: Path, edit: Callable[[dict[str, Any], str], None]) -> None:
    """Change the items of the scenes one by one, given their month and day."""
    file = folder / "scenes" / "items.json"
    content = json.loads(file.read_text())
    for item in content["features"]:
        edit(item, item["id"][14:18])
    file.write_text(json.dumps(content))


def move_scene(item: dict[str, Any], shift_m: float) -> None:
    """Move a scene to the east, with its footprint."""
    for asset in item["assets"].values():
        asset["proj:transform"][2] += shift_m
    [ring] = item["geometry"]["coordinates"]
    frame = gpd.GeoSeries([shapely.Polygon(ring)], crs="EPSG:4326").to_crs("EPSG:32631")
    moved = frame.translate(shift_m).to_crs("EPSG:4326").iloc[0]
    item["geometry"] = shapely.geometry.mapping(moved)
    item["bbox"] = list(moved.bounds)
