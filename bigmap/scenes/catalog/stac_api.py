"""Items from a STAC API, page by page."""

from __future__ import annotations

import datetime as dt
import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

import pystac
import shapely
from pystac.errors import STACError
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from requests import Request
from requests.exceptions import ChunkedEncodingError
from shapely.geometry.base import BaseGeometry
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from bigmap.config.sources import StacApiSource
from bigmap.errors import CatalogError
from bigmap.files import parse_json
from bigmap.scenes.catalog.malformed import MALFORMED

PAGE_ITEMS = 100
CONNECT_TIMEOUT_S = 5.0
CONNECT_RETRIES = 2
BACKOFF_S = 0.2
BACKOFF_LIMIT_S = 10.0
QUERY_VARIABLE, HEADER_VARIABLE = "BIGMAP_STAC_QUERY", "BIGMAP_STAC_HEADER"
"""Of the environment: parameters, as ``api-key=...``, and a header, as ``X-Api-Key: ...``, that go
with each request to the host of the API, and nowhere else. A password belongs in ``~/.netrc``."""
RETRY_AFTER_LIMIT_S = 60.0
"""Longest wait that a server's ``Retry-After`` is granted; some ask for hours."""
LEAST_SHARE = 0.5
"""Of the items that an API says to have: fewer are refused. Some estimate the number."""
STALE_PAGES = 3
"""Pages in a row without a new item after which paging counts as endless."""

LOG = logging.getLogger(__name__)

_RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
_SIMPLIFY_DEG = 0.05
_MOST_VERTICES = 200


class BrokenAnswerError(Exception):
    """An API's answer broke off, or is something else, such as a proxy's page of HTML."""


class _BoundedRetry(Retry):
    """Waits as long as a server asks for, within a limit."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Return seconds to wait, 0 for a header that is neither a number nor a date."""
        try:
            asked_s = super().parse_retry_after(retry_after)
        except (InvalidHeader, ValueError, OverflowError):
            LOG.warning("the catalogue asks to wait for %.40r, which is no time", retry_after)
            return 0.0
        if asked_s > RETRY_AFTER_LIMIT_S:
            LOG.warning(
                "the catalogue asks to wait for %.0f s; trying again after %.0f s",
                asked_s, RETRY_AFTER_LIMIT_S,
            )  # fmt: skip
        return min(asked_s, RETRY_AFTER_LIMIT_S)


