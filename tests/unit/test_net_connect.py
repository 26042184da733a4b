"""Making connections: refusals, limits, names, the race of addresses, TLS, proxies."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import ConnectFailed, TransportError, UpstreamTimeout
from slipstream.net import connect as connect_module
from slipstream.net.connect import interleave, tls_context
from tests.aio import run, until
from tests.upstreams import BOTH, Peer, answers, client, ok, upstream

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def full_backlog() -> Iterator[tuple[str, int]]:
    """An address whose connections hang: nobody accepts, and the queue is full."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.9", 0))
        sock.listen(0)
        fill = [socket.socket() for _ in range(3)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(sock.getsockname())
        try:
            yield sock.getsockname()
        finally:
            for one in fill:
                one.close()


class Names:
    """A resolver for the running loop: what it answers, or raises, and how often it was asked."""

    def __init__(self, *answer: tuple[int, str]) -> None:
        self.answer = list(answer)
        self.error: Exception | None = None
        self.hang = False
        self.asked = 0
        loop: Any = asyncio.get_running_loop()
        loop.getaddrinfo = self.getaddrinfo

    async def getaddrinfo(self, host: str, port: int, **more: Any) -> list[Any]:
        self.asked += 1
        answer = list(self.answer)
        await asyncio.sleep(0)
        if self.hang:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in answer]


# ------------------------------------------------------------------ limits and refusals (R18)
@pytest.mark.parametrize("kind", BOTH)
def test_nobody_listens(kind: str) -> None:
    async def main() -> None:
        async with client(f"http://127.0.0.1:{free_port()}/v1", kind) as c:
            for _ in range(3):
                with pytest.raises(ConnectFailed):
                    await c.whole()

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_a_connect_that_hangs_has_its_own_limit(kind: str) -> None:
    async def main() -> None:
        with full_backlog() as (host, port):
            async with client(f"http://{host}:{port}/v1", kind) as c:
                loop = asyncio.get_running_loop()
                start = loop.time()
                with pytest.raises(UpstreamTimeout) as caught:
                    await c.whole(connect_s=0.1)
                assert 0.09 < loop.time() - start < 0.5
                assert caught.value.phase == "connect"

    run(main())


def test_nobody_waits_for_another_ones_connect() -> None:
    async def main() -> None:
        with full_backlog() as (host, port):
            async with upstream(answers(ok())) as up, client(f"http://name.test:{up.port}/v1") as c:
                names = Names((V4, host))
                c.pool.connector._host = "name.test"
                stuck = asyncio.create_task(c.whole(connect_s=0.5))
                await until(lambda: names.asked == 1)
                await asyncio.sleep(0.01)
                connector = c.pool.connector
                connector._known = [(V4, "127.0.0.1")]
                assert await asyncio.wait_for(c.whole(), 0.3) == (200, b"{}")
                stuck.cancel()
                await asyncio.gather(stuck, return_exceptions=True)
                assert port

    run(main())


# ------------------------------------------------------------------ names (Q21, S-43)
def test_a_name_that_is_not_known() -> None:
    async def main() -> None:
        for error in (socket.gaierror(-2, "unknown"), UnicodeError("label too long")):
            async with client("http://name.test:1/v1") as c:
                Names().error = error
                with pytest.raises(ConnectFailed):
                    await c.whole()
        async with client("http://name.test:1/v1") as c:
            Names()  # answers nothing
            with pytest.raises(ConnectFailed):
                await c.whole()

    run(main())


def test_one_lookup_serves_all_that_wait_and_the_last_good_answer_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())

    async def main() -> None:
        async with upstream(script) as up, client(f"http://name.test:{up.port}/v1") as c:
            names = Names((V4, "127.0.0.1"))
            assert await asyncio.gather(*(c.whole() for _ in range(50))) == [(200, b"{}")] * 50
            await until(lambda: up.open == 0)
            assert names.asked == 1
            connector = c.pool.connector
            connector._known_at -= connect_module.DNS_FRESH_S + 1
            names.error = OSError("resolver down")
            assert await c.whole() == (200, b"{}")
            await until(lambda: up.open == 0)
            assert names.asked == 2
            names.error, names.hang = None, True
            monkeypatch.setattr(connect_module, "DNS_WAIT_S", 0.05)
            assert await c.whole() == (200, b"{}")
            await until(lambda: up.open == 0)
            assert names.asked == 3
            connector._known_at -= connect_module.DNS_STALE_S
            with pytest.raises(UpstreamTimeout):
                await c.whole(connect_s=0.05)
            assert connector._resolving is not None
        assert connector._resolving is None

    run(main())


def test_addresses_alternate() -> None:
    a, b, c, d = (V6, "::1"), (V6, "::2"), (V4, "1.1.1.1"), (V4, "2.2.2.2")
    assert interleave([a, b, c, d, a]) == [a, c, b, d]
    assert interleave([c]) == [c]


