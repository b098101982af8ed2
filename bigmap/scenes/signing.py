"""Hrefs signed at the moment of reading, so that they cannot expire."""

from __future__ import annotations

import threading
from typing import Literal
from urllib.parse import urlparse

import requests

from bigmap.errors import CatalogError, ReadError

_BLOB_HOST = ".blob.core.windows.net"
_TOKEN_RETRIES = 3
_TOKEN_LOCK = threading.Lock()


def sign_href(href: str, mode: Literal["none", "planetary-computer"]) -> str:
    """Sign an href as its host wants it.

    Parameters
    ----------
    href
        Unsigned, as in :class:`bigmap.scenes.items.AssetRow`.
    mode
        ``access.sign`` of the recipe. ``planetary-computer`` adds a token of its account and
        container to files in Azure's blob storage; tokens are kept until a minute before they
        expire. Other hrefs stay as they are.

    Raises
    ------
    CatalogError
        If the package planetary-computer is missing.
    ReadError
        If no token can be had; names the host.
    """
    if mode == "none":
        return href
    try:
        from planetary_computer import sas  # noqa: PLC0415  (needed for one kind of source)
        from planetary_computer.utils import parse_blob_url  # noqa: PLC0415
    except ImportError as error:
        raise CatalogError(
            "source.access.sign is planetary-computer; install the package planetary-computer"
        ) from error
    parts = urlparse(href)
    if not parts.netloc.endswith(_BLOB_HOST):
        return href
    try:
        with _TOKEN_LOCK:  # one request for a token, however many threads read
            sas.get_token(*parse_blob_url(parts), retry_total=_TOKEN_RETRIES)
        return str(sas.sign_url(href))
    except (requests.RequestException, ValueError) as error:
        raise ReadError(
            f"no token for {parts.netloc} from Planetary Computer "
            f"({type(error).__name__}); try again later"
        ) from error
