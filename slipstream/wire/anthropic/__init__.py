"""Anthropic's Messages API, both ways: the provider's side (``request*``, ``reply``, ``reader``, ``traits``) and the
client's side (``face_*``, ``tap``, ``errors``). Both use ``stop``, ``usage`` and ``failures``."""
