"""A canonical chat request as the body of Converse (PROTOCOLS.md 1.2, 2.5; service model of botocore).

Converse's own fields that no chat has (``guardrailConfig``, ``performanceConfig``, ``requestMetadata``,
``additionalModelRequestFields``, ...) are taken from the request as a client writes them there, the way the OpenAI
SDK's ``extra_body`` sends them; what stands in ``additionalModelRequestFields`` is the last word.

The rule that must not be broken: every field is expressed, refused with its name, or listed as dropped (R65).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ClientError
from ..anthropic.request import DEFAULT_MAX_TOKENS
from ..anthropic.request_schema import subset
from ..anthropic.request_thinking import Limits
from ..anthropic.traits import Traits, traits
from ..canonical import Json
from ..codec import dumps
from .dropped import Dropped
from .messages import Conversation, cache_point
from .models import Model, read_model
from .reasoning import Reasoning, read_reasoning
from .tools import is_forced, read_tools

_OWN: Mapping[str, type] = {
    "guardrailConfig": dict,
    "performanceConfig": dict,
    "requestMetadata": dict,
    "promptVariables": dict,
    "additionalModelResponseFieldPaths": list,
}
_TIERS = {
    "default": "default",
    "standard_only": "default",
    "flex": "flex",
    "priority": "priority",
    "reserved": "reserved",
}
_HANDLED = frozenset(
    {
        *_OWN, "additionalModelRequestFields", "model", "messages", "stream", "stream_options", "n", "max_tokens",
        "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "tools", "tool_choice", "functions",
        "function_call", "parallel_tool_calls", "response_format", "reasoning_effort", "thinking", "service_tier",
        "cache_control",
    }
)  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "modalities": ["text"],
    "verbosity": "medium",
    "top_logprobs": 0,
}
"""Values that say the same as nothing (API reference, "Create chat completion")."""
MIN_TOP_P_THINKING = 0.95
"""Claude, "Extended thinking": top_p is limited to 0.95-1 while it thinks, temperature and top_k are refused."""


def build_body(request: Json, model_id: str) -> tuple[Json, list[str]]:
    """The body for ``model_id`` and the names of what it does not express. Raises ``ClientError``."""
    model = read_model(model_id)
    claude = traits(model_id) if model.claude else None
    dropped = Dropped()
    if _whole(request, "n") not in (None, 1):
        raise ClientError("Bedrock gives one answer per request; leave 'n' out or set it to 1.", param="n")
    conversation = Conversation(request.get("messages"), model, dropped)
    body: Json = {"messages": conversation.messages()}
    if body["messages"][-1]["role"] == "user":  # on the request itself the mark means: all of it
        body["messages"][-1]["content"] += cache_point(request, model, dropped)
    if conversation.system:
        body["system"] = conversation.system
    config, extra = read_tools(request, model, conversation, claude is None or claude.forced, dropped)
    if config is not None:
        body["toolConfig"] = config
    limit = _limit(request)
    limits = Limits(limit, DEFAULT_MAX_TOKENS, is_forced(config), conversation.bare_loop)
    reasoning = read_reasoning(request, model, claude, limits, dropped)
    inference = _inference(request, claude, reasoning, limit, dropped)
    if inference:
        body["inferenceConfig"] = inference
    output = _output(request, model, reasoning, dropped)
    if output:
        body["outputConfig"] = output
    fields = {**_top_k(request, model, claude, reasoning, dropped), **reasoning.fields, **extra}
    _add_own(body, request, fields)
    if claude is not None and "stopSequences" in inference:
        body.setdefault("additionalModelResponseFieldPaths", ["/stop_sequence"])  # else nobody says which one it was
    _add_tier(body, request, dropped)
    _list_others(request, dropped)
    return body, dropped.names


def build_bytes(body: Json) -> bytes:
    """``body`` as it is sent. Raises ``ClientError`` for what no JSON encoder takes."""
    try:
        return dumps(body)
    except TypeError:
        raise ClientError("The request is nested too deeply.", param="messages", code="invalid_value") from None


# ------------------------------------------------------------------ parameters


def _limit(request: Json) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        limit = _whole(request, name)
        if limit is not None:
            if limit < 1:
                raise ClientError(f"'{name}' must be at least 1.", param=name, code="invalid_value")
            return limit
    return None


def _inference(request: Json, claude: Traits | None, reasoning: Reasoning, limit: int | None, dropped: Dropped) -> Json:
    config: Json = {}
    limit = reasoning.max_tokens if reasoning.max_tokens is not None else limit
    temperature, top_p = _number(request, "temperature"), _number(request, "top_p")
    if claude is not None:
        temperature, top_p = _claude_sampling(temperature, top_p, claude, reasoning, dropped)
    if reasoning.lone:  # Nova 2 at high effort (user guide, "Nova 2: extended thinking")
        for name, value in (("max_tokens", limit), ("temperature", temperature), ("top_p", top_p)):
            _note(name, value, dropped)
        limit = temperature = top_p = None
    if limit is not None:
        config["maxTokens"] = limit
    if temperature is not None:
        config["temperature"] = min(temperature, 1)  # OpenAI's scale ends at 2, Converse's at 1 (service model)
        if temperature > 1:
            dropped.add("temperature")
    if top_p is not None:
        config["topP"] = top_p
    stops = _stops(request, claude is not None, dropped)
    if stops:
        config["stopSequences"] = stops
    return config


def _claude_sampling(
    temperature: float | None, top_p: float | None, claude: Traits, reasoning: Reasoning, dropped: Dropped
) -> tuple[float | None, float | None]:
    """What a Claude model takes of it (PROTOCOLS.md 1.2)."""
    if temperature is not None and (reasoning.on or not claude.sampling):
        _note("temperature", temperature, dropped)
        temperature = None
    if top_p is not None:
        low = reasoning.on and top_p < MIN_TOP_P_THINKING
        twice = temperature is not None and not claude.both  # "`temperature` and `top_p` cannot both be specified"
        if low or twice or not claude.sampling:
            _note("top_p", top_p, dropped)
            top_p = None
    return temperature, top_p


def _note(name: str, value: float | None, dropped: Dropped) -> None:
    """Report a sampling parameter or a limit, unless it is the default."""
    if value is not None and (value != 1 or name == "max_tokens"):
        dropped.add(name)


def _stops(request: Json, claude: bool, dropped: Dropped) -> list[str]:
    stop = request.get("stop")
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise _wrong("stop", "a string or a list of strings")
    kept = [text for text in stops if (text.strip() if claude else text)]  # Claude refuses blank ones
    if len(kept) < len([text for text in stops if text]):
        dropped.add("stop")
    return kept


def _top_k(request: Json, model: Model, claude: Traits | None, reasoning: Reasoning, dropped: Dropped) -> Json:
    top_k = _whole(request, "top_k")
    if top_k is None or top_k < 1:  # 0 and -1 mean "all" (vLLM)
        return {}
    refused = reasoning.lone or (claude is not None and (not claude.sampling or reasoning.on))
    if not model.top_k or refused:
        dropped.add("top_k")
        return {}
    fields: Json = {}
    value: Any = top_k
    for name in reversed(model.top_k):
        value = fields = {name: value}
    return fields


def _output(request: Json, model: Model, reasoning: Reasoning, dropped: Dropped) -> Json:
    """``outputConfig``: the form of the answer, and how much effort goes into it."""
    config: Json = {}
    wanted = request.get("response_format")
    if wanted is not None and not isinstance(wanted, dict):
        raise _wrong("response_format", "an object")
    kind = wanted.get("type") if wanted else None
    if wanted and kind == "json_schema" and model.structured:
        config["textFormat"] = {
            "type": "json_schema",
            "structure": {"jsonSchema": _schema(wanted.get("json_schema"), model)},
        }
    elif kind not in (None, "text"):
        dropped.add("response_format")  # "any JSON object" cannot be asked for
    if reasoning.effort is not None:
        config["effort"] = reasoning.effort
    return config


def _schema(wanted: object, model: Model) -> Json:
    """#2cc72229: the schema is a JSON text. Claude takes a subset of JSON Schema only."""
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    if not isinstance(wanted, dict) or not isinstance(schema, dict):
        raise ClientError(
            "'json_schema' must be an object with a 'schema'.", param="response_format.json_schema", code="invalid_type"
        )
    out: Json = {"schema": build_bytes(subset(schema) if model.claude else schema).decode()}
    for name in ("name", "description"):
        if isinstance(wanted.get(name), str) and wanted[name]:
            out[name] = wanted[name]
    return out


