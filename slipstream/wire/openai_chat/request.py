"""A canonical request as the body for a provider of the OpenAI family.

Owns the top-level fields: what is renamed, what is said in another way, what is left out and reported (R65). What a
provider type needs is data (``ChatQuirks``); the messages are the business of ``messages``.

The rule that must not be broken: the request is not changed and equal requests give equal bytes (R59).
"""

from __future__ import annotations

from typing import Any

from ...errors import ClientError
from ..canonical import Built, Json
from ..codec import dumps
from .messages import Messages
from .quirks import ChatQuirks

_EXTRAS = ("top_k", "min_p", "repetition_penalty")
_BUDGETS = ((4096, "low"), (16384, "medium"))
"""Thinking budgets below so many tokens, as an effort; above them it is ``high``. Anthropic's smallest budget is 1024
and its guides call 16k and more a large one."""
_NO_PARAMETERS: Json = {"type": "object", "properties": {}}
_DEFAULTS: Json = {
    "n": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "store": False,
    "parallel_tool_calls": True,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "service_tier": "auto",
    "reasoning_effort": "",
    "verbosity": "medium",
}
"""To leave out what is the default anyway loses nothing (API reference, "Create chat completion")."""


def build_request(
    request: Json,
    quirks: ChatQuirks,
    *,
    url: str,
    model: str,
    ask_usage: bool,
    rename: tuple[tuple[str, str], ...] = (),
) -> Built:
    """The request for ``model`` at ``url``. ``rename`` are the renamings of the provider type beyond its quirks'."""
    work = _Work(request, quirks, model)
    body = work.body()
    for old, new in (*rename, *quirks.rename):
        if old in body:
            value = body.pop(old)
            body.setdefault(new, value)
    if quirks.fields is not None:
        work.keep_only(quirks.fields)
    if request.get("stream"):
        body["stream"] = True
        if ask_usage:
            body["stream_options"] = {"include_usage": True}
    try:
        return Built(url, dumps(body), dropped=tuple(work.dropped))
    except TypeError:  # the encoder gives up at 254 levels, the decoder at 1024
        raise ClientError("The request is nested too deep; make its schemas flatter.", code="invalid_value") from None


