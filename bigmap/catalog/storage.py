"""The catalogue of a run as slim stac-geoparquet, so that a resumed run uses the same items."""

from __future__ import annotations

import datetime as dt
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

from bigmap.catalog.audit import Audit, Catalogue, Finding
from bigmap.catalog.hrefs import clean_href, is_url, join_href
from bigmap.catalog.parsing import DECIDED_SHIFT
from bigmap.catalog.projection import footprint_of
from bigmap.catalog.sources import without_nulls
from bigmap.errors import CatalogError, OutputError
from bigmap.items import SCHEMA, ItemRow, ItemTable, pack_assets

_AUDIT_KEY = b"bigmap:audit"
_BATCH_ITEMS = 20_000
_COLUMNS = (
    "id", "collection", "datetime", "bigmap:solar_day", "proj:code", "proj:bbox", DECIDED_SHIFT,
    "eo:cloud_cover", "s2:processing_baseline", "grid:code", "bigmap:folder", "bigmap:stem",
    "bigmap:layout",
)  # fmt: skip
"""What a table of items is made of; assets are read from their layout, which is much less."""
_REPEATED = ("collection", "proj:code", "s2:processing_baseline", "grid:code", "bigmap:layout")
"""Columns of few values, each held once: the layouts of a million items fill a gigabyte."""
_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/grid/v1.1.0/schema.json",
)


