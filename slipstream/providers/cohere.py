"""Cohere, asked through its own API: ``POST /v2/chat`` (whole and as an event stream), ``/v2/embed``, ``/v1/models``.

Owns all of this dialect. It is near enough to OpenAI's that requests and event framing are those of that family, and
what differs is here. Sources: docs.cohere.com, API reference v2 ("Chat", "Chat with Streaming", "Embed", "List Models",
"Errors"), the guides "Streaming", "Tool use streaming" and "Reasoning", the types of Cohere's Python SDK.

Not found there, so guesses: ``cached_tokens`` are a part of ``input_tokens``; a model that does not reason may refuse
``thinking``, so it is sent only where it changes something. ``ERROR_TOXIC``, ``ERROR_LIMIT``, ``USER_CANCEL`` are v1's
words. Of errors in a stream only ``delta.error`` of ``message-end`` is documented; ``{"message"}`` is understood too.

The rule that must not be broken: a stream is complete with ``message-end`` and never without, and a finish reason that
tells of a failure is a failure, however much text came before it (R63).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.snapshot import ProviderSpec
from ..errors import ClientError, MalformedReply, UpstreamError
from ..types import FailureClass
from ..wire.canonical import Built, Chunk, Json, Reply, StreamReader, make_id
from ..wire.codec import DecodeError, dumps, loads
from ..wire.openai_chat.quirks import EFFORTS, ChatQuirks
from ..wire.openai_chat.reader import MAX_CALLS, ChatReader
from ..wire.openai_chat.reply import arguments_text, is_sound, split_content, text_or_empty, whole_call
from ..wire.openai_chat.request import build_request
from ..wire.openai_errors import read_error, read_error_in_200
from ..wire.openai_stream import MAX_EVENT_BYTES
from ..wire.usage import MAX_TOKENS, Usage
from .base import ProviderType

Dropped = dict[str, None]
"""Names of the client's fields that cannot be said here; a dictionary for its order."""

_FIELDS = """model messages temperature p k max_tokens seed stop_sequences frequency_penalty presence_penalty logprobs
    tools tool_choice response_format documents citation_options safety_mode strict_tools"""
_QUIRKS = ChatQuirks(
    fields=frozenset(_FIELDS.split()),
    rename=(("top_p", "p"), ("top_k", "k"), ("stop", "stop_sequences")),
    extras=frozenset({"top_k"}),
    reasoning_back=True,
)
"""API reference, "Chat". Cohere's own fields are taken as a client writes them."""
_RANGES = (("top_p", 0.01, 0.99), ("top_k", 0, 500), ("frequency_penalty", 0.0, 1.0), ("presence_penalty", 0.0, 1.0))
_MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id")
_CHOICES = {"auto": "", "none": "NONE", "required": "REQUIRED", "any": "REQUIRED"}
_FINISH = {"MAX_TOKENS": "length", "ERROR_LIMIT": "length", "ERROR_TOXIC": "content_filter"}
"""COMPLETE, STOP_SEQUENCE, TOOL_CALL and what nobody knows are told apart by the content (PROTOCOLS.md 1.3)."""
_FAILED = {"ERROR": "server_error", "TIMEOUT": "timeout", "USER_CANCEL": "server_error"}
_MEANT = (
    (498, "", FailureClass.CONTENT_FILTER, "content_filter"),
    (499, "", FailureClass.TIMEOUT, "timeout"),
    (404, "", FailureClass.NOT_FOUND, "model_not_found"),
    (402, "", FailureClass.QUOTA, "insufficient_quota"),
    (429, "/ month", FailureClass.QUOTA, "insufficient_quota"),
    (400, "number of tokens in the prompt", FailureClass.CONTEXT, "context_length_exceeded"),
    (400, "too many tokens: size limit", FailureClass.CONTEXT, "context_length_exceeded"),
)
"""Status and text to what they mean, with the code that clients and ``resilience.failures`` know ("Errors"; OpenAPI
description). 498 is "a deny-listed token" in prompt or answer, not Groq's lack of capacity. 499 is a request that was
cancelled, and not by us, who wait for it: "try the request again". A trial key's 429 names a minute or a month."""


