"""Google Gemini: the Gemini API (an API key) and Vertex AI (an OAuth token, the project in ``api_base``).

Owns URLs and keys. The model's name becomes a part of the path, so it is quoted whole: whatever a client calls it, the
path keeps its form and its verb. The key travels in a header and never in the URL, where logs and proxies would see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import quote

from ..config.snapshot import ProviderSpec
from ..errors import ClientError, UpstreamError
from ..wire.canonical import Built, Json, Reply, StreamReader
from ..wire.codec import dumps, loads
from ..wire.usage import Usage
from .base import ProviderType, outbound_headers

_OAUTH = "ya29."
"""Google's OAuth access tokens begin so; API keys begin with "AIza" or "AQ."."""
_COLLECTIONS = ("models/", "tunedModels/")
_SERVED = frozenset({"generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents"})


def is_vertex(spec: ProviderSpec) -> bool:
    """Whether ``api_base`` is Vertex AI's: ``.../v1/projects/P/locations/L/publishers/google``."""
    return "/publishers/" in spec.api_base


def resource(model: str) -> str:
    """``models/<name>``, each segment quoted; a collection written by the user is kept."""
    for collection in _COLLECTIONS:
        if model.startswith(collection):
            return collection + quote(model[len(collection) :], safe="")
    return "models/" + quote(model, safe="")


class GeminiType(ProviderType):
    """Speaks ``generateContent``."""

    __slots__ = ()

    def headers(self, spec: ProviderSpec, *, json_body: bool = True) -> dict[str, str]:
        """The fields of every request. An OAuth token goes where OAuth tokens go."""
        oauth = spec.api_key.reveal().startswith(_OAUTH)
        return outbound_headers(replace(self, auth="bearer") if oauth else self, spec, json_body=json_body)

    def models_url(self, spec: ProviderSpec) -> str:
        """Vertex has no list below a project. The largest page holds all models there are."""
        return "" if is_vertex(spec) else spec.api_base + "/models?pageSize=1000"

    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        """A chat request; a stream is asked for as an event stream."""
        from ..wire.gemini.request import build_body

        body, dropped = build_body(request, model)
        verb = ":streamGenerateContent?alt=sse" if request.get("stream") is True else ":generateContent"
        return Built(_url(spec, model, verb), _written(body), dropped=dropped)

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        from ..wire.gemini.reply import read_reply

        return read_reply(body, provider=spec.name)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        from ..wire.gemini.reader import GeminiReader

        return GeminiReader(provider=spec.name)

    def build_embeddings(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        from ..wire.gemini.embeddings import build_embeddings_body

        vertex = is_vertex(spec)
        body, dropped = build_embeddings_body(request, resource(model), vertex=vertex)
        return Built(_url(spec, model, ":predict" if vertex else ":batchEmbedContents"), dumps(body), dropped=dropped)

    def embeddings(
        self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec
    ) -> tuple[list[list[float]], Usage | None]:
        from ..wire.gemini.embeddings import read_embeddings

        return read_embeddings(body, provider=spec.name)

    def build_count(self, request: Json, spec: ProviderSpec, model: str) -> Built | None:
        from ..wire.gemini.request import build_count_body

        body = build_count_body(request, model, resource(model), vertex=is_vertex(spec))
        return Built(_url(spec, model, ":countTokens"), _written(body))

    def count(self, body: bytes, spec: ProviderSpec) -> int:
        from ..wire.gemini.embeddings import read_count

        return read_count(body, provider=spec.name)

    def error(
        self, status: int, headers: Mapping[str, str], body: bytes, spec: ProviderSpec, retry_after_s: float | None
    ) -> UpstreamError:
        from ..wire.gemini.errors import read_google_error

        return read_google_error(status, body, provider=spec.name, retry_after_s=retry_after_s)

    def read_models(self, body: bytes) -> list[Json]:
        """Google's list, or the list of its OpenAI face, whose ids have a prefix too (PROTOCOLS.md 2.4)."""
        value = loads(body)
        listed = value.get("models", value.get("data")) if isinstance(value, dict) else None
        if not isinstance(listed, list):
            raise ValueError("not a list of models")
        return [model for model in map(_model, listed) if model is not None]


def _written(body: Json) -> bytes:
    try:
        return dumps(body)
    except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
        raise ClientError("The request is nested too deeply.", param="messages", code="invalid_value") from None


def _url(spec: ProviderSpec, model: str, verb: str) -> str:
    return f"{spec.api_base}/{resource(model)}{verb}"


def _model(value: object) -> Json | None:
    """One model; ``None`` for what is none, and for models that are asked in another way (pictures, speech)."""
    if not isinstance(value, dict):
        return None
    name = value.get("name", value.get("id"))
    methods = value.get("supportedGenerationMethods")
    if not isinstance(name, str) or not name.removeprefix("models/"):
        return None
    if isinstance(methods, list) and not _SERVED.intersection(map(str, methods)):
        return None
    out: Json = {"id": name.removeprefix("models/"), "owned_by": "google"}
    for ours, theirs in (("context_window", "inputTokenLimit"), ("max_output_tokens", "outputTokenLimit")):
        limit = value.get(theirs)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            out[ours] = limit
    return out


TYPE = GeminiType(
    name="gemini",
    default_base="https://generativelanguage.googleapis.com/v1beta",
    auth="x-goog-api-key",
    natives=frozenset(),
    owned_by="google",
    by_model=True,
)
