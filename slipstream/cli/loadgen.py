"""``slipstream loadgen``: load on any OpenAI-compatible API or on ``/v1/infer``, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..loadgen.schedule import ARRIVALS, parse_duration
from ..loadgen.target import DEFAULT_MODEL, DEFAULT_PROMPT, Ask, Target, build_requests, parse_base_url

FILES_FOR_OTHERS = 64
"""File descriptors beside the connections'."""
MAX_CONCURRENCY = 65_000
"""Local ports towards one address, roughly."""
MAX_DURATION_S = 86_400.0


def _seconds(_: click.Context, param: click.Parameter, text: str) -> float:
    """A duration option; only a warm-up may be 0."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not 0 <= seconds <= MAX_DURATION_S or (seconds == 0 and param.name != "warmup"):
        raise click.BadParameter("it is a time above 0 and at most 24h")
    return seconds


def _target(_: click.Context, __: click.Parameter, url: str) -> Target:
    try:
        return parse_base_url(url)
    except ValueError as error:
        raise click.BadParameter(f"{url!r} is not a base URL: {error}") from None


@click.command("loadgen", short_help="Load-test a gateway or any OpenAI-compatible API.")
@click.option(
    "--base-url", "target", metavar="URL", callback=_target, default="http://127.0.0.1:8080", show_default=True
)
@click.option(
    "--endpoint", type=click.Choice(["chat", "infer"]), default="chat", show_default=True, help="What to call."
)
@click.option("--qps", type=click.FloatRange(0, 1e6), default=100.0, show_default=True, help="Rate; 0: closed loop.")
@click.option("--arrival", type=click.Choice(ARRIVALS), default="constant", show_default=True, help="How they come.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, MAX_CONCURRENCY),
    default=100,
    show_default=True,
    help="Connections at most.",
)
@click.option(
    "--duration",
    metavar="TIME",
    callback=_seconds,
    default="10s",
    show_default=True,
    help="Measured time: 10s, 1m, seconds.",
)
@click.option(
    "--warmup", metavar="TIME", callback=_seconds, default="0s", show_default=True, help="Before it, not measured."
)
@click.option("--timeout", metavar="TIME", callback=_seconds, default="30s", show_default=True, help="Per request.")
@click.option("--model", help=f"Model to ask for [default: {DEFAULT_MODEL}; infer: the router's choice].")
@click.option("--policy", help="Routing policy: sent to infer; for chat only a label in the CSV.")
@click.option("--prompt", help="What to ask.")
@click.option(
    "--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="One prompt per line, in turn."
)
@click.option("--max-tokens", type=click.IntRange(1), help="Length of an answer at most.")
@click.option("--stream", is_flag=True, help="Ask for streams, and measure the time to the first content.")
@click.option("--api-key", envvar="SLIPSTREAM_API_KEY", show_envvar=True, help="Sent as a bearer token.")
@click.option("--seed", type=int, help="Makes poisson arrivals repeatable.")
@click.option("--csv-out", type=click.Path(dir_okay=False, path_type=Path), help="A row per request.")
@click.option(
    "--json-summary", is_flag=False, flag_value="-", metavar="[FILE]", help="Write the JSON there, not to stdout."
)
@click.option("--progress", is_flag=True, help="Show the live line also where stderr is no terminal.")
def command(
    target: Target,
    endpoint: str,
    policy: str | None,
    model: str | None,
    prompt: str | None,
    prompt_file: Path | None,
    max_tokens: int | None,
    stream: bool,
    api_key: str | None,
    csv_out: Path | None,
    json_summary: str | None,
    progress: bool,
    concurrency: int,
    **load: Any,
) -> None:
    """Send chat requests (or /v1/infer) at a fixed rate and report latencies, errors, providers and cost.

    The rate is kept whatever the server does (an open loop): a request that had to wait for a free connection counts
    its waiting, from the moment it was meant to be sent. With --qps 0 each connection sends as fast as it is answered.

    Point it at servers of your own: it asks as often as it is told, and real providers charge for every answer.
    The summary goes to stderr, the same as JSON to stdout. Ctrl-C ends early, with what was measured. Exit status: 0,
    1 if every request failed, 130 if Ctrl-C came before anything was measured. Private certificate authorities:
    SSL_CERT_FILE.
    """
    ask = Ask(endpoint, model, policy, max_tokens, stream, api_key or None)
    try:
        payloads = build_requests(target, ask, _prompts(prompt, prompt_file))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    allow_files(concurrency)
    sys.exit(_measure(target, ask, payloads, concurrency, load, csv_out, json_summary, progress))


def _prompts(prompt: str | None, prompt_file: Path | None) -> list[str]:
    if prompt_file is None:
        return [prompt or DEFAULT_PROMPT]
    if prompt is not None:
        raise click.UsageError("Give --prompt or --prompt-file, not both.")
    try:
        lines = prompt_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{prompt_file} cannot be read as UTF-8 text: {error}") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise click.UsageError(f"{prompt_file} holds no prompt; write one per line.")
    return prompts


def allow_files(concurrency: int) -> None:
    """Raise the limit of open files if the connections need it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    needed = concurrency + FILES_FOR_OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        raise click.UsageError(f"--concurrency {concurrency} needs {needed} open files, but only {hard} are allowed.")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _measure(
    target: Target,
    ask: Ask,
    payloads: list[bytes],
    concurrency: int,
    load: dict[str, Any],
    csv_out: Path | None,
    json_summary: str | None,
    progress: bool,
) -> int:
    from ..loadgen import report
    from ..loadgen.reply import reader
    from ..loadgen.run import Plan, Run
    from ..loadgen.stats import Recorder

    plan = Plan(
        qps=load["qps"],
        concurrency=concurrency,
        duration_s=load["duration"],
        warmup_s=load["warmup"],
        timeout_s=load["timeout"],
        arrival=load["arrival"],
        seed=load["seed"],
    )
    try:
        sink = report.CsvSink(csv_out, ask.policy or "") if csv_out is not None else None
    except OSError as error:
        raise click.UsageError(f"{csv_out} cannot be written: {error.strerror}") from None
    run = Run(target, payloads, plan, reader(ask.endpoint, ask.stream), Recorder(), sink.row if sink else None)
    live = report.Live(run, sys.stderr) if progress or sys.stderr.isatty() else None
    cpu_s, wall_s = time.process_time(), time.monotonic()
    try:
        execute(run, (lambda: live.tick(time.monotonic_ns())) if live else None)
    except OSError as error:
        raise click.ClickException(f"{target.host}: {error.strerror or error}") from None
    finally:
        if live is not None:
            live.end()
        if sink is not None:
            sink.close()
    cpu_s, wall_s = time.process_time() - cpu_s, time.monotonic() - wall_s
    figures = summarize(run, cpu_s, wall_s)
    click.echo(report.text(figures), err=True)
    _write_json(report.json_text(figures), json_summary)
    if sink is not None and sink.error is not None:
        raise click.ClickException(f"{csv_out} is not complete: {sink.error.strerror}")
    return exit_code(run)


