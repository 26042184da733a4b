"""The specification of jsonscan.pyx in plain Python: same names, same answers, same errors at the same bytes.

Owns the readable form of the grammar (RFC 8259, Unicode table 3-7): ``parse`` builds a tree of spans, everything else
reads that tree. It is slow and holds a whole body as objects; it serves the tests, and machines without a compiler.

The rule that must not be broken: change this file first, the compiled twin after it, the tests compare the two.
"""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple, NoReturn, final

from slipstream._fast._errors import JsonError

ABSENT, STRING, NUMBER, OBJECT, ARRAY, TRUE, FALSE, NULL = range(8)

KEYS: Final = (
    "model", "stream", "stream_options", "messages", "tools", "user", "max_tokens", "max_completion_tokens", "n",
    "prompt", "input", "seed", "temperature", "response_format", "reasoning_effort", "timeout",
)  # fmt: skip
(
    K_MODEL, K_STREAM, K_STREAM_OPTIONS, K_MESSAGES, K_TOOLS, K_USER, K_MAX_TOKENS, K_MAX_COMPLETION_TOKENS, K_N,
    K_PROMPT, K_INPUT, K_SEED, K_TEMPERATURE, K_RESPONSE_FORMAT, K_REASONING_EFFORT, K_TIMEOUT,
) = range(16)  # fmt: skip

MAX_LEVELS: Final = 1024  # the largest max_depth
MAX_DIGITS: Final = 4300  # CPython refuses longer integers (sys.int_info.default_max_str_digits)

REASONS: Final = (
    "",
    "the body is not a JSON object",
    "the body starts with a byte order mark",
    "the text ends inside a value",
    "expected a value",
    "expected a key in double quotes",
    "expected ':'",
    "expected ',' or '}'",
    "expected ',' or ']'",
    "data after the JSON object",
    "a control character in a string",
    "an escape that JSON does not have",
    "\\u without four hexadecimal digits",
    "not valid UTF-8",
    "a malformed number",
    "a number of more than 4300 digits",
    "nesting deeper than {} levels",
)
(
    _NOT_OBJECT, _BOM, _TRUNCATED, _VALUE, _KEY, _COLON, _OBJECT_NEXT, _ARRAY_NEXT, _TRAILING, _CONTROL, _ESCAPE, _HEX,
    _UTF8, _NUMBER, _DIGITS, _DEPTH,
) = REASONS[1:]  # fmt: skip

_SPACE = re.compile(rb"[ \t\n\r]*")  # section 2
_TEXT = re.compile(  # section 7; well-formed UTF-8 as in Unicode table 3-7
    rb"""(?:
        [\x20\x21\x23-\x5b\x5d-\x7f]++
      | [\xc2-\xdf][\x80-\xbf]
      | \xe0[\xa0-\xbf][\x80-\xbf] | [\xe1-\xec\xee\xef][\x80-\xbf]{2} | \xed[\x80-\x9f][\x80-\xbf]
      | \xf0[\x90-\xbf][\x80-\xbf]{2} | [\xf1-\xf3][\x80-\xbf]{3} | \xf4[\x80-\x8f][\x80-\xbf]{2}
      | \\["\\/bfnrt] | \\u[0-9A-Fa-f]{4}
    )*+""",
    re.VERBOSE,
)
_HEX_DIGITS = re.compile(rb"[0-9A-Fa-f]{0,3}")
_DIGIT_RUN = re.compile(rb"[0-9]*")
_LITERAL = re.compile(rb"true|false|null")
_KINDS = {b'"': STRING, b"{": OBJECT, b"[": ARRAY, b"t": TRUE, b"f": FALSE, b"n": NULL}


class Member(NamedTuple):
    """A member of an object: the key un-escaped, its span with the quotes, and its value."""

    name: str
    start: int
    end: int
    value: Node


class Node:
    """A value: its kind, its span in bytes, and what is inside."""

    __slots__ = ("end", "items", "kind", "members", "start")

    def __init__(self, kind: int, start: int) -> None:
        self.kind = kind
        self.start = start
        self.end = -1
        self.members: list[Member] = []
        self.items: list[Node] = []

    @property
    def by_name(self) -> dict[str, Node]:
        """The members by name; of duplicates the last."""
        return {member.name: member.value for member in self.members}


