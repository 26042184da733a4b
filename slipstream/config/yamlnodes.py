"""YAML text -> a tree of nodes that know their lines, and nothing more.

PyYAML gives the events; the tree is built here and not by ``yaml.compose``, because only so can depth, number of nodes
and aliases be bounded while it grows (a "billion laughs" file is a few hundred bytes), and because plain scalars are
not yet given a type: ``2024-10-21`` is a date to PyYAML and a version to us, and the reader knows what a place expects.

``${VAR}`` must work unquoted, also inside ``{...}``, where YAML would take its braces for a mapping (system C's file is
written so). So before parsing, each reference is shifted, character by character, into a private corner of Unicode and
back afterwards: positions stay exact and a default may hold commas and colons.

The rule that must not be broken: a syntax problem never repeats text of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

from ..errors import ConfigError

MAX_FILE_BYTES = 4 << 20
MAX_NODES = 200_000
"""With every alias counted as often as it is used. A provider is about 30 nodes."""
MAX_DEPTH = 32

_SHIFT = 0x10FE00
_SHIFTED = range(_SHIFT + 0x20, _SHIFT + 0x7F)
_HIDE = {code - _SHIFT: chr(code) for code in _SHIFTED}
_SHOW = {code: chr(code - _SHIFT) for code in _SHIFTED}
# No quotes, backslashes or line ends: those keep the meaning that YAML gives them.
_REFERENCE = re.compile(r"\$?\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[\x20-\x21\x23-\x26\x28-\x5b\x5d-\x7c\x7e]*)?\}")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010fdff]")

_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)\Z")
_NUMBER = re.compile(
    r"[-+]?(?:0x[0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)?)\Z"
)
_SPECIAL = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")


class Node:
    """``size`` counts the node and all below it, ``tagged`` says that somebody wrote ``!something``."""

    __slots__ = ("line", "size", "tagged")
    what = "nothing"

    def __init__(self, line: int, tagged: bool) -> None:
        self.line = line
        self.tagged = tagged
        self.size = 1


class Scalar(Node):
    __slots__ = ("kind", "text")

    def __init__(self, line: int, tagged: bool, text: str, plain: bool) -> None:
        super().__init__(line, tagged)
        self.text = text
        self.kind = _kind(text) if plain else "text"

    @property
    def what(self) -> str:  # type: ignore[override]
        """For people: what this looks like."""
        return {"null": "nothing", "bool": "a switch (true/false)", "number": "a number"}.get(self.kind, "text")


class Sequence(Node):
    __slots__ = ("items",)
    what = "a list"

    def __init__(self, line: int, tagged: bool) -> None:
        super().__init__(line, tagged)
        self.items: list[Node] = []


class Mapping(Node):
    """``pairs`` as written, duplicates and all; merged keys (``<<``) come last."""

    __slots__ = ("pairs",)
    what = "a mapping"

    def __init__(self, line: int, tagged: bool) -> None:
        super().__init__(line, tagged)
        self.pairs: list[tuple[Node, Node]] = []


def _kind(text: str) -> str:
    if text in _NULL:
        return "null"
    if _BOOL.match(text):
        return "bool"
    return "number" if _NUMBER.match(text) or _SPECIAL.match(text) else "text"


def decode(data: bytes, file: str) -> str:
    """The file's text, or a ConfigError that says where it is not text."""
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError([f"{file}: is larger than {MAX_FILE_BYTES >> 20} MiB; is it the right file?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{file}:{line}: is not UTF-8 text; save the file as UTF-8"]) from None


def parse(text: str, file: str) -> Node | None:
    """The root node, ``None`` for an empty file. Raises ConfigError with the one syntax problem found."""
    import yaml

    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        start = text.rfind("\n", 0, bad.start())
        where = f"{file}:{text.count(chr(10), 0, bad.start()) + 1}:{bad.start() - start}"
        raise ConfigError([f"{where}: character U+{ord(bad.group()):04X} is not allowed; remove it"])
    hidden = _REFERENCE.sub(lambda match: match.group().translate(_HIDE), text)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Composer(file, yaml.parse(hidden, Loader=loader)).document()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(error, file)]) from None
    except (yaml.YAMLError, UnicodeError, RecursionError, ValueError):
        raise ConfigError([f"{file}: is not valid YAML"]) from None


