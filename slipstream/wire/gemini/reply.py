"""A Gemini answer, whole or one event of a stream, in canonical terms (PROTOCOLS.md 1.3, 1.4, 2.4).

An event of a stream has the shape of a whole answer and holds new parts only, so both are read by ``Candidate``. What
may be missing is: ``content``, ``parts``, ``index``, ``finishReason``, every count, and ``candidates`` altogether where
the prompt was blocked. Whether there was a tool call is told by the parts, never by the finish reason.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ...errors import MalformedReply
from ..canonical import Json, Reply, make_id
from ..codec import DecodeError, dumps, loads
from ..usage import MAX_TOKENS, Usage
from .errors import error_in, error_in_200

_FINISH_NUMBERS = (
    "FINISH_REASON_UNSPECIFIED",
    "STOP",
    "MAX_TOKENS",
    "SAFETY",
    "RECITATION",
    "OTHER",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MALFORMED_FUNCTION_CALL",
    "IMAGE_SAFETY",
    "UNEXPECTED_TOOL_CALL",
    "TOO_MANY_TOOL_CALLS",
)
_BLOCK_NUMBERS = ("BLOCK_REASON_UNSPECIFIED", "SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY")
"""The enums of google.ai.generativelanguage.v1beta by number, for servers that send numbers (PROTOCOLS.md 2.4)."""
_FILTERED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "MODEL_ARMOR",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
    }
)
_MEMBERS = ("candidates", "promptFeedback", "usageMetadata", "modelVersion", "responseId")
MAX_INDEX = 1024
"""No answer has more candidates; a larger index is not believed."""


def is_answer(value: Json) -> bool:
    """Whether ``value`` has at least one member of a ``GenerateContentResponse``."""
    return any(name in value for name in _MEMBERS)


class Candidate:
    """What is known of one candidate so far."""

    __slots__ = ("_ascii", "_calls", "_chars", "_citations", "_grounding", "index", "native")

    def __init__(self, index: int) -> None:
        self.index = index
        self.native: str | None = None
        self._calls = 0
        self._chars = 0
        self._ascii = True
        self._grounding: Json | None = None
        self._citations: Json | None = None

    def deltas(self, value: Json) -> list[Json]:
        """The canonical deltas of one ``candidates`` entry, in its order; notes how it ended."""
        if "finishReason" in value:
            finish = _name(value["finishReason"], _FINISH_NUMBERS)
            if finish is not None and finish != _FINISH_NUMBERS[0]:
                self.native = finish
        grounding, citations = value.get("groundingMetadata"), value.get("citationMetadata")
        if grounding and isinstance(grounding, dict):
            self._grounding = grounding
        if citations and isinstance(citations, dict):
            self._citations = citations
        made: list[Json] = []
        content = value.get("content")
        parts = content.get("parts") if isinstance(content, dict) else None
        for part in parts if isinstance(parts, list) else ():
            delta = self._delta(part) if isinstance(part, dict) else None
            if delta is not None:
                made.append(delta)
        return made

    def _delta(self, part: Json) -> Json | None:
        """One part. Code that Google ran for the model and its output are not part of the answer's text."""
        text = part.get("text")
        if isinstance(text, str):
            if not text:
                return None
            if part.get("thought") is True:
                return {"reasoning_content": text}
            self._chars += len(text)
            self._ascii = self._ascii and text.isascii()
            return {"content": text}
        call = part.get("functionCall")
        if isinstance(call, dict):
            return self._call(call, part)
        data = part.get("inlineData")
        if isinstance(data, dict) and part.get("thought") is not True:
            return _image(data)
        return None

    def _call(self, call: Json, part: Json) -> Json | None:
        """A call always comes whole, its arguments as an object (PROTOCOLS.md 2.4)."""
        name = call.get("name")
        if not isinstance(name, str) or not name:
            return None
        ident, args = call.get("id"), call.get("args")
        if not isinstance(args, str):
            args = dumps(args if isinstance(args, dict) else {}).decode()
        made: Json = {
            "index": self._calls,
            "id": ident if isinstance(ident, str) and ident else make_id("call_"),
            "type": "function",
            "function": {"name": name, "arguments": args},
        }
        signature = part.get("thoughtSignature")
        if isinstance(signature, str) and signature:
            made["extra_content"] = {"google": {"thought_signature": signature}}
        self._calls += 1
        return {"tool_calls": [made]}

    @property
    def finish(self) -> str:
        """Why it ended, in OpenAI's words (PROTOCOLS.md 1.3). What is unknown counts as ``stop``."""
        if self.native == "MAX_TOKENS":
            return "length"
        if self.native in _FILTERED:
            return "content_filter"
        return "tool_calls" if self._calls else "stop"

    def annotations(self, whole: str | None = None) -> list[Json]:
        """Where the answer comes from. Google counts bytes: they become characters by the ``whole`` text, or where all
        was ASCII; else the citation is of the whole answer."""
        out: list[Json] = []
        if self._grounding is None and self._citations is None:
            return out
        text = None if whole is None else whole.encode("utf-8", "surrogatepass")
        for first, last, source in (*_supports(self._grounding or {}), *_cited(self._citations or {})):
            start, end = 0, self._chars
            if last is not None and text is not None:
                start, end = (len(text[:at].decode(errors="ignore")) for at in (first or 0, last))
            elif last is not None and self._ascii:
                start, end = first or 0, last
            title = source.get("title")
            cited = {
                "start_index": start,
                "end_index": end,
                "url": source["uri"],
                "title": title if isinstance(title, str) else "",
            }
            out.append({"type": "url_citation", "url_citation": cited})
        return out


