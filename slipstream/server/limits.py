"""What both listeners hold a client to: sizes, times, and the guard and the deadlines that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from .._fast import RequestGuard

LINGER_S = 2.0
"""How long we read and drop after an error answer, so that the client gets to read it (RFC 9112 9.6)."""
BODY_RATE_AFTER_S = 60.0
"""From when on a body must have arrived at ``body_min_rate`` on average (Q30)."""
CANCEL_S = 1.0
"""How long ``close`` waits for handlers that it cancelled."""


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """Sizes in bytes (Q31), times in seconds (Q30); the most connections of one process (S-80)."""

    header_timeout_s: float = 10.0
    body_idle_s: float = 30.0
    body_min_rate: float = 1024.0
    keepalive_s: float = 75.0
    slow_reader_s: float = 60.0
    """A client that takes nothing of what waits for it is dropped after so long (S-53)."""
    max_body_bytes: int = 67108864
    max_target_bytes: int = 16384
    max_field_bytes: int = 16384
    max_fields_bytes: int = 65536
    max_fields: int = 128
    max_chunk_ext_bytes: int = 4096
    max_connections: int = 20_000

    def body_deadline(self, since: float, received: int, last_byte: float) -> float:
        """When a body of which ``received`` bytes came since ``since`` is too late: by its pause or its average
        rate.
        """
        idle = last_byte + self.body_idle_s
        if not self.body_min_rate:
            return idle
        return min(idle, since + max(BODY_RATE_AFTER_S, received / self.body_min_rate))


def guard_for(limits: ListenerLimits) -> RequestGuard:
    """A guard for one connection."""
    return RequestGuard(
        max_target=limits.max_target_bytes,
        max_field=limits.max_field_bytes,
        max_fields=limits.max_fields_bytes,
        max_count=limits.max_fields,
        max_body=limits.max_body_bytes,
        max_chunk_ext=limits.max_chunk_ext_bytes,
    )