def _fail_in_string(s: bytes, i: int, n: int) -> NoReturn:
    """Why the text of a string stops at i, which is not its closing quote."""
    if i >= n:
        raise JsonError(_TRUNCATED, n)
    if s[i] < 0x20:
        raise JsonError(_CONTROL, i)
    if s[i] >= 0x80:
        raise JsonError(_UTF8, i)
    if i + 1 >= n:
        raise JsonError(_TRUNCATED, n)
    if s[i + 1] != ord("u"):
        raise JsonError(_ESCAPE, i + 1)
    match = _HEX_DIGITS.match(s, i + 2, n)
    assert match is not None
    raise JsonError(_TRUNCATED if match.end() >= n else _HEX, match.end())


def _string_end(s: bytes, i: int, n: int) -> int:
    """Behind the string whose opening quote is at i."""
    match = _TEXT.match(s, i + 1, n)
    assert match is not None
    if match.end() >= n or s[match.end()] != ord('"'):
        _fail_in_string(s, match.end(), n)
    return match.end() + 1


def _digits_end(s: bytes, i: int, n: int) -> int:
    """Behind one digit or more."""
    if i >= n:
        raise JsonError(_TRUNCATED, n)
    match = _DIGIT_RUN.match(s, i, n)
    assert match is not None
    if match.end() == i:
        raise JsonError(_NUMBER, i)
    return match.end()


def _number_end(s: bytes, start: int, n: int) -> int:
    """Behind the number at start (section 6)."""
    i = start + (s[start] == ord("-"))
    if s[i : min(i + 1, n)] == b"0":
        i += 1
        if s[i : min(i + 1, n)].isdigit():
            raise JsonError(_NUMBER, i)
    else:
        i = _digits_end(s, i, n)
    if s[i : min(i + 1, n)] == b".":
        i = _digits_end(s, i + 1, n)
    if s[i : min(i + 1, n)] in (b"e", b"E"):
        i += 1
        i = _digits_end(s, i + (s[i : min(i + 1, n)] in (b"+", b"-")), n)
    if sum(48 <= c <= 57 for c in s[start:i]) > MAX_DIGITS:
        raise JsonError(_DIGITS, start)
    return i


def _skip_space(s: bytes, i: int, n: int) -> int:
    match = _SPACE.match(s, i, n)
    assert match is not None
    return match.end()


def _plain_string(token: bytes) -> str:
    """A valid JSON string, with its quotes, as text (it may hold lone surrogates)."""
    text: str = json.loads(token.decode("utf-8"))
    return text


def _open_value(s: bytes, i: int, n: int) -> Node:
    """The value at i; of an object or array only its opening."""
    if i >= n:
        raise JsonError(_TRUNCATED, n)
    node = Node(_KINDS.get(s[i : i + 1], NUMBER), i)
    if node.kind == STRING:
        node.end = _string_end(s, i, n)
    elif node.kind == NUMBER:
        if not (s[i] == ord("-") or 48 <= s[i] <= 57):
            raise JsonError(_VALUE, i)
        node.end = _number_end(s, i, n)
    elif node.kind in (TRUE, FALSE, NULL):
        match = _LITERAL.match(s, i, n)
        if match is None:
            raise JsonError(_VALUE, i)
        node.end = match.end()
    return node


def _key(s: bytes, i: int, n: int) -> tuple[str, int, int]:
    """The key at i: name and span."""
    if i >= n:
        raise JsonError(_TRUNCATED, n)
    if s[i] != ord('"'):
        raise JsonError(_KEY, i)
    end = _string_end(s, i, n)
    return _plain_string(s[i:end]), i, end


def parse(s: bytes, start: int, n: int, max_depth: int) -> Node:
    """The one object in s[start:n]."""
    i = _skip_space(s, start, n)
    if i >= n or s[i] != ord("{"):
        raise JsonError(_NOT_OBJECT, i)
    root: Node | None = None
    stack: list[Node] = []
    key: tuple[str, int, int] | None = None
    while True:
        node = _open_value(s, i, n)
        if root is None:
            root = node
        elif key is not None:
            stack[-1].members.append(Member(*key, node))
        else:
            stack[-1].items.append(node)
        first = node.end < 0
        if first:
            if len(stack) >= max_depth:
                raise JsonError(_DEPTH.format(max_depth), i)
            stack.append(node)
            i += 1
        else:
            i = node.end
        while stack:  # on to the next value, or out of all that ends here
            top = stack[-1]
            i = _skip_space(s, i, n)
            close = b"}" if top.kind == OBJECT else b"]"
            if i < n and s[i : i + 1] == close:
                i += 1
                top.end = i
                stack.pop()
                first = False
                continue
            if not first:
                if i >= n:
                    raise JsonError(_TRUNCATED, n)
                if s[i] != ord(","):
                    raise JsonError(_OBJECT_NEXT if top.kind == OBJECT else _ARRAY_NEXT, i)
                i = _skip_space(s, i + 1, n)
            key = None
            if top.kind == OBJECT:
                key = _key(s, i, n)
                i = _skip_space(s, key[2], n)
                if i >= n:
                    raise JsonError(_TRUNCATED, n)
                if s[i] != ord(":"):
                    raise JsonError(_COLON, i)
                i = _skip_space(s, i + 1, n)
            break
        if not stack:
            i = _skip_space(s, i, n)
            if i < n:
                raise JsonError(_TRAILING, i)
            return root


