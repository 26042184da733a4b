"""Slipstream: an LLM gateway. The map of the package is in docs/architecture.md."""

from ._version import __version__

__all__ = ["__version__"]
