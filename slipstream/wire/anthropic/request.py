"""A canonical chat request as the body of ``POST /v1/messages`` (PROTOCOLS.md 1.2, 2.3; API reference, "Messages").

What the API or the model cannot take is either refused with the field's name, where an answer without it would be a
wrong one (several choices, audio), or left out and reported (R65). What differs only in name or scale is translated.

The rule that must not be broken: the request is never changed, and the same request gives the same body (R59).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from ...errors import ClientError
from ..canonical import Json
from .request_messages import Conversation, system_field
from .request_parts import note
from .request_schema import subset
from .request_thinking import Limits, Thinking, plan, unasked
from .request_tools import is_forced, read_tools
from .traits import Traits, traits

DEFAULT_MAX_TOKENS = 32_000
"""``max_tokens`` is required here and optional in OpenAI's dialect, where its absence means "as long as it takes".
This is what Claude Code asks for (#fa07f92b); rate limits count what was generated, not what was allowed."""
_SAMPLING = ("temperature", "top_p", "top_k")
_NUMBERS = (int, float)
_READ = frozenset(
    (
        *_SAMPLING,
        *("model", "messages", "stream", "stream_options", "n", "stop", "max_tokens", "max_completion_tokens"),
        *("tools", "functions", "tool_choice", "function_call", "parallel_tool_calls"),
        *("response_format", "reasoning_effort", "thinking", "user", "metadata", "service_tier", "cache_control"),
    )
)
"""Fields that are looked at; every other that says something is reported. Usage in streams is always on."""
_ORDINARY = frozenset(
    (*_SAMPLING, "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop")
)
"""Most requests have no other fields than these; of tools, thinking and the rest there is nothing to look for then."""
_DEFAULTS: Json = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "min_p": 0,
    "top_logprobs": 0,
    "modalities": ["text"],
    "verbosity": "medium",
}
"""Values that mean the same as the field's absence."""
_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only", "standard_only": "standard_only"}
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")
"""What ``/v1/messages/count_tokens`` takes (SDK, ``message_count_tokens_params``)."""


class AnthropicOptions(msgspec.Struct, frozen=True):
    """``max_tokens``: used if the client names none. ``in_url``: model and stream are said by the URL (Bedrock,
    Vertex)."""

    traits: Traits
    max_tokens: int = DEFAULT_MAX_TOKENS
    in_url: bool = False


@lru_cache(maxsize=256)
def options_for(model: str) -> AnthropicOptions:
    return AnthropicOptions(traits(model))


def build_body(request: Json, model: str, options: AnthropicOptions) -> tuple[Json, list[str]]:
    """The body and the names of what it cannot say. Raises ``ClientError`` naming a field."""
    kind = options.traits
    dropped: list[str] = []
    ordinary = _ORDINARY.issuperset(request)
    if not ordinary and request.get("n") not in (None, 1):
        raise ClientError("This provider gives one choice; leave out 'n' or set it to 1.", param="n")
    talk = Conversation(request.get("messages"), dropped)
    tools: Json = {}
    if ordinary and not talk.tools:
        thinking = unasked(kind, _limit(request), options.max_tokens)
    else:
        tools = read_tools(request, kind, talk.tools, dropped)
        limits = Limits(_limit(request), options.max_tokens, is_forced(tools), talk.bare_loop)
        thinking = plan(request, kind, limits, dropped)
    if talk.prefill:
        _check_prefill(talk, kind, thinking)
    body: Json = {} if options.in_url else {"model": model}
    body["max_tokens"] = thinking.max_tokens
    system = system_field(talk.system)
    if system is not None:
        body["system"] = system
    body["messages"] = talk.turns
    if not ordinary or tools:
        body |= tools
        body |= _thinking(request, thinking, kind, dropped)
    body |= _sampling(request, kind, thinking, dropped)
    if "stop" in request and (stops := _stops(request, dropped)):
        body["stop_sequences"] = stops
    if not ordinary:
        body |= _rest(request, dropped)
        _report(request, dropped)
    if request.get("stream") is True and not options.in_url:
        body["stream"] = True
    return body, dropped


def count_body(request: Json, model: str, options: AnthropicOptions) -> Json:
    """The body of a request that only counts the tokens of ``request``."""
    body, _ = build_body(request, model, options)
    return {name: body[name] for name in _COUNTED if name in body}


def uses_files(body: Json) -> bool:
    """Whether a block of the conversation names a file that was uploaded before (beta ``files-api``)."""
    for turn in body["messages"]:
        for block in turn["content"]:
            if block["type"] == "text":
                continue
            inner = block.get("content")
            if block["type"] == "tool_result" and isinstance(inner, list) and any(map(_is_file, inner)):
                return True
            if _is_file(block):
                return True
    return False


def _is_file(block: Json) -> bool:
    source = block.get("source")
    return isinstance(source, dict) and source.get("type") == "file"


# ------------------------------------------------------------------ single fields
def _limit(request: Json) -> int | None:
    """The client's limit. The newer name wins, as with OpenAI."""
    for name in ("max_completion_tokens", "max_tokens"):
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ClientError(f"'{name}' must be a whole number of tokens.", param=name, code="invalid_value")
        return value
    return None


