"""Anthropic and whoever speaks its Messages API (Ollama, DeepSeek, proxies): URLs, credentials, versions, lists.

How requests and answers are translated stands in ``wire.anthropic``; what a model takes in ``wire.anthropic.traits``.

The API root may be written with or without ``/v1``: Anthropic's own SDK leaves it out, OpenAI's has it.
``anthropic-version`` is that of the recorded traffic (PROTOCOLS.md 1.1), whose fields ``wire.anthropic`` writes; the
newer 2026-10-21 refuses temperature, top_p and top_k for all models ("Versions"). The configuration's own header
wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ..config.snapshot import ProviderSpec
from ..errors import MalformedReply
from ..types import Endpoint
from ..wire.anthropic.failures import is_error, read_failure
from ..wire.anthropic.reader import AnthropicReader
from ..wire.anthropic.reply import read_reply
from ..wire.anthropic.request import build_body, count_body, options_for, uses_files
from ..wire.anthropic.request_parts import written
from ..wire.canonical import Built, Json, Reply, StreamReader
from ..wire.codec import DecodeError, loads
from .base import ProviderType, outbound_headers

VERSION = "2023-06-01"
OAUTH_PREFIX = "sk-ant-oat"
"""Tokens of a Claude subscription: sent as Bearer, with a beta of their own (PROTOCOLS.md 1.1)."""
OAUTH_BETA = "oauth-2025-04-20"
FILES_BETA = "files-api-2025-04-14"
_MESSAGES = "/messages"
_PATHS = {Endpoint.MESSAGES: _MESSAGES, Endpoint.COUNT_TOKENS: "/messages/count_tokens"}


@dataclass(frozen=True, slots=True)
class AnthropicType(ProviderType):
    """The Messages API."""

    def url(self, spec: ProviderSpec, endpoint: Endpoint, model: str, stream: bool) -> str:
        return _root(spec) + _PATHS[endpoint]

    def models_url(self, spec: ProviderSpec) -> str:
        return _root(spec) + "/models?limit=1000"

    def headers(self, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
        headers = outbound_headers(self, spec, json_body=json_body)
        if _find(headers, "anthropic-version") is None:
            headers["anthropic-version"] = VERSION
        key = spec.api_key.reveal()
        if key.startswith(OAUTH_PREFIX):
            for name in [name for name in headers if name.lower() in (self.auth, "authorization")]:
                del headers[name]
            headers["Authorization"] = f"Bearer {key}"
            _add_beta(headers, OAUTH_BETA)
        return headers

    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        body, dropped = build_body(request, model, options_for(model))
        headers = _add_beta(self.headers(spec), FILES_BETA) if uses_files(body) else None
        return Built(_root(spec) + _MESSAGES, written(body), headers, dropped)

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        return read_reply(body, spec.name)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        return AnthropicReader(spec.name)

    def build_count(self, request: Json, spec: ProviderSpec, model: str) -> Built | None:
        body = count_body(request, model, options_for(model))
        return Built(_root(spec) + _PATHS[Endpoint.COUNT_TOKENS], written(body))

    def count(self, body: bytes, spec: ProviderSpec) -> int:
        try:
            value = loads(body)
        except DecodeError:
            value = None
        if isinstance(value, dict):
            if is_error(value):
                raise read_failure(value, body, provider=spec.name)
            tokens = value.get("input_tokens")
            if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 0:
                return tokens
        raise MalformedReply(f"the provider {spec.name!r} sent no count of tokens")

    def read_models(self, body: bytes) -> list[Json]:
        value = loads(body)
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, list):
            raise ValueError("no list of models")
        return [_model(entry, self.owner) for entry in data if isinstance(entry, dict) and _is_id(entry.get("id"))]


TYPE = AnthropicType(
    name="anthropic",
    default_base="https://api.anthropic.com",
    auth="x-api-key",
    ask_usage=False,
    natives=frozenset({Endpoint.MESSAGES, Endpoint.COUNT_TOKENS}),
    passes=("anthropic-beta", "anthropic-version"),
)


def _root(spec: ProviderSpec) -> str:
    return spec.api_base if spec.api_base.endswith("/v1") else spec.api_base + "/v1"


def _find(headers: Mapping[str, str], wanted: str) -> str | None:
    return next((name for name in headers if name.lower() == wanted), None)


def _add_beta(headers: dict[str, str], beta: str) -> dict[str, str]:
    """Add ``beta`` to the list in ``anthropic-beta`` and return that field alone."""
    name = _find(headers, "anthropic-beta") or "anthropic-beta"
    betas = [word.strip() for word in headers.get(name, "").split(",") if word.strip()]
    if beta not in betas:
        betas.append(beta)
    headers[name] = ",".join(betas)
    return {name: headers[name]}


def _is_id(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _model(entry: Json, owner: str) -> Json:
    model: Json = {"id": entry["id"], "owned_by": owner}
    created = _created(entry)
    if created is not None:
        model["created"] = created
    for ours, theirs in (("context_window", "max_input_tokens"), ("max_output_tokens", "max_tokens")):
        if isinstance(entry.get(theirs), int) and entry[theirs] > 0:
            model[ours] = entry[theirs]
    return model


def _created(entry: Json) -> int | None:
    """``created_at`` is RFC 3339 (PROTOCOLS.md 2.3); servers that only resemble Anthropic say ``created`` in
    seconds."""
    text = entry.get("created_at")
    if isinstance(text, str):
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    created = entry.get("created")
    return created if isinstance(created, int) and not isinstance(created, bool) else None
