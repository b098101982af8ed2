"""The one rule for secrets: which names and values are secret, and texts without them.

Recipes that hold a secret are refused, hrefs are stripped of theirs before they become rows, and
all messages pass :func:`redact`, so that nothing secret reaches a map, a ledger or a log.
"""

from __future__ import annotations

import re
from itertools import pairwise
from urllib.parse import quote, unquote

HIDDEN = "***"
_SECRET_PARTS = re.compile(
    r"token|secret|passw|passphrase|passcode|passkey|pwd|credential|signature|bearer|session|cookie"
    r"|jwt|hmac|sas(?:url|key)|googleaccessid|auth(?!or(?!i[sz]))"
    r"|(?:api|app|access|account|auth|client|function|license|master|private|primary|shared|signing"
    r"|subscription)key|keypair|userpwd|userpass"
)
"""In a name without case and separators; ``auth``, but not author or authority."""
_SECRET_WORDS = frozenset((
    "key", "keys", "pass", "pw", "sig", "sign", "signed", "sas", "sid", "md5", "hash", "nonce",
    "otp", "ticket", "expires", "expiry", "awsaccesskeyid",
))  # fmt: skip
"""Words that are secret, or part of a signature, only where they name a parameter of a URL."""
_SIGNING_FAMILIES = ("xamz", "xgoog", "xms", "xoss", "xcos", "hdn")
_SIGNING_HOSTS = re.compile(
    r"://[^/]*\.(?:core\.windows\.net|amazonaws\.com|googleapis\.com|cloudfront\.net|aliyuncs\.com)"
    r"(?::\d+)?/",
    re.IGNORECASE,
)
"""Stores of objects: what their URLs have behind the name is a signature."""
_HARMLESS = frozenset((
    "version", "versionid", "v", "generation", "snapshot", "file", "filename", "path", "format",
    "collection", "item", "asset", "band", "bands", "url",
))  # fmt: skip
"""Parameters that say which file is meant; others go with a signature that stands beside them."""

