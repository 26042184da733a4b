"""OpenAI's chat completions beside other dialects: as a spoke and as a face.

``request``, ``reply`` and ``reader`` are the spoke: a canonical request for a provider of the OpenAI family, and its
answers as canonical ones. ``writer`` is the face: canonical answers for a client that speaks chat completions. The
canonical shape is this dialect, so there is little to translate; what there is, is the family's quirks (``quirks``:
data per provider type; PROTOCOLS.md 2.1, 2.6-2.9).

The rule that must not be broken: where client and provider both speak this dialect nothing comes through here. Those
bytes are passed on as they are (``wire.openai_stream``).
"""
