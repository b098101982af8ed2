"""Items from files: JSON, static catalogues and stac-geoparquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from bigmap.errors import CatalogError
from bigmap.files import parse_json, storage_errors
from bigmap.scenes.catalog.hrefs import join_href
from bigmap.scenes.catalog.malformed import MALFORMED

RawItem = tuple[Any, str | None]
"""What should be an item, and the file or URL that it came from."""

PARQUET_SUFFIXES = (".parquet", ".geoparquet", ".pq")
_BATCH_ROWS = 1000
_NOT_PROPERTIES = ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links",
                   "assets", "collection")  # fmt: skip
_NEEDED = {"id", "geometry", "assets"}


def read_item_file(path: str) -> Iterator[RawItem]:
    """Yield the items of one file, whatever they hold.

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
    items = content.get("features") if kind == "FeatureCollection" else content
    if kind == "Feature":
        items = [content]
    if not isinstance(items, list):
        raise CatalogError(
            f"{path} holds neither a STAC item nor a list of them; correct source.files"
        )
    for item in items:
        yield item, path


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
            yield content, place
            continue
        if kind not in ("Catalog", "Collection"):
            raise CatalogError(
                f"{place} is neither a STAC catalogue nor a collection nor an item; "
                "correct source.files"
            )
        for target in reversed(_targets_of(content, place)):
            if target not in seen:
                seen.add(target)
                waiting.append(target)


def _targets_of(catalog: dict[str, Any], place: str) -> list[str]:
    """Return where the child and item links of a catalogue lead; none may be lost."""
    try:
        links = [(link["rel"], link) for link in catalog.get("links") or ()]
        return [join_href(place, link["href"]) for rel, link in links if rel in ("child", "item")]
    except MALFORMED as error:
        raise CatalogError(
            f"{place} has a malformed link ({type(error).__name__}: {error}), so that items may be "
            "missing; correct its links, each with rel and href"
        ) from error


def read_json(path: str) -> Any:
    """Read a JSON file or URL.

    Raises
    ------
    CatalogError
        If it is missing, unreadable or not JSON; the message names it.
    """
    try:
        with fsspec.open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; correct source.files") from error
    except storage_errors() as error:
        raise CatalogError(f"{path} cannot be read ({error}); correct source.files") from error
    try:
        return parse_json(content)
    except ValueError as error:
        raise CatalogError(f"{path} is not JSON ({error}); correct source.files") from error


def _read_parquet(path: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of stac-geoparquet as items, whose geometries are left as WKB.

    stac-geoparquet's own reader hands any WKB to GEOS, a thousand rows at once.
    """
    try:
        with fsspec.open(path, "rb") as file, pq.ParquetFile(file) as table:
            if missing := sorted(_NEEDED - set(table.schema_arrow.names)):
                raise CatalogError(
                    f"{path} cannot be read as stac-geoparquet (it has no {', '.join(missing)}); "
                    "correct source.files"
                )
            if not pa.types.is_struct(assets := table.schema_arrow.field("assets").type):
                raise CatalogError(
                    f"{path} cannot be read as stac-geoparquet (its assets are {assets}, not a "
                    "struct of them); correct source.files"
                )
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    own = {name: row.pop(name, None) for name in _NOT_PROPERTIES}
                    own["type"] = own["type"] or "Feature"
                    yield without_nulls({**own, "properties": row})
    except FileNotFoundError as error:
        raise CatalogError(f"{path} does not exist; correct source.files") from error
    except (*storage_errors(), *MALFORMED) as error:
        raise CatalogError(
            f"{path} cannot be read as stac-geoparquet ({error}); correct source.files"
        ) from error


def without_nulls(value: Any) -> Any:
    """Drop the keys without a value, which a table has where some items lack a field."""
    if isinstance(value, dict):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return value
