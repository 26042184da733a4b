"""``slipstream simulate``: two mocks, the gateway and a flood of requests, in one command."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

MAX_S = 3600.0
"""A flood that has not ended by then does not end."""
TIMEOUT_S = 30.0


@click.command("simulate", short_help="Run two mocks and a gateway, flood it, and print the figures.")
@click.option("--requests", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True, help="How many.")
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At a time.")
@click.option("--stream/--no-stream", default=False, show_default=True, help="Ask for streams.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there.")
def command(requests: int, concurrency: int, stream: bool, json_file: Path | None) -> None:
    """Start two mock providers (one fast, one cheap) and the gateway on free ports of this machine, flood the gateway,
    and print what came of it. Needs no key and no network. Ctrl-C ends early, with the figures so far.
    """
    from ..loadgen import simulate
    from ..loadgen.reply import reader
    from ..loadgen.report import Live, json_text
    from ..loadgen.run import Plan, Run
    from ..loadgen.stats import Recorder
    from ..loadgen.target import DEFAULT_PROMPT, Ask, build_requests, parse_base_url
    from .loadgen import allow_files, execute, exit_code

    allow_files(concurrency)
    ask = Ask(model=simulate.MODEL, stream=stream)
    plan = Plan(0.0, min(concurrency, requests), MAX_S, timeout_s=TIMEOUT_S, max_requests=requests)
    try:
        with simulate.terminate_as_interrupt(), simulate.House() as house:
            target = parse_base_url(house.url)
            run = Run(target, build_requests(target, ask, [DEFAULT_PROMPT]), plan, reader("chat", stream), Recorder())
            live = Live(run, sys.stderr) if sys.stderr.isatty() else None
            execute(run, (lambda: live.tick(time.monotonic_ns())) if live else None)
            if live is not None:
                live.end()
            found = simulate.figures(run, house.metrics())
    except simulate.SimulationError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"the gateway cannot be reached: {error}") from None
    except KeyboardInterrupt:  # before the flood began
        sys.exit(130)
    click.echo(simulate.text(found))
    if json_file is not None:
        try:
            json_file.write_text(json_text(found), encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{json_file} cannot be written: {error.strerror}") from None
    sys.exit(exit_code(run))
