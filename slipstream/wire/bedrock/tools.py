"""Tools and the choice of them as Converse's ``toolConfig`` (PROTOCOLS.md 1.2, 2.5).

``toolConfig`` must be there whenever the history holds calls or results, so tools that the client does not offer any
more are described from their names. There is no choice ``none``: tools are left out, or, where they must be there, the
model may still call one, which is reported.
"""

from __future__ import annotations

from typing import Any

from ...errors import ClientError
from ..canonical import Json
from .dropped import Dropped
from .messages import Conversation, cache_point
from .models import Model

_CHOICES = {"auto": "auto", "none": "none", "required": "any", "any": "any"}
_ANY_SCHEMA: Json = {"type": "object", "properties": {}}
_NO_NAME = "tool"
"""For results whose calls are not in the history."""


def read_tools(
    request: Json, model: Model, conversation: Conversation, forced: bool, dropped: Dropped
) -> tuple[Json | None, Json]:
    """``toolConfig`` (``None``: without), and what goes into ``additionalModelRequestFields``. ``forced``: the model
    takes a choice that forces a call."""
    kind, name, allowed = _choice(request)
    tools = _tools(request, model, dropped)
    if allowed is not None:
        tools = [tool for tool in tools if tool.get("toolSpec", {}).get("name") in allowed]
    if kind == "none" and not conversation.uses_tools:
        return None, {}
    if not any("toolSpec" in tool for tool in tools):
        if not conversation.uses_tools:
            return None, {}
        names = list(conversation.tools) or [_NO_NAME]
        tools = [{"toolSpec": {"name": tool, "inputSchema": {"json": dict(_ANY_SCHEMA)}}} for tool in names]
        return {"tools": tools}, {}
    config: Json = {"tools": tools}
    if kind == "none":
        dropped.add("tool_choice")
    elif kind in ("any", "tool"):
        if model.takes_tool_choice and forced:
            config["toolChoice"] = {"tool": {"name": name}} if kind == "tool" else {"any": {}}
        else:
            dropped.add("tool_choice")
            kind = "auto"
    return config, _one_at_a_time(request, model, kind, name, dropped)


def is_forced(config: Json | None) -> bool:
    return config is not None and "toolChoice" in config


def _one_at_a_time(request: Json, model: Model, kind: str, name: str, dropped: Dropped) -> Json:
    """``parallel_tool_calls: false``: Converse has no field for it, Claude's own has (PROTOCOLS.md 1.2)."""
    if request.get("parallel_tool_calls") is not False:
        return {}
    if not model.claude or kind == "none":
        dropped.add("parallel_tool_calls")
        return {}
    choice: Json = {"type": kind, "disable_parallel_tool_use": True}
    if kind == "tool":
        choice["name"] = name
    return {"tool_choice": choice}


# ------------------------------------------------------------------ definitions


def _tools(request: Json, model: Model, dropped: Dropped) -> list[Json]:
    tools: list[Json] = []
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
            tools += _tool(tool, tool if field == "functions" else tool.get("function"), where, model, dropped)
    return tools


def _tool(tool: Json, function: Any, where: str, model: Model, dropped: Dropped) -> list[Json]:
    if not isinstance(function, dict):
        if tool.get("type") in (None, "function"):
            raise ClientError("A tool must hold a 'function'.", param=f"{where}.function", code="invalid_type")
        dropped.add(f"{where}.type")  # custom tools and tools of somebody's server
        return []
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise ClientError("A function must have a 'name'.", param=f"{where}.function.name", code="invalid_type")
    if schema is not None and not isinstance(schema, dict):
        raise ClientError("'parameters' must be a JSON Schema object.", param=f"{where}.function.parameters")
    spec: Json = {"name": name}
    description = function.get("description")
    if isinstance(description, str) and description.strip():
        spec["description"] = description
    spec["inputSchema"] = {"json": {**_ANY_SCHEMA, **(schema or {})}}
    if function.get("strict") is True:
        if model.structured:
            spec["strict"] = True
        else:
            dropped.add("tools[].function.strict")
    mark = tool if tool.get("cache_control") else function
    return [{"toolSpec": spec}, *cache_point(mark, model, dropped)]


# ------------------------------------------------------------------ choice


def _choice(request: Json) -> tuple[str, str, set[str] | None]:
    """``auto``, ``any``, ``none`` or ``tool`` and its name; and the names that may be called, if not all."""
    field = "tool_choice" if request.get("tool_choice") is not None else "function_call"
    value = request.get(field)
    if value is None:
        return "auto", "", None
    if isinstance(value, str) and value in _CHOICES:
        return _CHOICES[value], "", None
    if isinstance(value, dict):
        allowed = value.get("allowed_tools")
        if (
            value.get("type") == "allowed_tools"
            and isinstance(allowed, dict)
            and isinstance(allowed.get("tools"), list)
        ):
            names = {_name(tool) for tool in allowed["tools"] if isinstance(tool, dict)}
            return ("any" if allowed.get("mode") == "required" else "auto"), "", names
        name = _name(value)
        if name:
            return "tool", name, None
        if value.get("type") in ("auto", "any", "none", "required"):
            return _CHOICES[value["type"]], "", None
    raise ClientError(
        f"'{field}' must be 'auto', 'none', 'required' or name a function.", param=field, code="invalid_value"
    )


def _name(value: Json) -> str:
    for holder in (value.get("function"), value.get("custom"), value):
        if isinstance(holder, dict) and isinstance(holder.get("name"), str):
            return str(holder["name"])
    return ""