def test_happy_eyeballs(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8305: a dead address costs its refusal, one that hangs 250 ms; the losers are gone."""

    async def main() -> None:
        with full_backlog() as (hangs, _):
            async with upstream(answers(ok())) as up:
                for dead, most in (("::1", 0.1), (hangs, 0.35)):
                    # the hanging address must hang on this port too
                    with socket.socket() as sock:
                        fill = []
                        if dead == hangs:
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                            sock.bind((hangs, up.port))
                            sock.listen(0)
                            for _ in range(3):
                                one = socket.socket()
                                one.setblocking(False)
                                one.connect_ex((hangs, up.port))
                                fill.append(one)
                        async with client(f"http://name.test:{up.port}/v1") as c:
                            Names((V6 if ":" in dead else V4, dead), (V4, "127.0.0.1"))
                            loop = asyncio.get_running_loop()
                            start = loop.time()
                            assert await c.whole() == (200, b"{}")
                            assert loop.time() - start < most
                            assert c.stats["connections_made"] == c.stats["connections_open"] == 1
                        for one in fill:
                            one.close()

    run(main())


def test_both_addresses_win_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second connection is dropped; it holds no place in the pool."""
    monkeypatch.setattr(connect_module, "RACE_DELAY_S", 0.0)

    async def main() -> None:
        async with upstream(answers(ok())) as up, client(f"http://name.test:{up.port}/v1", limit=1) as c:
            Names((V4, "127.0.0.1"), (V4, "127.0.0.2"))
            for _ in range(20):
                assert await c.whole() == (200, b"{}")
                (conn,) = c.pool._idle
                conn.abort()
                await until(lambda: not c.pool._open)
            await until(lambda: up.open == 0)

    run(main())


def test_all_addresses_fail() -> None:
    async def main() -> None:
        async with client(f"http://name.test:{free_port()}/v1") as c:
            Names((V4, "127.0.0.1"), (V4, "127.0.0.2"), (V4, "127.0.0.3"))
            with pytest.raises(ConnectFailed):
                await c.whole()

    run(main())


# ------------------------------------------------------------------ TLS
@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certification authority and a certificate for ``localhost``, made by the openssl command."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "ext").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA"],
        ["req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "own.pem",
         "-days", "2", "-extfile", "ext"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def server_tls(certificates: Path) -> ssl.SSLContext:
    tls_context.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "own.pem", certificates / "own.key")
    return context


@pytest.mark.parametrize("kind", BOTH)
def test_certificates_are_verified(kind: str, certificates: Path, server_tls: ssl.SSLContext) -> None:
    ca = str(certificates / "ca.pem")

    async def main() -> None:
        async with upstream(answers(ok(b"secret" * 10_000)), server_tls) as up:
            loop: Any = asyncio.get_running_loop()
            cases: list[tuple[str, dict[str, Any], bool]] = [
                ("localhost", {"ca_file": ca}, True),
                ("localhost", {"verify": False}, True),
                ("127.0.0.1", {"verify": False}, True),
                ("localhost", {}, False),  # nobody we trust
                ("127.0.0.1", {"ca_file": ca}, False),  # another name
            ]
            errors: list[Any] = []
            loop.set_exception_handler(lambda _, context: errors.append(context))
            for host, settings, good in cases:
                async with client(f"https://{host}:{up.port}/v1", kind, **settings) as c:
                    if good:
                        assert await c.whole() == (200, b"secret" * 10_000)
                        assert await c.whole() == (200, b"secret" * 10_000)
                        assert c.stats["connections_made"] == 1
                    else:
                        with pytest.raises(ConnectFailed):
                            await c.whole()
            assert len(up.seen) == 6
            assert all("handshake" in str(e) or "SSL" in str(e) for e in errors)  # the server's complaints

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_are_resumed(version: ssl.TLSVersion, certificates: Path, server_tls: ssl.SSLContext) -> None:
    server_tls.maximum_version = server_tls.minimum_version = version

    async def main() -> None:
        resumed = []
        async with upstream(answers(ok()), server_tls) as up:
            async with client(f"https://localhost:{up.port}/v1", ca_file=str(certificates / "ca.pem")) as c:
                for _ in range(4):
                    await c.whole()
                    (conn,) = c.pool._idle
                    assert conn.transport is not None
                    resumed.append(conn.transport.get_extra_info("ssl_object").session_reused)
                    conn.abort()
                    await until(lambda: c.stats["connections_open"] == 0)
            assert resumed == [False, True, True, True]

    run(main())


def test_tls_that_never_answers_is_a_connect_time_out(certificates: Path) -> None:
    async def silent(peer: Peer) -> None:
        await peer.reader.read()

    async def junk(peer: Peer) -> None:
        await peer.reader.read(10)
        await peer.send(b"HTTP/1.1 400 Bad\r\n\r\n")

    async def main() -> None:
        async with upstream(silent) as up, client(f"https://localhost:{up.port}/v1") as c:
            with pytest.raises(UpstreamTimeout):
                await c.whole(connect_s=0.1)
            await until(lambda: up.open == 0)
        async with upstream(junk) as up, client(f"https://localhost:{up.port}/v1") as c:
            with pytest.raises(ConnectFailed):
                await c.whole()

    run(main())


