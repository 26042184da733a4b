"""The node tree against the Structs: every fault is found in one pass, each with its line and path.

``msgspec.convert`` stops at the first fault and knows no lines, so the tree is walked here, by the types that
``msgspec.inspect`` gives. What is wrong is reported and left out; the rest goes on to ``checks`` (which looks at what
belongs together) and, if nobody complained, to ``msgspec.convert``, which has the last word.

The rule that must not be broken: no report repeats a value that is a Secret or came from a variable, and no report
repeats an unknown key that is not a plain name (``{api_key:sk-...}`` is one long key to YAML).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping as MappingABC
from typing import Any

import msgspec.inspect as mi

from ..types import Secret
from ..wire.codec import ascii_string
from .expand import expand, has_reference, is_whole
from .rules import nearest
from .yamlnodes import Mapping, Node, Scalar, Sequence

Path = tuple[str | int, ...]

INVALID = object()
MAX_PROBLEMS = 100
"""What is shown; a file with more faults than this is some other file."""

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}\Z")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)\Z")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?\Z")
_TRUE = frozenset(("true", "yes", "on"))
_FALSE = frozenset(("false", "no", "off"))
_HIDDEN = "<key>"


def quote(text: str) -> str:
    """``'text'`` on one line and without control characters."""
    return f"'{ascii_string(text[:80])[1:-1]}'"


def show_path(path: Path) -> str:
    """``providers[0].model_mapping["a/b"]``."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        elif _PLAIN_NAME.match(part) or part == _HIDDEN:
            out += f".{part}" if out else part
        else:
            out += f"[{ascii_string(part[:80])}]"
    return out or "the file"


