"""Everything that is known about one request while it lives. One slotted object; each field is written by one phase."""

from __future__ import annotations

from typing import Protocol

import msgspec

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


class RequestContext(msgspec.Struct):
    """Times are seconds of the runtime's monotonic clock. A ``Struct`` because its defaults cost nothing to set."""

    # accept, authenticate
    endpoint: Endpoint
    label: str
    """Its metric label."""
    request_id: str
    key_name: str
    t_start: float
    t_read: float
    """When the request body was whole."""
    # peek
    call: Call | None = None
    model_label: str = "none"
    asked_s: float | None = None
    """The client's own deadline, from ``t_start``."""
    # attempts
    attempts: int = 0
    target: Target | None = None
    waits: bool = False
    """Between two attempts: nobody is being asked."""
    probe: bool = False
    """The breaker of the target waits for the end of this attempt."""
    trail: list[str] = []
    """``provider:failure`` of every failed attempt (R56)."""
    upstream_s: float = 0.0
    """Time during which we waited for the upstream (R38: overhead is the rest)."""
    t_attempt: float = 0.0
    """When the last attempt began."""
    header_s: float = 0.0
    """Seconds to the header block of the last attempt."""
    dropped: list[str] = []
    """What the last attempt's provider could not be told (R65)."""
    race: Race | None = None
    """Who has content first, where two attempts run side by side."""
    # relay
    pulse: Pulse | None = None
    """The heartbeat of a stream."""
    tap: Tap | None = None
    """What reads the stream and knows how an error is told in it."""
    committed: bool = False
    """Content went to the client: nobody else is asked any more (R9, R12)."""
    first_content_at: float = 0.0
    completion_events: int = 0
    usage: Usage = NO_USAGE
    # respond, settle
    status: int = 0
    error: GatewayError | None = None
    t_end: float = 0.0
