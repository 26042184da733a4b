"""``slipstream check``: is the configuration usable, and what would it do?

Prints the compiled routes and ``OK``, or every problem on stderr and exit code 1. Reads the same file in the same way
as ``serve``; opens no socket, unless ``--auth`` asks for it.
"""

from __future__ import annotations

import click


@click.command("check")
@click.option(
    "--config", "config_path", metavar="FILE", help="YAML or JSON file (else CONFIG_PATH, ./config.yaml, env)."
)
@click.option("--auth", is_flag=True, help="Also ask every provider whether it takes our credentials.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of the file and leave.")
def command(config_path: str | None, auth: bool, schema: bool) -> None:
    """Validate the configuration and print the compiled routes."""
    from ..config.describe import describe, json_schema
    from ..wire.codec import pretty

    if schema:
        click.echo(pretty(json_schema()))
        return
    from ._ask import ask, load

    snapshot = load(config_path)
    click.echo(describe(snapshot))
    if auth:
        answers = ask(snapshot, list(snapshot.providers))
        for name, answer in answers.items():
            said = f"failed: {answer}" if isinstance(answer, str) else f"ok, {len(answer)} models listed"
            click.echo(f"{name}: {said}")
        if any(isinstance(answer, str) for answer in answers.values()):
            raise SystemExit(1)
    click.echo("OK")
