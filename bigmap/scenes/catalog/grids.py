"""Where the files of an item lie: CRS, shape and transform of each, and bounds of all."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry.base import BaseGeometry

from bigmap.scenes.catalog.assets import Asset, Choice, pixel_size_of
from bigmap.scenes.catalog.malformed import UnusableItemError
from bigmap.scenes.catalog.projection import Bounds, is_metric, project_bounds

Transform = tuple[float, float, float, float, float, float]
_MOST_PX = 10**6
_SHORT_M, _SHORT_PART = 250.0, 0.02
"""How far a grid may end before its item's geometry: what is rounded is, and at high latitudes
the ends of edges that are straight in degrees lie up to 1.4 km beyond a tile of 110 km. Readers
look 500 m farther."""


def epsg_of(properties: Mapping[str, Any], choices: Iterable[Choice]) -> int:
    """Read the CRS from the item, or from its assets where only they have it."""
    codes = {_stated_epsg(choice.asset) or _stated_epsg(properties) for choice in choices}
    if len(codes) != 1 or (code := codes.pop()) is None:
        detail = "its assets have several CRSs" if codes else "neither it nor its assets have a CRS"
        raise UnusableItemError("unusable", detail)
    if not is_metric(code):
        raise UnusableItemError("unusable", f"EPSG:{code} is not a projected CRS in metres")
    return code


def _stated_epsg(part: Mapping[str, Any]) -> int | None:
    """Read ``proj:code``, ``proj:epsg``, ``proj:wkt2`` or ``proj:projjson``, in this order."""
    code = re.fullmatch(r"EPSG:(\d+)", str(part.get("proj:code") or ""), re.IGNORECASE)
    if code:
        return int(code[1])
    if part.get("proj:epsg"):
        return int(part["proj:epsg"])
    definition = part.get("proj:wkt2") or part.get("proj:projjson")
    if not definition:
        return None
    try:
        return CRS.from_user_input(definition).to_epsg()
    except CRSError:
        return None


def grid_of(choice: Choice, properties: Mapping[str, Any]) -> tuple[tuple[int, int], Transform]:
    """Return shape and transform of an asset, from whatever the projection extension gives.

    The asset's own fields count before the item's. Where it has only one of the two, the item's
    other one may be that of files of another pixel size: it follows from the item's extent.
    What is missing follows from ``proj:bbox`` with the shape or with the pixel size.
    """
    asset = choice.asset
    transform, shape, bbox = (
        asset.get(name) or properties.get(name)
        for name in ("proj:transform", "proj:shape", "proj:bbox")
    )
    if is_mixed(asset, properties):
        common = _shape_of(properties["proj:shape"]), _affine_of(properties["proj:transform"])
        bbox = bbox or bounds_of([common])
        transform, shape = asset.get("proj:transform"), asset.get("proj:shape")
    affine = _affine_of(transform) if transform else None
    if bbox and (affine is None or not shape):
        pixel_m = pixel_size_of(choice.key, choice.asset)
        affine, shape = _fill_grid(_flat_bbox(bbox), affine=affine, shape=shape, pixel_m=pixel_m)
    if affine is None or not shape:
        raise UnusableItemError(
            "unusable", f"asset {choice.key} has no proj:transform with proj:shape, nor proj:bbox"
        )
    return _shape_of(shape), affine


def is_mixed(asset: Asset, properties: Mapping[str, Any]) -> bool:
    """Tell whether an asset's shape or transform would be joined by that of another grid."""
    own, common = (
        [part.get(name) for name in ("proj:transform", "proj:shape")]
        for part in (asset, properties)
    )
    if bool(own[0]) == bool(own[1]) or not (common[0] and common[1]):
        return False
    return bool(own[0] != common[0] if own[0] else own[1] != common[1])


def _shape_of(shape: Sequence[float]) -> tuple[int, int]:
    height, width = int(shape[0]), int(shape[1])
    if not (0 < height <= _MOST_PX and 0 < width <= _MOST_PX):
        raise UnusableItemError("unusable", f"proj:shape {[height, width]} is not that of an image")
    return height, width


def _fill_grid(
    bounds: Bounds, *, affine: Transform | None, shape: Sequence[int] | None, pixel_m: float
) -> tuple[Transform | None, Sequence[int] | None]:
    left, bottom, right, top = bounds
    if affine is not None:
        height_m, width_m = -affine[4], affine[0]
    elif shape:
        height_m, width_m = (top - bottom) / int(shape[0]), (right - left) / int(shape[1])
    else:
        height_m = width_m = pixel_m
    if not (0 < height_m < math.inf and 0 < width_m < math.inf):
        return affine, shape
    return (
        affine or (width_m, 0.0, left, 0.0, -height_m, top),
        shape or (round((top - bottom) / height_m), round((right - left) / width_m)),
    )


def _flat_bbox(bbox: Sequence[float]) -> Bounds:
    """Leave out the heights of a bounding box with six elements."""
    half = len(bbox) // 2
    west, south, east, north = (float(bbox[at]) for at in (0, 1, half, half + 1))
    if not all(map(math.isfinite, (west, south, east, north))):
        raise UnusableItemError("unusable", f"proj:bbox {bbox} is not finite")
    return west, south, east, north


def _affine_of(transform: Sequence[float]) -> Transform:
    """Read six or nine elements: the projection extension allows the last row 0, 0, 1."""
    if len(transform) not in (6, 9) or (len(transform) == 9 and list(transform[6:]) != [0, 0, 1]):
        raise UnusableItemError("unusable", f"proj:transform {transform} is not affine")
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    if not all(map(math.isfinite, (a, b, c, d, e, f))) or b or d or a <= 0 or e >= 0:
        raise UnusableItemError("unusable", f"proj:transform {transform} is not north up")
    return a, b, c, d, e, f


def bounds_of(
    grids: Iterable[tuple[tuple[int, int], Transform]],
) -> Bounds:
    """Return left, bottom, right, top of all grids together."""
    corners = [
        (c, f + height * e, c + width * a, f)
        for (height, width), (a, _, c, _, e, f) in grids
    ]  # fmt: skip
    lefts, bottoms, rights, tops = zip(*corners, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def claimed_bounds(
    properties: Mapping[str, Any], footprint: BaseGeometry | None, epsg: int
) -> list[Bounds]:
    """Return where an item lies by its ``proj:bbox`` and its geometry, in metres of its CRS."""
    claims = [_flat_bbox(properties["proj:bbox"])] if properties.get("proj:bbox") else []
    return claims if footprint is None else [*claims, project_bounds(footprint, epsg)]


def widen(bounds: Bounds, claims: Iterable[Bounds]) -> Bounds:
    """Return bounds that hold those claims, too, which reach far beyond them.

    They tell where the files of an item are looked for: what is too large costs an opened file,
    what is too small cuts a scene.
    """
    side_m = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    tolerance_m = max(_SHORT_M, _SHORT_PART * side_m)
    far = [claim for claim in claims if shortfall_m(bounds, claim) > tolerance_m]
    lefts, bottoms, rights, tops = zip(bounds, *far, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def shortfall_m(bounds: Bounds, claim: Bounds) -> float:
    """Return how far bounds end before those of a claim, at the worst of their sides."""
    left, bottom, right, top = bounds
    return max(left - claim[0], bottom - claim[1], claim[2] - right, claim[3] - top)
