"""One STAC item in, one slim row out, or the reason why it cannot be used."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.errors import ShapelyError
from shapely.geometry.base import BaseGeometry

from bigmap.catalog.assets import Asset, Choice, choose_assets, pixel_size_of, scaling_of
from bigmap.catalog.audit import Finding, Kind
from bigmap.catalog.hrefs import resolve_href
from bigmap.catalog.projection import Bounds, footprint_of, is_metric, solar_day_of
from bigmap.items import AssetRow, ItemRow
from bigmap.radiometry import (
    OFFSET_DN,
    Harmonise,
    OffsetEvidence,
    check_scaling,
    decide_dn_shift,
    parse_baseline,
)
from bigmap.redaction import clean_href

Item = Mapping[str, Any]
Transform = tuple[float, float, float, float, float, float]

FLAG_NAMES = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
DECIDED_SHIFT = "bigmap:dn_shift"
_BASELINE_NAMES = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")
_PROCESSED_NAMES = ("s2:generation_time", "processing:datetime")
_DATATAKE_NAMES = ("s2:datatake_id", "eopf:datatake_id")
_BASELINE_IN_NAME = re.compile(r"_N(\d{2})\.?(\d{2})(?:_|$)")
_TILE_IN_NAME = re.compile(r"_T?(\d{1,2})([C-X][A-Z]{2})(?:_|$)")


class UnusableItemError(Exception):
    """An item cannot be used; caught while parsing and turned into a finding."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row with what is needed to tell duplicates apart."""

    row: ItemRow
    footprint: BaseGeometry
    """In degrees, as the item says."""
    datatake: str | None
    """Identifier of the datatake without its baseline."""
    platform: str | None
    processed: tuple[str, str, str]
    """Times of processing, creation and update, as sortable text."""
    findings: tuple[Finding, ...] = field(default=())
    stripped: frozenset[str] = frozenset()
    """Assets whose hrefs held a secret, which is not kept."""


def parse_item(
    item: Item,
    *,
    location: str | None,
    bands: Iterable[str],
    mask_asset: str | None,
    harmonise: Harmonise,
    footprint: BaseGeometry | None,
) -> Candidate:
    """Turn a STAC item into a slim row.

    Parameters
    ----------
    item
        A STAC item of version 1.0 or 1.1.
    location
        File or URL that the item came from; None where only its self link tells.
    bands, mask_asset
        What the row must hold, as for :func:`bigmap.catalog.find_items`.
    harmonise
        The recipe's rule for contradictions about the offset.
    footprint
        :func:`stated_footprint_of` the item; where it is None, that of its files is used.

    Raises
    ------
    UnusableItemError
        If an asset, the projection, the grid or the radiometry is missing or unsupported, or
        if ``harmonise`` leaves the item out.
    """
    properties = item["properties"]
    bands = tuple(bands)
    choices = choose_assets(item.get("assets") or {}, bands=bands, mask_asset=mask_asset)
    _require_assets(choices, bands=bands, mask_asset=mask_asset)
    epsg = _epsg_of(properties, choices.values())
    grids = {name: _grid_of(choice, properties) for name, choice in choices.items()}
    bounds = _bounds_of(grids.values())
    time = time_of(item)
    dn_shift, findings = _decide_offset(
        item, {name: choices[name] for name in bands}, harmonise=harmonise
    )
    row = ItemRow(
        id=str(item["id"]),
        collection=str(item.get("collection") or ""),
        datetime=time,
        solar_day=solar_day_of(time, bounds, epsg),
        epsg=epsg,
        bounds=bounds,
        dn_shift=dn_shift,
        cloud_percent=cloud_percent_of(item),
        baseline=_baseline_of(item),
        mgrs_tile=_tile_of(item),
        assets={
            name: AssetRow(_href_of(choice.asset, item, location), *grids[name])
            for name, choice in choices.items()
        },
    )
    given = {name: str(choice.asset["href"]) for name, choice in choices.items()}
    datatake = _first(properties, _DATATAKE_NAMES)
    platform = properties.get("platform")
    return Candidate(
        row=row,
        footprint=footprint or footprint_of(bounds, epsg),
        datatake=_BASELINE_IN_NAME.sub("", str(datatake)) if datatake else None,
        platform=str(platform).lower() if platform else None,
        processed=(
            _sortable(_first(properties, _PROCESSED_NAMES)),
            _sortable(properties.get("created")),
            _sortable(properties.get("updated")),
        ),
        findings=findings,
        stripped=frozenset(name for name, href in given.items() if clean_href(href) != href),
    )


