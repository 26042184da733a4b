"""What a Gemini model can do, read from its name: nothing else is known before it is asked.

Owns the one table of generations. A name that says nothing is taken for a model of today: it is then asked with today's
fields, and a provider that knows better answers with a 400 that says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_GENERATION = re.compile(r"(gemini|gemma|learnlm)-(\d{1,3})(?:\.(\d{1,3}))?(?![\d.]*b)")
_FIRST = frozenset({"gemini-pro", "gemini-pro-vision", "gemini-ultra"})
_TODAY = (3, 1)


class Traits(NamedTuple):
    """``generation`` is ``(major, minor)``."""

    generation: tuple[int, int]
    pro: bool = False
    lite: bool = False
    gemma: bool = False

    @property
    def thinks(self) -> bool:
        """Takes ``thinkingConfig``; earlier models refuse it (API docs, "Gemini thinking")."""
        return self.generation >= (2, 5) and not (self.gemma and self.generation < (4, 0))

    @property
    def levels(self) -> bool:
        """Takes ``thinkingLevel`` instead of a budget (PROTOCOLS.md 1.2)."""
        return self.generation >= (3, 0)

    @property
    def json_schema(self) -> bool:
        """Takes ``responseJsonSchema`` (PROTOCOLS.md 2.4: 2.5+); before, only the OpenAPI subset."""
        return self.generation >= (2, 5)

    @property
    def json_parameters(self) -> bool:
        """Takes ``parametersJsonSchema`` in tools; before, only the OpenAPI subset."""
        return self.generation >= (2, 0)

    @property
    def call_ids(self) -> bool:
        """Gives function calls ids, wants them back, and wants their signatures (PROTOCOLS.md 2.4: 3+ only)."""
        return self.generation >= (3, 0) and not self.gemma

    @property
    def no_system(self) -> bool:
        """Gemma 1 to 3 refuse ``systemInstruction`` (400, "Developer instruction is not enabled")."""
        return self.gemma and self.generation < (4, 0)


@lru_cache(maxsize=256)
def traits(model: str) -> Traits:
    """The traits of the model with this upstream name, whatever stands before its last slash."""
    name = model.rpartition("/")[2].lower()
    found = _GENERATION.search(name)
    generation = (1, 0) if name in _FIRST else _TODAY
    if found is not None:
        generation = (int(found[2]), int(found[3] or 0))
    return Traits(generation, "pro" in name.split("-"), "lite" in name, name.startswith("gemma"))
