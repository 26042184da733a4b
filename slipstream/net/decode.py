"""Undoing a content coding that a provider used although we asked for none (RFC 9110 8.4), within bounds (S-23,
S-24).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from ..errors import MalformedReply

MAX_RATIO = 100
FREE_BYTES = 1024 * 1024
"""Output that is never counted against the ratio."""

Decode = Callable[[bytes, bool], bytes]
"""Take the next piece; ``True`` says that it was the last. Raises ``MalformedReply``."""


def decoder_for(encoding: bytes) -> Decode | None:
    """The decoder for a ``Content-Encoding`` value; ``None`` for identity. Raises nothing: a coding we do not know
    gives a decoder that refuses."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"x-gzip", b"deflate"):
        return _Inflate(zlib.MAX_WBITS | 32)
    return _refuse


def _refuse(data: bytes, last: bool) -> bytes:
    raise MalformedReply("the provider used a content-encoding that was not asked for")


class _Inflate:
    __slots__ = ("_in", "_out", "_z")

    def __init__(self, wbits: int) -> None:
        self._z = zlib.decompressobj(wbits)
        self._in = self._out = 0

    def __call__(self, data: bytes, last: bool) -> bytes:
        self._in += len(data)
        room = max(FREE_BYTES, self._in * MAX_RATIO) - self._out
        try:
            out = self._z.decompress(data, room + 1)
        except zlib.error:
            raise MalformedReply("the provider's answer could not be decompressed") from None
        self._out += len(out)
        if len(out) > room:
            raise MalformedReply("the provider's answer is too large when decompressed")
        if last and not self._z.eof:
            raise MalformedReply("the provider's compressed answer is incomplete")
        return out
