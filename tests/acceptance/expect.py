"""Stand-in for the ``expect`` module that ``accept.py`` imports and that is not handed out with it.

Four names, written from what ``accept.py`` does with them: ``sse`` splits an event stream after the WHATWG rules (a
last event without its blank line counts) into ``[(event, data)]`` and a list of stray lines, ``jargs`` reads tool
arguments, ``GEM_FIN`` names Gemini's numeric finish reasons, ``FIN`` is imported there and not used.
"""

from __future__ import annotations

import json
from typing import Any

FIN: dict[str, str] = {}
GEM_FIN = {
    0: "FINISH_REASON_UNSPECIFIED",
    1: "STOP",
    2: "MAX_TOKENS",
    3: "SAFETY",
    4: "RECITATION",
    5: "OTHER",
    6: "BLOCKLIST",
    7: "PROHIBITED_CONTENT",
    8: "SPII",
    9: "MALFORMED_FUNCTION_CALL",
    10: "IMAGE_SAFETY",
    11: "LANGUAGE",
    12: "UNEXPECTED_TOOL_CALL",
}
_FIELDS = {"data", "event", "id", "retry"}


def jargs(value: Any) -> Any:
    """Tool arguments as a value: nothing is ``{}``, text that is not JSON is ``{"_raw": text}``."""
    if value is None or value == "":
        return {}
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"_raw": value}


def sse(raw: bytes) -> tuple[list[tuple[str, str]], list[str]]:
    """``([(event, data)], stray lines)``. Raises ``UnicodeDecodeError``."""
    text = raw.decode("utf-8").removeprefix("\ufeff")
    events: list[tuple[str, str]] = []
    stray: list[str] = []
    event, data = "", []
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if not line:
            if data:
                events.append((event or "message", "\n".join(data)))
            event, data = "", []
            continue
        if line.startswith(":"):
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name not in _FIELDS:
            stray.append(line)
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
    return events, stray
