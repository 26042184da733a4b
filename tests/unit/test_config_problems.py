"""Configuration that is wrong: every fault by line and path, all at once, no secret told, nothing but ConfigError."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.load import Overrides, load_snapshot, parse_config
from slipstream.config.snapshot import Snapshot
from slipstream.config.yamlnodes import MAX_FILE_BYTES
from slipstream.errors import ConfigError
from tests.pace import soon

from .test_config_load import ONE, SYSTEM_C, SYSTEM_C_ENV, TYPES, load

CANARY = "sk-canary-7f3a"


def problems(text: str, env: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.yaml", env or {}, TYPES)
    return caught.value.problems


MISTAKES = """\
server:
  port: 80800
  master_key: x
providers:
  - name: first
    api_base: example.com/v1
    api_key: ${API_KEY_1}
    wieght: 2
    model_mapping: {1.0: y, gpt-4o: gpt-4o}
  - name: first
    type: opnai
    api_key: k
    weight: -1
    models: [gpt-4o]
    timeout: {connect_s: -1}
    headers: {Connection: close}
  - api_key: k
    models: demo
  - name: third
    type: mock
    mock: {error_rate: 2}
    models: [third]
routing:
  policy: cheepest
  retries: "2"
  fallbacks: {gpt-4o: [gpt-4x]}
