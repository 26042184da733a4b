"""Logging: one JSON object a line on standard error, nothing else (R45: never on the request's way).

Loggers are children of ``slipstream``. Fields are passed as ``extra={"fields": {...}}``. Values are shortened and
control bytes escaped (JSON does that), so a client cannot forge a line (Q40). Malformed requests are rate-limited
(Q32).
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from ..wire.codec import dumps

MAX_VALUE_CHARS = 400
LEVELS = ("debug", "info", "warning", "error")


class JsonFormatter(logging.Formatter):
    """``{"ts", "level", "logger", "msg", ...fields}``; ``redact`` is applied to every text."""

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        super().__init__()
        self.redact = redact or (lambda text: text)

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": self.redact(record.getMessage())[: 4 * MAX_VALUE_CHARS],
        }
        for key, value in getattr(record, "fields", {}).items():
            line[key] = self.redact(value)[:MAX_VALUE_CHARS] if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = self.redact(self.formatException(record.exc_info))
        return dumps(line).decode()


def setup(level: str, redact: Callable[[str], str] | None = None) -> None:
    """Send the package's log to standard error. Third-party loggers stay at WARNING; aiohttp's are silenced below that
    because they print raw header bytes of malformed requests (reliability.md 2.1)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("slipstream").setLevel(level.upper())
    for name in ("aiohttp.server", "aiohttp.web", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


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
