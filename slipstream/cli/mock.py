"""``slipstream mock``: one mock LLM API in the foreground. ``command`` is what the cli group takes in."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..mock.settings import DEFAULT_COMPLETION_TOKENS, MockSettings

if TYPE_CHECKING:
    from ..mock.app import MockServer


@click.command("mock", short_help="Run a mock LLM API.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=9000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--mean-latency-ms", default=40.0, show_default=True, type=click.FloatRange(min=0), help="Mean latency.")
@click.option("--p95-latency-ms", default=120.0, show_default=True, type=click.FloatRange(min=0), help="Its p95.")
@click.option("--ttft-ms", type=click.FloatRange(min=0), help="Time to the first event of a stream [default: latency].")
@click.option(
    "--tokens-per-s", default=0.0, type=click.FloatRange(min=0), help="Pace of a stream [default: unlimited]."
)
@click.option("--error-rate", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Share that fails.")
@click.option("--error-status", default=500, show_default=True, type=click.IntRange(400, 599), help="How it fails.")
@click.option("--completion-tokens", default=DEFAULT_COMPLETION_TOKENS, show_default=True, help="Length of an answer.")
@click.option("--seed", type=int, help="Same seed, same ids, latencies and errors [default: random].")
@click.option(
    "--model", "models", multiple=True, help="A model that exists; repeatable; name* is a prefix [default: all]."
)
@click.option("--name", default="mock", show_default=True, help="Name in the x-mock-name header of every answer.")
def command(host: str, port: int, **options: Any) -> None:
    """Run a mock LLM API (chat, completions, embeddings, models) until Ctrl-C or SIGTERM.

    Faults on demand: send the header "x-mock-fault: 429" (500, stall, cut, reset, malformed, ...) or ask for the model
    "mock/429". What the mock did is at /mock/ledger, what it was asked at /mock/requests.
    """
    try:
        settings = MockSettings(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, host, port))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows has none
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(settings: MockSettings, host: str, port: int) -> None:
    from ..mock.app import MockServer  # aiohttp takes 150 ms to import: not for --help

    server = MockServer(settings)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    await server.start(host, port)
    click.echo(f'mock "{settings.name}" on {server.base_url} - use it as the api_base of a provider, with any api_key')
    await over.wait()
    await server.stop()
    click.echo(_totals(server))


def _totals(server: MockServer) -> str:
    ledger = server.ledger
    statuses = ", ".join(f"{count} x {status or 'no answer'}" for status, count in sorted(ledger.by_status.items()))
    return (
        f"{ledger.requests} requests ({statuses or 'none'}), {ledger.streams} streams, "
        f"{ledger.disconnects} disconnects, {ledger.prompt_tokens} prompt, {ledger.completion_tokens} completion tokens"
    )
