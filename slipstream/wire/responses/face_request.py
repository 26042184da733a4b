"""A Responses request, read into the canonical chat request.

Every field is one of four things: it means the same in chat and goes on as it is (so do fields that nobody here knows);
it is translated; it has no counterpart and is named in the list of what was dropped (R65); or it points to something
stored, or asks for work behind the client's back, and is refused with a 400 that says what to do instead.

The rule that must not be broken: the client's body is never changed, and what is passed on of it is never changed by
others (R59).
"""

from __future__ import annotations

from typing import Any

from ...errors import ClientError
from ..canonical import Json
from ..codec import dumps
from .face_input import STATELESS, Dropped, read_input, wrong
from .items import ENCRYPTED, LOGPROBS, offered_tools

_HANDLED = frozenset(
    {
        "access_programs",
        "background",
        "context_management",
        "conversation",
        "image",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "reasoning",
        "store",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
    }
)
_NO_COUNTERPART = ("max_tool_calls", "context_management", "image", "access_programs")
_MOVED = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "functions": "tools",
    "function_call": "tool_choice",
    "logprobs": "top_logprobs",
}
"""Chat's names of what this API calls otherwise: the API refuses them too, with this hint."""
NEST_MARGIN = 24
"""Levels that a provider's body or a response object may wrap around a client's value; the encoder has 254 in all."""
_FUNCTION_EXTRAS = ("allowed_callers", "async", "defer_loading", "output_schema")
_REASONING = frozenset({"effort", "summary", "generate_summary", "max_tokens"})
_CUSTOM_PARAMETERS: Json = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The whole input of the tool, as free text."}},
    "required": ["input"],
    "additionalProperties": False,
}


def decode_request(body: Json) -> tuple[Json, list[str]]:
    """The canonical request and the names of the fields that no chat can express. Raises ``ClientError``."""
    _refuse(body)
    _check_depth(body)
    dropped = Dropped()
    request = {name: value for name, value in body.items() if name not in _HANDLED and value is not None}
    request["messages"] = read_input(body, dropped)
    _sampling(body, request)
    _text(body, request, dropped)
    _reasoning(body, request, dropped)
    _tools(body, request, dropped)
    _include(body, request, dropped)
    _rest(body, request, dropped)
    return request, dropped.names


def _refuse(body: Json) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if body.get(name) is not None:
            raise ClientError(f"{name!r} is not supported. {STATELESS}", param=name, code="unsupported_parameter")
    if body.get("background"):
        raise ClientError(
            "'background' is not supported: the answer comes with this request. Send it without, or with 'stream'.",
            param="background",
            code="unsupported_parameter",
        )
    for name, here in _MOVED.items():
        if body.get(name) is not None:
            raise ClientError(
                f"Unsupported parameter: {name!r}. In the Responses API it is {here!r}.",
                param=name,
                code="unsupported_parameter",
            )
    if body.get("n") not in (None, 1):
        raise ClientError("'n' is not supported: a response is one answer.", param="n", code="unsupported_parameter")


def _check_depth(body: Json) -> None:
    """Settings are repeated in the answer and written into the provider's request: what is nested deeper than the
    encoder goes is refused now, before it fails as an error of ours."""
    for name, value in body.items():
        if name == "input" or not isinstance(value, dict | list):
            continue
        for _ in range(NEST_MARGIN):
            value = [value]
        try:
            dumps(value)
        except TypeError:
            raise wrong(name, "is nested too deeply.", "invalid_value") from None


# ------------------------------------------------------------------ settings


def _sampling(body: Json, request: Json) -> None:
    for name in ("temperature", "top_p"):
        _number(body, name)
    limit = _number(body, "max_output_tokens", whole=True)
    if limit is not None:
        request["max_completion_tokens"] = limit
    top = _number(body, "top_logprobs", whole=True)
    if top:
        request["logprobs"] = True
        request["top_logprobs"] = top


def _number(body: Json, name: str, *, whole: bool = False) -> Any:
    value = body.get(name)
    kinds: Any = int if whole else int | float
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
        raise wrong(name, "must be a whole number." if whole else "must be a number.")
    return value


def _text(body: Json, request: Json, dropped: Dropped) -> None:
    text = _object(body, "text")
    for name, value in text.items():
        if value is None:
            continue
        if name == "verbosity":
            request["verbosity"] = value
        elif name == "format":
            _format(value, request, dropped)
        else:
            dropped.add_field("text.", name)


