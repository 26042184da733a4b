"""Configuration that is right: files, variables, ``.env``, precedence, environment alone, demo."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from slipstream.config.environment import demo_snapshot
from slipstream.config.expand import expand, parse_env_file
from slipstream.config.load import Loaded, Overrides, load_snapshot
from slipstream.config.schema import ServerFile
from slipstream.config.snapshot import Cors, Price, ProviderType, RoutingSpec, ServerSpec, Timeouts
from slipstream.errors import ConfigError
from slipstream.types import FailureClass

SYSTEM_C = """\
server: {host: 0.0.0.0, port: 18000, master_api_key: ${MASTER_API_KEY}}
providers:
  - {name: Provider-1, api_base: ${API_BASE_URL}, api_key: ${API_KEY_1}, weight: 2, model_mapping: {"claude-4.5-sonnet": "actual-model-name"}}
verify_ssl: true
"""  # noqa: E501
SYSTEM_C_ENV = {"MASTER_API_KEY": "sk-master", "API_BASE_URL": "https://llm.example/v1/", "API_KEY_1": "sk-up"}


NO_FLAGS = Overrides()


@dataclass(frozen=True)
class Row:
    default_base: str | None = None
    needs_key: bool = True
    needs_base: bool = False


TYPES: Mapping[str, ProviderType] = {
    "openai": Row("https://api.openai.com/v1"),
    "vllm": Row(needs_key=False, needs_base=True),
    "bedrock": Row(needs_key=False),
    "azure": Row(needs_base=True),
    "mock": Row(needs_key=False),
}


def load(
    folder: Path,
    text: str | None = None,
    env: Mapping[str, str] | None = None,
    *,
    name: str = "config.yaml",
    config_path: str | None = None,
    overrides: Overrides = NO_FLAGS,
    types: Mapping[str, ProviderType] = TYPES,
) -> Loaded:
    if text is not None:
        (folder / name).write_text(text, encoding="utf-8")
    return load_snapshot(config_path=config_path, overrides=overrides, env=env or {}, cwd=folder, provider_types=types)


ONE = "providers: [{name: a, api_base: http://h/v1, api_key: k}]\n"


def test_system_c_file_unchanged(tmp_path: Path) -> None:
    loaded = load(tmp_path, SYSTEM_C, SYSTEM_C_ENV)
    snapshot = loaded.snapshot
    (provider,) = snapshot.providers
    assert (snapshot.server.host, snapshot.server.port, snapshot.verify_ssl) == ("0.0.0.0", 18000, True)
    assert snapshot.server.master_api_key is not None
    assert snapshot.server.master_api_key.reveal() == "sk-master"
    assert (provider.name, provider.type, provider.weight) == ("Provider-1", "openai", 2)
    assert provider.api_base == "https://llm.example/v1"
    assert provider.api_key.reveal() == "sk-up"
    assert provider.upstream_model("claude-4.5-sonnet") == "actual-model-name"
    assert provider.upstream_model("gpt-4o") is None
    assert snapshot.routing.policy == "weighted_round_robin"
    assert loaded.path == tmp_path / "config.yaml"
    assert loaded.notes == []


def test_the_configuration_that_accept_writes(tmp_path: Path) -> None:
    providers = [
        {
            "name": f"p{n}", "type": kind, "api_base": f"http://127.0.0.1:9/{kind}", "api_key": "k",
            "headers": {"x-replay-id": f"openai/x-{n}", "x-replay-chunk": "bytes:1"},
            "model_mapping": {f"openai/x-{n}": "gpt-4o"}, "timeout": {"first_byte_s": 5, "idle_s": 5, "total_s": 8},
            **extra,
        }
        for n, (kind, extra) in enumerate(
            [("openai", {}), ("bedrock", {"region": "us-west-2"}), ("azure", {"api_version": "2024-10-21"})]
        )
    ]  # fmt: skip
    file = {
        "server": {"host": "127.0.0.1", "port": 4000, "master_api_key": "sk-test"},
        "providers": providers,
        "routing": {"retries": 0},
    }
    snapshot = load(tmp_path, json.dumps(file), name="g.json", config_path="g.json").snapshot
    assert [p.type for p in snapshot.providers] == ["openai", "bedrock", "azure"]
    assert snapshot.providers[0].timeouts == Timeouts(first_byte_s=5, idle_s=5, total_s=8)
    assert snapshot.providers[0].headers["x-replay-chunk"].reveal() == "bytes:1"
    assert snapshot.providers[2].api_version == "2024-10-21"
    assert snapshot.routing.retries == 0


def test_every_native_key(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    snapshot = load(
        tmp_path,
        """
        server: {workers: 4, cors: {origins: ["https://a.example"], max_age_s: 5}, max_body_bytes: 1_048_576,
                 max_connections: 9, log_level: debug, access_log: yes, state_dir: state}
        providers:
          - &base
            name: a
            api_key: k
            api_version: 2024-10-21
            models: [gpt-4o, "gpt-4*"]
            price: {input: 2.5, output: 1e1}
            max_connections: 7
            timeout: {send_s: 4}
          - {<<: *base, name: b, weight: 0}
          - name: m
            type: mock
            models: [demo]
            mock: {mean_latency_ms: 5, seed: null, cost_per_1k_tokens_usd: 0.002}
        routing: {policy: canary, retries: 1, fallbacks: {gpt-4o: [demo]}, on_disconnect: {gpt-4o: finish, demo: cancel,
          "gpt-4*": {finish_after_tokens: 9}},
          retry_on: [connect, rate_limited]}
        verify_ssl: false
        ca_file: ca.pem
        """,
    ).snapshot
    a, b, m = snapshot.providers
    assert snapshot.server.cors == Cors(("https://a.example",), 5)
    assert (snapshot.server.workers, snapshot.server.max_body_bytes) == (4, 1 << 20)
    assert (snapshot.server.max_connections, ServerSpec().max_connections) == (9, ServerFile().max_connections)
    assert snapshot.server.access_log is True
    assert snapshot.server.state_dir == str(tmp_path / "state")
    assert snapshot.ca_file == str(tmp_path / "ca.pem")
    assert (a.api_base, a.api_version, a.models, a.patterns) == (
        "https://api.openai.com/v1", "2024-10-21", ("gpt-4o",), ("gpt-4",),
    )  # fmt: skip
    assert (a.price, a.max_connections) == (Price(2.5, 10.0), 7)
    assert (b.name, b.weight, b.max_connections) == ("b", 0, 7)
    assert m.mock == {"mean_latency_ms": 5.0, "seed": None, "cost_per_1k_tokens_usd": 0.002}
    assert m.price == Price(2.0, 2.0)
    assert a.mock is None
    assert dict(snapshot.routing.fallbacks) == {"gpt-4o": ("demo",)}
    assert snapshot.routing.retry_on == {FailureClass.CONNECT, FailureClass.RATE_LIMITED}
    assert RoutingSpec().retry_on is None
    assert snapshot.routing.on_disconnect == {"gpt-4o": 0, "demo": None, "gpt-4*": 9}
    assert (a.timeouts.send_s, m.timeouts.send_s) == (4.0, 30.0)


def test_cors_switch(tmp_path: Path) -> None:
    assert load(tmp_path, ONE + "server: {cors: false}").snapshot.server.cors.origins == ()
    assert load(tmp_path, ONE + "server: {cors: true}").snapshot.server.cors == Cors()


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("p-${A}-${B:-d}-s", {"A": "x"}, "p-x-d-s"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-}", {}, ""),
        ("${A:-http://h:1/a, b}", {}, "http://h:1/a, b"),
        ("$${A} $A $", {"A": "x"}, "${A} $A $"),
        ("${A}", {"A": "${B}", "B": "no"}, "${B}"),
    ],
)
def test_expand(text: str, env: dict[str, str], expected: str) -> None:
    assert expand(text, env) == (expected, [])


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A", "${A:?x}", "${A B}"])
def test_expand_broken(text: str) -> None:
    assert "broken" in expand(text, {"A": "x"})[1][0]


def test_values_of_variables_never_become_structure(tmp_path: Path) -> None:
    evil = "k, weight: 9}, {name: evil, x: 'y' #"
    text = "providers: [{name: a, api_base: http://h, api_key: ${K}, weight: ${W:-3}}]\nserver: {port: ${P}}\n"
    snapshot = load(tmp_path, text, {"K": evil, "P": "81"}).snapshot
    (provider,) = snapshot.providers
    assert (provider.api_key.reveal(), provider.weight, snapshot.server.port) == (evil, 3, 81)


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_a_whole_reference_becomes_number_or_switch(tmp_path: Path, quote: str) -> None:
    text = (
        ONE + f"verify_ssl: {quote}${{V:-no}}{quote}\nserver: {{port: {quote}${{P}}{quote}, log_level: ${{L:-error}}}}"
    )
    snapshot = load(tmp_path, text, {"P": "99"}).snapshot
    assert (snapshot.verify_ssl, snapshot.server.port, snapshot.server.log_level) == (False, 99, "error")


def test_variables_in_free_keys(tmp_path: Path) -> None:
    text = "providers: [{name: a, api_key: k, model_mapping: {${M}: up, '$${M}': lit}}]"
    (provider,) = load(tmp_path, text, {"M": "pub"}).snapshot.providers
    assert provider.model_mapping == {"pub": "up", "${M}": "lit"}


def test_dotenv(tmp_path: Path) -> None:
    text = """\
