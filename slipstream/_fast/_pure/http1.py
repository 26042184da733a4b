"""The specification of ``RequestGuard``: a strict, incremental validator of a client's HTTP/1.1 byte stream.

It stands in front of any HTTP server and passes on only what every parser reads alike. It is line-based: a line is
judged when it is complete, and a growing line only for what no further byte can mend (a control character, a limit).
So the verdict depends on the bytes alone and never on how they were cut into reads.

The rule that must not be broken: no byte of a head is passed on before the whole head was found valid, and a reason is
a text of ours, never bytes of the request (they may hold a credential).

The compiled twin is ``slipstream/_fast/http1.pyx``; its interface is documented in ``http1.pyi``.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address

# (status, reason); the compiled twin uses the index and imports this table, so that the texts are the same.
ERRORS = (
    (0, ""),
    (400, "bare LF"),  # RFC 9112 2.2: a recipient MAY take it for a line end, an intermediary should not
    (400, "control character"),  # RFC 9110 5.5, and bare CR: RFC 9112 2.2
    (400, "too many empty lines"),
    (400, "malformed request line"),  # RFC 9112 3
    (400, "malformed method"),
    (501, "method not implemented"),  # RFC 9110 9.1
    (414, "request target too long"),
    (400, "malformed request target"),  # RFC 9112 3.2
    (400, "malformed HTTP version"),  # RFC 9112 2.3
    (505, "HTTP version not supported"),
    (431, "header field too large"),  # RFC 6585 5
    (431, "header section too large"),
    (431, "too many header fields"),
    (400, "folded header line"),  # RFC 9112 5.2
    (400, "malformed header field name"),  # RFC 9112 5.1
    (400, "repeated header field"),  # RFC 9110 5.3
    (400, "missing Host header"),  # RFC 9112 3.2
    (400, "invalid Host header"),
    (400, "invalid Content-Length"),  # RFC 9112 6.3
    (413, "request body too large"),
    (400, "invalid Transfer-Encoding"),  # RFC 9112 6.1
    (501, "transfer coding not implemented"),
    (400, "both Content-Length and Transfer-Encoding"),  # RFC 9112 6.1, 11.2
    (400, "Transfer-Encoding in HTTP/1.0"),
    (417, "unknown expectation"),  # RFC 9110 10.1.1
    (400, "malformed chunk size"),  # RFC 9112 7.1
    (400, "malformed chunk extension"),  # RFC 9112 7.1.1
    (400, "chunk extensions too long"),
    (400, "chunk data without CRLF"),
    (400, "forbidden trailer field"),  # RFC 9110 6.5.1
)
(
    _OK, _BARE_LF, _CTL, _BLANK, _LINE, _METHOD, _NO_METHOD, _TARGET_LONG, _TARGET, _VERSION, _NO_VERSION, _FIELD_LARGE,
    _FIELDS_LARGE, _COUNT, _FOLD, _NAME, _REPEATED, _HOST_MISSING, _HOST, _LENGTH, _BODY_LARGE, _CODING, _NO_CODING,
    _BOTH, _CODING_10, _EXPECT, _CHUNK_SIZE, _CHUNK_EXT, _CHUNK_EXT_LONG, _CHUNK_END, _TRAILER,
) = range(len(ERRORS))  # fmt: skip

METHODS = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK "
    b"QUERY".split()
)
"""What llhttp knows, less CONNECT (a gateway is no tunnel) and the methods of other protocols."""

SINGLE = frozenset(
    b"host content-length transfer-encoding expect content-type user-agent authorization x-api-key api-key "
    b"content-location content-range etag max-forwards server".split()
)
"""Fields that may come once: two layers that pick different ones disagree about framing, host or credential."""

FORBIDDEN_TRAILERS = frozenset(
    b"content-length transfer-encoding host authorization proxy-authorization cookie set-cookie x-api-key api-key "
    b"x-goog-api-key expect te trailer connection keep-alive proxy-connection upgrade max-forwards content-encoding "
    b"forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id".split()
)
"""RFC 9110 6.5.1: framing, routing, authentication, request modifiers. Others are harmless: nobody merges them."""

LIMIT_MAX = 10**15
METHOD_MAX = 32
BLANK_MAX = 2  # RFC 9112 2.2: at least one empty line before the request line should be ignored
CHUNK_DIGITS_MAX = 16  # as many as fit 64 bits
CHUNK_EXT_TOTAL = 16  # all extensions of a body together, in units of max_chunk_ext (Q31: 4 KiB and 64 KiB)

_SUB = rb"!$&'()*+;="  # sub-delims of RFC 3986 without the comma: it separates hosts, and proxies split there
_CTL_RE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TOKEN_RE = re.compile(_TOKEN)
_VERSION_RE = re.compile(rb"HTTP/[0-9]\.[0-9]")
_PATH = rb"(?:[A-Za-z0-9\-._~,:@/" + _SUB + rb"]|%[0-9A-Fa-f]{2})*"
_QUERY = rb"(?:[A-Za-z0-9\-._~,:@/?\[\]" + _SUB + rb"]|%[0-9A-Fa-f]{2})*"
# Brackets are no query characters in RFC 3986, but `a[]=1` is common and means nothing to anybody in between.
_ORIGIN_RE = re.compile(rb"/" + _PATH + rb"(?:\?" + _QUERY + rb")?")
_ABSOLUTE_RE = re.compile(rb"(?i:https?)://([^/?]+)(?:/" + _PATH + rb")?(?:\?" + _QUERY + rb")?")
_HOST_RE = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]+|[vV][0-9A-Fa-f]+\.[A-Za-z0-9\-._~:" + _SUB + rb"]+)\]"
    rb"|(?:[A-Za-z0-9\-._~" + _SUB + rb"]|%[0-9A-Fa-f]{2})+)(?::([0-9]*))?"
)
_CHUNK_RE = re.compile(rb"([0-9A-Fa-f]+)(;.*)?", re.DOTALL)
_EXT_RE = re.compile(
    rb"(?:;" + _TOKEN + rb"(?:=(?:" + _TOKEN + rb'|"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"))?)*', re.DOTALL
)

# States: where in the stream the next byte stands.
_START, _FIELDS, _BODY, _SIZE, _DATA, _DATA_END, _TRAILERS, _DONE, _ERROR = range(9)


def host_ok(host: bytes) -> bool:
    """Whether this is ``uri-host [ ":" port ]`` (RFC 9110 7.2, RFC 3986 3.2.2) with a non-empty host."""
    match = _HOST_RE.fullmatch(host)
    if match is None:
        return False
    literal, port = match.groups()
    if literal and literal[0] not in b"vV":
        try:
            IPv6Address(literal.decode())
        except ValueError:
            return False
    return not port or int(port.lstrip(b"0")[:6] or b"0") <= 65535


class RequestGuard:
    """See ``http1.pyi``."""

    def __init__(
        self,
        max_target: int = 16384,
        max_field: int = 16384,
        max_fields: int = 65536,
        max_count: int = 128,
        max_body: int = 67108864,
        max_chunk_ext: int = 4096,
    ) -> None:
        limits = (max_target, max_field, max_fields, max_count, max_body, max_chunk_ext)
        if min(limits) < 0 or max(limits) > LIMIT_MAX:
            raise ValueError("a limit is out of range")
        self._max_target, self._max_field, self._max_fields = max_target, max_field, max_fields
        self._max_count, self._max_body, self._max_chunk_ext = max_count, max_body, max_chunk_ext
        self.error_status = 0
        self.error_reason = ""
        self.error_in_body = False
        self.heads = self.messages = 0
        self.content_length = -1
        self.chunked = self.expect_continue = self.keep_alive = False
        self._state = _START
        self._held = bytearray()  # what waits for the rest of its head or line
        self._line = 0  # where the current line starts in the held bytes
        self._scan = 0  # how far the current line is known to have no control character
        self._blank = self._count = self._total = self._left = self._body = self._ext = 0
        self._seen: set[bytes] = set()
        self._old = self._close = self._keep = self._te = self._expect = False
        self._length = -1

    def body_passed(self, n: int) -> None:
        if self._state != _BODY or not 0 <= n <= self._left:
            raise ValueError("not that many bytes of a body are due")
        self._left -= n
        if not self._left:
            self._end_message()

    def unpassed(self) -> bytes:
        return bytes(self._held)

    @property
    def done(self) -> bool:
        return self._state == _DONE

    @property
    def idle(self) -> bool:
        return self._state == _START and bytes(self._held) in (b"", b"\r")

    @property
    def in_head(self) -> bool:
        return self._state == _FIELDS or (self._state == _START and not self.idle)

    @property
    def in_body(self) -> bool:
        return _BODY <= self._state <= _TRAILERS

    def feed(self, data: bytes) -> bytes:
        if self._state >= _DONE:
            return b""
        buf = self._held
        buf += data
        safe, error = self._run(buf)
        if error:
            self.error_in_body = self.in_body
            self.error_status, self.error_reason = ERRORS[error]
            self._state = _ERROR
        out = bytes(buf[:safe])
        del buf[:safe]
        self._line -= safe
        if self._state >= _DONE:
            buf.clear()
        return data if out == data else out

    def _run(self, p: bytearray) -> tuple[int, int]:
        """Go as far as the bytes allow: -> (how many may be passed on, index of the error)."""
        i, n, safe = self._line, len(p), 0
        while True:
            if self._state in (_BODY, _DATA):
                step = min(n - i, self._left)
                i += step
                safe = i
                self._left -= step
                if self._left:
                    break
                if self._state == _BODY:
                    self._end_message()
                else:
                    self._state = _DATA_END
            elif self._state == _DATA_END:
                got = bytes(p[i : i + 2])
                if got not in (b"", b"\r", b"\r\n"):
                    return safe, _CHUNK_END
                if len(got) < 2:
                    break
                i += 2
                safe = i
                self._state = _SIZE
            elif self._state == _DONE or i == n:
                break
            else:
                if self._state == _START and p[i] in b"\r\n":
                    if p[i] == 10:
                        return safe, _BARE_LF
                    if n - i == 1:
                        break
                    if p[i + 1] != 10:
                        return safe, _CTL
                    self._blank += 1
                    if self._blank > BLANK_MAX:
                        return safe, _BLANK
                    i += 2
                    safe = i
                    continue
                end = p.find(b"\n", i + self._scan)
                whole = end >= 0
                if not whole:
                    end = n
                text = end - i  # the length of the line without its end
                crlf = p[end - 1] == 13
                if text and crlf:
                    text -= 1
                if self._state == _START and (error := self._method(p, i, n)):
                    return safe, error
                limit, error = self._limit()
                bad = _CTL_RE.search(p, i + self._scan, i + min(text, limit))
                if bad:
                    return safe, _CTL
                if text > limit:
                    return safe, error
                if not whole:
                    self._scan = text
                    break
                if not crlf:
                    return safe, _BARE_LF
                if error := self._judge(p, i, bytes(p[i : i + text])):
                    return safe, error
                i = end + 1
                self._scan = 0
                if self._state != _FIELDS:
                    safe = i  # a whole head, or a line of a chunked body
        self._line = i
        return safe, _OK

    def _limit(self) -> tuple[int, int]:
        """How long the current line may get, without its end, and the error if it is longer."""
        if self._state == _START:
            return self._max_target + METHOD_MAX + len(" ") * 2 + len("HTTP/1.1"), _TARGET_LONG
        if self._state == _SIZE:
            return self._max_chunk_ext + CHUNK_DIGITS_MAX, _CHUNK_EXT_LONG
        left = max(0, self._max_fields - self._total)
        return (self._max_field, _FIELD_LARGE) if self._max_field <= left else (left, _FIELDS_LARGE)

    @staticmethod
    def _method(p: bytearray, i: int, n: int) -> int:
        """Judge the method in a request line that may still grow: garbage is found out at its first byte."""
        match = _TOKEN_RE.match(p, i, min(n, i + METHOD_MAX + 1))
        end = match.end() if match else i
        if end - i > METHOD_MAX:
            return _NO_METHOD
        if end < n and (p[end] != 32 or end == i):
            return _METHOD
        return _OK

    def _judge(self, p: bytearray, i: int, line: bytes) -> int:
        """Judge a complete line (it stands at ``i`` of ``p``) and go to the next state."""
        if self._state == _START:
            return self._request_line(line)
        if self._state == _SIZE:
            return self._chunk_line(line)
        if not line:
            if self._state == _FIELDS:
                return self._end_head()
            self._end_message()
            return _OK
        if line[0] in b" \t":
            return _FOLD
        self._count += 1
        if self._count > self._max_count:
            return _COUNT
        self._total += len(line) + 2
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN_RE.fullmatch(name):
            return _NAME
        raw, name, value = value, name.lower(), value.strip(b" \t")
        if self._state == _TRAILERS:
            return _TRAILER if name in FORBIDDEN_TRAILERS else _OK
        if name == b"upgrade":
            p[i : i + 1] = b"X"
            return _OK
        if name == b"transfer-encoding" and raw.rstrip(b" ").endswith(b"\t"):
            return _CODING  # legal (RFC 9110 5.6.3), but llhttp refuses HTAB after a coding, and nobody sends it
        return self._field(name, value)

    def _request_line(self, line: bytes) -> int:
        method, _, rest = line.partition(b" ")
        target, space, version = rest.partition(b" ")
        if not target or not space:
            return _LINE
        if not _VERSION_RE.fullmatch(version):
            return _VERSION
        if version not in (b"HTTP/1.1", b"HTTP/1.0"):
            return _NO_VERSION
        if method not in METHODS:
            return _NO_METHOD
        if len(target) > self._max_target:
            return _TARGET_LONG
        if target[:1] == b"/":
            if not _ORIGIN_RE.fullmatch(target):
                return _TARGET
        elif target != b"*" or method != b"OPTIONS":
            absolute = _ABSOLUTE_RE.fullmatch(target)
            if absolute is None or not host_ok(absolute[1]):
                return _TARGET
        self._old = version == b"HTTP/1.0"
        self._state = _FIELDS
        self._blank = self._count = self._total = self._body = self._ext = 0
        self._seen = set()
        self._close = self._keep = self._te = self._expect = False
        self._length = -1
        return _OK

    def _field(self, name: bytes, value: bytes) -> int:
        if name in SINGLE:
            if name in self._seen:
                return _REPEATED
            self._seen.add(name)
        if name == b"host":
            # Empty is what a client sends whose target has no authority (RFC 9112 3.2).
            return _OK if not value or host_ok(value) else _HOST
        if name == b"content-length":
            # A list of equal values may be taken or refused (RFC 9110 8.6): refused.
            if not value or value.strip(b"0123456789"):
                return _LENGTH
            self._length = int(value.lstrip(b"0")[:16] or b"0")  # 16 digits are above any limit
        elif name == b"transfer-encoding":
            lower = value.lower()
            if lower != b"chunked":
                listed = [item.strip(b" \t") for item in lower.split(b",")]
                return _NO_CODING if listed[-1] == b"chunked" and b"chunked" not in listed[:-1] else _CODING
            self._te = True
        elif name == b"expect" and not self._old:  # HTTP/1.0: ignored (RFC 9110 10.1.1)
            if value.lower() != b"100-continue":
                return _EXPECT
            self._expect = True
        elif name == b"connection":
            tokens = [item.strip(b" \t") for item in value.lower().split(b",")]
            self._close |= b"close" in tokens
            self._keep |= b"keep-alive" in tokens
        return _OK

    def _end_head(self) -> int:
        if not self._old and b"host" not in self._seen:
            return _HOST_MISSING
        if self._te and self._old:
            return _CODING_10
        if self._te and self._length >= 0:
            return _BOTH
        if self._length > self._max_body:
            return _BODY_LARGE
        self.heads += 1
        self.content_length, self.chunked = self._length, self._te
        self.expect_continue = self._expect and (self._te or self._length > 0)
        self.keep_alive = not self._close and (self._keep or not self._old)  # RFC 9112 9.3
        if self._te:
            self._state = _SIZE
        elif self._length > 0:
            self._state, self._left = _BODY, self._length
        else:
            self._end_message()
        return _OK

    def _end_message(self) -> None:
        self.messages += 1
        self._state = _START if self.keep_alive else _DONE

    def _chunk_line(self, line: bytes) -> int:
        match = _CHUNK_RE.fullmatch(line)
        if match is None or len(match[1]) > CHUNK_DIGITS_MAX:
            return _CHUNK_SIZE
        size, extension = int(match[1], 16), match[2] or b""
        if size > self._max_body - self._body:
            return _BODY_LARGE
        self._ext += len(extension)
        if self._ext > self._max_chunk_ext * CHUNK_EXT_TOTAL:
            return _CHUNK_EXT_LONG
        if not _EXT_RE.fullmatch(extension):
            return _CHUNK_EXT
        self._body += size
        self._left = size
        self._state = _DATA if size else _TRAILERS
        return _OK


class BodyBuffer:
    """See ``http1.pyi``."""

    def __init__(self, size: int, first: bytes = b"", start: int = 0) -> None:
        if not 0 <= start <= len(first) <= start + size:
            raise ValueError("the first bytes are not the beginning of the body")
        self._size = size
        self._body = bytearray(first[start:])
        self._at = self._upto = len(first) - start

    def room(self, most: int) -> memoryview:
        self._upto = min(self._at + most, self._size)
        self._body += bytes(max(0, self._upto - len(self._body)))
        return memoryview(self._body)[self._at : self._upto]

    def took(self, n: int) -> int:
        if not 0 <= n <= self._upto - self._at:
            raise ValueError("there was no room for so many bytes")
        self._at = self._upto = self._at + n
        return self._size - self._at

    def take(self) -> bytes:
        if self._at < self._size:
            raise BufferError("the body is not whole")
        return bytes(self._body)
