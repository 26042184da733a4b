"""Reading a request: validation in OpenAI's words, and what the mock will say to it.

Owns the way from bytes to a ``Call``. Token counting is simple on purpose, so that a test can predict it:
``count_tokens(text) = max(1, ceil(utf8_bytes / 4))`` for what comes in, one token per piece of what goes out. Unknown
fields are accepted, as OpenAI does for most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import cycle, islice
from typing import Any

from ..errors import ClientError
from ..wire import codec
from .faults import Fault
from .settings import MockSettings

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = "/v1/models"

WORDS = ("This", " is", " a", " mock", " answer", ",", " made", " of", " nothing", " but", " words", ".", " ")
FLOOD_TOKENS = 10_000
BIG_BYTES = 1_048_576
BIG_PIECES = 16
PIECE_CHARS = 6
"""Length of the pieces in which JSON text (tool arguments, JSON mode) is streamed; cuts fall anywhere, as OpenAI's."""

MAX_CHOICES = 128
"""OpenAI's limit for ``n``."""

MAX_INTEGER = 2**53
"""The largest integer that every JSON reader takes exactly."""

MAX_DIMENSIONS = 4096
DEFAULT_DIMENSIONS = 1536
MAX_SCHEMA_DEPTH = 8
MAX_SCHEMA_ITEMS = 16
"""Of an answer to a JSON schema: one that refers to itself, or asks for a million items, must end."""

_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}


@dataclass(slots=True)
class Call:
    """A valid request and the content of its answer: ``pieces`` are the tokens of one choice, in order.

    ``tool`` names the tool that is called (the pieces are then its arguments), ``finish`` is the finish_reason.
    """

    endpoint: str
    model: str
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    pieces: tuple[str, ...] = ()
    finish: str | None = "stop"
    tool: str | None = None
    prompt_tokens: int = 0
    inputs: list[str] = field(default_factory=list)
    dimensions: int = DEFAULT_DIMENSIONS
    base64: bool = False
    want_usage: bool = True


