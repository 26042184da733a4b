"""A whole answer of Converse as a canonical reply (PROTOCOLS.md 1.3, 1.4, 2.5).

Text is in several blocks when citations are in it (#a464255e): they are one text. Calls of tools that Bedrock runs
itself (``server_tool_use``, and their results) are not the client's. What a guardrail puts in place of the model's
words is ordinary content (#c515ee80).

The rule that must not be broken: unknown blocks are stepped over, wrong types are survived (R61), and a body that is no
answer is an error, never an empty answer (R66).
"""

from __future__ import annotations

from typing import Any

from ...errors import MalformedReply
from ..canonical import Json, Reply, make_id
from ..codec import DecodeError, dumps, loads
from ..usage import MAX_TOKENS, Usage
from .errors import read_in_200

SERVER_CALL = "server_tool_use"
_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",  # with calls it becomes tool_calls below
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


def read_reply(body: bytes, *, provider: str) -> Reply:
    """Raises ``UpstreamError`` for an error in disguise, ``MalformedReply`` for anything else that is no answer."""
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    output = value.get("output") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not (isinstance(output, dict) or isinstance(value.get("stopReason"), str)):
        raise read_in_200(body, provider=provider)
    inner = output.get("message") if isinstance(output, dict) else None
    answer = _Message()
    content = inner.get("content") if isinstance(inner, dict) else None
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict) and not answer.take(block):
            raise MalformedReply(f"the provider {provider!r} sent a tool call that is nested too deeply")
    native = _text(value.get("stopReason"))
    choice: Json = {
        "index": 0,
        "message": answer.message(),
        "finish_reason": finish_reason(native, calls=bool(answer.calls)),
    }
    if native:
        choice["native_finish_reason"] = native
    sequence = stop_sequence(value)
    if sequence is not None:
        choice["stop_sequence"] = sequence
    return Reply([choice], usage=read_usage(value.get("usage")), extra=read_extra(value))


class _Message:
    """The answer in the making."""

    __slots__ = ("annotations", "calls", "length", "spoken", "texts", "thoughts")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.length = 0
        self.spoken: list[str] = []
        self.thoughts: list[Json] = []
        self.calls: list[Json] = []
        self.annotations: list[Json] = []

    def take(self, block: Json) -> bool:
        """False: the block cannot be said in the client's dialect."""
        if isinstance(block.get("text"), str):
            self._say(block["text"])
        elif isinstance(block.get("citationsContent"), dict):
            self._cite(block["citationsContent"])
        elif isinstance(block.get("reasoningContent"), dict):
            self._think(block["reasoningContent"])
        elif isinstance(block.get("toolUse"), dict):
            return self._call(block["toolUse"])
        return True

    def _say(self, text: str) -> None:
        self.texts.append(text)
        self.length += len(text)

    def _cite(self, cited: Json) -> None:
        start = self.length
        parts = cited.get("content")
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                self._say(part["text"])
        citations = cited.get("citations")
        for citation in citations if isinstance(citations, list) else ():
            annotation = read_citation(citation, start, self.length)
            if annotation is not None:
                self.annotations.append(annotation)

    def _think(self, reasoning: Json) -> None:
        spoken, redacted = reasoning.get("reasoningText"), reasoning.get("redactedContent")
        if isinstance(spoken, dict):
            text = _text(spoken.get("text"))
            if text:
                self.spoken.append(text)
            thought = signed_thought(text, _text(spoken.get("signature")))
            if thought is not None:
                self.thoughts.append(thought)
        elif isinstance(redacted, str) and redacted:
            self.thoughts.append({"type": "redacted_thinking", "data": redacted})

    def _call(self, use: Json) -> bool:
        name = _text(use.get("name"))
        if not name or use.get("type") == SERVER_CALL:
            return True
        arguments = use.get("input") or {}
        text = arguments if isinstance(arguments, str) else _encode(arguments)
        call_id = _text(use.get("toolUseId")) or make_id("tooluse_")
        self.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": text}})
        return text is not None

    def message(self) -> Json:
        message: Json = {"role": "assistant", "content": "".join(self.texts) if self.texts else None}
        if self.spoken:
            message["reasoning_content"] = "".join(self.spoken)
        if self.thoughts:
            message["thinking_blocks"] = self.thoughts
        if self.calls:
            message["tool_calls"] = self.calls
        if self.annotations:
            message["annotations"] = self.annotations
        return message


def signed_thought(text: str, signature: str) -> Json | None:
    """A thinking block that can go back. Without a signature (DeepSeek, gpt-oss) none is taken back by anybody."""
    return {"type": "thinking", "thinking": text, "signature": signature} if signature else None


def read_citation(citation: object, start: int, end: int) -> Json | None:
    """A citation of a web page as OpenAI's annotation; of documents there is none in chat."""
    location = citation.get("location") if isinstance(citation, dict) else None
    web = location.get("web") if isinstance(location, dict) else None
    url = web.get("url") if isinstance(web, dict) else None
    if not isinstance(citation, dict) or not isinstance(url, str) or not url:
        return None
    page = {"url": url, "title": _text(citation.get("title")), "start_index": start, "end_index": end}
    return {"type": "url_citation", "url_citation": page}


def finish_reason(native: str, *, calls: bool) -> str:
    """OpenAI's finish reason. Whether there are calls is seen in the content (PROTOCOLS.md 1.3)."""
    finish = _FINISH.get(native, "stop")
    return "tool_calls" if calls and finish == "stop" else finish


def stop_sequence(value: Json) -> str | None:
    """What stopped a Claude model; it says so when it is asked (``additionalModelResponseFieldPaths``)."""
    fields = value.get("additionalModelResponseFields")
    sequence = fields.get("stop_sequence") if isinstance(fields, dict) else None
    return sequence if isinstance(sequence, str) and value.get("stopReason") == "stop_sequence" else None


def read_extra(value: Json) -> Json:
    """What the answer says beside the message, under the names that chat clients know."""
    extra: Json = {}
    tier = value.get("serviceTier")
    if isinstance(tier, dict) and isinstance(tier.get("type"), str):
        extra["service_tier"] = tier["type"]
    for name in ("trace", "performanceConfig"):  # a client that asked for a guardrail's trace wants to see it
        if isinstance(value.get(name), dict) and _encode([[[[value[name]]]]]) is not None:
            extra[name] = value[name]
    fields = value.get("additionalModelResponseFields")
    if isinstance(fields, dict) and fields.keys() - {"stop_sequence"} and _encode([[[[fields]]]]) is not None:
        extra["additionalModelResponseFields"] = fields
    return extra


def read_usage(usage: object) -> Usage | None:
    """``inputTokens`` excludes what was read from and written to the cache (PROTOCOLS.md 1.4, 24/24)."""
    if not isinstance(usage, dict):
        return None
    prompt, output = _count(usage, "inputTokens"), _count(usage, "outputTokens")
    if prompt is None and output is None:
        return None
    read = _count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount") or 0
    written = _count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount") or 0
    return Usage(prompt or 0, read, written, output or 0, 0, "provider")


def _count(usage: Json, *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
            return value
    return None


def _encode(value: Any) -> str | None:
    """JSON; ``None`` if it is nested so deeply that it can be read but not written (254 levels)."""
    try:
        return dumps(value).decode()
    except TypeError:
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