@pytest.mark.parametrize("orderly", [True, False])
def test_the_end_of_a_tls_body_must_be_said(orderly: bool, certificates: Path, server_tls: ssl.SSLContext) -> None:
    """A body that ends with the connection: whole at ``close_notify``, cut at a bare end of the TCP stream."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await until(lambda: len(peer.server.seen) == 2)
        if not orderly:
            with socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno())) as sock:
                sock.shutdown(socket.SHUT_WR)
            await peer.reader.read()

    async def main() -> None:
        async with upstream(script, server_tls) as up:
            async with client(f"https://localhost:{up.port}/v1", ca_file=str(certificates / "ca.pem")) as c:
                reply = await c.send()
                assert await reply.chunk() == b"some"
                up.seen.append((b"", b""))
                if orderly:
                    assert await reply.chunk() == b""
                else:
                    with pytest.raises(TransportError):
                        await reply.chunk()
                reply.close()

    run(main())


# ------------------------------------------------------------------ proxies
async def proxy_script(peer: Peer) -> None:
    """A proxy: ``CONNECT`` for https, absolute form for http."""
    request = await peer.request()
    if request is None:
        return
    head, body = request
    method, target, _ = head.split(b" ", 2)
    if method != b"CONNECT":
        await peer.send(ok(target))
        await peer.request()
        return
    if b"refuse" in target:
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        return
    reader, writer = await asyncio.open_connection("127.0.0.1", int(target.rpartition(b":")[2]))
    await peer.send(b"HTTP/1.1 200 Connection ", b"established\r\nX: y\r\n\r\n")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
        except ConnectionError:
            pass
        sink.close()

    await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer), return_exceptions=True)
    assert body == b""


@pytest.mark.parametrize("kind", BOTH)
def test_http_through_a_proxy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with upstream(proxy_script) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
            async with client("http://name.test:8080/v1/x?y=1", kind) as c:
                assert await c.whole() == (200, b"http://name.test:8080/v1/x?y=1")
            assert b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in proxy.seen[0][0]
            assert b"Host: name.test:8080\r\n" in proxy.seen[0][0]
            async with upstream(answers(ok(b"direct"))) as up:
                monkeypatch.setenv("NO_PROXY", "other.test,127.0.0.1")
                async with client(up.url, kind) as c:
                    assert await c.whole() == (200, b"direct")
                assert b"Proxy-Authorization" not in up.seen[0][0]

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_https_through_a_tunnel(
    kind: str, monkeypatch: pytest.MonkeyPatch, certificates: Path, server_tls: ssl.SSLContext
) -> None:
    ca = str(certificates / "ca.pem")

    async def main() -> None:
        async with upstream(proxy_script) as proxy, upstream(answers(ok(b"inside")), server_tls) as up:
            monkeypatch.setenv("HTTPS_PROXY", f"http://u:p@127.0.0.1:{proxy.port}")
            async with client(f"https://localhost:{up.port}/v1", kind, ca_file=ca) as c:
                assert await c.whole() == (200, b"inside")
                assert await c.whole() == (200, b"inside")
            ((head, _),) = proxy.seen
            assert head.startswith(b"CONNECT localhost:%d HTTP/1.1\r\n" % up.port)
            assert b"Proxy-Authorization: Basic dTpw\r\n" in head
            assert b"Bearer" not in head
            assert b"Proxy-Authorization" not in up.seen[0][0]
            async with client("https://refuse.test/v1", kind, ca_file=ca) as c:
                with pytest.raises(ConnectFailed):
                    await c.whole()
            await until(lambda: proxy.open == 0)

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\nunasked",
        b"junk\r\n\r\n",
        b"HTTP/1.1 407 Auth\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_tunnels_that_are_none(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    async def silent(peer: Peer) -> None:
        await peer.reader.read()

    async def main() -> None:
        async with upstream(script) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
            async with client("https://name.test/v1") as c:
                with pytest.raises(ConnectFailed):
                    await c.whole()
            proxy.script = silent
            async with client("https://name.test/v1") as c:
                with pytest.raises(UpstreamTimeout):
                    await c.whole(connect_s=0.05)
                task = asyncio.create_task(c.whole())
                await until(lambda: proxy.open == 1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await until(lambda: proxy.open == 0)
            monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{proxy.port}")
            async with client("https://name.test/v1") as c:
                with pytest.raises(ConnectFailed):
                    await c.whole()

    run(main())


def test_urls() -> None:
    async def main() -> None:
        async with client("http://[::1]:81/a b/ü?q=1&r=a b") as c:
            post = c.headers[0]
            assert post.startswith(b"POST /a%20b/%C3%BC?q=1&r=a%20b HTTP/1.1\r\nHost: [::1]:81\r\n")
        async with client("https://user:pw@Ex%41mple.test/v1") as c:
            assert b"pw" not in c.headers[0]
        async with client("https://bücher.test/") as c:
            assert b"Host: xn--bcher-kva.test\r\n" in c.headers[0]

    run(main())
