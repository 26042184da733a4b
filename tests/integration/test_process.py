"""``slipstream serve`` as users run it: how it starts, reloads, drains, and what it says when it cannot."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.aio import DEADLINE_S
from tests.harness import CHAT, Config, Served, chat_body, command, config, served, write_config
from tests.pace import soon

ANSWER = "This is a mock answer, made of nothing but words. This is a"
JSON = {"Content-Type": "application/json"}


def fake(name: str = "mock", **keys: Any) -> Config:
    """A provider within the gateway: these tests want a process, not a network."""
    settings = {"mean_latency_ms": 0, "p95_latency_ms": 0} | keys.pop("mock", {})
    return {"name": name, "type": "mock", "mock": settings, **keys}


@contextmanager
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * DEADLINE_S)
    try:
        yield client
    finally:
        client.close()


def ask(port: int, model: str = "m", method: str = "POST", path: str = CHAT) -> tuple[int, Any]:
    """One request on a connection of its own: status and decoded body."""
    with connection(port) as client:
        client.request(method, path, chat_body(model) if method == "POST" else None, JSON)
        answer = client.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if body.startswith((b"{", b"[")) else body.decode()


def begin_stream(client: http.client.HTTPConnection, model: str = "m") -> http.client.HTTPResponse:
    """Ask for a stream and wait for its first event."""
    client.request("POST", CHAT, chat_body(model, stream=True), JSON)
    answer = client.getresponse()
    assert answer.status == 200
    assert answer.readline().startswith(b"data: ")
    return answer


def value_of(port: int, name: str) -> float:
    page = ask(port, method="GET", path="/metrics")[1]
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


# ------------------------------------------------------------------ start


def test_start_is_quick() -> None:
    """Loose here (a shared machine); ``bench/`` measures it properly (R80)."""
    with served(config(fake())) as running:
        since = time.monotonic()
        assert ask(running.port)[0] == 200
        took = running.start_s + time.monotonic() - since
        print(f"from the start to the first 200: {took * 1000:.0f} ms")
        assert soon(took, 2.0)


def test_demo() -> None:
    """It starts on nothing, and the curl that it prints works as it stands."""
    with served(None, "--demo", "--port", "0") as running:
        url, body = re.findall(r"curl (\S+) -H .*\n.*-d '(.*)'", running.announced)[0]
        assert url == f"http://127.0.0.1:{running.port}{CHAT}"
        with connection(running.port) as client:
            client.request("POST", CHAT, body, JSON)
            answer = client.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["choices"][0]["message"]["content"] == ANSWER
        assert f'base_url="{running.url}"' in running.announced
        models = {model["id"] for model in ask(running.port, method="GET", path="/v1/models")[1]["data"]}
        assert {"demo", "demo-fast", "demo-cheap"} <= models
        assert "this machine only" in running.announced
        assert running.stop() == 0


def test_environment_alone(tmp_path: Path) -> None:
    """Contracts E: a mock provider and a port, and no file; without a key this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"ENABLE_MOCK_PROVIDER": "1", "PORT": str(port), "MOCK_MEAN_LATENCY_MS": "1", "MOCK_ERROR_RATE": "0"}
    with served(None, env=env, cwd=tmp_path) as running:
        assert running.port == port
        assert ask(port, "mock")[1]["choices"][0]["message"]["content"] == ANSWER
        assert "this machine only" in running.announced
        assert running.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_port_in_use(workers: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("serve", "--demo", "--port", port, "--workers", str(workers))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    conf = config(fake(weight=-1), fake(), routing={"retries": "many"})
    done = command("serve", "--config", str(write_config(tmp_path, conf)))
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 3
    for path in ("providers[0].weight", "providers[1].name", "routing.retries"):
        assert path in done.stderr


# ------------------------------------------------------------------ reload


@pytest.mark.parametrize("workers", [1, 2])
def test_reload(workers: int, tmp_path: Path) -> None:
    """SIGHUP: the new file holds for new requests; the stream that was open goes on with the old one (R42, R81)."""
    slow = {"mock": {"mean_latency_ms": 0, "tokens_per_s": 25.0}}
    path = write_config(tmp_path, config(fake(models=["m"], **slow)))
    with served(path, "--workers", str(workers)) as running, connection(running.port) as client:
        stream = begin_stream(client)
        assert ask(running.port, "new")[0] == 404
        write_config(tmp_path, config(fake("other", models=["new"])))
        running.send(signal.SIGHUP)
        running.wait_for(lambda: running.log.count("configuration reloaded") == workers, "reloaded")
        assert ask(running.port, "new")[0] == 200
        assert ask(running.port, "m")[0] == 404
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert running.stop() == 0
        assert "Traceback" not in running.log


def test_several_reloads_during_one_stream(tmp_path: Path) -> None:
    """R42: the provider is kept by one reload and dropped by the next, while a stream of the first file uses it."""
    kept = fake("kept", models=["m"], mock={"tokens_per_s": 8.0})
    path = write_config(tmp_path, config(kept))
    with served(path) as running, connection(running.port) as client:
        stream = begin_stream(client)
        for number, providers in enumerate(([kept, fake("b", models=["b"])], [fake("c", models=["c"])]), 1):
            write_config(tmp_path, config(*providers))
            running.send(signal.SIGHUP)
            running.wait_for(lambda n=number: running.log.count("configuration reloaded") == n, "reloaded")  # type: ignore[misc]
        assert ask(running.port, "c")[0] == 200
        assert ask(running.port, method="GET", path="/health/detailed")[1]["in_flight"] == 1  # the stream is still open
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert running.stop() == 0


def test_bad_reload_changes_nothing(tmp_path: Path) -> None:  # R81, Q24
    path = write_config(tmp_path, config(fake(models=["m"])))
    with served(path) as running:
        write_config(tmp_path, config(fake(models=["new"], weight=-1, nonsense=1)))
        running.send(signal.SIGHUP)
        running.wait_for_log("providers[0].nonsense")
        assert running.log.count("configuration not reloaded") == 2  # a line for each problem
        assert "providers[0].weight" in running.log
        assert (ask(running.port, "m")[0], ask(running.port, "new")[0]) == (200, 404)
        assert value_of(running.port, 'slipstream_config_reloads_total{result="failed"}') == 1
        path.unlink()
        running.send(signal.SIGHUP)
        running.wait_for_log("cannot be read")
        assert ask(running.port, "m")[0] == 200
        write_config(tmp_path, config(fake(models=["new"])))
        running.send(signal.SIGHUP)
        running.wait_for_log("configuration reloaded")
        assert (ask(running.port, "m")[0], ask(running.port, "new")[0]) == (404, 200)
        assert running.stop() == 0


# ------------------------------------------------------------------ end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
def test_drain(number: signal.Signals, workers: int) -> None:
    """R79, Q22: the port closes at once, the stream in flight is finished, then exit 0."""
    conf = config(fake(mock={"tokens_per_s": 25.0}))
    with served(conf, "--workers", str(workers)) as running, connection(running.port) as client:
        stream = begin_stream(client)
        running.send(number)
        running.wait_for(lambda: refused(running.port), "the port is closed")
        assert running.child.poll() is None
        assert stream.read().endswith(b"data: [DONE]\n\n")
        assert running.ended() == 0
        assert "Traceback" not in running.log


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_second_signal(workers: int) -> None:
    """Q22: who does not want to wait says it twice."""
    with served(config(fake()), "--workers", str(workers)) as running, connection(running.port) as client:
        stream = begin_stream(client, "mock/stall-mid")
        running.send(signal.SIGTERM)
        running.wait_for(lambda: refused(running.port), "the port is closed")
        start = time.monotonic()
        running.send(signal.SIGTERM)
        code = running.ended(DEADLINE_S)
        assert soon(time.monotonic() - start, 2)
        assert code == 128 + signal.SIGTERM
        stream.close()


def test_idle_gateway_ends_at_once() -> None:  # Q22
    with served(config(fake())) as running, connection(running.port) as client:
        client.request("GET", "/health")
        assert client.getresponse().read()  # and the connection stays open, idle
        start = time.monotonic()
        assert running.stop() == 0
        assert soon(time.monotonic() - start, 2)


# ------------------------------------------------------------------ workers


def workers_of(running: Served) -> set[int]:
    task = Path(f"/proc/{running.child.pid}/task/{running.child.pid}/children")
    return {int(pid) for pid in task.read_text().split()}


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for children in /proc")


@needs_proc
def test_workers() -> None:
    """Both serve; one that is killed is replaced, and the other serves meanwhile."""
    with served(config(fake()), "--workers", "2") as running:
        running.wait_for(lambda: len(workers_of(running)) == 2, "two workers")
        first = workers_of(running)
        _each_serves_alone(running, first)
        victim = first.pop()
        os.kill(victim, signal.SIGKILL)
        for _ in range(20):
            assert ask(running.port)[0] == 200
        running.wait_for(lambda: len(workers_of(running) - {victim}) == 2, "a new worker")
        _each_serves_alone(running, workers_of(running))
        assert f'"pid":{victim}' in running.log
        assert running.stop() == 0
        assert refused(running.port)


@needs_proc
def test_a_new_worker_has_the_new_configuration(tmp_path: Path) -> None:
    """After a reload a worker that dies is not replaced by one of yesterday."""
    path = write_config(tmp_path, config(fake(models=["m"])))
    with served(path, "--workers", "2") as running:
        running.wait_for(lambda: len(workers_of(running)) == 2, "two workers")
        write_config(tmp_path, config(fake(models=["new"])))
        running.send(signal.SIGHUP)
        running.wait_for(lambda: running.log.count("configuration reloaded") == 2, "reloaded")
        write_config(tmp_path, "providers: [")  # a bad file later on changes nothing for anybody
        running.send(signal.SIGHUP)
        running.wait_for_log("configuration not reloaded")  # once: the supervisor reads it first, nobody else is told
        old = workers_of(running)
        for victim in old:
            os.kill(victim, signal.SIGKILL)
        running.wait_for(lambda: len(workers_of(running) - old) == 2, "new workers")
        _each_serves_alone(running, workers_of(running), "new")
        assert ask(running.port, "m")[0] == 404
        assert running.stop() == 0


def _each_serves_alone(running: Served, workers: set[int], model: str = "m") -> None:
    """While the others are stopped, each of them answers."""
    for one in workers:
        for other in workers - {one}:
            os.kill(other, signal.SIGSTOP)
        try:
            assert ask(running.port, model)[0] == 200
        finally:
            for other in workers - {one}:
                os.kill(other, signal.SIGCONT)
