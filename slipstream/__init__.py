"""Slipstream: an LLM gateway. The map of the package is in docs/architecture.md."""

import os
import sys

from ._version import __version__

if os.environ.get("SLIPSTREAM_PURE") == "1":
    from ._plain import PlainFinder

    sys.meta_path.insert(0, PlainFinder)

__all__ = ["__version__"]
