"""Bedrock without an API key, end to end: a whole gateway, credentials from AWS's own chain, and a stand-in for
Bedrock that computes every signature again with botocore and refuses what AWS would refuse (R63; PROTOCOLS.md 2.5).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.config.snapshot import Snapshot
from slipstream.providers.sigv4 import sign
from tests.aio import run, until
from tests.bedrock import Account, Bedrock, Login, Refused, Request, Vending, bedrock, vending
from tests.harness import (
    CHAT,
    Answer,
    Config,
    Gateway,
    Http,
    Served,
    ask,
    chat_body,
    compiled,
    config,
    gateway,
    mocks,
    scrape,
    served,
    to,
)
from tests.pace import soon
from tests.upstreams import Peer, free_port, upstream

pytest.importorskip("aiobotocore", reason="the extra 'bedrock' is not installed")
MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/a1b2c3d4"
REGION, OTHER_REGION = "us-east-1", "eu-central-1"
PASS = "canary-container-pass-9d8c7b"
SECRET = "canary/secret+key/wJalrXUtnFEMI"
TOKEN = "canary-token/IQoJb3JpZ2luX2Vj+EXAMPLE=="
STATIC = {"AKIASTATIC": Login(SECRET), "ASIATEMP": Login(SECRET, TOKEN)}


@pytest.fixture(autouse=True)
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_proxy: None) -> None:
    """A machine that has no credentials, whatever this one has."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO_"))]:
        monkeypatch.delenv(name)
    for name, value in without_credentials(tmp_path).items():
        monkeypatch.setenv(name, value)


def without_credentials(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "BOTO_CONFIG": str(folder / "boto"),
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def aws(standin: Bedrock | str, name: str = "aws", region: str = REGION, **keys: Any) -> Config:
    """The entry of a provider of type bedrock without a key."""
    base = standin if isinstance(standin, str) else standin.url
    names = {"claude": MODEL, "profile": ARN}
    return {"name": name, "type": "bedrock", "api_base": base, "region": region, "model_mapping": names, **keys}


async def talk(http: Http, model: str = "claude", stream: bool = False) -> tuple[Answer, str]:
    """One chat; the answer and the text in it."""
    answer = await http.ask("POST", CHAT, chat_body(model, stream=stream))
    if answer.status != 200:
        return answer, ""
    if not stream:
        return answer, answer.json()["choices"][0]["message"]["content"] or ""
    events = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return answer, "".join(choice["delta"].get("content") or "" for choice in choices)


async def everything(gate: Gateway, standin: Bedrock) -> None:
    """Chat and stream, by profile id and by ARN: all are answered, and reach Bedrock under the right name."""
    async with await Http.connect(gate.port) as http:
        for model, name in (("claude", MODEL), ("profile", ARN)):
            for stream in (False, True):
                answer, text = await talk(http, model, stream)
                assert answer.status == 200, answer.body
                assert text in standin.texts
                last = standin.served[-1]
                assert (last.model, last.action) == (name, "converse-stream" if stream else "converse")
    assert standin.refused == []


# ------------------------------------------------------------------ the stand-in itself


def test_the_stand_in_refuses_what_aws_refuses() -> None:
    now = time.time()
    standin = Bedrock(REGION, STATIC | {"ASIAOLD": Login("s", "t", now - 1)})
    standin.port = 1
    path, body = "/model/m%3A0/converse", b"{}"

    def send(path: str = path, sent: str = path, body: bytes = body, drop: str = "", **keys: Any) -> Any:
        given = {"access_key": "ASIATEMP", "secret_key": SECRET, "token": TOKEN, "region": REGION, "now": now} | keys
        fields = sign("POST", f"http://127.0.0.1:1{path}", {}, b"{}", service="bedrock", **given)
        fields = {"Host": "127.0.0.1:1"} | {name: value for name, value in fields.items() if name != drop}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = Request(f"POST {sent} HTTP/1.1\r\n{head}\r\n".encode(), body)
        return standin.check(request)

    assert send().model == "m:0"
    assert send(access_key="AKIASTATIC", token=None).key == "AKIASTATIC"
    for type, spoiled in [
        ("InvalidSignatureException", {"body": b"{ }"}),
        ("InvalidSignatureException", {"secret_key": "wrong"}),
        ("InvalidSignatureException", {"region": OTHER_REGION}),
        ("InvalidSignatureException", {"now": now - 600}),
        ("InvalidSignatureException", {"sent": "/model/m:0/converse"}),
        ("UnknownOperationException", {"path": "/model/m:0/converse", "sent": "/model/m:0/converse"}),
        ("UnrecognizedClientException", {"access_key": "AKIANOBODY"}),
        ("UnrecognizedClientException", {"token": None}),
        ("UnrecognizedClientException", {"token": "another"}),
        ("ExpiredTokenException", {"access_key": "ASIAOLD", "secret_key": "s", "token": "t"}),
        ("MissingAuthenticationTokenException", {"drop": "Authorization"}),
        ("IncompleteSignatureException", {"drop": "X-Amz-Date"}),
    ]:
        with pytest.raises(Refused) as caught:
            send(**spoiled)
        assert caught.value.type == type, spoiled


# ------------------------------------------------------------------ where credentials come from


@pytest.mark.parametrize("key", STATIC)
def test_from_the_environment(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    if STATIC[key].token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)

    async def main() -> None:
        async with bedrock(REGION, STATIC) as standin, gateway(config(aws(standin))) as gate:
            await everything(gate, standin)
            assert standin.keys == {key}

    run(main())


def write_profiles(folder: Path) -> None:
    (folder / "config").write_text("[profile work]\nregion = ap-south-1\n")
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = AKIADEFAULT\naws_secret_access_key = no\n"
        f"[work]\naws_access_key_id = ASIATEMP\naws_secret_access_key = {SECRET}\naws_session_token = {TOKEN}\n"
    )


