"""The compiled ``RequestGuard``: see ``http1.pyi`` for its use and ``_pure/http1.py`` for the specification.

The state and the judgement of a head are in ``http1head.pxd``, the grammar of single elements in ``http1syntax.pxd``.
What is here: the body, the loop over lines, the Python face. The core knows pointers, offsets and error numbers
(indexes of ``ERRORS``). It reads each byte about twice: once for control characters (a loop that the C compiler
vectorizes), once in the check of its line.
"""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from slipstream._fast.http1head cimport (
    BARE_LF, BLANK, BLANK_MAX, BODY, BODY_LARGE, CHUNK_DIGITS_MAX, CHUNK_END, CHUNK_EXT, CHUNK_EXT_LONG,
    CHUNK_EXT_TOTAL, CHUNK_SIZE, CTL, DATA, DATA_END, DONE, ERROR, FIELD_LARGE, FIELDS, FIELDS_LARGE, METHOD,
    METHOD_MAX, NEED_COPY, NO_METHOD, OK, SIZE, START, TARGET_LONG, TRAILERS,
    Guard, end_head, end_message, field, request_line,
)
from slipstream._fast.http1syntax cimport IS_HEX, IS_TOKEN, KIND, extension_ok, fill_tables, has_ctl

from ._pure.http1 import ERRORS, FORBIDDEN_TRAILERS, LIMIT_MAX, METHODS

_methods = sorted(METHODS, key=lambda m: (m not in (b"GET", b"POST"), m))  # the usual ones first
_trailers = sorted(FORBIDDEN_TRAILERS)
fill_tables(_methods, _trailers)  # these lists keep the strings alive: the tables point into them