class CohereType(ProviderType):
    """``api_base`` may be the server itself or end in ``/v1`` or ``/v2``."""

    __slots__ = ()

    def models_url(self, spec: ProviderSpec) -> str:
        """The largest page: it holds all models there are."""
        return root(spec) + "/v1/models?page_size=1000"

    def build(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        """As the OpenAI family has it, then what Cohere says in another way."""
        url, dropped = root(spec) + "/v2/chat", Dropped()
        built = build_request(_family(request, dropped), _QUIRKS, url=url, model=model, ask_usage=False)
        dropped |= dict.fromkeys(built.dropped)
        body: Json = loads(built.body)
        body["stream"] = request.get("stream") is True
        body["messages"] = [_message(message, dropped) for message in body["messages"]]
        _adapt_tools(body, dropped)
        _add_thinking(body, request, dropped)
        return Built(url, dumps(body), dropped=tuple(dropped))

    def reply(self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec) -> Reply:
        value = _decode(body, spec.name)
        message = value.get("message")
        if not isinstance(message, dict):
            raise MalformedReply(f"the provider {spec.name!r} sent a reply without 'message'")
        if failure := _failure(value, spec.name):
            raise failure
        try:
            choice = _whole_choice(value, message)
        except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
            raise MalformedReply(f"the provider {spec.name!r} sent a reply that is nested too deep") from None
        citations = message.get("citations")
        extra = {"citations": citations} if citations and isinstance(citations, list) and is_sound([citations]) else {}
        return Reply([choice], id=text_or_empty(value.get("id")), usage=read_usage(value.get("usage")), extra=extra)

    def reader(self, spec: ProviderSpec) -> StreamReader:
        return CohereReader(spec.name)

    def build_embeddings(self, request: Json, spec: ProviderSpec, model: str) -> Built:
        """What a text is for must be said, and OpenAI's API has no word for it: a client may say ``input_type``."""
        given = request.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise _wrong("input", "a string or a list of strings: this provider takes no token ids")
        kind = text_or_empty(request.get("input_type")) or "search_document"
        body: Json = {"model": model, "texts": texts, "input_type": kind, "embedding_types": ["float"]}
        for name, theirs in (("dimensions", "output_dimension"), ("truncate", "truncate")):
            if isinstance(value := request.get(name), str | int):
                body[theirs] = value
        handled = {"model", "input", "input_type", "dimensions", "truncate", "encoding_format"}
        dropped = [name for name, value in request.items() if value and name not in handled]
        return Built(root(spec) + "/v2/embed", dumps(body), dropped=dropped)

    def embeddings(
        self, body: bytes, headers: Mapping[str, str], spec: ProviderSpec
    ) -> tuple[list[list[float]], Usage | None]:
        value = _decode(body, spec.name)
        vectors = _object(value.get("embeddings")).get("float")
        if not isinstance(vectors, list) or not vectors or not all(map(_numbers, vectors)):
            raise MalformedReply(f"the provider {spec.name!r} sent a reply without usable 'embeddings'")
        return vectors, read_usage(value.get("meta"))

    def error(
        self, status: int, headers: Mapping[str, str], body: bytes, spec: ProviderSpec, retry_after_s: float | None
    ) -> UpstreamError:
        """``{"message"}``, sometimes with an ``id``. What only the status or the text tells gets a code."""
        plain = read_error(status, body, provider=spec.name, retry_after_s=retry_after_s)
        text = plain.message.lower()
        for meant, words, failure, code in _MEANT:
            if meant == status and words in text:
                shown = dumps({"error": {"message": plain.message, "code": code}})
                plain = read_error(status, shown, provider=spec.name, retry_after_s=retry_after_s)
                plain.failure = failure
                break
        return plain

    def read_models(self, body: bytes) -> list[Json]:
        models = _object(loads(body)).get("models")
        if not isinstance(models, list):
            raise ValueError("no list of models")
        return [model for one in models if (model := _model(_object(one)))]


def root(spec: ProviderSpec) -> str:
    """Where the server is, without the version of the API."""
    base = spec.api_base.rstrip("/")
    return base[:-3] if base.endswith(("/v1", "/v2")) else base


def _model(value: Json) -> Json:
    """One model; empty for what is none, and for models that only rerank, classify or transcribe."""
    name, endpoints = text_or_empty(value.get("name")), value.get("endpoints")
    if not name or (isinstance(endpoints, list) and endpoints and "chat" not in endpoints and "embed" not in endpoints):
        return {}
    window = _count(value.get("context_length"))
    return {"id": name, "owned_by": "cohere", **({"context_window": window} if window else {})}


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _numbers(value: object) -> list[float]:
    """A list of numbers; empty if it is anything else."""
    return value if isinstance(value, list) and all(type(number) in (int, float) for number in value) else []


def _wrong(name: str, wanted: str) -> ClientError:
    return ClientError(f"'{name}' must be {wanted}.", param=name, code="invalid_value")


# ----------------------------------------------------------------------------------------------------------- requests


def _family(request: Json, dropped: Dropped) -> Json:
    """The request for the OpenAI family's builder, with values that Cohere takes: what is out of its ranges becomes the
    nearest that is in, and is reported (but for ``top_p`` 1, which clients send by default and 0.99 equals)."""
    if request.get("n") not in (None, 1):
        raise ClientError("This provider gives one choice per request; leave 'n' out or set it to 1.", param="n")
    out = {key: value for key, value in request.items() if key not in ("n", "thinking", "reasoning_effort")}
    for name, low, high in _RANGES:
        value = out.get(name)
        if isinstance(value, int | float) and not low <= value <= high:
            out[name] = min(max(value, low), high)
            if name != "top_p" or value != 1:
                dropped[name] = None
    if isinstance(out.get("stop"), str):
        out["stop"] = [out["stop"]]
    wanted = _object(out.get("response_format"))
    if wanted.get("type") == "json_schema":
        schema = _object(wanted.get("json_schema")).get("schema")
        if not isinstance(schema, dict):
            raise _wrong("response_format.json_schema.schema", "an object")
        out["response_format"] = {"type": "json_object", "json_schema": schema}
    return out


def _adapt_tools(body: Json, dropped: Dropped) -> None:
    """One tool is forced by sending no other; to be strict is a matter of all of them."""
    mode, names = _choice(body.pop("tool_choice", None))
    given = [_object(tool.get("function")) for tool in body.pop("tools", ())]
    functions = [{key: value for key, value in function.items() if value is not None} for function in given]
    if not all(isinstance(function.get("name"), str) for function in functions):
        raise _wrong("tools[].function.name", "a string")
    functions = [function for function in functions if names is None or function["name"] in names]
    if not functions:
        if mode == "REQUIRED":
            raise _wrong("tool_choice", "auto or none, unless it asks for a function that is in 'tools'")
        return
    strict = [function.pop("strict", None) is True for function in functions]
    if all(strict):
        body.setdefault("strict_tools", True)
    elif any(strict):
        dropped["tools[].strict"] = None
    body["tools"] = [{"type": "function", "function": function} for function in functions]
    if mode:
        body["tool_choice"] = mode


def _choice(choice: Any) -> tuple[str, frozenset[str] | None]:
    """Cohere's word, empty for its default, and the only functions that may be called; ``None``: all."""
    if choice is None:
        return "", None
    if isinstance(choice, str) and choice in _CHOICES:
        return _CHOICES[choice], None
    allowed = _object(choice).get("allowed_tools")
    picked = allowed.get("tools") if isinstance(allowed, dict) else [choice]
    found = [_object(_object(one).get("function")).get("name") for one in picked] if isinstance(picked, list) else []
    names = frozenset(name for name in found if isinstance(name, str))
    if not names:
        raise _wrong("tool_choice", "auto, none, required, or name a function")
    return "" if isinstance(allowed, dict) and allowed.get("mode") != "required" else "REQUIRED", names


def _add_thinking(body: Json, request: Json, dropped: Dropped) -> None:
    """Models that can reason do so unless they are told not to ("Reasoning"): only a budget and a no need words, and an
    effort has none."""
    effort, thinking = request.get("reasoning_effort") or None, request.get("thinking")
    kind = _object(thinking).get("type")
    if thinking is not None and kind not in ("enabled", "adaptive", "disabled"):
        raise _wrong("thinking.type", "enabled, adaptive or disabled")
    if effort is not None and effort not in EFFORTS:
        raise _wrong("reasoning_effort", "one of " + ", ".join(EFFORTS))
    budget = _object(thinking).get("budget_tokens")
    if not isinstance(budget, int | None):
        raise _wrong("thinking.budget_tokens", "a whole number")
    if kind == "disabled" or effort == "none":
        body["thinking"] = {"type": "disabled"}
    elif budget is not None:
        body["thinking"] = {"type": "enabled", "token_budget": budget}
    elif effort is not None:
        dropped["reasoning_effort"] = None


def _message(message: Json, dropped: Dropped) -> Json:
    """A message of the family. What was thought before tools were called is their ``tool_plan`` here."""
    if message["role"] not in ("system", "user", "assistant", "tool"):
        raise _wrong("messages[].role", "system, developer, user, assistant or tool")
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if part.get("type") not in ("text", "image_url"):
            raise _wrong("messages[].content[].type", "text or image_url: this provider reads nothing else")
    out = {key: message[key] for key in _MESSAGE_FIELDS if message.get(key) is not None}
    for key in message:
        if key == "reasoning_content" and "tool_calls" in out:
            out["tool_plan"] = message[key]
        elif key not in _MESSAGE_FIELDS and key != "name":
            dropped[f"messages[].{key}"] = None
    return out


# ------------------------------------------------------------------------------------------------------------ answers


def _decode(body: bytes, provider: str) -> Json:
    """The object that ``body`` is. An error in it is raised: its ``message`` is a text, an answer's an object."""
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent something that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedReply(f"the provider {provider!r} sent something that is not a JSON object")
    if isinstance(value.get("message"), str) or isinstance(value.get("error"), dict):
        raise read_error_in_200(body, provider=provider)
    return value


def _whole_choice(value: Json, message: Json) -> Json:
    given, native = message.get("tool_calls"), text_or_empty(value.get("finish_reason"))
    calls = [call for one in given if (call := whole_call(one))] if isinstance(given, list) else []
    text, thought = split_content(message.get("content"))
    thought += text_or_empty(message.get("tool_plan"))
    shown: Json = {"role": "assistant", "content": text if text or not calls else None}
    if thought:
        shown["reasoning_content"] = thought
    if calls:
        shown["tool_calls"] = calls
    choice: Json = {"index": 0, "message": shown, "finish_reason": finish_reason(native, bool(calls))}
    if native:
        choice["native_finish_reason"] = native
    logprobs = _logprobs(value.get("logprobs"))
    return choice if logprobs is None else {**choice, "logprobs": logprobs}


def finish_reason(native: str, called: bool) -> str:
    """OpenAI's word for Cohere's."""
    return _FINISH.get(native.upper()) or ("tool_calls" if called else "stop")


def _failure(end: Json, provider: str) -> UpstreamError | None:
    """What went wrong, if the end of an answer tells that something did."""
    word, said = text_or_empty(end.get("finish_reason")).upper(), text_or_empty(end.get("error"))
    if word not in _FAILED and not said:
        return None
    code = _FAILED.get(word, "server_error")
    message = said or f"the provider {provider!r} could not finish its answer ({word})"
    return read_error_in_200(dumps({"error": {"message": message, "type": code, "code": code}}), provider=provider)


def read_usage(value: object) -> Usage | None:
    """``usage`` or ``meta``: ``tokens`` are what was read and written, ``billed_units`` less (no preamble), so they are
    only used where the former are absent. Counts are floats."""
    usage = _object(value)
    for counts in (_object(usage.get("tokens")), _object(usage.get("billed_units"))):
        prompt, output = _count(counts.get("input_tokens")), _count(counts.get("output_tokens"))
        if prompt is not None or output is not None:
            cached = min(_count(usage.get("cached_tokens")) or 0, prompt or 0)
            return Usage((prompt or 0) - cached, cached, 0, output or 0, 0, "provider")
    return None


def _count(value: Any) -> int | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
    return int(value) if known else None


def _logprobs(given: object) -> Json | None:
    """An item is a text and the logarithms of its tokens, whose sum is that of the text. Streams have one an event."""
    found: list[Json] = []
    for item in map(_object, given if isinstance(given, list) else [given]):
        text, numbers = text_or_empty(item.get("text")), _numbers(item.get("logprobs"))
        if numbers:
            found.append({"token": text, "logprob": float(sum(numbers)), "bytes": None, "top_logprobs": []})
    return {"content": found, "refusal": None} if found else None


class CohereReader(ChatReader):
    """``StreamReader`` of ``/v2/chat``: framing, bounds and bare errors are those of the OpenAI family's reader."""

    __slots__ = ("_cited", "_empty", "_ids", "_numbers")

    def __init__(self, provider: str, *, max_event: int = MAX_EVENT_BYTES) -> None:
        super().__init__(provider, max_event=max_event)
        self._numbers: dict[int, int] = {}
        """Our numbers of the calls by Cohere's ``index``, -1 for one without."""
        self._ids: set[str] = set()
        self._empty: list[int] = []
        """Calls of which no arguments came yet."""
        self._cited = 0

    def _value(self, value: Any, data: bytes, out: list[Chunk]) -> None:
        if not isinstance(value, dict):
            self._malformed("sent an event that is not an object")
            return
        if value.get("error") or value.get("type") == "error" or isinstance(value.get("message"), str):
            self.failure = read_error_in_200(data, provider=self._provider)
            return
        kind, delta = value.get("type"), _object(value.get("delta"))
        message = _object(delta.get("message"))
        if kind == "message-end":
            self._end(delta, out)
        elif kind == "message-start":
            self.id = text_or_empty(value.get("id"))
        elif kind == "citation-start":
            self._cite(message.get("citations"), len(data))
        else:
            shown = self._delta_of(kind, value, message)
            logprobs = _logprobs(value["logprobs"]) if "logprobs" in value else None
            if shown or logprobs is not None:
                out.append(Chunk(shown, logprobs=logprobs))

    def _delta_of(self, kind: object, value: Json, message: Json) -> Json:
        """The canonical delta of an event with content; empty for one that has none, or that nobody knows."""
        if kind in ("content-delta", "content-start"):
            content = message.get("content")
            text, thought = split_content(content if isinstance(content, list) else [content])
            return {**({"reasoning_content": thought} if thought else {}), **({"content": text} if text else {})}
        if kind == "tool-plan-delta":
            plan = text_or_empty(message.get("tool_plan"))
            return {"reasoning_content": plan} if plan else {}
        if kind not in ("tool-call-start", "tool-call-delta"):
            return {}
        calls, index = message.get("tool_calls"), value.get("index")
        call = _object(calls[0] if isinstance(calls, list) and calls else calls)
        function = _object(call.get("function"))
        key = index if isinstance(index, int) else -1
        shown = self._start(key, call, function) if kind == "tool-call-start" else self._arguments(key, function)
        return {"tool_calls": [shown]} if shown else {}

    def _start(self, key: int, call: Json, function: Json) -> Json:
        self._numbers.pop(key, None)  # arguments of a call that cannot be read must not go to the one before it
        name, id = text_or_empty(function.get("name")), text_or_empty(call.get("id"))
        number = len(self._ids)
        if number >= MAX_CALLS:
            self._malformed("sent more tool calls than anybody can answer")
        if not name or number >= MAX_CALLS:
            return {}
        id = id if id and id not in self._ids else make_id("call_")
        self._ids.add(id)
        self._numbers[key] = number
        arguments = arguments_text(function.get("arguments"))
        if not arguments:
            self._empty.append(number)
        return {"index": number, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _arguments(self, key: int, function: Json) -> Json:
        number, arguments = self._numbers.get(key), arguments_text(function.get("arguments"))
        if number is None or not arguments:
            return {}
        if number in self._empty:
            self._empty.remove(number)
        return {"index": number, "function": {"arguments": arguments}}

    def _cite(self, given: object, size: int) -> None:
        """Citations hold whole documents: as many as one event may hold are kept, for the end of the answer."""
        self._cited += size
        if given and self._cited <= MAX_EVENT_BYTES and is_sound([[given]]):
            self.extra.setdefault("citations", []).extend(given if isinstance(given, list) else [given])

    def _end(self, delta: Json, out: list[Chunk]) -> None:
        native = text_or_empty(delta.get("finish_reason"))
        self.usage = read_usage(delta.get("usage")) or self.usage
        self.failure = _failure(delta, self._provider)
        if self.failure is not None:
            return
        if self._empty:  # a call without arguments is one with an empty object
            calls = [{"index": number, "function": {"arguments": "{}"}} for number in self._empty]
            out.append(Chunk({"tool_calls": calls}))
        out.append(Chunk({}, finish_reason=finish_reason(native, bool(self._ids)), native_finish=native or None))
        self.done = True


TYPE = CohereType(name="cohere", default_base="https://api.cohere.com", natives=frozenset())
