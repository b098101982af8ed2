"""Which Sentinel-2 product an item is of: mission, level, baseline, tile and offset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bigmap.scenes.catalog.assets import Choice, scaling_of
from bigmap.scenes.catalog.audit import Finding
from bigmap.scenes.catalog.fields import Item, collection_of, find_in, first_of, parse_time, time_of
from bigmap.scenes.catalog.malformed import UnusableItemError
from bigmap.scenes.radiometry import (
    OFFSET_DN,
    Harmonise,
    OffsetEvidence,
    check_scaling,
    decide_dn_shift,
    parse_baseline,
)

FLAG_NAMES = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
DECIDED_SHIFT = "bigmap:dn_shift"
_BASELINE_NAMES = ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline")
PROCESSED_NAMES = ("s2:generation_time", "processing:datetime")
DATATAKE_NAMES = ("s2:datatake_id", "eopf:datatake_id")
BASELINE_IN_NAME = re.compile(r"_N(\d{2})\.?(\d{2})(?:_|$)")
_LEVEL_IN_NAME = re.compile(r"(?:MSI|MSIL|\bL|_L|\bLevel[- ]?|_Level[- ]?)(1C|2A)", re.IGNORECASE)
_SENTINEL_2 = re.compile(r"sentinel[-_ ]?2|\bs2[a-z]?\b|\bs?2?msi\b", re.IGNORECASE)
_OTHER_MISSION = re.compile(
    r"landsat|\bl[coet]0\d_|hls[-_.\d]*l30|sentinel[-_ ]?[13]", re.IGNORECASE
)
_HLS = re.compile(r"^hls", re.IGNORECASE)
_TILE_IN_NAME = re.compile(r"_T?(\d{1,2})([C-X][A-Z]{2})(?:_|$)")


def require_sentinel_2(item: Item) -> None:
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


def level_of(item: Item) -> str | None:
    """Return the processing level, ``1C`` or ``2A``, of what tells it first."""
    properties = item["properties"]
    for text in (
        properties.get("processing:level"),
        properties.get("s2:product_type"),
        properties.get("s2:product_uri"),
        item["id"],
        item.get("collection"),
    ):
        if level := find_in(_LEVEL_IN_NAME, text):
            return level.upper()
    return None


def decide_offset(
    item: Item, choices: Mapping[str, Choice], *, harmonise: Harmonise
) -> tuple[int, tuple[Finding, ...]]:
    """Return what is added to the DN of an item's bands, and what contradicts itself."""
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
            baseline=None if is_hls else baseline_of(item),
            offset=next(iter(offsets), 0.0 if is_hls else None),
            processed=parse_time(first_of(properties, PROCESSED_NAMES)) or time_of(item),
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


def baseline_of(item: Item) -> str | None:
    """Return the processing baseline, from its property or from the product's name."""
    properties = item["properties"]
    stated = first_of(properties, _BASELINE_NAMES)
    if stated is not None and (version := parse_baseline(str(stated))):
        return f"{version[0]:02}.{version[1]:02}"
    for name in (
        properties.get("s2:product_uri"),
        item["id"],
        first_of(properties, DATATAKE_NAMES),
    ):
        stem = str(name or "").removesuffix(".SAFE")
        if found := BASELINE_IN_NAME.search(stem):
            return f"{found[1]}.{found[2]}"
    return None


def tile_of(item: Item) -> str | None:
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