def _image(data: Json) -> Json | None:
    """A picture that the model drew, as OpenRouter and others give it; other bytes have no place in an answer."""
    kind, data64 = data.get("mimeType"), data.get("data")
    if not isinstance(kind, str) or not kind.startswith("image/") or not isinstance(data64, str):
        return None
    return {"images": [{"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data64}"}}]}


_Cited = tuple[int | None, int | None, Json]


def _supports(grounding: Json) -> list[_Cited]:
    """``groundingSupports`` with their sources; without any, the sources alone."""
    chunks = grounding.get("groundingChunks")
    sources = [_source(chunk) for chunk in chunks] if isinstance(chunks, list) else []
    supports = grounding.get("groundingSupports")
    if not isinstance(supports, list) or not supports:
        return [(None, None, source) for source in sources if source is not None]
    out: list[_Cited] = []
    for support in supports:
        segment = support.get("segment") if isinstance(support, dict) else None
        picked = support.get("groundingChunkIndices") if isinstance(support, dict) else None
        for at in picked if isinstance(picked, list) else ():
            source = sources[at] if isinstance(at, int) and 0 <= at < len(sources) else None
            if source is not None and isinstance(segment, dict):
                out.append((_count(segment.get("startIndex")), _count(segment.get("endIndex")), source))
    return out


def _source(chunk: Any) -> Json | None:
    for name in ("web", "retrievedContext", "maps"):
        source = chunk.get(name) if isinstance(chunk, dict) else None
        if isinstance(source, dict) and isinstance(source.get("uri"), str):
            return source
    return None


def _cited(citations: Json) -> list[_Cited]:
    """``citationMetadata``: text that the model took from somewhere."""
    listed = citations.get("citations") or citations.get("citationSources")
    return [
        (_count(one.get("startIndex")), _count(one.get("endIndex")), one)
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict) and isinstance(one.get("uri"), str) and one["uri"]
    ]


def blocked(value: Json) -> str | None:
    """Why the prompt was refused, as ``PROMPT_<reason>``; ``None`` if it was not."""
    feedback = value.get("promptFeedback")
    reason = _name(feedback.get("blockReason"), _BLOCK_NUMBERS) if isinstance(feedback, dict) else None
    return None if reason is None or reason == _BLOCK_NUMBERS[0] else "PROMPT_" + reason


def _name(value: Any, numbers: tuple[str, ...]) -> str | None:
    """An enum's name, whether it came as a name or as a number."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return numbers[value] if 0 <= value < len(numbers) else f"UNKNOWN_{value}"[:32]
    return None


def read_logprobs(value: Json) -> Json | None:
    """``logprobsResult`` in OpenAI's form."""
    result = value.get("logprobsResult")
    if not isinstance(result, dict):
        return None
    chosen, top = result.get("chosenCandidates"), result.get("topCandidates")
    rows = top if isinstance(top, list) else []
    content = []
    for n, one in enumerate(chosen if isinstance(chosen, list) else ()):
        token = _token(one)
        if token is not None:
            row = rows[n].get("candidates") if n < len(rows) and isinstance(rows[n], dict) else None
            others = (_token(other) for other in (row if isinstance(row, list) else ()))
            content.append({**token, "top_logprobs": [other for other in others if other is not None]})
    return {"content": content, "refusal": None} if content else None


