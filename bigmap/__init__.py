"""Maps of any area from Sentinel-2, super-resolved and segmented, on Dask."""

from bigmap.api import (
    estimate_areas,
    evaluate_map,
    evaluate_model,
    extract,
    load_recipe,
    open_cube,
    open_map,
    plan,
    predict,
    run,
    stage,
    train,
)
from bigmap.errors import BigmapError

__all__ = [
    "BigmapError",
    "estimate_areas",
    "evaluate_map",
    "evaluate_model",
    "extract",
    "load_recipe",
    "open_cube",
    "open_map",
    "plan",
    "predict",
    "run",
    "stage",
    "train",
]
