# cython: language_level=3
"""The state of one ResponseReader, the judgement of its heads and the framing of chunks (RFC 9112 4 to 7).

A header (inline functions, no module) of response.pyx. The functions that see a head get one line without its end and
return an index of REASONS; ``around_chunks`` gets one byte and returns the state behind it.
"""
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from slipstream._fast.http1syntax cimport IS_HEX, IS_TOKEN, KIND, has_ctl, next_item, same

cdef enum:  # the order of REASONS
    OK, STATUS_LINE, HEAD_LARGE, COUNT, CTL, FOLD, FIELD, LENGTH, LENGTHS, CODING, BOTH, CODING_10, SWITCH
    INFORMATIONAL, CHUNK_SIZE, CHUNK_EXT, EXT_LONG, CHUNK_END, TRAILER, TRAILERS_LARGE, NO_HEAD, TRUNCATED

cdef enum:  # states: what the next byte belongs to
    IN_HEAD, BY_LENGTH, DATA, TO_CLOSE, SIZE, EXT, SIZE_LF, DATA_CR, DATA_LF, TRAILER_START, TRAILER_NAME
    TRAILER_VALUE, TRAILER_LF, LAST_LF, DONE, SPOILT, ERROR

cdef enum:
    CHUNK_DIGITS_MAX = 16
    CHUNK_EXT_MAX = 4096

cdef struct Reader:
    Py_ssize_t max_head, max_fields, max_informational
    int state, error
    Py_ssize_t line, scan            # from the start of the head: the current line; up to where it has no LF
    Py_ssize_t fields, informational
    long long length, left           # Content-Length or -1; bytes to come of the body or chunk
    Py_ssize_t passed                # digits of a chunk size; bytes of an extension; bytes of the trailers
    int code
    bint old, te, close, keep


