"""Which version of a file was read: a scene replaced amid a run would mix two in one map."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import requests

from bigmap.config.sources import Access
from bigmap.scenes.cube.reading import is_local
from bigmap.scenes.items import ItemRow
from bigmap.scenes.signing import sign_href

CONNECT_TIMEOUT_S = 5.0
DIGEST_BYTES = 6
"""A version is compared with one other, that of the same file."""


def find_version(href: str, access: Access) -> str | None:
    """Return what tells a file from one that takes its place; None where nothing does.

    Parameters
    ----------
    href
        Path or URL, unsigned.
    access
        How to fetch it.

    Returns
    -------
    str or None
        Size and time of change of a local file; ETag, size and time that a server tells.
    """
    if not is_local(href):
        return _ask_server(href, access)
    try:
        status = Path(href).stat()
    except OSError:
        return None
    return f"{status.st_size} {status.st_mtime_ns}"


@lru_cache(maxsize=65536)
def _ask_server(href: str, access: Access) -> str | None:
    """Ask once per process: what GDAL has read of a file it keeps, too."""
    if not href.startswith(("http://", "https://")):
        return None
    try:
        answer = requests.head(
            sign_href(href, access.sign),
            timeout=(CONNECT_TIMEOUT_S, access.timeout_s),
            allow_redirects=True,
        )
    except requests.RequestException:
        return None
    names = ("ETag", "Content-Length", "Last-Modified")
    told = " ".join(answer.headers.get(name, "") for name in names)
    return told if answer.ok and told.strip() else None


def sum_up_versions(
    rows: Iterable[ItemRow], versions: Mapping[str, str | None], assets: Sequence[str]
) -> dict[str, str]:
    """Sum up the versions of the files of items.

    Parameters
    ----------
    rows
        The items.
    versions
        By href, of the files that were read.
    assets
        What each item is read for: the asset that is read of all dates first, then those of the
        dates that are chosen.

    Returns
    -------
    dict
        Checksum by item, and by item and ``bands``, where all such files were read and told theirs.
    """
    sums = {}
    for row in rows:
        hrefs = [row.assets[name].href for name in assets]
        for name, part in ((row.id, hrefs[:1]), (f"{row.id} bands", hrefs[1:])):
            told = [versions.get(href) for href in part]
            if told and None not in told:
                text = "\n".join(map(str, told)).encode()
                sums[name] = hashlib.blake2b(text, digest_size=DIGEST_BYTES).hexdigest()
    return sums