def _format(value: Any, request: Json, dropped: Dropped) -> None:
    """Chat nests what this API has flat."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_schema":
        if not isinstance(value.get("schema"), dict):
            raise wrong("text.format.schema", "must be a JSON schema.")
        schema = {name: member for name, member in value.items() if name != "type" and member is not None}
        schema.setdefault("name", "response")
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        request["response_format"] = {"type": "json_object"}
    elif not isinstance(kind, str):
        raise wrong("text.format", "must be an object with a 'type'.")
    elif kind != "text":
        dropped.add("text.format")


def _reasoning(body: Json, request: Json, dropped: Dropped) -> None:
    """``summary`` asks to see the thinking, which is always shown here if the provider shows it."""
    reasoning = _object(body, "reasoning")
    if reasoning.get("effort") is not None:
        if not isinstance(reasoning["effort"], str):
            raise wrong("reasoning.effort", "must be a string.")
        request["reasoning_effort"] = reasoning["effort"]
    budget = reasoning.get("max_tokens")  # OpenRouter's way to say it
    if isinstance(budget, int) and not isinstance(budget, bool):
        request["thinking"] = {"type": "enabled", "budget_tokens": budget}
    for name, value in reasoning.items():
        if name not in _REASONING and value is not None:
            dropped.add_field("reasoning.", name)


def _include(body: Json, request: Json, dropped: Dropped) -> None:
    include = body.get("include")
    if include is None:
        return
    if not isinstance(include, list):
        raise wrong("include", "must be a list of strings.")
    for value in include:
        if value == LOGPROBS:
            request["logprobs"] = True
        elif value != ENCRYPTED:
            dropped.add("include")


def _rest(body: Json, request: Json, dropped: Dropped) -> None:
    for name in _NO_COUNTERPART:
        if body.get(name) is not None:
            dropped.add(name)
    if body.get("store") is True:
        dropped.add("store")  # nothing is kept; the API's default is true, so its absence says nothing
    if body.get("truncation") not in (None, "disabled"):
        dropped.add("truncation")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", "must be true or false.")
    options = _object(body, "stream_options")
    if stream:
        request["stream"] = True
        request["stream_options"] = {"include_usage": True}  # the last event must have it (R68)
        if options.get("include_obfuscation"):
            dropped.add("stream_options.include_obfuscation")
    if not request.get("metadata", True):
        del request["metadata"]


def _object(body: Json, name: str) -> Json:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong(name, "must be an object.")
    return value


# ------------------------------------------------------------------ tools


def _tools(body: Json, request: Json, dropped: Dropped) -> None:
    if not isinstance(body.get("tools"), list | None):
        raise wrong("tools", "must be a list of tools.")
    for at, tool in enumerate(body.get("tools") or ()):
        if not isinstance(tool, dict):
            raise wrong(f"tools[{at}]", "must be an object.")
    tools: dict[str, Json] = {}
    for where, tool in offered_tools(body):
        kind = tool.get("type")
        if kind == "function":
            tools.setdefault(_name(tool, where), _function(tool, where, dropped))
        elif kind == "custom":
            tools.setdefault(_name(tool, where), _custom(tool, where, dropped))
        else:
            dropped.add(f"{where}.type")
    choice = _choice(body.get("tool_choice"), tools, dropped)
    if not tools:
        if choice not in (None, "auto", "none"):
            dropped.add("tool_choice")
        return  # chat refuses the other two without tools
    request["tools"] = list(tools.values())
    if choice is not None:
        request["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        request["parallel_tool_calls"] = body["parallel_tool_calls"]


def _name(tool: Json, where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise ClientError(
            f"Missing required parameter: '{where}.name'.", param=f"{where}.name", code="missing_required_parameter"
        )
    return name


def _function(tool: Json, where: str, dropped: Dropped) -> Json:
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong(f"{where}.parameters", "must be a JSON schema.")
    for extra in _FUNCTION_EXTRAS:
        if tool.get(extra):
            dropped.add(f"tools[].{extra}")
    members = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in members if tool.get(name) is not None}
    made: Json = {"type": "function", "function": function}
    if tool.get("cache_control") is not None:
        made["cache_control"] = tool["cache_control"]
    return made


def _custom(tool: Json, where: str, dropped: Dropped) -> Json:
    """A tool that takes free text, as a function with one string (see ``items``). A grammar can only be described."""
    description = tool.get("description") if isinstance(tool.get("description"), str) else ""
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar":
        dropped.add("tools[].format")
        description = (
            f"{description}\n\nThe input must match this {form.get('syntax')} grammar:\n{form.get('definition')}"
        )
    function: Json = {"name": tool["name"], "parameters": _CUSTOM_PARAMETERS}
    if description:
        function["description"] = description.strip()
    return {"type": "function", "function": function}


def _choice(choice: Any, tools: dict[str, Json], dropped: Dropped) -> Any:
    """The canonical ``tool_choice``. ``allowed_tools`` takes the others out of ``tools``: the model may use those that
    are left, which any provider understands."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind in ("function", "custom"):
        return {"type": "function", "function": {"name": _name(choice, "tool_choice")}}
    if kind == "allowed_tools":
        allowed = choice.get("tools") if isinstance(choice.get("tools"), list) else []
        names = [tool.get("name") for tool in allowed if isinstance(tool, dict)]
        for name in [name for name in tools if name not in names]:
            del tools[name]
        return "required" if choice.get("mode") == "required" else "auto"
    if not isinstance(kind, str):
        raise wrong("tool_choice", "must be 'auto', 'none', 'required' or an object with a 'type'.", "invalid_value")
    dropped.add("tool_choice")
    return None
