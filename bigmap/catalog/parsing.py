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
from shapely.geometry.base import BaseGeometry

from bigmap.catalog.assets import Asset, Choice, choose_assets, pixel_size_of, scaling_of
from bigmap.catalog.audit import Finding
from bigmap.catalog.geometries import read_geometry
from bigmap.catalog.hrefs import resolve_href
from bigmap.catalog.malformed import UnusableItemError
from bigmap.catalog.projection import (
    Bounds,
    footprint_of,
    is_metric,
    project_bounds,
    solar_day_of,
    turn_into_world,
)
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
_SENSING_IN_DATASTRIP = re.compile(r"_S(\d{8}T\d{6})")
_PART_IN_PRODUCT = re.compile(r"_MSIL(?:1C|2A)_\d{8}T\d{6}_.*_(\d{8}T\d{6})")
_PART_IN_ID = re.compile(r"^S2[A-Z]_\d{1,2}[C-X][A-Z]{2}_\d{8}_(\d+)_")
_LEVEL_IN_NAME = re.compile(r"(?:MSI|MSIL|\bL|_L|\bLevel[- ]?|_Level[- ]?)(1C|2A)", re.IGNORECASE)
_SENTINEL_2 = re.compile(r"sentinel[-_ ]?2|\bs2[a-z]?\b|\bs?2?msi\b", re.IGNORECASE)
_OTHER_MISSION = re.compile(
    r"landsat|\bl[coet]0\d_|hls[-_.\d]*l30|sentinel[-_ ]?[13]", re.IGNORECASE
)
_HLS = re.compile(r"^hls", re.IGNORECASE)
_MOST_PX = 10**6
_SHORT_M, _SHORT_PART = 250.0, 0.02
"""How far a grid may end before its item's geometry: what is rounded is, and at high latitudes
the ends of edges that are straight in degrees lie up to 1.4 km beyond a tile of 110 km. Readers
look 500 m farther."""
_TILE_IN_NAME = re.compile(r"_T?(\d{1,2})([C-X][A-Z]{2})(?:_|$)")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row with what is needed to tell duplicates apart."""

    row: ItemRow
    footprint: BaseGeometry
    """In degrees, as the item says."""
    datatake: str | None
    """Identifier of the datatake without its baseline."""
    platform: str | None
    datastrip: str | None
    """Start of sensing of its datastrip, which stays the same when it is processed again."""
    part: str | None
    """What tells products of one datatake, tile and baseline apart: a time or a number."""
    level: str | None
    """``1C`` or ``2A``."""
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
    _require_sentinel_2(item)
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
    own_footprint = footprint_of(bounds, epsg)
    widened = _widen(bounds, _claimed_bounds(properties, footprint, epsg))
    if mixed := [name for name, choice in choices.items() if _is_mixed(choice.asset, properties)]:
        detail = f"proj:shape and proj:transform of {', '.join(mixed)} are of different grids"
        findings += (Finding("bounds", str(item["id"]), detail),)
    if widened != bounds:
        detail = (
            f"its grid ends {_shortfall_m(bounds, widened):,.0f} m before its geometry or proj:bbox"
        )
        findings += (Finding("bounds", str(item["id"]), detail),)
    row = ItemRow(
        id=str(item["id"]),
        collection=collection_of(item),
        datetime=time,
        solar_day=solar_day_of(time, bounds, epsg),
        epsg=epsg,
        bounds=widened,
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
        footprint=footprint or own_footprint,
        datatake=_BASELINE_IN_NAME.sub("", str(datatake)) if datatake else None,
        platform=str(platform).lower() if platform else None,
        datastrip=_find(_SENSING_IN_DATASTRIP, properties.get("s2:datastrip_id")),
        part=(
            _find(_PART_IN_PRODUCT, properties.get("s2:product_uri"))
            or _find(_PART_IN_PRODUCT, item["id"])
            or _find(_PART_IN_ID, item["id"])
        ),
        level=_level_of(item),
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


def id_of(item: Item) -> str:
    """Return an item's id, which goes to terminals and files."""
    name = item.get("id")
    if not isinstance(name, str | int) or not str(name).isprintable():
        raise UnusableItemError("unusable", "its id is not a text that can be printed")
    return str(name)


def collection_of(item: Item) -> str:
    """Return the id of an item's collection; empty where it has none."""
    name = item.get("collection") or ""
    if not isinstance(name, str) or not name.isprintable():
        raise UnusableItemError("unusable", "its collection is not a text that can be printed")
    return name


def cloud_percent_of(item: Item) -> float | None:
    """Return ``eo:cloud_cover``, or None where the item does not tell or says NaN."""
    value = item["properties"].get("eo:cloud_cover")
    if value is None or math.isnan(float(value)):
        return None
    return float(value)


