"""How long a client wants to wait, as it says in ``x-request-timeout`` (Q18).

Owns the header's spelling. A wish can only shorten the route's own limit, never extend it. One that makes no sense is
as if it was not there: a request must not fail for a header that we have invented.
"""

from __future__ import annotations

import re

MIN_S = 0.001
MAX_S = 86_400.0
_VALUE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)?", re.ASCII)


TIMEOUT_FIELD = "x-request-timeout"


def parse_timeout_header(value: str) -> float | None:
    """Seconds of ``30``, ``2.5``, ``30s`` or ``500ms``; ``None`` for anything else, and outside of 1 ms to a day.

    0 is outside: some clients write it for "no limit", and nobody means that the request is to fail at once.
    """
    match = _VALUE.fullmatch(value.strip(" \t"))
    if match is None:
        return None
    seconds = float(match[1])
    if match[2] == "ms":
        seconds /= 1000.0
    return seconds if MIN_S <= seconds <= MAX_S else None
