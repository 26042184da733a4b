"""How much of what was written the peer has still to take."""

from __future__ import annotations

import asyncio
import socket
import struct

_INFO_BYTES = 148
_TCP_INFO = struct.Struct("=24xI92xQ16xI")
"""Of ``struct tcp_info`` (linux/tcp.h): ``tcpi_unacked``, ``tcpi_bytes_acked``, ``tcpi_notsent_bytes``."""


def waiting(transport: asyncio.Transport) -> int:
    """0 if the peer has taken all, as far as can be known; else a number that changes as soon as it takes more.

    Of what a TLS connection has not sent most is not in its own buffer (uvloop encrypts it and puts it into that of the
    transport below, which nobody can see), so there the kernel is asked; where it has no ``TCP_INFO`` the own buffer is
    all that is known.
    """
    size = transport.get_write_buffer_size()
    if transport.get_extra_info("sslcontext") is None:
        return size
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return size
    try:
        info = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, option, _INFO_BYTES)
        unacked, acked, unsent = _TCP_INFO.unpack(info)
    except (OSError, struct.error):
        return size
    return 1 + acked if size or unacked or unsent else 0
