"""Where files lie: hrefs are URI references (RFC 3986), resolved to what can be opened."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urljoin

_RESERVED = "!$%&'()*+,/:;=?@[]~"
_GDAL_URL = re.compile(r"/vsicurl(?:_streaming)?(?:/(?=\w+://)|\?)")
_GDAL_STORE = re.compile(r"/vsi(s3|gs|az)(?:_streaming)?/")
_FILE_URL = re.compile(r"file:(?://(?:localhost)?(?=/)|(?=/(?!/)))", re.IGNORECASE)
_NAMED_BY_FRAGMENT = re.compile(r"#(?=.*\.(?:tiff?|jp2)(?:$|\?))", re.IGNORECASE)
"""A sign in the name of a raster; other fragments are no part of a file's name."""


def resolve_href(href: str, location: str | None, *, self_href: str | None) -> str:
    """Resolve an href against the place that the item came from.

    A relative href is relative to the item's file. Where that file is a local copy without the
    asset beside it, the item's self link, if it is a URL, tells where the item was published.

    Parameters
    ----------
    href
        As in the item: a URL, a path, or a path of GDAL's virtual file systems.
    location
        File or URL that the item was read from; None for an API.
    self_href
        The item's self link.

    Returns
    -------
    str
        A URL or a path, as :func:`join_href` writes them.
    """
    published = self_href if self_href and is_url(self_href) else None
    is_relative = not href.startswith("/") and _locate(href) is None
    if location is None:
        if not is_relative:
            return join_href("/", href)
        return join_href(published, href) if published else href
    joined = join_href(location, href)
    if published and is_relative and not is_url(joined) and not Path(joined).exists():
        return join_href(published, href)
    return joined


def join_href(base: str, href: str) -> str:
    """Join an href to the file or URL that holds it; absolute ones stay where they are.

    Parameters
    ----------
    base
        Path or URL of the file.
    href
        Percent-encoding is decoded for local files where one of the decoded name is there, and for
        keys of object stores, which have none; it is completed for HTTP. Paths such as
        ``/vsicurl/`` and ``/vsis3/`` become the URLs that they stand for.

    Returns
    -------
    str
        A URL or an absolute path.
    """
    if located := _locate(href):
        return located
    if local := path_of(base):
        return _find_local(Path(local).absolute().parent, href)
    scheme, _, place = base.partition("://")
    if scheme.lower() in ("http", "https"):
        return _encode(urljoin(_encode(base), _NAMED_BY_FRAGMENT.sub("%23", href)))
    host, _, key = place.partition("/")
    return f"{scheme}://{host}{os.path.normpath(Path('/', key).parent / unquote(href))}"


def _locate(href: str) -> str | None:
    """Return what an href that needs no base means; None for a plain path."""
    if wrapped := _GDAL_URL.match(href):
        url = href[wrapped.end() :]
        if wrapped[0].endswith("?"):
            # What stands beside the URL are headers, passwords and other settings of requests.
            url = parse_qs(url).get("url", [""])[0]
        return _locate(url) or href
    if stored := _GDAL_STORE.match(href):
        return f"{stored[1]}://{href[stored.end() :]}"
    if href.startswith("/vsi"):
        return href
    if local := _FILE_URL.match(href):
        return _find_local(Path("/"), href[local.end() :])
    scheme, mark, place = href.partition("://")
    if not mark:
        return None
    if scheme.lower() in ("http", "https"):
        return _encode(_NAMED_BY_FRAGMENT.sub("%23", href))
    return f"{scheme.lower()}://{unquote(place)}"


def _find_local(folder: Path, href: str) -> str:
    """Return the path that an href means: a file that is there, by its decoded name or its own.

    What looks like a query or a fragment may be part of the name, or not.
    """
    bare = re.split("[?#]", href)[0]
    names = (unquote(href), href, unquote(bare), bare)
    paths = [os.path.normpath(folder / name) for name in names]
    if href == names[2]:  # a plain name, and a million of them are not looked at
        return paths[0]
    return next((path for path in paths if Path(path).exists()), paths[2])


def _encode(url: str) -> str:
    """Complete the percent-encoding of a URL, and leave out its fragment."""
    scheme, _, place = url.partition("#")[0].partition("://")
    host, slash, path = place.partition("/")
    path = re.sub("%(?![0-9A-Fa-f]{2})", "%25", path)
    return f"{scheme.lower()}://{host}{slash}{quote(path, safe=_RESERVED)}"


def is_url(text: str) -> bool:
    """Tell whether a text is a URL with a scheme, such as https, s3 or file."""
    return "://" in text


def path_of(place: str) -> str | None:
    """Return the path of a file of this machine, given as a path or a URL; None for others."""
    if local := _FILE_URL.match(place):
        return _find_local(Path("/"), place[local.end() :])
    return None if is_url(place) else place
