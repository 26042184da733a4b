"""The configuration for people and editors: the compiled routes as text, and the JSON Schema of the file.

The rule that must not be broken: of a Secret only its existence is told, not its length and not its last characters.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..types import Secret
from .schema import ConfigFile
from .snapshot import ProviderSpec, Snapshot

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# A number or a switch may also be one ${VAR}: it is converted when it is read.
_REFERENCE = {"type": "string", "pattern": r"^\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}$"}


def describe(snapshot: Snapshot) -> str:
    """What ``slipstream check`` prints."""
    server, routing = snapshot.server, snapshot.routing
    origins = ", ".join(server.cors.origins) or "off"
    lines = [
        f"source: {snapshot.source}",
        (
            f"listen: {_address(server.host, server.port)}, {_count(server.workers, 'worker')}, "
            f"key {_is_set(server.master_api_key, 'required', 'not required')}, "
            f"admin {_is_set(server.admin_token, 'on', 'off')}"
        ),
        f"limits: bodies up to {server.max_body_bytes} bytes, {_count(server.max_connections, 'connection')} a worker; "
        f"CORS: {origins}; log level {server.log_level}",
        f"routing: {routing.policy}, {_count(routing.retries, 'retry', 'retries')}",
        f"TLS: {'verified' if snapshot.verify_ssl else 'NOT verified'}"
        + (f", authorities from {snapshot.ca_file}" if snapshot.ca_file else ""),
        "",
        "providers:",
    ]
    for provider in snapshot.providers:
        lines += _provider(provider)
    lines += ["", "models:"]
    for model in snapshot.known_models():
        lines += _route(model, snapshot, [p for p in snapshot.providers if p.upstream_model(model) is not None])
    for pattern in dict.fromkeys(pattern for p in snapshot.providers for pattern in p.patterns):
        serving = [
            p for p in snapshot.providers if p.serves_every_model or any(pattern.startswith(q) for q in p.patterns)
        ]
        lines += _route(pattern + "*", snapshot, serving)
    catch_all = [p for p in snapshot.providers if p.serves_every_model]
    if catch_all:
        lines += _route("(any other)", snapshot, catch_all)
    return "\n".join(lines)


def _provider(provider: ProviderSpec) -> list[str]:
    limits = provider.timeouts
    lines = [
        (
            f"  {provider.name}: {provider.type}, {_base(provider)}, weight {provider.weight}, "
            f"key {_is_set(provider.api_key, 'set', 'not set')}, at most {provider.max_connections} connections"
        ),
        (
            f"    time-outs: connect {limits.connect_s:g} s, send {limits.send_s:g} s, "
            f"first byte {_first_byte(provider)}, "
            f"idle {limits.idle_s:g} s, total {limits.total_s:g} s"
        ),
    ]
    more = {"region": provider.region, "api version": provider.api_version}
    said = [f"{name} {value}" for name, value in more.items() if value]
    if provider.price is not None:
        said.append(f"price {provider.price.input:g} in / {provider.price.output:g} out USD per million tokens")
    if provider.headers:
        said.append("headers " + ", ".join(f"{name}: ***" for name in provider.headers))
    if provider.mock:
        said.append("mock " + ", ".join(f"{name} {value}" for name, value in provider.mock.items()))
    return [*lines, *(f"    {text}" for text in said)]


def _first_byte(provider: ProviderSpec) -> str:
    limits = provider.timeouts
    if limits.first_byte_s is not None:
        return f"{limits.first_byte_s:g} s"
    return f"{limits.stream_first_byte_s:g} s (streams)"


def _base(provider: ProviderSpec) -> str:
    return provider.api_base or ("in this process" if provider.type == "mock" else "the type's own address")


def _route(model: str, snapshot: Snapshot, serving: list[ProviderSpec]) -> list[str]:
    total = sum(provider.weight for provider in serving) or 1
    lines = [f"  {model}"]
    for provider in serving:
        upstream = provider.upstream_model(model)
        renamed = f" as {upstream}" if upstream is not None and upstream != model else ""
        lines.append(f"    {100 * provider.weight / total:6.2f} %  {provider.name}{renamed}")
    others = snapshot.routing.fallbacks.get(model)
    if others:
        lines.append(f"    then: {', '.join(others)}")
    least = snapshot.routing.finishes_after(model)
    if least is not None:
        lines.append(
            "    read to the end when the client leaves" + (f" after {_count(least, 'token')}" if least else "")
        )
    return lines


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _is_set(secret: Secret | None, yes: str, no: str) -> str:
    return yes if secret else no


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, generated from the Structs."""
    (root,), definitions = msgspec.json.schema_components(
        (ConfigFile,), schema_hook=_secret_schema, ref_template="#/$defs/{name}"
    )
    for name, definition in definitions.items():
        definition["title"] = name.removesuffix("File").lower()
        definition["properties"] = {key: _or_reference(value) for key, value in definition["properties"].items()}
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "Slipstream configuration",
        "description": "YAML or JSON. ${VAR} and ${VAR:-default} are filled in from the environment and .env.",
        **root,
        "$defs": definitions,
    }


def _secret_schema(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string"}
    raise NotImplementedError


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    """Lets ``${VAR}`` stand where a number, a switch or one of a set is wanted."""
    kept: dict[str, Any] = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in kept}
    options = rest.get("anyOf", [rest])
    if any(option.get("type") in ("integer", "number", "boolean") or "enum" in option for option in options):
        return {**kept, "anyOf": [*options, _REFERENCE]}
    return schema
