"""The specification of jsonreply.pyx in plain Python: same names, same answers, same offset of a fault.

Owns the readable form of what counts as content, finish, usage and error in a reply of the OpenAI chat dialect.

The rule that must not be broken: change this file first, the compiled twin after it, the tests compare the two.
"""

from __future__ import annotations

from typing import Final, final

from slipstream._fast._errors import JsonError
from slipstream._fast._pure.jsonscan import ARRAY, NULL, OBJECT, STRING, Node, parse

R_INVALID, R_ERROR, R_CHOICES, R_CONTENT, R_FINISH, R_USAGE, R_DATA, R_ROLE = (1 << bit for bit in range(8))

REPLY_DEPTH: Final = 512  # levels

_TEXTS: Final = ("content", "refusal", "reasoning", "reasoning_content")
_LISTS: Final = ("tool_calls", "reasoning_details")
_OBJECTS: Final = ("function_call", "audio")


def _full_string(node: Node | None) -> bool:
    """A string with something in it."""
    return node is not None and node.kind == STRING and node.end - node.start > 2


def _full_array(node: Node | None) -> bool:
    return node is not None and node.kind == ARRAY and bool(node.items)


def _has_content(delta: dict[str, Node]) -> bool:
    return (
        any(_full_string(delta.get(name)) or _full_array(delta.get(name)) for name in _TEXTS)
        or any(_full_array(delta.get(name)) for name in _LISTS)
        or any(name in delta and delta[name].kind == OBJECT for name in _OBJECTS)
    )


def _of_kind(members: dict[str, Node], name: str, kind: int) -> Node | None:
    node = members.get(name)
    return node if node is not None and node.kind == kind else None


def _span(node: Node | None) -> tuple[int, int]:
    return (-1, -1) if node is None else (node.start, node.end)


@final
class ReplyScan:
    """See jsonreply.pyi."""

    __slots__ = (
        "error_end", "error_start", "finish_end", "finish_start", "id_end", "id_start", "model_end", "model_start",
        "n_choices", "n_finish", "pos", "usage_end", "usage_start",
    )  # fmt: skip

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.n_choices = self.n_finish = 0
        self.pos = -1
        self.error_start = self.error_end = self.usage_start = self.usage_end = -1
        self.finish_start = self.finish_end = self.model_start = self.model_end = self.id_start = self.id_end = -1

    def scan(self, data: bytes, start: int = 0, end: int = -1) -> int:
        """See jsonreply.pyi."""
        if not isinstance(data, bytes):
            raise TypeError("data must be bytes")
        if end == -1:
            end = len(data)
        if not 0 <= start <= end <= len(data):
            raise ValueError("start and end are not offsets of data")
        self._clear()
        if data[start:end].startswith(b"\xef\xbb\xbf"):
            start += 3
        try:
            root = parse(data, start, end, REPLY_DEPTH).by_name
        except JsonError as fault:
            self.pos = fault.pos
            return R_INVALID
        return self._read(root)

    def _read(self, root: dict[str, Node]) -> int:
        flags = 0
        self.model_start, self.model_end = _span(_of_kind(root, "model", STRING))
        self.id_start, self.id_end = _span(_of_kind(root, "id", STRING))
        error = root.get("error")
        if error is not None and error.kind != NULL:
            flags |= R_ERROR
            self.error_start, self.error_end = _span(error)
        groq = _of_kind(root, "x_groq", OBJECT)
        usage = _of_kind(root, "usage", OBJECT) or (groq and _of_kind(groq.by_name, "usage", OBJECT))
        if usage is not None:
            flags |= R_USAGE
            self.usage_start, self.usage_end = _span(usage)
        if _of_kind(root, "data", ARRAY) is not None:
            flags |= R_DATA
        choices = _of_kind(root, "choices", ARRAY)
        if choices is not None:
            flags |= R_CHOICES
            self.n_choices = len(choices.items)
            for choice in choices.items:
                flags |= self._read_choice(choice.by_name)
        return flags

    def _read_choice(self, choice: dict[str, Node]) -> int:
        flags = R_CONTENT if _full_string(choice.get("text")) else 0
        for name in ("delta", "message"):
            node = choice.get(name)
            delta = {} if node is None else node.by_name
            if _has_content(delta):
                flags |= R_CONTENT
            if _full_string(delta.get("role")):
                flags |= R_ROLE
        finish = choice.get("finish_reason")
        if _full_string(finish):
            flags |= R_FINISH
            self.n_finish += 1
            self.finish_start, self.finish_end = _span(finish)
        return flags
