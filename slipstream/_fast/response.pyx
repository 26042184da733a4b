"""The compiled ``ResponseReader``: see ``response.pyi`` for its use and ``_pure/response.py`` for the specification.

The state, the judgement of a head and the framing of chunks are in ``http1response.pxd``. What is here: the loop over
lines, the loop over body bytes, the Python face. A head is kept as the bytes it came in, fields are looked up when
somebody asks. An unfinished head waits in ``held``, with the offset up to which no LF was found, so a head fed byte by
byte is searched once. The framing of chunks is a machine over single bytes and holds nothing; body bytes are never held.

The rule that must not be broken: what is reported depends on the bytes alone, not on how they were cut.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy, memset

from slipstream._fast.http1response cimport (
    BY_LENGTH, DATA_CR, DONE, ERROR, HEAD_LARGE, IN_HEAD, NO_HEAD, SPOILT, TO_CLOSE, TRUNCATED,
    Reader, around_chunks, end_head, field, status_line, status_prefix,
)
from slipstream._fast.http1syntax cimport fill_tables

from ._pure import response as _pure

cdef enum:
    HEAD_FLAG = 1
    BODY_FLAG = 2
    DONE_FLAG = 4
    ERROR_FLAG = 8
    EXTRA_FLAG = 16

E_HEAD, E_BODY, E_DONE, E_ERROR, E_EXTRA = HEAD_FLAG, BODY_FLAG, DONE_FLAG, ERROR_FLAG, EXTRA_FLAG
cdef tuple REASONS = _pure.REASONS
fill_tables([], [])  # no methods, no trailers: only the character classes are needed


cdef bint read_head(Reader* r, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Go on with the head that begins at ``p``; True when it is whole, ``line`` is its length then."""
    cdef const uint8_t* lf
    cdef Py_ssize_t end, text
    if r.line == 0:
        r.error = status_prefix(p, n if n < r.max_head else r.max_head)
    while not r.error:
        lf = <const uint8_t*>memchr(p + r.scan, 10, n - r.scan)
        end = n if lf == NULL else lf - p
        if end > r.max_head or (end == r.max_head and lf != NULL):
            r.error = HEAD_LARGE
            break
        if lf == NULL:
            r.scan = n
            break
        text = end - r.line
        if text and p[end - 1] == 13:
            text -= 1
        if r.line == 0:
            r.error = status_line(r, p, text)
        elif text:
            r.error = field(r, p + r.line, text)
        else:
            r.line = end + 1
            r.error = end_head(r)
            return not r.error
        r.line = r.scan = end + 1
    return False


cdef Py_ssize_t next_body(Reader* r, const uint8_t* p, Py_ssize_t n, Py_ssize_t* at) noexcept nogil:
    """Go on to the next body bytes: they end at ``at``, their number is returned; 0 when there are no more here."""
    cdef Py_ssize_t step
    while at[0] < n and r.state < DONE:
        if r.state > TO_CLOSE:
            r.state = around_chunks(r, p[at[0]])
            at[0] += 1
            continue
        step = n - at[0]
        if r.state != TO_CLOSE:
            step = step if step < r.left else <Py_ssize_t>r.left
            r.left -= step
            if r.left == 0:
                r.state = DONE if r.state == BY_LENGTH else DATA_CR
        at[0] += step
        return step
    return 0


cdef bint next_field(bytes head, Py_ssize_t* at, Py_ssize_t* colon, Py_ssize_t* a, Py_ssize_t* b) noexcept:
    """The field on the next line of a head that has been judged: ``at`` to ``colon`` and, trimmed, ``a`` to ``b``."""
    cdef const char* p
    if head is None:
        return False
    p = PyBytes_AS_STRING(head)
    at[0] = <const char*>memchr(p + b[0], c'\n', PyBytes_GET_SIZE(head) - b[0]) - p + 1
    if p[at[0]] == c'\r' or p[at[0]] == c'\n':
        return False
    colon[0] = <const char*>memchr(p + at[0], c':', PyBytes_GET_SIZE(head) - at[0]) - p
    a[0] = colon[0] + 1
    b[0] = <const char*>memchr(p + a[0], c'\n', PyBytes_GET_SIZE(head) - a[0]) - p
    while a[0] < b[0] and (p[a[0]] == c' ' or p[a[0]] == c'\t'):
        a[0] += 1
    while a[0] < b[0] and (p[b[0] - 1] == c' ' or p[b[0] - 1] == c'\t' or p[b[0] - 1] == c'\r'):
        b[0] -= 1
    return True


cdef inline char lowered(char c) noexcept nogil:
    return c | 0x20 if c'A' <= c <= c'Z' else c


cdef bint is_name(const char* p, Py_ssize_t n, const char* lower) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if lowered(p[i]) != lower[i]:
            return False
    return True


