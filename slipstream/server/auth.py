"""Who may call: one key, compared in constant time, the same answer for every way of being wrong (Q37)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256

from ..errors import ClientError
from ..types import Secret

MASTER = "master"
ANYBODY = "none"


class Authenticator:
    """Checks ``Authorization: Bearer`` or ``X-API-Key`` against the master key; without one everybody may call.

    Digests of equal length are compared, so neither the key's length nor its first bytes can be timed.
    """

    __slots__ = ("_digest",)

    def __init__(self, master_key: Secret | None) -> None:
        self._digest = sha256(master_key.reveal().encode()).digest() if master_key else None

    def check(self, headers: Mapping[str, str]) -> str:
        """The name under which the request is counted (contracts C: ``api_key_name``). Raises ``ClientError`` (401)."""
        if self._digest is None:
            return ANYBODY
        token = _token(headers)
        if token is not None and hmac.compare_digest(sha256(token).digest(), self._digest):
            return MASTER
        raise ClientError(
            "Incorrect API key. Send the gateway's key as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'.",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _token(headers: Mapping[str, str]) -> bytes | None:
    value = headers.get("Authorization")
    if value is not None:
        scheme, _, token = value.partition(" ")
        return token.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else None
    value = headers.get("X-API-Key")
    return value.encode("utf-8", "surrogateescape") if value is not None else None
