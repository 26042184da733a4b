"""The door of the data plane, for both listeners: who gets in, who waits, and how the others are told (R32, R52).

A refusal is made to cost little, because under overload there are more of them than answers (Q15: a fifth of an answer
at most): no task, no exception, no line of a log each; counters, and bytes that are made once a second. One line in
thirty seconds says that there are any.

Everybody is told in the dialect of the endpoint, with ``Retry-After`` and the request id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..engine.account import NO_PROVIDER
from ..engine.attempt import priority
from ..engine.exchange import Exchange
from ..engine.runtime import Runtime
from ..errors import GatewayError
from ..obs.families import QUEUE_WAIT, REQUESTS, SHED
from ..resilience.admission import Admission, Place
from ..resilience.bulkhead import NEVER, Overloaded, Waiter, whole_seconds
from ..resilience.shed import LAG, MEMORY
from ..types import Clock, Endpoint
from ..wire.faces import FACES
from ..wire.headers import block

log = logging.getLogger("slipstream.server")

STATUS = 503
RETRY_AFTER_S = {MEMORY: 5, LAG: 1}
EVERY_S = 30.0
"""At most one line in this time."""
PLACEHOLDER = "request-id-request-id"
_WHY = {MEMORY: "is short of memory", LAG: "is overloaded"}


class Refusal(GatewayError):
    """What is told to those who are not let in: a few such answers, each made once. Never raised: it would keep a trace
    of each time."""

    def __init__(self, reason: str, retry_after_s: int) -> None:
        super().__init__(
            f"The gateway {_WHY.get(reason, 'has more to do than it can take on')}. Try again in {retry_after_s} s.",
            status=STATUS,
            type="overloaded_error",
            code="overloaded",
            headers={"Retry-After": str(retry_after_s)},
        )
        self.heads: dict[Endpoint, bytes] = {}
        self.bodies: dict[Endpoint, list[bytes]] = {}

    def whole(self, endpoint: Endpoint, request_id: bytes, date: bytes) -> bytes:
        """The answer in the dialect of ``endpoint`` on a connection that goes on, from its status line to its end."""
        body = self.bodies.get(endpoint)
        if body is None:
            face = FACES[endpoint]
            self.heads[endpoint] = block({"Content-Type": face.error_type, **(self.headers or {})})
            body = self.bodies[endpoint] = face.error_body(self, PLACEHOLDER).split(PLACEHOLDER.encode())
        told = body[0] if len(body) == 1 else request_id.join(body)
        return b"HTTP/1.1 503 Service Unavailable\r\n%bDate: %b\r\nX-Request-ID: %b\r\nContent-Length: %d\r\n\r\n%b" % (
            self.heads[endpoint], date, request_id, len(told), told,
        )  # fmt: skip


class Gate:
    """``left(endpoint, request_id, key_name)`` is told of clients that went away while they waited."""

    def __init__(
        self, runtime: Runtime, admission: Admission, clock: Clock, left: Callable[[Endpoint, str, str], None]
    ) -> None:
        self.admission = admission
        self._runtime = runtime
        self._clock = clock
        self._left = left
        self._refusals: dict[tuple[str, int], Refusal] = {}
        self._refused = 0
        """Since the last line."""
        self._logged_at = -EVERY_S

    def ask(self, exchange: Exchange, endpoint: Endpoint, key_name: str) -> tuple[Place, Refusal | None]:
        """When ``in_flight`` is not below ``free``: what the request holds, or why it is refused."""
        deadline_s = exchange.asked_s
        found = self.admission.ask(priority(exchange), NEVER if deadline_s is None else deadline_s, self._clock())
        if isinstance(found, str):
            return False, self._refuse(found, endpoint, key_name)
        return found, None

    async def wait(self, place: Waiter, exchange: Exchange, endpoint: Endpoint, key_name: str) -> float | Refusal:
        """Wait for one's turn: the seconds it took, or what is told to somebody who waited in vain."""
        told: float | Refusal
        try:
            told = waited_s = await self.admission.wait(place)
        except Overloaded as error:
            told, waited_s = self._refuse(error.reason, endpoint, key_name), error.waited_s
        except asyncio.CancelledError:
            self._left(endpoint, exchange.request_id, key_name)
            raise
        self._runtime.metrics.observe(QUEUE_WAIT, waited_s, (NO_PROVIDER,))
        return told

    def _refuse(self, reason: str, endpoint: Endpoint, key_name: str) -> Refusal:
        """Count it, and what it is told."""
        metrics = self._runtime.metrics
        metrics.count(SHED, (reason,))
        metrics.count(REQUESTS, ("POST", endpoint.label, NO_PROVIDER, NO_PROVIDER, str(STATUS), key_name))
        self._refused += 1
        now = self._clock()
        if now - self._logged_at >= EVERY_S:
            self._log(reason, now)
        seconds = RETRY_AFTER_S.get(reason) or whole_seconds(self.admission.retry_after_s())
        refusal = self._refusals.get((reason, seconds))
        if refusal is None:
            refusal = self._refusals[reason, seconds] = Refusal(reason, seconds)
        return refusal

    def _log(self, reason: str, now: float) -> None:
        admission = self.admission
        fields = {
            "reason": reason,
            "requests": self._refused,
            "in_flight": admission.in_flight,
            "queued": admission.queued,
            "turn_ms": round(admission.turns.turn_s * 1000, 1),
            "rss_bytes": admission.memory.rss,
        }
        log.warning("requests are turned away", extra={"fields": fields})
        self._logged_at, self._refused = now, 0
