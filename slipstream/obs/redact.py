"""Secrets are taken out of every text that leaves: the configured ones by value, unknown ones by their form (R84,
Q36).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..types import Secret

MASK = "***"
MIN_SECRET_CHARS = 6
"""Shorter configured values are not searched for: they would mask ordinary words."""
_JSON_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\t": "\\t"})
_FORMS = re.compile(
    r"""
      \b(?:sk|pk|rk|xai|gsk|hf|r8)[-_][A-Za-z0-9_\-*.]{6,}                # provider keys (whole or starred)
    | \b(?:sess|api|key)[-_](?=[A-Za-z_\-.]*[0-9*])[A-Za-z0-9_\-*.]{6,}   # the same, but not api_version, key_not_found
    | \bAIza[0-9A-Za-z_\-]{20,}                                           # Google API keys
    | \b(?:AKIA|ASIA)[0-9A-Z]{12,}                                        # AWS access key ids
    | \beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?   # JWTs
    | (?i:\bbearer\s+)[A-Za-z0-9._~+/\-]{6,}=*
    """,
    re.VERBOSE,
)


class Redactor:
    """Masks the secrets of one snapshot, and whatever looks like a key."""

    __slots__ = ("_values",)

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        values = {s.reveal() for s in secrets if len(s.reveal()) >= MIN_SECRET_CHARS}
        values |= {v.translate(_JSON_ESCAPES) for v in values}  # as they are written inside JSON
        self._values = re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True)))) if values else None

    def __call__(self, text: str) -> str:
        if self._values is not None:
            text = self._values.sub(MASK, text)
        return _FORMS.sub(MASK, text)

    def body(self, data: bytes) -> bytes:
        """The same for bytes of UTF-8 text."""
        text = data.decode("utf-8", "replace")
        masked = self(text)
        return data if masked == text else masked.encode()
