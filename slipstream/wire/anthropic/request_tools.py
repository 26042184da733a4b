"""Tools and the choice of them, canonical to Anthropic (PROTOCOLS.md 1.2)."""

from __future__ import annotations

from ...errors import ClientError
from ..canonical import Json
from .request_parts import cached, note
from .request_schema import subset
from .traits import Traits

_CHOICES = {"auto": "auto", "none": "none", "required": "any", "any": "any"}


def read_tools(request: Json, traits: Traits, called: dict[str, None], dropped: list[str]) -> Json:
    """``tools`` and ``tool_choice`` of the request for Anthropic; empty if it offers none. ``called``: names of the
    tools that the conversation has called already."""
    choice = _choice(request)
    tools = _tools(request, traits, dropped)
    if choice.get("type") == "allowed":
        names = choice.pop("names")
        tools = [tool for tool in tools if tool["name"] in names]
        choice["type"] = choice.pop("mode")
    if not tools:
        return _only_history(called)
    if choice.get("type") in ("any", "tool") and not traits.forced:
        note(dropped, "tool_choice")  # "Forced tool use is not supported" (What's new in Opus 5.5): 400
        choice = {"type": "auto"}
    if request.get("parallel_tool_calls") is False and choice.get("type") != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return {"tools": tools, "tool_choice": choice} if choice else {"tools": tools}


def is_forced(tools: Json) -> bool:
    return tools.get("tool_choice", {}).get("type") in ("any", "tool")


def _only_history(called: dict[str, None]) -> Json:
    """A conversation with tool calls in it must define tools (400 otherwise); the client offers none now, so none may
    be called."""
    if not called:
        return {}
    tools = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in called]
    return {"tools": tools, "tool_choice": {"type": "none"}}


# ------------------------------------------------------------------ definitions
def _tools(request: Json, traits: Traits, dropped: list[str]) -> list[Json]:
    tools = []
    for field in ("tools", "functions"):
        value = request.get(field)
        if value is None:
            continue
        if not isinstance(value, list):
            raise ClientError(f"'{field}' must be a list.", param=field, code="invalid_type")
        for n, tool in enumerate(value):
            where = f"{field}[{n}]"
            if not isinstance(tool, dict):
                raise ClientError("A tool must be an object.", param=where, code="invalid_type")
            if field == "functions":
                tools.append(_function(tool, tool, where, traits, dropped))
            else:
                tools.append(_tool(tool, where, traits, dropped))
    return tools


def _tool(tool: Json, where: str, traits: Traits, dropped: list[str]) -> Json:
    kind, function = tool.get("type"), tool.get("function")
    if kind in (None, "function") and isinstance(function, dict):
        return _function(function, tool, f"{where}.function", traits, dropped)
    if isinstance(kind, str) and kind[-8:].isdigit() and isinstance(tool.get("name"), str):
        return dict(tool)  # Anthropic's own: web_search_20250305, bash_20250124, ...
    raise ClientError(
        "A tool must be {'type': 'function', 'function': {'name': ...}} for this provider.",
        param=f"{where}.type",
        code="unsupported_value",
    )


def _function(function: Json, tool: Json, where: str, traits: Traits, dropped: list[str]) -> Json:
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise ClientError("A function needs a 'name'.", param=f"{where}.name", code="invalid_value")
    if schema is not None and not isinstance(schema, dict):
        raise ClientError("'parameters' must be a JSON Schema.", param=f"{where}.parameters", code="invalid_type")
    schema = {"properties": {}, **(schema or {}), "type": "object"}
    out: Json = {"name": name}
    if isinstance(function.get("description"), str) and function["description"]:
        out["description"] = function["description"]
    if function.get("strict") is True:
        if traits.structured:
            out["strict"] = True
            schema = subset(schema)
        else:
            note(dropped, "tools[].function.strict")
    out["input_schema"] = schema
    return cached(out, tool if "cache_control" in tool else function)


# ------------------------------------------------------------------ choice
def _choice(request: Json) -> Json:
    """``tool_choice`` in Anthropic's form, empty if nothing is said; ``allowed`` only within this module."""
    field = "tool_choice" if request.get("tool_choice") is not None else "function_call"
    value = request.get(field)
    if value is None:
        return {}
    if isinstance(value, str) and value in _CHOICES:
        return {"type": _CHOICES[value]}
    if isinstance(value, dict):
        kind = value.get("type")
        if kind == "allowed_tools":
            return _allowed(value.get("allowed_tools"))
        name = _name(value)
        if name is not None:
            return {"type": "tool", "name": name}
        if isinstance(kind, str) and kind in _CHOICES:
            return {"type": _CHOICES[kind]}
    raise ClientError(
        f"'{field}' must be 'auto', 'none', 'required' or name a function.", param=field, code="invalid_value"
    )


def _name(value: Json) -> str | None:
    for inner in (value.get("function"), value.get("custom"), value):
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return str(inner["name"])
    return None


def _allowed(allowed: object) -> Json:
    if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
        names = [_name(tool) for tool in allowed["tools"] if isinstance(tool, dict)]
        mode = "any" if allowed.get("mode") == "required" else "auto"
        return {"type": "allowed", "names": names, "mode": mode}
    raise ClientError("'allowed_tools' needs a list 'tools'.", param="tool_choice.allowed_tools", code="invalid_type")
