"""Without the compiled ``_fast`` (``SLIPSTREAM_PURE=1``, or it is not there): of a module that is there compiled and as
it was written, the second is imported.

``_fast`` has twins and chooses for itself; the modules with a ``.pxd`` beside them (setup.py) are their own twins.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType


class PlainFinder:
    """Finds ``slipstream``'s modules by their source only, but for those of ``_fast``."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith("slipstream.") or name.startswith("slipstream._fast"):
            return None
        for folder in path or ():
            spec = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)
            if spec is not None:
                return spec
        return None
