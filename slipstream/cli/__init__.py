"""The ``slipstream`` command. Subcommands are imported only when they are called, so that each starts fast."""

from __future__ import annotations

from importlib import import_module

import click

from .._version import __version__

COMMANDS = {
    "check": "Check the configuration and print the compiled routes.",
    "loadgen": "Load-test a gateway or any OpenAI-compatible API.",
    "models": "List what each provider serves, with context window and price.",
    "mock": "Run a mock LLM provider.",
    "serve": "Run the gateway.",
    "simulate": "Run two mocks and a gateway, flood it, and print the figures.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.command(cls=_LazyGroup)
@click.version_option(__version__, prog_name="slipstream")
def main() -> None:
    """Slipstream: an LLM gateway."""
