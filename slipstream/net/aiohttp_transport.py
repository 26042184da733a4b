"""The reference transport: aiohttp's client behind the ``Upstream`` face.

Correct before fast; the native transport must agree with it. One pool per process, connections kept alive, at most
``max_connections`` per origin, TLS verified unless the configuration says otherwise. Redirects are never followed: a
key would go along (Q34). ``HTTP(S)_PROXY`` and ``NO_PROXY`` are read once, when a target is prepared.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter, ResolveResult
from multidict import CIMultiDict
from yarl import URL

from ..errors import ConnectFailed, MalformedReply, TransportError, UpstreamTimeout
from .decode import decoder_for
from .upstream import SEND_S, UpstreamReply, UpstreamRequest

KEEPALIVE_S = 15.0
"""Idle connections are dropped below any provider's own limit (R39, Q20)."""
READ_BUFFER_BYTES = 64 * 1024
MAX_HEADER_BYTES = 64 * 1024
LARGE_BODY_BYTES = 1024 * 1024
"""Larger bodies are written in pieces, with turns of the loop between them (R23); aiohttp warns of them otherwise."""
PIECE_BYTES = 256 * 1024
_lookup_s: ContextVar[float] = ContextVar("lookup_s")
"""The limit of the request that looks a name up."""
_SKIP_AUTO = frozenset({"User-Agent", "Accept-Encoding", "Accept", "Content-Type"})


class AiohttpTransport:
    """One ``ClientSession`` for all targets of the process."""

    def __init__(
        self,
        *,
        verify_ssl: bool = True,
        ca_file: str | None = None,
        max_per_origin: int = 1024,
        send_s: float = SEND_S,
    ) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(self._on_created)
        trace.on_connection_reuseconn.append(self._on_reused)
        trace.on_connection_queued_start.append(self._on_queued)
        trace.on_connection_queued_end.append(self._on_turn)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=max_per_origin,
                keepalive_timeout=KEEPALIVE_S,
                ssl=_ssl_context(verify_ssl, ca_file),
                ttl_dns_cache=30,
                resolver=_Resolver(),
            ),
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=_SKIP_AUTO,
            auto_decompress=False,  # aiohttp's has no limit on what a body may become (S-23)
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[trace],
            raise_for_status=False,
            trust_env=False,
        )
        self._send_s = send_s
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self._requests = self._made = self._reused = self._replays = self._waits = 0
        self._waited_s = 0.0

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[Any, Any]:
        parsed = URL(url, encoded=True)  # a signature covers the path as it is written
        return (parsed, _proxy_for(parsed)), CIMultiDict(headers)

    async def send(self, request: UpstreamRequest) -> UpstreamReply:
        """POST ``request``. A connection that was reused and died before any byte of the answer is replayed once on
        another one (R40): the provider closed it while it was idle, so it cannot have seen the request whole."""
        self._requests += 1
        trace = SimpleNamespace(reused=False)
        try:
            return await self._request("POST", request.url, request.headers, request.body, request.connect_s, trace)
        except TransportError:
            if not trace.reused:
                raise
        self._replays += 1
        return await self._request("POST", request.url, request.headers, request.body, request.connect_s, trace)

    async def get(self, url: Any, headers: Any, *, connect_s: float) -> UpstreamReply:
        return await self._request("GET", url, headers, None, connect_s, SimpleNamespace(reused=False))

    async def close(self) -> None:
        await self._session.close()

    def stats(self) -> Mapping[str, int]:
        return {
            "requests": self._requests,
            "connections_made": self._made,
            "connections_reused": self._reused,
            "replays": self._replays,
            "waits": self._waits,
            "wait_us": int(self._waited_s * 1e6),
        }

    async def _request(
        self, method: str, url: tuple[URL, URL | None], headers: Any, body: bytes | None, connect_s: float, trace: Any
    ) -> UpstreamReply:
        target, proxy = url
        trace.reused = False
        _lookup_s.set(connect_s)
        try:
            response = await self._session.request(
                method,
                target,
                data=_Large(body, self._send_s) if body is not None and len(body) > LARGE_BODY_BYTES else body,
                headers=headers,
                allow_redirects=False,
                proxy=proxy,
                timeout=self._timeout(connect_s),
                trace_request_ctx=trace,
            )
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamTimeout("connect", connect_s) from None
        except (aiohttp.ClientSSLError, ssl.SSLError):
            raise ConnectFailed("the TLS connection to the provider could not be made", lasts=True) from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError):
            raise ConnectFailed("no connection to the provider could be made") from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, ConnectionError):
            raise TransportError("the provider closed the connection before it answered") from None
        except aiohttp.ClientResponseError:
            raise MalformedReply("the provider's answer is not valid HTTP") from None
        except aiohttp.ClientError as exc:
            if isinstance(exc.__cause__, UpstreamTimeout):  # of the body's writer
                raise exc.__cause__ from None
            raise ConnectFailed("no connection to the provider could be made") from None
        return _Reply(response)

    def _timeout(self, connect_s: float) -> aiohttp.ClientTimeout:
        made = self._timeouts.get(connect_s)
        if made is None:
            made = self._timeouts[connect_s] = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        return made

    async def _on_created(self, _session: object, _context: object, _params: object) -> None:
        self._made += 1

    async def _on_queued(self, _session: object, context: Any, _params: object) -> None:
        self._waits += 1
        context.queued_at = asyncio.get_running_loop().time()

    async def _on_turn(self, _session: object, context: Any, _params: object) -> None:
        self._waited_s += asyncio.get_running_loop().time() - context.queued_at

    async def _on_reused(self, _session: object, context: Any, _params: object) -> None:
        self._reused += 1
        if context.trace_request_ctx is not None:
            context.trace_request_ctx.reused = True


