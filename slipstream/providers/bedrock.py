"""AWS Bedrock: Converse and ConverseStream for chat, InvokeModel for embeddings (PROTOCOLS.md 1.1, 2.5).

With ``api_key`` (a Bedrock API key) requests carry a bearer token; without one they are signed (``aws_credentials``).
The host follows from the region, unless ``api_base`` names another (a VPC endpoint, a proxy). The list of models is on
another host, that of the control plane.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from ..config.snapshot import ProviderSpec
from ..errors import MalformedReply, UpstreamError
from ..types import Endpoint
from ..wire.bedrock import embeddings, errors
from ..wire.bedrock.models import read_model, without_region_group
from ..wire.bedrock.reader import ConverseReader
from ..wire.bedrock.reply import read_reply
from ..wire.bedrock.request import build_body, build_bytes
from ..wire.canonical import Built, Json, Reply, StreamReader
from ..wire.codec import DecodeError, loads
from ..wire.usage import MAX_TOKENS, Usage
from .aws_credentials import AwsCredentials
from .base import ProviderType, Signer

DEFAULT_REGION = "us-west-2"
_RUNTIME_HOST = re.compile(r"(?<=[/.])bedrock-runtime(?P<fips>-fips)?\.(?P<region>[a-z0-9-]+)\.")
_DEFAULT_PORT = re.compile(r"^(https://[^/]*(?=:443(?:/|$))|http://[^/]*(?=:80(?:/|$))):[0-9]+")
_COUNTED = ("messages", "system", "toolConfig", "additionalModelRequestFields")
"""What CountTokens takes of a Converse body (service model, ConverseTokensRequest)."""


class BedrockType(ProviderType):
    __slots__ = ()

    def url(self, spec: ProviderSpec, endpoint: Endpoint, model: str, stream: bool) -> str:
        return self._model_url(spec, model, "converse-stream" if stream else "converse")

    def models_url(self, spec: ProviderSpec) -> str:
        base = base_url(spec)
        if ".vpce." in base:
            return ""  # the control plane has an endpoint of its own, whose name nobody told us
        return _RUNTIME_HOST.sub(r"bedrock\g<fips>.\g<region>.", base, count=1) + "/foundation-models"

    def headers(self, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
        fields = super().headers(spec, json_body=json_body)
        if "Accept" in fields:
            fields["Accept"] = "application/json, application/vnd.amazon.eventstream"
        return fields

    def signer(self, spec: ProviderSpec) -> Signer | None:
        return None if spec.api_key else AwsCredentials(provider=spec.name, region=region(spec))

    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        body, dropped = build_body(request, model)
        url = self.url(spec, Endpoint.CHAT, model, request.get("stream") is True)
        return Built(url, build_bytes(body), dropped=dropped)

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        return read_reply(body, provider=spec.name)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        return ConverseReader(provider=spec.name)

    def build_embeddings(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        body, dropped = embeddings.build_body(request, model)
        return Built(self._model_url(spec, model, "invoke"), build_bytes(body), dropped=dropped)

    def embeddings(
        self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec
    ) -> tuple[list[list[float]], Usage | None]:
        return embeddings.read_vectors(body, headers, provider=spec.name)

    def build_count(self, request: Json, spec: ProviderSpec, model: str) -> Built | None:
        """CountTokens knows models, not profiles; what is behind an opaque profile it cannot be asked."""
        if read_model(model).opaque:
            return None
        body, dropped = build_body(request, model)
        body = {"input": {"converse": {name: body[name] for name in _COUNTED if name in body}}}
        url = self._model_url(spec, without_region_group(model), "count-tokens")
        return Built(
            url, build_bytes(body), dropped=[name for name in dropped if name.startswith(("messages", "tools"))]
        )

    def count(self, body: bytes, spec: ProviderSpec) -> int:
        try:
            value = loads(body)
        except DecodeError:
            value = None
        tokens = value.get("inputTokens") if isinstance(value, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= MAX_TOKENS:
            raise MalformedReply(f"the provider {spec.name!r} sent no count of tokens")
        return tokens

    def error(
        self, status: int, headers: Mapping[str, str], body: bytes, spec: ProviderSpec, retry_after_s: float | None
    ) -> UpstreamError:
        return errors.read_error(status, headers, body, provider=spec.name, retry_after_s=retry_after_s)

    def read_models(self, body: bytes) -> list[Json]:
        """``modelSummaries`` of the control plane; OpenAI's list where a base of that face is configured."""
        value = loads(body)
        summaries = value.get("modelSummaries") if isinstance(value, dict) else None
        if summaries is None:
            return super().read_models(body)
        if not isinstance(summaries, list):
            raise ValueError("modelSummaries is no list")
        models = []
        for summary in summaries:
            if isinstance(summary, dict) and isinstance(summary.get("modelId"), str) and summary["modelId"]:
                owner = summary.get("providerName")
                models.append({"id": summary["modelId"], "owned_by": owner if isinstance(owner, str) else self.owner})
        return models

    def _model_url(self, spec: ProviderSpec, model: str, action: str) -> str:
        """Ids hold ``:`` and, as ARNs, ``/``: both are escaped (PROTOCOLS.md 2.5)."""
        return f"{base_url(spec)}/model/{quote(model, safe='')}/{action}"


def base_url(spec: ProviderSpec) -> str:
    """``api_base``, or the host of the region. A default port is left out: ``Host`` is signed, and must be sent,
    without."""
    if spec.api_base:
        return _DEFAULT_PORT.sub(r"\1", spec.api_base)
    where = region(spec)
    return f"https://bedrock-runtime.{where}.amazonaws.com{'.cn' if where.startswith('cn-') else ''}"


def region(spec: ProviderSpec) -> str:
    """The configured region, or that in the name of the configured host: signatures are made for one."""
    if spec.region:
        return spec.region
    named = _RUNTIME_HOST.search(spec.api_base)
    return named["region"] if named is not None else DEFAULT_REGION


TYPE = BedrockType(name="bedrock", needs_key=False, ask_usage=False, owned_by="aws", natives=frozenset(), by_model=True)
