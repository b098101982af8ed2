"""The catalogue of a run as slim stac-geoparquet, so that a resumed run uses the same items."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from stac_geoparquet.arrow import parse_stac_items_to_arrow, stac_table_to_items, to_parquet

from bigmap.catalog.audit import Audit, Catalogue, Finding, order_of
from bigmap.catalog.hrefs import clean_href, is_url
from bigmap.catalog.parsing import DECIDED_SHIFT
from bigmap.catalog.projection import footprint_of
from bigmap.catalog.sources import without_nulls
from bigmap.errors import CatalogError, OutputError
from bigmap.items import AssetRow, ItemRow

_AUDIT_KEY = b"bigmap:audit"
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
)


def save_items(catalogue: Catalogue, path: str) -> None:
    """Write a catalogue as stac-geoparquet, whole or not at all.

    Each row becomes a valid STAC item: the wanted assets with their projection, and bigmap's
    decisions as properties (``bigmap:dn_shift``, ``bigmap:solar_day``). Its geometry is that of
    its files. The audit is kept in the file's metadata. Hrefs carry no signature or password.

    Parameters
    ----------
    catalogue
        Of :func:`bigmap.catalog.find_items`.
    path
        Path, or URL that fsspec can write.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    reader = parse_stac_items_to_arrow([to_item(row) for row in catalogue.rows])
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "items.parquet"
        to_parquet(reader, plain)
        table = pq.read_table(plain)
    audit = json.dumps(catalogue.audit.to_dict()).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _AUDIT_KEY: audit})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    try:
        _write_atomically(path, buffer.getvalue())
    except (OSError, ImportError) as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another path") from error


def load_items(path: str) -> Catalogue:
    """Read a catalogue that :func:`save_items` wrote.

    Raises
    ------
    CatalogError
        If the file is missing or is not such a file.
    """
    try:
        with fsspec.open(path, "rb") as file:
            table = pq.read_table(io.BytesIO(file.read()))
        audit = _audit_from(json.loads(table.schema.metadata[_AUDIT_KEY]))
        rows = [from_item(without_nulls(item)) for item in stac_table_to_items(table)]
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; run without --resume to make it") from error
    except (OSError, ImportError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise CatalogError(
            f"{path} is not a catalogue that bigmap saved ({error}); delete it and run again"
        ) from error
    return Catalogue(tuple(sorted(rows, key=order_of)), audit)


def to_item(row: ItemRow) -> dict[str, Any]:
    """Turn a row into a STAC item of version 1.1."""
    footprint = footprint_of(row.bounds, row.epsg)
    properties: dict[str, Any] = {
        "datetime": _format_time(row.datetime),
        "proj:code": f"EPSG:{row.epsg}",
        "proj:bbox": list(row.bounds),
        DECIDED_SHIFT: row.dn_shift,
        "bigmap:solar_day": row.solar_day.isoformat(),
        "eo:cloud_cover": row.cloud_percent,
        "s2:processing_baseline": row.baseline,
        "grid:code": f"MGRS-{row.mgrs_tile}" if row.mgrs_tile else None,
    }
    # An item that names its collection must link to it, wherever that may be (STAC 1.1, item).
    membership: dict[str, Any] = {"links": []}
    if row.collection:
        link = {"rel": "collection", "href": f"./{row.collection}.json"}
        membership = {"collection": row.collection, "links": [link]}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": row.id,
        **membership,
        "geometry": shapely.geometry.mapping(footprint),
        "bbox": list(footprint.bounds),
        "properties": without_nulls(properties),
        "assets": {
            name: {
                "href": clean_href(asset.href),
                "proj:shape": list(asset.shape),
                "proj:transform": list(asset.transform),
                "roles": ["data"],
            }
            for name, asset in row.assets.items()
        },
    }


def from_item(item: dict[str, Any]) -> ItemRow:
    """Turn an item of :func:`to_item` back into its row."""
    properties = item["properties"]
    left, bottom, right, top = (float(value) for value in properties["proj:bbox"])
    return ItemRow(
        id=item["id"],
        collection=item.get("collection", ""),
        datetime=dt.datetime.fromisoformat(properties["datetime"]),
        solar_day=dt.date.fromisoformat(properties["bigmap:solar_day"]),
        epsg=int(properties["proj:code"].removeprefix("EPSG:")),
        bounds=(left, bottom, right, top),
        dn_shift=int(properties[DECIDED_SHIFT]),
        cloud_percent=properties.get("eo:cloud_cover"),
        baseline=properties.get("s2:processing_baseline"),
        mgrs_tile=properties.get("grid:code", "").removeprefix("MGRS-") or None,
        assets={name: _asset_from(asset) for name, asset in item["assets"].items()},
    )


def _asset_from(asset: dict[str, Any]) -> AssetRow:
    height, width = (int(value) for value in asset["proj:shape"])
    a, b, c, d, e, f = (float(value) for value in asset["proj:transform"])
    return AssetRow(asset["href"], (height, width), (a, b, c, d, e, f))


def _audit_from(content: dict[str, Any]) -> Audit:
    return Audit(
        found=content["found"],
        kept=content["kept"],
        elsewhere=tuple((reason, count) for reason, count in content["elsewhere"]),
        baselines=tuple((baseline, count) for baseline, count in content["baselines"]),
        empty_months=tuple(content["empty_months"]),
        findings=tuple(Finding(**finding) for finding in content["findings"]),
    )


def _format_time(time: dt.datetime) -> str:
    return time.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _write_atomically(path: str, content: bytes) -> None:
    """Write a file under another name first; object stores show only whole objects anyway."""
    if is_url(path) and not path.startswith("file://"):
        filesystem, inner = fsspec.url_to_fs(path)
        filesystem.pipe_file(inner, content)
        return
    target = Path(path.removeprefix("file://"))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
