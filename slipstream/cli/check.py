"""``slipstream check``: is the configuration usable, and what would it do?

Prints the compiled routes and ``OK``, or every problem on stderr and exit code 1. Reads the same file in the same way
as ``serve``; never opens a socket.
"""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command("check")
@click.option(
    "--config", "config_path", metavar="FILE", help="YAML or JSON file (else CONFIG_PATH, ./config.yaml, env)."
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file and leave.")
def command(config_path: str | None, schema: bool) -> None:
    """Validate the configuration and print the compiled routes."""
    from ..config.describe import describe, json_schema
    from ..wire.codec import pretty

    if schema:
        click.echo(pretty(json_schema()))
        return
    from ..config.load import Overrides, load_snapshot
    from ..errors import ConfigError
    from ..providers.registry import PROVIDER_TYPES

    try:
        loaded = load_snapshot(
            config_path=config_path,
            overrides=Overrides(),
            env=os.environ,
            cwd=Path.cwd(),
            provider_types=PROVIDER_TYPES,
        )
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(1) from None
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(describe(loaded.snapshot))
    click.echo("OK")
