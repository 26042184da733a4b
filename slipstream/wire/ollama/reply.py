"""Whole answers of Ollama: a chat message, vectors, the list of models; and the parts that stream lines share.

Every field is read as if it could be missing, ``null`` or of another type (R61): what cannot be used counts as absent.
Only an answer without a message, or one that says it is not finished, is refused (R66).

The rule that must not be broken: "the model called a tool" is decided from the message, never from ``done_reason``,
which stays ``stop`` (PROTOCOLS.md 1.3).
"""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, datetime
from typing import Any

from ...errors import MalformedReply
from ..canonical import Json, Reply, make_id
from ..codec import DecodeError, dumps, loads
from ..openai_errors import read_error_in_200
from ..usage import MAX_TOKENS, Usage

_FINISH = {"stop": "stop", "load": "stop", "unload": "stop", "length": "length"}
"""``done_reason`` (PROTOCOLS.md 1.3). Unknown ones are a stop; the word itself is kept beside it."""


def read_reply(body: bytes, *, provider: str) -> Reply:
    """A whole answer of ``/api/chat``. Raises ``UpstreamError`` or ``MalformedReply``."""
    line = decode(body, provider)
    message = line.get("message")
    if not isinstance(message, dict):
        raise MalformedReply(f"the provider {provider!r} sent a reply without 'message'")
    if line.get("done") is False:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not finished")
    calls = tool_calls(message, 0, set(), provider)
    text = string(message.get("content"))
    shown: Json = {"role": "assistant", "content": text if text or not calls else None}
    thinking = string(message.get("thinking"))
    if thinking:
        shown["reasoning_content"] = thinking
    if calls:
        shown["tool_calls"] = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    finish, native = finish_reason(line, bool(calls))
    choice: Json = {"index": 0, "message": shown, "finish_reason": finish}
    if native:
        choice["native_finish_reason"] = native
    probabilities = logprobs(line)
    if probabilities is not None:
        choice["logprobs"] = probabilities
    return Reply(
        choices=[choice],
        model=string(line.get("model")),
        created=unix_seconds(line.get("created_at")),
        usage=usage(line),
    )


def read_embeddings(body: bytes, *, provider: str) -> tuple[list[list[float]], Usage | None]:
    """The vectors of ``/api/embed``, in the order of the inputs. Raises ``UpstreamError`` or ``MalformedReply``."""
    answer = decode(body, provider)
    vectors = answer.get("embeddings")
    if not isinstance(vectors, list) or not vectors or not all(map(_is_vector, vectors)):
        raise MalformedReply(f"the provider {provider!r} sent a reply without usable 'embeddings'")
    prompt = _count(answer.get("prompt_eval_count"))
    return vectors, None if prompt is None else Usage(input_uncached=prompt, source="provider")


def read_models(body: bytes) -> list[Json]:
    """The models of ``/api/tags`` (or ``/api/ps``) in OpenAI's form. Raises ``ValueError`` for anything else."""
    answer = loads(body)
    models = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(models, list):
        raise ValueError("no list of models")
    found = []
    for model in models:
        name = (string(model.get("model")) or string(model.get("name"))) if isinstance(model, dict) else ""
        if name:
            found.append({"id": name, "created": unix_seconds(model.get("modified_at"))})
    return found


def decode(body: bytes, provider: str) -> Json:
    """The object that ``body`` is. An ``error`` in it is raised, whatever else it says (PROTOCOLS.md 1.6)."""
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedReply(f"the provider {provider!r} sent something that is not a JSON object")
    if value.get("error"):
        raise read_error_in_200(body, provider=provider)
    return value


def tool_calls(message: Json, first: int, taken: Set[str], provider: str) -> list[Json]:
    """The message's tool calls as OpenAI's deltas, numbered from ``first``.

    The position counts, not ``function.index``, which some versions leave out or repeat. Ids are kept if there are any
    and made if not, or if one of ``taken`` or of this message is used again.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return []
    found: list[Json] = []
    ids = set(taken)
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        name = string(function.get("name")) if isinstance(function, dict) else ""
        if not isinstance(function, dict) or not name:
            continue
        identity = string(call.get("id"))
        if not identity or identity in ids:
            identity = make_id("call_")
        ids.add(identity)
        shown = {"name": name, "arguments": _arguments(function.get("arguments"), provider)}
        found.append({"index": first + len(found), "id": identity, "type": "function", "function": shown})
    return found


def _arguments(value: object, provider: str) -> str:
    """OpenAI's JSON text of arguments that come as an object; a text is one already."""
    if value is None or value == "":
        return "{}"
    if isinstance(value, str):
        return value
    try:
        return dumps(value).decode()
    except TypeError:  # nested too deeply to be written again
        raise MalformedReply(f"the provider {provider!r} sent a tool call that cannot be read") from None


def finish_reason(line: Json, called: bool) -> tuple[str, str]:
    """OpenAI's finish reason and Ollama's own word."""
    native = string(line.get("done_reason"))
    finish = _FINISH.get(native, "stop")
    return ("tool_calls" if called and finish == "stop" else finish), native


def usage(line: Json) -> Usage | None:
    """The counts of the last line. ``prompt_eval_count`` is absent when the prompt was cached (PROTOCOLS.md 1.4)."""
    prompt, output = _count(line.get("prompt_eval_count")), _count(line.get("eval_count"))
    if prompt is None and output is None:
        return None
    return Usage(input_uncached=prompt or 0, output=output or 0, source="provider")


def logprobs(line: Json) -> Json | None:
    """OpenAI's ``logprobs``: Ollama's entries have the same members."""
    entries = line.get("logprobs")
    if not isinstance(entries, list) or not entries:
        return None
    return {"content": [_entry(entry) for entry in entries if isinstance(entry, dict)], "refusal": None}


def _entry(entry: Json) -> Json:
    top = entry.get("top_logprobs")
    shown = _token(entry)
    shown["top_logprobs"] = [_token(other) for other in top if isinstance(other, dict)] if isinstance(top, list) else []
    return shown


def _token(entry: Json) -> Json:
    logprob, octets = entry.get("logprob"), entry.get("bytes")
    return {
        "token": string(entry.get("token")),
        "logprob": logprob if isinstance(logprob, int | float) else 0.0,
        "bytes": octets if isinstance(octets, list) and all(isinstance(octet, int) for octet in octets) else None,
    }


def unix_seconds(value: object) -> int:
    """Seconds of a time as Go writes it (RFC 3339, 0 to 9 digits of a fraction); 0 if it is none, or Go's zero time."""
    if not isinstance(value, str):
        return 0
    try:
        then = datetime.fromisoformat(value)
        if then.tzinfo is None:
            then = then.replace(tzinfo=UTC)
        return max(0, int(then.timestamp()))
    except (ValueError, OverflowError):
        return 0


def string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None


def _is_vector(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in value)
