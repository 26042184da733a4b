"""Framing of ``application/vnd.amazon.eventstream`` (PROTOCOLS.md section 4) by offsets.

Owns: where a frame begins and ends, whether both of its checksums are right, which of its headers say what it is, and
where its payload lies. It knows no JSON and no provider.

Why so: a stream of a model is thousands of frames of 200 bytes. Checksums and headers are read in one crossing, without
an object; strings and the payload are made when somebody asks. While nothing is carried over from the last chunk the
frames are read in the chunk object itself.

The rule that must not be broken: nothing is believed before it was checked. A length is used only after the checksum of
the prelude and the limits, headers only after the checksum of the frame; a stream that failed once stays broken.

Layout: ``eventstream.pxd``. Documentation of the face: ``eventstream.pyi``. In plain words: ``_pure/eventstream.py``.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove, memset

from ._pure import eventstream as _pure

M_EVENT, M_EXCEPTION, M_ERROR, M_OTHER, M_BROKEN = EVENT, EXCEPTION, ERROR, OTHER, BROKEN
cdef tuple REASONS = _pure.REASONS

cdef uint32_t SUMS[8][256]  # CRC-32 of IEEE 802.3, eight bytes at a time (Kounavis and Berry, "slicing by 8")
cdef int WIDTHS[10]         # of the value by its type; -1: a two-byte length and so many bytes
WIDTHS[:] = [0, 0, 1, 2, 4, 8, -1, -1, 8, 16]


# ---- core ----------------------------------------------------------------------------------------------------------

cdef void fill_sums() noexcept nogil:
    cdef uint32_t c
    cdef int i, k
    for i in range(256):
        c = i
        for k in range(8):
            c = c >> 1 ^ (<uint32_t>0xEDB88320 if c & 1 else 0)
        SUMS[0][i] = c
    for i in range(256):
        for k in range(1, 8):
            SUMS[k][i] = SUMS[k - 1][i] >> 8 ^ SUMS[0][SUMS[k - 1][i] & 255]


fill_sums()


cdef inline uint32_t le32(const uint8_t* p) noexcept nogil:
    return p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return p[3] | <uint32_t>p[2] << 8 | <uint32_t>p[1] << 16 | <uint32_t>p[0] << 24


cdef uint32_t checksum(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef uint32_t c = <uint32_t>0xFFFFFFFF, d
    while n >= 8:
        c ^= le32(p)
        d = le32(p + 4)
        c = (
            SUMS[7][c & 255] ^ SUMS[6][c >> 8 & 255] ^ SUMS[5][c >> 16 & 255] ^ SUMS[4][c >> 24]
            ^ SUMS[3][d & 255] ^ SUMS[2][d >> 8 & 255] ^ SUMS[1][d >> 16 & 255] ^ SUMS[0][d >> 24]
        )
        p += 8
        n -= 8
    while n > 0:
        c = c >> 8 ^ SUMS[0][(c ^ p[0]) & 255]
        p += 1
        n -= 1
    return ~c


cdef int read_prelude(Stream* s) noexcept nogil:
    """The twelve bytes at ``at``: why they are broken, or SOUND."""
    cdef const uint8_t* p = s.p + s.at
    cdef Py_ssize_t total = be32(p), headers = be32(p + 4)
    if checksum(p, 8) != be32(p + 8):
        return PRELUDE_SUM
    if total < AROUND or total > s.max_frame or headers > HEADERS_MAX or headers > total - AROUND:
        return SIZE
    s.total, s.headers = total, headers
    return SOUND


cdef int field_of(const uint8_t* name, int n) noexcept nogil:
    """The field that a header's name means, or FIELDS."""
    if n == 13 and memcmp(name, b":message-type", 13) == 0:
        return MESSAGE_TYPE
    if n == 11 and memcmp(name, b":event-type", 11) == 0:
        return EVENT_TYPE
    if n == 15 and memcmp(name, b":exception-type", 15) == 0:
        return EXCEPTION_TYPE
    if n == 11 and memcmp(name, b":error-code", 11) == 0:
        return ERROR_CODE
    if n == 14 and memcmp(name, b":error-message", 14) == 0:
        return ERROR_MESSAGE
    return FIELDS


