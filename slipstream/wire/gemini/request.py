"""A canonical chat request to the body of ``generateContent`` and ``countTokens`` (PROTOCOLS.md 1.2, 2.4).

Owns the list of fields that mean something to Gemini. Every other field that the client set is reported, none is passed
on blindly: Gemini refuses a body with a name it does not know.

The rule that must not be broken: the request is read, never changed; the same request gives the same body (R59).
"""

from __future__ import annotations

from typing import Any

from ..canonical import Json
from .config import generation_config, google_extra
from .contents import History
from .parts import note, wrong
from .tools import add_tools
from .traits import traits

_HANDLED = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "top_k",
        "presence_penalty",
        "frequency_penalty",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "n",
        "stop",
        "logprobs",
        "top_logprobs",
        "response_format",
        "modalities",
        "reasoning_effort",
        "thinking",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "web_search_options",
        "safety_settings",
        "safetySettings",
        "cached_content",
        "cachedContent",
        "extra_body",
    }
)
_ORDINARY = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "stop"),
        *("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"),
    }
)
"""Most requests have no other fields than these: no tools, no extensions, nothing to report."""
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "verbosity": ("medium",),
}
"""Values that ask for nothing."""


def build_body(request: Json, model: str) -> tuple[Json, list[str]]:
    """The body, and the client's fields that it cannot say. Raises ``ClientError`` naming a field."""
    known = traits(model)
    dropped: list[str] = []
    messages = request.get("messages")
    if not isinstance(messages, list):
        raise wrong("messages", "'messages' must be an array of messages.", "invalid_type")
    history = History(known, dropped)
    for n, message in enumerate(messages):
        history.add(message, n)
    history.finish()
    body: Json = {"contents": history.contents}
    if history.system:
        body["systemInstruction"] = {"parts": history.system}
    ordinary = _ORDINARY.issuperset(request)
    if not ordinary:
        add_tools(body, request, known, dropped)
    config = generation_config(request, known, dropped)
    if config:
        body["generationConfig"] = config
    if not ordinary:
        _extensions(body, request)
        _leftovers(request, dropped)
    return body, dropped


def build_count_body(request: Json, model: str, resource: str, *, vertex: bool) -> Json:
    """The body of ``countTokens``. The Gemini API takes a whole request in a field of its own, Vertex flat (API
    references, "countTokens")."""
    body, _ = build_body(request, model)
    if vertex:
        return {key: body[key] for key in ("contents", "systemInstruction", "tools", "generationConfig") if key in body}
    return {"generateContentRequest": {"model": resource, **body}}


def _extensions(body: Json, request: Json) -> None:
    """What Gemini alone has, under the names that clients use for it."""
    google = google_extra(request)
    safety = _first(request.get("safety_settings"), request.get("safetySettings"), google.get("safety_settings"))
    if safety is not None:
        if not isinstance(safety, list):
            raise wrong("safety_settings", "'safety_settings' must be an array.", "invalid_type")
        body["safetySettings"] = safety
    cached = _first(request.get("cached_content"), request.get("cachedContent"), google.get("cached_content"))
    if cached is not None:
        if not isinstance(cached, str):
            raise wrong("cached_content", "'cached_content' must be the name of a cache.", "invalid_type")
        body["cachedContent"] = cached


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _leftovers(request: Json, dropped: list[str]) -> None:
    """Report the fields that nothing was made of (R65)."""
    for name, value in request.items():
        if name in _HANDLED or value is None or value in ("", [], {}) or value in _DEFAULTS.get(name, ()):
            continue
        note(dropped, name)
    extra = request.get("extra_body")
    if isinstance(extra, dict) and extra.keys() - {"google"}:
        note(dropped, "extra_body")
    if google_extra(request).keys() - {"thinking_config", "safety_settings", "cached_content"}:
        note(dropped, "extra_body.google")
