"""Requests of ``/api/chat`` and ``/api/embed`` from the canonical shape (PROTOCOLS.md 1.2, 2.7; Ollama API reference).

Sampling parameters go into ``options`` under Ollama's names; what only Ollama has (``options``, ``num_ctx``,
``keep_alive``, ``think``, ``truncate``, ``shift``) is taken from the request as a client writes it there, the way the
OpenAI SDK's ``extra_body`` sends it. Nothing is added that nobody asked for: the model's own defaults hold.

The rule that must not be broken: ``stream`` is always said, because Ollama streams unless it is told not to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ClientError
from ..canonical import Built, Json, split_data_url
from ..codec import DecodeError, dumps, loads

_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
}
"""Numbers, by their names on both sides."""
_WHOLE_OPTIONS = {"top_k": "top_k", "seed": "seed", "num_ctx": "num_ctx"}
_OWN = ("keep_alive", "truncate", "shift")
"""Ollama's own top-level fields; what they may hold is its business."""
_HANDLED = frozenset(
    {
        *_OPTIONS, *_WHOLE_OPTIONS, *_OWN, "model", "messages", "stream", "stream_options", "options", "think",
        "max_tokens", "max_completion_tokens", "stop", "n", "tools", "tool_choice", "response_format",
        "reasoning_effort", "thinking", "logprobs", "top_logprobs",
    }
)  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "parallel_tool_calls": True,
    "store": False,
    "service_tier": "auto",
    "modalities": ["text"],
}
"""Values that say the same as nothing (API reference, "Create chat completion")."""
MAX_NAME_CHARS = 64
"""A longer name of a field is nobody's parameter."""
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def build_chat(request: Json, *, root: str, model: str) -> Built:
    """A canonical chat request for ``model`` of the server at ``root``. Raises ``ClientError``."""
    dropped: dict[str, None] = {}
    if _whole(request, "n") not in (None, 1):
        raise ClientError("This provider gives one choice per request; leave 'n' out or set it to 1.", param="n")
    body: Json = {
        "model": model,
        "messages": _Messages(dropped).translate(request.get("messages")),
        "stream": request.get("stream") is True,
    }
    _add_tools(body, request, dropped)
    _add_format(body, request)
    _add_thinking(body, request, model, dropped)
    _add_logprobs(body, request)
    _add_own(body, request)
    options = _options(request)
    if options:
        body["options"] = options
    _list_others(request, dropped)
    return Built(url=root + "/api/chat", body=_encoded(body), dropped=list(dropped))


def build_embeddings(request: Json, *, root: str, model: str) -> Built:
    """A request of ``/api/embed`` from one of OpenAI's ``/v1/embeddings``. Raises ``ClientError``."""
    texts = request.get("input")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ClientError(
            "This provider takes 'input' as a string or a list of strings; token ids are not supported.",
            param="input",
            code="invalid_type",
        )
    body: Json = {"model": model, "input": texts}
    if (dimensions := _whole(request, "dimensions")) is not None:
        body["dimensions"] = dimensions
    _add_own(body, request)
    options = _own_options(request)
    if options:
        body["options"] = options
    dropped = {"user": None} if request.get("user") else {}
    return Built(url=root + "/api/embed", body=_encoded(body), dropped=list(dropped))


# ---------------------------------------------------------------------------------------------------- parameters


def _options(request: Json) -> Json:
    """``options``; what the client wrote there itself is the last word."""
    options: Json = {}
    for name, theirs in _OPTIONS.items():
        value = request.get(name)
        if value is not None:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise _wrong(name, "a number")
            options[theirs] = value
    for name, theirs in _WHOLE_OPTIONS.items():
        if (number := _whole(request, name)) is not None:
            options[theirs] = number
    limit = _whole(request, "max_completion_tokens")
    limit = _whole(request, "max_tokens") if limit is None else limit
    if limit is not None:
        options["num_predict"] = limit
    stop = request.get("stop")
    if stop:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
            raise _wrong("stop", "a string or a list of strings")
        options["stop"] = stops
    return options | _own_options(request)


def _own_options(request: Json) -> Json:
    own = request.get("options")
    if own is None:
        return {}
    if not isinstance(own, dict):
        raise _wrong("options", "an object")
    return own


def _add_own(body: Json, request: Json) -> None:
    for name in _OWN:
        if request.get(name) is not None:
            body[name] = request[name]


