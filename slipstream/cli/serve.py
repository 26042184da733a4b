"""``slipstream serve``: run the gateway."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from ..config.environment import demo_snapshot
from ..config.load import Overrides, load_snapshot
from ..config.snapshot import Snapshot
from ..errors import ConfigError
from ..providers.registry import PROVIDER_TYPES


@click.command("serve")
@click.option(
    "--config", "config_path", metavar="FILE", help="YAML file (else CONFIG_PATH, ./config.yaml, environment)."
)
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 picks a free one.")
@click.option("--workers", type=click.IntRange(1, 512), help="Serving processes.")
@click.option("--demo", is_flag=True, help="Two mock providers in this process; needs no key and no network.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="What to log.")
def command(
    config_path: str | None, host: str | None, port: int | None, workers: int | None, demo: bool, log_level: str | None
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C. SIGHUP reads the configuration again."""
    overrides = Overrides(host=host, port=port, workers=workers, log_level=log_level)

    def load() -> Snapshot:
        if demo:
            return demo_snapshot(overrides)
        loaded = load_snapshot(
            config_path=config_path,
            overrides=overrides,
            env=os.environ,
            cwd=Path.cwd(),
            provider_types=PROVIDER_TYPES,
        )
        for note in loaded.notes:
            click.echo(note, err=True)
        return loaded.snapshot

    if demo and config_path:
        raise click.UsageError("--demo brings its own configuration; leave out --config.")
    try:
        snapshot = load()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
    sys.exit(_serve(snapshot, load, demo))


def _serve(snapshot: Snapshot, load: Callable[[], Snapshot], demo: bool) -> int:
    from ..obs import log as obs_log
    from ..server.process import serve_forever
    from ..server.workers import Supervisor, bind

    server = snapshot.server
    try:
        sock = bind(server.host, server.port)
    except OSError as error:
        click.echo(f"cannot listen on {server.host}:{server.port}: {error.strerror}; choose another --port", err=True)
        return 1
    port = sock.getsockname()[1]

    def ready(_: Snapshot, __: int) -> None:
        announce(snapshot, port, demo)

    if server.workers == 1:
        return serve_forever(snapshot, load, ready, sock)
    latest = snapshot

    def reread() -> None:
        nonlocal latest
        with contextlib.suppress(ConfigError):  # the workers say what is wrong with it
            latest = load()

    obs_log.setup(server.log_level)
    announce(snapshot, port, demo)
    return Supervisor(server.workers, lambda: serve_forever(latest, load, None, sock), sock, reread).run()


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
