"""The compiled ``RequestGuard``: see ``http1.pyi`` for its use and ``_pure/http1.py`` for the specification.

The grammar of single elements is in ``http1syntax.pxd``. The core below knows pointers, offsets and error numbers
(indexes of ``ERRORS``). It reads each byte about twice: once for control characters (a loop that the C compiler
vectorizes), once in the check of its line.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memset, strlen

from slipstream._fast.http1syntax cimport (
    F_CONNECTION, F_EXPECT, F_HOST, F_LENGTH, F_OTHER, F_SINGLE, F_TE, F_UPGRADE, IS_HEX, IS_TOKEN, KIND,
    extension_ok, fill_kinds, has_ctl, host_ok, known, next_item, same, target_ok,
)

from ._pure.http1 import ERRORS, FORBIDDEN_TRAILERS, LIMIT_MAX, METHODS

cdef enum:  # the order of ERRORS, and one that never leaves this file
    OK, BARE_LF, CTL, BLANK, LINE, METHOD, NO_METHOD, TARGET_LONG, TARGET, VERSION, NO_VERSION, FIELD_LARGE
    FIELDS_LARGE, COUNT, FOLD, NAME, REPEATED, HOST_MISSING, HOST, LENGTH, BODY_LARGE, CODING, NO_CODING
    BOTH, CODING_10, EXPECT, CHUNK_SIZE, CHUNK_EXT, CHUNK_EXT_LONG, CHUNK_END, TRAILER
    NEED_COPY  # a byte must be changed: come again with a writable buffer

cdef enum:  # states: where in the stream the next byte stands
    START, FIELDS, BODY, SIZE, DATA, DATA_END, TRAILERS, DONE, ERROR

cdef enum:
    METHOD_MAX = 32
    BLANK_MAX = 2
    CHUNK_DIGITS_MAX = 16
    CHUNK_EXT_TOTAL = 16

cdef struct Guard:
    Py_ssize_t max_target, max_field, max_fields, max_count, max_body, max_chunk_ext
    int state, error
    bint writable
    Py_ssize_t line, scan           # start of the current line; how much of it has no control character
    Py_ssize_t blank, count, total  # empty lines before a head; fields and their bytes in a message
    Py_ssize_t left, body, ext      # bytes to come of this body or chunk; announced so far; bytes of extensions
    Py_ssize_t length, heads, messages
    uint32_t seen                   # one bit for each single field
    bint old, close, keep, te, expect
    Py_ssize_t pub_length           # of the last complete head
    bint pub_te, pub_expect, keep_alive

cdef const char* TRAILER_NAMES[64]
cdef const char* METHOD_NAMES[64]
cdef int n_trailers = 0, n_methods = 0


def _fill_tables():
    global n_trailers, n_methods
    fill_kinds()
    for name in _trailer_list:
        TRAILER_NAMES[n_trailers] = <const char*>(<bytes>name)
        n_trailers += 1
    for name in _method_list:
        METHOD_NAMES[n_methods] = <const char*>(<bytes>name)
        n_methods += 1


_trailer_list = sorted(FORBIDDEN_TRAILERS)  # these lists keep the strings alive for the pointers
_method_list = sorted(METHODS, key=lambda m: (m not in (b"GET", b"POST"), m))
_fill_tables()


cdef int request_line(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* space = <const uint8_t*>memchr(p, c' ', n)
    cdef Py_ssize_t m = space - p, t
    cdef const uint8_t* target = space + 1
    cdef const uint8_t* version = <const uint8_t*>memchr(target, c' ', n - m - 1)
    cdef int i
    if version == NULL or version == target:
        return LINE
    t = version - target
    version += 1
    if p + n - version != 8 or memcmp(version, b"HTTP/", 5) or version[6] != c'.' or not (
        c'0' <= version[5] <= c'9' and c'0' <= version[7] <= c'9'
    ):
        return VERSION
    if version[5] != c'1' or version[7] > c'1':
        return NO_VERSION
    for i in range(n_methods):
        if <Py_ssize_t>strlen(METHOD_NAMES[i]) == m and not memcmp(METHOD_NAMES[i], p, m):
            break
    else:
        return NO_METHOD
    if t > g.max_target:
        return TARGET_LONG
    if not target_ok(target, t, m == 7 and p[0] == c'O'):
        return TARGET
    g.old = version[7] == c'0'
    g.state = FIELDS
    g.blank = g.count = g.total = g.body = g.ext = 0
    g.seen = 0
    g.close = g.keep = g.te = g.expect = False
    g.length = -1
    return OK


cdef int coding(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Only ``chunked`` is served; a list that ends in one ``chunked`` is well framed, but not for us (501)."""
    cdef Py_ssize_t i = 0, a = 0, b = 0
    cdef int chunked = 0
    cdef bint last = False
    if n == 7 and same(p, 7, b"chunked"):
        g.te = True
        return OK
    while next_item(p, n, &i, &a, &b):
        last = b - a == 7 and same(p + a, 7, b"chunked")
        chunked += last
    return NO_CODING if last and chunked == 1 else CODING


