"""Framing of ``text/event-stream`` (WHATWG HTML 9.2.6) by offsets.

Owns: where an event begins and ends in the bytes of an upstream, and where its fields lie. It knows no JSON, no
provider and no policy.

Why so: a relay passes the *bytes* of complete events on untouched and looks at the data on the side, so an event is a
pair of offsets and not an object; ``data()`` and the like make bytes only when somebody asks. While nothing is carried
over from the last chunk the framer works on the chunk object itself. The next LF and the next CR are remembered, each
byte is therefore searched once for each of them, however the stream is cut.

The rule that must not be broken: offsets are only good in the buffer they were found in. Fields are kept relative to
the start of their block, because an unfinished block moves when the next chunk is joined to it; the finished block is
forgotten by ``feed()``.

Structs: ``sse.pxd``. Documentation of the face: ``sse.pyi``. Same behaviour in plain words: ``_pure/sse.py``.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp, memcpy, memmove

from slipstream._fast.jsonreply cimport ReplyScan

from slipstream._fast._errors import SseLimitError

cdef long long RETRY_MAX = (1 << 53) - 1       # what every JSON reader can hold; larger values saturate
cdef tuple CODES = tuple(range(0x100, 0x200))  # results of next(): CPython keeps no ready ints above 256

F_DATA, F_MULTI, F_EVENT, F_STRAY = DATA, MULTI, EVENT, STRAY
F_ERROR_FIELD, F_ID, F_RETRY, F_COMMENT = ERROR_FIELD, ID, RETRY, COMMENT
F_LIMIT = 0x200


# ---- core ----------------------------------------------------------------------------------------------------------

cdef inline Py_ssize_t find(const char* p, Py_ssize_t at, Py_ssize_t n, char c) noexcept nogil:
    """First ``c`` at or behind ``at``, or ``n``."""
    cdef const char* hit
    if at < n and p[at] != c:
        hit = <const char*>memchr(p + at, c, n - at)
        return hit - p if hit != NULL else n
    return at


cdef inline Py_ssize_t take_line(Lines* s) noexcept nogil:
    """End of the line at ``pos``, or -1 when it is unfinished; ``pos`` moves behind LF, CR or CRLF."""
    cdef Py_ssize_t end
    s.lf = find(s.p, max(s.lf, s.pos), s.n, c'\n')
    s.cr = find(s.p, max(s.cr, s.pos), s.n, c'\r')
    end = min(s.lf, s.cr)
    if end >= s.n:
        return -1
    s.pos = end + 2 if s.lf == s.cr + 1 and s.lf < s.n else end + 1
    return end


cdef inline Py_ssize_t data_value(const char* p, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Start of the value when the line is a data field, else -1."""
    if end - at < 4 or memcmp(p + at, b"data", 4) != 0 or (end - at > 4 and p[at + 4] != c':'):
        return -1
    at += 5
    if at >= end:
        return end
    return at + 1 if p[at] == c' ' else at


