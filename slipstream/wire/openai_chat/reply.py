"""A whole answer of a provider of the OpenAI family as a canonical one.

Owns the quirks of messages that streams share (PROTOCOLS.md 2.1, 2.6-2.9): content as a list of parts, three names for
reasoning, finish reasons of other dialects, legacy ``function_call``, tool calls without an id, ``arguments`` as an
object, a choice without a ``message``. Also the legacy completion object, ``choices[].text``.

The rule that must not be broken: an answer without choices is no answer, and whatever else a provider sends raises
nothing but ``UpstreamError`` and ``MalformedReply`` (R66).
"""

from __future__ import annotations

from typing import Any

from ...errors import MalformedReply
from ..canonical import Json, Reply, make_id
from ..codec import DecodeError, dumps, loads
from ..openai_errors import read_error_in_200
from ..usage import Usage, usage_from

_FINISH = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "eos": "stop",
    "max_tokens": "length",
    "model_length": "length",
    "MAX_TOKENS": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "SAFETY": "content_filter",
}
"""OpenAI's own and the strangers that were seen in this dialect: Together's ``eos``, Mistral's ``model_length``, other
dialects' words behind compatible faces (PROTOCOLS.md 1.3). Everything else is ``stop``."""
_STANDARD = frozenset({"id", "object", "created", "model", "choices", "usage", "error", "obfuscation", "x_groq"})


def read_reply(body: bytes, provider: str) -> Reply:
    """The answer in ``body``. Raises ``UpstreamError`` (an error in disguise) or ``MalformedReply``."""
    try:
        return _read(body, provider)
    except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
        raise MalformedReply(f"the provider {provider!r} sent a reply that is nested too deep") from None


def _read(body: bytes, provider: str) -> Reply:
    try:
        value = loads(body.strip(b" \t\r\n\xef\xbb\xbf"))  # blank lines and a BOM may come first (PROTOCOLS.md 5)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    if not isinstance(value, dict):
        if isinstance(value, list) and value and isinstance(value[0], dict) and "error" in value[0]:
            raise read_error_in_200(body, provider=provider)
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not an object")
    given = _list(value.get("choices"))
    choices = [_choice(item, at) for at, item in enumerate(given) if isinstance(item, dict)]
    if is_error(value) and not any(_says_something(choice) for choice in choices):
        raise read_error_in_200(body, provider=provider)
    if (broken := broken_choice(given)) is not None:
        raise read_error_in_200(dumps({"error": broken}), provider=provider)
    if not choices:
        raise MalformedReply(f"the provider {provider!r} sent a reply without 'choices'")
    return Reply(
        choices,
        id=text_or_empty(value.get("id")),
        model=text_or_empty(value.get("model")),
        created=whole(value.get("created")),
        usage=usage_in(value),
        extra={key: item for key, item in value.items() if key not in _STANDARD and is_sound(item)},
    )


def _choice(given: Json, at: int) -> Json:
    message = given.get("message")
    if not isinstance(message, dict):  # Azure's filter takes it away (PROTOCOLS.md 2.6); or a legacy completion
        message = {"content": given.get("text")}
    text, reasoning = split_content(message.get("content"))
    reasoning = reasoning or reasoning_of(message)
    out: Json = {"role": "assistant", "content": text or None}
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        out["refusal"] = refusal
    if reasoning:
        out["reasoning_content"] = reasoning
    if blocks := thinking_blocks(message.get("reasoning_details")):
        out["thinking_blocks"] = blocks
    if calls := _calls(message):
        out["tool_calls"] = calls
    for key in ("annotations", "audio", "images"):
        if message.get(key) and is_sound(message[key]):
            out[key] = message[key]
    if text == "" and not calls and "refusal" not in out:
        out["content"] = ""
    return _with_finish(given, out, bool(calls), at)


def _with_finish(given: Json, message: Json, has_calls: bool, at: int) -> Json:
    native = given.get("finish_reason")
    finish = finish_of(native, has_calls) if isinstance(native, str) and native else finish_of("stop", has_calls)
    choice: Json = {"index": whole(given.get("index"), at), "message": message, "finish_reason": finish}
    logprobs = given.get("logprobs")
    if isinstance(logprobs, dict) and is_sound(logprobs):
        choice["logprobs"] = logprobs
    own = given.get("native_finish_reason") or native
    if isinstance(own, str) and own and own != finish:
        choice["native_finish_reason"] = own
    if isinstance(stopped := given.get("stop_reason"), str) and stopped:
        choice["stop_sequence"] = stopped
    return choice


def _says_something(choice: Json) -> bool:
    message = choice["message"]
    return bool(message.get("content") or message.get("tool_calls") or message.get("reasoning_content"))


def _calls(message: Json) -> list[Json]:
    calls = [call for item in _list(message.get("tool_calls")) if (call := whole_call(item)) is not None]
    legacy = message.get("function_call")
    if not calls and isinstance(legacy, dict) and (call := whole_call({"function": legacy})) is not None:
        calls.append(call)
    return calls


