"""A whole gateway for tests: inside the test's event loop, or as the process that users start.

Inside the loop is faster and lets a test look at tasks, sockets and ledgers; the process is for what only a process
has: signals, exit codes, standard output, logs. Both are context managers that always end what they started.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from slipstream.config.load import Overrides, load_snapshot
from slipstream.config.snapshot import Snapshot
from slipstream.engine.runtime import Runtime
from slipstream.mock.app import MockServer
from slipstream.mock.settings import MockSettings
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.server.process import Process
from tests.aio import DEADLINE_S

SHARED = Path(os.environ.get("SLIPSTREAM_SHARED") or Path(__file__).parents[2] / "shared")
KEY = "sk-test-0123456789"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
USER: Any = [{"role": "user", "content": "Hello there"}]
START_S = 20.0
"""A machine with two cores and other people's tests on it may be slow to start an interpreter."""
_URL = re.compile(r"listens on (http://\S+:(\d+))")

Config = dict[str, Any]


def config(*providers: Config, **server: Any) -> Config:
    """A configuration file's value on a free port; ``routing`` in ``server`` goes to its own place."""
    routing = server.pop("routing", {})
    return {
        "server": {"host": "127.0.0.1", "port": 0, **server},
        "providers": list(providers),
        "routing": routing,
    }


def to(mock: MockServer | str, name: str = "alpha", **keys: Any) -> Config:
    """The entry of a provider at ``mock`` (or at a base URL)."""
    base = mock if isinstance(mock, str) else mock.base_url
    return {"name": name, "api_base": base, "api_key": "upstream-" + name, **keys}


# ------------------------------------------------------------------ within the test's loop


@asynccontextmanager
async def mocks(count: int = 1, **settings: Any) -> AsyncIterator[list[MockServer]]:
    """Mock providers that answer at once, in this loop."""
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(count):
            server = MockServer(MockSettings(**({"mean_latency_ms": 0, "p95_latency_ms": 0, "seed": 1} | settings)))
            await server.start()
            stack.push_async_callback(server.stop)
            servers.append(server)
        yield servers


