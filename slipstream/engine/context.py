"""Everything that is known about one request while it lives. One slotted object; each field is written by one phase."""

from __future__ import annotations

from ..config.snapshot import Target
from ..errors import GatewayError
from ..obs.metrics import CLIENT_GONE_STATUS
from ..types import Endpoint
from ..wire.request import Call
from ..wire.usage import NO_USAGE, Usage

__all__ = ["CLIENT_GONE_STATUS", "RequestContext"]


class RequestContext:
    """Times are seconds of the runtime's monotonic clock."""

    __slots__ = (
        "attempts",
        "call",
        "completion_events",
        "endpoint",
        "error",
        "first_content_at",
        "header_s",
        "key_name",
        "model_label",
        "request_id",
        "status",
        "t_attempt",
        "t_end",
        "t_read",
        "t_start",
        "target",
        "trail",
        "upstream_s",
        "usage",
    )

    def __init__(self, endpoint: Endpoint, request_id: str, key_name: str, t_start: float) -> None:
        # accept, authenticate
        self.endpoint = endpoint
        self.request_id = request_id
        self.key_name = key_name
        self.t_start = t_start
        self.t_read = t_start
        """When the request body was whole."""
        # peek
        self.call: Call | None = None
        self.model_label = "none"
        # attempts
        self.attempts = 0
        self.target: Target | None = None
        self.trail: list[str] = []
        """``provider:failure`` of every failed attempt (R56)."""
        self.upstream_s = 0.0
        """Time during which we waited for the upstream (R38: overhead is the rest)."""
        self.t_attempt = 0.0
        """When the last attempt began."""
        self.header_s = 0.0
        """Seconds to the header block of the last attempt."""
        # relay
        self.first_content_at = 0.0
        self.completion_events = 0
        self.usage: Usage = NO_USAGE
        # respond, settle
        self.status = 0
        self.error: GatewayError | None = None
        self.t_end = 0.0
