"""AWS Signature Version 4 (General Reference, "Create a signed AWS API request"), as a function.

Bedrock's paths hold model ids with escapes (``%3A``, ARNs with ``%2F``). Of every service but S3 the canonical path is
the path that is sent, escaped once more; the oracle of the tests is botocore's signer.

The rule that must not be broken: what is signed is what is sent. The URL is taken as it goes out, and only fields that
nobody changes on the way are signed: ``Host``, ``X-Amz-*`` and those that the caller names.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from hmac import digest
from urllib.parse import quote, urlsplit

ALGORITHM = "AWS4-HMAC-SHA256"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    access_key: str,
    secret_key: str,
    token: str | None,
    region: str,
    service: str,
    now: float,
) -> dict[str, str]:
    """The fields to send beside ``headers``: ``X-Amz-Date``, ``X-Amz-Security-Token``, ``Authorization``.

    ``headers`` are further fields to sign (they must be sent as they are); ``now`` is Unix seconds.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    added = {"X-Amz-Date": stamp}
    if token:
        added["X-Amz-Security-Token"] = token
    host, path, query = _place(url)
    signed = _canonical_headers({**headers, **added, "Host": host})
    names = ";".join(name for name, _ in signed)
    fields = "".join(f"{name}:{value}\n" for name, value in signed)
    request = "\n".join([method.upper(), path, query, fields, names, sha256(body).hexdigest()])
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = "\n".join([ALGORITHM, stamp, scope, sha256(request.encode()).hexdigest()])
    signature = digest(_key(secret_key, stamp[:8], region, service), text.encode(), "sha256").hex()
    added["Authorization"] = (
        f"{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return added


@lru_cache(maxsize=64)
def _key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The signing key of a day; four rounds of HMAC that need not be made for each request."""
    key = b"AWS4" + secret_key.encode()
    for part in (date, region, service, "aws4_request"):
        key = digest(key, part.encode(), "sha256")
    return key


def _place(url: str) -> tuple[str, str, str]:
    """Host field, canonical path and canonical query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:  # IPv6
        host = f"[{host}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS.get(parts.scheme):
        host = f"{host}:{parts.port}"
    pairs = sorted(pair.partition("=")[::2] for pair in parts.query.split("&")) if parts.query else []
    return host, _canonical_path(parts.path), "&".join(f"{name}={value}" for name, value in pairs)


def _canonical_path(path: str) -> str:
    """Without ``.``, ``..`` and empty segments, and escaped (again: the URL holds escapes already)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    if not kept:
        return "/"
    return quote("/" + "/".join(kept) + ("/" if path.endswith("/") else ""), safe="/-~")


def _canonical_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Small names in order, values with single blanks."""
    return sorted((name.lower().strip(), " ".join(value.split())) for name, value in headers.items())