verify_ssl: maybe
verify_ssl: true
"""
FOUND = [
    (2, "server.port", "between 0 and 65535"),
    (3, "server.master_key", "did you mean 'master_api_key'?"),
    (6, "providers[0].api_base", "http:// or https://"),
    (7, "providers[0].api_key", "API_KEY_1 is not set"),
    (8, "providers[0].wieght", "unknown key, did you mean 'weight'?"),
    (9, 'providers[0].model_mapping["1.0"]', "put it in quotes"),
    (10, "providers[1].name", "(line 5)"),
    (11, "providers[1].type", "did you mean 'openai'?"),
    (13, "providers[1].weight", "between 0 and 1000"),
    (15, "providers[1].timeout.connect_s", "more than 0"),
    (16, "providers[1].headers.Connection", "hop-by-hop"),
    (17, "providers[2].name", "missing"),
    (18, "providers[2].models", "must be a list"),
    (21, "providers[3].mock.error_rate", "between 0.0 and 1.0"),
    (24, "routing.policy", "did you mean 'cheapest'?"),
    (25, "routing.retries", "remove the quotes"),
    (27, "verify_ssl", "true or false"),
    (28, "verify_ssl", "written twice (first on line 27)"),
]


def test_all_mistakes_of_a_file_in_one_go() -> None:
    told = problems(MISTAKES)
    assert len(told) == len(FOUND), "\n".join(told)
    for problem, (line, path, text) in zip(told, FOUND, strict=True):
        assert problem.startswith(f"config.yaml:{line}: {path}: "), problem
        assert text.replace(".0", "") in problem.replace(".0", ""), problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "config.yaml: is empty"),
        ("# only a comment\n", "config.yaml: is empty"),
        ("- a\n", "config.yaml:1: the file: must be a mapping"),
        ("server: {}\n", "config.yaml:1: providers: missing"),
        ("providers: []\n", "config.yaml:1: providers: is empty"),
        ("providers:\n", "config.yaml:1: providers: must be a list"),
        ("providers: [x]\n", "config.yaml:1: providers[0]: must be a mapping"),
        ("a: b: c\n", "config.yaml:1:5: YAML syntax"),
        ("providers:\n\t- x\n", "config.yaml:2:1: YAML syntax"),
        ("a: [1, 2\n", "config.yaml:2:1: YAML syntax"),
        ("a: \x07\n", "config.yaml:1:4: character U+0007"),
        (ONE + "---\nx: 1\n", "config.yaml:2: a second document"),
        ("x: *a\n", "config.yaml:1: an alias"),
        ("x: &a [*a]\n", "config.yaml:1: an alias"),
        (ONE + "server:\n  port: !!int '1'\n", "config.yaml:3: server.port: tags"),
        (ONE + "server:\n  port: 0x50\n", "config.yaml:3: server.port: must be a whole number, in plain decimal"),
        (ONE + "server:\n  port: 1.5\n", "config.yaml:3: server.port: must be a whole number"),
        (ONE + "server:\n  port: [1]\n", "config.yaml:3: server.port: must be a whole number, not a list"),
        (ONE + "server:\n  port: ${P}\n", "config.yaml:3: server.port: the variable's value must be a whole number"),
        (ONE + "server:\n  master_api_key: ''\n", "config.yaml:3: server.master_api_key: is empty"),
        (ONE + "server:\n  master_api_key: ${E}\n", "config.yaml:3: server.master_api_key: is empty; the variable"),
        (ONE + "server:\n  master_api_key: 12\n", "config.yaml:3: server.master_api_key: must be text, not a number"),
        (ONE + "server:\n  host: http://x\n", "config.yaml:3: server.host: must be an address"),
        (
            ONE + "server:\n  cors: {origins: ['https://a/b']}\n",
            "config.yaml:3: server.cors.origins[0]: is not an origin",
        ),
        (ONE + "server:\n  cors: {origins: ['*', 'https://a']}\n", "config.yaml:3: server.cors.origins: '*' allows"),
        (
            ONE + "server:\n  workers: 1\n  workers: 2\n",
            "config.yaml:4: server.workers: written twice (first on line 3)",
        ),
        (ONE + "? [a]\n: b\n", "config.yaml:2: <key>: unknown key"),
        (
            ONE + "routing: {on_disconnect: {m: finsh}}\n",
            "config.yaml:2: routing.on_disconnect.m: 'finsh' is not known, did you mean 'finish'?",
        ),
        (
            ONE + "routing: {on_disconnect: {m: {finish_after_tokens: 0}}}\n",
            "config.yaml:2: routing.on_disconnect.m.finish_after_tokens: is out of range",
        ),
        (ONE + "routing: {on_disconnect: {'a*b': finish}}\n", "config.yaml:2: routing.on_disconnect.<key>: '*' is"),
        (ONE + "routing: {fallbacks: {gpt: [gpt]}}\n", "config.yaml:2: routing.fallbacks.gpt[0]: a model cannot"),
    ],
)
def test_one_mistake(text: str, expected: str) -> None:
    told = problems(text, {"P": CANARY, "E": ""})
    assert any(problem.startswith(expected) for problem in told), told
    assert CANARY not in "\n".join(told)


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("name: a", "api_key: missing"),
        ("name: a, api_key: ''", "api_key: is empty"),
        ("name: a, type: vllm", "api_base: missing"),
        ("name: a, type: mock, mock: {mean_latency_ms: 9, p95_latency_ms: 1}", "mock.p95_latency_ms: is less"),
        ("name: a, api_key: k, mock: {}", "mock: is only for"),
        ("name: a, api_key: k, models: [a*b]", "models[0]: '*'"),
        ("name: a, api_key: k, models: [a, b, a]", "models[2]: is in the list already"),
        ("name: a, api_key: k, models: [on]", "models[0]: must be text, not a switch"),
        ("name: a, api_key: k, model_mapping: {a: 1.0}", "model_mapping.a: must be text, not a number"),
        ("name: a, api_key: k, weight: 0", "weight: is 0 and no other provider"),
        ("name: a, api_key: k, weight: 1.0", "weight: must be a whole number"),
        ("name: a, api_key: k, timeout: {total_s: .inf}", "timeout.total_s: must be a number"),
        ("name: a, api_key: k, timeout: {totl_s: 1}", "timeout.totl_s: unknown key, did you mean 'total_s'?"),
        ("name: a, api_key: k, price: {input: -1}", "price.input: is out of range; it must be at least 0"),
        ("name: a, api_key: k, headers: {X-A: b, x-a: c}", "headers.x-a: written twice"),
        ('name: a, api_key: k, headers: {X-A: "b\\r\\nc"}', "headers.X-A: contains a line break"),
        ("name: a, api_key: k, headers: {Content-Length: '1'}", "headers.Content-Length: is written by the gateway"),
        ('name: "a\\nb", api_key: k', "name: must not contain control"),
        ('name: a, api_key: "k\\n"', "api_key: contains a line break"),
        ("name: a, api_key: k, region: a/b", "region: may hold"),
    ],
)
def test_one_mistake_in_a_provider(provider: str, expected: str) -> None:
    (told,) = problems(f"providers: [{{{provider}}}]")
    assert told.startswith(f"config.yaml:1: providers[0].{expected}"), told


@pytest.mark.parametrize(
    "url",
    ["h", "ftp://h", "http://", "http://u:p@h", "http://h?x=1", "http://h#", "http://h:99999", "http://h:x",
     "http://a b",
     "http://[::1", "http:///v1", "//h/v1", "http://h\\x"],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    told = problems("providers: [{name: a, api_key: k, api_base: ${U}}]", {"U": url})
    assert [problem.split(": ")[1] for problem in told] == ["providers[0].api_base"]


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/v1/", "http://[::1]:80/v1", "http://127.0.0.1:1/a/b%20c"])
def test_good_urls(url: str) -> None:
    parse_config("providers: [{name: a, api_key: k, api_base: ${U}}]", "f", {"U": url}, TYPES)


def test_fallbacks_and_weights_over_providers() -> None:
    told = problems(
        """\