class PatientStacIO(StacApiIO):
    """Requests with timeouts, that are repeated where a later one may succeed."""

    def __init__(self, *, retries: int, timeout_s: float) -> None:
        super().__init__(
            timeout=(CONNECT_TIMEOUT_S, timeout_s),
            max_retries=_BoundedRetry(
                total=retries,
                connect=min(retries, CONNECT_RETRIES),
                backoff_factor=BACKOFF_S,
                backoff_max=BACKOFF_LIMIT_S,
                status_forcelist=_RETRIED_STATUS,
                allowed_methods=None,  # a search by POST changes nothing and may be repeated
                raise_on_status=False,
            ),
        )
        self._attempts = Retrying(
            retry=retry_if_exception_type(BrokenAnswerError),
            stop=stop_after_attempt(retries + 1),
            wait=wait_exponential(multiplier=BACKOFF_S, max=BACKOFF_LIMIT_S),
            reraise=True,
        )

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """Read what an answer refers to over HTTP, and never a file of this machine."""
        href = str(source.href if isinstance(source, pystac.Link) else source)
        place = urlsplit(href)
        if place.scheme not in ("http", "https") or not place.hostname:
            raise ValueError(f"it refers to {href}")
        return super().read_text(source, *args, **kwargs)

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        """Send a request; an answer that is no whole JSON object counts as failed."""
        return self._attempts(self._request_json, href, method, headers, parameters)

    def _request_json(
        self,
        href: str,
        method: str | None,
        headers: dict[str, str] | None,
        parameters: dict[str, Any] | None,
    ) -> str:
        try:
            text = super().request(href, method, headers, parameters)
            answer = parse_json(text)
        except APIError as error:
            if isinstance(error.__context__, ChunkedEncodingError):
                raise BrokenAnswerError(href) from error
            raise
        except ValueError as error:
            raise BrokenAnswerError(href) from error
        if not isinstance(answer, dict):
            raise BrokenAnswerError(href)
        return text

    def get_pages(
        self,
        url: str,
        method: str | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield pages as long as they link to a next one, those without items too."""
        page = self.read_json(url, method=method, parameters=parameters)
        yield page
        while link := next(
            (link for link in page.get("links") or () if link["rel"] == "next"), None
        ):
            target = urljoin(url, link["href"])
            step = pystac.Link.from_dict({**link, "href": target})
            page = self.read_json(step, parameters=parameters)
            yield page


def search_api(source: StacApiSource, geometry: BaseGeometry) -> Iterator[Any]:
    """Yield the items of an API's search, whatever they hold.

    Parameters
    ----------
    source
        URL, collection, dates, cloud limit and access settings.
    geometry
        Area in degrees, EPSG:4326. A coarser one that contains it is sent; the caller checks
        each item again, and the cloud limit too, which not every API can apply.

    Raises
    ------
    CatalogError
        If the API cannot be reached, refuses, answers nonsense, pages without end, or gives
        fewer items than it says to have found.
    """
    _discover_extensions()
    pager = PatientStacIO(retries=source.access.retries, timeout_s=source.access.timeout_s)
    try:
        client = Client.open(
            source.url,
            stac_io=pager,
            request_modifier=partial(_add_access, host=urlsplit(source.url).netloc),
        )
        search = client.search(
            collections=[source.collection],
            datetime=_interval(source.start, source.end),
            intersects=coarsen_area(geometry),
            limit=PAGE_ITEMS,
            **_cloud_filter(client, source.max_cloud_percent),
        )
        pages = pager.get_pages(search.url, search.method, search.get_parameters())
        yield from _items_of(pages, source.url)
    except BrokenAnswerError as error:
        raise CatalogError(
            f"{source.url} answers with something that is not JSON, or breaks off; check "
            "source.url, or try again later"
        ) from error
    except (ClientTypeError, PystacClientWarning, STACError, NotImplementedError) as error:
        raise CatalogError(
            f"{source.url} is not the root of a STAC API with item search; check source.url"
        ) from error
    except APIError as error:
        raise CatalogError(_describe(source.url, error)) from error
    except MALFORMED as error:
        raise CatalogError(
            f"{source.url} gives a malformed answer ({type(error).__name__}: {error}); check "
            "source.url, or tell its maintainers"
        ) from error


def _discover_extensions() -> None:
    """Let pystac look for extensions in other packages, which it does once.

    It gives up at the first that cannot be imported, and would fail the search.
    """
    try:
        pystac.EXTENSION_HOOKS.get_extended_object_links(pystac.Catalog("any", "any"))
    except Exception as error:  # noqa: BLE001  another package's import may fail in any way
        LOG.warning("an extension of pystac is left out (%s: %s)", type(error).__name__, error)


def _add_access(request: Request, *, host: str) -> Request:
    """Add what the environment gives for the host of the API to a request to it."""
    url = str(request.url)
    if urlsplit(url).netloc != host:
        return request
    if query := os.environ.get(QUERY_VARIABLE):
        request.url = f"{url}{'&' if '?' in url else '?'}{query}"
    name, _, value = os.environ.get(HEADER_VARIABLE, "").partition(":")
    if name.strip():
        request.headers = {**(request.headers or {}), name.strip(): value.strip()}
    return request


def coarsen_area(geometry: BaseGeometry) -> dict[str, Any]:
    """Return GeoJSON that contains an area and is short enough to send."""
    if shapely.get_num_coordinates(geometry) > _MOST_VERTICES:
        world = shapely.box(-180, -90, 180, 90)
        geometry = geometry.simplify(_SIMPLIFY_DEG).buffer(_SIMPLIFY_DEG, quad_segs=1)
        geometry = geometry.intersection(world)
    mapping: dict[str, Any] = shapely.geometry.mapping(geometry)
    return mapping


def _items_of(pages: Iterator[dict[str, Any]], url: str) -> Iterator[Any]:
    seen: set[str] = set()
    stale, received, matched = 0, 0, None
    for page in pages:
        features = page["features"]
        if not isinstance(features, list):
            raise TypeError("features is not a list")
        names = [_name_of(item, received + place) for place, item in enumerate(features)]
        new = set(names) - seen
        stale = 0 if new else stale + 1
        if stale >= STALE_PAGES and features:
            raise CatalogError(
                f"{url} repeats its pages without end; narrow source.start and source.end, or "
                "use another catalogue"
            )
        if stale >= STALE_PAGES:
            break
        seen |= new
        received += len(features)
        matched = _fewer(matched, _matched_by(page))
        if new:
            yield from features
    if matched is not None and len(seen) < matched:
        said = f"{url} says that it has {matched} items but gave {len(seen)} and no further page"
        if len(seen) < LEAST_SHARE * matched:
            raise CatalogError(
                f"{said}; try again later, narrow source.start and source.end, or use another "
                "catalogue"
            )
        LOG.warning("%s: where it does not count but estimate, none is lost", said)


def _name_of(item: Any, number: int) -> str:
    """Return the id of an item, or something unique where it has none."""
    name = item.get("id") if isinstance(item, dict) else None
    return str(name) if name is not None else f"number {number}"


def _matched_by(page: dict[str, Any]) -> int | None:
    """Return how many items an answer says to have found, now or in older versions of the API."""
    context = page.get("context")
    older = context.get("matched") if isinstance(context, dict) else None
    found = page.get("numberMatched", older)
    return found if isinstance(found, int) else None


def _fewer(one: int | None, other: int | None) -> int | None:
    """Return the smaller number that is known: items come and go while pages are read."""
    return min((each for each in (one, other) if each is not None), default=None)


def _cloud_filter(client: Client, max_cloud_percent: float) -> dict[str, Any]:
    """Ask for the cloud limit in the way that the API conforms to, if it does."""
    if max_cloud_percent >= 100:
        return {}
    if client.conforms_to("QUERY"):
        return {"query": {"eo:cloud_cover": {"lte": max_cloud_percent}}}
    if client.conforms_to("FILTER"):
        return {
            "filter_lang": "cql2-json",
            "filter": {"op": "<=", "args": [{"property": "eo:cloud_cover"}, max_cloud_percent]},
        }
    return {}


def _interval(start: dt.date, end: dt.date) -> str:
    return f"{start}T00:00:00Z/{end}T23:59:59Z"


def _describe(url: str, error: APIError) -> str:
    status = getattr(error, "status_code", None)
    if status is None:
        return (
            f"{url} cannot be reached ({type(error.__context__).__name__}); check source.url and "
            "the network, or set source.kind to files or simulated"
        )
    if status == 404:
        return f"{url} is not a STAC API (404); check source.url"
    if status in (401, 403):
        return (
            f"{url} refuses access ({status}); give a password in ~/.netrc, a key in "
            f"{QUERY_VARIABLE} or a header in {HEADER_VARIABLE}"
        )
    if status in _RETRIED_STATUS:
        return f"{url} still failed after all retries ({status}); try again later"
    return f"{url} refuses the search ({status}); check source.collection and source.start"
