"""Slipstream: an LLM gateway. The map of the package is in docs/architecture.md."""

import sys

from ._fast import COMPILED
from ._version import __version__

if not COMPILED:  # then nothing may be that is built on it
    from ._plain import PlainFinder

    sys.meta_path.insert(0, PlainFinder)

__all__ = ["__version__"]
