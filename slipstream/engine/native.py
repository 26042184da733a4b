"""Answers whose client and provider speak the same dialect: they are passed on as the bytes that came, and read on the
side."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from .._fast import ReplyScan
from ..types import Endpoint
from ..wire.openai_stream import StreamTap, check_reply, reply_usage
from ..wire.request import Call
from ..wire.usage import Usage
from .translate import Tap

LAST_OPENAI = Endpoint.EMBEDDINGS
"""Chat, completions and embeddings come first: they have one form of reply."""


def native_tap(call: Call, provider: str) -> Tap:
    """The reader on the side of a stream that is passed on as it is."""
    if call.endpoint is Endpoint.MESSAGES:
        from ..wire.anthropic.tap import MessagesTap

        return MessagesTap(provider)
    if call.endpoint is Endpoint.RESPONSES:
        from ..wire.responses.tap import ResponsesTap

        return ResponsesTap(provider)
    return StreamTap(provider=provider, keep_usage=call.wants_usage)


Checked = ReplyScan | Usage | None
"""What ``native_usage`` needs of a checked answer."""


def check_native(call: Call, body: bytes, provider: str) -> Checked:
    """Check a whole answer that is passed on as it is. Raises ``UpstreamError`` (R66)."""
    if call.endpoint <= LAST_OPENAI:
        return check_reply(call.endpoint, body, provider)
    return _check_of(call.endpoint)(body, provider)


def native_usage(checked: Checked, body: bytes) -> Usage | None:
    """The usage in an answer that was found good; read when the client has it."""
    return reply_usage(checked, body) if isinstance(checked, ReplyScan) else checked


@cache
def _check_of(endpoint: Endpoint) -> Callable[[bytes, str], Usage | None]:
    """Imported when it is first needed, and kept: an import statement costs a microsecond each time."""
    if endpoint is Endpoint.RESPONSES:
        from ..wire.responses.tap import check_response

        return check_response
    if endpoint is Endpoint.COUNT_TOKENS:
        from ..wire.anthropic.tap import check_count

        return check_count
    from ..wire.anthropic.tap import check_message

    return check_message
