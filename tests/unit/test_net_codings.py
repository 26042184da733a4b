"""brotli and zstd, from providers and from clients (R28, S-23, S-24): whole, in any cuts, broken, and as bombs."""

from __future__ import annotations

import sys

import brotli
import pytest
import zstandard

from slipstream.errors import ClientError, MalformedReply
from slipstream.net.decode import FREE_BYTES, PIECE_BYTES, Refusing, decoder_for
from slipstream.server.inflate import inflate

TEXT = b'{"choices": [{"message": {"content": "' + b"Hello there. " * 3000 + b'"}}]}'
PACK = {b"br": brotli.compress, b"zstd": zstandard.compress}
codings = pytest.mark.parametrize("coding", list(PACK), ids=bytes.decode)


def undo(coding: bytes, *pieces: bytes) -> bytes:
    decoder = decoder_for(coding)
    assert decoder is not None
    out = []
    for piece in pieces:
        out.append(decoder.decode(piece))
        while decoder.pending:
            out.append(decoder.decode(b""))
            assert len(out[-1]) <= PIECE_BYTES + 24 * 128 * 1024
    decoder.finish()
    return b"".join(out)


@codings
def test_any_cuts(coding: bytes) -> None:
    packed = PACK[coding](TEXT)
    assert undo(coding, packed) == TEXT
    assert undo(coding, *(packed[i : i + 1] for i in range(len(packed)))) == TEXT
    assert undo(coding, packed[:7], packed[7:50], packed[50:]) == TEXT


@codings
def test_truncated_or_followed_by_more(coding: bytes) -> None:
    packed = PACK[coding](TEXT)
    for end in (1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(MalformedReply):
            undo(coding, packed[:end])
    with pytest.raises(MalformedReply):
        undo(coding, packed, b"more")
    with pytest.raises(MalformedReply):
        undo(coding, b"\xff" * 40)


@codings
def test_a_bomb_is_refused_early(coding: bytes) -> None:
    size = bytes(64 << 20)
    bomb = brotli.compress(size, quality=5) if coding == b"br" else zstandard.compress(size)
    made: list[int] = []

    def unpack() -> None:
        decoder = decoder_for(coding)
        assert decoder is not None
        made.append(len(decoder.decode(bomb)))
        while decoder.pending:
            made.append(len(decoder.decode(b"")))

    with pytest.raises(MalformedReply, match="too large"):
        unpack()
    assert sum(made) <= FREE_BYTES + 100 * len(bomb) + PIECE_BYTES


@codings
def test_request_bodies(coding: bytes) -> None:  # R27, R28
    name, packed = coding.decode(), PACK[coding](TEXT)
    assert inflate(packed, name, 1 << 20) == TEXT
    for raw, limit, status in ((packed, 1000, 413), (packed[:-3], 1 << 20, 400), (b"\xff" * 40, 1 << 20, 400)):
        with pytest.raises(ClientError) as refused:
            inflate(raw, name, limit)
        assert refused.value.status == status


@codings
def test_without_the_library(coding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {b"br": "brotli", b"zstd": "zstandard"}[coding], None)
    decoder = decoder_for(coding)
    assert isinstance(decoder, Refusing)
    with pytest.raises(MalformedReply, match="not asked for"):
        decoder.decode(b"x")
    with pytest.raises(ClientError) as refused:
        inflate(b"x", coding.decode(), 1000)
    assert refused.value.status == 415
