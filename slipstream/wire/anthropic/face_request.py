"""A client's Messages request, read into the canonical chat request (PROTOCOLS.md 1.2 from right to left, 2.3).

Owns the top level of the body: settings, tools, what the answer must look like. Messages and their blocks are in
``face_content``. Every field is translated, refused with a 400 that names it, or listed as dropped (R65); fields that
Anthropic's servers understand and no other provider has (containers, MCP servers, context management) are listed.

The rule that must not be broken: the client's body is never changed, and nothing of it is put into the list of dropped
names as it came, because that list becomes a header.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from ...errors import ClientError
from ..canonical import Json
from ..codec import dumps
from .face_content import Dropped, cache_control, decode_messages

MAX_USER_CHARS = 64
"""OpenAI takes 64 characters of ``user``, others 128; Claude Code's ``user_id`` is a JSON text of 200
(ujisati/claude-code-provider-proxy#11, looplj/axonhub#1669)."""
NEST_MARGIN = 24
"""Levels that a provider's body may wrap around a client's value; the JSON encoder has a limit of 254 in all."""

_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_THINKING = ("enabled", "disabled", "adaptive", "between_tools")
_READ = frozenset(
    [
        "model",
        "messages",
        "max_tokens",
        "system",
        "stream",
        "tools",
        "tool_choice",
        "stop_sequences",
        "temperature",
        "top_p",
        "top_k",
        "metadata",
        "thinking",
        "output_config",
        "output_format",
        "service_tier",
        "cache_control",
    ]
)
_IGNORED = frozenset({"anthropic_version", "anthropic_beta", "betas"})
"""They say how the body is to be read, not what is wanted."""
# Beyond Anthropic's own: names that canonical requests have for what open models can do.
_EXTENSIONS = ("min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed")
# Tools that Anthropic's models know without a schema; a version follows the name: web_search_20250305.
_KNOWN_TOOLS = (
    "web_search",
    "web_fetch",
    "code_execution",
    "computer",
    "browser",
    "bash",
    "text_editor",
    "memory",
    "tool_search_tool",
    "mcp_toolset",
    "advisor",
)
# Not in OpenAI's subset of JSON Schema (guide "Structured outputs", "Supported schemas").
_LOOSE = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties"}
)
_TOOL_EXTRAS = ("defer_loading", "allowed_callers", "eager_input_streaming", "input_examples")


def decode_request(body: Json) -> tuple[Json, list[str]]:
    """The canonical request for the body of ``POST /v1/messages``, and the names of the fields that no chat request can
    express. Raises ``ClientError`` naming the field."""
    if body.get("max_tokens") is None:
        raise ClientError(
            "Field required: the largest number of tokens to generate.",
            param="max_tokens",
            code="missing_required_parameter",
        )
    request, dropped = _decode(body)
    _sampling(body, request)
    if _flag(body, "stream"):
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}
    return request, dropped.names


def decode_count(body: Json) -> tuple[Json, list[str]]:
    """The same for ``POST /v1/messages/count_tokens``, which knows no ``max_tokens`` and no sampling."""
    request, dropped = _decode(body)
    return request, dropped.names


def _decode(body: Json) -> tuple[Json, Dropped]:
    """What both endpoints have: the prompt, the tools, thinking and the form of the output."""
    dropped = Dropped()
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise ClientError("Field required: the name of a model.", param="model", code="missing_required_parameter")
    request: Json = {"model": model, "messages": decode_messages(body, dropped)}
    if body.get("max_tokens") is not None:
        request["max_tokens"] = _whole(body, "max_tokens", 1)
    _tools(body, request, dropped)
    _thinking(body, request)
    _output(body, request, dropped)
    _others(body, request, dropped)
    return request, dropped


# ---------------------------------------------------------------------- settings