def whole_call(given: Any) -> Json | None:
    """A complete tool call in OpenAI's form with an id; ``None`` for what is none (a call without a name)."""
    if not isinstance(given, dict):
        return None
    if given.get("type") == "custom" and isinstance(given.get("custom"), dict) and is_sound(given["custom"]):
        return {"id": text_or_empty(given.get("id")) or make_id("call_"), "type": "custom", "custom": given["custom"]}
    function = given.get("function")
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        return None
    call: Json = {
        "id": text_or_empty(given.get("id")) or make_id("call_"),
        "type": "function",
        "function": {"name": name, "arguments": arguments_text(function.get("arguments")) or "{}"},
    }
    if isinstance(extra := given.get("extra_content"), dict) and is_sound(extra):
        call["extra_content"] = extra
    return call


# ---------------------------------------------------------------------- what streams share
def finish_of(native: str, has_calls: bool) -> str:
    """OpenAI's reason for the provider's ``native``. Whether tools were called is decided by the content: OpenAI itself
    says ``stop`` when the tool was forced by name (PROTOCOLS.md 1.3)."""
    finish = _FINISH.get(native, "stop")
    return "tool_calls" if has_calls and finish == "stop" else finish


def split_content(content: Any) -> tuple[str, str]:
    """``(text, reasoning)`` of ``content``: a string, or Mistral's parts, of which ``thinking`` holds parts again."""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        return "", ""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            if isinstance(text := part.get("text"), str):
                texts.append(text)
            elif "thinking" in part:
                thoughts.append(_thought(part["thinking"]))
    return "".join(texts), "".join(thoughts)


def _thought(value: Any) -> str:
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else ()
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def reasoning_of(message: Json) -> str:
    """The reasoning under the first of its names that holds any: some servers send it twice."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := message.get(name), str) and text:
            return text
    details = message.get("reasoning_details")
    if not isinstance(details, list):
        return ""
    found = (detail.get("text") or detail.get("summary") for detail in details if isinstance(detail, dict))
    return "".join(text for text in found if isinstance(text, str))


def thinking_blocks(details: Any) -> list[Json]:
    """What must go back unchanged of OpenRouter's ``reasoning_details``: signed and encrypted reasoning of Claude."""
    blocks: list[Json] = []
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict) or not is_claudes(detail):
            continue
        signature, data = detail.get("signature"), detail.get("data")
        if isinstance(signature, str) and signature:
            blocks.append({"type": "thinking", "thinking": text_or_empty(detail.get("text")), "signature": signature})
        elif isinstance(data, str) and data:
            blocks.append({"type": "redacted_thinking", "data": data})
    return blocks


def is_claudes(detail: Json) -> bool:
    """Whether the reasoning is Claude's: blocks of others are no use to anybody who knows thinking blocks."""
    return isinstance(kind := detail.get("format"), str) and kind.startswith("anthropic")


def arguments_text(arguments: Any) -> str:
    """``arguments`` as the text it ought to be; some servers send the object itself."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else dumps(arguments).decode()


_AROUND = 16
"""Levels that an answer of any dialect may have around it."""


def is_sound(value: Any) -> bool:
    """Whether ``value``, which we do not look into, can be written again inside of an answer: it is there, and not
    nested so deep that the encoder gives up (at 254 levels; the decoder at 1024)."""
    if value is None or isinstance(value, str):
        return value is not None
    for _ in range(_AROUND):
        value = [value]
    try:
        dumps(value)
    except TypeError:
        return False
    return True


def is_error(value: Json) -> bool:
    """Whether a decoded body or event is an error: also the flat form of older vLLM and of Mistral."""
    return value.get("error") is not None or value.get("object") == "error" or value.get("type") == "error"


def broken_choice(choices: list[Any]) -> Any:
    """The error inside a choice (OpenRouter's reference: ``choices[].error``, ``finish_reason`` ``error``); ``None`` if
    there is none."""
    for choice in choices:
        if isinstance(choice, dict):
            if isinstance(error := choice.get("error"), dict):
                return error
            if choice.get("finish_reason") == "error":
                return {}
    return None


def usage_in(value: Json) -> Usage | None:
    """The usage of a body or a chunk. Groq says it twice in streams: the one at the top counts (PROTOCOLS.md 1.4)."""
    given = value.get("usage")
    if given is None and isinstance(groq := value.get("x_groq"), dict):
        given = groq.get("usage")
    return usage_from(given) if given is not None else None


def text_or_empty(value: Any) -> str:
    return value if isinstance(value, str) else ""


def whole(value: Any, default: int = 0) -> int:
    """A number from 0; floats are cut (some servers send ``created`` as one)."""
    if isinstance(value, float) and 0 <= value < 1e15:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