# comment
export API_KEY_1="sk \\"q\\" \\\\ \\n" # why
API_BASE_URL = http://h:1/v1   # tail
MASTER_API_KEY='lit # $X'
EMPTY=
broken line with sk-canary
OPEN="sk-canary
HASH=a#b
"""
    values, notes = parse_env_file(text)
    assert values == {
        "API_KEY_1": 'sk "q" \\ \n', "API_BASE_URL": "http://h:1/v1", "MASTER_API_KEY": "lit # $X", "EMPTY": "",
        "HASH": "a#b",
    }  # fmt: skip
    assert [note.split(":")[1] for note in notes] == ["6", "7"]
    assert "canary" not in "".join(notes)


def test_dotenv_is_read_and_the_real_environment_wins(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MASTER_API_KEY=from-file\nAPI_BASE_URL=http://h\nAPI_KEY_1=from-file\n")
    snapshot = load(tmp_path, SYSTEM_C, {"API_KEY_1": "real"}).snapshot
    assert snapshot.providers[0].api_key.reveal() == "real"
    assert snapshot.server.master_api_key is not None
    assert snapshot.server.master_api_key.reveal() == "from-file"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"A=" + b"x" * (1 << 20)])
def test_unreadable_dotenv_is_a_note(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".env").write_bytes(content)
    loaded = load(tmp_path, ONE)
    assert any(note.startswith(".env: not read") for note in loaded.notes)


def test_which_file(tmp_path: Path) -> None:
    for name in ("flag", "env", "config"):
        (tmp_path / f"{name}.yaml").write_text(ONE.replace("name: a", f"name: {name}"))

    def chosen(config_path: str | None = None, **env: str) -> str:
        return load(tmp_path, None, env, config_path=config_path).snapshot.providers[0].name

    assert chosen() == "config"
    assert chosen(CONFIG_PATH="env.yaml") == "env"
    assert chosen(CONFIG_PATH="") == "config"
    assert chosen("flag.yaml", CONFIG_PATH="env.yaml") == "flag"
    (tmp_path / ".env").write_text("CONFIG_PATH=env.yaml\n")
    assert chosen() == "env"
    (tmp_path / "config.yaml").unlink()
    (tmp_path / ".env").unlink()
    assert chosen(ENABLE_MOCK_PROVIDER="1") == "mock"


def test_port_and_policy_precedence(tmp_path: Path) -> None:
    def port(text: str, env: dict[str, str], flag: int | None = None) -> int:
        return load(tmp_path, ONE + text, env, overrides=Overrides(port=flag)).snapshot.server.port

    assert port("", {}) == 8080
    assert port("", {"PORT": "81"}) == 81
    assert port("server: {port: 82}", {"PORT": "81"}) == 82
    assert port("server: {port: 82}", {"PORT": "81"}, 0) == 0
    assert load(tmp_path, ONE, {"ROUTER_POLICY": "cheapest"}).snapshot.routing.policy == "cheapest"
    text = ONE + "routing: {policy: canary}"
    assert load(tmp_path, text, {"ROUTER_POLICY": "cheapest"}).snapshot.routing.policy == "canary"


def test_host_follows_the_key(tmp_path: Path) -> None:
    def host(text: str, flag: str | None = None) -> tuple[str, int]:
        loaded = load(tmp_path, ONE + text, overrides=Overrides(host=flag))
        return loaded.snapshot.server.host, len(loaded.notes)

    assert host("") == ("127.0.0.1", 1)
    assert host("server: {master_api_key: k}") == ("0.0.0.0", 0)
    assert host("server: {host: '::'}") == ("::", 1)
    assert host("", "10.0.0.1") == ("10.0.0.1", 1)
    assert host("server: {master_api_key: k, host: 127.0.0.1}", "h") == ("h", 0)


def test_overrides(tmp_path: Path) -> None:
    flags = Overrides(host="::1", port=9, workers=3, log_level="error")
    server = load(tmp_path, ONE, overrides=flags).snapshot.server
    assert (server.host, server.port, server.workers, server.log_level) == ("::1", 9, 3, "error")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ONE, overrides=Overrides("a b", 70000, 0, "loud"))
    assert [p.split(":")[0] for p in caught.value.problems] == ["--host", "--port", "--workers", "--log-level"]


def test_environment_alone(tmp_path: Path) -> None:
    env = {
        "PORT": "9090", "ROUTER_POLICY": "slo_burn_aware", "OPENAI_API_KEY": "sk-o", "ADMIN_TOKEN": "adm",
        "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "s", "BEDROCK_MODEL_ID": "anthropic.claude",
        "ENABLE_MOCK_PROVIDER": "1", "MOCK_P95_LATENCY_MS": "90",
    }  # fmt: skip
    snapshot = load(tmp_path, None, env).snapshot
    openai, bedrock, mock = snapshot.providers
    assert (snapshot.server.host, snapshot.server.port, snapshot.routing.policy) == (
        "127.0.0.1",
        9090,
        "slo_burn_aware",
    )
    assert snapshot.server.admin_token is not None
    assert (openai.api_key.reveal(), openai.models) == ("sk-o", ("gpt-4o",))
    assert openai.upstream_model("gpt-4o-mini") == "gpt-4o-mini"
    assert (bedrock.region, bedrock.models) == ("us-east-1", ("anthropic.claude",))
    assert mock.mock == {
        "mean_latency_ms": 40.0, "p95_latency_ms": 90.0, "error_rate": 0.01, "cost_per_1k_tokens_usd": 0.002
    }  # fmt: skip
    assert mock.price == Price(2.0, 2.0)


def test_environment_alone_defaults_and_notes(tmp_path: Path) -> None:
    types = {name: row for name, row in TYPES.items() if name != "bedrock"}
    env = {"ENABLE_MOCK_PROVIDER": "1", "AWS_PROFILE": "p", "MASTER_API_KEY": "k", "ADMIN_TOKEN": ""}
    loaded = load(tmp_path, None, env, types=types)
    assert [p.name for p in loaded.snapshot.providers] == ["mock"]
    assert (loaded.snapshot.routing.policy, loaded.snapshot.server.host) == ("cheapest", "0.0.0.0")
    assert loaded.snapshot.server.admin_token is None
    assert "bedrock" in loaded.notes[0]
    assert "BEDROCK_MODEL_ID" in load(tmp_path, None, env).notes[0]


def test_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    (problem,) = caught.value.problems
    assert all(way in problem for way in ("--demo", "--config", "OPENAI_API_KEY"))


def test_environment_problems_name_the_variable_and_not_the_value(tmp_path: Path) -> None:
    env = {
        "PORT": "canary", "ROUTER_POLICY": "canary-x", "OPENAI_API_KEY": "canary\n", "MASTER_API_KEY": "",
        "ADMIN_TOKEN": "canary\r\n", "ENABLE_MOCK_PROVIDER": "1", "MOCK_ERROR_RATE": "canary",
        "MOCK_MEAN_LATENCY_MS": "500",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, None, env)
    named = {problem.split(": ")[1] for problem in caught.value.problems}
    assert named == (set(env) - {"ENABLE_MOCK_PROVIDER", "MOCK_MEAN_LATENCY_MS"}) | {"MOCK_P95_LATENCY_MS"}
    assert "canary" not in str(caught.value).replace("slo_burn_aware, canary", "")


def test_demo() -> None:
    snapshot = demo_snapshot(Overrides(port=0))
    fast, cheap = snapshot.providers
    assert (snapshot.server.host, snapshot.server.port, snapshot.server.master_api_key) == ("127.0.0.1", 0, None)
    assert demo_snapshot(Overrides()).server.port == 8080
    for provider, own in ((fast, "demo-fast"), (cheap, "demo-cheap")):
        assert all(provider.upstream_model(model) == model for model in ("demo", own, "mock/429"))
        assert provider.mock is not None
    assert fast.upstream_model("demo-cheap") is None
    assert fast.price is not None
    assert cheap.price is not None
    assert fast.price.output > cheap.price.output
    with pytest.raises(ConfigError):
        demo_snapshot(Overrides(port=-1))
