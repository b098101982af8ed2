"""Where files lie: relative hrefs resolved, secrets removed."""

from __future__ import annotations

import os.path
import posixpath
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

# Parameters of Azure's shared access signatures, of S3's second version, and common others.
_SECRETS = frozenset((
    "st", "se", "sp", "sv", "sr", "sig", "sks", "skt", "ske", "skv", "skoid", "sktid", "spr", "si",
    "sip", "awsaccesskeyid", "signature", "expires", "googleaccessid", "token", "access_token",
    "api_key", "apikey", "key", "subscription-key",
))  # fmt: skip
_SECRET_PREFIXES = ("x-amz-", "x-goog-")


def resolve_href(href: str, location: str | None, *, self_href: str | None) -> str:
    """Resolve an href against the place that the item came from.

    A relative href is relative to the item's file. Where that file is a local copy without the
    asset beside it, the item's self link, if it is a URL, tells where the item was published.

    Parameters
    ----------
    href
        As in the item.
    location
        File or URL that the item was read from; None for an API.
    self_href
        The item's self link.

    Returns
    -------
    str
        A URL or an absolute path.
    """
    if is_url(href):
        parts = urlsplit(href)
        return unquote(parts.path) if parts.scheme == "file" else href
    if href.startswith("/vsi") or Path(href).is_absolute():
        return href
    published = self_href if self_href and is_url(self_href) else None
    if location is None:
        return join_href(published, href) if published else href
    joined = join_href(location, href)
    if published and not is_url(joined) and not Path(joined).exists():
        return join_href(published, href)
    return joined


def join_href(base: str, href: str) -> str:
    """Join a relative href to the file or URL that holds it; absolute ones stay as they are."""
    if is_url(href):
        return href
    if not is_url(base):
        return os.path.normpath(Path(base).absolute().parent / href)
    parts = urlsplit(base)
    if parts.scheme in ("http", "https"):
        return urljoin(base, href)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(parts.path), href))
    return f"{parts.scheme}://{parts.netloc}{path}"


def clean_href(href: str) -> str:
    """Remove signatures, tokens and passwords, so that rows can be written anywhere.

    What needs a signature is signed again when it is read, see
    :func:`bigmap.signing.sign_href`.
    """
    parts = urlsplit(href)
    if not parts.scheme or not parts.netloc:
        return href
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    kept = [
        (name, value)
        for name, value in pairs
        if name.lower() not in _SECRETS and not name.lower().startswith(_SECRET_PREFIXES)
    ]
    query = parts.query if kept == pairs else urlencode(kept)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def is_url(text: str) -> bool:
    """Tell whether a text is a URL with a scheme, such as https, s3 or file."""
    return "://" in text
