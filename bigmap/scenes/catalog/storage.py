"""The catalogue of a run as slim stac-geoparquet, so that a resumed run uses the same items."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from shapely.geometry.base import BaseGeometry
from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

from bigmap.errors import CatalogError, OutputError
from bigmap.files import locate, parse_json, storage_errors, write_atomically
from bigmap.redaction import clean_href
from bigmap.scenes.catalog.audit import Audit, Catalogue, Finding
from bigmap.scenes.catalog.hrefs import join_href
from bigmap.scenes.catalog.malformed import MALFORMED
from bigmap.scenes.catalog.products import DECIDED_SHIFT
from bigmap.scenes.catalog.projection import Bounds, footprint_of, is_metric
from bigmap.scenes.items import SCHEMA, STEM, ItemRow, ItemTable, parse_layout
from bigmap.scenes.radiometry import OFFSET_DN

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
_OPTIONAL = {
    "cloud_percent": "eo:cloud_cover",
    "baseline": "s2:processing_baseline",
    "mgrs_tile": "grid:code",
}
"""Columns that are left out where no item has them."""
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
        Of :func:`bigmap.scenes.catalog.find_items`.
    path
        Path, or URL that fsspec can write.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "items.parquet"
            _write_rows(catalogue, file)
            filesystem, inner = locate(path)
            write_atomically(filesystem, inner, file.read_bytes())
    except storage_errors() as error:
        raise OutputError(f"{path} cannot be written ({error}); choose another path") from error


def _write_rows(catalogue: Catalogue, file: Path) -> None:
    """Write the items of a catalogue column by column, a part at a time."""
    rows = clean_rows(ItemTable.of(catalogue.rows))
    layouts = rows.columns["layout"].unique().to_pylist()
    names = dict.fromkeys(name for layout in layouts for name, *_ in parse_layout(layout)[1])
    pattern = _read_pattern(file.with_name("pattern.parquet"))
    shapes = {(epsg, bounds): footprint_of(bounds, epsg) for epsg, bounds, _ in rows.places()}
    absent = [
        name for column, name in _OPTIONAL.items()
        if len(rows) and rows.columns[column].null_count == len(rows)
    ]  # fmt: skip
    if set(rows.columns["collection"].unique().to_pylist()) <= {""}:
        absent.append("collection")
    audit = {_AUDIT_KEY: json.dumps(catalogue.audit.to_dict()).encode()}
    schema = _schema_of(names, pattern.field("geometry"), without=absent)
    schema = schema.with_metadata({**(pattern.metadata or {}), **audit})
    with pq.ParquetWriter(file, schema, compression="zstd") as target:
        for first in range(0, len(rows), _BATCH_ITEMS):
            part = ItemTable(rows.columns.slice(first, _BATCH_ITEMS))
            columns = _to_columns(part, shapes) | {"assets": _to_assets(part, schema)}
            arrays = [columns[field.name] for field in schema]
            target.write_table(pa.table(arrays, schema=schema))


def clean_rows(rows: ItemTable) -> ItemTable:
    """Return rows whose hrefs carry no signature or password; see :func:`clean_href`."""
    columns = rows.columns
    suspect = np.zeros(len(rows), dtype=bool)
    # Only what these match can change: it has a user, parameters, a query or a fragment.
    marks = "[@=?#]"
    for name in ("folder", "stem"):
        suspect |= pc.match_substring_regex(columns[name], marks).to_numpy()
    layouts = _encode(columns["layout"])
    marked = pc.match_substring_regex(layouts.dictionary, marks).to_numpy(zero_copy_only=False)
    suspect |= marked[layouts.indices.to_numpy()]
    if not suspect.any():
        return rows
    clean = ItemTable.of(_clean_row(row) for row in rows.take(np.flatnonzero(suspect)))
    rest = rows.take(np.flatnonzero(~suspect))
    both = pa.concat_tables([rest.columns, clean.columns]).unify_dictionaries().combine_chunks()
    order = np.concatenate([np.flatnonzero(~suspect), np.flatnonzero(suspect)])
    return ItemTable(both).take(np.argsort(order))


def _clean_row(row: ItemRow) -> ItemRow:
    assets = {name: replace(a, href=clean_href(a.href)) for name, a in row.assets.items()}
    return replace(row, assets=assets)


def _read_pattern(file: Path) -> pa.Schema:
    """Return what stac-geoparquet makes of any item: its metadata and the kind of geometry."""
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": "x", "links": [], "assets": {},
        "geometry": {"type": "Point", "coordinates": [0.0, 0.0]}, "bbox": [0.0, 0.0, 0.0, 0.0],
        "properties": {"datetime": "2024-01-01T00:00:00Z"},
    }  # fmt: skip
    to_parquet(parse_stac_items_to_arrow([item]), file)
    return pq.read_schema(file)


def _schema_of(names: Iterable[str], geometry: pa.Field, *, without: Collection[str]) -> pa.Schema:
    """Return the columns of a file whose items have assets of some names."""
    asset = pa.struct({
        "href": pa.string(), "proj:shape": pa.list_(pa.int64()),
        "proj:transform": pa.list_(pa.float64()), "roles": pa.list_(pa.string()),
    })  # fmt: skip
    corners = pa.struct(dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), pa.float64()))
    text = pa.string()
    kinds = {
        "type": text, "stac_version": text, "stac_extensions": pa.list_(text), "id": text,
        "collection": text, "links": pa.list_(pa.struct({"rel": text, "href": text})),
        "geometry": geometry.type, "bbox": corners,
        "assets": pa.struct(dict.fromkeys(names, asset)),
        "datetime": pa.timestamp("us", "UTC"), "proj:code": text,
        "proj:bbox": pa.list_(pa.float64()), DECIDED_SHIFT: pa.int64(), "bigmap:solar_day": text,
        "eo:cloud_cover": pa.float64(), "s2:processing_baseline": text, "grid:code": text,
        "bigmap:folder": text, "bigmap:stem": text, "bigmap:layout": text,
    }  # fmt: skip
    fields = {name: pa.field(name, kind) for name, kind in kinds.items()} | {"geometry": geometry}
    return pa.schema([field for name, field in fields.items() if name not in without])


def _to_columns(
    rows: ItemTable, shapes: Mapping[tuple[int, Bounds], BaseGeometry]
) -> dict[str, pa.Array]:
    """Turn rows into the columns of a file, without the assets.

    Parameters
    ----------
    rows
        A part of all.
    shapes
        Footprints by EPSG code and bounds.
    """
    count = len(rows)

    def get(name: str) -> pa.Array:
        column = rows.columns[name].combine_chunks()
        return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column

    collections = get("collection")
    has_one = pc.not_equal(collections, "")
    boxes = np.column_stack([rows.column(name) for name in ("left", "bottom", "right", "top")])
    places = [None] * count
    for epsg, bounds, indices in rows.places():
        for index in indices.tolist():
            places[index] = shapes[epsg, bounds]
    corners = shapely.bounds(places).reshape(count, 4)
    links = pc.binary_join_element_wise("./", collections, ".json", "")
    link = pa.StructArray.from_arrays([_repeat("collection", count), links], ["rel", "href"])
    ends = np.concatenate([[0], np.cumsum(has_one.to_numpy(zero_copy_only=False))])
    return {
        "type": _repeat("Feature", count),
        "stac_version": _repeat("1.1.0", count),
        "stac_extensions": _repeat(list(_EXTENSIONS), count),
        "id": get("id"),
        "collection": pc.if_else(has_one, collections, None),
        "links": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), link.filter(has_one)),
        "geometry": pa.array(shapely.to_wkb(places).tolist(), pa.binary()),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(values) for values in corners.T], ["xmin", "ymin", "xmax", "ymax"]
        ),
        "datetime": get("datetime"),
        "proj:code": pc.binary_join_element_wise("EPSG:", get("epsg").cast(pa.string()), ""),
        "proj:bbox": _to_lists(boxes),
        DECIDED_SHIFT: get("dn_shift").cast(pa.int64()),
        "bigmap:solar_day": get("solar_day").cast(pa.string()),
        "eo:cloud_cover": get("cloud_percent"),
        "s2:processing_baseline": get("baseline"),
        "grid:code": pc.binary_join_element_wise("MGRS-", get("mgrs_tile"), ""),
        **{f"bigmap:{name}": get(name) for name in ("folder", "stem", "layout")},
    }


def _to_assets(rows: ItemTable, schema: pa.Schema) -> pa.StructArray:
    """Return the assets of rows, layout by layout."""
    kind = schema.field("assets").type
    layouts = _encode(rows.columns["layout"])
    codes = layouts.indices.to_numpy()
    groups = [np.flatnonzero(codes == code) for code in range(len(layouts.dictionary))]
    parts = [
        _lay_out(rows.take(group), layout, kind)
        for group, layout in zip(groups, layouts.dictionary.to_pylist(), strict=True)
        if len(group)
    ]
    order = np.argsort(np.concatenate(groups))
    return pa.concat_arrays(parts).take(pa.array(order))


def _lay_out(rows: ItemTable, layout: str, kind: pa.StructType) -> pa.StructArray:
    """Return the assets of rows that share a layout."""
    count = len(rows)
    is_relative, entries = parse_layout(layout)
    folder, stem = (rows.columns[name].combine_chunks() for name in ("folder", "stem"))
    corner = np.zeros((count, 6))
    if is_relative:
        corner[:, 2], corner[:, 5] = rows.column("left"), rows.column("top")
    assets = {}
    for name, suffix, height, width, *transform in entries:
        before, _, after = suffix.partition(STEM)
        href = pc.binary_join_element_wise(folder, before, stem, after, "")
        shape = np.broadcast_to(np.array([height, width]), (count, 2))
        fields = [href, _to_lists(shape), _to_lists(np.array(transform) + corner),
                  _repeat(["data"], count)]  # fmt: skip
        assets[name] = pa.StructArray.from_arrays(fields, fields=list(kind.field(name).type))
    columns = [assets.get(field.name, pa.nulls(count, field.type)) for field in kind]
    return pa.StructArray.from_arrays(columns, fields=list(kind))


def _to_lists(values: npt.NDArray[Any]) -> pa.ListArray:
    """Turn the rows of a table into lists."""
    count, length = values.shape
    ends = np.arange(0, (count + 1) * length, length, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.ravel(values)))


def _repeat(value: str | list[str], count: int) -> pa.Array:
    kind = pa.string() if isinstance(value, str) else pa.list_(pa.string())
    return pa.repeat(pa.scalar(value, kind), count)


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
                audit = _audit_from(parse_json(schema.metadata[_AUDIT_KEY]))
                rows = _to_table(_resolve_folders(stored.read(columns=names), path))
            _check_rows(rows)
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist") from error
    except (*storage_errors(), *MALFORMED) as error:
        raise CatalogError(f"{path} is not a catalogue that bigmap saved ({error})") from error
    return Catalogue(rows, audit)


def is_saved_catalogue(path: str) -> bool:
    """Tell whether a file is one that :func:`save_items` wrote, all its decisions made."""
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as stored:
            metadata = stored.schema_arrow.metadata or {}
            return _AUDIT_KEY in metadata and "bigmap:layout" in stored.schema_arrow.names
    except (*storage_errors(), *MALFORMED):
        return False


def _check_rows(rows: ItemTable) -> None:
    """Refuse a file that was changed since: decisions in it are not made again.

    Raises
    ------
    ValueError
        If a value is missing, or is none that a search gives.
    """
    rows.columns.validate(full=True)  # texts may be no UTF-8
    empty = [name for name in SCHEMA.names
             if name not in _OPTIONAL and rows.columns[name].null_count]  # fmt: skip
    if empty:
        raise ValueError(f"items have no {', '.join(empty)}")
    for layout in rows.columns["layout"].unique().to_pylist():
        for name, suffix, height, width, *transform in parse_layout(layout)[1]:
            whole = len(transform) == 6 and np.isfinite([height, width, *transform]).all()
            if not (isinstance(name, str) and isinstance(suffix, str) and whole):
                raise ValueError(f"asset {name} has no file or no grid")
    left, bottom, right, top = (rows.column(name) for name in ("left", "bottom", "right", "top"))
    if not (np.isfinite(right - left + top - bottom) & (left < right) & (bottom < top)).all():
        raise ValueError("items have no extent")
    if strange := [code for code in np.unique(rows.column("epsg")) if not is_metric(int(code))]:
        raise ValueError(f"EPSG:{strange[0]} is not a projected CRS in metres")
    if len(rows) and not np.isin(rows.column("dn_shift"), (0, OFFSET_DN)).all():
        raise ValueError(f"{DECIDED_SHIFT} is neither 0 nor {OFFSET_DN}")


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
    """Turn the columns of stored items into those of a table of items."""
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


def _audit_from(content: dict[str, Any]) -> Audit:
    return Audit(
        found=int(content["found"]),
        kept=int(content["kept"]),
        elsewhere=tuple((str(reason), int(count)) for reason, count in content["elsewhere"]),
        baselines=tuple((str(baseline), int(count)) for baseline, count in content["baselines"]),
        empty_months=tuple(str(month) for month in content["empty_months"]),
        findings=tuple(Finding(**finding) for finding in content["findings"]),
    )