cdef bint plain_name(const char* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not (c'a' <= p[i] <= c'z' or c'A' <= p[i] <= c'Z' or c'0' <= p[i] <= c'9' or p[i] == c'-' or p[i] == c'_'):
            return False
    return True


cdef long long number(const char* p, Py_ssize_t n) noexcept nogil:
    """The value of a retry field, or -1 when it is not made of ASCII digits only."""
    cdef Py_ssize_t i
    cdef long long v = 0
    for i in range(n):
        if not c'0' <= p[i] <= c'9':
            return -1
        v = min(v * 10 + (p[i] - c'0'), RETRY_MAX)
    return v if n else -1


cdef void other_field(Block* b, const char* p, Py_ssize_t base, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """Every line that is neither data nor a comment. Last one wins, as with WHATWG; of our own two the first."""
    cdef Py_ssize_t colon = find(p, at, end, c':'), name = colon - at, v = min(colon + 1, end)
    cdef const char* k = p + at
    cdef Span value
    if v < end and p[v] == c' ':
        v += 1
    value = Span(at=v - base, n=end - v)
    if name == 5 and memcmp(k, b"event", 5) == 0:
        b.flags |= EVENT
        b.event = value
    elif name == 2 and memcmp(k, b"id", 2) == 0:
        if memchr(p + v, 0, end - v) == NULL:
            b.flags |= ID
            b.id = value
    elif name == 5 and memcmp(k, b"retry", 5) == 0:
        if number(p + v, end - v) >= 0:
            b.flags |= RETRY
            b.retry = number(p + v, end - v)
    elif name == 5 and memcmp(k, b"error", 5) == 0:
        if not b.flags & ERROR_FIELD:
            b.flags |= ERROR_FIELD
            b.error = value
    elif not b.flags & STRAY and not plain_name(k, name):
        b.flags |= STRAY
        b.stray = Span(at=at - base, n=min(end - at, <Py_ssize_t>STRAY_MAX))


cdef inline void take_field(Framer* f, Py_ssize_t at, Py_ssize_t end) noexcept nogil:
    """One line ``[at, end)`` of the unfinished block, not empty; ``pos`` is behind its line end."""
    cdef Block* b = &f.work
    cdef Py_ssize_t v = data_value(f.s.p, at, end)
    if v >= 0:
        if b.flags & DATA:
            b.flags |= MULTI
            b.data_total += 1 + end - v
        else:
            b.flags |= DATA
            b.data = Span(at=v - f.block, n=end - v)
            b.data_total = end - v
    elif f.s.p[at] == c':':
        b.flags |= COMMENT
        b.comment += f.s.pos - at
    else:
        other_field(b, f.s.p, f.block, at, end)


cdef int finish(Framer* f) noexcept nogil:
    """The block ends at ``pos``: 1, or -1 when it is too large."""
    if f.s.pos - f.block - f.work.comment > f.max_event:
        f.dead = True
        return -1
    f.cur = f.work
    f.cur.start, f.cur.end = f.block, f.s.pos
    f.block = f.s.pos
    f.work.flags = 0
    f.work.comment = 0
    return 1


cdef int scan(Framer* f) noexcept nogil:
    """Goes to the next blank line: 1 a block is complete, 0 more bytes are needed, -1 the block is too large."""
    cdef Py_ssize_t at, end, held
    if f.dead:
        return -1
    while not f.bom:
        at = f.s.pos
        end = take_line(&f.s)
        if end == at:
            return finish(f)
        if end < 0:
            break
        take_field(f, at, end)
    held = f.s.n if f.s.pos == f.s.n or f.s.p[f.s.pos] != c':' else f.s.pos  # an unfinished comment counts neither
    f.dead = held - f.block - f.work.comment > f.max_event or f.work.comment > COMMENTS_MAX
    return -1 if f.dead else 0


cdef int finish_rest(Framer* f) noexcept nogil:
    """As if a line end and a blank line followed; 0 when only white space is left."""
    cdef Py_ssize_t i = f.block, at = f.s.pos
    while i < f.s.n and (f.s.p[i] == c' ' or c'\t' <= f.s.p[i] <= c'\r'):
        i += 1
    if i == f.s.n:
        return 0
    f.bom = f.skip = False
    f.s.pos = f.s.n
    if at < f.s.n:
        take_field(f, at, f.s.n)
    return finish(f)


cdef void join_data(const char* p, Block* b, char* out) noexcept nogil:
    """Writes all data values with LF between them, ``data_total`` bytes; ``p``: the block."""
    cdef Py_ssize_t at, end, v = b.data.at
    cdef Lines s = Lines(p=p, n=b.end - b.start, pos=v + b.data.n, lf=0, cr=0)
    memcpy(out, p + v, b.data.n)
    out += b.data.n
    while s.pos < s.n:
        at = s.pos
        end = take_line(&s)
        if end < 0:            # only after flush(): the last line has no end
            end = s.pos = s.n
        v = data_value(p, at, end)
        if v >= 0:
            out[0] = c'\n'
            memcpy(out + 1, p + v, end - v)
            out += 1 + end - v


cdef void cut_comment(Framer* f) noexcept nogil:
    """Before a join: of an unfinished comment line only the first 64 KiB are kept, cut between characters."""
    cdef Lines* s = &f.s
    cdef Py_ssize_t n = s.pos + COMMENT_LINE_MAX
    if n < s.n and s.p[s.pos] == c':' and s.lf >= s.n and s.cr >= s.n:
        while n > s.pos + COMMENT_LINE_MAX - 3 and s.p[n] & 0xC0 == 0x80:
            n -= 1
        s.n = s.lf = s.cr = n
        f.skip = True


cdef void skip_bom(Framer* f) noexcept nogil:
    cdef Py_ssize_t n = min(f.s.n, <Py_ssize_t>3)
    f.bom = memcmp(f.s.p, b"\xef\xbb\xbf", n) == 0
    if f.bom and n == 3:
        f.bom = False
        f.block = f.s.pos = 3


# ---- face ----------------------------------------------------------------------------------------------------------

cdef enum:
    UNUSUAL = 1 | 2 | 32        # of a reply: R_INVALID, R_ERROR, R_USAGE
    CONTENT = 8                 # R_CONTENT
    FINISH = 16                 # R_FINISH
    LIMIT = 0x200               # instead of the exception: what came before it is still to be relayed


@cython.final
cdef class SseFramer:
    def __cinit__(self, Py_ssize_t max_event=8 * 1024 * 1024):
        if max_event <= 0:
            raise ValueError("max_event must be positive")
        self.f.max_event = max_event
        self.f.bom = True
        self.retry = -1
        self.last_id = b""

    def __dealloc__(self):
        PyMem_Free(self.own)

    cpdef feed(self, bytes chunk):
        if chunk is None:
            raise TypeError("chunk must be bytes")
        cdef Framer* f = &self.f
        cdef const char* c = PyBytes_AS_STRING(chunk)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(chunk), i = 0
        cdef bint split_crlf = f.s.n > 0 and f.s.pos == f.s.n and f.s.p[f.s.n - 1] == c'\r' and c[0] == c'\n'
        if f.dead:
            self.done(-1)
        f.cur.flags = 0
        f.cur.start = self.start = self.end = 0
        if n == 0:
            return
        if f.block == f.s.n:
            if self.cap > KEEP_BUFFER:
                PyMem_Free(self.own)
                self.own, self.cap = NULL, 0
            self.chunk = chunk
            f.s = Lines(p=c, n=n, pos=split_crlf, lf=0, cr=0)
            f.block = split_crlf
        else:
            cut_comment(f)
            if f.skip:
                i = min(find(c, 0, n, c'\n'), find(c, 0, n, c'\r'))
                if i == n:
                    return
                f.skip = False
            self.join(c + i, n - i)
            f.s.pos += split_crlf
        if f.bom:
            skip_bom(f)

    cdef int join(self, const char* c, Py_ssize_t n) except -1:
        """The unfinished block and ``n`` more bytes become the buffer."""
        cdef Framer* f = &self.f
        cdef const char* src = f.s.p + f.block
        cdef Py_ssize_t tail = f.s.n - f.block, need = tail + n
        cdef char* dst = <char*>src
        if self.chunk is not None or src + need > self.own + self.cap:
            if need <= self.cap and (self.chunk is not None or src - self.own >= tail):  # what is moved was paid for
                dst = self.own
                memmove(dst, src, tail)
            else:
                dst = <char*>PyMem_Malloc(2 * need)
                if dst == NULL:
                    raise MemoryError
                memcpy(dst, src, tail)
                PyMem_Free(self.own)
                self.own, self.cap = dst, 2 * need
        memcpy(dst + tail, c, n)
        self.chunk = None
        f.s = Lines(p=dst, n=need, pos=f.s.pos - f.block, lf=f.s.lf - f.block, cr=f.s.cr - f.block)
        f.block = 0
        return 0

    cdef inline bytes span(self, Span s):
        return PyBytes_FromStringAndSize(self.f.s.p + self.f.cur.start + s.at, s.n)

    cdef inline done(self, int got):
        cdef Block* b = &self.f.cur
        if got == 0:
            return 0
        if got < 0:
            raise SseLimitError(f"an event of the stream is larger than {self.f.max_event} bytes")
        self.start, self.end = b.start, b.end
        self.events += b.flags & DATA
        if b.flags & ID:
            self.last_id = self.span(b.id)
        if b.flags & RETRY:
            self.retry = b.retry
        return CODES[b.flags]

    def next(self):
        return self.done(scan(&self.f))

    cpdef int ordinary(self, ReplyScan look) except -1:
        """Over the blocks that a relay passes on without a second thought; the flags of the first other one."""
        if look is None:
            raise TypeError("look must be a ReplyScan")
        cdef Framer* f = &self.f
        cdef Block* b = &f.cur
        cdef int got, found
        self.run_start = self.run_end = -1
        self.run_content = self.run_finish = 0
        while True:
            got = scan(f)
            if got < 0:
                return LIMIT
            if got == 0:
                return 0
            if b.flags & DATA:
                if b.flags & (MULTI | STRAY | ERROR_FIELD | ID | RETRY):
                    break
                found = look.look(<const uint8_t*>f.s.p + b.start + b.data.at, b.data.n)
                if found & UNUSUAL:
                    break
                self.events += 1
                self.run_content += (found & CONTENT) != 0
                self.run_finish += (found & FINISH) != 0
            elif b.flags & ~COMMENT:
                break
            if self.run_start < 0:
                self.run_start = b.start
            self.run_end = b.end
        return self.done(got)

    def flush(self):
        cdef int got = scan(&self.f)
        return self.done(got if got != 0 else finish_rest(&self.f))

    def data(self):
        cdef Block* b = &self.f.cur
        if not b.flags & MULTI:
            return self.span(b.data) if b.flags & DATA else b""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, b.data_total)
        join_data(self.f.s.p + b.start, b, PyBytes_AS_STRING(out))
        return out

    def event(self):
        return self.span(self.f.cur.event).decode("utf-8", "replace") if self.f.cur.flags & EVENT else ""

    def id(self):
        return self.last_id.decode("utf-8", "replace")

    def error_field(self):
        return self.span(self.f.cur.error) if self.f.cur.flags & ERROR_FIELD else b""

    def stray(self):
        return self.span(self.f.cur.stray) if self.f.cur.flags & STRAY else b""

    cpdef bytes slice(self, Py_ssize_t start, Py_ssize_t end):
        if not 0 <= start <= end <= self.f.s.n:
            raise ValueError("span outside of the buffer")
        if self.chunk is not None and start == 0 and end == PyBytes_GET_SIZE(self.chunk):
            return self.chunk
        return PyBytes_FromStringAndSize(self.f.s.p + start, end - start)

    def rest(self):
        return self.slice(self.f.block, self.f.s.n)

    @property
    def pending(self):
        return self.f.s.n - self.f.block