MODEL_MAX = 256
"""Bytes of a model name; the same in wire/request.py."""


@final
class RequestScan:
    """See jsonscan.pyi."""

    __slots__ = (
        "_members", "body_close", "body_open", "duplicates", "include_usage", "include_usage_end",
        "include_usage_start", "n_keys", "options_keys", "options_open",
    )  # fmt: skip

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self.body_open = 0
        self.body_close = 0
        self.n_keys = 0
        self.duplicates = 0
        self.options_open = 0
        self.options_keys = 0
        self.include_usage = ABSENT
        self.include_usage_start = 0
        self.include_usage_end = 0

    def _member(self, key: int) -> Member | None:
        if not 0 <= key < len(KEYS):
            raise IndexError("no such watched key")
        return self._members.get(key)

    def kind(self, key: int) -> int:
        member = self._member(key)
        return ABSENT if member is None else member.value.kind

    def start(self, key: int) -> int:
        member = self._member(key)
        return -1 if member is None else member.value.start

    def end(self, key: int) -> int:
        member = self._member(key)
        return -1 if member is None else member.value.end

    def key_start(self, key: int) -> int:
        member = self._member(key)
        return -1 if member is None else member.start

    def key_end(self, key: int) -> int:
        member = self._member(key)
        return -1 if member is None else member.end

    def plain_model(self, body: bytes, subject: int) -> str | None:
        start, end = self.start(K_MODEL), self.end(K_MODEL)
        known = self.kind(subject)
        if (
            self.duplicates
            or self.kind(K_MODEL) != STRING
            or not 3 <= end - start <= MODEL_MAX + 2
            or end > len(body)
            or known == ABSENT
            or (subject == K_MESSAGES and known != ARRAY)
            or self.kind(K_STREAM) in (STRING, NUMBER, OBJECT, ARRAY)
            or self.kind(K_STREAM_OPTIONS) not in (ABSENT, NULL, OBJECT)
            or b"\\" in body[start:end]
        ):
            return None
        return body[start + 1 : end - 1].decode()


def scan_request(body: bytes, max_depth: int = 128) -> RequestScan:
    """See jsonscan.pyi."""
    if not isinstance(body, bytes):
        raise TypeError("body must be bytes")
    if not 1 <= max_depth <= MAX_LEVELS:
        raise ValueError("max_depth must be 1 to 1024")
    if body.startswith(b"\xef\xbb\xbf"):
        raise JsonError(_BOM, 0)
    root = parse(body, 0, len(body), max_depth)
    scan = RequestScan()
    scan.body_open = root.start + 1
    scan.body_close = root.end - 1
    scan.n_keys = len(root.members)
    for member in root.members:
        if member.name in KEYS:
            key = KEYS.index(member.name)
            scan.duplicates |= (key in scan._members) << key
            scan._members[key] = member
    options = root.by_name.get("stream_options")
    inside = options if options is not None and options.kind == OBJECT else None
    usage = None if inside is None else inside.by_name.get("include_usage")
    scan.options_open = -1 if inside is None else inside.start + 1
    scan.options_keys = 0 if inside is None else len(inside.members)
    scan.include_usage = ABSENT if usage is None else usage.kind
    scan.include_usage_start = -1 if usage is None else usage.start
    scan.include_usage_end = -1 if usage is None else usage.end
    return scan


def decode_string(body: bytes, start: int, end: int) -> str | None:
    """See jsonscan.pyi."""
    if not isinstance(body, bytes):
        raise TypeError("body must be bytes")
    if start < 0 or end > len(body) or end - start < 2 or body[start] != ord('"'):
        raise ValueError("not the span of a JSON string")
    if _string_end(body, start, end) != end:
        raise ValueError("not the span of a JSON string")
    text = _plain_string(body[start:end])
    return None if any("\ud800" <= c <= "\udfff" for c in text) else text
