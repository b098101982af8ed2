"""The recipe's labels, checked, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from bigmap.config.sources import Access
from bigmap.config.training import RasterLabels, SimulatedLabels, VectorLabels
from bigmap.errors import SamplesError
from bigmap.learning.labels.polygons import open_polygons
from bigmap.learning.labels.raster_checks import open_rasters
from bigmap.learning.labels.reader import Bounds, LabelReader
from bigmap.learning.labels.simulated import SIMULATED_VALUES, SimulatedLabelReader


def open_labels(
    settings: VectorLabels | RasterLabels | SimulatedLabels,
    *,
    crs: str,
    class_values: Sequence[int],
    bounds: Bounds,
    seed: int = 0,
    least_classes: int = 1,
    access: Access = Access(),
) -> LabelReader:
    """Check labels and make what reads them.

    Parameters
    ----------
    settings
        ``samples.labels`` of the recipe.
    crs
        Of the grid they are wanted on.
    class_values
        Of the legend; labels of other values are refused.
    bounds
        Left, bottom, right, top of the area in ``crs``.
    seed
        Of the simulated world.
    least_classes
        How many rasters must hold in the area; nothing can be learnt from one.
    access
        How rasters are fetched.

    Raises
    ------
    ReadError
        If a raster cannot be read after all retries.
    SamplesError
        If a file is unfit, has no CRS, no such attribute or class, or misses the area.
    """
    reader: LabelReader
    match settings:
        case VectorLabels():
            reader = open_polygons(settings, crs, bounds)
            values = [*settings.classes.values()]
            values += [] if settings.background is None else [settings.background]
        case RasterLabels():
            reader = open_rasters(
                settings, crs, bounds, class_values, least=least_classes, access=access
            )
            values = list((settings.classes or {}).values())
        case SimulatedLabels():
            reader = SimulatedLabelReader(settings.layer, seed, crs)
            values = list(SIMULATED_VALUES.get(settings.layer, ()))
        case _:
            assert_never(settings)
    unknown = sorted(set(values) - set(class_values))
    if unknown:
        raise SamplesError(
            f"samples.labels: gives the class value {unknown[0]}, but the model's legend has "
            f"{', '.join(map(str, class_values))}; set model.legend or the classes"
        )
    return reader
