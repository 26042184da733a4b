"""``slipstream loadgen`` as a user calls it: flags, JSON, CSV, live line, exit status, Ctrl-C."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from click.testing import CliRunner, Result

from slipstream.cli.loadgen import command
from slipstream.loadgen.report import CSV_COLUMNS, CsvSink
from slipstream.mock.app import MockServer
from tests.aio import DEADLINE_S
from tests.loadservers import head, mock, scripted, unused_port


@contextmanager
def in_thread(main: Callable[[asyncio.Future[str], asyncio.Event], Awaitable[None]]) -> Iterator[str]:
    """A server in a loop of its own, as the command has one of its own; what it says is its URL."""
    said: list[str] = []
    up = threading.Event()
    handles: list[Any] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        url, over = loop.create_future(), asyncio.Event()
        handles.extend((loop, over))
        task = loop.create_task(main(url, over))
        said.append(await url)
        up.set()
        await task

    def body() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert up.wait(DEADLINE_S)
        yield said[0]
    finally:
        handles[0].call_soon_threadsafe(handles[1].set)
        thread.join(DEADLINE_S)


@contextmanager
def mock_thread(**settings: Any) -> Iterator[tuple[str, MockServer]]:
    servers: list[MockServer] = []

    async def main(url: asyncio.Future[str], over: asyncio.Event) -> None:
        async with mock(**settings) as server:
            servers.append(server)
            url.set_result(server.base_url)
            await over.wait()

    with in_thread(main) as address:
        yield address, servers[0]


@contextmanager
def scripted_thread(reply: bytes) -> Iterator[tuple[str, list[bytes]]]:
    seen: list[list[bytes]] = []

    async def main(url: asyncio.Future[str], over: asyncio.Event) -> None:
        async with scripted(reply) as (address, requests):
            seen.append(requests)
            url.set_result(address)
            await over.wait()

    with in_thread(main) as address:
        yield address, seen[0]


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


PROMISED = (
    "target_qps achieved_qps requests failures success_rate error_rate p50_ms p90_ms p95_ms p99_ms total_cost_usd"
)


COUNTS = "target_qps achieved_qps requests failures success_rate error_rate total_cost_usd"
TIMES = "p50_ms p90_ms p95_ms p99_ms"


def test_command_with_every_flag(tmp_path: Path) -> None:
    """Contracts E: the flags, the fields of the JSON, the columns of the CSV."""
    table, summary, prompts = tmp_path / "out.csv", tmp_path / "out.json", tmp_path / "prompts.txt"
    prompts.write_text("Hello\n\nHello there\nÜber\n", encoding="utf-8")
    with mock_thread(error_rate=0.2) as (url, server):
        result = cli(
            *("--base-url", url, "--qps", "100", "--concurrency", "20", "--duration", "500ms", "--warmup", "100ms"),
            *("--policy", "cheapest", "--model", "gpt-x", "--prompt-file", str(prompts), "--max-tokens", "4"),
            *("--timeout", "5s", "--csv-out", str(table), "--json-summary", str(summary)),
            *("--api-key", "sk-test", "--endpoint", "chat", "--seed", "1", "--arrival", "constant"),
        )
        models, prompt_tokens = dict(server.ledger.by_model), server.ledger.prompt_tokens
    assert (result.exit_code, result.stdout) == (0, "")
    figures = json.loads(summary.read_text())
    assert {*COUNTS.split(), *TIMES.split()} <= set(figures)
    assert (figures["target_qps"], figures["requests"], figures["dropped"]) == (100.0, 50, 0)
    assert figures["failures"] == figures["statuses"]["500"] > 0
    assert figures["success_rate"] + figures["error_rate"] == pytest.approx(1)
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"] <= figures["max_ms"]
    assert figures["service_p50_ms"] > 0
    assert (figures["duration_s"], figures["warmup_s"]) == (0.5, 0.1)
    assert set(models) == {"gpt-x"}
    assert prompt_tokens > 0
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS == ("ts", "latency_ms", "success", "provider", "cost_usd", "policy", "code")
    assert len(rows) == 50
    assert {(row["success"], row["code"]) for row in rows} == {("true", "200"), ("false", "500")}
    assert {row["policy"] for row in rows} == {"cheapest"}
    assert all(float(row["latency_ms"]) > 0 for row in rows)
    assert rows[0]["ts"] < rows[-1]["ts"]
    assert rows[0]["ts"].endswith("Z")
    assert "50 requests in 0.5 s" in result.stderr


def test_infer() -> None:
    """``/v1/infer`` says who answered and what it cost."""
    answer = b'{"provider":"p","text":"t","cost_usd":0.001,"latency_ms":1,"request_id":"r"}'
    reply = head("Content-Type: application/json", f"Content-Length: {len(answer)}") + answer
    with scripted_thread(reply) as (url, requests):
        result = cli(
            *("--base-url", url, "--endpoint", "infer", "--qps", "100", "--duration", "0.1"),
            *("--policy", "canary", "--prompt", "Hi", "--api-key", "k", "--json-summary"),
        )
    figures = json.loads(result.stdout)
    assert (figures["requests"], figures["providers"]) == (10, {"p": 10})
    assert figures["total_cost_usd"] == pytest.approx(0.01)
    assert requests[0].startswith(b"POST /v1/infer HTTP/1.1\r\n")
    assert b"X-API-Key: k\r\n" in requests[0]
    assert json.loads(requests[0].partition(b"\r\n\r\n")[2]) == {"prompt": "Hi", "policy": "canary"}


def test_stream_and_json_on_stdout() -> None:
    with mock_thread() as (url, server):
        result = cli("--base-url", url, "--stream", "--qps", "0", "--concurrency", "2", "--duration", "200ms")
        assert server.ledger.streams == server.ledger.requests
    figures = json.loads(result.stdout)
    assert figures["ttft_p50_ms"] <= figures["p50_ms"]
    assert "TTFT" in result.stderr
    assert "closed loop" in result.stderr
    assert figures["generator_cpu_us_per_request"] > 0
    assert figures["connections_opened"] == 2


def test_everything_failed() -> None:
    result = cli("--base-url", f"http://127.0.0.1:{unused_port()}", "--qps", "50", "--duration", "0.1")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["statuses"] == {"connect": 5}


def test_live_line() -> None:
    with mock_thread() as (url, _):
        result = cli("--base-url", url, "--qps", "50", "--duration", "1.3", "--progress")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("[")]
    for part in ("QPS", "in flight", "0 errors", "p95", "###"):
        assert part in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--base-url", "ftp://h"], "begins with http"),
        (["--base-url", "http://"], "names no host"),
        (["--duration", "0"], "above 0"),
        (["--duration", "soon"], "not a duration"),
        (["--timeout", "25h"], "at most 24h"),
        (["--concurrency", "0"], "--concurrency"),
        (["--prompt", "a", "--prompt-file", os.devnull], "not both"),
        (["--prompt-file", os.devnull], "no prompt"),
        (["--api-key", "a\nb"], "printable"),
        (["--csv-out", "/nonexistent/x.csv"], "cannot be written"),
    ],
)
def test_wrong_use(arguments: list[str], told: str) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr


@pytest.mark.parametrize("host", ["no..body", "x" * 64])
def test_host_that_cannot_be(host: str) -> None:
    """Names that no resolver is asked for."""
    result = cli("--base-url", f"http://{host}", "--duration", "0.1")
    assert result.exit_code == 1
    assert host in result.stderr


def test_csv_cannot_be_a_formula_and_a_full_disk_ends_only_the_csv(tmp_path: Path) -> None:
    sink = CsvSink(tmp_path / "a.csv", "")
    sink.row(0, 1_000_000, "200", True, "=cmd()", 0.0)
    sink.close()
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "1970-01-01T00:00:00.000000Z,1.000,true,'=cmd(),0,,200"
    if os.path.exists("/dev/full"):
        sink = CsvSink(Path("/dev/full"), "")
        for _ in range(5000):
            sink.row(0, 0, "200", True, "", 0.0)
        assert sink.error is not None
        sink.close()


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command_line = [sys.executable, "-W", "error", "-m", "slipstream", "loadgen", "--progress", *arguments]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize(("warmup", "exit_code"), [("0s", 0), ("60s", 130)])
def test_ctrl_c(warmup: str, exit_code: int) -> None:
    with (
        mock_thread() as (url, _),
        process("--base-url", url, "--duration", "60s", "--warmup", warmup, "--qps", "50") as child,
    ):
        assert child.stderr is not None
        line = child.stderr.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == exit_code, err
    assert ("warming up" in line) == (exit_code == 130)
    figures = json.loads(out)
    assert figures["interrupted"] is True
    assert (figures["requests"] > 40) == (exit_code == 0)
