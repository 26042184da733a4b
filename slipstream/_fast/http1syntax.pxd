# cython: language_level=3
"""The grammar that http1.pyx stands on: character classes, request target, Host, field names, chunk extensions.

A header (inline functions, no module). Every function is pure: it looks at ``n`` bytes at ``p`` and at nothing behind
them, and says yes or no. Control characters other than HTAB have been refused before any of them is called.
"""
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp, strlen

cdef extern from *:
    """
    static unsigned char slip_http_kind[256];
    static const char *slip_http_methods[64], *slip_http_trailers[64];  /* each ends with NULL */
    """
    uint8_t KIND "slip_http_kind"[256]
    const char* METHOD_NAMES "slip_http_methods"[64]
    const char* TRAILER_NAMES "slip_http_trailers"[64]

cdef enum:  # bits of KIND
    IS_TOKEN = 1
    IS_PATH = 2
    IS_QUERY = 4
    IS_HOST = 8
    IS_HEX = 16
    IS_QUOTED = 32

cdef enum:  # fields that may come once (SINGLE in the specification), then those that only need a look
    F_OTHER, F_HOST, F_LENGTH, F_TE, F_EXPECT, F_SINGLE = 5, F_CONNECTION = 20, F_UPGRADE = 21

cdef inline int fill_tables(list methods, list trailers) except -1:
    """Called once, when the module is loaded; the caller keeps the strings alive."""
    cdef int c
    assert len(methods) < 64 and len(trailers) < 64
    for c in range(len(methods)):
        METHOD_NAMES[c] = <const char*>(<bytes>methods[c])
    for c in range(len(trailers)):
        TRAILER_NAMES[c] = <const char*>(<bytes>trailers[c])
    alnum = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    host = alnum + b"-._~!$&'()*+;="  # RFC 3986 reg-name, less the comma: it separates hosts
    path = host + b",:@/"
    quoted = bytes([x for x in range(256) if x in b"\t !" or (0x23 <= x < 0x7f and x != 0x5c) or x >= 0x80])
    classes = (
        (alnum + b"!#$%&'*+-.^_`|~", IS_TOKEN), (path, IS_PATH), (path + b"?[]", IS_QUERY), (host, IS_HOST),
        (b"0123456789abcdefABCDEF", IS_HEX), (quoted, IS_QUOTED),
    )
    for chars, kind in classes:
        for c in chars:
            KIND[c] |= <uint8_t>kind
    return 0


cdef inline bint same(const uint8_t* p, Py_ssize_t n, const char* lower) noexcept nogil:
    """Case-insensitive equality of equally long texts; ``p`` has no control character."""
    cdef Py_ssize_t i
    for i in range(n):
        if (p[i] | 0x20) != <uint8_t>lower[i]:
            return False
    return True


