"""The native transport: requests to one provider over pooled connections of our own.

A request that dies on a reused connection before any byte of an answer is sent once more (R40): the provider closed the
connection while it was idle. Once a byte of an answer came, it is never sent again. What happens on a connection is in
``connection.py``, which connection it is in ``pool.py``, how one is made in ``connect.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import TransportError
from .connect import Connector
from .pool import Pool
from .upstream import SEND_S, UpstreamReply, UpstreamRequest

_SAFE = "/%:@!$&'()*+,;=~-._?"


class NativeTransport:
    """The transport of one provider."""

    def __init__(
        self,
        *,
        verify_ssl: bool = True,
        ca_file: str | None = None,
        max_connections: int = 1024,
        send_s: float = SEND_S,
    ) -> None:
        self._verify = verify_ssl
        self._ca_file = ca_file
        self._limit = max_connections
        self._send_s = send_s
        self._pools: dict[tuple[str, int, bool], Pool] = {}
        self._stats = dict.fromkeys(
            ("requests", "connections_made", "connections_reused", "replays", "waits", "wait_us"), 0
        )

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[Any, Any]:
        """``(pool, (head of a POST up to the length of its body, whole head of a GET))``."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        port = parts.port or (443 if tls else 80)
        pool = self._pool(host, port, tls)
        name = f"[{host}]" if ":" in host else host
        authority = name if parts.port is None else f"{name}:{port}"
        path = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
        lines = [f" {pool.connector.target(path)} HTTP/1.1", f"Host: {authority}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **pool.connector.headers()}.items()]
        text = "\r\n".join(lines).encode("latin-1")
        return pool, (b"POST" + text + b"\r\nContent-Length: ", b"GET" + text + b"\r\n\r\n")

    def send(self, request: UpstreamRequest) -> Coroutine[Any, Any, UpstreamReply]:
        """POST ``request``."""
        body = request.body
        head = b"%b%d\r\n\r\n" % (request.headers[0], len(body))
        return self._exchange(request.url, head, body, request.connect_s)

    def get(self, url: Any, headers: Any, *, connect_s: float) -> Coroutine[Any, Any, UpstreamReply]:
        """GET."""
        return self._exchange(url, headers[1], b"", connect_s)

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def stats(self) -> Mapping[str, int]:
        return {**self._stats, "connections_open": sum(p.open for p in self._pools.values())}

    async def _exchange(self, pool: Pool, head: bytes, body: bytes, connect_s: float) -> UpstreamReply:
        self._stats["requests"] += 1
        conn = pool.take() or await pool.connect(connect_s)
        answer = conn.send(head, body)
        try:
            return await answer
        except asyncio.CancelledError:
            conn.forsake(answer)  # the client is gone or a limit passed: the provider must know at once (R1)
            raise
        except TransportError:
            if not conn.reused or conn.reader.started:
                raise
        self._stats["replays"] += 1
        conn = await pool.connect(connect_s)
        answer = conn.send(head, body)
        try:
            return await answer
        except asyncio.CancelledError:
            conn.forsake(answer)
            raise

    def _pool(self, host: str, port: int, tls: bool) -> Pool:
        key = host, port, tls
        if key not in self._pools:
            connector = Connector(host, port, tls, verify=self._verify, ca_file=self._ca_file)
            self._pools[key] = Pool(connector, self._limit, self._stats, self._send_s)
        return self._pools[key]
