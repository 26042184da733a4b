"""What is in the head of a request that ``RequestGuard`` has passed (RFC 9112 2.1): the route, the framing, a few
fields.

One object per connection is used again for every request; ``value`` copies a field only when it is asked for.
"""

from typing import Final, final

H_AUTHORIZATION: Final = 0
H_API_KEY: Final = 1
H_CONTENT_TYPE: Final = 2
H_CONTENT_ENCODING: Final = 3
H_REQUEST_ID: Final = 4
H_ORIGIN: Final = 5
H_TIMEOUT: Final = 6
"""``x-request-timeout``."""
H_ACCEPT: Final = 7

@final
class RequestHead:
    """``paths``: the paths of the hot routes, at most 16; ``route`` is an index into them."""

    def __init__(self, paths: tuple[bytes, ...]) -> None: ...
    def read(self, data: bytes, at: int = 0) -> int:
        """Read the head that begins at ``at`` (behind empty lines); returns the offset behind it, -1 if it is not
        whole.
        """
    def value(self, field: int) -> bytes | None:
        """The value of the first field of this name, without blanks around it; ``None`` if there is none."""
    def values(
        self,
    ) -> tuple[bytes | None, bytes | None, bytes | None, bytes | None, bytes | None, bytes | None, bytes | None]:
        """All that a request of the data plane is looked at for, in one call: ``Authorization``, ``X-API-Key``,
        ``Content-Type``, ``Content-Encoding``, ``X-Request-ID``, ``Origin``, ``X-Request-Timeout``."""
    def forget(self) -> None:
        """Let go of the bytes; ``value`` gives ``None`` until the next ``read``."""
    @property
    def start(self) -> int:
        """Where the request line begins."""
    @property
    def route(self) -> int:
        """Index of the path, for POST requests; -1 for everything else. A query does not matter."""
    @property
    def content_length(self) -> int:
        """Bytes of the body, -1 without ``Content-Length``."""
    @property
    def chunked(self) -> bool: ...
    @property
    def expect_continue(self) -> bool:
        """The client has a body and waits for ``100 Continue`` (RFC 9110 10.1.1)."""
    @property
    def keep_alive(self) -> bool:
        """The connection goes on after this request (RFC 9112 9.3)."""
    @property
    def http10(self) -> bool: ...