def _token(value: Any) -> Json | None:
    if not isinstance(value, dict) or not isinstance(value.get("token"), str):
        return None
    chance = value.get("logProbability")
    if not isinstance(chance, int | float) or isinstance(chance, bool):
        chance = 0.0  # a proto leaves out a zero
    return {"token": value["token"], "logprob": chance, "bytes": list(value["token"].encode("utf-8", "replace"))}


def read_usage(value: Any) -> Usage | None:
    """``usageMetadata``. Thoughts are beside the candidates' tokens, what tools read is beside the prompt (PROTOCOLS.md
    1.4). Counts of the output alone are no usage."""
    if not isinstance(value, dict):
        return None
    prompt, total = _count(value.get("promptTokenCount")), _count(value.get("totalTokenCount"))
    if prompt is None and total is None:
        return None
    output = _count(value.get("candidatesTokenCount")) or 0
    reasoning = _count(value.get("thoughtsTokenCount")) or 0
    tools = _count(value.get("toolUsePromptTokenCount")) or 0
    if prompt is None:
        prompt = max(0, (total or 0) - output - reasoning - tools)
    prompt += tools
    cached = min(_count(value.get("cachedContentTokenCount")) or 0, prompt)
    return Usage(prompt - cached, cached, 0, output, reasoning, "provider")


def has_counts(value: Any) -> bool:
    """Whether ``read_usage`` makes anything of it."""
    if not isinstance(value, dict):
        return False
    return _count(value.get("promptTokenCount")) is not None or _count(value.get("totalTokenCount")) is not None


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else None  # a bool is none


def read_created(value: Any) -> int:
    """Vertex's ``createTime`` (RFC 3339) in Unix seconds; 0 if there is none."""
    if not isinstance(value, str) or len(value) > 40:
        return 0
    try:
        return max(0, int(datetime.fromisoformat(value).timestamp()))
    except (ValueError, OverflowError, OSError):
        return 0


def index_of(value: Json, position: int) -> int:
    """A candidate's index; where it is missing, its place in the list."""
    index = _count(value.get("index"))
    return position if index is None or index >= MAX_INDEX else index


# ------------------------------------------------------------------ whole answers


def decode_answer(body: bytes, provider: str) -> Json:
    """A whole 2xx answer as an object. Raises ``UpstreamError`` or ``MalformedReply`` (R66)."""
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    if error_in(value) is not None:
        raise error_in_200(value, provider=provider)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not an object")
    return value


def read_reply(body: bytes, *, provider: str) -> Reply:
    """A whole answer of ``generateContent``."""
    value = decode_answer(body, provider)
    listed = value.get("candidates")
    candidates = [one for one in listed[:MAX_INDEX] if isinstance(one, dict)] if isinstance(listed, list) else []
    choices = {}
    for position, one in enumerate(candidates):
        index = index_of(one, position)
        try:
            choices[index if index not in choices else position] = _choice(one, index)
        except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
            raise MalformedReply(f"the provider {provider!r} sent a reply that is nested too deep") from None
    if not choices:
        reason = blocked(value)
        if reason is None:
            raise MalformedReply(f"the provider {provider!r} sent a reply without 'candidates'")
        choices[0] = _blocked_choice(reason)
    ident, model = value.get("responseId"), value.get("modelVersion")
    return Reply(
        choices=[choices[index] for index in sorted(choices)],
        id=ident if isinstance(ident, str) else "",
        model=model if isinstance(model, str) else "",
        created=read_created(value.get("createTime")),
        usage=read_usage(value.get("usageMetadata")),
    )


def _choice(value: Json, index: int) -> Json:
    candidate = Candidate(index)
    text: list[str] = []
    thoughts: list[str] = []
    lists: dict[str, list[Json]] = {}
    for delta in candidate.deltas(value):
        for key, made in delta.items():
            if key == "content":
                text.append(made)
            elif key == "reasoning_content":
                thoughts.append(made)
            else:
                lists.setdefault(key, []).extend(made)
    content = "".join(text)
    for call in lists.get("tool_calls", ()):
        del call["index"]
    message: Json = {"role": "assistant", "content": content if content or "tool_calls" not in lists else None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    message.update(lists)
    annotations = candidate.annotations(content)
    if annotations:
        message["annotations"] = annotations
    choice: Json = {"index": index, "message": message, "finish_reason": candidate.finish}
    logprobs = read_logprobs(value)
    if logprobs is not None:
        choice["logprobs"] = logprobs
    if candidate.native is not None:
        choice["native_finish_reason"] = candidate.native
    return choice


def _blocked_choice(reason: str) -> Json:
    return {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "content_filter",
        "native_finish_reason": reason,
    }
