"""What one value must look like, beyond its type: URLs, header names, model names and the like.

Each rule takes the text as written (after expansion) and answers what is wrong with it and how to mend it, or ``None``.
``schema`` hangs the rules on the fields.

The rule that must not be broken: an answer never repeats the value. It may be a key, or hold one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

Rule = Callable[[str], str | None]

MAX_NAME_CHARS = 256
"""Longest provider or model name: they become metric labels and log fields."""

# RFC 9110 section 7.6.1, plus what the transport itself writes (host, framing, Expect).
HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
OURS = frozenset(("content-length", "host", "expect"))

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HOST = re.compile(r"[0-9A-Za-z._:%\[\]-]+\Z")
_URL_HOST = re.compile(r"[0-9A-Za-z._:%\u00a1-\uffff-]+\Z")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+\Z")
_REGION = re.compile(r"[0-9A-Za-z-]+\Z")


def name(value: str) -> str | None:
    """A name that becomes a metric label and a log field (Q40)."""
    if _CONTROL.search(value) or value != value.strip():
        return "must not contain control characters or begin or end with white space"
    if len(value) > MAX_NAME_CHARS:
        return f"is longer than {MAX_NAME_CHARS} characters; shorten it"
    return None


def provider_name(value: str) -> str | None:
    """A name that also goes into a response header (``x-slipstream-provider``), which has no room for more than
    ASCII.
    """
    if not value.isascii():
        return "must be plain ASCII: it goes into a response header"
    return name(value)


def model(value: str) -> str | None:
    """A public or upstream model name: it reaches URLs, headers and labels."""
    return name(value)


def model_pattern(value: str) -> str | None:
    """An entry of ``models``: a name, or a prefix that ends in ``*``."""
    if "*" in value[:-1]:
        return "'*' is allowed only as the last character (a prefix pattern such as 'gpt-4*')"
    return name(value)


def url(value: str) -> str | None:
    """An API root: what the OpenAI SDK calls ``base_url``."""
    if re.search(r"[\s\x00-\x1f\x7f\\]", value):
        return "is not a URL: it contains white space, a control character or a backslash; write e.g. https://host/v1"
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "is not a valid URL (host or port cannot be read); write e.g. https://host:8443/v1"
    if parts.scheme not in ("http", "https"):
        return "must begin with http:// or https://; write e.g. https://host/v1"
    if not host or not _URL_HOST.match(host) or port == 0:
        return "has no valid host and port; write e.g. https://host:8443/v1"
    if "@" in parts.netloc:
        return "must not hold a user name or password; use api_key or headers"
    if "?" in value or "#" in value:
        return (
            "must not have a query or a fragment; end it with the path (api_version and headers have keys of their own)"
        )
    return None


def host(value: str) -> str | None:
    """Where to listen."""
    return None if _HOST.match(value) else "must be an address or a host name, without scheme, path or white space"


def header_name(value: str) -> str | None:
    """An extra request header; never one that steers the connection or the framing."""
    if not _TOKEN.match(value):
        return "is not a header name: letters, digits and '-' only"
    lower = value.lower()
    if lower in HOP_BY_HOP:
        return "is a hop-by-hop header, which belongs to one connection and is never configured; remove it"
    if lower in OURS:
        return "is written by the gateway itself; remove it"
    return None


def header_value(value: str) -> str | None:
    """A header value or a key that goes into one: no way to begin another header (Q40)."""
    if re.search(r"[\r\n\x00]", value):
        return "contains a line break or NUL, which a header cannot hold (often the last newline of a secret's file)"
    if _CONTROL.search(value.replace("\t", " ")):
        return "contains a control character, which a header cannot hold"
    if value != value.strip():
        return "begins or ends with white space; remove it"
    if not value.isascii():
        return "contains characters outside ASCII, which a header cannot hold; encode it first"
    return None


def origin(value: str) -> str | None:
    """A CORS origin as browsers send it (RFC 6454), or ``*``."""
    if value in ("*", "null") or _ORIGIN.match(value):
        return None
    return "is not an origin; write scheme://host[:port] in small letters without a path, or '*'"


def region(value: str) -> str | None:
    """A cloud region or an API version: it becomes part of a host name or a URL."""
    return None if _REGION.match(value) else "may hold letters, digits and '-' only"


def path(value: str) -> str | None:
    """A file or directory name."""
    return "contains NUL or a line break" if re.search(r"[\x00\r\n]", value) else None


def nearest(word: str, known: list[str]) -> str:
    """``, did you mean 'x'?`` or the list of what there is."""
    import difflib

    close = difflib.get_close_matches(word[:64].lower(), known, 1, 0.6)
    return f", did you mean '{close[0]}'?" if close else f"; known here: {', '.join(known)}"