def test_from_a_profile_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is the provider's, whatever the profile says."""
    write_profiles(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "work")

    async def main() -> None:
        async with bedrock(REGION, STATIC) as standin, gateway(config(aws(standin))) as gate:
            await everything(gate, standin)
            assert standin.keys == {"ASIATEMP"}

    run(main())


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch) -> Callable[[Vending], None]:
    """Point the chain at a ``Vending``."""

    def at(source: Vending) -> None:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", source.url)
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", source.pass_word)

    return at


def test_not_one_request_fails_while_credentials_rotate(container: Callable[[Vending], None]) -> None:
    """20 clients without a pause; each set of credentials lives two seconds, and the stand-in refuses it after that."""

    async def client(port: int, standin: Bedrock, failed: list[bytes]) -> int:
        done = 0
        async with await Http.connect(port) as http:
            while len(standin.keys) < 4 and not failed and time.monotonic() < end:
                for stream in (False, True):
                    answer, text = await talk(http, "profile" if done % 3 else "claude", stream)
                    done += 1
                    if answer.status != 200 or text not in standin.texts:
                        failed.append(answer.body)
        return done

    async def main() -> None:
        account: Account = {}
        async with vending(account, 2.0, PASS) as source, bedrock(REGION, account) as standin:
            container(source)
            async with gateway(config(aws(standin))) as gate:
                failed: list[bytes] = []
                done = await asyncio.gather(*(client(gate.port, standin, failed) for _ in range(20)))
                assert failed == []
                assert standin.refused == []
                assert len(standin.keys) >= 4, "at least three rotations"
                assert len(standin.served) == sum(done) > 60
                assert source.asked <= len(standin.keys) + 1, "no request asks for credentials"
                page = await scrape(gate.port)
                assert page.total("llm_proxy_requests_total", status_code="200") == sum(done)
            assert not refreshers()

    end = time.monotonic() + 60
    run(main())


def refreshers() -> list[str]:
    """The tasks that keep credentials fresh."""
    return [repr(task) for task in asyncio.all_tasks() if "_keep_fresh" in repr(task.get_coro())]


# ------------------------------------------------------------------ without credentials


