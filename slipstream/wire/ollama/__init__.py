"""Ollama's own dialect, ``POST /api/chat`` and its kin (PROTOCOLS.md 2.7), as a spoke of the canonical shape.

The native API and not its OpenAI face under ``/v1``, because that face ignores ``num_ctx``, ``keep_alive`` and
``think``, repeats its ids and puts parallel tool calls under one index. ``request`` builds, ``reply`` reads whole
answers and holds what a whole answer and a line of a stream have in common, ``reader`` reads streams: NDJSON, one
object per line.
"""