providers:
  - {name: a, api_key: k, weight: 0, models: ["gpt-4*", other]}
  - {name: b, api_key: k, models: ["gpt*"]}
routing:
  fallbacks:
    gpt-4o: [gpt-5, othr, gpt-5]
    claude: [other]
"""
    )
    assert [problem.split(": ")[:2] for problem in told] == [
        ["config.yaml:2", "providers[0].weight"],
        ["config.yaml:6", "routing.fallbacks.gpt-4o[1]"],
        ["config.yaml:6", "routing.fallbacks.gpt-4o[2]"],
        ["config.yaml:7", "routing.fallbacks.claude"],
    ]
    assert "did you mean 'other'?" in told[1]


def test_a_faulty_name_is_one_fault_and_hides_no_other() -> None:
    text = "providers: [{name: a, api_key: k, model_mapping: {1.0: x}}]\nrouting: {fallbacks: {'1.0': [zz]}}\n"
    assert len(problems(text)) == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe4\n")
    for name, expected in (
        ("none.yaml", "none.yaml: cannot be read: No such file"),
        (".", ".: cannot be read: "),
        ("\0", "\0: cannot be read: "),
        ("big.yaml", "big.yaml: is larger"),
        ("latin.yaml", "latin.yaml:2: is not UTF-8"),
    ):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, config_path=name)
        assert caught.value.problems[0].startswith(expected)


def test_ca_file_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text(CANARY)
    for name in ("none.pem", "x.pem"):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, ONE + f"ca_file: {name}")
        assert caught.value.problems[0].startswith("config.yaml:2: ca_file: ")
        assert CANARY not in str(caught.value)


def test_flags_environment_and_file_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "providers: []\n", {"PORT": "x"}, overrides=Overrides(port=-1))
    assert len(caught.value.problems) == 3


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join('*' + a for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "[" * 100_000,
        "{a: " * 100_000,
        "- " * 50_000,
        "x: [" + "a," * 300_000 + "]",
        "".join(f"k{n}: 1\n" for n in range(5_000)),
        "? " * 5_000,
    ],
)  # fmt: skip
def test_bombs_are_bounded(text: str) -> None:
    start = time.perf_counter()
    told = problems(text)
    assert soon(time.perf_counter() - start, 5)
    assert len(told) <= 101
    assert sum(map(len, told)) < 40_000


LEAKS = [
    "providers: [{name: a, api_key:%s}]",
    "providers: [{name: a, api_key: *%s}]",
    "providers: [{name: a, api_key: !%s x}]",
    "providers: [{name: a, api_key: &%s x, api_key: &%s y}]",
    "providers: [{name: a, api_key: '%s\n",
    "providers: [{name: a, api_key: [%s]}]",
    "providers: [{name: a, api_key: k, headers: {Authorization:%s}}]",
    "providers: [{name: a, api_key: k, headers: {Authorization %s: x}}]",
    "providers: [{name: a, api_key: k, headers: %s}]",
    'providers: [{name: a, api_key: k, headers: {A: "%s\\n"}}]',
    'providers: [{name: a, api_key: "%s\\n", api_base: "https://u:%s@h"}]',
    "providers: [{name: a, api_key: k, api_base: '%s'}]",
    "providers: [{name: a, api_key: %s}, {name: a, api_key: %s, type: x}]",
    "providers: [{name: ${S}, api_key: k, type: ${S}, weight: ${S}, models: ['${S}*${S}'], region: '${S}/'}]",
    "providers: [{name: ${S}, api_key: k}, {name: ${S}}]",
    "providers: [{name: a, api_key: k, models: [x]}]\nrouting: {fallbacks: {'${S}': ['${S}'], x: ['${S}']}}",
    "routing: {policy: ${S}}",
    "server: {master_api_key: {%s: x}, port: ${S}, host: '${S} ', log_level: ${S}, cors: {origins: ['${S}']}}",
    "server: {master_api_key: %s, master_api_key: %s}",
    "verify_ssl: ${S}\nca_file: ${S}\n%s",
    "api_key: %s\n  x",
    "%%%s\n---\na: b",
]


@pytest.mark.parametrize("text", LEAKS)
def test_no_problem_tells_a_secret(text: str, tmp_path: Path) -> None:
    text = text.replace("%s", CANARY).replace("%%", "%")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, None, {"S": CANARY})
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def attempt(text: str) -> None:
    """Reads it; the only exception allowed is a ConfigError that is well-behaved."""
    told = ["fine"]
    try:
        parse_config(text, "f", {"A": "x", "S": CANARY}, TYPES)
    except ConfigError as error:
        told = error.problems
    assert told
    assert not any("\n" in problem for problem in told)
    assert CANARY not in "".join(told)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.text(alphabet="abc:-[]{}#&*!|>'\"%@`,?\n \t$~<0.")))
def test_any_text(text: str) -> None:
    attempt(text)


_KEYS = st.sampled_from(
    ["providers", "server", "routing", "name", "type", "api_key", "api_base", "models", "model_mapping", "weight",
     "headers",
     "timeout", "port", "cors", "fallbacks", "policy", "mock", "total_s", "x", "${A}", "${S}", "on", "1.0", ""]
)  # fmt: skip
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["${A}", "${S}", "${S", "$${", "openai", "mock", "gpt*", "http://h"]),
)  # fmt: skip
_TREES = st.recursive(
    _LEAVES, lambda t: st.one_of(st.lists(t, max_size=3), st.dictionaries(_KEYS, t, max_size=4)), max_leaves=20
)


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(_KEYS, _TREES, max_size=4), st.lists(st.dictionaries(_KEYS, _TREES, max_size=8), max_size=3))
def test_any_tree(top: dict[str, object], providers: list[dict[str, object]]) -> None:
    import yaml

    attempt(yaml.safe_dump({**top, "providers": providers}, allow_unicode=True))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(SYSTEM_C)), st.text(max_size=3))
def test_a_spoilt_good_file(at: int, patch: str) -> None:
    attempt(SYSTEM_C[:at] + patch + SYSTEM_C[at:])
    attempt(SYSTEM_C[:at])


def test_nothing_that_was_read_shows_a_key(tmp_path: Path) -> None:
    env = {key: CANARY if "KEY" in key else value for key, value in SYSTEM_C_ENV.items()}
    (tmp_path / "config.yaml").write_text(SYSTEM_C.replace("weight: 2", "weight: 2, headers: {X-A: ${API_KEY_1}}"))
    config = parse_config((tmp_path / "config.yaml").read_text(), "f", env, TYPES)
    loaded = load_snapshot(
        config_path=None, overrides=Overrides(), env={**env, "ADMIN_TOKEN": CANARY}, cwd=tmp_path, provider_types=TYPES
    )
    assert isinstance(loaded.snapshot, Snapshot)
    assert loaded.snapshot.providers[0].headers["X-A"].reveal() == CANARY
    for shown in (repr(config), str(config), repr(loaded), f"{loaded.snapshot}"):
        assert CANARY not in shown


def test_a_provider_name_fits_into_a_header(tmp_path: Path) -> None:
    """It is sent as x-slipstream-provider: what latin-1 or ASCII cannot spell is refused at the start, not at a
    request.
    """
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "providers:\n  - {name: 供应商, api_base: https://a.example/v1, api_key: k}\n")
    assert caught.value.problems == [
        "config.yaml:2: providers[0].name: must be plain ASCII: it goes into a response header"
    ]