def time_of(item: Item) -> dt.datetime:
    """Return an item's time of acquisition, UTC; the start where it has only a range."""
    properties = item["properties"]
    time = _parse_time(properties.get("datetime") or properties.get("start_datetime"))
    if time is None:
        raise UnusableItemError("unusable", "its datetime is missing or not a time")
    return time


def cloud_percent_of(item: Item) -> float | None:
    """Return ``eo:cloud_cover``, or None where the item does not tell."""
    value = item["properties"].get("eo:cloud_cover")
    return None if value is None else float(value)


def stated_footprint_of(item: Item) -> BaseGeometry | None:
    """Return the item's geometry in degrees; None where it is missing or wraps the globe.

    A polygon wider than 180 degrees is one that crosses the antimeridian without being split
    there, and would meet every query.
    """
    if not item.get("geometry"):
        return None
    try:
        geometry = shapely.make_valid(shapely.geometry.shape(item["geometry"]))
    except (ShapelyError, ValueError, TypeError, KeyError, AttributeError):
        return None
    for part in shapely.get_parts(geometry):
        west, _, east, _ = part.bounds
        if not east - west <= 180:
            return None
    return None if geometry.is_empty else geometry


def _href_of(asset: Asset, item: Item, location: str | None) -> str:
    links = item.get("links") or ()
    self_href = next((link.get("href") for link in links if link.get("rel") == "self"), None)
    # Before too, since a password may hold what looks like the end of a URL.
    given, published = (clean_href(str(each or "")) for each in (asset["href"], self_href))
    return clean_href(resolve_href(given, location, self_href=published))


def _require_assets(
    choices: Mapping[str, Choice], *, bands: tuple[str, ...], mask_asset: str | None
) -> None:
    wanted = (*bands, mask_asset) if mask_asset is not None else bands
    missing = [name for name in wanted if name not in choices]
    if missing:
        raise UnusableItemError("missing-asset", f"has no {', '.join(missing)}")


def _epsg_of(properties: Mapping[str, Any], choices: Iterable[Choice]) -> int:
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


def _grid_of(choice: Choice, properties: Mapping[str, Any]) -> tuple[tuple[int, int], Transform]:
    """Return shape and transform of an asset, from whatever the projection extension gives.

    The asset's own fields count before the item's. What is missing follows from ``proj:bbox``
    with the shape or with the pixel size.
    """
    transform, shape, bbox = (
        choice.asset.get(name) or properties.get(name)
        for name in ("proj:transform", "proj:shape", "proj:bbox")
    )
    affine = _affine_of(transform) if transform else None
    if bbox and (affine is None or not shape):
        pixel_m = pixel_size_of(choice.key, choice.asset)
        affine, shape = _fill_grid(_flat_bbox(bbox), affine=affine, shape=shape, pixel_m=pixel_m)
    if affine is None or not shape:
        raise UnusableItemError(
            "unusable", f"asset {choice.key} has no proj:transform with proj:shape, nor proj:bbox"
        )
    return (int(shape[0]), int(shape[1])), affine


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
    return float(bbox[0]), float(bbox[1]), float(bbox[half]), float(bbox[half + 1])


def _affine_of(transform: Sequence[float]) -> Transform:
    """Read six or nine elements: the projection extension allows the last row 0, 0, 1."""
    if len(transform) not in (6, 9) or (len(transform) == 9 and list(transform[6:]) != [0, 0, 1]):
        raise UnusableItemError("unusable", f"proj:transform {transform} is not affine")
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    if b or d or a <= 0 or e >= 0:
        raise UnusableItemError("unusable", f"proj:transform {transform} is not north up")
    return a, b, c, d, e, f


