"""What ``slipstream check`` prints, and the JSON Schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner

from slipstream.cli.check import command
from slipstream.config.describe import describe, json_schema
from slipstream.config.environment import demo_snapshot
from slipstream.config.load import Overrides, parse_config
from slipstream.config.schema import LOG_LEVELS, POLICIES, LogLevel, Policy

from .test_config_load import ONE, SYSTEM_C, SYSTEM_C_ENV, TYPES, load
from .test_config_problems import CANARY, MISTAKES


def test_routes_and_shares(tmp_path: Path) -> None:
    text = """\
server: {master_api_key: ${K}}
providers:
  - {name: a, api_base: http://a/v1, api_key: ${K}, weight: 2, model_mapping: {pub: up}, headers: {X-Team: ${K}}}
  - {name: b, api_base: http://b/v1, api_key: ${K}, models: [pub, "gpt-4*"], timeout: {total_s: 8}, price: {input: 1}}
  - {name: c, type: vllm, api_base: http://c/v1, models: ["gpt*"]}
  - {name: d, type: vllm, api_base: http://d/v1}
routing: {retries: 1, fallbacks: {pub: [gpt-4o]}, on_disconnect: {pub: {finish_after_tokens: 5}}}
"""
    shown = describe(load(tmp_path, text, {"K": CANARY}).snapshot)
    assert CANARY not in shown
    assert CANARY[:6] not in shown
    for part in ("0.0.0.0:8080", "key required", "1 retry", "X-Team: ***", "total 8 s", "then: gpt-4o", "price 1 in"):
        assert part in shown
    assert shown.count("read to the end when the client leaves after 5 tokens") == 1
    routes = shown.split("models:\n")[1]
    assert re.findall(r"(\S+) %  (.*)", routes) == [
        ("50.00", "a as up"), ("25.00", "b"), ("25.00", "d"),
        ("33.33", "b"), ("33.33", "c"), ("33.33", "d"),
        ("50.00", "c"), ("50.00", "d"),
        ("100.00", "d"),
    ]  # fmt: skip


def test_demo_is_described() -> None:
    shown = describe(demo_snapshot(Overrides()))
    assert "127.0.0.1:8080" in shown
    assert " 50.00 %  mock-fast" in shown


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """The part of JSON Schema 2020-12 that our schema uses."""
    if "$ref" in schema and not valid(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root):
        return False
    if "anyOf" in schema and not any(valid(value, option, root) for option in schema["anyOf"]):
        return False
    kinds = {
        "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
        "null": type(None),
    }  # fmt: skip
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, dict):
        named, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= set(value) and all(
            valid(child, named[key], root)
            if key in named
            else other is not False and (other is True or valid(child, other, root))
            for key, child in value.items()
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(valid(v, schema.get("items", {}), root) for v in value)
    if isinstance(value, (int, float)):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        )  # fmt: skip
    return True


def test_json_schema() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"].endswith("2020-12/schema")
    assert schema["title"]
    quoted = re.sub(r"(\$\{\w+\})", r'"\1"', SYSTEM_C)
    good = [
        yaml.safe_load(quoted),
        yaml.safe_load(ONE),
        {"providers": [{"name": "m", "type": "mock", "weight": "${W:-1}", "mock": {"seed": None, "error_rate": 0.5}}],
         "server": {"cors": {"origins": ["*"]}, "log_level": "info", "port": "${PORT}"}, "verify_ssl": "${V}",
         "routing": {"on_disconnect": {"m": "cancel", "n*": "finish", "*": {"finish_after_tokens": 5}}}},
    ]  # fmt: skip
    bad: list[Any] = [
        {}, [], {"providers": []}, {"providers": [{}]}, {"providers": [{"name": "a", "wieght": 1}]},
        {"providers": [{"name": "a", "weight": -1}]}, {"providers": [{"name": "a"}], "verify_ssl": "maybe"},
        {"providers": [{"name": "a", "headers": {"x": 1}}]}, {"providers": [{"name": "a", "timeout": {"total_s": 0}}]},
        {"providers": [{"name": "a"}], "routing": {"policy": "x"}},
        {"providers": [{"name": "a"}], "routing": {"on_disconnect": {"m": "stop"}}},
        {"providers": [{"name": "a"}], "routing": {"on_disconnect": {"m": {"finish_after_tokens": 0}}}},
    ]  # fmt: skip
    assert [valid(value, schema, schema) for value in good] == [True] * len(good)
    assert [valid(value, schema, schema) for value in bad] == [False] * len(bad)
    for definition in schema["$defs"].values():
        assert definition["title"]
        assert definition["description"]
        assert definition["additionalProperties"] is False


def test_names_in_the_schema_and_the_tuples_agree() -> None:
    assert set(msgspec.inspect.type_info(Policy).values) == set(POLICIES)  # type: ignore[attr-defined]
    assert set(msgspec.inspect.type_info(LogLevel).values) == set(LOG_LEVELS)  # type: ignore[attr-defined]


def test_round_trip() -> None:
    """What was read, written out again in full, reads as the same."""
    config = parse_config(SYSTEM_C, "f", SYSTEM_C_ENV, TYPES)
    text = msgspec.json.encode(config, enc_hook=lambda secret: secret.reveal()).decode()
    assert parse_config(text, "f", {}, TYPES) == config


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str, **env: str) -> Any:
    monkeypatch.chdir(folder)
    for name in ("CONFIG_PATH", "PORT", "ROUTER_POLICY", "MASTER_API_KEY", "ADMIN_TOKEN", "API_KEY_1"):
        monkeypatch.delenv(name, raising=False)
    return CliRunner().invoke(command, list(args), env=env)


def test_check_says_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.yaml").write_text(SYSTEM_C)
    result = run(tmp_path, monkeypatch, "--config", "f.yaml", **SYSTEM_C_ENV)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("OK\n")
    assert "sk-" not in result.output


def test_check_lists_every_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text(MISTAKES)
    result = run(tmp_path, monkeypatch)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) >= 18
    assert all(line.startswith("config.yaml:") for line in result.stderr.splitlines())


def test_check_prints_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, monkeypatch, "--schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(json.dumps(json_schema()))
