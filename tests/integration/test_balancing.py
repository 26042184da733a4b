"""System C's file works unchanged and balances exactly; ``slipstream check`` says what is wrong with one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from slipstream.mock.app import MockServer
from tests.aio import run
from tests.harness import CHAT, Http, chat_body, command, config, gateway, mocks, scrape, served, to

SYSTEM_C = """\
server: {host: 0.0.0.0, port: 18000, master_api_key: ${MASTER_API_KEY}}
providers:
  - {name: Provider-1, api_base: ${API_BASE_URL}, api_key: ${API_KEY_1}, weight: 2, \
model_mapping: {"claude-4.5-sonnet": "actual-model-name"}}
  - {name: Provider-2, api_base: ${API_BASE_URL_2}, api_key: ${API_KEY_2}, weight: 1, \
model_mapping: {"claude-4.5-sonnet": "other-model-name"}}
verify_ssl: true
"""
MASTER = "master-key-of-system-c"
CONNECTIONS = 30


async def flood(port: int, total: int, key: str, model: str) -> None:
    """``total`` requests over kept connections, many in flight at a time."""
    body = chat_body(model)
    left = iter(range(total))

    async def one() -> None:
        async with await Http.connect(port) as http:
            for _ in left:
                answer = await http.ask("POST", CHAT, body, {"Authorization": f"Bearer {key}"})
                assert answer.status == 200, answer.body

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


def test_system_c_balances_two_to_one(tmp_path: Path) -> None:
    """3,000 requests, exactly 2,000 : 1,000; the file is found by ``CONFIG_PATH``, its variables in ``.env``."""

    async def main() -> None:
        async with mocks(2) as (first, second):
            (tmp_path / "system-c.yaml").write_text(SYSTEM_C)
            (tmp_path / ".env").write_text(
                f"MASTER_API_KEY={MASTER}\nAPI_KEY_1=key-one\nAPI_KEY_2='key-two'\n"
                f"API_BASE_URL={first.base_url}\nexport API_BASE_URL_2={second.base_url}\n"
            )
            env = {"CONFIG_PATH": "system-c.yaml"}
            await asyncio.to_thread(_serve_and_flood, tmp_path, env, asyncio.get_running_loop())
            assert (first.ledger.requests, second.ledger.requests) == (2000, 1000)
            assert (first.ledger.by_model, second.ledger.by_model) == (
                {"actual-model-name": 2000},
                {"other-model-name": 1000},
            )
            assert first.ledger.by_status == {200: 2000}
            assert len(first.ledger.by_key) == len(second.ledger.by_key) == 1
            assert first.ledger.by_key != second.ledger.by_key

    run(main(), timeout_s=60)


def _serve_and_flood(folder: Path, env: dict[str, str], loop: asyncio.AbstractEventLoop) -> None:
    with served(None, "--port", "0", env=env, cwd=folder) as running:
        _on(loop, flood(running.port, 3000, MASTER, "claude-4.5-sonnet"))
        seen = _on(loop, scrape(running.port))
        shares = {row["provider"]: value for row, value in seen.rows("llm_proxy_requests_total")}
        assert shares == {"Provider-1": 2000, "Provider-2": 1000}
        reused = "slipstream_upstream_connections_reused"  # contracts D: over 95 %; published with a heartbeat
        running.wait_for(lambda: _on(loop, scrape(running.port)).total(reused) > 2850, "connections are used again")
        assert running.stop() == 0


def _on(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(work, loop).result(60)


@pytest.mark.parametrize(("weights", "total"), [((2, 1), 3), ((5, 3, 2), 100), ((1, 0), 7), ((7, 1), 16)])
def test_exact_over_each_cycle(weights: tuple[int, ...], total: int) -> None:
    async def main() -> None:
        async with mocks(len(weights)) as servers:
            entries = [to(mock, f"p{n}", weight=w) for n, (mock, w) in enumerate(zip(servers, weights, strict=True))]
            async with gateway(config(*entries)) as running:
                for _ in range(2):
                    await flood(running.port, total, "none", "m")
            got = [mock.ledger.requests for mock in servers]
            assert got == [2 * total * weight // sum(weights) for weight in weights]

    run(main())


def test_weights_hold_within_each_model() -> None:
    """Only providers that serve the model take part."""

    async def main() -> None:
        async with mocks(3) as (a, b, c):
            conf = config(
                to(a, "a", models=["x"], weight=3), to(b, "b", models=["x", "y"]), to(c, "c", models=["y"], weight=4)
            )
            async with gateway(conf) as running:
                await flood(running.port, 40, "none", "x")
                await flood(running.port, 50, "none", "y")
            counts: list[dict[str, int]] = [_counts(mock) for mock in (a, b, c)]
            assert counts == [{"x": 30}, {"x": 10, "y": 10}, {"y": 40}]

    run(main())


def _counts(mock: MockServer) -> dict[str, int]:
    return mock.ledger.by_model


# ------------------------------------------------------------------ slipstream check

MISTAKES = """\
server:
  host: http://0.0.0.0
  port: 180000
  master_api_keys: ${MASTER_API_KEY}
