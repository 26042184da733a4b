# cython: language_level=3
"""The JSON tokenizer that jsonscan.pyx (requests) and jsonreply.pyx (replies) share.

Owns the grammar of RFC 8259 (strings: jsonstring.pxd) and the limits; knows no key and no Python object.
It is a header (inline functions, no module): each user compiles its own copy and nothing is imported at run time.
Nesting lives in an array of bytes and nothing recurses: a body of 100,000 brackets costs an error, not the C stack.

Conventions: ``s`` is the text, ``n`` its end, ``i`` an offset; no byte at or after ``s + n`` is read.
Every ``skip_*`` gives the offset behind what it skipped, or a negative number which is ``fail(code, position)``.
The rule that must not be broken: every byte is validated once, before anyone trusts a span.
"""
from libc.stdint cimport uint8_t

from slipstream._fast.jsonstring cimport (
    E_ARRAY_NEXT, E_COLON, E_DEPTH, E_DIGITS, E_KEY, E_NUMBER, E_OBJECT_NEXT, E_TRUNCATED, E_VALUE,
    fail, skip_string, unescape,
)

cdef enum:
    MAX_LEVELS = 1024       # size of the nesting stack: the largest max_depth there is
    MAX_DIGITS = 4300       # CPython refuses longer integers (sys.int_info.default_max_str_digits)
    KEY_ROOM = 32           # un-escaped keys longer than KEY_ROOM - 4 bytes are none of ours

cdef enum Kind:
    KIND_ABSENT, KIND_STRING, KIND_NUMBER, KIND_OBJECT, KIND_ARRAY, KIND_TRUE, KIND_FALSE, KIND_NULL

cdef struct Key:
    Py_ssize_t start        # span of the key with its quotes
    Py_ssize_t end
    const uint8_t* text     # un-escaped, without quotes: into the body, or into room
    Py_ssize_t size         # bytes of text; -1: cannot be a key of ours
    uint8_t room[KEY_ROOM]


cdef inline Kind kind_of(uint8_t c) noexcept nogil:
    """Kind of a (validated) value from its first byte."""
    if c == c'"':
        return KIND_STRING
    if c == c'{':
        return KIND_OBJECT
    if c == c'[':
        return KIND_ARRAY
    if c == c't':
        return KIND_TRUE
    if c == c'f':
        return KIND_FALSE
    if c == c'n':
        return KIND_NULL
    return KIND_NUMBER


