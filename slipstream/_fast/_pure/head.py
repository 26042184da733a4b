"""The specification of ``head.pyx``: the same class in plain Python."""

from __future__ import annotations

H_AUTHORIZATION, H_API_KEY, H_CONTENT_TYPE, H_CONTENT_ENCODING, H_REQUEST_ID, H_ORIGIN, H_TIMEOUT, H_ACCEPT = range(8)

_FIELDS = {
    b"authorization": H_AUTHORIZATION,
    b"x-api-key": H_API_KEY,
    b"content-type": H_CONTENT_TYPE,
    b"content-encoding": H_CONTENT_ENCODING,
    b"x-request-id": H_REQUEST_ID,
    b"origin": H_ORIGIN,
    b"x-request-timeout": H_TIMEOUT,
    b"accept": H_ACCEPT,
}
MAX_ROUTES = 16


class RequestHead:
    """See ``head.pyi``."""

    def __init__(self, paths: tuple[bytes, ...]) -> None:
        if len(paths) > MAX_ROUTES:
            raise ValueError("too many routes")
        self._paths = paths
        self._clear()

    def _clear(self) -> None:
        self._values: dict[int, bytes] = {}
        self.start = 0
        self.route = -1
        self.content_length = -1
        self.chunked = self.expect_continue = self.http10 = False
        self.keep_alive = True

    def read(self, data: bytes, at: int = 0) -> int:
        if not 0 <= at <= len(data):
            raise ValueError("at is outside data")
        while data[at : at + 2] == b"\r\n":
            at += 2
        end = data.find(b"\n\r\n", at)
        self._clear()
        self.start = at
        if end < 0:
            return -1
        request_line, *lines = data[at : end - 1].split(b"\r\n")
        self.http10 = request_line.endswith(b"0")
        if request_line.startswith(b"POST "):
            path = request_line[5:].partition(b" ")[0].partition(b"?")[0]
            self.route = self._paths.index(path) if path in self._paths else -1
        close = keep = expect = False
        for line in lines:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            if name in _FIELDS:
                self._values.setdefault(_FIELDS[name], value)
            elif name == b"content-length":
                self.content_length = int(value[:15])
            elif name == b"transfer-encoding":
                self.chunked = True
            elif name == b"connection":
                items = {item.strip(b" \t").lower() for item in value.split(b",")}
                close, keep = close or b"close" in items, keep or b"keep-alive" in items
            elif name == b"expect":
                expect = True
        self.expect_continue = expect and not self.http10 and (self.chunked or self.content_length > 0)
        self.keep_alive = not close and (keep or not self.http10)
        return end + 3

    def value(self, field: int) -> bytes | None:
        return self._values.get(field)

    def values(self) -> tuple[bytes | None, ...]:
        return tuple(self._values.get(field) for field in range(H_ACCEPT))

    def forget(self) -> None:
        self._values = {}
