"""Header values of providers that mean something to us: when to come back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime

Block = bytes
"""Header fields as they stand on the wire: ``Name: value`` and CRLF, each. Made once where they repeat."""

MAX_RETRY_AFTER_S = 300.0
"""A provider that asks for more is asked again after this (Q11)."""
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def block(headers: Mapping[str, str]) -> Block:
    """The fields as a block. Names and values must be free of control characters: ours are."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")


def fields(text: Block) -> list[tuple[str, str]]:
    """The fields of a block, for listeners that want them one by one."""
    lines = text.decode("latin-1").split("\r\n")
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]


def retry_after_s(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Seconds to wait from ``retry-after-ms`` or ``retry-after`` (RFC 9110 10.2.3: seconds or a date).

    ``wall_now`` is Unix time, needed only for dates. A date in the past is 0; garbage and negative numbers are
    ``None``; everything is capped at ``MAX_RETRY_AFTER_S``.
    """
    value = headers.get("retry-after-ms")
    if value is not None:
        seconds = _number(value)
        if seconds:  # Azure sends "0" here while retry-after says 1
            return min(seconds / 1000, MAX_RETRY_AFTER_S)
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return min(seconds, MAX_RETRY_AFTER_S)
    return _date(value, wall_now)


def duration_s(text: str) -> float | None:
    """Seconds of OpenAI's and Groq's duration form: ``6ms``, ``1m2.3s``, ``2m59.56s``; ``None`` for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if not text.strip() or match is None:
        return None
    days, hours, minutes, seconds, millis = (float(g) if g else 0.0 for g in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds + millis / 1000


def _number(value: str) -> float | None:
    value = value.strip()
    if not re.fullmatch(r"\d{1,300}(?:\.\d{1,300})?", value, re.ASCII):
        return None
    return float(value)


def _date(value: str, wall_now: float) -> float | None:
    try:
        then = parsedate_to_datetime(value.strip())
    except (ValueError, TypeError, OverflowError):
        return None
    if then.tzinfo is None:  # asctime form or "-0000": RFC 9110 5.6.7 wants GMT, so read it as that
        then = then.replace(tzinfo=UTC)
    return min(max(then.timestamp() - wall_now, 0.0), MAX_RETRY_AFTER_S)
