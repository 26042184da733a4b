"""What a provider type is: a row of data for the OpenAI family, a subclass in a file of its own for the others.

Everything here is pure: no I/O, no clock, no logging. ``endpoint_url`` and ``outbound_headers`` are asked once per
snapshot where the client's dialect is the provider's own (``natives``); then bytes pass through and only the model's
name changes. For every other pair of dialects the engine goes through the canonical shape (``wire.canonical``) and asks
``build``, ``reply``, ``reader`` and their kin for each request.

The rule that must not be broken: outbound headers are made from this module and the configuration alone (an
allow-list). No header of the client ever leaves (Q35).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .._version import __version__
from ..config.snapshot import ProviderSpec
from ..errors import ClientError, UpstreamError
from ..types import Endpoint
from ..wire.canonical import Built, Json, Reply, StreamReader
from ..wire.openai_chat.quirks import PLAIN, ChatQuirks
from ..wire.openai_errors import read_error
from ..wire.usage import Usage

USER_AGENT = f"slipstream/{__version__}"


OPENAI_ENDPOINTS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS})


class Signer(Protocol):
    """Credentials that change while the process runs (AWS, Entra): kept fresh in the background, never on the request
    path. Imported and started only for providers that are configured to need one."""

    async def start(self) -> None:
        """Get the first credentials and begin to refresh them. Raises ``UpstreamError`` (AUTH) if there are none."""

    def headers(self, method: str, url: str, body: bytes, now: float) -> Mapping[str, str]:
        """The fields that authenticate one request at ``now`` (Unix seconds). Never waits; raises ``UpstreamError``."""

    async def close(self) -> None:
        """Stop refreshing."""


@dataclass(frozen=True, slots=True)
class ProviderType:
    """One type of provider. As it stands it speaks OpenAI's dialect; subclasses override what differs.

    ``default_base`` is the API root (OpenAI SDK's ``base_url``), ``None`` if only the user can know it. ``auth`` is the
    header that carries the key: ``bearer`` or a header name. ``ask_usage``: streams need
    ``stream_options.include_usage`` to report usage; ``False`` where the provider reports it anyway or refuses the
    field (PROTOCOLS.md 1.2). ``rename``: request keys it spells differently. ``natives``: the endpoints whose dialect
    it speaks itself. ``by_model``: its URLs hold the model, or differ for streams.
    ``passes``: fields of the client that are part of what a native request means (lower case), and go with it.
    ``chat``: how chat requests that come through the canonical shape are written for it. ``lists_models``: it has a
    list of its models.
    """

    name: str
    default_base: str | None = None
    needs_key: bool = True
    needs_base: bool = False
    auth: str = "bearer"
    ask_usage: bool = True
    rename: tuple[tuple[str, str], ...] = ()
    owned_by: str = ""
    natives: frozenset[Endpoint] = OPENAI_ENDPOINTS
    by_model: bool = False
    passes: tuple[str, ...] = ()
    chat: ChatQuirks = PLAIN
    lists_models: bool = True

    @property
    def owner(self) -> str:
        """``owned_by`` of the models it serves, as ``/v1/models`` shows it."""
        return self.owned_by or self.name

    # ------------------------------------------------------------------ where and how it is asked
    def url(self, spec: ProviderSpec, endpoint: Endpoint, model: str, stream: bool) -> str:
        """Where requests of a native ``endpoint`` go."""
        return endpoint_url(spec, endpoint)

    def models_url(self, spec: ProviderSpec) -> str:
        """Where its models are listed; empty if it has no list."""
        return models_url(spec) if self.lists_models else ""

    def headers(self, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
        """The fields of every request to ``spec``."""
        return outbound_headers(self, spec, json_body=json_body)

    def signer(self, spec: ProviderSpec) -> Signer | None:
        """What authenticates requests where a fixed header cannot."""
        return None

    # ------------------------------------------------------------------ other dialects, through the canonical shape
    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        """A canonical chat request (``stream`` says which kind of answer) for ``model``. Idempotent, never changes
        ``request``. Raises ``ClientError`` naming a field that makes no sense for this provider."""
        from ..wire.openai_chat.request import build_request

        return build_request(
            request,
            self.chat,
            url=self.url(spec, Endpoint.CHAT, model, bool(request.get("stream"))),
            model=model,
            ask_usage=self.ask_usage,
            rename=self.rename,
        )

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        """A whole 2xx answer. Raises ``UpstreamError`` (an error in disguise) or ``MalformedReply`` (R66)."""
        from ..wire.openai_chat.reply import read_reply

        return read_reply(body, provider=spec.name)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        """A reader for one stream."""
        from ..wire.openai_chat.reader import ChatReader

        return ChatReader(provider=spec.name)

    def build_embeddings(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        """A request of OpenAI's ``/v1/embeddings`` for ``model``."""
        raise ClientError(f"The provider {spec.name!r} has no embeddings.", param="model", code="unsupported_endpoint")

    def embeddings(
        self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec
    ) -> tuple[list[list[float]], Usage | None]:
        """The vectors of an answer, in the order of the inputs. Raises like ``reply``."""
        raise AssertionError("asked only after build_")

    def build_count(self, request: Json, spec: ProviderSpec, model: str) -> Built | None:
        """A request that counts the tokens of a canonical chat request; ``None`` if it cannot be asked for."""
        return None

    def count(self, body: bytes, spec: ProviderSpec) -> int:
        """The number in the answer to it. Raises like ``reply``."""
        raise AssertionError("asked only after build_")

    def error(
        self, status: int, headers: Mapping[str, str], body: bytes, spec: ProviderSpec, retry_after_s: float | None
    ) -> UpstreamError:
        """What a non-2xx answer means. Never raises. ``retry_after_s`` is what the header fields said."""
        return read_error(status, body, provider=spec.name, retry_after_s=retry_after_s)

    def read_models(self, body: bytes) -> list[Json]:
        """Its models in OpenAI's form, ``{"id", "created"?, "owned_by"?}``, and where it says so ``context_window``,
        ``max_output_tokens``. Raises ``ValueError`` for anything else than a list of models."""
        from ..wire.openai_models import read_models

        return read_models(body)


_PATHS = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
    Endpoint.RESPONSES: "/responses",
}


