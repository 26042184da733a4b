"""Answers in OpenAI's chat dialect, whole and streamed (PROTOCOLS.md 3.1).

Owns the frame of a chunk: one id, one ``created`` and one model for the whole stream, the role in the first delta of
each choice only, one chunk with an empty delta for each finish reason, usage only if it was asked for, ``[DONE]``.

Everything of a chunk but its delta is constant, so it is encoded once: an event costs one ``dumps`` of the delta.

The rule that must not be broken: after an error comes no ``[DONE]``; clients take that for success.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import GatewayError
from ..canonical import Answer, Chunk, Json, Reply, StreamReader
from ..codec import dumps
from ..openai_errors import error_event
from ..openai_stream import DONE_EVENT
from ..usage import usage_object

ID_PREFIX = "chatcmpl-"
_OURS = frozenset({"id", "object", "created", "model", "choices", "usage", "error"})
"""Members of an answer that ``extra`` must not replace."""
_TIERS = ("auto", "default", "flex", "scale", "priority")
"""The values of ``service_tier`` that the SDKs know; other providers' words for it are theirs (Groq: ``on_demand``)."""


class ChatWriter:
    """``StreamWriter`` for clients of chat completions."""

    __slots__ = ("_answer", "_finished", "_head", "_tail")

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._head = b""
        self._tail = b',"usage":null}\n\n' if answer.include_usage else b"}\n\n"
        self._finished: dict[int, bool] = {}
        """The choices that have begun."""

    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        parts: list[bytes] = []
        for chunk in chunks:
            delta = chunk.delta
            begun = chunk.index in self._finished
            if not begun:
                self._begin(chunk.index, reader)
                delta = _with_role(delta)
            if delta or chunk.logprobs is not None:
                self._event(parts, chunk.index, dumps(delta), chunk)
            if chunk.finish_reason is not None and not self._finished[chunk.index]:
                self._finish(parts, chunk, reader)
        return b"".join(parts)

    def end(self, reader: StreamReader) -> bytes:
        parts: list[bytes] = []
        if not self._finished:
            self._begin(0, reader)
            self._event(parts, 0, dumps(_with_role({})), None)
        for index, finished in self._finished.items():
            if not finished:
                self._finish(parts, Chunk({}, index, "stop"), reader)
        if self._answer.include_usage and reader.usage is not None:
            parts.append(self._head + b"]," + dumps({"usage": usage_object(reader.usage)})[1:] + b"\n\n")
        parts.append(DONE_EVENT)
        return b"".join(parts)

    def error(self, error: GatewayError) -> bytes:
        return error_event(error)

    def _begin(self, index: int, reader: StreamReader) -> None:
        self._finished[index] = False
        if self._head:
            return
        answer = self._answer
        head: Json = {
            "id": ID_PREFIX + answer.id,
            "object": "chat.completion.chunk",
            "created": reader.created or answer.created,
            "model": reader.model or answer.model,
            "choices": [],
        }
        self._head = b"data: " + dumps(head)[:-2]  # up to the opening bracket of the choices

    def _event(self, parts: list[bytes], index: int, delta: bytes, chunk: Chunk | None) -> None:
        logprobs = b"null" if chunk is None or chunk.logprobs is None else dumps(chunk.logprobs)
        parts += (
            self._head,
            b'{"index":%d,"delta":' % index,
            delta,
            b',"logprobs":',
            logprobs,
            b',"finish_reason":null}]',
            self._tail,
        )

    def _finish(self, parts: list[bytes], chunk: Chunk, reader: StreamReader) -> None:
        """The chunk that closes a choice; it also carries what the provider said about the answer as a whole."""
        self._finished[chunk.index] = True
        choice: Json = {"index": chunk.index, "delta": {}, "logprobs": None, "finish_reason": chunk.finish_reason}
        if chunk.native_finish is not None and chunk.native_finish != chunk.finish_reason:
            choice["native_finish_reason"] = chunk.native_finish
        if chunk.stop_sequence is not None:
            choice["stop_reason"] = chunk.stop_sequence
        parts += (self._head, dumps(choice), b"]")
        extra = _extra(reader.extra)
        if extra:
            parts += (b",", dumps(extra)[1:-1])
        parts.append(self._tail)


def encode_reply(reply: Reply, answer: Answer) -> bytes:
    """A whole answer."""
    body: Json = {
        "id": ID_PREFIX + answer.id,
        "object": "chat.completion",
        "created": reply.created or answer.created,
        "model": reply.model or answer.model,
        "choices": list(map(_choice, reply.choices)),
    }
    if reply.usage is not None:
        body["usage"] = usage_object(reply.usage)
    if reply.extra:
        body |= _extra(reply.extra)
    return dumps(body)


def _choice(given: Json) -> Json:
    message: Json = {"role": "assistant", "content": None, "refusal": None, **given["message"]}
    choice: Json = {
        "index": given.get("index", 0),
        "message": message,
        "logprobs": given.get("logprobs"),
        "finish_reason": given.get("finish_reason") or "stop",
    }
    if (native := given.get("native_finish_reason")) is not None and native != choice["finish_reason"]:
        choice["native_finish_reason"] = native
    if (stopped := given.get("stop_sequence")) is not None:
        choice["stop_reason"] = stopped
    return choice


def _with_role(delta: Json) -> Json:
    """The first delta of a choice, as OpenAI writes it: ``content`` is there, ``null`` beside tool calls."""
    return {"role": "assistant", "content": None if "tool_calls" in delta else "", **delta}


def _extra(extra: Json) -> Json:
    """What the provider said about the answer as a whole, less what would not be valid in this dialect (R62)."""
    out: Json = {}
    for key, value in extra.items():
        if key in _OURS or (key == "service_tier" and value not in _TIERS):
            continue
        if key != "system_fingerprint" or isinstance(value, str):
            out[key] = value
    return out
