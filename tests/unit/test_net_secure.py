"""Making connections through TLS and through proxies."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from slipstream.errors import ConnectFailed, TransportError, UpstreamTimeout
from slipstream.net.connect import tls_context
from tests.aio import run, until
from tests.upstreams import BOTH, Peer, answers, client, ok, upstream

V4, V6 = socket.AF_INET, socket.AF_INET6


pytestmark = pytest.mark.usefixtures("no_proxy")


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


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the kernel does not tell")
def test_who_does_not_read_through_tls(server_tls: ssl.SSLContext) -> None:
    """S-46: what was encrypted and waits below is unsent, too."""

    async def deaf(peer: Peer) -> None:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(3.0)

    async def main() -> None:
        async with (
            upstream(deaf, server_tls) as up,
            client(f"https://localhost:{up.port}/", verify=False, send_s=0.2) as c,
        ):
            with pytest.raises(UpstreamTimeout, match="send limit"):
                await c.send(b"x" * 20_000_000)

    run(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the kernel does not tell")
def test_a_slow_reader_through_tls(server_tls: ssl.SSLContext) -> None:
    """S-46: a standstill has a limit, not the sending; a slice that takes longer than the limit is none (R23)."""
    size = 8_000_000

    async def slow(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        left = size
        while left:
            left -= len(await peer.reader.read(min(left, 16_384)))
            await asyncio.sleep(0.004)
        await peer.send(ok())

    async def main() -> None:
        async with (
            upstream(slow, server_tls) as up,
            client(f"https://localhost:{up.port}/", verify=False, send_s=0.2) as c,
        ):
            assert await c.whole(b"x" * size) == (200, b"{}")

    run(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="the kernel does not tell")
def test_an_answer_before_the_end_of_the_request_through_tls(server_tls: ssl.SSLContext) -> None:
    """S-45: the next request does not wait behind the rest of the last one; after one that was read it goes on."""

    async def early(peer: Peer) -> None:
        if peer.number == 0:
            await peer.reader.readuntil(b"\r\n\r\n")
            peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
            await peer.send(ok())
            await peer.reader.read()
        while await peer.request() is not None:
            await peer.send(ok())

    async def main() -> None:
        async with upstream(early, server_tls) as up, client(f"https://localhost:{up.port}/", verify=False) as c:
            for size in (20_000_000, 2, 1_000_000, 2):
                assert await c.whole(b"x" * size) == (200, b"{}")
            assert len(up.peers) == 2

    run(main())


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
        ca = str(certificates / "ca.pem")
        async with (
            upstream(script, server_tls) as up,
            client(f"https://localhost:{up.port}/v1", ca_file=ca) as c,
        ):
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
