"""A virtual Sentinel-2 world: scenes, items and truth for any area, from a seed.

Everything is a function of the seed and the place; nothing is stored but a cache of files.
``docs/simulation.md`` says what the world holds, how it compares with real scenes and what it
leaves out.
"""

from bigmap.simulate.catalogs import write_geoparquet, write_static_catalog
from bigmap.simulate.files import trim_cache
from bigmap.simulate.flavours import FLAVOURS
from bigmap.simulate.images import render_reflectance, render_second_sensor
from bigmap.simulate.pool import Pool, start_pool
from bigmap.simulate.requests import SceneRequest, SceneStock, check_size, list_request_parts
from bigmap.simulate.scenes import (
    Renderer,
    SceneTask,
    forecast_items,
    locate_items,
    render_here,
    split_tasks,
    write_scenes,
    write_task,
)
from bigmap.simulate.truth import LAYERS, render_truth
from bigmap.simulate.truth_files import write_true_image, write_truth, write_truth_polygons
from bigmap.simulate.world import World, write_world

__all__ = [
    "FLAVOURS",
    "LAYERS",
    "Pool",
    "Renderer",
    "SceneRequest",
    "SceneStock",
    "SceneTask",
    "World",
    "check_size",
    "forecast_items",
    "list_request_parts",
    "locate_items",
    "render_here",
    "render_reflectance",
    "render_second_sensor",
    "render_truth",
    "split_tasks",
    "start_pool",
    "trim_cache",
    "write_geoparquet",
    "write_scenes",
    "write_static_catalog",
    "write_task",
    "write_true_image",
    "write_truth",
    "write_truth_polygons",
    "write_world",
]