_SECRET_VALUE = re.compile(
    r"\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"  # a JSON web token (RFC 7519)
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an access key of AWS
    r"|\b(?i:bearer|basic)\s+(?=\S*[\dA-Z=])[\w.~+/=-]{8,}"
)
_USER = re.compile(r"(://)(?:[^/?#\s]*@|[^/?#@:\[\s]*:(?!\d*(?:[/?#\s]|$))[^@\s]*@)")
"""Of a URL; also where the password holds what ends a host."""
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s&;,'"<>()\[\]{}]+(?<!:))"""
_PAIR = re.compile(rf"(?P<mark>^|[^\w.%-])(?P<names>[\w.%=-]+)=(?P<value>{_VALUE})")
_QUOTED_PAIR = re.compile(rf"""(?P<quote>["'])(?P<name>[\w.%-]+)(?P=quote)\s*:\s*{_VALUE}""")
_HEADER = re.compile(
    r"(?<![\w-])(?P<name>[\w-]+)\s*:\s*(?!//)"
    rf"(?:(?:bearer|basic|token|digest|apikey)\s+)?{_VALUE}",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(r"file|path|folder|dir|credentials$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Tell whether a parameter of a URL is a secret or part of a signature, by its name.

    Case, separators and percent-encoding do not matter: ``api-key``, ``APIKey`` and ``api%5Fkey``
    are the same name.
    """
    words = _split_words(name)
    joined = "".join(words)
    return (
        _is_strong(joined)
        or not _SECRET_WORDS.isdisjoint(words)
        or joined.endswith("key")
        or joined.startswith(_SIGNING_FAMILIES)
    )


def _is_strong(joined: str) -> bool:
    return _SECRET_PARTS.search(joined) is not None


def _split_words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", unquote(name))
    return re.findall(r"[a-z0-9]+", spaced.lower())


def _join_words(name: str) -> str:
    return "".join(_split_words(name))


def clean_href(href: str) -> str:
    """Remove user, password, tokens and signatures, so that an href can be written anywhere.

    What needs a signature is signed again when it is read, see
    :func:`bigmap.scenes.signing.sign_href`; other access comes from the environment. Where a
    parameter is secret, the others go too, since they belong to its signature, but for those that
    name a file.
    """
    if "://" not in href:
        return href
    while (bare := _USER.sub(r"\1", href)) != href:
        href = bare  # what is left may look like a user again
    place, hash_mark, fragment = href.partition("#")
    path, _, query = place.partition("?")
    path = re.sub(r"([;/])([^;/=]*)=[^;/]*", _drop_secret, path)
    is_signed = _SIGNING_HOSTS.search(place) is not None
    query, fragment = (_clean_query(part, is_signed=is_signed) for part in (query, fragment))
    return path + (f"?{query}" if query else "") + (hash_mark + fragment if fragment else "")


def _drop_secret(parameter: re.Match[str]) -> str:
    """Drop a parameter of a path, or a folder that is named like a secret beyond doubt."""
    name = parameter[2]
    is_secret = is_secret_name(name) if parameter[1] == ";" else _is_strong(_join_words(name))
    return "" if is_secret else parameter[0]


def _clean_query(query: str, *, is_signed: bool) -> str:
    pairs = [part.partition("=") for part in re.split("[&;]", query) if part]
    secrets = [is_secret_name(name) or _holds_value(name + value) for name, _, value in pairs]
    if is_signed or any(secrets):
        pairs = [
            pair for pair, is_secret in zip(pairs, secrets, strict=True)
            if not is_secret and _join_words(pair[0]) in _HARMLESS
        ]  # fmt: skip
    return "&".join(name + mark + _clean_value(value) for name, mark, value in pairs)


def _holds_value(text: str) -> bool:
    return _SECRET_VALUE.search(unquote(text)) is not None


def _clean_value(value: str) -> str:
    """Clean a URL inside a URL, as servers of tiles take it."""
    given = unquote(value)
    clean = clean_href(given)
    return value if clean == given else quote(clean, safe="")


def redact(text: str) -> str:
    """Return a text with the values of secrets hidden.

    Hides users and passwords of URLs, parameters of URLs with secret names, and what is told as
    ``name=value``, as a header or as JSON under a name that is secret beyond doubt.
    """
    text = _USER.sub(rf"\1{HIDDEN}@", text)
    text = _SECRET_VALUE.sub(HIDDEN, text)
    text = _PAIR.sub(_hide_pair, text)
    text = _QUOTED_PAIR.sub(_hide_named, text)
    return _HEADER.sub(_hide_header, text)


def _hide_pair(pair: re.Match[str]) -> str:
    """Hide what is behind the first secret name of ``name=value``, or ``--option=name=value``."""
    mark, parts = pair["mark"], [*pair["names"].split("="), pair["value"]]
    for number, (name, value) in enumerate(pairwise(parts), start=1):
        if mark in ("?", "&", ";", "#"):
            is_secret = is_secret_name(name)
        else:
            # What refers to a secret may be told: a variable of the shell, or a path of a file.
            is_path = _FILE_NAME.search(name) is not None and "/" in value
            is_secret = _is_strong(_join_words(name)) and not value.startswith("$") and not is_path
        if is_secret:
            return f"{mark}{'='.join(parts[:number])}={HIDDEN}"
    return pair[0]


def _hide_named(pair: re.Match[str]) -> str:
    is_secret = _is_strong(_join_words(pair["name"]))
    return f"{pair['name']}: {HIDDEN}" if is_secret else pair[0]


def _hide_header(pair: re.Match[str]) -> str:
    # Other words with a colon are the fields of recipes, and sentences.
    is_header = "-" in pair["name"] or pair["name"].lower() in ("authorization", "cookie")
    return _hide_named(pair) if is_header else pair[0]


def holds_secret(text: str) -> bool:
    """Tell whether :func:`redact` would hide a part of a text."""
    return redact(text) != text