def execute(run: Any, on_second: Callable[[], None] | None = None) -> None:
    """Run to the end or to the first Ctrl-C (or SIGTERM), on the fastest loop there is. Leaves the process's signal
    handlers as they were.
    """

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(NotImplementedError, ValueError):  # Windows; not the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, run.stop)
        await run.go(on_second)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    gc.collect()
    gc.freeze()  # what was imported is not looked through again and again
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(main())
    finally:
        gc.unfreeze()
        with contextlib.suppress(ValueError):  # not the main thread: none were set
            for number, handler in handlers.items():
                signal.signal(number, handler)


def summarize(run: Any, cpu_s: float, wall_s: float) -> dict[str, Any]:
    """Contracts E's JSON; the generator's own cost is in it, so that nobody measures the wrong program."""
    plan = run.plan
    figures = {"target_qps": plan.qps, **run.recorder.summary(run.measured_s, run.completed)}
    return figures | {
        "duration_s": round(run.measured_s, 3),
        "warmup_s": plan.warmup_s,
        "concurrency": plan.concurrency,
        "connections_opened": run.opened,
        "interrupted": run.interrupted,
        "generator_cpu_us_per_request": round(cpu_s / run.done * 1e6, 2) if run.done else 0.0,
        "generator_cpu_share": round(cpu_s / wall_s, 3) if wall_s > 0 else 0.0,
    }


def exit_code(run: Any) -> int:
    if run.recorder.requests == 0:
        return 130 if run.interrupted else 1
    return 1 if run.recorder.failures == run.recorder.requests else 0


def _write_json(text: str, where: str | None) -> None:
    if where in (None, "-"):
        click.echo(text, nl=False)
        return
    try:
        Path(str(where)).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{where} cannot be written: {error.strerror}") from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
