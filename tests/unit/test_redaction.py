"""The one rule for secrets, in names, hrefs and texts."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigmap.errors import CatalogError, ReadError
from bigmap.redaction import clean_href, holds_secret, is_secret_name, redact

SECRET_NAMES = [
    "api-key", "apiKey", "API_KEY", "api%5Fkey", "key", "password", "passwd", "pwd", "userpwd",
    "client_secret", "id_token", "token", "access_token", "refreshToken", "header.Authorization",
    "auth", "oauth_verifier", "sig", "Signature", "sign", "X-Amz-Signature", "x-amz-credential",
    "X-Goog-Date", "x-ms-signature", "Key-Pair-Id", "AWSAccessKeyId", "GoogleAccessId", "sas",
    "sas_token", "sessionid", "JSESSIONID", "PHPSESSION", "jwt", "credential", "cookie", "hmac",
    "subscription-key", "Ocp-Apim-Subscription-Key", "Expires", "hdnts",
]  # fmt: skip
PLAIN_NAMES = [
    "version", "versionId", "file", "page", "author", "authority", "keyword", "bands", "compass",
    "orbit", "design", "asset", "class", "signal", "tokyo", "hashtag",
]  # fmt: skip


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets_are_known_however_they_are_written(name):
    assert is_secret_name(name)
    assert is_secret_name(name.upper())
    assert clean_href(f"https://a.example/x.tif?{name}=s3cr3t&version=2").endswith("?version=2")
    assert "s3cr3t" not in redact(f"GET https://a.example/x.tif?{name}=s3cr3t failed")


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_other_names_are_not(name):
    assert not is_secret_name(name)
    href = f"https://a.example/x.tif?{name}=a&b=c"
    assert clean_href(href) == href
    assert redact(href) == href


@pytest.mark.parametrize(
    ("href", "clean"),
    [
        ("https://user:pw@a.example/x.tif", "https://a.example/x.tif"),
        ("https://token@a.example:8080/a@b.tif", "https://a.example:8080/a@b.tif"),
        ("https://user:p/w#d@a.example/x.tif", "https://a.example/x.tif"),
        ("https://a.example/x;jsessionid=1;a=2/y.tif", "https://a.example/x;a=2/y.tif"),
        ("https://a.example/token=1/y.tif", "https://a.example/y.tif"),
        ("https://a.example/year=2024/y.tif", "https://a.example/year=2024/y.tif"),
        ("https://a.example/x.tif#access_token=1", "https://a.example/x.tif"),
        ("https://a.example/x.tif?a=1;sig=2", "https://a.example/x.tif"),
        ("https://a.example/x.tif?t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "https://a.example/x.tif"),
        # What stands beside a secret belongs to it, but for what names a file or its version.
        ("https://a.example/get?file=B04.tif&user=me&token=1", "https://a.example/get?file=B04.tif"),
        ("https://a.example/x.tif?Policy=p&Signature=s&Key-Pair-Id=k", "https://a.example/x.tif"),
        # Stores have nothing but signatures there, whatever their names.
        ("https://a.blob.core.windows.net/c/x.tif?sv=1&sp=r&snapshot=2", "https://a.blob.core.windows.net/c/x.tif?snapshot=2"),
        # A URL within a URL, as servers of tiles take it.
        ("https://tiles.example/cog?url=https%3A%2F%2Fu%3Ap%40a.example%2Fx.tif&z=1", "https://tiles.example/cog?url=https%3A%2F%2Fa.example%2Fx.tif&z=1"),
        ("/vsizip/vsicurl/https://u:p@a.example/s.zip/x.tif", "/vsizip/vsicurl/https://a.example/s.zip/x.tif"),
        ("/data/a?key=b.tif", "/data/a?key=b.tif"),
        ("s3://bucket/a b/c+d#1.tif", "s3://bucket/a b/c+d#1.tif"),
    ],
)  # fmt: skip
def test_hrefs_lose_their_secrets_and_nothing_else(href, clean):
    assert clean_href(href) == clean
    assert clean_href(clean) == clean


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("cannot open https://u:s3cr3t@h/x", "cannot open https://***@h/x"),
        ("Max retries exceeded with url: /search?api-key=s3cr3t&b=1 (Caused by", None),
        ("export AWS_SECRET_ACCESS_KEY=s3cr3t", "export AWS_SECRET_ACCESS_KEY=***"),
        ("curl -H 'Authorization: Bearer s3cr3t01'", None),
        ("sbatch --export=A=1,MY_TOKEN=s3cr3t=s3cr3t==", "sbatch --export=A=1,MY_TOKEN=***"),
        ("sbatch --export=MY_TOKEN=s3cr3t", "sbatch --export=MY_TOKEN=***"),
        ("curl -H X-Api-Key:s3cr3t", None),
        ("Authorization: Token s3cr3t", None),
        ("answered {'password': 's3cr3t', \"id_token\": \"s3cr3t\"}", None),
        ("key AKIAS3CR3TS3CR3TS3CR is invalid", "key *** is invalid"),
    ],
)
def test_texts_lose_their_secrets(text, hidden):
    assert "s3cr3t" not in redact(text).lower()
    assert hidden in (None, redact(text))
    assert holds_secret(text)


@pytest.mark.parametrize(
    "text",
    [
        "--set 'x': write it as dotted.key=value",
        "give tls_ca_file, tls_cert_file and tls_key_file together",
        "cluster.tls_key_file: no such file",
        "item S2A: malformed (KeyError: 'href')",
        "export TOKEN=$TOKEN",
        "export GOOGLE_APPLICATION_CREDENTIALS=/home/me/key.json",
        "Basic information is missing",
        "s3://bucket/a@b/m.zarr",
        "https://[::1]:80/a@b",
    ],
)
def test_other_texts_stay(text):
    assert redact(text) == text
    assert not holds_secret(text)


@given(st.text())
def test_hiding_twice_hides_no_more(text):
    assert redact(redact(text)) == redact(text)


@given(st.text("ab:/?#@&;=%.[] *", max_size=30).map("https://".__add__))
def test_cleaning_twice_cleans_no_more(href):
    assert clean_href(clean_href(href)) == clean_href(href)


def test_no_error_holds_a_secret():
    error = ReadError("https://u:s3cr3t@h/x.tif?sig=s3cr3t: HTTP response code: 403")
    assert str(error) == "https://***@h/x.tif?sig=***: HTTP response code: 403"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert not str(CatalogError())