cdef void connection(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, a = 0, b = 0
    while next_item(p, n, &i, &a, &b):
        if b - a == 5 and same(p + a, 5, b"close"):
            g.close = True
        elif b - a == 10 and same(p + a, 10, b"keep-alive"):
            g.keep = True


cdef int field(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, j, length = 0
    cdef int which
    if p[0] == 32 or p[0] == 9:
        return FOLD
    g.count += 1
    if g.count > g.max_count:
        return COUNT
    g.total += n + 2
    while i < n and KIND[p[i]] & IS_TOKEN:
        i += 1
    if i == 0 or i == n or p[i] != c':':
        return NAME
    if g.state == TRAILERS:
        for j in range(n_trailers):
            if <Py_ssize_t>strlen(TRAILER_NAMES[j]) == i and same(p, i, TRAILER_NAMES[j]):
                return TRAILER
        return OK
    which = known(p, i)
    if which == F_OTHER:
        return OK
    if which < F_CONNECTION:
        if g.seen >> which & 1:
            return REPEATED
        g.seen |= <uint32_t>1 << which
        if which >= F_SINGLE:
            return OK
    if which == F_UPGRADE:
        if not g.writable:
            g.count -= 1
            g.total -= n + 2
            return NEED_COPY
        (<uint8_t*>p)[0] = c'X'
        return OK
    i += 1
    while i < n and (p[i] == 32 or p[i] == 9):
        i += 1
    while n > i and (p[n - 1] == 32 or p[n - 1] == 9):
        n -= 1
    p += i
    n -= i
    if which == F_HOST:
        return OK if n == 0 or host_ok(p, n) else HOST
    if which == F_LENGTH:
        if n == 0:
            return LENGTH
        for j in range(n):
            if not c'0' <= p[j] <= c'9':
                return LENGTH
            if length < <Py_ssize_t>1000000000000000:  # above any limit
                length = length * 10 + p[j] - c'0'
        g.length = length
    elif which == F_TE:
        return coding(g, p, n)
    elif which == F_CONNECTION:
        connection(g, p, n)
    elif not g.old:
        if n != 12 or not same(p, 12, b"100-continue"):
            return EXPECT
        g.expect = True
    return OK


cdef void end_message(Guard* g) noexcept nogil:
    g.messages += 1
    g.state = START if g.keep_alive else DONE


cdef int end_head(Guard* g) noexcept nogil:
    if not g.old and not g.seen >> F_HOST & 1:
        return HOST_MISSING
    if g.te and g.old:
        return CODING_10
    if g.te and g.length >= 0:
        return BOTH
    if g.length > g.max_body:
        return BODY_LARGE
    g.heads += 1
    g.pub_length = g.length
    g.pub_te = g.te
    g.pub_expect = g.expect and (g.te or g.length > 0)
    g.keep_alive = not g.close and (g.keep or not g.old)
    if g.te:
        g.state = SIZE
    elif g.length > 0:
        g.state = BODY
        g.left = g.length
    else:
        end_message(g)
    return OK


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
    cdef Guard g
    cdef bytearray held
    cdef readonly int error_status
    cdef readonly str error_reason
    cdef readonly bint error_in_body

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

    def feed(self, bytes data not None):
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