def _sampling(body: Json, request: Json) -> None:
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            request[name] = _number(body, name)
    if body.get("top_k") is not None:
        request["top_k"] = _whole(body, "top_k", 0)
    stop = body.get("stop_sequences")
    if stop is not None:
        if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
            raise ClientError("Must be a list of strings.", param="stop_sequences", code="invalid_type")
        if stop:
            request["stop"] = list(stop)


def _thinking(body: Json, request: Json) -> None:
    """Goes on as it is; how much a model thinks that knows only efforts is for the provider's side to say."""
    thinking = _object(body, "thinking")
    if thinking is None:
        return
    kind = thinking.get("type")
    if kind not in _THINKING:
        raise ClientError(f"Must be one of {', '.join(_THINKING)}.", param="thinking.type", code="invalid_value")
    config: Json = {"type": kind}
    if kind == "enabled":
        config["budget_tokens"] = _whole(thinking, "budget_tokens", 1, "thinking.")
    if isinstance(thinking.get("display"), str):
        config["display"] = thinking["display"]
    request["thinking"] = config


def _output(body: Json, request: Json, dropped: Dropped) -> None:
    """``output_config``, and ``output_format``, which its ``format`` was called in the beta (#66ce35f1)."""
    config = _object(body, "output_config") or {}
    effort = config.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise ClientError(
                f"Must be one of {', '.join(_EFFORTS)}.", param="output_config.effort", code="invalid_value"
            )
        request["reasoning_effort"] = effort
    for name in config:
        if name not in ("effort", "format") and config[name] is not None:
            dropped.add_field(name, "output_config.")
    where, form = "output_config.format", _object(config, "format", "output_config.")
    if form is None:
        where, form = "output_format", _object(body, "output_format")
    if form is not None:
        request["response_format"] = _format(form, where)


def _format(form: Json, where: str) -> Json:
    if form.get("type") != "json_schema":
        raise ClientError("Only 'json_schema' is known.", param=f"{where}.type", code="invalid_value")
    schema = form.get("schema")
    if not isinstance(schema, dict):
        raise ClientError("Field required: a JSON Schema.", param=f"{where}.schema", code="missing_required_parameter")
    _check_depth(schema, f"{where}.schema")
    spec: Json = {"name": "output", "schema": schema}
    if _is_strict(schema):
        spec["strict"] = True
    return {"type": "json_schema", "json_schema": spec}


