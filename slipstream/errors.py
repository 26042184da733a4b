"""One error tree for everything that can end a request.

Each error says whose fault it is (``source``), whether another target may be tried (``failure``), the HTTP status and
the machine-readable ``code`` that the client sees. How an error is spelled in a dialect is the business of ``wire``.

The rule that must not be broken: ``message`` goes to the client and to logs as it is, so it never holds a header
value, a credential, an upstream address or bytes of a body.
"""

from __future__ import annotations

from .types import FailureClass


class SlipstreamError(Exception):
    """Base of the tree; never raised itself."""


class ConfigError(SlipstreamError):
    """The configuration cannot be used. ``problems`` lists every fault found, one line each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class GatewayError(SlipstreamError):
    """A request ends with this HTTP error; raised as it is only for our own bugs (500).

    ``status`` is the HTTP status, ``type``, ``code`` and ``param`` are those of OpenAI's error object (API reference,
    "Error codes"), ``headers`` are extra response headers (``Retry-After``, ``Allow``).
    """

    source = "gateway"
    failure = FailureClass.NONE

    def __init__(
        self,
        message: str,
        *,
        status: int = 500,
        type: str = "server_error",
        code: str | None = "internal_error",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param
        self.headers = headers


class ClientError(GatewayError):
    """The request cannot be served as it is: a 4xx of our own making."""

    source = "client"
    failure = FailureClass.CLIENT_ERROR

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, type=type, code=code, param=param, headers=headers)


class UpstreamError(GatewayError):
    """One attempt failed. ``failure`` decides what happens next, ``status`` and ``code`` are what the client sees if
    nothing does.

    ``upstream_status`` is the provider's own status (0: there was no answer); ``retry_after_s`` what the provider asked
    for, in seconds (``None``: nothing); ``body`` the provider's error body when it may be passed on as it is.
    """

    source = "upstream"
    lasts = False
    """Whether the same target would fail in the same way a moment later, whatever the class says."""

    def __init__(
        self,
        message: str,
        *,
        failure: FailureClass,
        status: int = 502,
        type: str = "upstream_error",
        code: str | None = "bad_upstream",
        param: str | None = None,
        upstream_status: int = 0,
        retry_after_s: float | None = None,
        body: bytes | None = None,
    ) -> None:
        super().__init__(message, status=status, type=type, code=code, param=param)
        self.failure = failure
        self.upstream_status = upstream_status
        self.retry_after_s = retry_after_s
        self.body = body


class ConnectFailed(UpstreamError):
    """No connection to the provider: DNS, refused, TLS. Nothing was sent, so trying another is always safe. One that
    ``lasts`` is a certificate's or a TLS version's (S-42).
    """

    def __init__(self, message: str, *, lasts: bool = False) -> None:
        super().__init__(message, failure=FailureClass.CONNECT, code="upstream_connect_error")
        self.lasts = lasts


class UpstreamTimeout(UpstreamError):
    """One of the limits ran out (R17). ``phase``: ``connect``, ``send``, ``first_byte``, ``idle`` or ``total``. It
    ``lasts``: a second wait as long as the first has no place in the deadline (Q09, Q18).
    """

    lasts = True

    def __init__(self, phase: str, limit_s: float) -> None:
        super().__init__(
            f"the provider did not {'read the request' if phase == 'send' else 'answer'} in time "
            f"({phase} limit of {limit_s:g} s)",
            failure=FailureClass.CONNECT if phase == "connect" else FailureClass.TIMEOUT,
            status=504,
            type="timeout_error",
            code=f"upstream_{phase}_timeout",
        )
        self.phase = phase


class TransportError(UpstreamError):
    """The connection broke after the request was sent: reset, early close, broken framing."""

    def __init__(self, message: str = "the provider closed the connection before its answer was complete") -> None:
        super().__init__(message, failure=FailureClass.TRANSPORT, code="upstream_connection_closed")


class MalformedReply(UpstreamError):
    """A 2xx answer that is not what the dialect promises (R66)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, failure=FailureClass.MALFORMED, code="upstream_malformed_response")


class ShuttingDown(UpstreamError):
    """The gateway ends and the time for requests in flight is over (R79). It says nothing about the target: the class
    is a neutral one, and nobody else is asked.
    """

    source = "gateway"

    def __init__(self) -> None:
        super().__init__(
            "the gateway is shutting down and could not wait for the end of this answer",
            failure=FailureClass.CLIENT_GONE,
            status=503,
            type="server_error",
            code="shutting_down",
            retry_after_s=1.0,
        )
