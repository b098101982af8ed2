"""STAC API searches against a real HTTP server that gives recorded answers and faults."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import shapely
import yaml

from bigmap.config.sources import Access, StacApiSource
from bigmap.errors import CatalogError
from bigmap.scenes.catalog import find_items
from bigmap.scenes.catalog.stac_api import coarsen_area

RECORDED_ROOT = "https://earth-search.aws.element84.com/v1"
WORLD = shapely.box(-180, -90, 180, 90)
CUT = "application/json; cut"
HTML = (200, "<!DOCTYPE html><html><body>Please log in</body></html>", "text/html")


class ReplayServer(ThreadingHTTPServer):
    """Answers searches from recorded pages, after the faults that a test has queued."""

    daemon_threads = True

    def __init__(self, landing, pages):
        super().__init__(("127.0.0.1", 0), ReplayHandler)
        self.root = f"http://127.0.0.1:{self.server_port}/v1"
        self.landing, self.pages = landing, pages
        self.faults, self.searches, self.loop = [], [], False
        self.asked = []

    def page_for(self, body):
        keys = [json.dumps(key, sort_keys=True) for key, _ in self.pages]
        key = json.dumps(body.get("next"))
        if self.loop:
            return self.pages[0][1]
        empty = {"type": "FeatureCollection", "features": [], "links": []}
        return self.pages[keys.index(key)][1] if key in keys else empty


class ReplayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(self.server.landing)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.searches.append(body)
        self.answer(self.server.page_for(body))

    def answer(self, content):
        self.server.asked.append((self.path, self.headers))
        text = json.dumps(content).replace(RECORDED_ROOT, self.server.root)
        status, text, kind = (
            self.server.faults.pop(0) if self.server.faults else (200, text, "application/json")
        )
        payload = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(payload) + (100 if kind == CUT else 0)))
        self.end_headers()
        self.wfile.write(payload)
        self.close_connection = kind == CUT


@pytest.fixture(scope="module")
def recording(shared_data):
    """The landing page, and the pages by what the request said of ``next``."""
    text = (shared_data / "stac" / "earth-search-l1c-l2a-c1.cassette.yaml").read_text()
    calls = yaml.load(text, Loader=yaml.CSafeLoader)["interactions"]
    answers = [json.loads(call["response"]["body"]["string"]) for call in calls]
    bodies = [json.loads(call["request"]["body"] or "{}") for call in calls]
    pages = [(body.get("next"), page) for body, page in zip(bodies, answers, strict=True)][1:]
    count = sum(len(page["features"]) for _, page in pages)
    for _, page in pages:  # recorded from a search of everything that was stopped early
        page["numberMatched"] = count
        page.get("context", {})["matched"] = count
    return answers[0], pages


@pytest.fixture
def server(recording):
    server = ReplayServer(*recording)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def source(url, collection="sentinel-2-l2a", **settings):
    settings = {"start": "2025-07-01", "end": "2025-08-31", **settings}
    settings.setdefault("access", Access(retries=3, timeout_s=5))
    return StacApiSource(kind="stac-api", url=url, collection=collection, **settings)


def find(server, *, geometry=WORLD, mask_asset="scl", **settings):
    return find_items(
        source(server.root, **settings),
        bands=("red", "rededge1"),
        mask_asset=mask_asset,
        geometry_lonlat=geometry,
    )


def test_pages_are_followed_and_only_the_collection_is_kept(server):
    catalogue = find(server)
    assert len(server.searches) == 3
    assert catalogue.audit.found == 20
    assert len(catalogue.rows) == 6
    assert {row.collection for row in catalogue.rows} == {"sentinel-2-l2a"}
    assert dict(catalogue.audit.elsewhere) == {"the collection sentinel-2-l2a": 14}


def test_one_acquisition_in_three_collections_has_the_shift_of_each(server):
    shifts = {}
    for collection, mask in (
        ("sentinel-2-l2a", "scl"), ("sentinel-2-c1-l2a", "scl"), ("sentinel-2-l1c", None)
    ):  # fmt: skip
        rows = find(server, collection=collection, mask_asset=mask).rows
        shifts[collection] = {row.mgrs_tile: row.dn_shift for row in rows}
    assert shifts["sentinel-2-l2a"].keys() == shifts["sentinel-2-c1-l2a"].keys()
    assert set(shifts["sentinel-2-l2a"].values()) == {1000}
    assert set(shifts["sentinel-2-c1-l2a"].values()) == {0}
    assert set(shifts["sentinel-2-l1c"].values()) == {0}


def test_the_cog_wins_over_its_jpeg_2000_twin(server):
    for row in find(server).rows:
        assert all(asset.href.endswith(".tif") for asset in row.assets.values())
        assert list(row.assets) == ["red", "rededge1", "scl"]


def test_the_search_asks_for_collection_dates_area_and_cloud(server):
    area = shapely.box(-60, -61, -59, -60)
    rows = find(server, geometry=area, max_cloud_percent=40).rows
    assert [row.mgrs_tile for row in rows] == ["20EPT"]
    asked = server.searches[0]
    assert asked["collections"] == ["sentinel-2-l2a"]
    assert asked["datetime"] == "2025-07-01T00:00:00Z/2025-08-31T23:59:59Z"
    assert shapely.geometry.shape(asked["intersects"]).equals(area)
    assert asked["query"] == {"eo:cloud_cover": {"lte": 40}}


def test_the_cloud_limit_is_checked_again(server):
    catalogue = find(server, max_cloud_percent=35)
    assert all(row.cloud_percent <= 35 for row in catalogue.rows)
    assert [f.item for f in catalogue.audit.of("too-cloudy")] == [
        "S2B_24MUA_20250731_0_L2A", "S2B_24MUV_20250731_0_L2A"
    ]  # fmt: skip


def test_an_api_that_cannot_filter_is_still_limited_here(server):
    classes = [c for c in server.landing["conformsTo"] if "query" not in c and "filter" not in c]
    server.landing = {**server.landing, "conformsTo": classes}
    assert len(find(server, max_cloud_percent=35).rows) == 4
    assert "query" not in server.searches[0]
    assert "filter" not in server.searches[0]


@pytest.mark.parametrize(
    "faults",
    [
        [(503, "busy", "text/plain")] * 2,
        [(429, "slow down", "text/plain"), (500, "{}", "application/json")],
        [HTML] * 2,
        [(503, "busy", "text/plain"), HTML],
        [(200, '{"type": "Cat', CUT)] * 2,
    ],
    ids=["503 twice", "429 and 500", "HTML with 200", "503 then HTML", "body cut"],
)
def test_passing_faults_are_survived(server, faults):
    server.faults = list(faults)
    assert len(find(server).rows) == 6
    assert not server.faults


def test_faults_between_pages_are_survived(server):
    server.pages = [server.pages[0], *server.pages[1:]]
    original = server.page_for

    def fail_once(body):
        if body.get("next") and not getattr(server, "failed", False):
            server.failed = True
            server.faults = [(502, "bad gateway", "text/plain")] * 2
        return original(body)

    server.page_for = fail_once
    assert len(find(server).rows) == 6


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((503, "busy", "text/plain"), "after all retries (503)"),
        (HTML, "not JSON"),
        ((404, "{}", "application/json"), "not a STAC API (404)"),
        ((403, "{}", "application/json"), "refuses access (403)"),
        ((200, "{}", "application/json"), "is not the root of a STAC API"),
        ((200, '{"a":', "application/json"), "not JSON"),
        ((200, "{}", CUT), "breaks off"),
    ],
    ids=["503", "HTML", "404", "403", "empty JSON", "broken JSON", "body cut"],
)
def test_lasting_faults_are_one_clear_sentence(server, fault, words):
    server.faults = [fault] * 50
    with pytest.raises(CatalogError) as caught:
        find(server, access=Access(retries=1, timeout_s=5))
    message = str(caught.value)
    assert words in message
    assert server.root in message
    assert "\n" not in message


def test_access_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("BIGMAP_STAC_QUERY", "api-key=s3cr3t&user=me")
    monkeypatch.setenv("BIGMAP_STAC_HEADER", "X-Api-Key: other s3cr3t")
    assert len(find(server).rows) == 6
    assert len(server.asked) == 4
    for path, headers in server.asked:
        assert path.endswith("?api-key=s3cr3t&user=me")
        assert headers["X-Api-Key"] == "other s3cr3t"
    server.faults = [(403, "{}", "application/json")] * 9
    with pytest.raises(CatalogError, match="a key in BIGMAP_STAC_QUERY") as error:
        find(server)
    assert "s3cr3t" not in str(error.value)


def test_access_goes_to_no_other_host(server, monkeypatch):
    monkeypatch.setenv("BIGMAP_STAC_QUERY", "api-key=s3cr3t")
    text = json.dumps(server.landing).replace(RECORDED_ROOT, server.root)
    elsewhere = server.root.replace("127.0.0.1", "localhost")
    server.landing = json.loads(text.replace(f"{server.root}/search", f"{elsewhere}/search"))
    find(server)
    assert [path.endswith("?api-key=s3cr3t") for path, _ in server.asked][:2] == [True, False]


def test_an_api_without_item_search_is_told(server):
    links = [link for link in server.landing["links"] if link["rel"] != "search"]
    server.landing = {**server.landing, "links": links, "conformsTo": []}
    with pytest.raises(CatalogError, match="not the root of a STAC API with item search"):
        find(server)


def test_a_refused_search_names_the_settings(server):
    original = server.page_for

    def refuse(body):
        server.faults = [(400, '{"detail": "bad datetime"}', "application/json")]
        return original(body)

    server.page_for = refuse
    with pytest.raises(CatalogError, match=r"refuses the search \(400\)"):
        find(server)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/v1", "http://no-such-host.invalid/v1"], ids=["port", "host"]
)
def test_an_unreachable_host_is_told_within_seconds(url):
    begin = time.monotonic()
    with pytest.raises(CatalogError, match=r"cannot be reached .*; check source") as caught:
        find_items(
            source(url, access=Access()),
            bands=("red",),
            mask_asset=None,
            geometry_lonlat=WORLD,
        )
    assert url in str(caught.value)
    assert time.monotonic() - begin < 10


def test_endless_paging_is_stopped(server):
    server.loop = True
    with pytest.raises(CatalogError, match="repeats its pages without end"):
        find(server)
    assert len(server.searches) < 10


def test_an_empty_search_names_collection_dates_and_area(server):
    server.pages = []
    with pytest.raises(CatalogError) as caught:
        find(server, geometry=shapely.box(1, 41, 2, 42), collection="sentinel-2-l3")
    for words in ("sentinel-2-l3", "2025-07-01", "2025-08-31", "[1, 41, 2, 42]", server.root):
        assert words in str(caught.value)


def test_a_long_outline_is_sent_as_a_short_one_that_contains_it():
    outline = shapely.Point(0, 45).buffer(3, quad_segs=2000)
    sent = shapely.geometry.shape(coarsen_area(outline))
    assert sent.covers(outline)
    assert shapely.get_num_coordinates(sent) < 400
    assert sent.area < 1.1 * outline.area


def test_the_area_sent_stays_within_the_world():
    beside = shapely.box(-180, 60, -170, 70).union(shapely.box(170, 60, 180, 70))
    outline = shapely.segmentize(beside, 0.1)
    sent = shapely.geometry.shape(coarsen_area(outline))
    assert sent.bounds[0] >= -180
    assert sent.bounds[2] <= 180
    assert sent.covers(outline)


@pytest.mark.parametrize(
    "broken",
    [
        {"features": None},
        {"code": "x"},
        {"features": {"a": 1}},
        {"features": [], "links": [{"href": "x"}]},
        {"features": [], "links": [{"rel": "next"}]},
        {"features": [], "links": [{"rel": "next", "href": "file:///etc/passwd"}]},
        {"features": [], "links": 5},
    ],
)
def test_a_malformed_page_is_one_sentence(server, broken):
    server.pages = [(None, {"type": "FeatureCollection", **broken})]
    with pytest.raises(CatalogError, match="gives a malformed answer"):
        find(server)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("href", ["file://{}", "h24:00ttp://api.invalid/v1/search", "http://///{}"])
def test_no_file_of_this_machine_is_read_where_an_api_links_to_it(server, tmp_path, href, method):
    file = tmp_path / "page.json"
    file.write_text(json.dumps(server.pages[0][1]))
    links = [
        {**link, "href": href.format(file), "method": method} if link["rel"] == "search" else link
        for link in server.landing["links"]
    ]
    server.landing = {**server.landing, "links": links}
    with pytest.raises(CatalogError, match=r"gives a malformed answer .* refers to "):
        find(server)


def test_entries_of_a_page_that_are_no_items_are_left_out(server):
    (key, page), *rest = server.pages
    count = page["numberMatched"] + 2
    wrong = {"features": [*page["features"], None, 7], "numberMatched": count}
    server.pages = [(key, {**page, **wrong}), *rest]
    audit = find(server).audit
    assert audit.found == count
    assert [finding.detail for finding in audit.of("unusable")] == ["is not a STAC item"] * 2


def test_a_page_without_items_is_not_the_end(server):
    (_, page), *rest = server.pages
    link = {"rel": "next", "href": f"{server.root}/search", "method": "POST"}
    empty = {**page, "features": [], "links": [{**link, "body": {"next": "later"}, "merge": True}]}
    server.pages = [(None, empty), ("later", page), *rest]
    assert find(server).audit.found == page["numberMatched"]