class _Resolver(aiohttp.ThreadedResolver):
    """The system's resolver, within the limit for connecting (S-43): aiohttp's does not hold for the lookup of a name.
    Who waits for a lookup that another request began has the rest of that one's time."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        async with asyncio.timeout(_lookup_s.get()):
            return await super().resolve(host, port, family)


class _Large(aiohttp.Payload):
    """A large body in pieces, without copying it (``io.BytesIO``, which aiohttp suggests, makes one)."""

    _value: bytes
    _autoclose = True

    def __init__(self, value: bytes, send_s: float) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)
        self._send_s = send_s

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        view = memoryview(self._value)
        for start in range(0, len(view), PIECE_BYTES):
            try:
                async with asyncio.timeout(self._send_s):
                    await writer.write(view[start : start + PIECE_BYTES])
            except TimeoutError:
                raise UpstreamTimeout("send", self._send_s) from None
            await asyncio.sleep(0)


_lingering: set[asyncio.Task[None]] = set()
"""The loop alone would not keep them."""


class _Reply:
    """``UpstreamReply`` over ``aiohttp.ClientResponse``."""

    __slots__ = ("_decoder", "_response", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self._decoder = decoder_for(response.headers.get("Content-Encoding", "").encode("latin-1", "replace"))

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    @property
    def complete(self) -> bool:
        return False

    def take(self) -> bytes:
        raise RuntimeError("this transport never has it all at once")

    async def chunk(self) -> bytes:
        decoder = self._decoder
        if decoder is None:
            return await self._piece()
        while True:
            if decoder.pending:
                await asyncio.sleep(0)
                data = decoder.decode(b"")
            elif piece := await self._piece():
                data = decoder.decode(piece)
            else:
                decoder.finish()
                return b""
            if data:
                return data

    async def _piece(self) -> bytes:
        """The next piece as it came."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError):
            raise TransportError from None

    def linger(self, seconds: float) -> None:
        task = asyncio.ensure_future(self._drain(seconds))
        _lingering.add(task)
        task.add_done_callback(_lingering.discard)

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while await self._response.content.readany():
                    pass
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            pass
        finally:
            self.close()

    def close(self) -> None:
        response = self._response
        if response.content.at_eof() and response.content.exception() is None:
            response.release()
        else:
            response.close()


def _ssl_context(verify: bool, ca_file: str | None) -> ssl.SSLContext | bool:
    """Never aiohttp's own (``True``): that may have been made without certificates (``server``)."""
    return ssl.create_default_context(cafile=ca_file) if verify else False


def _proxy_for(url: URL) -> URL | None:
    """The proxy that ``HTTP_PROXY``/``HTTPS_PROXY``/``NO_PROXY`` name for ``url``."""
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    proxy = urllib.request.getproxies().get(url.scheme)
    return URL(proxy) if proxy else None
