"""Undoing a content coding that a provider used although we asked for none (RFC 9110 8.4), within bounds (S-23,
S-24).
"""

from __future__ import annotations

import zlib
from typing import Protocol

from ..errors import MalformedReply

MAX_RATIO = 100
FREE_BYTES = 1024 * 1024
"""Output that is never counted against the ratio."""
PIECE_BYTES = 256 * 1024
"""Most that is made at once, so that a bomb can neither fill the memory nor hold up the loop."""


class Decoder(Protocol):
    """One coding of one body. Both methods raise ``MalformedReply``."""

    @property
    def pending(self) -> bool:
        """Input is left: call ``decode(b"")`` for more."""

    def decode(self, data: bytes) -> bytes:
        """Take the next piece of the body, give the next piece of what it stands for."""

    def finish(self) -> None:
        """The body has ended."""


def decoder_for(encoding: bytes) -> Decoder | None:
    """The decoder for a ``Content-Encoding`` value; ``None`` for identity. Raises nothing: a coding we do not know
    gives a decoder that refuses."""
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"x-gzip", b"deflate"):
        return _Inflate()
    return _Refuse()


class _Refuse:
    __slots__ = ()
    pending = False

    def decode(self, data: bytes) -> bytes:
        raise MalformedReply("the provider used a content-encoding that was not asked for")

    def finish(self) -> None:
        pass


class _Inflate:
    """gzip or zlib, whichever it turns out to be: ``deflate`` is either in the wild. An empty body is empty."""

    __slots__ = ("_in", "_out", "_z")

    def __init__(self) -> None:
        self._z = zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._in = self._out = 0

    @property
    def pending(self) -> bool:
        return bool(self._z.unconsumed_tail)

    def decode(self, data: bytes) -> bytes:
        z = self._z
        self._in += len(data)
        if z.eof and data:
            raise MalformedReply("the provider's compressed answer goes on behind its end")
        try:
            out = z.decompress(z.unconsumed_tail + data if z.unconsumed_tail else data, PIECE_BYTES)
        except zlib.error:
            raise MalformedReply("the provider's answer could not be decompressed") from None
        self._out += len(out)
        if z.unused_data:
            raise MalformedReply("the provider's compressed answer goes on behind its end")
        if self._out > max(FREE_BYTES, self._in * MAX_RATIO):
            raise MalformedReply("the provider's answer is too large when decompressed")
        return out

    def finish(self) -> None:
        if self._in and not self._z.eof:
            raise MalformedReply("the provider's compressed answer is incomplete")