def stated_footprint_of(item: Item) -> BaseGeometry | None:
    """Return the item's geometry in degrees; None where it is missing or wraps the globe.

    A polygon wider than 180 degrees is one that crosses the antimeridian without being split
    there, and would meet every query. One that runs on beyond 180 degrees is split.

    Raises
    ------
    ValueError, shapely.errors.ShapelyError
        If it is no geometry, see :func:`bigmap.catalog.geometries.read_geometry`.
    """
    if not item.get("geometry"):
        return None
    geometry = shapely.make_valid(read_geometry(item["geometry"]))
    for part in shapely.get_parts(geometry):
        west, _, east, _ = part.bounds
        if not east - west <= 180:
            return None
    west, south, east, north = geometry.bounds
    if west < -180 or east > 180 or south < -90 or north > 90:
        geometry = turn_into_world(geometry)
    return None if geometry.is_empty else geometry


def _require_sentinel_2(item: Item) -> None:
    """Refuse other sensors, whose bands have other numbers, other wavelengths and other units."""
    properties = item["properties"]
    names = ("platform", "constellation", "instruments")
    stated = {name: str(properties[name]) for name in names if properties.get(name)}
    for name, text in {**stated, "collection": collection_of(item), "id": str(item["id"])}.items():
        if _OTHER_MISSION.search(text):
            raise UnusableItemError("mission", f"its {name} is {text}")
    if stated and not any(_SENTINEL_2.search(text) for text in stated.values()):
        words = ", ".join(f"{name} {text}" for name, text in stated.items())
        raise UnusableItemError("mission", f"is of {words}")


def _level_of(item: Item) -> str | None:
    """Return the processing level, ``1C`` or ``2A``, of what tells it first."""
    properties = item["properties"]
    for text in (
        properties.get("processing:level"),
        properties.get("s2:product_type"),
        properties.get("s2:product_uri"),
        item["id"],
        item.get("collection"),
    ):
        if level := _find(_LEVEL_IN_NAME, text):
            return level.upper()
    return None


def _find(pattern: re.Pattern[str], text: object) -> str | None:
    found = pattern.search(str(text or ""))
    return found[1] if found else None


def _href_of(asset: Asset, item: Item, location: str | None) -> str:
    links = [link for link in item.get("links") or () if isinstance(link, Mapping)]
    self_href = next((link.get("href") for link in links if link.get("rel") == "self"), None)
    # Before too, since a password may hold what looks like the end of a URL.
    given, published = (clean_href(str(each or "")) for each in (asset["href"], self_href))
    href = clean_href(resolve_href(given, location, self_href=published))
    href.encode()  # lone surrogates of JSON cannot be written
    return href


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

    The asset's own fields count before the item's. Where it has only one of the two, the item's
    other one may be that of files of another pixel size: it follows from the item's extent.
    What is missing follows from ``proj:bbox`` with the shape or with the pixel size.
    """
    asset = choice.asset
    transform, shape, bbox = (
        asset.get(name) or properties.get(name)
        for name in ("proj:transform", "proj:shape", "proj:bbox")
    )
    if _is_mixed(asset, properties):
        common = _shape_of(properties["proj:shape"]), _affine_of(properties["proj:transform"])
        bbox = bbox or _bounds_of([common])
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


def _is_mixed(asset: Asset, properties: Mapping[str, Any]) -> bool:
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


def _bounds_of(
    grids: Iterable[tuple[tuple[int, int], Transform]],
) -> Bounds:
    corners = [
        (c, f + height * e, c + width * a, f)
        for (height, width), (a, _, c, _, e, f) in grids
    ]  # fmt: skip
    lefts, bottoms, rights, tops = zip(*corners, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def _claimed_bounds(
    properties: Mapping[str, Any], footprint: BaseGeometry | None, epsg: int
) -> list[Bounds]:
    """Return where an item lies by its ``proj:bbox`` and its geometry, in metres of its CRS."""
    claims = [_flat_bbox(properties["proj:bbox"])] if properties.get("proj:bbox") else []
    return claims if footprint is None else [*claims, project_bounds(footprint, epsg)]


def _widen(bounds: Bounds, claims: Iterable[Bounds]) -> Bounds:
    """Return bounds that hold those claims, too, which reach far beyond them.

    They tell where the files of an item are looked for: what is too large costs an opened file,
    what is too small cuts a scene.
    """
    side_m = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    tolerance_m = max(_SHORT_M, _SHORT_PART * side_m)
    far = [claim for claim in claims if _shortfall_m(bounds, claim) > tolerance_m]
    lefts, bottoms, rights, tops = zip(bounds, *far, strict=True)
    return min(lefts), min(bottoms), max(rights), max(tops)


def _shortfall_m(bounds: Bounds, claim: Bounds) -> float:
    """Return how far bounds end before those of a claim, at the worst of their sides."""
    left, bottom, right, top = bounds
    return max(left - claim[0], bottom - claim[1], claim[2] - right, claim[3] - top)


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
    # Harmonised Landsat Sentinel-2 (HLS) numbers its own versions, and has no offset in any.
    is_hls = bool(_HLS.search(collection_of(item)) or _HLS.search(str(item["id"])))
    decision = decide_dn_shift(
        OffsetEvidence(
            flag=_flag_of(properties, choices.values()),
            baseline=None if is_hls else _baseline_of(item),
            offset=next(iter(offsets), 0.0 if is_hls else None),
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
