"""Who may call: one key, compared in constant time, the same answer for every way of being wrong (Q37)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from hashlib import sha256

from ..errors import ClientError
from ..types import Secret

MASTER = "master"
ANYBODY = "none"
MISSING, SCHEME, WRONG = "missing", "scheme", "wrong"
REASONS = (MISSING, SCHEME, WRONG)
"""What can be wrong with a key: there is none, it is no bearer token (RFC 6750 2.1), it is another one. The client is
never told which."""
GOOD_MAX = 64
"""Spellings of good fields that are remembered: the scheme may be written in any case, with any spaces."""


class Authenticator:
    """Checks ``Authorization: Bearer`` or ``X-API-Key`` against the master key; without one everybody may call.
    ``on_failure`` is told of each refusal, with one of ``REASONS``.

    Digests of equal length are compared, so neither the key's length nor its first bytes can be timed.
    """

    __slots__ = ("_digest", "_good", "_on_failure")

    def __init__(self, master_key: Secret | None, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._digest = sha256(master_key.reveal().encode()).digest() if master_key else None
        self._good: dict[bytes, str] = {}
        """Whole ``Authorization`` fields that were found good, by the name of their key. A look-up compares the fields'
        keyed hashes (PEP 456); bytes are compared only with an equal one, so nothing of a wrong key can be timed."""

    def check(self, headers: Mapping[str, str]) -> str:
        """The name under which the request is counted (contracts C: ``api_key_name``). Raises ``ClientError`` (401)."""
        authorization, api_key = headers.get("Authorization"), headers.get("X-API-Key")
        return self.check_bytes(
            None if authorization is None else authorization.encode("utf-8", "surrogateescape"),
            None if api_key is None else api_key.encode("utf-8", "surrogateescape"),
        )

    def check_bytes(self, authorization: bytes | None, api_key: bytes | None) -> str:
        """The same for the values of the two fields as they came."""
        if self._digest is None:
            return ANYBODY
        if authorization is not None and (known := self._good.get(authorization)) is not None:
            return known
        token = api_key if authorization is None else _bearer(authorization)
        if token is not None and hmac.compare_digest(sha256(token).digest(), self._digest):
            if authorization is not None and len(self._good) < GOOD_MAX:
                self._good[authorization] = MASTER
            return MASTER
        self._on_failure(WRONG if token is not None else MISSING if authorization is None else SCHEME)
        raise ClientError(
            "Incorrect API key. Send the gateway's key as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _bearer(value: bytes) -> bytes | None:
    """The token of ``Authorization: Bearer`` (RFC 6750 2.1)."""
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None
