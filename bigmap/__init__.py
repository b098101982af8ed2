"""Maps of any area from Sentinel-2, super-resolved and segmented, on Dask."""

from bigmap.api import (
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
