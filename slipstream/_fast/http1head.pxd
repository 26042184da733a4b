# cython: language_level=3
"""The state of one RequestGuard and the judgement of a head, line by line (RFC 9112 2.2 to 6.3, 9.3).

A header (inline functions, no module) of http1.pyx; the grammar of single elements is in http1syntax.pxd. The
functions get a complete line without its end and return an index of ERRORS.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp

from slipstream._fast.http1syntax cimport (
    F_CONNECTION, F_EXPECT, F_HOST, F_LENGTH, F_OTHER, F_SINGLE, F_TE, F_UPGRADE, IS_TOKEN, KIND,
    forbidden_trailer, host_ok, known, known_method, next_item, same, target_ok,
)

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


cdef inline int request_line(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef const uint8_t* space = <const uint8_t*>memchr(p, c' ', n)
    cdef Py_ssize_t m = space - p, t
    cdef const uint8_t* target = space + 1
    cdef const uint8_t* version = <const uint8_t*>memchr(target, c' ', n - m - 1)
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
    if not known_method(p, m):
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


cdef inline int coding(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
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


cdef inline void connection(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, a = 0, b = 0
    while next_item(p, n, &i, &a, &b):
        if b - a == 5 and same(p + a, 5, b"close"):
            g.close = True
        elif b - a == 10 and same(p + a, 10, b"keep-alive"):
            g.keep = True


cdef inline int field(Guard* g, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, j, length = 0
    cdef bint tab = False
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
        return TRAILER if forbidden_trailer(p, i) else OK
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
        tab |= p[n - 1] == 9
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
        return CODING if tab else coding(g, p, n)
    elif which == F_CONNECTION:
        connection(g, p, n)
    elif not g.old:
        if n != 12 or not same(p, 12, b"100-continue"):
            return EXPECT
        g.expect = True
    return OK


cdef inline void end_message(Guard* g) noexcept nogil:
    g.messages += 1
    g.state = START if g.keep_alive else DONE


cdef inline int end_head(Guard* g) noexcept nogil:
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
