"""Embeddings by InvokeModel: bodies are the vendors' own (Bedrock user guide, "Inference request parameters": Amazon
Titan Embeddings, Nova Multimodal Embeddings, Cohere Embed).

Titan and Nova take one text a request, Cohere a list. Which of them answered is told by the form of the answer.

The rule that must not be broken: as many vectors as inputs, in their order, made of numbers only (R66).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ClientError, MalformedReply
from ..canonical import Json
from ..codec import DecodeError, loads
from ..usage import MAX_TOKENS, Usage
from .dropped import Dropped
from .errors import read_in_200
from .models import read_model

TOKENS_HEADER = "x-amzn-bedrock-input-token-count"
_HANDLED = frozenset({"model", "input", "encoding_format", "dimensions", "input_type", "normalize", "truncate"})
DEFAULT_INPUT_TYPE = "search_document"
"""Cohere wants to know what a text is for; OpenAI's API has no word for it. A client may say ``input_type``."""


def build_body(request: Json, model_id: str) -> tuple[Json, list[str]]:
    """The body for ``model_id`` and the names of what it does not express. Raises ``ClientError``."""
    texts = _texts(request.get("input"))
    model = read_model(model_id)
    dimensions = _dimensions(request)
    dropped = Dropped()
    if model.vendor == "cohere":
        body = _cohere(request, texts, dimensions, model.name, dropped)
    elif model.vendor == "amazon" and model.name.startswith("titan-embed"):
        body = _titan(request, _only(texts, model_id), dimensions, model.name, dropped)
    elif model.nova and "embed" in model.name:
        body = _nova(_only(texts, model_id), dimensions)
    else:
        raise ClientError(
            "Bedrock makes embeddings with Titan, Nova and Cohere models; this is none that is known.",
            param="model",
            code="unsupported_endpoint",
        )
    for name, value in request.items():
        if name not in _HANDLED and value not in (None, "", [], {}):
            dropped.add_field(name)
    return body, dropped.names


def _titan(request: Json, text: str, dimensions: int | None, name: str, dropped: Dropped) -> Json:
    body: Json = {"inputText": text}
    if name.startswith("titan-embed-image"):
        if dimensions is not None:
            body["embeddingConfig"] = {"outputEmbeddingLength": dimensions}
        return body
    if not name.startswith("titan-embed-text-v2"):
        if dimensions is not None:
            dropped.add("dimensions")
        return body
    if dimensions is not None:
        body["dimensions"] = dimensions
    if isinstance(request.get("normalize"), bool):
        body["normalize"] = request["normalize"]
    return body


def _nova(text: str, dimensions: int | None) -> Json:
    params: Json = {"embeddingPurpose": "GENERIC_INDEX", "text": {"truncationMode": "NONE", "value": text}}
    if dimensions is not None:
        params["embeddingDimension"] = dimensions
    return {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": params}


def _cohere(request: Json, texts: list[str], dimensions: int | None, name: str, dropped: Dropped) -> Json:
    kind = request.get("input_type")
    body: Json = {
        "texts": texts,
        "input_type": kind if isinstance(kind, str) and kind else DEFAULT_INPUT_TYPE,
        "embedding_types": ["float"],
    }
    if dimensions is not None:
        if name.startswith("embed-v4"):
            body["output_dimension"] = dimensions
        else:
            dropped.add("dimensions")
    if isinstance(request.get("truncate"), str):
        body["truncate"] = request["truncate"]
    return body


def read_vectors(body: bytes, headers: Mapping[str, str], *, provider: str) -> tuple[list[list[float]], Usage | None]:
    """The vectors of an answer and what they cost. Raises ``UpstreamError``."""
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent embeddings that are not JSON") from None
    if not isinstance(value, dict) or ("embedding" not in value and "embeddings" not in value):
        raise read_in_200(body, provider=provider)
    vectors = [value["embedding"]] if "embedding" in value else _several(value["embeddings"])
    if not vectors or not all(map(_is_vector, vectors)):
        raise MalformedReply(f"the provider {provider!r} sent embeddings that are no lists of numbers")
    return vectors, _usage(value.get("inputTextTokenCount"), headers)


def _several(found: Any) -> list[Any]:
    """Cohere: lists, or lists by type; Nova: objects."""
    if isinstance(found, dict):
        found = found.get("float")
    if not isinstance(found, list):
        return []
    return [item.get("embedding") if isinstance(item, dict) else item for item in found]


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) in (int, float) for number in value)


def _usage(counted: object, headers: Mapping[str, str]) -> Usage | None:
    said = headers.get(TOKENS_HEADER, "")
    if isinstance(counted, int) and not isinstance(counted, bool):
        tokens = counted
    elif said.isascii() and said.isdigit() and len(said) < 16:
        tokens = int(said)
    else:
        return None
    return Usage(input_uncached=tokens, source="provider") if 0 <= tokens <= MAX_TOKENS else None


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise ClientError("'input' must be a text or a list of texts.", param="input", code="invalid_type")
    if not all(isinstance(text, str) for text in texts):
        raise ClientError("Bedrock takes texts, not token ids, as 'input'.", param="input", code="invalid_type")
    return texts


def _only(texts: list[str], model_id: str) -> str:
    if len(texts) > 1:
        raise ClientError(
            f"The model takes one text per request; 'input' holds {len(texts)}. Send them one by one.",
            param="input",
            code="invalid_value",
        )
    return texts[0]


def _dimensions(request: Json) -> int | None:
    value = request.get("dimensions")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ClientError("'dimensions' must be a whole number above 0.", param="dimensions", code="invalid_type")
    return value
