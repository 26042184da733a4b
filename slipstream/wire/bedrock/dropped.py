"""The list of what a request says and Converse cannot (R65).

The rule that must not be broken: the list becomes a response header, so no text of the client gets into it unless it
looks like the name of a field.
"""

from __future__ import annotations

import re

MAX_NAMES = 32
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class Dropped:
    """Names of fields, each once, in the order in which they were found."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """``name`` is a text of ours."""
        if name not in self.names and len(self.names) < MAX_NAMES:
            self.names.append(name)

    def add_field(self, name: str) -> None:
        """``name`` is the client's."""
        self.add(name if _PLAIN.fullmatch(name) else "(other)")