def utf8_len(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def tokens_of_bytes(size: int) -> int:
    return max(1, (size + 3) // 4)


def count_tokens(text: str) -> int:
    return tokens_of_bytes(utf8_len(text))


@lru_cache(maxsize=256)
def words(count: int) -> tuple[str, ...]:
    """``count`` tokens of prose."""
    return tuple(islice(cycle(WORDS), count))


def in_pieces(text: str) -> tuple[str, ...]:
    return tuple(text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))


def parse_body(raw: bytes) -> dict[str, Any]:
    try:
        body = codec.loads(raw)
    except codec.DecodeError:
        raise ClientError("We could not parse the JSON body of your request.") from None
    if not isinstance(body, dict):
        raise ClientError("We could not parse the JSON body of your request: expected an object.")
    return body


def model_of(body: dict[str, Any], settings: MockSettings) -> str:
    model = body.get("model")
    if model is None:
        raise ClientError("you must provide a model parameter")
    _expect(model, (str,), "model")
    if not settings.has_model(model):
        raise unknown_model(model)
    return str(model)


def unknown_model(model: str) -> ClientError:
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ClientError(message, status=404, code="model_not_found")


def read_call(
    endpoint: str, body: dict[str, Any], settings: MockSettings, fault: Fault | None = None, model: str = ""
) -> Call:
    """Validate a request. Raises ``ClientError`` with OpenAI's status, message, param and code."""
    call = Call(endpoint, model or model_of(body, settings), want_usage=fault is None or fault.kind != "usage-missing")
    if endpoint == EMBEDDINGS:
        _read_embeddings(call, body)
        return call
    _read_common(call, body)
    if endpoint == CHAT:
        _read_chat(call, body, settings)
    else:
        _read_completions(call, body, settings)
    if fault is not None:
        _apply_size_fault(call, fault)
    limit = _integer(body, "max_completion_tokens") or _integer(body, "max_tokens")
    if limit is not None and limit < len(call.pieces):
        call.pieces, call.finish = call.pieces[:limit], "length"
    if fault is not None and fault.kind == "no-done":
        call.finish = None
    return call


def _apply_size_fault(call: Call, fault: Fault) -> None:
    if fault.kind == "flood":
        call.pieces = words(FLOOD_TOKENS)
    elif fault.kind == "big":
        call.pieces = _big_pieces()


@lru_cache(maxsize=1)
def _big_pieces() -> tuple[str, ...]:
    size = BIG_BYTES // BIG_PIECES
    return (("mock answer " * (size // 12 + 1))[:size],) * BIG_PIECES


def _read_common(call: Call, body: dict[str, Any]) -> None:
    stream, options = body.get("stream"), body.get("stream_options")
    if stream is not None:
        _expect(stream, (bool,), "stream")
        call.stream = stream
    if options is not None:
        _expect(options, (dict,), "stream_options")
        if not call.stream:
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise ClientError(message, param="stream_options")
        call.include_usage = options.get("include_usage") is True
    call.n = _integer(body, "n", high=MAX_CHOICES) or 1
    if (temperature := body.get("temperature")) is not None:
        _expect(temperature, (float, int), "temperature")


def _read_chat(call: Call, body: dict[str, Any], settings: MockSettings) -> None:
    messages = _required(body, "messages", (list,), "an array of objects")
    if not messages:
        raise _empty("messages")
    size = 0
    for i, message in enumerate(messages):
        size += sum(utf8_len(text) for text in _message_texts(message, f"messages[{i}]"))
    call.prompt_tokens = tokens_of_bytes(size)
    tool, forced = _chosen_tool(body)
    if tool is not None and messages[-1].get("role") not in ("tool", "function"):
        call.tool, call.finish = tool, "stop" if forced else "tool_calls"
        call.pieces = in_pieces(codec.dumps({"echo": _last_user_text(messages)}).decode())
    else:
        text = _json_text(body.get("response_format"))
        call.pieces = words(settings.completion_tokens) if text is None else in_pieces(text)


def _message_texts(message: Any, where: str) -> Iterable[str]:
    _expect(message, (dict,), where)
    role, content = message.get("role"), message.get("content")
    if role is None:
        raise _missing(f"{where}.role")
    if role not in _ROLES:
        supported = ", ".join(f"'{name}'" for name in _ROLES)
        raise ClientError(
            f"Invalid value: '{role}'. Supported values are: {supported}.", param=f"{where}.role", code="invalid_value"
        )
    if isinstance(content, str):
        return (content,)
    if content is None:
        return ()
    _expect(content, (list,), f"{where}.content", "one of a string or array of objects")
    return _part_texts(content, f"{where}.content")


def _part_texts(parts: list[Any], where: str) -> list[str]:
    for i, part in enumerate(parts):
        _expect(part, (dict,), f"{where}[{i}]")
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def _last_user_text(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if message["role"] == "user":
            return "".join(_message_texts(message, "messages"))
    return ""


def _chosen_tool(body: dict[str, Any]) -> tuple[str | None, bool]:
    """The tool to call, and whether ``tool_choice`` named it (then OpenAI's finish_reason is ``stop``)."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if tools is None:
        return None, False
    _expect(tools, (list,), "tools", "an array of objects")
    names = [_tool_name(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    if not names:
        raise _empty("tools")
    if choice == "none":
        return None, False
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        if name not in names:
            raise ClientError(f"Tool choice '{name}' not found in 'tools' parameter.", param="tool_choice")
        return name, True
    return names[0], False


def _tool_name(tool: Any, where: str) -> str:
    _expect(tool, (dict,), where)
    function = tool.get("function")
    if function is None:
        raise _missing(f"{where}.function")
    _expect(function, (dict,), f"{where}.function")
    if function.get("name") is None:
        raise _missing(f"{where}.function.name")
    _expect(function["name"], (str,), f"{where}.function.name")
    return str(function["name"])


def _json_text(response_format: Any) -> str | None:
    """The answer in JSON mode: small and valid; for a schema, an instance of its plain parts."""
    if response_format is None:
        return None
    _expect(response_format, (dict,), "response_format")
    if response_format.get("type") == "json_object":
        return '{"answer":"mock"}'
    if response_format.get("type") != "json_schema":
        return None
    outer = response_format.get("json_schema")
    schema = outer.get("schema") if isinstance(outer, dict) else None
    try:
        return codec.dumps(instance_of(schema, schema, 0)).decode()
    except TypeError:  # a constant nested deeper than the encoder goes
        return "{}"


def instance_of(schema: Any, root: Any, depth: int) -> Any:
    """A small instance of a JSON schema: const, enum, $ref, anyOf/oneOf, type, properties, items with minItems. Deeper
    than ``MAX_SCHEMA_DEPTH`` everything is null."""
    if not isinstance(schema, dict) or depth > MAX_SCHEMA_DEPTH:
        return {} if depth == 0 else None
    if "const" in schema:
        return schema["const"]
    if isinstance(choices := schema.get("enum"), list) and choices:
        return choices[0]
    if isinstance(reference := schema.get("$ref"), str):
        return instance_of(_resolve(root, reference), root, depth + 1)
    branches = schema.get("anyOf") or schema.get("oneOf")
    if isinstance(branches, list):
        null = next((b for b in branches if isinstance(b, dict) and b.get("type") == "null"), None)
        return instance_of(branches[0] if null is None else null, root, depth + 1)
    return _instance_of_type(schema, root, depth)


def _instance_of_type(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema or depth == 0 else "null")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    if kind == "object":
        properties = schema.get("properties")
        fields = properties.items() if isinstance(properties, dict) else ()
        return {name: instance_of(sub, root, depth + 1) for name, sub in fields}
    least = schema.get("minItems" if kind == "array" else "minimum", 0)
    least = least if isinstance(least, (int, float)) else 0
    if kind == "array":
        return [instance_of(schema.get("items"), root, depth + 1) for _ in range(min(int(least), MAX_SCHEMA_ITEMS))]
    if kind in ("integer", "number"):
        return least
    return {"string": "mock", "boolean": True}.get(kind) if isinstance(kind, str) else None


def _resolve(root: Any, reference: str) -> Any:
    node = root
    for step in reference.removeprefix("#").split("/")[1:]:
        node = node.get(step) if isinstance(node, dict) else None
    return node


def _read_completions(call: Call, body: dict[str, Any], settings: MockSettings) -> None:
    prompts, call.prompt_tokens = _texts(_required(body, "prompt", (str, list), "one of a string or array"), "prompt")
    call.n *= len(prompts)
    call.pieces = words(settings.completion_tokens)


def _read_embeddings(call: Call, body: dict[str, Any]) -> None:
    value = _required(body, "input", (str, list), "one of a string or array")
    call.inputs, call.prompt_tokens = _texts(value, "input")
    call.dimensions = _integer(body, "dimensions", high=MAX_DIMENSIONS) or DEFAULT_DIMENSIONS
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        message = f"Invalid value: '{encoding}'. Supported values are: 'float' and 'base64'."
        raise ClientError(message, param="encoding_format", code="invalid_value")
    call.base64 = encoding == "base64"


def _texts(value: Any, param: str) -> tuple[list[str], int]:
    """The texts of a prompt or embedding input (a string, token ids, or a list of either), and its tokens."""
    items = [value] if isinstance(value, str) else value
    if not items:
        raise _empty(param)
    if all(type(item) is int for item in items):
        items = [items]
    texts, tokens = [], 0
    for i, item in enumerate(items):
        _expect(item, (str, list), f"{param}[{i}]", "one of a string or array of integers")
        if isinstance(item, list):
            for token in item:
                _expect(token, (int,), f"{param}[{i}]")
            tokens += len(item)
            texts.append(codec.dumps(item).decode())
        else:
            tokens += count_tokens(item)
            texts.append(item)
    return texts, tokens


def _integer(body: dict[str, Any], param: str, high: int = MAX_INTEGER) -> int | None:
    value = body.get(param)
    if value is None:
        return None
    _expect(value, (int,), param)
    if value < 1:
        message = f"Invalid '{param}': integer below minimum value. Expected a value >= 1, but got {value} instead."
        raise ClientError(message, param=param, code="integer_below_min_value")
    if value > high:
        message = (
            f"Invalid '{param}': integer above maximum value. Expected a value <= {high}, but got {value} instead."
        )
        raise ClientError(message, param=param, code="integer_above_max_value")
    return int(value)


def _required(body: dict[str, Any], param: str, kinds: tuple[type, ...], expected: str) -> Any:
    if body.get(param) is None:
        raise _missing(param)
    _expect(body[param], kinds, param, expected)
    return body[param]


def _missing(param: str) -> ClientError:
    message = f"Missing required parameter: '{param}'."
    return ClientError(message, param=param, code="missing_required_parameter")


def _empty(param: str) -> ClientError:
    message = f"Invalid '{param}': empty array. Expected an array with minimum length 1, but got an empty array."
    return ClientError(message, param=param, code="empty_array")


def _expect(value: Any, kinds: tuple[type, ...], param: str, expected: str = "") -> None:
    if type(value) in kinds:
        return
    got = "null" if value is None else _KINDS[type(value)]
    wanted = expected or _KINDS[kinds[0]]
    message = f"Invalid type for '{param}': expected {wanted}, but got {got} instead."
    raise ClientError(message, param=param, code="invalid_type")
