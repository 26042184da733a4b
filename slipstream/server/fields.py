"""What both listeners ask of the fields of a head: the id of the request, and whether its body may be JSON."""

from __future__ import annotations

import os
import re
import secrets

from ..errors import ClientError

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_JSON_TYPES = (b"application/json", b"text/json")


def check_media_type(value: bytes | None) -> None:
    """Only JSON (or nothing said); anything else is refused, which also forces browsers to ask first (CORS
    preflight).
    """
    if value is None or value == b"application/json":
        return
    media = value.partition(b";")[0].strip().lower()
    if media in _JSON_TYPES or (media.startswith(b"application/") and media.endswith(b"+json")):
        return
    raise ClientError(
        "The body must be JSON: send 'Content-Type: application/json'.", status=415, code="unsupported_media_type"
    )


def choose_request_id(given: bytes | None) -> str:
    """The client's ``X-Request-ID`` if it is a short plain token, else a new one: unique, not secret."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    _ids.count += 1
    return f"{_ids.prefix}{_ids.count:08x}"


class _Ids:
    """Request ids: a random prefix for each process and a counter."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.prefix = f"req_{secrets.token_hex(8)}"
        self.count = 0


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.renew)
