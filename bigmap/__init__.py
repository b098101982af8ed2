"""Maps of any area from Sentinel-2, super-resolved and segmented, on Dask."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bigmap.errors import BigmapError

if TYPE_CHECKING:
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
        prepare_source,
        run,
        stage,
        train,
    )

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
    "prepare_source",
    "run",
    "stage",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is behind the public names when one is first asked for: it takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("bigmap.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
