"""One serving process from its configuration to its end: start, signals, reload, drain.

SIGTERM and SIGINT: readiness says 503, no new connections, requests in flight are finished until the deadline, exit 0;
a second signal ends at once. SIGHUP: read the configuration again; a bad one changes nothing and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config.snapshot import ProviderSpec, Snapshot
from ..engine.runtime import Runtime
from ..errors import ConfigError
from ..net.native import NativeTransport
from ..net.upstream import Upstream
from ..obs import log as obs_log
from ..obs.families import RELOADS
from .app import App, malformed_body
from .listener import Listener, ListenerLimits
from .native import NativeListener

if TYPE_CHECKING:
    from ..mock.app import MockServer
    from ..mock.settings import MockSettings

log = logging.getLogger("slipstream.server")
DRAIN_S = 30.0
"""Requests in flight at SIGTERM may run this long (Kubernetes sends SIGKILL after 30 s by default)."""

_MOCK_KEYS = {"cost_per_1k_tokens_usd": "price_per_1k_tokens_usd"}

Reload = Callable[[], Snapshot]
OnReady = Callable[[Snapshot, int], None]


class Mocks:
    """Mock providers that run in this process: one server per ``type: mock`` entry without an ``api_base``."""

    def __init__(self) -> None:
        self._running: dict[tuple[str, MockSettings], tuple[MockServer, str]] = {}

    async def resolve(self, snapshot: Snapshot) -> Snapshot:
        """``snapshot`` with the addresses of its mocks filled in; starts those that do not run yet."""
        providers: list[ProviderSpec] = []
        for spec in snapshot.providers:
            if spec.type == "mock" and not spec.api_base:
                spec = dataclasses.replace(spec, api_base=await self._address(spec))
            providers.append(spec)
        return dataclasses.replace(snapshot, providers=tuple(providers))

    async def _address(self, spec: ProviderSpec) -> str:
        from ..mock.app import MockServer
        from ..mock.settings import MockSettings

        wanted = {_MOCK_KEYS.get(k, k): v for k, v in (spec.mock or {}).items() if v is not None}
        settings = MockSettings(name=spec.name, models=_served(spec), **wanted)  # type: ignore[arg-type]
        key = (spec.name, settings)
        if key not in self._running:
            server = MockServer(settings)
            port = await server.start("127.0.0.1", 0)
            self._running[key] = server, f"http://127.0.0.1:{port}/v1"
        return self._running[key][1]

    async def stop(self) -> None:
        for server, _ in self._running.values():
            await server.stop()


def _served(spec: ProviderSpec) -> tuple[str, ...]:
    """What the mock must know: everything, or just the upstream names that this entry may ask it for."""
    if spec.serves_every_model:
        return ()
    return (*spec.models, *spec.model_mapping.values(), *(p + "*" for p in spec.patterns))


def make_transport(spec: ProviderSpec, snapshot: Snapshot) -> Upstream:
    """The native transport; ``SLIPSTREAM_TRANSPORT=aiohttp`` asks for the reference."""
    if os.environ.get("SLIPSTREAM_TRANSPORT") == "aiohttp":
        from ..net.aiohttp_transport import AiohttpTransport

        return AiohttpTransport(
            verify_ssl=snapshot.verify_ssl, ca_file=snapshot.ca_file, max_per_origin=spec.max_connections
        )
    return NativeTransport(
        verify_ssl=snapshot.verify_ssl, ca_file=snapshot.ca_file, max_connections=spec.max_connections
    )


def make_listener(app: App, limits: ListenerLimits) -> Listener | NativeListener:
    """The native listener; ``SLIPSTREAM_LISTENER=aiohttp`` asks for the reference."""
    reference = Listener(
        app.handle,
        limits=limits,
        error_body=functools.partial(malformed_body, max_body=limits.max_body_bytes),
        on_bad_request=app.bad_request,
        decorate=app.decorate,
    )
    if os.environ.get("SLIPSTREAM_LISTENER") == "aiohttp":
        return reference
    return NativeListener(app, limits, reference)


class Process:
    """Builds the parts, runs until told to stop.

    ``embedded``: a guest in somebody else's process (a program of the user's, a test), whose signal handlers and
    logging are left alone; ``stop`` ends it.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        reload: Reload | None = None,
        sock: socket.socket | None = None,
        *,
        embedded: bool = False,
    ) -> None:
        self._snapshot = snapshot
        self._reload = reload
        self._sock = sock
        self._embedded = embedded
        self._mocks = Mocks()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._signals = 0
        self._background: set[asyncio.Task[None]] = set()
        self.runtime: Runtime | None = None
        self.port = 0

    async def run(self, on_ready: OnReady | None = None) -> int:
        """Serve until a signal. Returns the exit code."""
        snapshot = await self._mocks.resolve(self._snapshot)
        runtime = self.runtime = Runtime(snapshot, make_transport)
        if not self._embedded:
            obs_log.setup(snapshot.server.log_level, lambda text: runtime.active.redact(text))
        app = self._app = App(runtime)
        limits = ListenerLimits(max_body_bytes=snapshot.server.max_body_bytes)
        listener = make_listener(app, limits)
        await listener.start(snapshot.server.host, snapshot.server.port, sock=self._sock)
        self.port = listener.port
        if not self._embedded:
            self._watch_signals()
        if on_ready is not None:
            on_ready(snapshot, listener.port)
        await self._stop.wait()
        runtime.draining = True
        drained = await self._drain(listener)
        await runtime.close()
        await self._mocks.stop()
        return 0 if drained else 1

    async def _drain(self, listener: Listener | NativeListener) -> bool:
        """Let the requests in flight end; ``False`` if a second signal cut that short."""
        hurry = asyncio.ensure_future(self._hurry.wait())
        closing = asyncio.ensure_future(listener.close(DRAIN_S))
        await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if closing.done():
            await closing
            return True
        closing.cancel()  # asyncio.Runner cancels the requests
        return False

    def stop(self) -> None:
        self._stop.set()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # not in the main thread
            loop.add_signal_handler(signal.SIGTERM, self._on_stop)
            loop.add_signal_handler(signal.SIGINT, self._on_stop)
            loop.add_signal_handler(signal.SIGHUP, self._on_hup)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one may have waited since the fork

    def _on_stop(self) -> None:
        self._signals += 1
        if self._signals > 1:  # not SystemExit: raised in a callback, it leaves uvloop unable to close
            self._hurry.set()
        self._stop.set()

    def _on_hup(self) -> None:
        task = asyncio.get_running_loop().create_task(self.reload())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def reload(self) -> None:
        """Read the configuration again and swap it in whole (R81); a bad one keeps the old."""
        runtime = self.runtime
        if self._reload is None or runtime is None:
            return
        try:
            fresh = await asyncio.get_running_loop().run_in_executor(None, self._reload)
        except ConfigError as error:
            runtime.metrics.count(RELOADS, ("failed",))
            for problem in error.problems:
                log.error("configuration not reloaded", extra={"fields": {"problem": problem}})
            return
        generation = runtime.active.snapshot.generation + 1
        snapshot = await self._mocks.resolve(dataclasses.replace(fresh, generation=generation))
        old = runtime.active
        unused = runtime.swap(snapshot)
        self._app.configured()
        if not self._embedded:
            logging.getLogger("slipstream").setLevel(snapshot.server.log_level.upper())
        runtime.metrics.count(RELOADS, ("ok",))
        log.info("configuration reloaded", extra={"fields": {"source": snapshot.source, "generation": generation}})
        if old.in_flight:  # R42: a connection in use is never closed
            idle = asyncio.Event()
            old.on_idle = idle.set
            await idle.wait()
        for transport in unused:
            await transport.close()


def serve_forever(
    snapshot: Snapshot, reload: Reload | None, on_ready: OnReady | None = None, sock: socket.socket | None = None
) -> int:
    """Run one process to its end on uvloop (plain asyncio where uvloop is not to be had)."""

    async def main() -> int:
        return await Process(snapshot, reload, sock).run(on_ready)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