cdef inline int status_prefix(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Refuses a status line at its first wrong byte: a peer that says something else may never end the line."""
    cdef Py_ssize_t i
    if n >= 13 and not memcmp(p, b"HTTP/1.1 200 ", 13):
        return OK
    if memcmp(p, b"HTTP/1.", n if n < 7 else 7):
        return STATUS_LINE
    for i in range(7, n if n < 13 else 13):
        if i == 7:
            if p[i] != c'1' and p[i] != c'0':
                return STATUS_LINE
        elif i == 8:
            if p[i] != c' ':
                return STATUS_LINE
        elif i == 12:
            if p[i] != c' ' and p[i] != 13 and p[i] != 10:
                return STATUS_LINE
        elif not (c'0' <= p[i] <= c'9') or (i == 9 and not c'1' <= p[i] <= c'5'):
            return STATUS_LINE
    return OK


cdef inline int status_line(Reader* r, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    if has_ctl(p + 12, n - 12):
        return CTL
    r.old = p[7] == c'0'
    r.code = (p[9] - c'0') * 100 + (p[10] - c'0') * 10 + p[11] - c'0'
    r.fields = 0
    r.length = -1
    r.te = r.close = r.keep = False
    return OK


cdef inline int framing_field(Reader* r, const uint8_t* p, Py_ssize_t name, Py_ssize_t n) noexcept nogil:
    """Content-Length, Transfer-Encoding or Connection; ``p`` to ``n`` is the line, ``name`` long its name."""
    cdef Py_ssize_t a = name + 1, b = n, i = 0
    cdef long long length = 0
    while a < b and (p[a] == 32 or p[a] == 9):
        a += 1
    while a < b and (p[b - 1] == 32 or p[b - 1] == 9):
        b -= 1
    if name == 14:
        if a == b:
            return LENGTH
        for i in range(a, b):
            if not c'0' <= p[i] <= c'9' or length > (0x7fffffffffffffffLL - (p[i] - c'0')) // 10:
                return LENGTH
            length = length * 10 + (p[i] - c'0')
        if r.length >= 0 and r.length != length:
            return LENGTHS
        r.length = length
    elif name == 17:
        if r.te or b - a != 7 or not same(p + a, 7, b"chunked"):
            return CODING
        r.te = True
    else:
        p += a
        n = b - a
        while next_item(p, n, &i, &a, &b):
            if b - a == 5 and same(p + a, 5, b"close"):
                r.close = True
            elif b - a == 10 and same(p + a, 10, b"keep-alive"):
                r.keep = True
    return OK


cdef inline int field(Reader* r, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0
    r.fields += 1
    if r.fields > r.max_fields:
        return COUNT
    while i < n and KIND[p[i]] & IS_TOKEN:
        i += 1
    if i == 0 and (p[0] == 32 or p[0] == 9):
        return FOLD
    if i == 0 or i == n or p[i] != c':':
        return FIELD
    if has_ctl(p + i + 1, n - i - 1):
        return CTL
    if (i == 14 and same(p, 14, b"content-length")) or (i == 17 and same(p, 17, b"transfer-encoding")) or (
        i == 10 and same(p, 10, b"connection")
    ):
        return framing_field(r, p, i, n)
    return OK


cdef inline int end_head(Reader* r) noexcept nogil:
    if r.te and r.length >= 0:
        return BOTH
    if r.te and r.old:
        return CODING_10
    if r.code == 101:
        return SWITCH
    if r.code < 200:
        r.informational += 1
        return INFORMATIONAL if r.informational > r.max_informational else OK
    if r.code == 204 or r.code == 304:
        r.length = 0
        r.te = False
    r.left = 0
    r.passed = 0
    if r.te:
        r.state = SIZE
    elif r.length < 0:
        r.state = TO_CLOSE
    else:
        r.left = r.length
        r.state = BY_LENGTH if r.length else DONE
    return OK


cdef inline int refuse(Reader* r, int error) noexcept nogil:
    r.error = error
    return ERROR


cdef inline int around_chunks(Reader* r, uint8_t c) noexcept nogil:
    """The state behind one byte that belongs to no body: sizes, extensions, line ends, trailers."""
    cdef bint ctl = (c < 32 and c != 9) or c == 127
    if r.state == SIZE:
        if KIND[c] & IS_HEX:
            r.passed += 1
            if r.passed > CHUNK_DIGITS_MAX or r.left >> 59:
                return refuse(r, CHUNK_SIZE)
            r.left = r.left << 4 | (c & 15 if c <= c'9' else (c & 15) + 9)
            return SIZE
        if r.passed == 0 or (c != 13 and c != c';'):
            return refuse(r, CHUNK_SIZE)
        r.passed = 1
        return SIZE_LF if c == 13 else EXT
    if r.state == SIZE_LF:
        r.passed = 0
        return refuse(r, CHUNK_SIZE) if c != 10 else DATA if r.left else TRAILER_START
    if r.state == DATA_CR:
        return DATA_LF if c == 13 else refuse(r, CHUNK_END)
    if r.state == DATA_LF:
        return SIZE if c == 10 else refuse(r, CHUNK_END)
    r.passed += 1
    if r.state == EXT:
        if c == 13:
            return SIZE_LF
        return refuse(r, CHUNK_EXT) if ctl else refuse(r, EXT_LONG) if r.passed > CHUNK_EXT_MAX else EXT
    if r.passed > r.max_head:
        return refuse(r, TRAILERS_LARGE)
    if r.state == TRAILER_VALUE:
        return TRAILER_LF if c == 13 else refuse(r, TRAILER) if ctl else TRAILER_VALUE
    if r.state == TRAILER_LF:
        return TRAILER_START if c == 10 else refuse(r, TRAILER)
    if r.state == LAST_LF:
        return DONE if c == 10 else refuse(r, TRAILER)
    if KIND[c] & IS_TOKEN:
        return TRAILER_NAME
    if r.state == TRAILER_START and c == 13:
        return LAST_LF
    return TRAILER_VALUE if r.state == TRAILER_NAME and c == c':' else refuse(r, TRAILER)
