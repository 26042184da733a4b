"""Stop reasons of Anthropic and finish reasons of OpenAI, both ways (PROTOCOLS.md 1.3).

The rule that must not be broken: whether the model called a tool is decided from the content, never from the reason
alone (PROTOCOLS.md 1.3, last line): a client that waits for tool calls that are not there hangs, and one that is told
``stop`` loses those that are.
"""

from __future__ import annotations

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "stop",  # with calls it becomes tool_calls below
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def finish_reason(stop_reason: str | None, *, calls: bool) -> str:
    """OpenAI's finish reason. Unknown reasons mean ``stop``; the native word is kept beside it."""
    finish = _FINISH.get(stop_reason or "", "stop")
    return "tool_calls" if calls and finish == "stop" else finish


def stop_reason(finish: str | None, *, calls: bool, stop_sequence: str | None = None) -> str:
    """Anthropic's stop reason. A ``tool_use`` block demands ``tool_use``, also where the provider said ``stop``."""
    reason = _STOP.get(finish or "", "end_turn")
    if reason == "end_turn":
        if calls:
            return "tool_use"
        return "stop_sequence" if stop_sequence is not None else reason
    return "end_turn" if reason == "tool_use" and not calls else reason