def _syntax_problem(error: Any, file: str) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark is not None else file
    # PyYAML quotes tokens ('<block end>') and single characters, but also anchors' names: only the first two pass.
    said = re.sub(r"'(?!<)[^']{2,}'|\"[^\"]{2,}\"", "something", str(error.problem or "cannot be read"))
    said = "".join(c for c in said if c.isascii() and c.isprintable())
    hint = "check indentation, quotes and brackets here and on the line above"
    if "\\t" in said or "tab" in said:
        hint = "YAML is indented with spaces, not tabs"
    return f"{where}: YAML syntax: {said}; {hint}"


class _Composer:
    """Events to nodes. Anchors are known only when their node is complete, so nothing can contain itself."""

    def __init__(self, file: str, events: Iterator[Any]) -> None:
        self.file = file
        self.events = events
        self.anchors: dict[str, Node] = {}
        self.count = 0

    def document(self) -> Node | None:
        root: Node | None = None
        for event in self.events:
            name = type(event).__name__
            if name == "DocumentStartEvent":
                if root is not None:
                    self.fail(event, "a second document begins; one file is one document, remove the '---'")
                root = self.node(next(self.events), 0)
        if isinstance(root, Scalar) and root.kind == "null":
            return None
        return root

    def fail(self, event: Any, text: str) -> NoReturn:
        raise ConfigError([f"{self.file}:{event.start_mark.line + 1}: {text}"])

    def node(self, event: Any, depth: int) -> Node:
        if depth > MAX_DEPTH:
            self.fail(event, f"is nested deeper than {MAX_DEPTH} levels; check the brackets")
        kind = type(event).__name__
        if kind == "AliasEvent":
            found = self.anchors.get(event.anchor)
            if found is None:
                self.fail(event, "an alias (*name) must come after the complete node that it names; put text in quotes")
            self.add(event, found.size)
            return found
        self.add(event, 1)
        node: Node
        line = event.start_mark.line + 1
        if kind == "ScalarEvent":
            node = Scalar(line, event.tag is not None, event.value.translate(_SHOW), event.implicit[0])
        elif kind == "SequenceStartEvent":
            node = self.sequence(Sequence(line, event.tag is not None), depth)
        else:
            node = self.mapping(Mapping(line, event.tag is not None), depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def add(self, event: Any, size: int) -> None:
        self.count += size
        if self.count > MAX_NODES:
            self.fail(event, f"is larger than {MAX_NODES} values once its aliases are followed; write less")

    def sequence(self, node: Sequence, depth: int) -> Node:
        for event in self.events:
            if type(event).__name__ == "SequenceEndEvent":
                break
            child = self.node(event, depth + 1)
            node.items.append(child)
            node.size += child.size
        return node

    def mapping(self, node: Mapping, depth: int) -> Node:
        merges: list[tuple[Any, Node]] = []
        for event in self.events:
            if type(event).__name__ == "MappingEndEvent":
                break
            key = self.node(event, depth + 1)
            value = self.node(next(self.events), depth + 1)
            node.size += key.size + value.size
            if isinstance(key, Scalar) and key.text == "<<" and event.implicit[0]:
                merges.append((event, value))
            else:
                node.pairs.append((key, value))
        for event, source in merges:
            self.merge(event, node, source)
        return node

    def merge(self, event: Any, node: Mapping, source: Node) -> None:
        """``<<: *other``: the keys of ``other`` that are not written here (YAML 1.1 merge key)."""
        have = {key.text for key, _ in node.pairs if isinstance(key, Scalar)}
        for mapping in source.items if isinstance(source, Sequence) else [source]:
            if not isinstance(mapping, Mapping):
                self.fail(event, "'<<' merges a mapping (<<: *name) or a list of mappings")
            for key, value in mapping.pairs:
                if isinstance(key, Scalar) and key.text not in have:
                    have.add(key.text)
                    node.pairs.append((key, value))
                    node.size += key.size + value.size