def test_without_credentials_a_clear_502_and_everybody_else_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: what the file lacked may be added while the gateway runs."""

    async def main() -> None:
        async with bedrock(REGION, STATIC) as standin, mocks() as (mock,):
            conf = config(aws(standin), to(mock, models=["other"]))
            async with gateway(conf) as gate, await Http.connect(gate.port) as http:
                for stream in (False, True):
                    answer, _ = await talk(http, stream=stream)
                    assert (answer.status, answer.error["code"]) == (502, "upstream_auth_error")
                    assert "no AWS credentials for the provider 'aws'" in answer.error["message"]
                    for advice in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "role", "api_key"):
                        assert advice in answer.error["message"]
                    assert (await talk(http, "other", stream))[0].status == 200
                monkeypatch.setenv("AWS_PROFILE", "work")
                answer, _ = await talk(http)
                assert "ProfileNotFound" in answer.error["message"]
                assert (standin.served, standin.refused) == ([], [])
                write_profiles(tmp_path)
                answer, text = await talk(http)
                assert answer.status == 200, answer.body
                assert text in standin.texts

    run(main())


def test_without_credentials_a_provider_that_needs_none_is_asked() -> None:
    async def main() -> None:
        async with bedrock(REGION, STATIC) as standin, mocks() as (mock,):
            keyless = {name: value for name, value in to(mock, weight=1).items() if name != "api_key"}
            conf = config(aws(standin, weight=1000), keyless | {"type": "vllm", "models": ["claude"]})
            async with gateway(conf) as gate, await Http.connect(gate.port) as http:
                for _ in range(3):
                    assert (await talk(http))[0].status == 200

    run(main())


def test_nobody_waits_for_a_chain_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The instance's metadata service takes connections and says nothing: the gateway serves and ends all the same."""

    async def silent(peer: Peer) -> None:
        await peer.request()
        await asyncio.Event().wait()

    async def main() -> None:
        async with upstream(silent) as up, mocks() as (mock,):
            monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{up.port}")
            monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "60")
            conf = config(aws(f"http://127.0.0.1:{free_port()}"), to(mock, models=["other"]))
            begun = time.monotonic()
            async with gateway(conf) as gate:
                await until(lambda: up.open == 1)
                for path in ("/health", "/v1/readyz"):
                    assert (await ask(gate.port, "GET", path)).status == 200
                async with await Http.connect(gate.port) as http:
                    assert (await talk(http, "other"))[0].status == 200
                    waiting = asyncio.ensure_future(ask(gate.port, "POST", CHAT, chat_body("claude")))
                    assert (await talk(http, "other"))[0].status == 200
                    assert not waiting.done()
                    waiting.cancel()
                    await asyncio.wait([waiting])
            assert soon(time.monotonic() - begun, 5)

    run(main())


# ------------------------------------------------------------------ regions


def test_failover_to_another_region_is_signed_for_that_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIATEMP")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)

    async def main() -> None:
        async with bedrock(REGION, STATIC) as first, bedrock(OTHER_REGION, STATIC) as second:
            first.throttled = True
            conf = config(aws(first, "near", REGION), aws(second, "far", OTHER_REGION), routing={"retries": 1})
            async with gateway(conf) as gate, await Http.connect(gate.port) as http:
                for turn in range(4):
                    answer, text = await talk(http, "profile", stream=turn % 2 == 1)
                    assert answer.status == 200, answer.body
                    assert answer.headers["x-slipstream-provider"] == "far"
                    assert text in second.texts
                page = await scrape(gate.port)
                assert page.total("slipstream_failovers_total") == 1
            assert first.refused == ["ThrottlingException"], "a throttled region rests"
            assert len(second.served) == 4
            assert second.refused == []

    run(main())


