"""Signing against a token endpoint on this machine."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bigmap.errors import CatalogError, ReadError
from bigmap.scenes.signing import sign_href

sas = pytest.importorskip("planetary_computer.sas")
HREF = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/35/M/NM/B04.tif"


class TokenHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        expiry = (datetime.now(UTC) + timedelta(minutes=server.minutes)).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        token = {"msft:expiry": expiry, "token": f"sig=secret{len(server.asked)}"}
        self.send_response(server.status)
        self.end_headers()
        self.wfile.write(json.dumps(token).encode())


@pytest.fixture
def tokens(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), TokenHandler)
    server.asked, server.status, server.minutes = [], 200, 45
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(
        sas.Settings.get(), "sas_url", f"http://127.0.0.1:{server.server_port}/token"
    )
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_without_signing_hrefs_stay(tokens):
    assert sign_href(HREF, "none") == HREF
    assert not tokens.asked


def test_blobs_are_signed_with_the_token_of_their_container(tokens):
    assert sign_href(HREF, "planetary-computer") == f"{HREF}?sig=secret1"
    assert tokens.asked == ["/token/sentinel2l2a01/sentinel2-l2"]


@pytest.mark.parametrize(
    "href", ["/d/x.tif", "s3://bucket/x.tif", "https://a.example/x.tif", "../x.tif"]
)
def test_other_hrefs_stay(tokens, href):
    assert sign_href(href, "planetary-computer") == href
    assert not tokens.asked


def test_many_threads_ask_for_one_token(tokens):
    with ThreadPoolExecutor(16) as pool:
        signed = set(pool.map(lambda _: sign_href(HREF, "planetary-computer"), range(100)))
    assert signed == {f"{HREF}?sig=secret1"}
    assert len(tokens.asked) == 1


def test_a_token_about_to_expire_is_renewed(tokens):
    tokens.minutes = 0.5
    first, second = (sign_href(HREF, "planetary-computer") for _ in range(2))
    assert first != second


def test_a_refused_token_is_one_clear_sentence(tokens):
    tokens.status = 403
    with pytest.raises(ReadError, match=r"no token for sentinel2l2a01.*Planetary Computer"):
        sign_href(HREF, "planetary-computer")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "planetary_computer", None)
    with pytest.raises(CatalogError, match="install the package planetary-computer"):
        sign_href(HREF, "planetary-computer")
