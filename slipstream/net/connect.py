"""Making connections: names to addresses, the race between address families, TLS with session reuse, proxies.

* Names are resolved at most every ``DNS_FRESH_S``; when resolving fails the last good answer serves for ``DNS_STALE_S``
  (Q21).
* Several addresses are tried as RFC 8305 says (happy eyeballs): families alternate, the next attempt starts when the
  one before failed or after ``RACE_DELAY_S``, the first that connects wins and the others are dropped.
* TLS sessions are resumed (RFC 8446 2.2): asyncio has no parameter for that, so our ``SSLContext`` hands the last
  session of a host to every new connection.
* ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``: https goes through ``CONNECT`` (RFC 9110 9.3.6), http in absolute
  form.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

DNS_FRESH_S = 30.0
DNS_STALE_S = 300.0
DNS_WAIT_S = 0.25
"""How long a known address is held back for a fresher one."""
RACE_DELAY_S = 0.25
"""RFC 8305 section 5 recommends 250 ms."""
MAX_PROXY_HEAD = 16 * 1024


class Abortable(asyncio.BaseProtocol):
    """What is raced for: the losers are dropped."""

    __slots__ = ()

    def abort(self) -> None: ...


P = TypeVar("P", bound=Abortable)
Address = tuple[int, str]
"""Address family and IP address."""


class ResumingContext(ssl.SSLContext):
    """A client context that offers the last session of each host again."""

    def __new__(cls) -> ResumingContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context._sessions = {}
        return context

    _sessions: dict[str, Any]

    def wrap_bio(  # type: ignore[override]
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | None = None,
        session: Any = None,
    ) -> ssl.SSLObject:
        if session is None and server_hostname is not None:
            session = self._sessions.get(server_hostname)
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)

    def remember(self, host: str, transport: asyncio.BaseTransport) -> None:
        """Keep the session of a connection that has received something (TLS 1.3 tickets come after the handshake)."""
        connection = transport.get_extra_info("ssl_object")
        session = getattr(connection, "session", None)
        if session is not None:
            self._sessions[host] = session


@lru_cache(maxsize=32)
def tls_context(verify: bool, ca_file: str | None) -> ResumingContext:
    """One context for all connections with the same demands: loading the trusted roots costs milliseconds and
    memory.
    """
    context = ResumingContext()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        context.load_verify_locations(cafile=ca_file)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Connector:
    """Makes connections to one origin, through a proxy if the environment names one."""

    def __init__(self, host: str, port: int, tls: bool, *, verify: bool, ca_file: str | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._verify = verify
        self._ca_file = ca_file
        self._proxy = proxy_for(host, "https" if tls else "http")
        self._known: list[Address] = []
        self._known_at = float("-inf")
        self._resolving: asyncio.Task[list[Address]] | None = None

    def target(self, path: str) -> str:
        """The request target: absolute-form through a proxy that is no tunnel (RFC 9112 3.2.2)."""
        if self._proxy is None or self._tls:
            return path
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{path}"

    def headers(self) -> Mapping[str, str]:
        """Fields that a proxy wants in every request."""
        return self._proxy.headers() if self._proxy is not None and not self._tls else {}

    async def connect(self, factory: Callable[[], P]) -> P:
        """A connected protocol. Raises ``OSError`` (``ssl.SSLError`` among them)."""
        context = tls_context(self._verify, self._ca_file) if self._tls else None
        proxy = self._proxy
        if proxy is None:
            return await self._race(self._host, self._port, factory, context)
        if not proxy.plain:
            raise ConnectionRefusedError("only http:// proxies are supported")
        if context is None:
            return await self._race(proxy.host, proxy.port, factory, None)
        tunnel = await self._race(proxy.host, proxy.port, _Tunnel, None)
        return await self._through(tunnel, factory, context)

    def close(self) -> None:
        if self._resolving is not None:
            self._resolving.cancel()

    def remember(self, transport: asyncio.BaseTransport) -> None:
        """A reply came over this connection: its TLS session can be used for the next."""
        if self._tls:
            tls_context(self._verify, self._ca_file).remember(self._host, transport)

    async def _race(self, host: str, port: int, factory: Callable[[], P], context: ssl.SSLContext | None) -> P:
        loop = asyncio.get_running_loop()

        async def one(address: Address) -> P:
            _, protocol = await loop.create_connection(
                factory, address[1], port, ssl=context, server_hostname=self._host if context is not None else None
            )
            return protocol

        addresses = await self._resolve(host, port)
        if len(addresses) == 1:
            return await one(addresses[0])
        waiting = list(reversed(addresses))
        running: set[asyncio.Task[P]] = set()
        error: BaseException = OSError("no address")
        try:
            while waiting or running:
                if waiting:
                    running.add(loop.create_task(one(waiting.pop())))
                done, _ = await asyncio.wait(
                    running, timeout=RACE_DELAY_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    running.discard(task)
                    failed = task.exception()
                    if failed is None:
                        running |= done - {task}
                        return task.result()
                    error = failed
            raise error
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_drop)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [(socket.AF_INET6 if literal.version == 6 else socket.AF_INET, host)]
        loop = asyncio.get_running_loop()
        age = loop.time() - self._known_at
        if age < DNS_FRESH_S:
            return self._known
        lookup = self._resolving
        if lookup is None:  # one for all that wait: they must not fill the thread pool
            lookup = self._resolving = loop.create_task(self._look_up(host, port))
            lookup.add_done_callback(self._looked_up)
        known = self._known if age < DNS_STALE_S else None
        await asyncio.wait((lookup,), timeout=DNS_WAIT_S if known else None)
        if known and (not lookup.done() or lookup.cancelled() or lookup.exception() is not None):
            return known
        if lookup.cancelled():
            raise ConnectionAbortedError("the transport was closed")
        return lookup.result()

    async def _look_up(self, host: str, port: int) -> list[Address]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._known = interleave([(family, str(address[0])) for family, _, _, _, address in found])
        self._known_at = loop.time()
        return self._known

    def _looked_up(self, lookup: asyncio.Task[list[Address]]) -> None:
        self._resolving = None
        if not lookup.cancelled():
            lookup.exception()  # whoever waited has it

    async def _through(self, tunnel: _Tunnel, factory: Callable[[], P], context: ssl.SSLContext) -> P:
        assert self._proxy is not None
        transport = await tunnel.open(self._host, self._port, self._proxy.headers())
        protocol = factory()
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, protocol, context, server_hostname=self._host
            )
        except BaseException:
            transport.abort()
            raise
        if secured is None:
            raise ConnectionResetError("the proxy closed the tunnel")
        protocol.connection_made(secured)
        return protocol


class _Tunnel(asyncio.Protocol, Abortable):
    """The connection to a proxy until it has answered ``CONNECT``."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._problem: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Empty: the tunnel stands."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, rest = self._answer.partition(b"\r\n\r\n")
        if len(self._answer) > MAX_PROXY_HEAD:
            self._end("the proxy's answer is too long")
        elif end:
            good = head.startswith(b"HTTP/1.") and head[8:10] == b" 2" and not rest  # nobody may speak before us
            self._end("" if good else "the proxy refused the tunnel")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the proxy closed the connection")

    def _end(self, problem: str) -> None:
        if not self._problem.done():
            self._problem.set_result(problem)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def open(self, host: str, port: int, headers: Mapping[str, str]) -> asyncio.Transport:
        """Ask for the tunnel; the transport is the tunnel then."""
        transport = self._transport
        assert transport is not None
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        transport.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n".encode("latin-1"))
        try:
            problem = await self._problem
            if problem:
                raise ConnectionRefusedError(problem)
        except BaseException:
            transport.abort()
            raise
        return transport


def _drop(task: asyncio.Task[P]) -> None:
    """Nobody wants the outcome of this attempt any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()


class Proxy:
    """A proxy from the environment. Its credentials are only ever put into ``Proxy-Authorization``."""

    __slots__ = ("_basic", "host", "plain", "port")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url if "//" in url else f"//{url}")
        self.plain = parts.scheme in ("", "http")
        self.host = parts.hostname or ""
        self.port = parts.port or 80
        self._basic = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._basic = base64.b64encode(pair.encode()).decode()

    def headers(self) -> Mapping[str, str]:
        return {"Proxy-Authorization": f"Basic {self._basic}"} if self._basic else {}


def proxy_for(host: str, scheme: str) -> Proxy | None:
    """The proxy for ``scheme`` to ``host``, unless ``NO_PROXY`` excludes it."""
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(host):
        return None
    return Proxy(proxy)


def interleave(addresses: list[Address]) -> list[Address]:
    """Alternate the families, beginning with the resolver's first (RFC 8305 section 4), each address once."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        raise OSError("the name has no address")
    first = [a for a in unique if a[0] == unique[0][0]]
    second = [a for a in unique if a[0] != unique[0][0]]
    return [a for a in chain.from_iterable(zip_longest(first, second)) if a is not None]
