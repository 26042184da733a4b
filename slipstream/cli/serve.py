"""``slipstream serve``: run the gateway."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._fast import WORKERS
from ..config.environment import demo_snapshot
from ..config.load import Overrides, load_snapshot
from ..config.snapshot import Snapshot
from ..errors import ConfigError
from ..providers.registry import PROVIDER_TYPES

if TYPE_CHECKING:
    from ..server.drain import Drain
    from ..state.table import SharedTable


BAD_START = 2
"""The exit code of a start that failed because what it was told is wrong (S-107). ``click`` has the same for flags."""


class Workers(click.ParamType):  # type: ignore[type-arg]  # generic for the type checker only
    """A number, or ``auto``."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "auto":
            from ..server.cpus import auto_workers

            return auto_workers()
        return click.IntRange(1, WORKERS).convert(value, param, ctx)


@click.command("serve")
@click.option(
    "--config", "config_path", metavar="FILE", help="YAML file (else CONFIG_PATH, ./config.yaml, environment)."
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@click.option("--workers", type=Workers(), help="Serving processes; auto is one for each CPU it may use.")
@click.option("--demo", is_flag=True, help="Two mock providers in this process; needs no key and no network.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log.")
def command(
    config_path: str | None, host: str | None, port: int | None, workers: int | None, demo: bool, log_level: str | None
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C. SIGHUP reads the configuration again."""
    overrides = Overrides(host=host, port=port, workers=workers, log_level=log_level)

    def load(tell: bool = True) -> Snapshot:
        if demo:
            return demo_snapshot(overrides)
        loaded = load_snapshot(
            config_path=config_path,
            overrides=overrides,
            env=os.environ,
            cwd=Path.cwd(),
            provider_types=PROVIDER_TYPES,
        )
        for note in loaded.notes if tell else ():
            click.echo(note, err=True)
        return loaded.snapshot

    if demo and config_path:
        raise click.UsageError("--demo brings its own configuration; leave out --config.")
    try:
        sys.exit(_serve(load(), load, demo))
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(BAD_START)


def _serve(snapshot: Snapshot, load: Callable[..., Snapshot], demo: bool) -> int:
    """Raises ``ConfigError``."""
    from ..server.drain import Drain
    from ..server.process import require_compiled, serve_forever, state_dir
    from ..server.workers import bind, taken
    from ..state.table import open_table

    server = snapshot.server
    if server.workers > WORKERS:
        raise ConfigError([f"server.workers: is out of range; there can be {WORKERS} at most"])
    require_compiled()
    drain = Drain.from_environment(os.environ)
    shared = open_table(state_dir(snapshot))
    if shared.note is not None:
        click.echo(shared.note, err=True)
    try:
        joined = not demo and taken(server.host, server.port)
        sock = bind(server.host, server.port, share=not demo)
    except OSError as error:
        click.echo(f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another --port", err=True)
        return BAD_START
    port = sock.getsockname()[1]
    if joined:
        click.echo(f"port {port} is shared with another gateway: each takes some connections until one ends", err=True)

    def ready(_: Snapshot, __: int) -> None:
        announce(snapshot, port, demo)

    if server.workers == 1:
        return serve_forever(snapshot, load, ready, sock, shared=shared, drain=drain)
    announce(snapshot, port, demo)
    return _supervise(snapshot, load, sock, shared, drain)


def _supervise(
    snapshot: Snapshot, load: Callable[..., Snapshot], sock: socket.socket, shared: SharedTable, drain: Drain
) -> int:
    """Several workers. Every configuration is read here first: what the workers are told to read is known to be good,
    and one that is started later begins with the latest.
    """
    from ..obs import log as obs_log
    from ..obs.families import LOG_DROPPED, RELOADS
    from ..obs.metrics import Metrics
    from ..server.process import not_reloaded, preload, serve_forever
    from ..server.workers import Place, Supervisor

    metrics = Metrics(shared.series)
    obs_log.setup(snapshot.server.log_level, dropped=functools.partial(metrics.count, LOG_DROPPED, ()))
    preload(snapshot)
    latest = snapshot

    def reread() -> bool:
        nonlocal latest
        try:
            fresh = load()
        except ConfigError as error:
            not_reloaded(metrics, error)
            return False
        latest = dataclasses.replace(fresh, generation=latest.generation + 1)
        metrics.count(RELOADS, ("ok",))
        return True

    def serve(place: Place) -> int:
        return serve_forever(
            latest, functools.partial(load, tell=False), None, sock, shared=shared, place=place, drain=drain
        )

    return Supervisor(snapshot.server.workers, serve, sock, shared, reread, drain.longest_s).run()


def announce(snapshot: Snapshot, port: int, demo: bool) -> None:
    """Tell where the gateway listens, and in the demo how to use it."""
    host = snapshot.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else (f"[{host}]" if ":" in host else host)
    url = f"http://{shown}:{port}"
    lines = [f"Slipstream listens on {url} ({snapshot.source}); API description at {url}/docs"]
    if snapshot.server.master_api_key is None:
        where = "this machine only" if host in ("127.0.0.1", "::1", "localhost") else "EVERY network of this machine"
        lines.append(f"No server.master_api_key is set: anybody who reaches it may use it, from {where}.")
    if demo:
        lines += [
            "",
            "Try it:",
            f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
            '    -d \'{"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}\'',
            "",
            "  from openai import OpenAI",
            f'  client = OpenAI(base_url="{url}/v1", api_key="unused")',
            '  print(client.chat.completions.create(model="demo",',
            '        messages=[{"role": "user", "content": "Hello"}]).choices[0].message.content)',
            "",
            "Ctrl-C ends it.",
        ]
    click.echo("\n".join(lines))
    sys.stdout.flush()
