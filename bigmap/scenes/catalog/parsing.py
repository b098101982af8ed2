"""One STAC item in, one slim row out, or the reason why it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from shapely.geometry.base import BaseGeometry

from bigmap.redaction import clean_href
from bigmap.scenes.catalog.assets import Asset, Choice, choose_assets
from bigmap.scenes.catalog.audit import Finding
from bigmap.scenes.catalog.fields import (
    Item,
    cloud_percent_of,
    collection_of,
    find_in,
    first_of,
    sortable_time,
    time_of,
)
from bigmap.scenes.catalog.grids import (
    bounds_of,
    claimed_bounds,
    epsg_of,
    grid_of,
    is_mixed,
    shortfall_m,
    widen,
)
from bigmap.scenes.catalog.hrefs import resolve_href
from bigmap.scenes.catalog.malformed import UnusableItemError
from bigmap.scenes.catalog.products import (
    BASELINE_IN_NAME,
    DATATAKE_NAMES,
    PROCESSED_NAMES,
    baseline_of,
    decide_offset,
    level_of,
    require_sentinel_2,
    tile_of,
)
from bigmap.scenes.catalog.projection import Bounds, footprint_of, solar_day_of
from bigmap.scenes.items import AssetRow, ItemRow
from bigmap.scenes.radiometry import Harmonise

_SENSING_IN_DATASTRIP = re.compile(r"_S(\d{8}T\d{6})")
_PART_IN_PRODUCT = re.compile(r"_MSIL(?:1C|2A)_\d{8}T\d{6}_.*_(\d{8}T\d{6})")
_PART_IN_ID = re.compile(r"^S2[A-Z]_\d{1,2}[C-X][A-Z]{2}_\d{8}_(\d+)_")


@dataclass(frozen=True, slots=True)
class ParsedItem:
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


class _Identity(TypedDict):
    """Part of a :class:`ParsedItem`."""

    datatake: str | None
    platform: str | None
    datastrip: str | None
    part: str | None
    level: str | None
    processed: tuple[str, str, str]


def parse_item(
    item: Item,
    *,
    location: str | None,
    bands: Iterable[str],
    mask_asset: str | None,
    harmonise: Harmonise,
    footprint: BaseGeometry | None,
) -> ParsedItem:
    """Turn a STAC item into a slim row.

    Parameters
    ----------
    item
        A STAC item of version 1.0 or 1.1.
    location
        File or URL that the item came from; None where only its self link tells.
    bands, mask_asset
        What the row must hold, as for :func:`bigmap.scenes.catalog.find_items`.
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
    require_sentinel_2(item)
    bands = tuple(bands)
    choices = choose_assets(item.get("assets") or {}, bands=bands, mask_asset=mask_asset)
    _require_assets(choices, bands=bands, mask_asset=mask_asset)
    epsg = epsg_of(properties, choices.values())
    grids = {name: grid_of(choice, properties) for name, choice in choices.items()}
    bounds = bounds_of(grids.values())
    widened = widen(bounds, claimed_bounds(properties, footprint, epsg))
    time = time_of(item)
    dn_shift, findings = decide_offset(
        item, {name: choices[name] for name in bands}, harmonise=harmonise
    )
    row = ItemRow(
        id=str(item["id"]),
        collection=collection_of(item),
        datetime=time,
        solar_day=solar_day_of(time, bounds, epsg),
        epsg=epsg,
        bounds=widened,
        dn_shift=dn_shift,
        cloud_percent=cloud_percent_of(item),
        baseline=baseline_of(item),
        mgrs_tile=tile_of(item),
        assets={
            name: AssetRow(_href_of(choice.asset, item, location), *grids[name])
            for name, choice in choices.items()
        },
    )
    given = {name: str(choice.asset["href"]) for name, choice in choices.items()}
    return ParsedItem(
        row=row,
        footprint=footprint or footprint_of(bounds, epsg),
        **_identify(item),
        findings=(*findings, *_find_bounds(item, choices, bounds, widened)),
        stripped=frozenset(name for name, href in given.items() if clean_href(href) != href),
    )


def _find_bounds(
    item: Item, choices: Mapping[str, Choice], bounds: Bounds, widened: Bounds
) -> Iterator[Finding]:
    """Yield what does not fit in what an item says of its place."""
    name = str(item["id"])
    mixed = [band for band, each in choices.items() if is_mixed(each.asset, item["properties"])]
    if mixed:
        detail = f"proj:shape and proj:transform of {', '.join(mixed)} are of different grids"
        yield Finding("bounds", name, detail)
    if widened != bounds:
        detail = (
            f"its grid ends {shortfall_m(bounds, widened):,.0f} m before its geometry or proj:bbox"
        )
        yield Finding("bounds", name, detail)


def _identify(item: Item) -> _Identity:
    """Return what tells an item's duplicates from others."""
    properties = item["properties"]
    datatake = first_of(properties, DATATAKE_NAMES)
    platform = properties.get("platform")
    return {
        "datatake": BASELINE_IN_NAME.sub("", str(datatake)) if datatake else None,
        "platform": str(platform).lower() if platform else None,
        "datastrip": find_in(_SENSING_IN_DATASTRIP, properties.get("s2:datastrip_id")),
        "part": (
            find_in(_PART_IN_PRODUCT, properties.get("s2:product_uri"))
            or find_in(_PART_IN_PRODUCT, item["id"])
            or find_in(_PART_IN_ID, item["id"])
        ),
        "level": level_of(item),
        "processed": (
            sortable_time(first_of(properties, PROCESSED_NAMES)),
            sortable_time(properties.get("created")),
            sortable_time(properties.get("updated")),
        ),
    }


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
