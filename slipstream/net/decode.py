"""Undoing a content coding that a provider used although we asked for none (RFC 9110 8.4), within bounds (S-23,
S-24).
"""

from __future__ import annotations

import zlib
from importlib import import_module
from typing import Any, Protocol

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
    made = _OPTIONAL.get(name)
    if made is None:
        return Refusing()
    module, kind = made
    try:
        return kind(import_module(module))
    except ImportError:  # the extra "codings" is not installed
        return Refusing()


class Refusing:
    """For a coding that cannot be undone here."""

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


class _Bounded:
    """A coding by a library that may be there: input goes in by slices, output comes out by pieces."""

    __slots__ = ("_in", "_left", "_out")

    def __init__(self) -> None:
        self._left = b""
        self._in = self._out = 0

    @property
    def pending(self) -> bool:
        return bool(self._left) or self._more()

    def decode(self, data: bytes) -> bytes:
        self._in += len(data)
        self._left += data
        made: list[bytes] = []
        size = 0
        try:
            while size < PIECE_BYTES and (self._left or self._more()):
                part, self._left = self._step(self._left)
                made.append(part)
                size += len(part)
        except MalformedReply:
            raise
        except Exception:  # each library has errors of its own
            raise MalformedReply("the provider's answer could not be decompressed") from None
        self._out += size
        if self._out > max(FREE_BYTES, self._in * MAX_RATIO):
            raise MalformedReply("the provider's answer is too large when decompressed")
        return b"".join(made)

    def finish(self) -> None:
        if self._in and not self._ended():
            raise MalformedReply("the provider's compressed answer is incomplete")

    def _more(self) -> bool:
        """Whether there is output without further input."""
        return False

    def _ended(self) -> bool:
        raise AssertionError("of the coding")

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        """Some output, and the input that is left."""
        raise AssertionError("of the coding")


class _Brotli(_Bounded):
    """RFC 7932, by the ``brotli`` package (1.2 or later: it can stop at a size)."""

    __slots__ = ("_z",)

    def __init__(self, brotli: Any) -> None:
        super().__init__()
        self._z = brotli.Decompressor()

    def _more(self) -> bool:
        return not self._z.can_accept_more_data() and not self._z.is_finished()

    def _ended(self) -> bool:
        return bool(self._z.is_finished())

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        if self._z.is_finished():
            raise MalformedReply("the provider's compressed answer goes on behind its end")
        if self._more():
            return self._z.process(b"", output_buffer_limit=PIECE_BYTES), data
        return self._z.process(data, output_buffer_limit=PIECE_BYTES), b""


ZSTD_SLICE = 64
"""Of the input: a block of it stands for 128 KiB at most and takes 3 bytes at least (RFC 8878 3.1.1.2)."""
ZSTD_WINDOW = 8 * 1024 * 1024
"""RFC 9659: more must not be needed for HTTP."""


class _Zstd(_Bounded):
    """RFC 8878, by the ``zstandard`` package."""

    __slots__ = ("_z",)

    def __init__(self, zstandard: Any) -> None:
        super().__init__()
        self._z = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()

    def _ended(self) -> bool:
        return bool(self._z.eof)

    def _step(self, data: bytes) -> tuple[bytes, bytes]:
        if self._z.eof:
            raise MalformedReply("the provider's compressed answer goes on behind its end")
        out = self._z.decompress(data[:ZSTD_SLICE])
        if self._z.unused_data:
            raise MalformedReply("the provider's compressed answer goes on behind its end")
        return out, data[ZSTD_SLICE:]


_OPTIONAL = {b"br": ("brotli", _Brotli), b"zstd": ("zstandard", _Zstd)}
