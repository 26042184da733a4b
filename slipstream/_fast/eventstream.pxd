# Contents of eventstream.pyx: the layout. What it owns and why it is so stands there.
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    EVENT = 1               # results of next(): the kind of the frame, after its :message-type
    EXCEPTION = 2
    ERROR = 3
    OTHER = 4
    BROKEN = 5

cdef enum:                  # why a stream is broken: an index of REASONS
    SOUND = 0
    PRELUDE_SUM = 1
    SIZE = 2
    FRAME_SUM = 3
    HEADERS = 4

cdef enum:                  # the headers that are kept: an index of Frame.field
    MESSAGE_TYPE = 0
    EVENT_TYPE = 1
    EXCEPTION_TYPE = 2
    ERROR_CODE = 3
    ERROR_MESSAGE = 4
    FIELDS = 5

cdef enum:
    PRELUDE = 12
    AROUND = 16             # the prelude and the checksum at the end
    HEADERS_MAX = 1 << 17   # of one frame, as in the SDKs of AWS
    KEEP_BUFFER = 1 << 16   # a join buffer larger than this is given back when it is empty

cdef struct Span:           # counts from the start of the buffer; ``at`` is -1 where there is none
    Py_ssize_t at, n

cdef struct Frame:
    Span field[FIELDS]
    Span payload

cdef struct Stream:
    const uint8_t* p
    Py_ssize_t n            # bytes in the buffer
    Py_ssize_t at           # first byte of the next frame
    Py_ssize_t max_frame
    Py_ssize_t total        # length of the unfinished frame once its prelude is checked, else 0
    Py_ssize_t headers      # and of its headers
    int broken
    Frame cur               # the last complete frame

cdef class EventStream:
    cdef Stream s
    cdef bytes chunk        # the buffer while nothing was carried over, else None: then it lies in ``own``
    cdef uint8_t* own
    cdef Py_ssize_t cap     # of ``own``
    cdef int join(self, const uint8_t* c, Py_ssize_t n) except -1
    cdef str text(self, int field)
