"""A catalogue that bigmap has saved, as the source of another run: a million items in seconds.

Offsets and duplicates were decided when it was saved; only what the recipe asks for is chosen,
column by column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from shapely.geometry.base import BaseGeometry

from bigmap.config.sources import FilesSource
from bigmap.scenes.catalog.audit import Audit, Catalogue
from bigmap.scenes.catalog.projection import footprint_of
from bigmap.scenes.items import ItemTable, names_in_layout

Mask = npt.NDArray[np.bool_]


def choose_saved(
    saved: Catalogue,
    source: FilesSource,
    *,
    bands: Sequence[str],
    mask_asset: str | None,
    geometry_lonlat: BaseGeometry,
) -> Catalogue:
    """Choose from a saved catalogue what a recipe asks for.

    Parameters
    ----------
    saved
        Of :func:`bigmap.scenes.catalog.load_items`.
    source
        Its dates, collection and cloud limit count; ``harmonise`` was applied when it was saved.
    bands, mask_asset, geometry_lonlat
        As for :func:`bigmap.scenes.catalog.find_items`.

    Returns
    -------
    Catalogue
        What is left out is counted in ``audit.elsewhere``, together with what the first search
        found elsewhere; findings are those of the first search, without those about access,
        which depend on the recipe.
    """
    table = saved.rows
    wanted = {*bands} | ({mask_asset} if mask_asset else set())
    kept = np.ones(len(table), dtype=bool)
    elsewhere = Counter(dict(saved.audit.elsewhere))
    for reason, matches in (
        (f"the collection {source.collection}", _match_collection(table, source)),
        ("the dates", _match_dates(table, source)),
        ("the cloud limit", _match_cloud(table, source)),
        ("the area", _match_area(table, geometry_lonlat)),
        (f"those with the assets {', '.join(sorted(wanted))}", _match_assets(table, wanted)),
    ):
        lost = int((kept & ~matches).sum())
        if lost:
            elsewhere[reason] += lost
        kept &= matches
    rows = table.take(np.flatnonzero(kept))
    audit = Audit(
        found=saved.audit.found,
        kept=len(rows),
        elsewhere=tuple(sorted(elsewhere.items())),
        baselines=tuple(sorted(_count_baselines(rows).items())),
        empty_months=_empty_months(rows, source),
        findings=tuple(each for each in saved.audit.findings if each.kind != "access"),
    )
    return Catalogue(rows, audit)


def _match_collection(table: ItemTable, source: FilesSource) -> Mask:
    if source.collection is None:
        return np.ones(len(table), dtype=bool)
    return _to_mask(pc.equal(table.columns["collection"].cast(pa.string()), source.collection))


def _match_dates(table: ItemTable, source: FilesSource) -> Mask:
    days = table.column("datetime").astype("datetime64[D]")
    first, last = np.datetime64(source.start), np.datetime64(source.end)
    inside: Mask = (days >= first) & (days <= last)
    return inside


def _match_cloud(table: ItemTable, source: FilesSource) -> Mask:
    cloud = pc.fill_null(table.columns["cloud_percent"], 0.0)
    return _to_mask(pc.less_equal(cloud, source.max_cloud_percent))


def _match_area(table: ItemTable, geometry: BaseGeometry) -> Mask:
    matches = np.zeros(len(table), dtype=bool)
    for epsg, bounds, indices in table.places():
        matches[indices] = geometry.intersects(footprint_of(bounds, epsg))
    return matches


def _match_assets(table: ItemTable, wanted: set[str]) -> Mask:
    layouts = table.columns.unify_dictionaries()["layout"].combine_chunks()
    whole = [wanted <= names_in_layout(layout) for layout in layouts.dictionary.to_pylist()]
    matches: Mask = np.array(whole, dtype=bool)[layouts.indices.to_numpy()]
    return matches


def _to_mask(values: Any) -> Mask:
    mask: Mask = values.combine_chunks().to_numpy(zero_copy_only=False)
    return mask


def _count_baselines(rows: ItemTable) -> Counter[str]:
    counts = pc.value_counts(rows.columns["baseline"].cast(pa.string()))
    return Counter({entry["values"] or "unknown": entry["counts"] for entry in counts.to_pylist()})


def _empty_months(rows: ItemTable, source: FilesSource) -> tuple[str, ...]:
    asked = np.arange(
        np.datetime64(source.start, "M"), np.datetime64(source.end, "M") + np.timedelta64(1, "M")
    )
    seen = np.unique(rows.column("datetime").astype("datetime64[M]"))
    return tuple(str(month) for month in np.setdiff1d(asked, seen))
