"""The books of a mock: what it really did, for comparison with what a gateway says it did.

Tokens are counted at the moment they were handed to the client's connection, so the ledger is right for cut and
abandoned streams too. A whole body counts when all of it was written.

The rule that must not be broken: no credential is kept. Keys are known by the first digits of a hash; of the headers,
only values that cannot be credentials are kept.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from ..wire.codec import dumps

RECORDS = 50
MAX_NAMES = 100
"""Models and keys counted by name; the rest is counted as ``OTHER``."""

OTHER = "(other)"
MAX_LOGGED_BODY_BYTES = 65_536
MASK = "***"
_SHOWN = frozenset({"content-type", "accept", "user-agent"})
_SECRET_PARTS = ("auth", "key", "token", "secret", "cookie", "credential", "signature", "password")


def fingerprint(authorization: str | None) -> str:
    """A name for a credential that does not give it away."""
    return "none" if authorization is None else hashlib.sha256(authorization.encode()).hexdigest()[:12]


def visible_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """All header names; values only of ``x-…`` headers that hold no credential and of a few harmless ones."""
    shown = {}
    for name, value in headers:
        lower = name.lower()
        open_ = lower in _SHOWN or (lower.startswith("x-") and not any(part in lower for part in _SECRET_PARTS))
        shown[lower] = value if open_ else MASK
    return shown


class Entry:
    """One request. ``status`` 0: no answer (yet). ``hung_up``: the mock broke the connection itself, as asked."""

    __slots__ = (
        "completion_tokens",
        "disconnected",
        "endpoint",
        "fault",
        "hung_up",
        "id",
        "key",
        "model",
        "ms",
        "prompt_tokens",
        "started",
        "status",
        "stream",
    )

    def __init__(self, id: str, endpoint: str, model: str, stream: bool, key: str, started: float) -> None:
        self.id = id
        self.endpoint = endpoint
        self.model = model
        self.stream = stream
        self.key = key
        self.started = started
        self.status = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.disconnected = False
        self.hung_up = False
        self.fault: str | None = None
        self.ms = 0.0

    def as_dict(self) -> dict[str, Any]:
        hidden = ("key", "started", "hung_up")
        return {name: getattr(self, name) for name in self.__slots__ if name not in hidden}


class Ledger:
    """Totals since the start or the last reset. A request that began before a reset no longer counts, except in
    ``open``."""

    def __init__(self, price_per_1k_tokens_usd: float | None = None) -> None:
        self._price = price_per_1k_tokens_usd
        self._open: set[Entry] = set()
        self.reset()

    def reset(self) -> None:
        self._counted: set[Entry] = set()
        self.requests = 0
        self.streams = 0
        self.disconnects = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.by_status: dict[int, int] = {}
        self.by_endpoint: dict[str, int] = {}
        self.by_model: dict[str, int] = {}
        self.by_key: dict[str, int] = {}
        self.last: deque[Entry] = deque(maxlen=RECORDS)
        self.last_requests: deque[dict[str, Any]] = deque(maxlen=RECORDS)

    @property
    def open(self) -> int:
        """Requests in flight now."""
        return len(self._open)

    def begin(self, entry: Entry, prompt_tokens: int) -> None:
        self._open.add(entry)
        self._counted.add(entry)
        self.requests += 1
        self.streams += entry.stream
        self.prompt_tokens += prompt_tokens
        entry.prompt_tokens = prompt_tokens
        _count(self.by_endpoint, entry.endpoint)
        _count(self.by_model, entry.model)
        _count(self.by_key, entry.key)

    def wrote(self, entry: Entry, tokens: int) -> None:
        """These completion tokens are on their way to the client."""
        entry.completion_tokens += tokens
        if entry in self._counted:
            self.completion_tokens += tokens

    def finish(self, entry: Entry, now: float, disconnected: bool) -> None:
        """``disconnected``: the client went away before the answer was complete."""
        entry.ms = round((now - entry.started) * 1000, 3)
        entry.disconnected = disconnected
        self._open.discard(entry)
        if entry not in self._counted:
            return
        self._counted.discard(entry)
        self.disconnects += disconnected
        self.by_status[entry.status] = self.by_status.get(entry.status, 0) + 1
        self.last.append(entry)

    def saw(self, method: str, path: str, headers: Mapping[str, str], raw_bytes: int, body: Any) -> None:
        """Remember a request for ``/mock/requests``; of a very large one only the size."""
        kept = body if raw_bytes <= MAX_LOGGED_BODY_BYTES else None
        request = {"method": method, "path": path, "headers": visible_headers(headers.items())}
        self.last_requests.append(request | {"body_bytes": raw_bytes, "body": kept})

    def requests_page(self) -> bytes:
        """What ``GET /mock/requests`` answers: the last requests, oldest first."""
        encoded = []
        for request in self.last_requests:
            try:
                encoded.append(dumps(request))
            except TypeError:  # nested deeper than the encoder goes
                encoded.append(dumps(request | {"body": None}))
        return b'{"requests":[' + b",".join(encoded) + b"]}"

    def snapshot(self) -> dict[str, Any]:
        """What ``GET /mock/ledger`` answers."""
        totals: dict[str, Any] = {
            "requests": self.requests,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "by_endpoint": dict(self.by_endpoint),
            "by_model": dict(self.by_model),
            "by_key": dict(self.by_key),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "streams": self.streams,
            "disconnects": self.disconnects,
            "open": self.open,
        }
        if self._price is not None:
            totals["cost_usd"] = (self.prompt_tokens + self.completion_tokens) * self._price / 1000
        return totals | {"last": [entry.as_dict() for entry in self.last]}


def _count(table: dict[str, int], name: str) -> None:
    if name not in table and len(table) >= MAX_NAMES:
        name = OTHER
    table[name] = table.get(name, 0) + 1