providers:
  - name: Provider-1
    api_base: ftp://example.com/v1
    api_key: ${API_KEY_1}
    weight: -2
    model_mapping: {"claude-4.5-sonnet": 7}
  - name: Provider-1
    type: opena
    timeout: {idle_s: soon}
    headers: {Content-Length: "3"}
verify_ssl: perhaps
"""
FOUND = {
    2: ("server.host", "without scheme"),
    3: ("server.port", "between 0 and 65535"),
    4: ("server.master_api_keys", "did you mean 'master_api_key'?"),
    7: ("providers[0].api_base", "must begin with http:// or https://"),
    8: ("providers[0].api_key", "the variable API_KEY_1 is not set"),
    9: ("providers[0].weight", "between 0 and 1000"),
    10: ('providers[0].model_mapping["claude-4.5-sonnet"]', "must be text"),
    11: ("providers[1].name", "names are unique"),
    12: ("providers[1].type", "did you mean 'openai'?"),
    13: ("providers[1].timeout.idle_s", "must be a number"),
    14: ("providers[1].headers.Content-Length", "written by the gateway itself"),
    15: ("verify_ssl", "must be true or false"),
}


@pytest.mark.parametrize("verb", ["check", "serve"])
def test_every_mistake_is_named(verb: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(MISTAKES)
    done = command(verb, "--config", "bad.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == ({"check": 1, "serve": 2}[verb], "")
    problems = done.stderr.splitlines()
    assert len(problems) == len(FOUND)
    for problem, (line, (path, text)) in zip(problems, FOUND.items(), strict=True):
        assert problem.startswith(f"bad.yaml:{line}: {path}: ")
        assert text in problem


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("providers: [", "YAML syntax"),
        ("", "is empty"),
        ("[]", "broken.yaml:1"),
        ("providers: [{name: a, api_base: 'http://a'}]\nproviders: []\n", "broken.yaml:2"),
        ("a: &a [*a]", "broken.yaml:1"),
        ("\x00", "broken.yaml"),
    ],
)
def test_a_file_that_is_none(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    done = command("check", "--config", "broken.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_check_prints_the_routes_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "system-c.yaml").write_text(SYSTEM_C)
    env = {
        "MASTER_API_KEY": MASTER,
        "API_KEY_1": "canary-key-one",
        "API_KEY_2": "canary-key-two",
        "API_BASE_URL": "http://127.0.0.1:1/v1",
        "API_BASE_URL_2": "http://127.0.0.1:2/v1",
    }
    done = command("check", "--config", "system-c.yaml", env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("OK\n")
    for name in ("claude-4.5-sonnet", "Provider-1", "actual-model-name", "Provider-2"):
        assert name in done.stdout
    assert "canary" not in done.stdout
    assert MASTER not in done.stdout


def test_nothing_to_check(tmp_path: Path) -> None:
    for args in ([], ["--config", "absent.yaml"]):
        done = command("check", *args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Traceback" not in done.stderr


def test_schema_is_json(tmp_path: Path) -> None:
    done = command("check", "--schema", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    schema = json.loads(done.stdout)
    top = schema["$defs"][schema["$ref"].rpartition("/")[2]]
    assert set(top["properties"]) >= {"providers", "server", "routing", "verify_ssl"}
    assert top["additionalProperties"] is False
    references = {part.split('"')[0] for part in done.stdout.split('"$ref": "')[1:]}
    for reference in references:  # each leads somewhere within the document
        node: Any = schema
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]


def test_a_start_that_fails_shows_no_traceback(tmp_path: Path) -> None:
    done = command("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert "--demo" in done.stderr  # how to start without anything
    assert "Traceback" not in done.stderr
