"""Everything that is known about one request while it lives. One slotted object; each field is written by one phase."""

from __future__ import annotations

from typing import Protocol

from ..config.snapshot import Target
from ..errors import GatewayError
from ..obs.metrics import CLIENT_GONE_STATUS
from ..types import Endpoint
from ..wire.request import Call
from ..wire.usage import NO_USAGE, Usage
from .pulse import Pulse
from .translate import Tap

__all__ = ["CLIENT_GONE_STATUS", "RequestContext"]


class Race(Protocol):
    """See ``engine.race``."""

    winner: RequestContext | None

    def claim(self, ctx: RequestContext) -> None: ...


class RequestContext:
    """Times are seconds of the runtime's monotonic clock."""

    __slots__ = (
        "asked_s", "attempts", "call", "committed", "completion_events", "dropped", "endpoint", "error",
        "first_content_at", "header_s", "key_name", "label", "model_label", "probe", "pulse", "race", "request_id",
        "status", "t_attempt", "t_end", "t_read", "t_start", "tap", "target", "trail", "upstream_s", "usage", "waits",
    )  # fmt: skip

    def __init__(
        self, endpoint: Endpoint, label: str, request_id: str, key_name: str, t_start: float, t_read: float
    ) -> None:
        # accept, authenticate
        self.endpoint = endpoint
        self.label = label
        """Its metric label."""
        self.request_id = request_id
        self.key_name = key_name
        self.t_start = t_start
        self.t_read = t_read
        """When the request body was whole."""
        # peek
        self.call: Call | None = None
        self.model_label = "none"
        self.asked_s: float | None = None
        """The client's own deadline, from ``t_start``."""
        # attempts
        self.attempts = 0
        self.target: Target | None = None
        self.waits = False
        """Between two attempts: nobody is being asked."""
        self.probe = False
        """The breaker of the target waits for the end of this attempt."""
        self.trail: list[str] = []
        """``provider:failure`` of every failed attempt (R56)."""
        self.upstream_s = 0.0
        """Time during which we waited for the upstream (R38: overhead is the rest)."""
        self.t_attempt = 0.0
        """When the last attempt began."""
        self.header_s = 0.0
        """Seconds to the header block of the last attempt."""
        self.dropped: list[str] = []
        """What the last attempt's provider could not be told (R65)."""
        self.race: Race | None = None
        """Who has content first, where two attempts run side by side."""
        # relay
        self.pulse: Pulse | None = None
        """The heartbeat of a stream."""
        self.tap: Tap | None = None
        """What reads the stream and knows how an error is told in it."""
        self.committed = False
        """Content went to the client: nobody else is asked any more (R9, R12)."""
        self.first_content_at = 0.0
        self.completion_events = 0
        self.usage: Usage = NO_USAGE
        # respond, settle
        self.status = 0
        self.error: GatewayError | None = None
        self.t_end = 0.0

    def beside(self) -> RequestContext:
        """A context for an attempt that runs beside others of the same request."""
        other = RequestContext(self.endpoint, self.label, self.request_id, self.key_name, self.t_start, self.t_read)
        other.adopt(self)
        return other

    def adopt(self, other: RequestContext) -> None:
        """Go on with all that ``other`` knows."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))