def endpoint_url(spec: ProviderSpec, endpoint: Endpoint) -> str:
    return spec.api_base + _PATHS[endpoint]


def models_url(spec: ProviderSpec) -> str:
    return spec.api_base + "/models"


def outbound_headers(kind: ProviderType, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
    """The header block of every request to ``spec``. User-configured headers win over ours, but for the key's.

    ``accept-encoding: identity``: the bytes are passed on as they are, so a compressed reply would have to be unpacked
    only to be looked at; the CPU is worth more than the loopback or datacentre bandwidth it would save.
    """
    headers = {
        "Accept": "application/json, text/event-stream",
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
    }
    if json_body:
        headers["Content-Type"] = "application/json"
    for name, value in spec.headers.items():
        _replace(headers, name, value.reveal())
    key = spec.api_key.reveal()
    if key:
        if kind.auth == "bearer":
            _replace(headers, "Authorization", f"Bearer {key}")
        else:
            _replace(headers, kind.auth, key)
    return headers


def with_fields(headers: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """``headers`` with the fields of one request; of two with the same name, whatever its case, the latter counts."""
    merged = dict(headers)
    for name, value in more.items():
        _replace(merged, name, value)
    return merged


def _replace(headers: dict[str, str], name: str, value: str) -> None:
    """One field per name, whatever its case: of two, two parsers may believe different ones."""
    for other in [ours for ours in headers if ours.lower() == name.lower()]:
        del headers[other]
    headers[name] = value