def test_a_region_that_is_not_the_signed_one_is_a_502(monkeypatch: pytest.MonkeyPatch) -> None:
    """403 is about the gateway's credentials, not about the client's (R56)."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASTATIC")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    async def main() -> None:
        async with bedrock(REGION, STATIC) as standin, gateway(config(aws(standin, region=OTHER_REGION))) as gate:
            answer = await ask(gate.port, "POST", CHAT, chat_body("claude"))
            assert (answer.status, answer.error["code"]) == (502, "upstream_auth_error")
            assert standin.refused == ["InvalidSignatureException"]

    run(main())


# ------------------------------------------------------------------ reload


def test_a_reload_keeps_the_signer_of_what_stays_and_closes_that_of_what_goes(
    container: Callable[[Vending], None],
) -> None:
    async def main() -> None:
        account: Account = {}
        nearly: list[Snapshot] = []
        async with vending(account, 3600.0, PASS) as source, bedrock(REGION, account) as standin:
            container(source)
            stays, goes = aws(standin, "stays"), aws(standin, "goes", models=["gone"], model_mapping={})
            async with gateway(config(stays, goes), nearly.pop) as gate:
                await until(lambda: len(refreshers()) == 2)
                signer = gate.runtime.active.outbound["stays"].signer
                nearly.append(compiled(config(stays | {"weight": 3}, goes)))
                await gate.process.reload()
                assert len(refreshers()) == 2
                nearly.append(compiled(config(stays)))
                await gate.process.reload()
                assert gate.runtime.active.outbound["stays"].signer is signer
                assert len(refreshers()) == 1
                await everything(gate, standin)
                assert (source.asked, standin.keys) == (2, {standin.served[0].key})
                nearly.append(compiled(config(stays | {"region": "us-west-2"})))
                await gate.process.reload()
                assert gate.runtime.active.outbound["stays"].signer is not signer
                await until(lambda: len(refreshers()) == 1)
                answer = await ask(gate.port, "POST", CHAT, chat_body("claude"))
                assert answer.error["code"] == "upstream_auth_error"
                assert standin.refused == ["InvalidSignatureException"]
                assert len(refreshers()) == 1
            assert refreshers() == []

    run(main())


# ------------------------------------------------------------------ secrets


def test_secrets_are_nowhere(tmp_path: Path) -> None:
    """R84: a real process at the log level debug. Credentials that cannot be renewed, from a source that repeats them
    in its errors, and a Bedrock that repeats the signed fields in its own (as AWS does)."""

    async def main() -> None:
        account: Account = {}
        async with vending(account, 3.0, PASS, SECRET) as source, bedrock(REGION, account) as standin:
            env = without_credentials(tmp_path) | {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": source.url,
                "AWS_CONTAINER_AUTHORIZATION_TOKEN": PASS,
            }
            texts = await asyncio.to_thread(play_in_a_thread, config(aws(standin), log_level="debug"), env, source)
            assert standin.refused == ["InvalidSignatureException"] * 2
        issued = [*account.values()]
        assert issued
        for where, text in texts.items():
            for canary in ("canary", PASS, SECRET, *(one.token[:40] for one in issued)):
                assert canary not in text, where
            assert "Traceback" not in text, where
        assert texts["log"].count("\n") > 3, "there was something to search"

    run(main())


def play_in_a_thread(conf: Config, env: dict[str, str], source: Vending) -> dict[str, str]:
    """Both stand-ins live in the other thread's loop."""
    with served(conf, env=env) as running:
        texts = asyncio.run(play(running, source))
        running.wait_for_log("Refreshing temporary credentials failed")
        assert running.stop() == 0
        return texts | {"log": running.log, "stdout": running.announced}


async def play(running: Served, source: Vending) -> dict[str, str]:
    """Good answers, then refused signatures, then credentials that have expired; what was said."""
    seen: list[str] = []
    async with await Http.connect(running.port) as http:
        for stream in (False, True):
            answer, _ = await talk(http, stream=stream)
            assert answer.status == 200, answer.body
        issued = dict(source.account)
        source.broken = json.dumps([[one.secret, one.token] for one in issued.values()]).encode()
        source.account.update({key: login._replace(secret="another") for key, login in issued.items()})
        for stream in (False, True):
            answer, _ = await talk(http, stream=stream)
            seen.append(answer.body.decode())
            assert answer.error["code"] == "upstream_auth_error"
        await until(lambda: time.time() > max(one.ends for one in issued.values()))
        answer, _ = await talk(http)
        seen.append(answer.body.decode())
        assert "they have expired and could not be renewed" in answer.error["message"]
    return {"answers": "\n".join(seen), "metrics": (await scrape(running.port)).page}