class _Work:
    """One translation. ``dropped`` is a dictionary for its order; its values mean nothing."""

    __slots__ = ("_body", "_model", "_quirks", "_request", "dropped")

    def __init__(self, request: Json, quirks: ChatQuirks, model: str) -> None:
        self._request = request
        self._quirks = quirks
        self._model = model
        self.dropped: dict[str, None] = {}
        self._body: Json = {}

    def drop(self, name: str) -> None:
        self.dropped[name] = None

    def body(self) -> Json:
        request, body = self._request, self._body
        body["model"] = self._model
        body["messages"] = None  # the place of it: a log of a body is easier to read so
        body |= {key: value for key, value in request.items() if value is not None and key not in _WRITTEN_HERE}
        self._limit()
        self._extras()
        self._thinking()
        self._tools()
        body["messages"] = Messages(self._quirks, self.drop, with_tools="tools" in body).translate(
            request.get("messages")
        )
        self._format()
        return body

    def keep_only(self, fields: frozenset[str]) -> None:
        for key in [key for key in self._body if key not in fields]:
            value = self._body.pop(key)
            if value not in ("", [], {}) and _DEFAULTS.get(key) != value:
                self.drop(key)

    def _limit(self) -> None:
        """One of the two names for the longest answer."""
        new, old = self._request.get("max_completion_tokens"), self._request.get("max_tokens")
        limit = new if new is not None else old
        if limit is None:
            return
        modern = self._quirks.completion_tokens and (new is not None or self._quirks.reasons(self._model))
        self._body["max_completion_tokens" if modern else "max_tokens"] = limit

    def _extras(self) -> None:
        for key in _EXTRAS:
            if key in self._body and key not in self._quirks.extras:
                del self._body[key]
                self.drop(key)
        if not self._quirks.cache_control and self._body.pop("cache_control", None) is not None:
            self.drop("cache_control")

    # ------------------------------------------------------------------ thinking
    def _thinking(self) -> None:
        quirks = self._quirks
        thinking, written = self._request.get("thinking"), self._request.get("reasoning_effort")
        effort: str | None = None
        if isinstance(written, str) and written:
            effort = quirks.effort(written, self._model)
            if effort is None and quirks.thinking not in ("toggle", "reasoning"):
                self.drop("reasoning_effort")
        wanted = _wanted(thinking)
        if quirks.thinking == "toggle":
            self._toggle(wanted, written, effort)
        elif quirks.thinking == "reasoning":
            self._openrouter(thinking, wanted, effort)
        elif effort is not None:
            self._body["reasoning_effort"] = effort
        elif wanted and not (
            quirks.thinking == "effort" and (quirks.reasons(self._model) or not quirks.reasoning_models)
        ):
            self.drop("thinking")
        elif wanted and (effort := _effort_of(thinking)) is not None:
            self._body["reasoning_effort"] = quirks.effort(effort, self._model)

    def _toggle(self, wanted: bool | None, written: object, effort: str | None) -> None:
        if written == "none":
            self._body["thinking"] = {"type": "disabled"}
            return
        if wanted is not None:
            self._body["thinking"] = {"type": "enabled" if wanted else "disabled"}
        effort = effort or (_effort_of(self._request.get("thinking")) if wanted else None)
        if effort is not None and wanted is not False:
            self._body["reasoning_effort"] = effort

    def _openrouter(self, thinking: Any, wanted: bool | None, effort: str | None) -> None:
        if effort is not None:
            self._body["reasoning"] = {"effort": effort}
        elif wanted:
            budget = _budget(thinking)
            self._body["reasoning"] = {"enabled": True} if budget is None else {"max_tokens": budget}

    # ------------------------------------------------------------------ tools and form
    def _tools(self) -> None:
        given = self._request.get("tools")
        if not isinstance(given, list):
            if given is not None:
                raise ClientError("'tools' must be an array of tools.", param="tools", code="invalid_type")
            return
        tools = [tool for tool in map(self._tool, given) if tool is not None]
        if not tools:
            self._body.pop("tool_choice", None)
            self._body.pop("parallel_tool_calls", None)
            return
        self._body["tools"] = tools
        if self._body.get("tool_choice") == "required":
            self._body["tool_choice"] = self._quirks.required_tool

    def _tool(self, tool: Any) -> Json | None:
        if not isinstance(tool, dict):
            raise ClientError("Each of 'tools' must be an object.", param="tools", code="invalid_type")
        kind = tool.get("type", "function")
        if kind != "function":
            if kind == "custom" and self._quirks.custom_tools:
                return tool
            self.drop(f"tools[].type={str(kind)[:40]}")
            return None
        out: Json = {"type": "function"}
        for key, value in tool.items():
            if key == "cache_control" and value is not None and not self._quirks.cache_control:
                self.drop("cache_control")
            elif key != "type" and value is not None:
                out[key] = value
        function = out.get("function")
        if isinstance(function, dict) and function.get("parameters") is None:
            out["function"] = {**function, "parameters": _NO_PARAMETERS}
        return out

    def _format(self) -> None:
        """A schema for a provider that knows only JSON as such: the schema becomes an instruction. These providers
        demand the word "json" in the prompt anyway (PROTOCOLS.md 1.2, DeepSeek)."""
        wanted = self._body.get("response_format")
        if self._quirks.json_schema or not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
            return
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        text = "Answer with one JSON object and nothing else."
        if isinstance(schema, dict):
            try:
                text = f"Answer with one JSON object that is valid under this JSON schema: {dumps(schema).decode()}"
            except TypeError:
                raise ClientError(
                    "The schema is nested too deep.", param="response_format.json_schema", code="invalid_value"
                ) from None
        self._body["response_format"] = {"type": "json_object"}
        self._body["messages"] = [{"role": "system", "content": text}, *self._body["messages"]]
        self.drop("response_format.json_schema")


_WRITTEN_HERE = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "tools",
        "thinking",
        "reasoning_effort",
    }
)


def _wanted(thinking: Any) -> bool | None:
    """Whether the client wants the model to think; ``None`` if it does not say."""
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return {"enabled": True, "adaptive": True, "disabled": False}.get(kind) if isinstance(kind, str) else None


def _budget(thinking: Any) -> int | None:
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    return budget if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0 else None


def _effort_of(thinking: Any) -> str | None:
    """A budget as an effort; ``None`` where the model is to decide."""
    budget = _budget(thinking)
    if budget is None:
        return None
    return next((effort for limit, effort in _BUDGETS if budget < limit), "high")
