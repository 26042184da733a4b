"""Azure OpenAI and Azure AI Foundry: OpenAI's dialect at other addresses (PROTOCOLS.md 1.1, 2.6).

Owns the three forms of address, which ``api_base`` and ``api_version`` tell apart:

- a dated ``api_version``: ``{resource}/openai/deployments/{deployment}/chat/completions?api-version=V``, the model's
  name being that of the deployment;
- no ``api_version``: the v1 API, ``{resource}/openai/v1/chat/completions``, where the body names the deployment;
- an ``api_base`` that ends in ``/models``: Foundry's models of other vendors, asked at
  ``/models/chat/completions?api-version=V``.

``api_base`` may be the resource alone, or end in ``/openai``, ``/openai/v1`` or ``/openai/deployments/D``.

A key goes into ``api-key``; what is a token of Entra ID (``Bearer ...`` or a JWT) goes into ``Authorization``. Tokens
are not fetched here: whoever makes them puts them into the configuration and reloads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from ..config.snapshot import ProviderSpec
from ..errors import UpstreamError
from ..types import Endpoint, FailureClass
from ..wire.openai_chat.quirks import OPENAI
from ..wire.openai_errors import read_error
from .base import OPENAI_ENDPOINTS, ProviderType, outbound_headers

FOUNDRY_VERSION = "2024-05-01-preview"
"""The ``api-version`` of the Foundry models API that all recordings use (PROTOCOLS.md 2.6, #40ca3496)."""
RESPONSES_SINCE = "2025-03-01-preview"
"""The first dated version with ``/openai/responses``; before it only the v1 API has it (Azure's API lifecycle page)."""
_V1_VERSIONS = ("v1", "preview", "latest")
_PATHS = {
    Endpoint.CHAT: "/chat/completions",
    Endpoint.COMPLETIONS: "/completions",
    Endpoint.EMBEDDINGS: "/embeddings",
    Endpoint.RESPONSES: "/responses",
}


@dataclass(frozen=True, slots=True)
class AzureType(ProviderType):
    """Azure's addresses, keys and errors."""

    def url(self, spec: ProviderSpec, endpoint: Endpoint, model: str, stream: bool) -> str:
        base, version, path = spec.api_base, spec.api_version, _PATHS[endpoint]
        if base.endswith("/models"):
            return _with_version(base + path, version or FOUNDRY_VERSION)
        if _is_v1(spec):
            suffix = version if version in ("preview", "latest") else None
            return _with_version(_root(base) + "/openai/v1" + path, suffix)
        assert version is not None
        if endpoint is Endpoint.RESPONSES:
            if version < RESPONSES_SINCE:
                return f"{_root(base)}/openai/v1/responses"
            return _with_version(f"{_root(base)}/openai/responses", version)
        if "/openai/deployments/" in base:
            return _with_version(base + path, version)
        return _with_version(f"{_root(base)}/openai/deployments/{quote(model, safe='')}{path}", version)

    def models_url(self, spec: ProviderSpec) -> str:
        """What the resource could deploy. Foundry's models API has no list."""
        if spec.api_base.endswith("/models"):
            return ""
        if _is_v1(spec):
            return _root(spec.api_base) + "/openai/v1/models"
        return _with_version(_root(spec.api_base) + "/openai/models", spec.api_version)

    def headers(self, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
        key = spec.api_key.reveal()
        headers = outbound_headers(self, spec, json_body=json_body)
        token = key[7:].strip() if key[:7].lower() == "bearer " else key if _is_jwt(key) else ""
        if token:
            del headers[self.auth]
            for name in [name for name in headers if name.lower() == "authorization"]:
                del headers[name]
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def error(
        self, status: int, headers: Mapping[str, str], body: bytes, spec: ProviderSpec, retry_after_s: float | None
    ) -> UpstreamError:
        """OpenAI's form, in which ``code`` may be the status as a string (``"429"``): the status itself decides. A
        filtered prompt is a 400 with the code ``content_filter`` (PROTOCOLS.md 1.5)."""
        error = read_error(status, body, provider=spec.name, retry_after_s=retry_after_s)
        if error.code == "content_filter" and status == 400:
            error.failure = FailureClass.CONTENT_FILTER
        elif error.code == "DeploymentNotFound":
            error.failure = FailureClass.NOT_FOUND
        return error


def _root(base: str) -> str:
    """The resource's address, whatever of the path the user wrote behind it."""
    root, found, _ = base.partition("/openai/deployments/")
    if found:
        return root
    return base.removesuffix("/v1").removesuffix("/openai")


def _is_v1(spec: ProviderSpec) -> bool:
    version = spec.api_version
    return not version or version in _V1_VERSIONS or spec.api_base.endswith("/openai/v1")


def _with_version(url: str, version: str | None) -> str:
    return f"{url}?api-version={quote(version, safe='')}" if version else url


def _is_jwt(key: str) -> bool:
    """A JSON web token: ``{"`` in base64, and three parts (RFC 7519). Azure's keys are hex or base62."""
    return key.startswith("eyJ") and key.count(".") == 2


TYPE = AzureType(
    "azure",
    needs_base=True,
    auth="api-key",
    natives=OPENAI_ENDPOINTS | {Endpoint.RESPONSES},
    by_model=True,
    chat=OPENAI,
)
