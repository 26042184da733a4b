# cython: language_level=3
"""The counts of an ordinary ``usage`` object, without decoding it: six numbers from one scan.

Owns only what is ordinary: whole numbers that are not negative and not huge. For anything else ``counts`` says ``None``
and the caller decodes (wire/usage.py), so that odd providers cost time and never a wrong number.

The rule that must not be broken: what this says of an object and what the decoder says are the same.

Documentation of the face: usage.pyi. The same in plain words: _pure/usage.py.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp

from slipstream._fast.jsoncore cimport Key, enter, next_item, skip_space, skip_value, take_key

cdef enum:
    DEPTH = 512
    DIGITS_MAX = 12
    ABSENT = -1
    ODD = -2

cdef struct Counts:
    int64_t prompt
    int64_t completion
    int64_t total
    int64_t cached          # of the details, as the next
    int64_t written
    int64_t cached_top
    int64_t hit
    int64_t reasoning


cdef inline bint is_key(Key* key, const char* name, Py_ssize_t n) noexcept nogil:
    return key.size == n and memcmp(key.text, name, n) == 0


cdef int64_t number(const uint8_t* s, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """The (validated) value there: null is ABSENT, anything but a short whole number is ODD."""
    cdef int64_t value = 0
    if s[start] == c'n':
        return ABSENT
    if end - start > DIGITS_MAX:
        return ODD
    for i in range(start, end):
        if not c'0' <= s[i] <= c'9':
            return ODD
        value = value * 10 + (s[i] - c'0')
    return value


cdef Py_ssize_t details(
    const uint8_t* s, Py_ssize_t i, Py_ssize_t n, bint of_prompt, Counts* c
) noexcept nogil:
    """prompt_tokens_details or completion_tokens_details: an object, or null."""
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    if of_prompt:
        c.cached = c.written = ABSENT               # of two such objects the second counts
    else:
        c.reasoning = ABSENT
    if i < n and s[i] == c'n':
        return skip_value(s, i, n, 1, DEPTH)
    if i >= n or s[i] != c'{':
        if of_prompt:
            c.cached = ODD
        else:
            c.reasoning = ODD
        return skip_value(s, i, n, 1, DEPTH)
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        i = skip_value(s, start, n, 2, DEPTH)
        if i < 0:
            return i
        if of_prompt and is_key(&key, b"cached_tokens", 13):
            c.cached = number(s, start, i)
        elif of_prompt and is_key(&key, b"cache_write_tokens", 18):
            c.written = number(s, start, i)
        elif not of_prompt and is_key(&key, b"reasoning_tokens", 16):
            c.reasoning = number(s, start, i)
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    return i


cdef inline int64_t* place(Key* key, Counts* c) noexcept nogil:
    """Where a plain member's number belongs."""
    if is_key(key, b"prompt_tokens", 13):
        return &c.prompt
    if is_key(key, b"completion_tokens", 17):
        return &c.completion
    if is_key(key, b"total_tokens", 12):
        return &c.total
    if is_key(key, b"cached_tokens", 13):
        return &c.cached_top
    if is_key(key, b"prompt_cache_hit_tokens", 23):
        return &c.hit
    return NULL


cdef Py_ssize_t read_counts(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Counts* c) noexcept nogil:
    """The object s[i:n] into c; negative if it is not one valid object."""
    cdef Py_ssize_t start
    cdef int64_t* where
    cdef Key key
    cdef bint more
    i = skip_space(s, i, n)
    if i >= n or s[i] != c'{':
        return -1
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        if is_key(&key, b"prompt_tokens_details", 21):
            i = details(s, start, n, True, c)
        elif is_key(&key, b"completion_tokens_details", 25):
            i = details(s, start, n, False, c)
        else:
            i = skip_value(s, start, n, 1, DEPTH)
            where = place(&key, c)
            if i >= 0 and where != NULL:
                where[0] = number(s, start, i)
        if i < 0:
            return i
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    i = skip_space(s, i, n)
    return i if i >= n else -1


def usage_counts(bytes data not None, Py_ssize_t start=0, Py_ssize_t end=-1):
    cdef Counts c
    cdef Py_ssize_t stop
    if end == -1:
        end = PyBytes_GET_SIZE(data)
    if not 0 <= start <= end <= PyBytes_GET_SIZE(data):
        raise ValueError("start and end are not offsets of data")
    c.prompt = c.completion = c.total = c.cached = c.written = c.cached_top = c.hit = c.reasoning = ABSENT
    stop = read_counts(<const uint8_t*>PyBytes_AS_STRING(data), start, end, &c)
    if stop < 0 or min(c.prompt, c.completion, c.total, c.cached, c.written, c.cached_top, c.hit, c.reasoning) == ODD:
        return None
    if c.cached < 0:
        c.cached = c.cached_top if c.cached_top > 0 else c.hit
    return c.prompt, c.completion, c.total, c.cached, c.written, c.reasoning