def _check_prefill(talk: Conversation, kind: Traits, thinking: Thinking) -> None:
    """The API refuses a last assistant message on newer models and with thinking (PROTOCOLS.md 2.3), and one that ends
    with blanks on all."""
    if not kind.prefill or thinking.on:
        raise ClientError(
            "This model does not continue an assistant message: the last message must be the user's or a tool's.",
            param="messages",
            code="unsupported_value",
        )
    last = talk.turns[-1]["content"][-1]
    if last["type"] == "text":
        last["text"] = last["text"].rstrip()


def _thinking(request: Json, thinking: Thinking, kind: Traits, dropped: list[str]) -> Json:
    out: Json = {} if thinking.field is None else {"thinking": thinking.field}
    config: Json = {}
    schema = _schema(request.get("response_format"), dropped)
    if schema is not None:
        if kind.structured:
            config["format"] = {"type": "json_schema", "schema": subset(schema)}
        else:
            note(dropped, "response_format")
    if thinking.effort is not None:
        config["effort"] = thinking.effort
    if config:
        out["output_config"] = config
    return out


def _schema(wish: object, dropped: list[str]) -> Json | None:
    if wish is None:
        return None
    kind = wish.get("type") if isinstance(wish, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":  # there is no such mode; a schema would be one of our own making
        note(dropped, "response_format")
        return None
    inner = wish.get("json_schema") if isinstance(wish, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise ClientError(
            "'response_format' must be {'type': 'json_schema', 'json_schema': {'name', 'schema'}} or of type text.",
            param="response_format",
            code="invalid_value",
        )
    return schema


def _sampling(request: Json, kind: Traits, thinking: Thinking, dropped: list[str]) -> Json:
    """Temperature, top_p and top_k as far as model and thinking allow. OpenAI's temperatures above 1 become 1, which is
    Anthropic's highest; that is reported, too."""
    out: Json = {}
    for name in _SAMPLING:
        value = request.get(name)
        if value is None:
            continue
        if not isinstance(value, _NUMBERS) or isinstance(value, bool) or (value < 0 and name != "top_k"):
            raise ClientError(f"'{name}' must be a number of at least 0.", param=name, code="invalid_value")
        if _is_default(name, value, kind):
            continue
        if _takes(name, value, kind, thinking, out):
            out[name] = value
        elif name != "temperature" or value != 1:
            note(dropped, name)
    if out.get("temperature", 0) > 1:
        out["temperature"] = 1
        note(dropped, "temperature")
    return out


def _is_default(name: str, value: float, kind: Traits) -> bool:
    """Values that mean no limit, and the temperature that is Claude's own: left out, it is in nobody's way."""
    if name == "temperature":
        return value == 1 and not kind.both
    return value <= 0 if name == "top_k" else value == 1


def _takes(name: str, value: float, kind: Traits, thinking: Thinking, out: Json) -> bool:
    if not kind.sampling:
        return False
    if thinking.on:  # API reference, "Extended thinking": only a top_p of 0.95 to 1 goes with it
        return name == "top_p" and value >= 0.95
    return name != "top_p" or kind.both or "temperature" not in out


def _rest(request: Json, dropped: list[str]) -> Json:
    """What few requests say."""
    out: Json = {}
    user = _user(request, dropped)
    if user is not None:
        out["metadata"] = {"user_id": user}
    tier = request.get("service_tier")
    if isinstance(tier, str) and tier in _TIERS:
        if tier != "auto":
            out["service_tier"] = _TIERS[tier]
    elif tier is not None:
        note(dropped, "service_tier")
    if isinstance(request.get("cache_control"), dict):
        out["cache_control"] = request["cache_control"]
    return out


def _stops(request: Json, dropped: list[str]) -> list[str]:
    """The API refuses stop sequences of blanks only (PROTOCOLS.md 2.3)."""
    stop = request.get("stop")
    if stop is None:
        return []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise ClientError("'stop' must be a string or a list of strings.", param="stop", code="invalid_type")
    kept = [text for text in stops if text.strip()]
    if any(text and not text.strip() for text in stops):
        note(dropped, "stop")
    return kept


def _user(request: Json, dropped: list[str]) -> str | None:
    """``user`` or ``metadata.user_id``; nothing else of the metadata leaves (PROTOCOLS.md 1.2, last rows)."""
    metadata = request.get("metadata")
    named = metadata.get("user_id") if isinstance(metadata, dict) else None
    if metadata and (not isinstance(metadata, dict) or set(metadata) != {"user_id"}):
        note(dropped, "metadata")
    user = request.get("user")
    if isinstance(user, str) and user:
        return user
    return named if isinstance(named, str) and named else None


def _report(request: Json, dropped: list[str]) -> None:
    for name, value in request.items():
        if name in _READ or value is None or value is False or value in ("", [], {}):
            continue
        if name not in _DEFAULTS or value != _DEFAULTS[name]:
            note(dropped, name)
