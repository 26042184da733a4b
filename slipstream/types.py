"""The vocabulary that every room shares: small closed sets and the secret string.

Owns no behaviour. Nothing here imports anything of ours, so every room may import it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

Clock = Callable[[], float]
"""Seconds of a monotonic clock. Time is always an argument, so tests can hold it still."""


NANOS = 1_000_000_000
"""Nanoseconds of a second: the shared table counts in them."""


class Endpoint(IntEnum):
    """The inbound endpoints of the data plane; the value indexes tables."""

    CHAT = 0
    COMPLETIONS = 1
    EMBEDDINGS = 2
    RESPONSES = 3
    MESSAGES = 4
    COUNT_TOKENS = 5
    INFER = 6

    @property
    def path(self) -> str:
        """The path on our own surface, which is that of whose dialect it speaks."""
        return _PATHS[self]

    @property
    def label(self) -> str:
        """The metric label (contracts C: ``endpoint``)."""
        return _PATHS[self]


_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/infer",
)


class FailureClass(IntEnum):
    """What went wrong in one attempt, as far as retry and fallback decisions care."""

    NONE = 0
    CONNECT = 1
    """Nothing was sent: DNS, refused, TLS, connect time-out."""
    TIMEOUT = 2
    """First byte, idle or total limit of ours, or the upstream's own 408/504."""
    TRANSPORT = 3
    """Reset or close after the request was sent."""
    RATE_LIMITED = 4
    OVERLOADED = 5
    """503, 529: come back later."""
    SERVER = 6
    """Any other 5xx."""
    MALFORMED = 7
    """A 2xx whose body is not what the dialect promises."""
    AUTH = 8
    """The upstream refused the gateway's credentials."""
    CLIENT_ERROR = 9
    """A 4xx that says something about the request, not about the target."""
    CLIENT_GONE = 10
    QUOTA = 11
    """Money or a plan ran out: coming back soon does not help, asking somebody else does."""
    NOT_FOUND = 12
    """The model or deployment does not exist there."""
    PERMISSION = 13
    """The credentials are good and do not allow this."""
    CONTEXT = 14
    """The prompt is longer than the model's window."""
    CONTENT_FILTER = 15
    """The provider refused the prompt for what is in it."""

    @property
    def label(self) -> str:
        """The metric label."""
        return _LABELS[self]


_LABELS = tuple(failure.name.lower() for failure in FailureClass)


class Secret:
    """A string that never shows itself: ``repr``, ``str`` and formatting are masked.

    ``reveal()`` is the only way to the value, so a search for it lists every place that touches one.
    Equality compares values (configuration diffs need it); hashing does too.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret is not pickled")