class Walk:
    """One reading of one file. ``lines`` has every path that was written, good or bad; ``expanded`` those with ``${}``;
    ``raw`` the text of list items and free keys as written, so that checks know what a faulty one was meant to be.
    """

    def __init__(self, file: str, env: MappingABC[str, str]) -> None:
        self.file = file
        self.env = env
        self.lines: dict[Path, int] = {}
        self.expanded: set[Path] = set()
        self.faults: dict[Path, int] = {}
        self.raw: dict[Path, str] = {}
        self._found: list[tuple[int, int, str]] = []

    # -- reporting ---------------------------------------------------------------------------------------------------

    def report(self, path: Path, text: str, line: int | None = None) -> None:
        """A problem at ``path``; without a line, the nearest one that is written."""
        if line is None:
            at = path
            while at and at not in self.lines:
                at = at[:-1]
            line = self.lines.get(at, 1)
        self.faults[path] = line
        self._found.append((line, len(self._found), f"{self.file}:{line}: {show_path(path)}: {text}"))

    def problems(self) -> list[str]:
        """All of them, in the order of the file."""
        found = [text for _, _, text in sorted(self._found)]
        if len(found) > MAX_PROBLEMS:
            return [*found[:MAX_PROBLEMS], f"{self.file}: and {len(found) - MAX_PROBLEMS} more problems"]
        return found

    def clean(self, path: Path) -> bool:
        """Whether nothing was reported at or below ``path``."""
        return not any(fault[: len(path)] == path for fault in self.faults)

    # -- the walk ----------------------------------------------------------------------------------------------------

    def value(self, kind: mi.Type, node: Node, path: Path) -> Any:
        """The plain value at ``node`` as ``kind`` wants it, or INVALID after a report."""
        extra: dict[Any, Any] = {}
        while True:
            if isinstance(kind, mi.Metadata):
                extra |= kind.extra or {}
                kind = kind.type
            elif isinstance(kind, mi.UnionType):
                kind = self._choose(kind, node)
            else:
                break
        if node.tagged:
            self.report(path, "tags (!name) are not used here; remove it", node.line)
            return INVALID
        if isinstance(kind, mi.StructType):
            return self._struct(kind, node, path)
        if isinstance(kind, mi.DictType):
            return self._dict(kind, node, path)
        if isinstance(kind, mi.ListType):
            return self._list(kind, node, path)
        return self._scalar(kind, node, path, extra)

    @staticmethod
    def _choose(union: mi.UnionType, node: Node) -> mi.Type:
        """The member of a union that ``node`` looks like; its first one if none fits."""

        def bare(kind: mi.Type) -> mi.Type:
            return bare(kind.type) if isinstance(kind, mi.Metadata) else kind

        if isinstance(node, Mapping):
            wanted: tuple[type, ...] = (mi.StructType, mi.DictType)
        elif isinstance(node, Sequence):
            wanted = (mi.ListType,)
        elif isinstance(node, Scalar) and node.kind == "null":
            wanted = (mi.NoneType,)
        else:
            wanted = (mi.StrType, mi.IntType, mi.FloatType, mi.BoolType, mi.LiteralType, mi.CustomType)
        some = [kind for kind in union.types if not isinstance(kind, mi.NoneType)]
        return next((kind for kind in union.types if isinstance(bare(kind), wanted)), some[0])

    def _struct(self, kind: mi.StructType, node: Node, path: Path) -> Any:
        fields = {field.encode_name: field for field in kind.fields}
        if not isinstance(node, Mapping):
            self.report(path, f"must be a mapping with keys such as {', '.join(list(fields)[:4])}, not {node.what}")
            return INVALID
        tree: dict[str, Any] = {}
        for key, child in node.pairs:
            name = key.text if isinstance(key, Scalar) else ""
            if name not in fields:
                self._unknown(name, key, path, list(fields))
            elif self._first((*path, name), key):
                value = self.value(fields[name].type, child, (*path, name))
                if value is not INVALID:
                    tree[name] = value
        for name, field in fields.items():
            if field.required and (*path, name) not in self.lines:
                self.report((*path, name), "missing; it must be written", node.line)
        return tree

    def _unknown(self, name: str, key: Node, path: Path, known: list[str]) -> None:
        if _PLAIN_NAME.match(name):
            self.report((*path, name), f"unknown key{nearest(name, known)}", key.line)
            return
        hint = "is a space missing after ':'?" if ":" in name else f"known here: {', '.join(known)}"
        self.report((*path, _HIDDEN), f"unknown key that is not a plain name; {hint}", key.line)

    def _first(self, path: Path, key: Node) -> bool:
        """Notes the line of a key; a second one of the same name is a fault."""
        if path in self.lines:
            self.report(path, f"written twice (first on line {self.lines[path]}); remove one", key.line)
            return False
        self.lines[path] = key.line
        return True

    def _dict(self, kind: mi.DictType, node: Node, path: Path) -> Any:
        if not isinstance(node, Mapping):
            self.report(path, f"must be a mapping (name: value), not {node.what}")
            return INVALID
        tree: dict[str, Any] = {}
        for key, child in node.pairs:
            name = self._dict_key(kind.key_type, key, path)
            if name is None:
                continue
            # The path shows a key as it was written: never what a variable held.
            at = (*path, key.text if isinstance(key, Scalar) else _HIDDEN)
            if not self._first(at, key):
                continue
            if name in tree:
                self.report(at, "names the same as another key once its variable is filled in; remove one", key.line)
                continue
            value = self.value(kind.value_type, child, at)
            self.raw[at] = key.text if isinstance(key, Scalar) else ""
            tree[name] = None if value is INVALID else value  # the name counts, whatever its value
        return tree

    def _dict_key(self, kind: mi.Type, key: Node, path: Path) -> str | None:
        at = (*path, _HIDDEN)
        if not isinstance(key, Scalar) or key.tagged:
            self.report(at, "a key must be plain text", key.line)
            return None
        if key.kind != "text":
            self.raw[(*path, key.text)] = key.text
            self.report(
                (*path, key.text), f"YAML reads this key as {key.what}, not as a name; put it in quotes", key.line
            )
            return None
        text = self._expand(key, at)
        rule = (kind.extra or {}).get("rule") if isinstance(kind, mi.Metadata) else None
        fault = "is empty" if text == "" else rule(text) if rule is not None and text is not None else None
        if fault is not None:
            self.report((*path, key.text) if _PLAIN_NAME.match(key.text) else at, fault, key.line)
            return None
        return text

    def _list(self, kind: mi.ListType, node: Node, path: Path) -> Any:
        if not isinstance(node, Sequence):
            self.report(path, f"must be a list ([a, b] or lines that begin with '- '), not {node.what}")
            return INVALID
        if kind.min_length and len(node.items) < kind.min_length:
            self.report(path, "is empty; write at least one")
            return INVALID
        values = []
        for index, child in enumerate(node.items):
            at = (*path, index)
            self.lines[at] = child.line
            if isinstance(child, Scalar):
                self.raw[at] = child.text
            values.append(self.value(kind.item_type, child, at))
        # Invalid items keep their place, so that checks speak of the right index.
        return [None if value is INVALID else value for value in values]

    # -- scalars -----------------------------------------------------------------------------------------------------

    def _expand(self, node: Scalar, path: Path) -> str | None:
        """The text with its variables, or None after a report."""
        if not has_reference(node.text):
            return node.text
        self.expanded.add(path)
        text, faults = expand(node.text, self.env)
        for fault in faults:
            self.report(path, fault, node.line)
        return None if faults else text

    def _scalar(self, kind: mi.Type, node: Node, path: Path, extra: dict[Any, Any]) -> Any:
        wanted = _wanted(kind)
        if not isinstance(node, Scalar):
            self.report(path, f"must be {wanted}, not {node.what}")
            return INVALID
        if isinstance(kind, mi.NoneType):
            return None
        text = self._expand(node, path)
        if text is None:
            return INVALID
        free = path in self.expanded and is_whole(node.text)
        if isinstance(kind, (mi.StrType, mi.CustomType)):
            return self._text(kind, node, path, text, extra)
        if isinstance(kind, mi.LiteralType):
            return self._literal(kind, node, path, text)
        source = "the variable's value must be" if free else "must be"
        if not free and node.kind == "text":
            quoted = _convert(kind, text) is not None
            self.report(path, f"must be {wanted}, not text" + ("; remove the quotes" if quoted else ""))
            return INVALID
        value = _convert(kind, text)
        if value is None:
            if node.kind == "number" and not free:
                self.report(path, f"must be {wanted}, in plain decimal digits")
                return INVALID
            self.report(path, f"{source} {wanted}" + ("" if free else f", not {node.what}"))
            return INVALID
        fault = _out_of_range(kind, value)
        if fault is not None:
            self.report(path, fault)
            return INVALID
        return value

    def _text(self, kind: mi.Type, node: Scalar, path: Path, text: str, extra: dict[Any, Any]) -> Any:
        if node.kind != "text":
            fix = "write a value or remove the key" if node.kind == "null" else "put it in quotes"
            self.report(path, f"must be text, not {node.what}; {fix}")
            return INVALID
        if not text and not extra.get("empty_ok"):
            why = "the variable is empty; set it" if path in self.expanded else "write a value or remove the key"
            self.report(path, f"is empty; {why}")
            return INVALID
        rule = extra.get("rule")
        fault = rule(text) if rule is not None else None
        if fault is not None:
            self.report(path, fault)
            return INVALID
        return Secret(text) if isinstance(kind, mi.CustomType) else text

    def _literal(self, kind: mi.LiteralType, node: Scalar, path: Path, text: str) -> Any:
        if text in kind.values and node.kind == "text":
            return text
        known = [str(value) for value in kind.values]
        if path in self.expanded or not _PLAIN_NAME.match(text):
            self.report(path, f"must be one of {', '.join(known)}")
        else:
            self.report(path, f"{quote(text)} is not known{nearest(text, known)}")
        return INVALID


