"""From a source of items to the catalogue of a map."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import shapely
from shapely.geometry.base import BaseGeometry

from bigmap.config.sources import Access, FilesSource, StacApiSource, StaticCatalogSource
from bigmap.errors import CatalogError
from bigmap.redaction import redact
from bigmap.scenes.catalog.audit import Audit, Catalogue, Finding, order_of
from bigmap.scenes.catalog.fields import (
    Item,
    cloud_percent_of,
    collection_of,
    id_of,
    stated_footprint_of,
    time_of,
)
from bigmap.scenes.catalog.hrefs import is_url
from bigmap.scenes.catalog.malformed import MALFORMED, UnusableItemError
from bigmap.scenes.catalog.parsing import ParsedItem, parse_item
from bigmap.scenes.catalog.saved import choose_saved
from bigmap.scenes.catalog.sources import RawItem, read_item_file, walk_catalog
from bigmap.scenes.catalog.stac_api import search_api
from bigmap.scenes.catalog.storage import is_saved_catalogue, load_items
from bigmap.scenes.items import ItemRow, ItemTable
from bigmap.scenes.radiometry import parse_baseline

Source = StacApiSource | FilesSource | StaticCatalogSource

SAME_ACQUISITION = dt.timedelta(minutes=5)
"""One satellite sees a tile again after an orbit of 100 minutes at the earliest."""
DUPLICATE_OVERLAP = 0.5
"""Share of the smaller footprint; two parts of a tile that was cut in two overlap less."""

_READABLE_SCHEMES = frozenset(("http", "https", "s3", "gs", "az"))
_REQUESTER_PAYS = frozenset(("sentinel-s2-l1c", "sentinel-s2-l2a"))
_CDSE_BUCKET = "eodata"
_BLOB_HOST = ".blob.core.windows.net"
_SHOWN_ITEMS = 3


@dataclass
class _Selection:
    """What a search wants, and what it has gathered so far."""

    source: Source
    bands: tuple[str, ...]
    mask_asset: str | None
    area: BaseGeometry
    found: int = 0
    """Items that the source gave, whatever they are."""
    parsed_items: list[ParsedItem] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)
    collections: Counter[str] = field(default_factory=Counter)

    def add(self, item: object, location: str | None) -> None:
        """Check one item and keep it slim, or note why it is left out."""
        self.found += 1
        name = f"item {self.found}"
        try:
            if not isinstance(item, Mapping) or item.get("type") != "Feature" or "id" not in item:
                raise UnusableItemError("unusable", "is not a STAC item")
            name = str(item["id"])
            if not isinstance(item.get("properties"), Mapping):
                raise UnusableItemError("unusable", "has no properties")
            self._add(item, location)
        except UnusableItemError as error:
            self.findings.append(Finding(error.kind, name, redact(error.detail)))
        except MALFORMED as error:
            detail = redact(f"malformed ({type(error).__name__}: {error})")
            self.findings.append(Finding("unusable", name, detail))

    def _add(self, item: Item, location: str | None) -> None:
        """Check an item against the recipe, whatever its source has checked before."""
        name, collection = id_of(item), collection_of(item)
        footprint = stated_footprint_of(item)
        if reason := self._place_elsewhere(item, footprint):
            self.elsewhere[reason] += 1
            return
        cloud = cloud_percent_of(item)
        if cloud is not None and cloud > self.source.max_cloud_percent:
            self.findings.append(Finding("too-cloudy", name, f"{cloud:.1f} %"))
            return
        parsed = parse_item(
            item,
            location=location,
            bands=self.bands,
            mask_asset=self.mask_asset,
            harmonise=self.source.harmonise,
            footprint=footprint,
        )
        if footprint is None and not self.area.intersects(parsed.footprint):
            self.elsewhere["the area"] += 1
            return
        _check_texts(parsed.row)
        if cloud is None and self.source.max_cloud_percent < 100:
            self.findings.append(Finding("unknown-cloud", name, "no eo:cloud_cover"))
        self.collections[collection] += 1
        self.parsed_items.append(parsed)

    def _place_elsewhere(self, item: Item, footprint: BaseGeometry | None) -> str | None:
        wanted = self.source.collection
        if wanted is not None and item.get("collection") != wanted:
            return f"the collection {wanted}"
        if not self.source.start <= time_of(item).date() <= self.source.end:
            return "the dates"
        if footprint is not None and not self.area.intersects(footprint):
            return "the area"
        return None


def find_items(
    source: Source,
    *,
    bands: Iterable[str],
    mask_asset: str | None,
    geometry_lonlat: BaseGeometry,
    items: Iterable[RawItem] | None = None,
) -> Catalogue:
    """Find the items of a map, decide their offsets and leave out duplicates.

    Parameters
    ----------
    source
        A STAC API, files or a static catalogue, of the recipe.
    bands
        What the model reads, of :data:`bigmap.scenes.items.BANDS`.
    mask_asset
        Asset of the mask as the recipe names it, found in any case; None for no mask.
    geometry_lonlat
        Area in degrees, EPSG:4326, longitude first; split at the antimeridian if it crosses it.
    items
        What the source gives, where that is known; by default it is read.

    Returns
    -------
    Catalogue
        Rows in a total order, so that one answer gives one order, and the audit.

    Raises
    ------
    CatalogError
        If the source cannot be read, nothing is left, several collections are mixed, or
        ``harmonise: refuse`` meets an item that contradicts itself.
    """
    shapely.prepare(geometry_lonlat)
    if items is None and isinstance(source, FilesSource) and len(source.files) == 1:
        (path,) = source.files
        if is_saved_catalogue(path):
            return _find_saved(source, tuple(bands), mask_asset, geometry_lonlat)
    selection = _Selection(source, tuple(bands), mask_asset, geometry_lonlat)
    for item, location in _read(source, geometry_lonlat) if items is None else items:
        selection.add(item, location)
    _check_collections(selection)
    _check_contradictions(selection)
    kept, duplicates = drop_duplicates(selection.parsed_items)
    rows = sorted((parsed.row for parsed in kept), key=order_of)
    findings = [*selection.findings, *duplicates]
    findings += [finding for parsed in kept for finding in parsed.findings]
    findings += _access_findings(_count_places(kept), source.access)
    findings += _stripped_findings(kept)
    audit = Audit(
        found=selection.found,
        kept=len(rows),
        elsewhere=tuple(sorted(selection.elsewhere.items())),
        baselines=tuple(sorted(Counter(row.baseline or "unknown" for row in rows).items())),
        empty_months=_empty_months(source, {row.datetime.date() for row in rows}),
        findings=tuple(sorted(findings, key=lambda f: (f.kind, f.item, f.detail))),
    )
    if not rows:
        raise CatalogError(_describe_empty(source, audit, geometry_lonlat))
    return Catalogue(ItemTable.of(rows), audit)


def _find_saved(
    source: FilesSource, bands: tuple[str, ...], mask_asset: str | None, geometry: BaseGeometry
) -> Catalogue:
    """Choose from the one file of a source, which holds a catalogue that bigmap has saved."""
    (path,) = source.files
    saved = load_items(path)
    try:
        catalogue = choose_saved(
            saved, source, bands=bands, mask_asset=mask_asset, geometry_lonlat=geometry
        )
    except MALFORMED as error:
        raise CatalogError(
            f"{path} was changed ({error}); save it again from its source"
        ) from error
    if not catalogue.rows:
        raise CatalogError(_describe_empty(source, catalogue.audit, geometry))
    places = catalogue.rows.count_hosts()
    findings = (*catalogue.audit.findings, *_access_findings(places, source.access))
    return replace(catalogue, audit=replace(catalogue.audit, findings=findings))


def _read(source: Source, geometry: BaseGeometry) -> Iterator[RawItem]:
    if isinstance(source, StacApiSource):
        for item in search_api(source, geometry):
            yield item, None
        return
    read = walk_catalog if isinstance(source, StaticCatalogSource) else read_item_file
    for path in source.files:
        yield from read(path)


def _check_texts(row: ItemRow) -> None:
    """Leave out an item whose files cannot be read, or that cannot be written anywhere."""
    for asset in row.assets.values():
        scheme = urlsplit(asset.href).scheme if is_url(asset.href) else "https"
        if scheme not in _READABLE_SCHEMES or asset.href.startswith("/vsicurl"):
            raise UnusableItemError("unusable", f"{asset.href} has a scheme that cannot be read")
    texts = (row.id, row.collection, *(asset.href for asset in row.assets.values()))
    if not "".join(texts).isascii():
        "".join(texts).encode()  # half a character, as JSON can hold it, is malformed


def drop_duplicates(
    parsed_items: Iterable[ParsedItem],
) -> tuple[list[ParsedItem], list[Finding]]:
    """Keep the newest processing of each acquisition of a tile.

    Two items are duplicates if they show the same MGRS tile (or, without tiles, the same
    bounds) from the same datatake, or within five minutes from the same platform, and their
    footprints overlap by half. ESA cuts some tiles in two between datastrips; both parts stay,
    also where the footprints of both are the whole tile: their datastrips begin at other times,
    or, where nothing tells of datastrips, their products of one baseline have other names.
    The newest processing baseline wins, then the newest time of processing, creation and
    update, then the last id.

    Returns
    -------
    kept, duplicates
        In the order of their processing, newest first, and one finding for each that was left
        out.
    """
    groups: dict[tuple[object, ...], list[ParsedItem]] = defaultdict(list)
    for parsed in sorted(parsed_items, key=_newness, reverse=True):
        row = parsed.row
        place = row.mgrs_tile or (row.epsg, row.bounds)
        groups[place, row.solar_day].append(parsed)
    kept: list[ParsedItem] = []
    duplicates: list[Finding] = []
    for group in groups.values():
        winners: list[ParsedItem] = []
        for parsed in group:
            winner = next((w for w in winners if _are_duplicates(w, parsed)), None)
            if winner is None:
                winners.append(parsed)
            else:
                detail = f"{winner.row.id} (baseline {winner.row.baseline}) wins"
                duplicates.append(Finding("duplicate", parsed.row.id, detail))
        kept += winners
    return kept, duplicates


def _newness(parsed: ParsedItem) -> tuple[object, ...]:
    baseline = parse_baseline(parsed.row.baseline) or (-1, -1)
    return baseline, parsed.processed, parsed.row.id, parsed.row.collection


def _are_duplicates(a: ParsedItem, b: ParsedItem) -> bool:
    if a.datatake and b.datatake:
        if a.datatake != b.datatake:
            return False
    elif abs(a.row.datetime - b.row.datetime) > SAME_ACQUISITION or (
        a.platform and b.platform and a.platform != b.platform
    ):
        return False
    if a.datastrip and b.datastrip:
        if a.datastrip != b.datastrip:
            return False
    elif a.row.baseline == b.row.baseline and a.part and b.part and a.part != b.part:
        return False
    if not _bounds_meet(a.row, b.row):
        return False
    smaller = min(a.footprint.area, b.footprint.area)
    return bool(a.footprint.intersection(b.footprint).area >= DUPLICATE_OVERLAP * smaller)


def _bounds_meet(a: ItemRow, b: ItemRow) -> bool:
    """Spare most pairs of small scenes of one tile the intersection of their footprints."""
    if a.epsg != b.epsg:
        return True
    return max(a.bounds[0], b.bounds[0]) < min(a.bounds[2], b.bounds[2]) and max(
        a.bounds[1], b.bounds[1]
    ) < min(a.bounds[3], b.bounds[3])


def _check_collections(selection: _Selection) -> None:
    """Refuse to mix collections or levels: one acquisition may be in several."""
    if len(selection.collections) > 1:
        names = ", ".join(sorted(name or "none" for name in selection.collections))
        raise CatalogError(
            f"the items belong to several collections ({names}); set source.collection to one"
        )
    levels = Counter(parsed.level for parsed in selection.parsed_items if parsed.level)
    if len(levels) > 1:
        counts = ", ".join(f"{count} of L{level}" for level, count in sorted(levels.items()))
        raise CatalogError(
            f"the items are of several processing levels ({counts}), whose reflectances differ; "
            "set source.collection, or give files of one level only"
        )


def _check_contradictions(selection: _Selection) -> None:
    if selection.source.harmonise != "refuse":
        return
    found = [finding for finding in selection.findings if finding.kind == "contradiction"]
    if found:
        shown = "; ".join(f"{f.item}: {f.detail}" for f in found[:_SHOWN_ITEMS])
        raise CatalogError(
            f"{len(found)} items contradict themselves about the offset of baseline 04.00 "
            f"({shown}); set source.harmonise to flag, baseline or drop"
        )


def _count_places(kept: Iterable[ParsedItem]) -> Counter[str]:
    """Count the items that have files at each host or bucket."""
    places: Counter[str] = Counter()
    for parsed in kept:
        places.update({_place_of(asset.href) for asset in parsed.row.assets.values()})
    return places


def _place_of(href: str) -> str:
    return "{0.scheme}://{0.netloc}".format(urlsplit(href))


def _access_findings(places: Counter[str], access: Access) -> list[Finding]:
    """Name the places that cannot be read without settings, each once."""
    return [
        Finding("access", place, f"{wish} ({count} items)")
        for place, count in sorted(places.items())
        if (wish := _wish_of(place, access))
    ]


def _stripped_findings(kept: Iterable[ParsedItem]) -> list[Finding]:
    """Name the hosts whose hrefs held secrets, but for those that :func:`_wish_of` knows."""
    places: Counter[str] = Counter()
    for parsed in kept:
        assets = parsed.row.assets
        places.update({_place_of(assets[name].href) for name in parsed.stripped})
    return [
        Finding(
            "access",
            place,
            "has hrefs with a signature or a password, which is not kept: where it is needed, give "
            f"access by source.access or the environment ({count} items)",
        )
        for place, count in sorted(places.items())
        if place != _place_of("") and not place.endswith(_BLOB_HOST)
    ]


def _wish_of(place: str, access: Access) -> str | None:
    """Tell what a bucket or a host wants that the recipe does not give."""
    if place.endswith(_BLOB_HOST) and access.sign == "none":
        return "wants signed hrefs: set source.access.sign to planetary-computer"
    if not place.startswith("s3://"):
        return None
    bucket = urlsplit(place).netloc
    if bucket in _REQUESTER_PAYS and not access.requester_pays:
        return "is paid by the reader: set source.access.requester_pays, and credentials"
    if bucket == _CDSE_BUCKET and access.s3_endpoint is None:
        return "lies at Copernicus Data Space: set source.access.s3_endpoint, and credentials"
    return "is read by source.access: its items may not say how"


def _empty_months(source: Source, days: Iterable[dt.date]) -> tuple[str, ...]:
    first, last = (day.year * 12 + day.month - 1 for day in (source.start, source.end))
    seen = {day.year * 12 + day.month - 1 for day in days}
    return tuple(
        f"{month // 12}-{month % 12 + 1:02}"
        for month in range(first, last + 1)
        if month not in seen
    )


def _describe_empty(source: Source, audit: Audit, geometry: BaseGeometry) -> str:
    collection = source.collection or "any collection"
    place = source.url if isinstance(source, StacApiSource) else ", ".join(source.files)
    bounds = ", ".join(
        f"{math.floor(value * 100) / 100:g}" for value in shapely.total_bounds(geometry)
    )
    asked = (
        f"no item of {collection} from {source.start} to {source.end} in the area "
        f"[{bounds}] with at most {source.max_cloud_percent:g} % cloud in {place}"
    )
    if not audit.found:
        return f"{asked}; check source.collection, source.start, source.end and area"
    reasons = [f"{count} outside {reason}" for reason, count in audit.elsewhere]
    kinds = Counter(finding.kind for finding in audit.findings)
    examples = {finding.kind: finding for finding in reversed(audit.findings)}
    reasons += [
        f"{count} {kind} ({examples[kind].item}: {examples[kind].detail})"
        for kind, count in sorted(kinds.items())
    ]
    return f"{asked} can be used: of {audit.found} found, {', '.join(reasons)}; change the recipe"