def save_items(catalogue: Catalogue, path: str) -> None:
    """Write a catalogue as stac-geoparquet, whole or not at all.

    Each row becomes a valid STAC item: the wanted assets with their projection, and bigmap's
    decisions as properties (``bigmap:dn_shift``, ``bigmap:solar_day``), and its files once more
    as folder, stem and layout, from which a million items are read in seconds. Its geometry is
    that of its files. The audit is kept in the file's metadata. Hrefs carry no signature or
    password.

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
    audit = json.dumps(catalogue.audit.to_dict()).encode()
    with tempfile.TemporaryDirectory() as folder:
        plain, final = Path(folder) / "plain.parquet", Path(folder) / "items.parquet"
        items = (to_item(row) for row in catalogue.rows)
        to_parquet(_to_arrow(items, folder), plain)
        _copy_with_audit(plain, final, audit)
        content = final.read_bytes()
    try:
        _write_atomically(path, content)
    except (OSError, ImportError) as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another path") from error


def _to_arrow(items: Iterator[dict[str, Any]], folder: str) -> pa.RecordBatchReader:
    """Turn items into Arrow a part at a time, since a million of them do not fit in memory."""
    return parse_stac_items_to_arrow(
        items, chunk_size=_BATCH_ITEMS, schema="ChunksToDisk", tmpdir=folder
    )


def _copy_with_audit(plain: Path, final: Path, audit: bytes) -> None:
    with pq.ParquetFile(plain) as source:
        schema = source.schema_arrow
        schema = schema.with_metadata({**(schema.metadata or {}), _AUDIT_KEY: audit})
        with pq.ParquetWriter(final, schema, compression="zstd") as target:
            for batch in source.iter_batches(batch_size=_BATCH_ITEMS):
                target.write_batch(batch.cast(schema))


def load_items(path: str) -> Catalogue:
    """Read a catalogue that :func:`save_items` wrote.

    Relative hrefs are relative to the file, so that it can be moved with its scenes.

    Raises
    ------
    CatalogError
        If the file is missing or is not such a file.
    """
    try:
        with fsspec.open(path, "rb") as file:
            schema = pq.read_schema(file)
            names = [name for name in _COLUMNS if name in schema.names]
            repeated = [name for name in _REPEATED if name in names]
            with pq.ParquetFile(file, read_dictionary=repeated) as stored:
                audit = _audit_from(json.loads(schema.metadata[_AUDIT_KEY]))
                rows = _to_table(_resolve_folders(stored.read(columns=names), path))
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; run without --resume to make it") from error
    except (OSError, ImportError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise CatalogError(
            f"{path} is not a catalogue that bigmap saved ({error}); delete it and run again"
        ) from error
    return Catalogue(rows, audit)


def is_saved_catalogue(path: str) -> bool:
    """Tell whether a file is one that :func:`save_items` wrote, all its decisions made."""
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as stored:
            metadata = stored.schema_arrow.metadata or {}
            return _AUDIT_KEY in metadata and "bigmap:layout" in stored.schema_arrow.names
    except (OSError, ImportError, pa.ArrowInvalid):
        return False


def _resolve_folders(stored: pa.Table, path: str) -> pa.Table:
    """Join the folders of files that are told from the place of the catalogue to that place."""
    column = stored.column_names.index("bigmap:folder")
    if not pc.any(pc.starts_with(stored[column], ".")).as_py():
        return stored
    folders = stored[column].cast(pa.string()).combine_chunks().dictionary_encode()
    places = folders.dictionary.to_pylist()
    resolved = [
        f"{join_href(path, place).rstrip('/')}/" if place.startswith(".") else place
        for place in places
    ]
    if resolved == places:
        return stored
    values = pa.DictionaryArray.from_arrays(folders.indices, pa.array(resolved, pa.string()))
    return stored.set_column(column, "bigmap:folder", values.cast(pa.string()))


def _to_table(stored: pa.Table) -> ItemTable:
    """Turn the columns that :func:`to_item` led to into those of a table of items."""
    count = stored.num_rows

    def get(name: str) -> pa.ChunkedArray:
        return stored[name] if name in stored.column_names else pa.chunked_array([pa.nulls(count)])

    def strip(name: str, prefix: str) -> pa.DictionaryArray:
        codes = _encode(get(name))
        values = pc.replace_substring_regex(codes.dictionary, f"^{prefix}", "")
        return pa.DictionaryArray.from_arrays(codes.indices, values)

    bounds = pc.list_flatten(get("proj:bbox")).to_numpy().reshape(count, 4).astype(np.float64)
    collection = pc.fill_null(get("collection").cast(pa.string()), "")
    columns = {
        "id": get("id"),
        "collection": collection,
        "datetime": get("datetime"),
        "solar_day": pc.cast(get("bigmap:solar_day"), pa.date32()),
        "epsg": strip("proj:code", "EPSG:").cast(pa.int32()),
        **dict(zip(("left", "bottom", "right", "top"), bounds.T, strict=True)),
        "dn_shift": get(DECIDED_SHIFT),
        "cloud_percent": get("eo:cloud_cover"),
        "baseline": get("s2:processing_baseline"),
        "mgrs_tile": strip("grid:code", "MGRS-"),
        **{name: get(f"bigmap:{name}") for name in ("folder", "stem", "layout")},
    }
    arrays = [
        _fit(columns[name], kind) for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
    ]
    return ItemTable(pa.table(arrays, schema=SCHEMA))


def _fit(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return _encode(values).cast(kind)
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else pa.array(values)
    return array.cast(kind)


def _encode(values: Any) -> pa.DictionaryArray:
    """Return texts as codes in one dictionary."""
    table = pa.table({"values": values})
    if not pa.types.is_dictionary(table["values"].type):
        table = pa.table({"values": table["values"].cast(pa.string()).dictionary_encode()})
    return table.unify_dictionaries()["values"].combine_chunks()


def to_item(row: ItemRow) -> dict[str, Any]:
    """Turn a row into a STAC item of version 1.1."""
    row = replace(
        row,
        assets={
            name: replace(asset, href=clean_href(asset.href)) for name, asset in row.assets.items()
        },
    )
    folder, stem, layout = pack_assets(row)
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
        "bigmap:folder": folder,
        "bigmap:stem": stem,
        "bigmap:layout": layout,
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
                "href": asset.href,
                "proj:shape": list(asset.shape),
                "proj:transform": list(asset.transform),
                "roles": ["data"],
            }
            for name, asset in row.assets.items()
        },
    }


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
