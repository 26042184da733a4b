"""A gateway as a process on the stage of the fault matrix: for what only a process has (signals, limits, logs, ends).

What ``matrix.Stage`` checks after every scenario is checked here too, as far as it can be seen from outside: nothing is
in flight, no traceback and no secret is in what it printed or shows, and it ends with 0 when it is asked to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from tests.aio import DEADLINE_S, until
from tests.harness import CHAT, Config, Http, Scrape, Served, clean_env, request_bytes, scrape, served, to
from tests.scenarios.matrix import CANARY, PATIENCE, key_of
from tests.scenarios.talk import chat


def entry(base: Any, name: str = "a", **keys: Any) -> Config:
    """The entry of a provider, with a canary for a key. Rows about limits of time name theirs."""
    keys["timeout"] = PATIENCE | keys.get("timeout", {})
    return to(base, name, **{"api_key": key_of(name), "models": ["m"], **keys})


@asynccontextmanager
async def house(conf: Config | Path, *, env: dict[str, str] | None = None, code: int = 0) -> AsyncIterator[Served]:
    """``slipstream serve``, once it listens; at the end it is asked to stop, if it has not."""
    with served(conf, env=env) as running:
        yield running
        if running.child.poll() is None:
            await settled(running)
            running.child.terminate()
        await until(lambda: running.child.poll() is not None, 2 * DEADLINE_S)
        assert running.child.returncode == code
        silent_about_secrets(running.log + running.announced)


async def settled(running: Served) -> Scrape:
    """What holds after every scenario; the metrics."""
    end = time.monotonic() + DEADLINE_S
    while (seen := await scrape(running.port)).total("llm_proxy_active_requests"):
        assert time.monotonic() < end, "requests are in flight for ever"
        await asyncio.sleep(0.01)
    silent_about_secrets(seen.page)
    return seen


def silent_about_secrets(text: str) -> None:
    assert CANARY not in text, text[:2000]
    assert "Traceback" not in text, text[-3000:]


@contextmanager
def spoken(conf: Config, folder: Path, stderr: Any) -> Iterator[Served]:
    """The same with another place for its log. It is killed at the end."""
    path = folder / "gateway.yaml"
    path.write_text(json.dumps(conf))
    (folder / "stderr.txt").touch()
    command = [sys.executable, "-W", "error", "-m", "slipstream", "serve", "--config", str(path)]
    with (folder / "stdout.txt").open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=stderr, env=clean_env(), cwd=folder)
    running = Served(child, folder)
    try:
        running.wait_for(lambda: "listens on" in running.announced or child.poll() is not None, "the gateway listens")
        assert child.poll() is None, f"ended with {child.returncode}"
        running.port = int(running.announced.split("127.0.0.1:")[1].split(" ")[0])
        yield running
    finally:
        child.kill()
        child.wait()


class Stream:
    """A client of one stream on a connection of its own."""

    def __init__(self, port: int, model: str = "m") -> None:
        self.port = port
        self.model = model
        self.here = 0
        """The client's port."""
        self.times: list[float] = []
        """When each piece came."""
        self.body = b""
        self.end = ""
        """``done``, ``error`` (in the stream), ``cut`` (without an end), or the status."""
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with await Http.connect(self.port) as http:
            self.here = http.writer.get_extra_info("sockname")[1]
            http.writer.write(request_bytes("POST", CHAT, chat(True, model=self.model)))
            with contextlib.suppress(ConnectionError):
                while data := await http.reader.read(65_536):
                    self.times.append(time.monotonic())
                    self.body += data
                    if self.body.endswith(b"\r\n0\r\n\r\n") or not self.body.startswith(b"HTTP/1.1 200"):
                        break
        self.end = self._how()

    def _how(self) -> str:
        if not self.body.startswith(b"HTTP/1.1 200"):
            return self.body[9:12].decode()
        if b"data: [DONE]" in self.body:
            return "done"
        return "error" if b'"error":' in self.body and self.body.endswith(b"0\r\n\r\n") else "cut"


async def streams(port: int, count: int, model: str = "m") -> list[Stream]:
    """So many, each with its first piece of content."""
    made = [Stream(port, model) for _ in range(count)]
    await until(lambda: all(b"data: " in one.body for one in made))
    return made


async def over(made: list[Stream], within_s: float = 2 * DEADLINE_S) -> list[str]:
    """How each of them ended."""
    await asyncio.wait_for(asyncio.gather(*(one.task for one in made)), within_s)
    return [one.end for one in made]


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
