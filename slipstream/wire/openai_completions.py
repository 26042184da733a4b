"""Legacy completions (``POST /v1/completions``) for providers that know only chat.

Owns the way there and back: the prompt becomes one user message, the answer's text becomes ``choices[].text``. It is
not the same thing: a chat model answers a prompt, it does not go on with it. What depends on the difference (``echo``,
``suffix``) is refused, not guessed.

The rule that must not be broken: a provider that has this endpoint gets the client's bytes; nothing comes through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ClientError, GatewayError
from .canonical import Answer, Chunk, Json, Reply, StreamReader
from .codec import dumps
from .openai_errors import error_event
from .openai_stream import DONE_EVENT
from .usage import usage_object

DEFAULT_MAX_TOKENS = 16
"""API reference, "Create completion": the default of ``max_tokens``."""
MAX_LOGPROBS = 20
"""API reference, "Create chat completion": the largest ``top_logprobs``."""
ID_PREFIX = "cmpl-"
_SAME = (
    "model",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "user",
)


def decode_request(body: Json) -> tuple[Json, list[str]]:
    """The canonical request and the fields that got lost. Raises ``ClientError`` naming the field."""
    dropped: list[str] = []
    if body.get("echo"):
        raise _refuse("echo", "leave it out and put the prompt in front yourself")
    if body.get("suffix"):
        raise _refuse("suffix", "leave it out and describe the rest of the text in the prompt")
    request: Json = {key: body[key] for key in _SAME if body.get(key) is not None}
    request["messages"] = [{"role": "user", "content": _prompt(body.get("prompt"))}]
    limit = body.get("max_tokens")
    request["max_tokens"] = DEFAULT_MAX_TOKENS if limit is None else limit
    best_of = body.get("best_of")
    if best_of is not None and best_of != (body.get("n") or 1):
        dropped.append("best_of")
    logprobs = body.get("logprobs")
    if isinstance(logprobs, int) and not isinstance(logprobs, bool):
        request["logprobs"] = True
        request["top_logprobs"] = max(0, min(logprobs, MAX_LOGPROBS))
    elif logprobs is not None:
        raise ClientError("'logprobs' must be a whole number.", param="logprobs", code="invalid_type")
    known = {*_SAME, "echo", "suffix", "prompt", "max_tokens", "best_of", "logprobs"}
    dropped += [key for key, value in body.items() if key not in known and value is not None]
    return request, dropped


def _prompt(prompt: Any) -> str:
    if isinstance(prompt, list):
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return prompt[0]
        if prompt and all(isinstance(item, str) for item in prompt):
            raise ClientError(
                "This model takes one prompt per request; send each in a request of its own.", param="prompt"
            )
        raise ClientError(
            "This model takes text, not token ids; send the prompt as a string.", param="prompt", code="invalid_type"
        )
    if not isinstance(prompt, str):
        raise ClientError("'prompt' must be a string.", param="prompt", code="invalid_type")
    return prompt


def _refuse(field: str, fix: str) -> ClientError:
    return ClientError(
        f"{field!r} is not possible with this model, which only knows chat; {fix}.",
        param=field,
        code="unsupported_parameter",
    )


def encode_reply(reply: Reply, answer: Answer) -> bytes:
    """A whole answer."""
    body = _frame(answer, reply.created, reply.model)
    for choice in reply.choices:
        message = choice["message"]
        text = message.get("content") or message.get("refusal")
        finish = choice.get("finish_reason")
        logprobs = _Logprobs().add(choice.get("logprobs"))
        body["choices"].append(_choice(text if isinstance(text, str) else "", choice.get("index", 0), logprobs, finish))
    if reply.usage is not None:
        body["usage"] = usage_object(reply.usage)
    return dumps(body)


class CompletionsWriter:
    """``StreamWriter`` for clients of legacy completions. Reasoning has no place in this dialect."""

    __slots__ = ("_answer", "_finished", "_frame", "_logprobs")

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._frame: Json | None = None
        self._finished: dict[int, bool] = {}
        self._logprobs: dict[int, _Logprobs] = {}

    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        out: list[bytes] = []
        for chunk in chunks:
            text = chunk.delta.get("content") or chunk.delta.get("refusal") or ""
            finish = chunk.finish_reason if not self._finished.get(chunk.index) else None
            self._finished[chunk.index] = self._finished.get(chunk.index, False) or finish is not None
            if text or finish is not None or chunk.logprobs is not None:
                logprobs = self._logprobs.setdefault(chunk.index, _Logprobs()).add(chunk.logprobs)
                out.append(self._event(reader, [_choice(text, chunk.index, logprobs, finish)]))
        return b"".join(out)

    def end(self, reader: StreamReader) -> bytes:
        unfinished = [index for index, finished in self._finished.items() if not finished]
        if not self._finished:
            unfinished = [0]
        out = [self._event(reader, [_choice("", index, None, "stop")]) for index in unfinished]
        if self._answer.include_usage and reader.usage is not None:
            out.append(self._event(reader, [], usage_object(reader.usage)))
        out.append(DONE_EVENT)
        return b"".join(out)

    def error(self, error: GatewayError) -> bytes:
        return error_event(error)

    def _event(self, reader: StreamReader, choices: list[Json], usage: Json | None = None) -> bytes:
        if self._frame is None:
            self._frame = _frame(self._answer, reader.created, reader.model)
        value = {**self._frame, "choices": choices}
        if self._answer.include_usage:
            value["usage"] = usage
        return b"data: " + dumps(value) + b"\n\n"


def _frame(answer: Answer, created: int, model: str) -> Json:
    return {
        "id": ID_PREFIX + answer.id,
        "object": "text_completion",
        "created": created or answer.created,
        "model": model or answer.model,
        "choices": [],
    }


def _choice(text: str, index: int, logprobs: Json | None, finish: str | None) -> Json:
    if finish == "tool_calls":  # nobody offered tools: the dialect has no word for it
        finish = "stop"
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}


class _Logprobs:
    """Chat's list of tokens as the parallel lists of the legacy form. ``text_offset`` goes on over chunks."""

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = 0

    def add(self, logprobs: Any) -> Json | None:
        entries = logprobs.get("content") if isinstance(logprobs, dict) else None
        if not isinstance(entries, list):
            return None
        out: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(token := entry.get("token"), str):
                continue
            out["tokens"].append(token)
            out["token_logprobs"].append(entry.get("logprob"))
            out["top_logprobs"].append(_top(entry.get("top_logprobs")))
            out["text_offset"].append(self._offset)
            self._offset += len(token)
        return out


def _top(given: Any) -> Json:
    found = (item for item in given if isinstance(item, dict)) if isinstance(given, list) else ()
    return {item["token"]: item.get("logprob") for item in found if isinstance(item.get("token"), str)}