def _add_logprobs(body: Json, request: Json) -> None:
    wanted = request.get("logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise _wrong("logprobs", "true or false")
    if wanted:
        body["logprobs"] = True
        if (top := _whole(request, "top_logprobs")) is not None:
            body["top_logprobs"] = top


def _add_format(body: Json, request: Json) -> None:
    """``response_format`` as ``format``: a schema or the word ``json`` (#1d4dce7b)."""
    wanted = request.get("response_format")
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        body["format"] = "json"
    elif kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise _wrong("response_format.json_schema.schema", "an object")
        body["format"] = schema
    elif kind != "text":
        raise ClientError(
            "'response_format.type' must be 'text', 'json_object' or 'json_schema'.",
            param="response_format",
            code="invalid_value",
        )


def _add_thinking(body: Json, request: Json, model: str, dropped: dict[str, None]) -> None:
    """``think``. Only gpt-oss knows levels, and answers nothing else; other models refuse a level ("think value
    "medium" is not supported for this model", ollama issue 12561) and are told yes or no."""
    own = request.get("think")
    if own is not None:
        if not isinstance(own, bool | str):
            raise _wrong("think", "true, false or a level")
        body["think"] = own
        return
    effort, thinking = request.get("reasoning_effort"), request.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if thinking is not None and kind not in ("enabled", "adaptive", "disabled"):
        raise _wrong("thinking.type", "enabled, adaptive or disabled")
    if effort == "none" or (effort is None and kind == "disabled"):
        body["think"] = False
        return
    if effort is None and kind not in ("enabled", "adaptive"):
        return
    if effort is not None and not (isinstance(effort, str) and effort in _EFFORTS):
        raise ClientError(
            f"'reasoning_effort' must be one of none, {', '.join(_EFFORTS)}.",
            param="reasoning_effort",
            code="invalid_value",
        )
    if "gpt-oss" in model.lower():
        body["think"] = _EFFORTS[effort or "medium"]
    else:
        body["think"] = True
        if effort is not None:
            dropped["reasoning_effort"] = None
    if isinstance(thinking, dict) and thinking.get("budget_tokens") is not None:
        dropped["thinking.budget_tokens"] = None


def _add_tools(body: Json, request: Json, dropped: dict[str, None]) -> None:
    """Tools have OpenAI's form. Nothing can force a call; a choice of some tools is kept by sending only those."""
    tools = request.get("tools")
    choice = request.get("tool_choice")
    if not tools or choice == "none":
        return
    if not isinstance(tools, list):
        raise _wrong("tools", "a list of tools")
    names = _chosen(choice)
    if choice not in (None, "auto") and not (isinstance(choice, dict) and _mode(choice) == "auto"):
        dropped["tool_choice"] = None
    sent = []
    for n, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            dropped["tools[].type"] = None
            continue
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(f"tools[{n}].function.name", "a string")
        if names is None or function["name"] in names:
            if function.get("strict"):
                dropped["tools[].strict"] = None
            sent.append({"type": "function", "function": _plain_function(function)})
        if isinstance(tool, dict) and tool.get("cache_control"):
            dropped["cache_control"] = None
    if sent:
        body["tools"] = sent


def _plain_function(function: Json) -> Json:
    """Ollama decodes ``parameters`` into a fixed shape, and a function without any is no error for OpenAI."""
    shown: Json = {"name": function["name"], "description": function.get("description") or ""}
    parameters = function.get("parameters")
    shown["parameters"] = parameters if isinstance(parameters, dict) else {"type": "object", "properties": {}}
    return shown


def _mode(choice: Json) -> object:
    allowed = choice.get("allowed_tools")
    return allowed.get("mode") if isinstance(allowed, dict) else None


def _chosen(choice: object) -> frozenset[str] | None:
    """The names that a ``tool_choice`` limits the model to; ``None``: all."""
    if not isinstance(choice, dict):
        return None
    allowed = choice.get("allowed_tools")
    picked = allowed.get("tools") if isinstance(allowed, dict) else [choice]
    functions = [pick.get("function") for pick in picked if isinstance(pick, dict)] if isinstance(picked, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return frozenset(name for name in names if isinstance(name, str)) or None


def _list_others(request: Json, dropped: dict[str, None]) -> None:
    """What is set, means something and has no place (R65)."""
    for name, value in request.items():
        if name in _HANDLED or value is None or value == _DEFAULTS.get(name, False) or value in ("", [], {}):
            continue
        # the name will stand in a header and in a log
        dropped[name if name.isascii() and name.isprintable() and len(name) <= MAX_NAME_CHARS else "?"] = None


# ------------------------------------------------------------------------------------------------------- messages


class _Messages:
    """The conversation, message by message: a tool's result needs the name that only the call before it has."""

    __slots__ = ("_dropped", "_names")

    def __init__(self, dropped: dict[str, None]) -> None:
        self._dropped = dropped
        self._names: dict[str, str] = {}
        """Names of the functions by the ids of their calls."""

    def translate(self, messages: object) -> list[Json]:
        if not isinstance(messages, list):
            raise _wrong("messages", "a list of messages")
        return [self._message(message, f"messages[{n}]") for n, message in enumerate(messages)]

    def _message(self, message: object, at: str) -> Json:
        if not isinstance(message, dict):
            raise _wrong(at, "an object")
        role = message.get("role")
        if role == "developer":
            role = "system"
        if role not in ("system", "user", "assistant", "tool", "function"):
            raise ClientError(
                f"'{at}.role' must be system, developer, user, assistant or tool.",
                param=f"{at}.role",
                code="invalid_value",
            )
        if message.get("cache_control"):
            self._dropped["cache_control"] = None
        text, images = self._content(message.get("content"), f"{at}.content")
        shown: Json = {"role": role, "content": text}
        if images:
            shown["images"] = images
        if role == "assistant":
            self._assistant(message, shown, at)
        elif role in ("tool", "function"):
            self._result(message, shown)
        elif message.get("name"):
            self._dropped["messages[].name"] = None
        return shown

    def _assistant(self, message: Json, shown: Json, at: str) -> None:
        refusal = message.get("refusal")
        if not shown["content"] and isinstance(refusal, str):
            shown["content"] = refusal
        thinking = message.get("reasoning_content") or self._thought(message.get("thinking_blocks"))
        if isinstance(thinking, str) and thinking:
            shown["thinking"] = thinking
        calls = message.get("tool_calls")
        if not calls and isinstance(message.get("function_call"), dict):
            calls = [{"function": message["function_call"]}]
        if isinstance(calls, list) and calls:
            shown["tool_calls"] = [self._call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate(calls)]

    def _thought(self, blocks: object) -> str:
        """The text of signed thinking; what is encrypted is for its own provider only."""
        if not isinstance(blocks, list):
            return ""
        texts = [block.get("thinking") for block in blocks if isinstance(block, dict)]
        if not all(isinstance(text, str) for text in texts):
            self._dropped["messages[].thinking_blocks"] = None
        return "".join(text for text in texts if isinstance(text, str))

    def _call(self, call: object, at: str) -> Json:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(f"{at}.function.name", "a string")
        shown: Json = {"function": {"name": function["name"], "arguments": _object(function.get("arguments"), at)}}
        identity = call.get("id")
        if isinstance(identity, str) and identity:
            self._names[identity] = function["name"]
            shown = {"id": identity, **shown}
        return shown

    def _result(self, message: Json, shown: Json) -> None:
        shown["role"] = "tool"
        identity = message.get("tool_call_id")
        name = self._names.get(identity) if isinstance(identity, str) else None
        name = name or message.get("name")
        if isinstance(name, str) and name:
            shown["tool_name"] = name
        if isinstance(identity, str) and identity:
            shown["tool_call_id"] = identity
        if message.get("is_error"):
            self._dropped["messages[].is_error"] = None

    def _content(self, content: object, at: str) -> tuple[str, list[str]]:
        """Text and images. What is neither is refused: an answer to half of a question is worse than none."""
        if content is None or isinstance(content, str):
            return content or "", []
        if not isinstance(content, list):
            raise _wrong(at, "a string or a list of parts")
        texts: list[str] = []
        images: list[str] = []
        for n, part in enumerate(content):
            if not isinstance(part, dict):
                raise _wrong(f"{at}[{n}]", "an object")
            kind = part.get("type")
            text = part.get("refusal" if kind == "refusal" else "text")
            if kind in ("text", "refusal", None) and isinstance(text, str):
                texts.append(text)
            elif kind == "image_url":
                images.append(self._image(part, f"{at}[{n}]"))
            else:
                raise ClientError(
                    f"This provider takes text and images only; '{at}[{n}]' is something else.",
                    param=f"{at}[{n}]",
                    code="unsupported_content",
                )
            if part.get("cache_control"):
                self._dropped["cache_control"] = None
        return "\n".join(texts), images

    def _image(self, part: Json, at: str) -> str:
        """The base64 text alone (PROTOCOLS.md 1.2)."""
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        found = split_data_url(url) if isinstance(url, str) else None
        if found is None:
            raise ClientError(
                f"This provider fetches no images; send '{at}.image_url.url' as a data: URL in base64.",
                param=f"{at}.image_url.url",
                code="unsupported_image_url",
            )
        if isinstance(image, dict) and image.get("detail") not in (None, "auto"):
            self._dropped["image_url.detail"] = None
        return found[1]


def _object(arguments: object, at: str) -> Json:
    """Ollama wants arguments as an object."""
    value = arguments
    if isinstance(arguments, str):
        try:
            value = loads(arguments.encode()) if arguments.strip() else {}
        except (DecodeError, UnicodeEncodeError):
            value = None
    elif arguments is None:
        value = {}
    if not isinstance(value, dict):
        raise _wrong(f"{at}.function.arguments", "the JSON text of an object")
    return value


def _encoded(body: Json) -> bytes:
    try:
        return dumps(body)
    except TypeError:  # nested more deeply than JSON is written
        raise ClientError("The request is nested too deeply.", code="invalid_value") from None


def _whole(request: Json, name: str) -> int | None:
    value = request.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(name, "a whole number")
    return value


def _wrong(name: str, wanted: str) -> ClientError:
    return ClientError(f"'{name}' must be {wanted}.", param=name, code="invalid_type")
