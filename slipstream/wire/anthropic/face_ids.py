"""Ids of tool calls that carry a signature along.

Gemini signs its calls and wants the signature back with the next turn (PROTOCOLS.md 2.4). A Messages client repeats
nothing of a ``tool_use`` block but its id, name and input, so the signature travels in the id, behind a mark, in the
characters that ids may have (``^[a-zA-Z0-9_-]+$``); it is taken out again when the id comes back. Other providers see
the short id.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from ..canonical import Json, make_id

MARK = "__sig_"
MAX_SIGNATURE_CHARS = 16 * 1024
"""A longer signature is left out: the client sends it twice a turn, with the call and with its result."""


def packed_id(call: Json) -> str:
    """The id for the client of a canonical tool call."""
    identity = call.get("id")
    if not isinstance(identity, str) or not identity:
        identity = make_id("toolu_")
    signature = _signature(call)
    if not signature or len(signature) > MAX_SIGNATURE_CHARS or MARK in identity:
        return identity
    return identity + MARK + urlsafe_b64encode(signature.encode("utf-8", "replace")).rstrip(b"=").decode()


def unpacked_id(identity: str) -> tuple[str, str | None]:
    """The provider's id and the signature in an id that comes back; anything else is an id without one."""
    short, mark, packed = identity.partition(MARK)
    if not mark or not short:
        return identity, None
    try:
        signature = urlsafe_b64decode(packed + "=" * (-len(packed) % 4)).decode()
    except ValueError:
        return identity, None
    return (short, signature) if signature else (identity, None)


def signed(call: Json, signature: str | None) -> Json:
    """``call`` with its signature where canonical calls have it."""
    if signature is not None:
        call["extra_content"] = {"google": {"thought_signature": signature}}
    return call


def _signature(call: Json) -> str | None:
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) else None