def _bounds_of(
    grids: Iterable[tuple[tuple[int, int], Transform]],
) -> Bounds:
    corners = [
        (c, f + height * e, c + width * a, f)
        for (height, width), (a, _, c, _, e, f) in grids
    ]  # fmt: skip
    lefts, bottoms, rights, tops = zip(*corners, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def _decide_offset(
    item: Item, choices: Mapping[str, Choice], *, harmonise: Harmonise
) -> tuple[int, tuple[Finding, ...]]:
    properties = item["properties"]
    if properties.get(DECIDED_SHIFT) in (0, OFFSET_DN):
        return int(properties[DECIDED_SHIFT]), ()  # bigmap's own file: decided once before
    scalings = {name: scaling_of(choice.asset) for name, choice in choices.items()}
    for name, scaling in scalings.items():
        if wrong := check_scaling(*scaling):
            raise UnusableItemError("unusable", f"band {name} has {wrong}")
    offsets = sorted({offset for _, offset in scalings.values() if offset is not None})
    if len(offsets) > 1:
        raise UnusableItemError("unusable", f"its bands have the offsets {offsets}")
    decision = decide_dn_shift(
        OffsetEvidence(
            flag=_flag_of(properties, choices.values()),
            baseline=_baseline_of(item),
            offset=next(iter(offsets), None),
            processed=_parse_time(_first(properties, _PROCESSED_NAMES)) or time_of(item),
        ),
        harmonise,
    )
    if decision.dn_shift is None:
        raise UnusableItemError("contradiction", decision.reason)
    name = str(item["id"])
    if decision.contradiction:
        detail = f"{decision.reason}: dn_shift {decision.dn_shift} by harmonise: {harmonise}"
        return decision.dn_shift, (Finding("contradiction", name, detail),)
    if decision.reason.startswith("assumed"):
        detail = f"{decision.reason}: dn_shift {decision.dn_shift}"
        return decision.dn_shift, (Finding("assumed-offset", name, detail),)
    return decision.dn_shift, ()


def _flag_of(properties: Mapping[str, Any], choices: Iterable[Choice]) -> bool | None:
    """Return the flag as far as it concerns the chosen files.

    Earth Search removed the offset from the COGs that it wrote. Its JPEG 2000 twins are ESA's
    own files, which the flag does not describe.
    """
    flag = next((properties[name] for name in FLAG_NAMES if name in properties), None)
    if not isinstance(flag, bool):
        return None
    kinds = {choice.is_jp2 for choice in choices}
    if flag and len(kinds) > 1:
        raise UnusableItemError(
            "unusable", "some bands are COGs without the offset, others JPEG 2000 with it"
        )
    return None if kinds == {True} else flag


def _baseline_of(item: Item) -> str | None:
    """Return the processing baseline, from its property or from the product's name."""
    properties = item["properties"]
    stated = _first(properties, _BASELINE_NAMES)
    if stated is not None and (version := parse_baseline(str(stated))):
        return f"{version[0]:02}.{version[1]:02}"
    for name in (properties.get("s2:product_uri"), item["id"], _first(properties, _DATATAKE_NAMES)):
        stem = str(name or "").removesuffix(".SAFE")
        if found := _BASELINE_IN_NAME.search(stem):
            return f"{found[1]}.{found[2]}"
    return None


def _tile_of(item: Item) -> str | None:
    """Return the MGRS tile as five characters, for example ``01WCQ``."""
    properties = item["properties"]
    code = str(properties.get("grid:code") or "").removeprefix("MGRS-")
    code = code or str(properties.get("s2:mgrs_tile") or "")
    for prefix in ("mgrs", "sentinel"):
        parts = [properties.get(f"{prefix}:{n}") for n in ("utm_zone", "latitude_band")]
        square = properties.get(f"{prefix}:grid_square")
        if not code and square and None not in parts:
            code = f"{parts[0]}{parts[1]}{square}"
    if not code:
        found = _TILE_IN_NAME.search(str(item["id"]))
        code = "".join(found.groups()) if found else ""
    return code.upper().zfill(5) if re.fullmatch(r"\d{1,2}[A-Za-z]{3}", code) else None


def _first(properties: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((properties[name] for name in names if properties.get(name) is not None), None)


def _parse_time(text: object) -> dt.datetime | None:
    """Read an RFC 3339 time as UTC; a time without a zone counts as UTC."""
    if isinstance(text, dt.datetime):
        time = text
    elif not text:
        return None
    else:
        try:
            time = dt.datetime.fromisoformat(str(text))
        except ValueError:
            return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)


def _sortable(text: object) -> str:
    time = _parse_time(text)
    return time.isoformat(timespec="microseconds") if time else ""