cdef bint read_headers(Stream* s, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Fill the fields of ``cur``; False where the bytes are no headers, or say the same one twice."""
    cdef const uint8_t* p = s.p
    cdef int name, width, field
    cdef Py_ssize_t start
    while at < end:
        name = p[at]
        start = at + 1
        at = start + name
        if name == 0 or at >= end or p[at] > 9:
            return False
        field = field_of(p + start, name) if p[at] == 7 else FIELDS
        width = WIDTHS[p[at]]
        at += 1
        if width < 0:
            if end - at < 2:
                return False
            width = p[at] << 8 | p[at + 1]
            at += 2
        if end - at < width:
            return False
        if field != FIELDS:
            if s.cur.field[field].at >= 0:
                return False
            s.cur.field[field] = Span(at=at, n=width)
        at += width
    return True


cdef int kind_of(Stream* s) noexcept nogil:
    cdef Span word = s.cur.field[MESSAGE_TYPE]
    if word.n == 5 and memcmp(s.p + word.at, b"event", 5) == 0:
        return EVENT
    if word.n == 9 and memcmp(s.p + word.at, b"exception", 9) == 0:
        return EXCEPTION
    if word.n == 5 and memcmp(s.p + word.at, b"error", 5) == 0:
        return ERROR
    return OTHER


cdef void forget(Stream* s) noexcept nogil:
    cdef int i
    for i in range(FIELDS):
        s.cur.field[i] = Span(at=-1, n=0)
    s.cur.payload = Span(at=0, n=0)


cdef int fail(Stream* s, int reason) noexcept nogil:
    forget(s)
    s.broken = reason
    return BROKEN


cdef int scan(Stream* s) noexcept nogil:
    """Goes to the next frame: its kind, 0 when more bytes are needed, or BROKEN."""
    cdef Py_ssize_t left = s.n - s.at, end
    cdef int reason
    if s.broken:
        return BROKEN
    if s.total == 0:
        if left < PRELUDE:
            return 0
        reason = read_prelude(s)
        if reason:
            return fail(s, reason)
    if left < s.total:
        return 0
    forget(s)
    end = s.at + s.total
    if checksum(s.p + s.at, s.total - 4) != be32(s.p + end - 4):
        return fail(s, FRAME_SUM)
    if not read_headers(s, s.at + PRELUDE, s.at + PRELUDE + s.headers):
        return fail(s, HEADERS)
    s.cur.payload = Span(at=s.at + PRELUDE + s.headers, n=s.total - AROUND - s.headers)
    s.at = end
    s.total = 0
    return kind_of(s)


# ---- face ----------------------------------------------------------------------------------------------------------

cdef class EventStream:
    def __init__(self, Py_ssize_t max_frame=_pure.MAX_FRAME):
        if max_frame < AROUND:
            raise ValueError("max_frame is too small for a frame")
        memset(&self.s, 0, sizeof(Stream))
        self.s.max_frame = max_frame
        self.chunk = b""
        self.s.p = <const uint8_t*>PyBytes_AS_STRING(self.chunk)
        forget(&self.s)

    def __dealloc__(self):
        PyMem_Free(self.own)

    def feed(self, chunk):
        if type(chunk) is not bytes:
            raise TypeError(f"bytes wanted, not {type(chunk).__name__}")
        cdef Stream* s = &self.s
        cdef const uint8_t* c = <const uint8_t*>PyBytes_AS_STRING(chunk)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(chunk)
        forget(s)
        if n == 0 or s.broken:
            return
        if s.at < s.n:
            self.join(c, n)
            return
        if self.cap > KEEP_BUFFER:
            PyMem_Free(self.own)
            self.own, self.cap = NULL, 0
        self.chunk = chunk
        s.p, s.n, s.at = c, n, 0

    cdef int join(self, const uint8_t* c, Py_ssize_t n) except -1:
        """The unfinished frame and ``n`` more bytes become the buffer."""
        cdef Stream* s = &self.s
        cdef const uint8_t* src = s.p + s.at
        cdef Py_ssize_t tail = s.n - s.at, need = tail + n
        cdef uint8_t* dst = <uint8_t*>src
        if self.chunk is not None or src + need > self.own + self.cap:
            if need <= self.cap and (self.chunk is not None or src - self.own >= tail):  # what is moved was paid for
                dst = self.own
                memmove(dst, src, tail)
            else:
                dst = <uint8_t*>PyMem_Malloc(2 * need)
                if dst == NULL:
                    raise MemoryError
                memcpy(dst, src, tail)
                PyMem_Free(self.own)
                self.own, self.cap = dst, 2 * need
        memcpy(dst + tail, c, n)
        self.chunk = None
        s.p, s.n, s.at = dst, need, 0
        return 0

    def next(self):
        return scan(&self.s)

    cdef str text(self, int field):
        cdef Span value = self.s.cur.field[field]
        if value.at < 0:
            return ""
        return PyUnicode_DecodeUTF8(<const char*>self.s.p + value.at, value.n, "replace")

    @property
    def event_type(self):
        return self.text(EVENT_TYPE)

    @property
    def message_type(self):
        return self.text(MESSAGE_TYPE)

    @property
    def exception_type(self):
        return self.text(EXCEPTION_TYPE)

    @property
    def error_code(self):
        return self.text(ERROR_CODE)

    @property
    def error_message(self):
        return self.text(ERROR_MESSAGE)

    def payload(self):
        cdef Span body = self.s.cur.payload
        return PyBytes_FromStringAndSize(<const char*>self.s.p + body.at, body.n)

    @property
    def pending(self):
        return self.s.n - self.s.at

    @property
    def reason(self):
        return REASONS[self.s.broken]