cdef int chunk_line(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef uint64_t size = 0
    while i < n and KIND[p[i]] & IS_HEX:
        if i == CHUNK_DIGITS_MAX:
            return CHUNK_SIZE
        size = size << 4 | (p[i] & 15 if p[i] <= c'9' else (p[i] & 15) + 9)
        i += 1
    if i == 0 or (i < n and p[i] != c';'):
        return CHUNK_SIZE
    if size > <uint64_t>(g.max_body - g.body):
        return BODY_LARGE
    g.ext += n - i
    if g.ext > g.max_chunk_ext * CHUNK_EXT_TOTAL:
        return CHUNK_EXT_LONG
    if i < n and not extension_ok(p + i, n - i):
        return CHUNK_EXT
    g.body += <Py_ssize_t>size
    g.left = <Py_ssize_t>size
    g.state = DATA if size else TRAILERS
    return OK


cdef int growing(Guard* g, const uint8_t* p, Py_ssize_t have, Py_ssize_t text) noexcept nogil:
    """What no further byte can mend in the current line: ``have`` bytes are here, ``text`` of them before its end."""
    cdef Py_ssize_t limit, upto, i
    cdef int error
    if g.state == START:
        i = 0
        while i < have and i <= METHOD_MAX and KIND[p[i]] & IS_TOKEN:
            i += 1
        if i > METHOD_MAX:
            return NO_METHOD
        if i < have and (p[i] != c' ' or i == 0):
            return METHOD
        limit = g.max_target + METHOD_MAX + 10
        error = TARGET_LONG
    elif g.state == SIZE:
        limit = g.max_chunk_ext + CHUNK_DIGITS_MAX
        error = CHUNK_EXT_LONG
    else:
        limit = g.max_fields - g.total
        if limit < 0:
            limit = 0
        error = FIELDS_LARGE
        if g.max_field <= limit:
            limit = g.max_field
            error = FIELD_LARGE
    upto = text if text < limit else limit
    if upto > g.scan and has_ctl(p + g.scan, upto - g.scan):
        return CTL
    return error if text > limit else OK


cdef int judge(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    if g.state == START:
        return request_line(g, p, n)
    if g.state == SIZE:
        return chunk_line(g, p, n)
    if n:
        return field(g, p, n)
    if g.state == FIELDS:
        return end_head(g)
    end_message(g)
    return OK


cdef Py_ssize_t run(Guard* g, const uint8_t* p, Py_ssize_t n, Py_ssize_t safe) noexcept nogil:
    """Go as far as the bytes allow; returns how many may be passed on, and leaves the rest in ``g``."""
    cdef Py_ssize_t i = g.line, end, text, step
    cdef const uint8_t* lf
    while g.state != DONE:
        if g.state == BODY or g.state == DATA:
            step = n - i if n - i < g.left else g.left
            i += step
            safe = i
            g.left -= step
            if g.left:
                break
            if g.state == BODY:
                end_message(g)
            else:
                g.state = DATA_END
            continue
        if i == n:
            break
        if g.state == DATA_END or (g.state == START and (p[i] == 13 or p[i] == 10)):
            if p[i] != 13:
                g.error = CHUNK_END if g.state == DATA_END else BARE_LF
                break
            if i + 1 == n:
                break
            if p[i + 1] != 10:
                g.error = CHUNK_END if g.state == DATA_END else CTL
                break
            if g.state == DATA_END:
                g.state = SIZE
            else:
                g.blank += 1
                if g.blank > BLANK_MAX:
                    g.error = BLANK
                    break
            i += 2
            safe = i
            continue
        lf = <const uint8_t*>memchr(p + i + g.scan, 10, n - i - g.scan)
        end = n if lf == NULL else lf - p
        text = end - i
        if text and p[end - 1] == 13:
            text -= 1
        g.error = growing(g, p + i, n - i, text)
        if g.error:
            break
        if lf == NULL:
            g.scan = text
            break
        if text == end - i:
            g.error = BARE_LF
            break
        g.error = judge(g, p + i, text)
        if g.error:
            break
        i = end + 1
        g.scan = 0
        if g.state != FIELDS:
            safe = i
    g.line = i
    return safe


cdef class RequestGuard:
    def __init__(self, Py_ssize_t max_target=16384, Py_ssize_t max_field=16384, Py_ssize_t max_fields=65536,
                 Py_ssize_t max_count=128, Py_ssize_t max_body=67108864, Py_ssize_t max_chunk_ext=4096):
        limits = (max_target, max_field, max_fields, max_count, max_body, max_chunk_ext)
        if min(limits) < 0 or max(limits) > LIMIT_MAX:
            raise ValueError("a limit is out of range")
        memset(&self.g, 0, sizeof(Guard))
        self.g.max_target, self.g.max_field, self.g.max_fields = max_target, max_field, max_fields
        self.g.max_count, self.g.max_body, self.g.max_chunk_ext = max_count, max_body, max_chunk_ext
        self.g.pub_length = -1
        self.held = None
        self.error_status = 0
        self.error_reason = ""
        self.error_in_body = False

    cpdef bytes feed(self, bytes data):
        if data is None:
            raise TypeError("data must be bytes")
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), safe = 0
        if self.g.state >= DONE:
            return b""
        if self.held is None:
            self.g.writable = False
            safe = run(&self.g, <const uint8_t*>PyBytes_AS_STRING(data), n, 0)
            if safe == n and not self.g.error:
                self.g.line = 0
                return data
            if self.g.error != NEED_COPY:
                if self.g.error == OK and self.g.state != DONE:
                    self.held = bytearray(data[safe:])
                    self.g.line -= safe
                self._settle()
                return data[:safe]
            self.g.error = OK
            self.held = bytearray(data)
        else:
            self.held += data
        self.g.writable = True
        safe = run(&self.g, <const uint8_t*>PyByteArray_AS_STRING(self.held), len(self.held), safe)
        out = bytes(self.held[:safe])
        self.g.line -= safe
        del self.held[:safe]
        self._settle()
        return out

    cdef _settle(self):
        """Turn an error of the core into the public one, and let go of what nobody waits for."""
        if self.g.error:
            self.error_in_body = BODY <= self.g.state <= TRAILERS
            self.error_status, self.error_reason = ERRORS[self.g.error]
            self.g.state = ERROR
        if self.g.state >= DONE or not self.held:
            self.held = None

    def body_passed(self, Py_ssize_t n):
        if self.g.state != BODY or not 0 <= n <= self.g.left:
            raise ValueError("not that many bytes of a body are due")
        self.g.left -= n
        if self.g.left == 0:
            end_message(&self.g)

    def unpassed(self):
        return b"" if self.held is None else bytes(self.held)

    @property
    def heads(self): return self.g.heads

    @property
    def messages(self): return self.g.messages

    @property
    def idle(self): return self.g.state == START and (not self.held or self.held == b"\r")

    @property
    def in_head(self): return self.g.state == FIELDS or (self.g.state == START and not self.idle)

    @property
    def in_body(self): return BODY <= self.g.state <= TRAILERS

    @property
    def done(self): return self.g.state == DONE

    @property
    def content_length(self): return self.g.pub_length

    @property
    def chunked(self): return bool(self.g.pub_te)

    @property
    def expect_continue(self): return bool(self.g.pub_expect)

    @property
    def keep_alive(self): return bool(self.g.keep_alive)


cdef class BodyBuffer:
    cdef bytes body
    cdef Py_ssize_t at, upto

    def __init__(self, Py_ssize_t size, bytes first not None=b"", Py_ssize_t start=0):
        cdef Py_ssize_t have = PyBytes_GET_SIZE(first) - start
        if start < 0 or have < 0 or have > size:
            raise ValueError("the first bytes are not the beginning of the body")
        self.body = PyBytes_FromStringAndSize(NULL, size)
        memcpy(PyBytes_AS_STRING(self.body), PyBytes_AS_STRING(first) + start, have)
        self.at = self.upto = have

    def room(self, Py_ssize_t most):
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self.body) - self.at
        self.upto = self.at + (most if most < left else left)
        return self

    def took(self, Py_ssize_t n):
        if not 0 <= n <= self.upto - self.at:
            raise ValueError("there was no room for so many bytes")
        self.at += n
        self.upto = self.at
        return PyBytes_GET_SIZE(self.body) - self.at

    def take(self):
        if self.at < PyBytes_GET_SIZE(self.body):
            raise BufferError("the body is not whole")
        return self.body

    def __getbuffer__(self, Py_buffer* view, int flags):
        # Nobody has seen the bytes object yet, and when it is whole there is no room any more.
        PyBuffer_FillInfo(view, self, PyBytes_AS_STRING(self.body) + self.at, self.upto - self.at, 0, flags)