cdef inline Py_ssize_t skip_space(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """White space of RFC 8259 section 2: space, tab, line feed, carriage return."""
    while i < n and s[i] <= 32 and (s[i] == 32 or s[i] == 10 or s[i] == 13 or s[i] == 9):
        i += 1
    return i


cdef inline Py_ssize_t skip_digits(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """One digit or more."""
    if i >= n:
        return fail(E_TRUNCATED, n)
    if s[i] < c'0' or s[i] > c'9':
        return fail(E_NUMBER, i)
    i += 1
    while i < n and s[i] >= c'0' and s[i] <= c'9':
        i += 1
    return i


cdef inline Py_ssize_t skip_number(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """A number (section 6)."""
    cdef Py_ssize_t start = i, digits = 0
    if s[i] == c'-':
        i += 1
    if i < n and s[i] == c'0':
        i += 1
        if i < n and s[i] >= c'0' and s[i] <= c'9':
            return fail(E_NUMBER, i)
    else:
        i = skip_digits(s, i, n)
    if 0 <= i < n and s[i] == c'.':
        i = skip_digits(s, i + 1, n)
    if 0 <= i < n and (s[i] | 0x20) == c'e':
        i += 1
        if i < n and (s[i] == c'+' or s[i] == c'-'):
            i += 1
        i = skip_digits(s, i, n)
    if i - start > MAX_DIGITS:
        for k in range(start, i):
            digits += s[k] >= c'0' and s[k] <= c'9'
        if digits > MAX_DIGITS:
            return fail(E_DIGITS, start)
    return i


cdef inline Py_ssize_t skip_literal(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    if n - i >= 4 and s[i] == c't' and s[i + 1] == c'r' and s[i + 2] == c'u' and s[i + 3] == c'e':
        return i + 4
    if n - i >= 4 and s[i] == c'n' and s[i + 1] == c'u' and s[i + 2] == c'l' and s[i + 3] == c'l':
        return i + 4
    if n - i >= 5 and s[i] == c'f' and s[i + 1] == c'a' and s[i + 2] == c'l' and s[i + 3] == c's' and s[i + 4] == c'e':
        return i + 5
    return fail(E_VALUE, i)


cdef inline Py_ssize_t to_value(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """From behind a key, over the colon, to the first byte of its value."""
    i = skip_space(s, i, n)
    if i >= n:
        return fail(E_TRUNCATED, n)
    if s[i] != c':':
        return fail(E_COLON, i)
    return skip_space(s, i + 1, n)


cdef inline Py_ssize_t key_end(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    if i >= n:
        return fail(E_TRUNCATED, n)
    if s[i] != c'"':
        return fail(E_KEY, i)
    return skip_string(s, i + 1, n)


cdef inline Py_ssize_t enter(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, bint* more) noexcept nogil:
    """Into the object or array at i: to its first item (more = 1) or behind it when empty (more = 0)."""
    cdef uint8_t close = s[i] + 2                   # ASCII: { and }, [ and ] are two apart
    i = skip_space(s, i + 1, n)
    more[0] = not (i < n and s[i] == close)
    return i if more[0] else i + 1


cdef inline Py_ssize_t next_item(
    const uint8_t* s, Py_ssize_t i, Py_ssize_t n, uint8_t close, bint* more
) noexcept nogil:
    """From behind an item to the next one (more = 1), or behind the object or array (more = 0)."""
    i = skip_space(s, i, n)
    if i >= n:
        return fail(E_TRUNCATED, n)
    more[0] = s[i] == c','
    if more[0]:
        return skip_space(s, i + 1, n)
    if s[i] == close:
        return i + 1
    return fail(E_OBJECT_NEXT if close == c'}' else E_ARRAY_NEXT, i)


cdef inline Py_ssize_t skip_value(
    const uint8_t* s, Py_ssize_t i, Py_ssize_t n, int depth, int max_depth
) noexcept nogil:
    """One value of any size, inside ``depth`` levels (at most max_depth <= MAX_LEVELS). No recursion."""
    cdef uint8_t open_[MAX_LEVELS + 1]
    cdef uint8_t c
    cdef int top = 0
    cdef bint more
    while True:
        if i >= n:
            return fail(E_TRUNCATED, n)
        c = s[i]
        if c == c'"':
            i = skip_string(s, i + 1, n)
        elif c == c'{' or c == c'[':
            if depth + top >= max_depth:
                return fail(E_DEPTH, i)
            i = enter(s, i, n, &more)
            if more:
                top += 1
                open_[top] = c
                if c == c'{':
                    i = key_end(s, i, n)
                    if i >= 0:
                        i = to_value(s, i, n)
                    if i < 0:
                        return i
                continue
        elif c == c'-' or (c >= c'0' and c <= c'9'):
            i = skip_number(s, i, n)
        else:
            i = skip_literal(s, i, n)
        if i < 0:
            return i
        more = False
        while top and not more:                     # behind a value: the next one, or out of what ends here
            c = open_[top]
            i = next_item(s, i, n, c + 2, &more)
            if more and c == c'{':
                i = key_end(s, i, n)
                if i >= 0:
                    i = to_value(s, i, n)
            if i < 0:
                return i
            if not more:
                top -= 1
        if not more:
            return i


cdef inline Py_ssize_t take_key(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Key* key) noexcept nogil:
    """The key at i into key; the offset of its value. For the few levels where keys matter."""
    cdef Py_ssize_t k
    key.start = i
    i = key_end(s, i, n)
    if i < 0:
        return i
    key.end = i
    key.text = s + key.start + 1
    key.size = i - key.start - 2
    for k in range(key.size):                       # keys are short: cheaper than a call of memchr
        if key.text[k] == c'\\':
            key.size = unescape(s, key.start + 1, i - 1, key.room, KEY_ROOM)
            key.text = key.room
            break
    return to_value(s, i, n)