cdef void to_lower(char* out, const char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = lowered(p[i])


cdef class ResponseReader:
    def __init__(self, Py_ssize_t max_head=65536, Py_ssize_t max_fields=256, Py_ssize_t max_informational=16):
        limits = (max_head, max_fields, max_informational)
        if min(limits) < 0 or max(limits) > _pure.LIMIT_MAX:
            raise ValueError("a limit is out of range")
        memset(&self.r, 0, sizeof(Reader))
        self.r.max_head, self.r.max_fields, self.r.max_informational = limits
        self.r.state = DONE
        self.expect()
        self.r.state = DONE

    cpdef expect(self):
        if self.r.state != DONE:
            raise RuntimeError("the connection cannot take a request")
        self.r.state = IN_HEAD
        self.r.line = self.r.scan = self.r.informational = 0
        self.status = 0
        self.keep_alive = self.started = False
        self.head = self.body = self.held = None
        self.error_reason = ""

    cpdef int feed(self, bytes data) except -1:
        if data is None:
            raise TypeError("data must be bytes")
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), at = 0
        cdef int flags = 0
        self.body = None
        if n == 0 or self.r.state == ERROR:
            return 0
        if self.r.state >= DONE:
            return self._spoil()
        if self.r.state == IN_HEAD:
            self.started = True
            at = self._read_head(data)
            if self.status:
                flags = HEAD_FLAG
        if at < n and self.r.state < DONE and self.r.state != IN_HEAD and not self.r.error:
            self._read_body(data, &at)
            if self.body is not None:
                flags |= BODY_FLAG
        if self.r.error:
            return flags | self._refuse(self.r.error)
        if self.r.state == DONE:
            flags |= DONE_FLAG
            if at < n:
                flags |= self._spoil()
        return flags

    cdef Py_ssize_t _read_head(self, bytes data) except -1:
        """Read heads up to the end of the final one; returns the offset behind it."""
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), at = 0, before = 0
        cdef bint whole
        while at < n and self.r.state == IN_HEAD:
            if self.held is None:
                whole = read_head(&self.r, <const uint8_t*>PyBytes_AS_STRING(data) + at, n - at)
            else:  # a head that is not whole now ends in these data or becomes too large
                before = len(self.held)
                self.held += data if before + n <= self.r.max_head else data[:self.r.max_head + 1 - before]
                whole = read_head(&self.r, <const uint8_t*>PyByteArray_AS_STRING(self.held), len(self.held))
            if not whole:
                if self.held is None and not self.r.error:
                    self.held = bytearray(data[at:] if at else data)
                return n
            if self.r.state != IN_HEAD:
                self._keep_head(data, at)
            at += self.r.line - before
            before = self.r.line = self.r.scan = 0
            self.held = None
        return at

    cdef _keep_head(self, bytes data, Py_ssize_t at):
        if self.held is None:
            self.head = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + at, self.r.line)
        else:
            self.head = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(self.held), self.r.line)
        self.status = self.r.code
        self.keep_alive = not self.r.close and (self.r.keep or not self.r.old) and self.r.state != TO_CLOSE

    cdef _read_body(self, bytes data, Py_ssize_t* at):
        """Put the body bytes of ``data`` into one object: ``data`` itself, a slice, or a copy of several chunks."""
        cdef Py_ssize_t start = at[0], first, first_end, total, step
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef Reader before = self.r
        cdef char* out
        total = first = step = next_body(&self.r, p, n, at)
        first_end = at[0]
        while step:
            step = next_body(&self.r, p, n, at)
            total += step
        if total == first:
            if first:
                self.body = data if first == n else PyBytes_FromStringAndSize(<char*>p + first_end - first, first)
            return
        self.body = PyBytes_FromStringAndSize(NULL, total)
        out = PyBytes_AS_STRING(self.body)
        self.r = before  # the same way again: now it is known how much there is
        at[0] = start
        while out < PyBytes_AS_STRING(self.body) + total:
            step = next_body(&self.r, p, n, at)
            memcpy(out, p + at[0] - step, step)
            out += step
        next_body(&self.r, p, n, at)

    cdef int _refuse(self, int error):
        self.r.state = ERROR
        self.error_reason = REASONS[error]
        self.keep_alive = False
        self.held = None
        return ERROR_FLAG

    cdef int _spoil(self):
        self.r.state = SPOILT
        self.keep_alive = False
        return EXTRA_FLAG

    cpdef bytes take_body(self):
        if self.body is None:
            return b""
        body = self.body
        self.body = None
        return body

    cpdef int end(self) except -1:
        cdef int state = self.r.state
        if state == IN_HEAD or (state != TO_CLOSE and state < DONE):
            return self._refuse(NO_HEAD if state == IN_HEAD else TRUNCATED)
        if state != ERROR:
            self._spoil()
        return DONE_FLAG if state == TO_CLOSE else 0

    cpdef bytes header(self, bytes name):
        if name is None:
            raise TypeError("name must be bytes")
        cdef Py_ssize_t at = 0, colon = 0, a = 0, b = 0
        while next_field(self.head, &at, &colon, &a, &b):
            if PyBytes_GET_SIZE(name) == colon - at and is_name(
                PyBytes_AS_STRING(self.head) + at, colon - at, PyBytes_AS_STRING(name)
            ):
                return PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.head) + a, b - a)
        return None

    def headers(self):
        cdef Py_ssize_t at = 0, colon = 0, a = 0, b = 0
        cdef bytes name
        found = []
        while next_field(self.head, &at, &colon, &a, &b):
            name = PyBytes_FromStringAndSize(NULL, colon - at)
            to_lower(PyBytes_AS_STRING(name), PyBytes_AS_STRING(self.head) + at, colon - at)
            found.append((name, PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.head) + a, b - a)))
        return found

    @property
    def content_length(self): return self.r.length if self.status else -1

    @property
    def chunked(self): return bool(self.status and self.r.te)

    @property
    def close_delimited(self): return bool(self.status and not self.r.te and self.r.length < 0)
