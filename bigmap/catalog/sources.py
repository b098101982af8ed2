"""Items from files: JSON, static catalogues and stac-geoparquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from stac_geoparquet.arrow import stac_table_to_items

from bigmap.catalog.hrefs import join_href
from bigmap.errors import CatalogError

RawItem = tuple[dict[str, Any], str | None]
"""An item and the file or URL that it came from."""

PARQUET_SUFFIXES = (".parquet", ".geoparquet", ".pq")
_BATCH_ROWS = 1000


def read_item_file(path: str) -> Iterator[RawItem]:
    """Yield the items of one file.

    Parameters
    ----------
    path
        Path or URL of a STAC item, an item collection, a list of items (JSON), or of
        stac-geoparquet, which is told by its suffix.

    Raises
    ------
    CatalogError
        If the file cannot be read or holds something else.
    """
    if path.lower().endswith(PARQUET_SUFFIXES):
        for item in _read_parquet(path):
            yield item, path
        return
    content = read_json(path)
    kind = content.get("type") if isinstance(content, dict) else None
    if kind in ("Catalog", "Collection"):
        raise CatalogError(
            f"{path} is a STAC {kind}, not a file of items; set source.kind to static-catalog"
        )
    items = content["features"] if kind == "FeatureCollection" else content
    for number, item in enumerate(items if isinstance(items, list) else [items]):
        yield _check_item(item, path, number), path


def walk_catalog(path: str) -> Iterator[RawItem]:
    """Yield the items of a static catalogue, following its child and item links.

    Parameters
    ----------
    path
        Path or URL of its catalog.json or collection.json.

    Raises
    ------
    CatalogError
        If a linked file cannot be read, or ``path`` is no catalogue.
    """
    waiting, seen = [path], {path}
    while waiting:
        place = waiting.pop()
        content = read_json(place)
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "Feature":
            yield _check_item(content, place, 0), place
            continue
        if kind not in ("Catalog", "Collection"):
            raise CatalogError(
                f"{place} is neither a STAC catalogue nor a collection nor an item; "
                "correct source.files"
            )
        links = [link for link in content.get("links") or () if link["rel"] in ("child", "item")]
        for link in reversed(links):
            target = join_href(place, link["href"])
            if target not in seen:
                seen.add(target)
                waiting.append(target)


def read_json(path: str) -> Any:
    """Read a JSON file or URL.

    Raises
    ------
    CatalogError
        If it is missing, unreadable or not JSON; the message names it.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; correct source.files") from error
    except (OSError, ImportError) as error:
        raise CatalogError(f"{path} cannot be read ({error}); correct source.files") from error
    except ValueError as error:
        raise CatalogError(f"{path} is not JSON ({error}); correct source.files") from error


def _read_parquet(path: str) -> Iterator[dict[str, Any]]:
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for item in stac_table_to_items(pa.Table.from_batches([batch])):
                    yield without_nulls(item)
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; correct source.files") from error
    except (OSError, ImportError, pa.ArrowInvalid, KeyError) as error:
        raise CatalogError(
            f"{path} cannot be read as stac-geoparquet ({error}); correct source.files"
        ) from error


def without_nulls(value: Any) -> Any:
    """Drop the keys without a value, which a table has where some items lack a field."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return value


def _check_item(item: Any, path: str, number: int) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type") != "Feature" or "id" not in item:
        raise CatalogError(f"{path}: entry {number} is not a STAC item; correct source.files")
    if not isinstance(item.get("properties"), dict):
        raise CatalogError(f"{path}: item {item['id']} has no properties; correct source.files")
    return item
