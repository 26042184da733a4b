"""Logging: one JSON object a line on standard error, nothing else (R45: never on the request's way, ``writer``).

Loggers are children of ``slipstream``. Fields are passed as ``extra={"fields": {...}}``. Values are shortened and
control characters escaped, so a client cannot forge a line (Q40). Malformed requests are rate-limited
(Q32).
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping

from ..wire.codec import dumps
from .writer import QueueHandler

MAX_VALUE_CHARS = 400
MAX_TRACEBACK_CHARS = 16_000


# DEL, C1 controls, line separators and direction marks: JSON allows them raw, terminals and line readers obey them.
_CONTROLS = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class JsonFormatter(logging.Formatter):
    """``{"ts", "level", "logger", "msg", ...fields}``; ``redact`` is applied to every text. Never raises for a value:
    ``logging`` would print the record raw."""

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        super().__init__()
        self.redact = redact or (lambda text: text)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": self._text(record.getMessage(), 4 * MAX_VALUE_CHARS),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = self._text(self.formatException(record.exc_info), MAX_TRACEBACK_CHARS)
        for key, value in getattr(record, "fields", {}).items():
            line.setdefault(key, self._value(value))
        return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", dumps(line).decode())

    def _text(self, text: str, limit: int = MAX_VALUE_CHARS) -> str:
        """Redacted first, then cut: a secret at the cut must not lose the part it is known by."""
        return self.redact(text)[:limit].encode("utf-8", "backslashreplace").decode()

    def _value(self, value: object) -> object:
        """A form of ``value`` that JSON has."""
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if value.bit_length() < 64 else str(value)
        if isinstance(value, Mapping):
            return {self._text(str(key)): self._value(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._value(inner) for inner in value]
        return self._text(str(value))


def setup(level: str, redact: Callable[[str], str] | None = None, dropped: Callable[[int], None] | None = None) -> None:
    """Send the package's log to standard error; ``dropped`` is told how many lines could not be written. Third-party
    loggers stay at WARNING; aiohttp's are silenced below that because they print raw header bytes of malformed requests
    (reliability.md 2.1)."""
    handler = _handler(dropped)
    handler.setFormatter(JsonFormatter(redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("slipstream").setLevel(level.upper())
    for name in ("aiohttp.server", "aiohttp.web", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _handler(dropped: Callable[[int], None] | None) -> logging.Handler:
    try:
        return QueueHandler(sys.stderr.fileno(), dropped)
    except (AttributeError, OSError, ValueError):  # there is none, or somebody's stand-in without a file
        return logging.StreamHandler(sys.stderr)


class Throttle:
    """Lets ``per_second`` events through and counts the rest. ``now`` is monotonic seconds."""

    __slots__ = ("_left", "_second", "per_second", "suppressed")

    def __init__(self, per_second: int = 10) -> None:
        self.per_second = per_second
        self.suppressed = 0
        self._second = -1
        self._left = 0

    def admit(self, now: float) -> bool:
        second = int(now)
        if second != self._second:
            self._second, self._left = second, self.per_second
        if self._left:
            self._left -= 1
            return True
        self.suppressed += 1
        return False
