"""``tools`` and ``tool_choice`` to ``functionDeclarations`` and ``functionCallingConfig`` (PROTOCOLS.md 1.2).

Google's own tools are named by the client as Google names them (``{"google_search": {}}``) or, for the search, as
OpenAI and Anthropic do; nothing is added that was not asked for.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Json
from .parts import note, wrong
from .schema import to_openapi
from .traits import Traits

_OWN = frozenset(
    name
    for snake in (
        "google_search",
        "google_search_retrieval",
        "enterprise_web_search",
        "google_maps",
        "code_execution",
        "url_context",
        "file_search",
        "computer_use",
        "retrieval",
    )
    for name in (snake, snake.split("_")[0] + "".join(word.title() for word in snake.split("_")[1:]))
)


def add_tools(body: Json, request: Json, traits: Traits, dropped: list[str]) -> None:
    """Put ``tools`` and ``toolConfig`` into ``body`` where the request has them."""
    given = request.get("tools")
    if given is None:
        legacy = request.get("functions")
        given = [{"type": "function", "function": one} for one in legacy] if isinstance(legacy, list) else []
    if not isinstance(given, list):
        raise wrong("tools", "'tools' must be an array.", "invalid_type")
    functions: list[Json] = []
    tools: list[Json] = []
    for n, tool in enumerate(given):
        _tool(tool, f"tools[{n}]", traits, functions, tools, dropped)
    search = request.get("web_search_options")
    if isinstance(search, dict):
        tools.append({"googleSearch": {}})
        if search:
            note(dropped, "web_search_options")
    if functions:
        tools.insert(0, {"functionDeclarations": functions})
    if tools:
        body["tools"] = tools
    _choice(body, request, bool(functions), bool(given))
    if request.get("parallel_tool_calls") is False and functions:
        note(dropped, "parallel_tool_calls")


def _tool(tool: Any, where: str, traits: Traits, functions: list[Json], tools: list[Json], dropped: list[str]) -> None:
    if not isinstance(tool, dict):
        raise wrong(where, "A tool must be an object.", "invalid_type")
    function, kind = tool.get("function"), tool.get("type")
    if tool.get("cache_control") is not None:
        note(dropped, "cache_control")
    if isinstance(function, dict) and kind in (None, "function"):
        functions.append(_declaration(function, where + ".function", traits, dropped))
        return
    if kind == "function":
        raise wrong(where + ".function", "A tool of type function must have a 'function' object.", "invalid_type")
    own = {name: value for name, value in tool.items() if name in _OWN and isinstance(value, dict)}
    if own:
        tools.append(own)
    elif isinstance(kind, str) and kind in _OWN:
        tools.append({kind: {}})
    elif isinstance(kind, str) and kind.startswith("web_search"):
        tools.append({"googleSearch": {}})
    else:
        note(dropped, "tools[].type")


def _declaration(function: Json, where: str, traits: Traits, dropped: list[str]) -> Json:
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(where + ".name", "A function must have a 'name'.")
    out: Json = {"name": name}
    about = function.get("description")
    if isinstance(about, str) and about:
        out["description"] = about
    if function.get("strict"):
        note(dropped, "tools[].strict")
    schema = function.get("parameters")
    if not schema and isinstance(schema, dict | None):
        return out
    if not isinstance(schema, dict):
        raise wrong(where + ".parameters", "The parameters of a function must be a JSON Schema object.", "invalid_type")
    if traits.json_parameters:
        out["parametersJsonSchema"] = schema
        return out
    made, lost = to_openapi(schema)
    if made.get("properties"):  # an OBJECT without properties is refused; no parameters are the same
        out["parameters"] = made
    for keyword in lost:
        note(dropped, f"tools[].function.parameters.{keyword}")
    return out


def _choice(body: Json, request: Json, functions: bool, any_tools: bool) -> None:
    """Only beside functions: Gemini refuses a ``toolConfig`` that has nothing to choose from."""
    wanted = request.get("tool_choice")
    if wanted is None:
        wanted = request.get("function_call")
    if wanted is None:
        return
    mode, names = _mode(wanted)
    if functions:
        config: Json = {"mode": mode}
        if names:
            config["allowedFunctionNames"] = names
        body["toolConfig"] = {"functionCallingConfig": config}
    elif mode == "ANY" and not any_tools:
        raise wrong("tool_choice", "'tool_choice' asks for a call, but there are no 'tools' with functions.")


def _mode(wanted: Any) -> tuple[str, list[str]]:
    if isinstance(wanted, str):
        mode = {"auto": "AUTO", "none": "NONE", "required": "ANY", "any": "ANY"}.get(wanted)
        if mode is not None:
            return mode, []
    if isinstance(wanted, dict):
        if wanted.get("type") == "allowed_tools":
            return _allowed(wanted.get("allowed_tools", wanted))
        name = _name(wanted)
        if name is not None:
            return "ANY", [name]
    raise wrong("tool_choice", "'tool_choice' must be auto, none, required, or name a function.")


def _allowed(wanted: Any) -> tuple[str, list[str]]:
    """OpenAI's ``allowed_tools``. ``VALIDATED`` is ``AUTO`` that takes a list (API docs, "Function calling modes")."""
    tools = wanted.get("tools") if isinstance(wanted, dict) else None
    names = [_name(tool) for tool in tools] if isinstance(tools, list) else []
    known = [name for name in names if name is not None]
    if not known:
        raise wrong("tool_choice", "'tool_choice.allowed_tools.tools' must name functions.")
    return "ANY" if wanted.get("mode") == "required" else "VALIDATED", known


def _name(value: Any) -> str | None:
    """The name in ``{"type": "function", "function": {"name"}}`` or in the flat and legacy forms of it."""
    if not isinstance(value, dict):
        return None
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) and name else None