# ------------------------------------------------------------------ Converse's own, and the rest


def _add_own(body: Json, request: Json, fields: Json) -> None:
    for name, kind in _OWN.items():
        value = request.get(name)
        if value is not None:
            if not isinstance(value, kind):
                raise _wrong(name, "an object" if kind is dict else "a list")
            body[name] = value
    own = request.get("additionalModelRequestFields")
    if own is not None and not isinstance(own, dict):
        raise _wrong("additionalModelRequestFields", "an object")
    if fields or own:
        body["additionalModelRequestFields"] = {**fields, **(own or {})}


def _add_tier(body: Json, request: Json, dropped: Dropped) -> None:
    tier = request.get("service_tier")
    if isinstance(tier, str) and tier in _TIERS:
        body["serviceTier"] = {"type": _TIERS[tier]}
    elif tier not in (None, "auto"):
        dropped.add("service_tier")


def _list_others(request: Json, dropped: Dropped) -> None:
    for name, value in request.items():
        if name in _HANDLED or value is None or value is False or value in ("", [], {}):
            continue
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            dropped.add_field(name)


def _whole(request: Json, name: str) -> int | None:
    value = request.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(name, "a whole number")
    return value


def _number(request: Json, name: str) -> float | None:
    value = request.get(name)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise _wrong(name, "a number")
    return value


def _wrong(name: str, wanted: str) -> ClientError:
    return ClientError(f"'{name}' must be {wanted}.", param=name, code="invalid_type")
