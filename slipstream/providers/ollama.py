"""Ollama: models on one's own machine, asked through its native API (see ``wire.ollama`` for why not ``/v1``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..config.snapshot import ProviderSpec
from ..types import Endpoint
from ..wire.canonical import Built, Json, Reply, StreamReader
from ..wire.usage import Usage
from .base import ProviderType


@dataclass(frozen=True, slots=True)
class OllamaType(ProviderType):
    """``api_base`` may be the server itself or end in ``/v1`` or ``/api``, as other gateways want it written."""

    name: str = "ollama"
    default_base: str | None = "http://127.0.0.1:11434"
    needs_key: bool = False
    natives: frozenset[Endpoint] = frozenset()

    def models_url(self, spec: ProviderSpec) -> str:
        return root(spec) + "/api/tags"

    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        from ..wire.ollama.request import build_chat

        return build_chat(request, root=root(spec), model=model)

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        from ..wire.ollama.reply import read_reply

        return read_reply(body, provider=spec.name)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        from ..wire.ollama.reader import ChatReader

        return ChatReader(provider=spec.name)

    def build_embeddings(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        from ..wire.ollama.request import build_embeddings

        return build_embeddings(request, root=root(spec), model=model)

    def embeddings(
        self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec
    ) -> tuple[list[list[float]], Usage | None]:
        from ..wire.ollama.reply import read_embeddings

        return read_embeddings(body, provider=spec.name)

    def read_models(self, body: bytes) -> list[Json]:
        from ..wire.ollama.reply import read_models

        return read_models(body)


def root(spec: ProviderSpec) -> str:
    """Where the server is, without the part of the API."""
    base = spec.api_base.rstrip("/")
    for part in ("/v1", "/api"):
        base = base.removesuffix(part).rstrip("/")
    return base


TYPE = OllamaType()
