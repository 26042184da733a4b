"""The compiled ``RequestHead``: reads a head that ``RequestGuard`` has passed. See ``head.pyi`` for its use.

The guard says whether a head may be served, this says what is in it: which route, how long the body is, and where the few
fields are that the data plane looks at. It trusts the guard (lines end in CRLF, names are tokens, lengths are digits) and
is still safe on any bytes: it never looks behind ``n``.

The rule that must not be broken: no field is copied unless somebody asks for it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp

from slipstream._fast.http1syntax cimport next_item, same

H_AUTHORIZATION, H_API_KEY, H_CONTENT_TYPE, H_CONTENT_ENCODING, H_REQUEST_ID, H_ORIGIN, H_TIMEOUT, H_ACCEPT = range(N_FIELDS)

cdef int field_id(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Which of the fields we look at is called so; -1 for the others. Lengths first: most names fail there."""
    if n == 13 and same(p, 13, b"authorization"):
        return 0
    if n == 9 and same(p, 9, b"x-api-key"):
        return 1
    if n == 12:
        if same(p, 12, b"content-type"):
            return 2
        if same(p, 12, b"x-request-id"):
            return 4
    if n == 16 and same(p, 16, b"content-encoding"):
        return 3
    if n == 6:
        if same(p, 6, b"origin"):
            return 5
        if same(p, 6, b"accept"):
            return 7
    if n == 17 and same(p, 17, b"x-request-timeout"):
        return 6
    return -1


cdef void framing(Head* h, const uint8_t* p, Py_ssize_t name, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The fields that say where the message ends and what happens to the connection then."""
    cdef Py_ssize_t i, a, b
    if name == 14 and same(p, 14, b"content-length"):
        h.length = 0
        for i in range(start, end if end - start <= LENGTH_MAX_DIGITS else start + LENGTH_MAX_DIGITS):
            h.length = h.length * 10 + (p[i] - c'0')
    elif name == 17 and same(p, 17, b"transfer-encoding"):
        h.chunked = True
    elif name == 10 and same(p, 10, b"connection"):
        i = a = b = 0
        while next_item(p + start, end - start, &i, &a, &b):
            if b - a == 5 and same(p + start + a, 5, b"close"):
                h.close = True
            elif b - a == 10 and same(p + start + a, 10, b"keep-alive"):
                h.keep = True
    elif name == 6 and same(p, 6, b"expect"):
        h.expect = True


cdef bint read_head(Head* h, const uint8_t* p, Py_ssize_t n, Route* routes, int n_routes) noexcept nogil:
    """Fill ``h`` from the head at ``p``; False if it is not whole."""
    cdef const uint8_t* lf = <const uint8_t*>memchr(p, 10, n)
    cdef const uint8_t* colon
    cdef Py_ssize_t i, end, path, start, stop
    cdef int k
    for k in range(N_FIELDS):
        h.fields[k].start = h.fields[k].end = -1
    h.length = -1
    h.route = -1
    if lf == NULL:
        return False
    end = lf - p
    h.chunked = h.keep = h.close = h.expect = False
    h.old = end >= 2 and p[end - 2] == c'0'
    if end > 15 and not memcmp(p, b"POST ", 5):
        path = 5
        while path < end and p[path] != c' ' and p[path] != c'?':
            path += 1
        for k in range(n_routes):
            if routes[k].n == path - 5 and not memcmp(p + 5, routes[k].path, path - 5):
                h.route = k
                break
    i = end + 1
    while True:
        lf = <const uint8_t*>memchr(p + i, 10, n - i)
        if lf == NULL:
            return False
        end = lf - p
        if end - i <= 1:
            h.end = end + 1
            return True
        colon = <const uint8_t*>memchr(p + i, c':', end - i)
        if colon != NULL:
            start = colon - p + 1
            stop = end - 1 if end - 1 > start else start
            while start < stop and (p[start] == 32 or p[start] == 9):
                start += 1
            while stop > start and (p[stop - 1] == 32 or p[stop - 1] == 9):
                stop -= 1
            k = field_id(p + i, colon - p - i)
            if k >= 0:
                if h.fields[k].start < 0:
                    h.fields[k].start = start
                    h.fields[k].end = stop
            else:
                framing_at(h, p, i, colon - p - i, start, stop)
        i = end + 1


cdef inline void framing_at(Head* h, const uint8_t* p, Py_ssize_t i, Py_ssize_t name, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    framing(h, p + i, name, start - i, stop - i)


cdef class RequestHead:
    def __init__(self, tuple paths not None):
        if len(paths) > MAX_ROUTES:
            raise ValueError("too many routes")
        self.h.route = self.h.length = -1
        self._publish()
        self.paths = paths  # keeps the strings alive for the pointers
        self.n_routes = len(paths)
        for i in range(self.n_routes):
            path = <bytes?>paths[i]
            self.routes[i].path = PyBytes_AS_STRING(path)
            self.routes[i].n = PyBytes_GET_SIZE(path)

    cpdef Py_ssize_t read(self, bytes data, Py_ssize_t at=0) except -2:
        if data is None:
            raise TypeError("data must be bytes")
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        if at < 0 or at > n:
            raise ValueError("at is outside data")
        while at + 1 < n and p[at] == 13 and p[at + 1] == 10:  # RFC 9112 2.2: empty lines before a head
            at += 2
        self.data = data
        self.at = at
        if not read_head(&self.h, p + at, n - at, self.routes, self.n_routes):
            self.h.route = -1
            self.data = None
            self._publish()
            return -1
        self._publish()
        return at + self.h.end

    cdef _publish(self):
        cdef Head* h = &self.h
        self.route = h.route
        self.content_length = h.length
        self.chunked = h.chunked
        self.expect_continue = h.expect and not h.old and (h.chunked or h.length > 0)
        self.keep_alive = not h.close and (h.keep or not h.old)
        self.http10 = h.old

    cdef object copied(self, int field):
        cdef Span span = self.h.fields[field]
        if span.start < 0 or self.data is None:
            return None
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.data) + self.at + span.start, span.end - span.start)

    def value(self, int field):
        return self.copied(field) if 0 <= field < N_FIELDS else None

    cpdef tuple values(self):
        return (
            self.copied(0), self.copied(1), self.copied(2), self.copied(3), self.copied(4), self.copied(5), self.copied(6)
        )

    def forget(self):
        self.data = None

    @property
    def start(self): return self.at
