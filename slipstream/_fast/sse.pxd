# Contents of sse.pyx: the layout. What it owns and why it is so stands there.
from slipstream._fast.jsonreply cimport ReplyScan

cdef enum:
    DATA = 1
    MULTI = 2
    EVENT = 4
    STRAY = 8
    ERROR_FIELD = 16
    ID = 32
    RETRY = 64
    COMMENT = 128
    STRAY_MAX = 4096            # of a stray line: enough to show an error, not a whole HTML page in a log
    COMMENT_LINE_MAX = 1 << 16  # kept of an unfinished comment line; comments are keep-alives of some ten bytes
    COMMENTS_MAX = 8 << 20      # comment lines of one block that never ends: a bound for memory, not for comments
    KEEP_BUFFER = 1 << 16       # a join buffer larger than this is given back when it is empty

cdef struct Lines:        # a cursor over lines
    const char* p
    Py_ssize_t n          # bytes in the buffer
    Py_ssize_t pos        # first byte of the next line
    Py_ssize_t lf         # no LF in [pos, lf): where the search for the next one goes on, or the LF itself
    Py_ssize_t cr         # the same for CR

cdef struct Span:         # counts from the start of its block; valid only with its flag
    Py_ssize_t at, n

cdef struct Block:
    int flags
    Py_ssize_t start, end      # in the buffer; set when the block is complete
    Span data, event, id, error, stray  # data: the first of them
    Py_ssize_t data_total      # all data values, joined
    Py_ssize_t comment         # bytes of complete comment lines: they do not count against max_event
    long long retry

cdef struct Framer:
    Lines s
    Py_ssize_t block      # first byte of the unfinished block
    Py_ssize_t max_event
    Block work            # the unfinished block
    Block cur             # the last finished block
    bint bom              # the start of the stream is not decided yet
    bint skip             # inside a comment line that is not kept any more
    bint dead             # a limit was hit

cdef class SseFramer:
    cdef Framer f
    cdef bytes chunk      # the buffer while nothing was carried over, else None: then it lies in ``own``
    cdef char* own
    cdef Py_ssize_t cap   # of ``own``
    cdef bytes last_id
    cdef readonly Py_ssize_t start, end
    cdef readonly long long retry, events
    cdef readonly Py_ssize_t run_start, run_end     # of the last call of ordinary()
    cdef readonly int run_content, run_finish
    cpdef feed(self, bytes chunk)
    cpdef int ordinary(self, ReplyScan look) except -1
    cpdef bytes slice(self, Py_ssize_t start, Py_ssize_t end)
    cdef int join(self, const char* c, Py_ssize_t n) except -1
    cdef bytes span(self, Span s)
    cdef done(self, int got)
