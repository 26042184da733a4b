"""One serving process from its configuration to its end: start, signals, reload, drain.

SIGTERM and SIGINT: readiness says 503 and answers say ``Connection: close``; after the delay no new connections, and
idle ones are closed; requests in flight may end until the deadline, then they end with an error in their dialect (in
a stream: an event); exit 0. A second signal ends at once, with 128 and its number for an exit code (143, 130: S-86).
SIGHUP: read the configuration again; a bad one changes nothing and says why.

A worker of a supervisor does the same, but takes only SIGQUIT for a second signal: terminals and systemd send theirs
to it and to its parent, which passes them on. When its parent is killed it drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .._fast import COMPILED, WORKERS
from ..config.snapshot import ProviderSpec, Snapshot
from ..engine.probe import Prober
from ..engine.runtime import Runtime
from ..errors import ConfigError
from ..net.native import NativeTransport
from ..net.upstream import Upstream
from ..obs import log as obs_log
from ..obs.families import DRAIN_CUT, LOG_DROPPED, RELOADS
from ..obs.metrics import Metrics
from ..state.table import SharedTable, open_table
from .acceptor import Acceptor, Factory
from .app import App, malformed_body
from .drain import CUT_S, DEFAULT_DRAIN, HANDSHAKES_S, Drain
from .heartbeat import Heartbeat
from .limits import ListenerLimits
from .listener import Listener, require_c_parser
from .native import NativeListener
from .workers import SIGNALLED, Place

if TYPE_CHECKING:
    from ..mock.app import MockServer
    from ..mock.settings import MockSettings

COLLECT = (10_000, 20, 50)
"""The collector of cycles runs after so many new objects, not after 700: requests make none (a failed one's traceback
is cut), and looking for them was 4 % of a request (bench/README.md)."""
log = logging.getLogger("slipstream.server")
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
            verify_ssl=snapshot.verify_ssl,
            ca_file=snapshot.ca_file,
            max_per_origin=spec.max_connections,
            send_s=spec.timeouts.send_s,
        )
    return NativeTransport(
        verify_ssl=snapshot.verify_ssl,
        ca_file=snapshot.ca_file,
        max_connections=spec.max_connections,
        send_s=spec.timeouts.send_s,
    )


def make_listener(app: App, limits: ListenerLimits) -> Listener | NativeListener:
    """The native listener; ``SLIPSTREAM_LISTENER=aiohttp`` asks for the reference."""
    reference = Listener(
        app.handle,
        limits=limits,
        error_body=functools.partial(malformed_body, max_body=limits.max_body_bytes),
        on_bad_request=app.bad_request,
        decorate=app.decorate,
        on_unserved=app.unserved,
        refuse=app.refuse_connection,
    )
    if os.environ.get("SLIPSTREAM_LISTENER") == "aiohttp":
        return reference
    return NativeListener(app, limits, reference)


class Process:
    """Builds the parts, runs until told to stop.

    ``shared``: the open table, else it opens one. ``place``: what its supervisor says, if it has one. ``embedded``: a
    guest in somebody else's process (a program of the user's, a test), whose signal handlers and logging are left
    alone; ``stop`` ends it.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        reload: Reload | None = None,
        sock: socket.socket | None = None,
        *,
        shared: SharedTable | None = None,
        place: Place | None = None,
        drain: Drain = DEFAULT_DRAIN,
        embedded: bool = False,
    ) -> None:
        self._snapshot = snapshot
        self._reload = reload
        self._reloading = asyncio.Lock()
        self._sock = sock
        self._shared = shared
        self._place = place
        self._drain_times = drain
        self._acceptor: Acceptor | None = None
        self._orphaned = False
        self._embedded = embedded
        self._mocks = Mocks()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._hurried_by = 0
        self._background: set[asyncio.Task[None]] = set()
        self.runtime: Runtime | None = None
        self.port = 0

    async def run(self, on_ready: OnReady | None = None) -> int:
        """Serve until a signal. Returns the exit code."""
        shared = self._shared or open_table(state_dir(self._snapshot))
        worker = claim(shared) if self._place is None else self._place.slot
        try:
            return await self._serve(shared, worker, on_ready)
        finally:
            if self._place is None or self._orphaned:  # else the supervisor takes the slot back
                shared.table.reap(worker)
            if self._shared is None:
                shared.close()

    async def _serve(self, shared: SharedTable, worker: int, on_ready: OnReady | None) -> int:
        snapshot = await self._mocks.resolve(self._snapshot)
        runtime = self.runtime = Runtime(snapshot, make_transport, shared=shared, worker=worker)
        if not self._embedded:
            obs_log.setup(
                snapshot.server.log_level,
                lambda text: runtime.active.redact(text),
                functools.partial(runtime.metrics.count, LOG_DROPPED, ()),
            )
        self._heartbeat = Heartbeat(runtime)
        prober = self._prober = Prober(runtime)
        app = self._app = App(runtime)
        limits = ListenerLimits(
            max_body_bytes=snapshot.server.max_body_bytes, max_connections=snapshot.server.max_connections
        )
        listener = make_listener(app, limits)
        accept = functools.partial(self._accept, listener) if self._sock is not None else None
        await listener.start(snapshot.server.host, snapshot.server.port, accept=accept)
        self.port = listener.port
        self._heartbeat.start()
        app.load.start()
        prober.start()
        if self._place is not None:
            log.info("worker serves", extra={"fields": {"pid": os.getpid(), "worker": worker}})
        if not self._embedded:
            self._watch_signals()
            gc.freeze()
            gc.set_threshold(*COLLECT)
        if on_ready is not None:
            on_ready(snapshot, listener.port)
        starting = asyncio.ensure_future(runtime.start())
        await self._stop.wait()
        starting.cancel()
        runtime.draining = True
        prober.stop()
        if isinstance(listener, NativeListener):
            listener.heads.clear()  # they do not say "Connection: close"
        drained = await self._drain(runtime, listener)
        app.load.stop()
        self._heartbeat.stop()
        await runtime.close()
        await self._mocks.stop()
        return 0 if drained else SIGNALLED + self._hurried_by

    def _accept(self, listener: Listener | NativeListener, factory: Factory) -> Acceptor:
        assert self._sock is not None
        loads, seat = (self._place.loads, self._place.seat) if self._place is not None else (None, 0)
        self._acceptor = Acceptor(self._sock, factory, lambda: listener.connections, loads, seat)
        return self._acceptor

    async def _drain(self, runtime: Runtime, listener: Listener | NativeListener) -> bool:
        """Let the requests in flight end; ``False`` if a second signal cut that short."""
        hurry = asyncio.ensure_future(self._hurry.wait())
        closing = asyncio.ensure_future(self._close(runtime, listener))
        await asyncio.wait((closing, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if closing.done():
            await closing
            return True
        closing.cancel()
        await listener.close(0)
        return False

    async def _close(self, runtime: Runtime, listener: Listener | NativeListener) -> None:
        times = self._drain_times
        if times.delay_s:
            await asyncio.sleep(times.delay_s)
        loop = asyncio.get_running_loop()
        cut = loop.call_later(times.deadline_s, self._cut, runtime)
        if self._acceptor is not None:
            last = self._place is None or self._orphaned or self._place.loads.ending
            # only where there was a delay is there a balancer, and with it another gateway to go to
            await self._acceptor.finish(last, HANDSHAKES_S if times.delay_s else 0.0)
        await listener.close(times.deadline_s + CUT_S)
        cut.cancel()

    def _cut(self, runtime: Runtime) -> None:
        """The deadline: what waits or is still in flight ends with an error."""
        self._app.load.admission.end()
        for outbound in runtime.active.outbound.values():
            outbound.bulkhead().end()
        number = runtime.deadlines().cut()
        runtime.metrics.count(DRAIN_CUT, by=number)
        log.warning("requests cut at the end", extra={"fields": {"requests": number}})

    def stop(self) -> None:
        self._stop.set()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):  # not in the main thread
            loop.add_signal_handler(signal.SIGTERM, self._on_stop, signal.SIGTERM)
            loop.add_signal_handler(signal.SIGINT, self._on_stop, signal.SIGINT)
            loop.add_signal_handler(signal.SIGHUP, self._on_hup)
            if self._place is not None:
                loop.add_signal_handler(signal.SIGQUIT, self._on_hurry, signal.SIGQUIT)
                loop.add_reader(self._place.lifeline, self._on_orphaned)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # one may have waited since the fork

    def _on_stop(self, number: int) -> None:
        if self._stop.is_set() and self._place is None:
            self._on_hurry(number)  # not SystemExit: raised in a callback, it leaves uvloop unable to close
        self._stop.set()

    def _on_hurry(self, number: int) -> None:
        self._hurried_by = number
        self._hurry.set()

    def _on_orphaned(self) -> None:
        assert self._place is not None
        asyncio.get_running_loop().remove_reader(self._place.lifeline)
        log.error("the supervisor is gone: this worker ends")
        self._orphaned = True
        self.stop()

    def _on_hup(self) -> None:
        task = asyncio.get_running_loop().create_task(self.reload())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def reload(self) -> None:
        """Read the configuration again and swap it in whole (R81); a bad one keeps the old."""
        runtime, read = self.runtime, self._reload
        if read is None or runtime is None:
            return
        async with self._reloading:
            try:
                fresh = await asyncio.get_running_loop().run_in_executor(None, read)
                generation = runtime.active.snapshot.generation + 1
                snapshot = await self._mocks.resolve(dataclasses.replace(fresh, generation=generation))
                self._heartbeat.publish()
                old = runtime.active
                unused = runtime.swap(snapshot)
            except ConfigError as error:
                not_reloaded(runtime.metrics, error)
                return
        self._app.configured()
        self._prober.start()
        if not self._embedded:
            logging.getLogger("slipstream").setLevel(snapshot.server.log_level.upper())
        if self._place is None:  # else the supervisor has counted it, once for all workers
            runtime.metrics.count(RELOADS, ("ok",))
        log.info("configuration reloaded", extra={"fields": {"source": snapshot.source, "generation": generation}})
        await runtime.start()
        if old.in_flight:  # R42: a connection in use is never closed
            idle = asyncio.Event()
            old.on_idle = idle.set
            await idle.wait()
        for transport_or_signer in unused:
            await transport_or_signer.close()


def not_reloaded(metrics: Metrics, error: ConfigError) -> None:
    """Tell that the old configuration stays, and why."""
    metrics.count(RELOADS, ("failed",))
    for problem in error.problems:
        log.error("configuration not reloaded", extra={"fields": {"problem": problem}})


def state_dir(snapshot: Snapshot) -> Path | None:
    return Path(snapshot.server.state_dir) if snapshot.server.state_dir is not None else None


def claim(shared: SharedTable) -> int:
    """A worker slot of the table for this process."""
    worker = shared.table.claim_worker(os.getpid(), time.monotonic_ns())
    if worker < 0:
        raise ConfigError([f"all {WORKERS} worker slots of the shared table are in use; use another state_dir"])
    return worker


def require_compiled() -> None:
    """Raises ``ConfigError`` where the parsers that face the network are not the compiled ones (S-107), unless
    ``SLIPSTREAM_PURE=1`` asks for the plain ones of ``_fast``."""
    if not COMPILED and os.environ.get("SLIPSTREAM_PURE") != "1":
        raise ConfigError(["slipstream's compiled modules are missing or of another Python: install a wheel"])
    require_c_parser()


def preload(snapshot: Snapshot) -> None:
    """Import what a worker needs, before the fork: what is imported after it, each worker has for itself."""
    import concurrent.futures.thread  # noqa: F401

    _loop_factory()
    if any(spec.type == "mock" and not spec.api_base for spec in snapshot.providers):
        from ..mock import app  # noqa: F401


def serve_forever(
    snapshot: Snapshot,
    reload: Reload | None,
    on_ready: OnReady | None = None,
    sock: socket.socket | None = None,
    *,
    shared: SharedTable | None = None,
    place: Place | None = None,
    drain: Drain = DEFAULT_DRAIN,
) -> int:
    """Run one process to its end on uvloop (plain asyncio where uvloop is not to be had)."""

    async def main() -> int:
        return await Process(snapshot, reload, sock, shared=shared, place=place, drain=drain).run(on_ready)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