def _is_strict(schema: object) -> bool:
    """Whether OpenAI takes the schema as ``strict``: every object closed, every property required (PROTOCOLS.md 1.2),
    no keyword that it refuses. Anthropic's output schemas always bind; so the switch is on wherever it can be."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if not _LOOSE.isdisjoint(schema):
        return False
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        names = list(properties) if isinstance(properties, dict) else []
        required = schema.get("required")
        if schema.get("additionalProperties") is not False or sorted(names) != sorted(_strings(required)):
            return False
    return all(map(_is_strict, schema.values()))


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _others(body: Json, request: Json, dropped: Dropped) -> None:
    metadata = _object(body, "metadata") or {}
    user = metadata.get("user_id")
    if user is not None:
        if not isinstance(user, str):
            raise ClientError("Must be a string.", param="metadata.user_id", code="invalid_type")
        # It must only be the same for the same user: a digest serves as well, and fits.
        request["user"] = user if len(user) <= MAX_USER_CHARS else sha256(user.encode()).hexdigest()
    if any(name != "user_id" for name in metadata):
        dropped.add("metadata")
    if body.get("service_tier") == "standard_only":
        request["service_tier"] = "default"
    elif body.get("service_tier") not in (None, "auto"):
        raise ClientError("Must be 'auto' or 'standard_only'.", param="service_tier", code="invalid_value")
    mark = cache_control(body)
    if mark is not None:  # the API marks the last block that can be cached
        request["messages"][-1].setdefault("cache_control", mark)
    for name, value in body.items():
        if (
            name in _READ
            or name in _IGNORED
            or value in (None, False, [], {})
            or (name, value) == ("speed", "standard")
        ):
            continue
        if name in _EXTENSIONS:
            request[name] = _number(body, name)
        else:
            dropped.add_field(name)


# ---------------------------------------------------------------------- tools


def _tools(body: Json, request: Json, dropped: Dropped) -> None:
    tools = body.get("tools")
    if tools is None:
        tools = []
    if not isinstance(tools, list):
        raise ClientError("Must be a list of tools.", param="tools", code="invalid_type")
    known: list[Json] = []
    for i, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ClientError("Must be an object.", param=f"tools.{i}", code="invalid_type")
        if tool.get("type") in (None, "custom"):
            known.append(_function(tool, f"tools.{i}", dropped))
        else:
            dropped.add(_builtin(tool["type"]))
    if known:
        request["tools"] = known
    _choice(body, request, dropped, len(known) < len(tools))


def _function(tool: Json, where: str, dropped: Dropped) -> Json:
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise ClientError("Field required.", param=f"{where}.name", code="missing_required_parameter")
    if not isinstance(schema, dict):
        raise ClientError(
            "Field required: a JSON Schema of type 'object'.",
            param=f"{where}.input_schema",
            code="missing_required_parameter",
        )
    _check_depth(schema, f"{where}.input_schema")
    function: Json = {"name": name}
    if isinstance(tool.get("description"), str):
        function["description"] = tool["description"]
    function["parameters"] = schema
    if tool.get("strict") is True:
        if _is_strict(schema):
            function["strict"] = True
        else:  # Anthropic's may have optional properties
            dropped.add("tools[].strict")
    for extra in _TOOL_EXTRAS:
        if tool.get(extra) and tool[extra] != ["direct"]:  # the default of allowed_callers
            dropped.add(f"tools[].{extra}")
    made: Json = {"type": "function", "function": function}
    mark = cache_control(tool)
    if mark is not None:
        made["cache_control"] = mark
    return made


def _builtin(kind: object) -> str:
    """The name under which a tool of Anthropic's own is reported: without its version, and never the client's text."""
    if isinstance(kind, str):
        for name in _KNOWN_TOOLS:
            if kind.startswith(name):
                return f"tools[].{name}"
    return "tools[].type"


def _choice(body: Json, request: Json, dropped: Dropped, lost: bool) -> None:
    """``lost``: some tools could not be expressed, perhaps the one that is asked for."""
    choice = _object(body, "tool_choice")
    if choice is None:
        return
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise ClientError("Must be one of auto, any, tool, none.", param="tool_choice.type", code="invalid_value")
    names = [tool["function"]["name"] for tool in request.get("tools", ())]
    if kind == "tool" and choice.get("name") not in names:
        if not lost:
            raise ClientError("Must be the name of one of 'tools'.", param="tool_choice.name", code="invalid_value")
        dropped.add("tool_choice")
        return
    if not names:
        if kind == "any":
            dropped.add("tool_choice")
        return
    if kind == "tool":
        request["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    else:
        request["tool_choice"] = "required" if kind == "any" else kind
    if choice.get("disable_parallel_tool_use") is True:
        request["parallel_tool_calls"] = False


# ---------------------------------------------------------------------- single values


def _object(holder: Json, name: str, within: str = "") -> Json | None:
    value = holder.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise ClientError("Must be an object.", param=within + name, code="invalid_type")


def _whole(holder: Json, name: str, least: int, within: str = "") -> int:
    value = holder.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ClientError(f"Must be a whole number from {least} on.", param=within + name, code="invalid_value")
    return value


def _number(holder: Json, name: str) -> Any:
    value = holder[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClientError("Must be a number.", param=name, code="invalid_type")
    return value


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ClientError("Must be true or false.", param=name, code="invalid_type")
    return bool(value)


def _check_depth(value: Any, where: str) -> None:
    """Refuses what a provider's body could not hold, before it fails as an error of ours."""
    for _ in range(NEST_MARGIN):
        value = [value]
    try:
        dumps(value)
    except TypeError:
        raise ClientError("Is nested too deeply.", param=where, code="invalid_value") from None