def _wanted(kind: mi.Type) -> str:
    if isinstance(kind, mi.IntType):
        return "a whole number"
    if isinstance(kind, mi.FloatType):
        return "a number"
    return "true or false" if isinstance(kind, mi.BoolType) else "text"


def _convert(kind: mi.Type, text: str) -> int | float | bool | None:
    text = text.strip()
    if isinstance(kind, mi.IntType):
        return int(text) if len(text) < 40 and _INT.match(text) else None
    if isinstance(kind, mi.FloatType):
        if len(text) < 40 and _FLOAT.match(text):
            number = float(text)
            return number if math.isfinite(number) else None
        return None
    lower = text.lower()
    return True if lower in _TRUE else False if lower in _FALSE else None


def _out_of_range(kind: mi.Type, value: float | bool) -> str | None:
    if not isinstance(kind, (mi.IntType, mi.FloatType)):
        return None
    low, above, high = kind.ge, kind.gt, kind.le
    if (low is None or value >= low) and (above is None or value > above) and (high is None or value <= high):
        return None
    if low is None:
        wanted = f"more than {above}" + (f" and at most {high}" if high is not None else "")
    else:
        wanted = f"between {low} and {high}" if high is not None else f"at least {low}"
    return f"is out of range; it must be {wanted}"