cdef inline bint known_method(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef int i = 0
    while METHOD_NAMES[i] != NULL:
        if <Py_ssize_t>strlen(METHOD_NAMES[i]) == n and not memcmp(METHOD_NAMES[i], p, n):
            return True
        i += 1
    return False


cdef inline bint forbidden_trailer(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef int i = 0
    while TRAILER_NAMES[i] != NULL:
        if <Py_ssize_t>strlen(TRAILER_NAMES[i]) == n and same(p, n, TRAILER_NAMES[i]):
            return True
        i += 1
    return False


cdef inline bint has_ctl(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef uint8_t bad = 0
    cdef Py_ssize_t i
    for i in range(n):
        bad |= ((p[i] < 0x20) & (p[i] != 0x09)) | (p[i] == 0x7f)
    return bad


cdef inline bint pct_ok(const uint8_t* p, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    return i + 2 < n and KIND[p[i + 1]] & IS_HEX and KIND[p[i + 2]] & IS_HEX


cdef inline bint next_item(const uint8_t* p, Py_ssize_t n, Py_ssize_t* i, Py_ssize_t* a, Py_ssize_t* b) noexcept nogil:
    """The next element of a comma-separated list, trimmed: ``a`` to ``b``. False: there was none at ``i``."""
    cdef const uint8_t* comma
    if i[0] > n:
        return False
    a[0] = i[0]
    comma = <const uint8_t*>memchr(p + i[0], c',', n - i[0])
    b[0] = n if comma == NULL else comma - p
    i[0] = b[0] + 1
    while a[0] < b[0] and (p[a[0]] == 32 or p[a[0]] == 9):
        a[0] += 1
    while a[0] < b[0] and (p[b[0] - 1] == 32 or p[b[0] - 1] == 9):
        b[0] -= 1
    return True


cdef inline bint path_ok(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """RFC 3986 path-abempty and query; the caller has looked at the first byte."""
    cdef Py_ssize_t i = 0
    cdef uint8_t kind = IS_PATH
    while i < n:
        if KIND[p[i]] & kind:
            i += 1
        elif p[i] == c'%' and pct_ok(p, n, i):
            i += 3
        elif p[i] == c'?':
            kind = IS_QUERY
            i += 1
        else:
            return False
    return True


cdef inline bint ipv4_ok(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i = 0, start
    cdef int part, value
    for part in range(4):
        start = i
        value = 0
        while i < n and c'0' <= p[i] <= c'9' and i - start < 3:
            value = value * 10 + p[i] - c'0'
            i += 1
        if i == start or value > 255 or (i - start > 1 and p[start] == c'0'):
            return False
        if part < 3:
            if i >= n or p[i] != c'.':
                return False
            i += 1
    return i == n


cdef inline bint ipv6_ok(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """RFC 3986 IPv6address: eight groups of up to four digits, or fewer around one "::"; the last two may be IPv4."""
    cdef Py_ssize_t i = 0, start
    cdef int groups = 0
    cdef bint gap = False
    if n >= 2 and p[0] == c':' and p[1] == c':':
        gap = True
        i = 2
    while i < n:
        start = i
        while i < n and i - start < 5 and KIND[p[i]] & IS_HEX:
            i += 1
        if i < n and p[i] == c'.':
            groups += 2
            if not ipv4_ok(p + start, n - start):
                return False
            i = n
            break
        if i == start or i - start > 4:
            return False
        groups += 1
        if i == n:
            break
        if p[i] != c':' or i + 1 == n:
            return False
        i += 1
        if p[i] == c':':
            if gap:
                return False
            gap = True
            i += 1
    return groups == 8 if not gap else groups <= 7


cdef inline bint host_ok(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """uri-host [ ":" port ] with a non-empty host."""
    cdef Py_ssize_t i = 0, j, port = 0
    cdef const uint8_t* end
    if n and p[0] == c'[':
        end = <const uint8_t*>memchr(p, c']', n)
        if end == NULL:
            return False
        i = end - p + 1
        if p[1] | 0x20 == c'v':  # IPvFuture
            j = 2
            while KIND[p[j]] & IS_HEX:
                j += 1
            if j == 2 or p[j] != c'.' or j + 2 >= i:
                return False
            for j in range(j + 1, i - 1):
                if not (KIND[p[j]] & IS_HOST or p[j] == c':'):
                    return False
        elif not ipv6_ok(p + 1, i - 2):
            return False
    else:
        while i < n:
            if KIND[p[i]] & IS_HOST:
                i += 1
            elif p[i] == c'%' and pct_ok(p, n, i):
                i += 3
            else:
                break
    if i == 0:
        return False
    if i < n:
        if p[i] != c':':
            return False
        for i in range(i + 1, n):
            if not c'0' <= p[i] <= c'9':
                return False
            port = port * 10 + p[i] - c'0'
            if port > 65535:
                return False
    return True


cdef inline bint target_ok(const uint8_t* p, Py_ssize_t n, bint options) noexcept nogil:
    cdef Py_ssize_t i, start
    if p[0] == c'/':
        return path_ok(p, n)
    if n == 1 and p[0] == c'*':
        return options
    if n < 8 or not same(p, 4, b"http"):
        return False
    i = 4 + (p[4] | 0x20 == c's')
    if n < i + 3 or memcmp(p + i, b"://", 3):
        return False
    i += 3
    start = i
    while i < n and p[i] != c'/' and p[i] != c'?':
        i += 1
    return host_ok(p + start, i - start) and path_ok(p + i, n - i)


cdef inline int known(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Which field of interest this name is."""
    if n == 4:
        if same(p, 4, b"host"):
            return F_HOST
        if same(p, 4, b"etag"):
            return F_SINGLE
    elif n == 6:
        if same(p, 6, b"expect"):
            return F_EXPECT
        if same(p, 6, b"server"):
            return F_SINGLE + 1
    elif n == 7:
        if same(p, 7, b"api-key"):
            return F_SINGLE + 2
        if same(p, 7, b"upgrade"):
            return F_UPGRADE
    elif n == 9:
        if same(p, 9, b"x-api-key"):
            return F_SINGLE + 3
    elif n == 10:
        if same(p, 10, b"user-agent"):
            return F_SINGLE + 4
        if same(p, 10, b"connection"):
            return F_CONNECTION
    elif n == 12:
        if same(p, 12, b"content-type"):
            return F_SINGLE + 5
        if same(p, 12, b"max-forwards"):
            return F_SINGLE + 6
    elif n == 13:
        if same(p, 13, b"authorization"):
            return F_SINGLE + 7
        if same(p, 13, b"content-range"):
            return F_SINGLE + 8
    elif n == 14:
        if same(p, 14, b"content-length"):
            return F_LENGTH
    elif n == 16:
        if same(p, 16, b"content-location"):
            return F_SINGLE + 9
    elif n == 17:
        if same(p, 17, b"transfer-encoding"):
            return F_TE
    return F_OTHER


cdef inline bint extension_ok(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """*( ";" token [ "=" ( token / quoted-string ) ] ), without the optional bad whitespace."""
    cdef Py_ssize_t i = 0, start
    while i < n:
        if p[i] != c';':
            return False
        i += 1
        start = i
        while i < n and KIND[p[i]] & IS_TOKEN:
            i += 1
        if i == start:
            return False
        if i == n or p[i] != c'=':
            continue
        i += 1
        start = i
        if i < n and p[i] == c'"':
            i += 1
            while i < n and p[i] != c'"':
                if p[i] == c'\\':
                    i += 1
                elif not KIND[p[i]] & IS_QUOTED:
                    return False
                i += 1
            if i >= n:
                return False
            i += 1
        else:
            while i < n and KIND[p[i]] & IS_TOKEN:
                i += 1
            if i == start:
                return False
    return True