class Gateway:
    """A gateway in this loop."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.port = process.port

    @property
    def runtime(self) -> Runtime:
        assert self.process.runtime is not None
        return self.process.runtime

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def gateway(conf: Config, reload: Callable[[], Snapshot] | None = None) -> AsyncIterator[Gateway]:
    """``slipstream serve`` with this configuration, as a guest in this loop."""
    process = Process(compiled(conf), reload, embedded=True)
    ready = asyncio.Event()
    task = asyncio.create_task(process.run(lambda *_: ready.set()))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        task.result()
    try:
        yield Gateway(process)
    finally:
        process.stop()
        assert await asyncio.wait_for(task, 2 * DEADLINE_S) == 0


def compiled(conf: Config) -> Snapshot:
    with tempfile.TemporaryDirectory() as folder:
        path = write_config(Path(folder), conf)
        loaded = load_snapshot(
            config_path=str(path), overrides=Overrides(), env={}, cwd=Path(folder), provider_types=PROVIDER_TYPES
        )
    return loaded.snapshot


def write_config(folder: Path, conf: Config | str, name: str = "gateway.yaml") -> Path:
    path = folder / name
    path.write_text(conf if isinstance(conf, str) else json.dumps(conf, indent=1))  # JSON is YAML
    return path


# ------------------------------------------------------------------ as a process


class Served:
    """A running ``slipstream serve``. ``port`` is from what it announced."""

    def __init__(self, child: subprocess.Popen[bytes], folder: Path) -> None:
        self.child = child
        self.folder = folder
        self.port = 0
        self.start_s = 0.0

    @property
    def announced(self) -> str:
        return (self.folder / "stdout.txt").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="backslashreplace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_for(self, condition: Callable[[], bool], what: str, deadline_s: float = START_S) -> None:
        """Poll until the condition holds; a test that waits for nothing shows the log."""
        end = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{what}: not within {deadline_s} s; stderr: {self.log[-2000:]}")
            time.sleep(0.005)

    def wait_for_log(self, text: str) -> None:
        self.wait_for(lambda: text in self.log, f"the log says {text!r}")

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def ended(self, deadline_s: float = START_S) -> int:
        """Wait for the end; the exit code."""
        return self.child.wait(deadline_s)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.send(number)
        return self.ended()


@contextmanager
def served(
    conf: Config | str | Path | None, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Served]:
    """``python -m slipstream serve`` with this configuration (``None``: without ``--config``), once it listens."""
    born = time.monotonic()
    with launched(conf, *args, env=env, cwd=cwd) as running:

        def listens() -> bool:
            if running.child.poll() is not None:
                raise AssertionError(f"ended with {running.child.returncode}: {running.log}")
            found = _URL.search(running.announced)
            if found is not None:
                running.port = int(found[2])
            return found is not None

        running.wait_for(listens, "the gateway listens")
        running.start_s = time.monotonic() - born
        yield running


@contextmanager
def launched(
    conf: Config | str | Path | None, *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Served]:
    """The same, not waited for."""
    with tempfile.TemporaryDirectory(prefix="slipstream-") as name:
        folder = Path(name)
        flags = list(args)
        if conf is not None:
            flags += ["--config", str(conf if isinstance(conf, Path) else write_config(folder, conf))]
        command = [sys.executable, "-W", "error", "-m", "slipstream", "serve", *flags]
        with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as err:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=clean_env(env), cwd=cwd or folder)
        running = Served(child, folder)
        try:
            yield running
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(DEADLINE_S)
                except subprocess.TimeoutExpired:
                    child.kill()
            child.wait()


def command(
    *args: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``slipstream`` to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "slipstream", *args],
        capture_output=True,
        text=True,
        env=clean_env(env),
        cwd=cwd,
        timeout=START_S,
        check=False,
    )


def clean_env(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would configure a gateway, or send its requests through a proxy.

    ``SLIPSTREAM_LISTENER`` and ``SLIPSTREAM_TRANSPORT`` stay: the whole suite can be run over either implementation.
    """
    ours = ("OPENAI_", "AWS_", "MOCK_", "BEDROCK_")
    names = {"CONFIG_PATH", "PORT", "MASTER_API_KEY", "ROUTER_POLICY", "ADMIN_TOKEN", "ENABLE_MOCK_PROVIDER", "REGION"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith(ours) and not name.lower().endswith("_proxy")
    }
    return kept | dict(more or {})


# ------------------------------------------------------------------ talking to it


class Answer:
    """One HTTP answer. Header names are lower case; equal ones are joined."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, with exactly its keys."""
        (error,) = self.json().values()
        assert isinstance(error, dict)
        return error


class Http:
    """One client connection that stays open: bytes out, answers in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Http:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def __aenter__(self) -> Http:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        self.writer.write(request_bytes(method, path, body, headers))
        return await self.answer(head=method == "HEAD")

    async def answer(self, head: bool = False) -> Answer:
        """The next final answer."""
        status = 100
        while status < 200:
            raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
            lines = raw.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
        headers: dict[str, str] = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value.strip()}" if name in headers else value.strip()
        return Answer(status, headers, b"" if head else await asyncio.wait_for(self._body(headers), DEADLINE_S))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(headers.get("content-length", "0")))
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)


def request_bytes(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if body is not None:
        lines += ["Content-Type: application/json"] if "Content-Type" not in (headers or {}) else []
        lines += [f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


async def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request on a connection of its own."""
    async with await Http.connect(port) as http:
        return await http.ask(method, path, body, headers)


def chat_body(model: str = "m", **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": USER} | fields).encode()


class Scrape:
    """What ``/metrics`` says, read with Prometheus's own parser."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.families = {family.name: family for family in text_string_to_metric_families(page)}

    def rows(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        """The samples of this name whose labels include these."""
        return [
            (sample.labels, sample.value)
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.rows(name, **labels))


async def scrape(port: int) -> Scrape:
    answer = await ask(port, "GET", "/metrics")
    assert answer.status == 200
    return Scrape(answer.body.decode())
