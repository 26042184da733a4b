# cython: language_level=3
"""One look at a reply in the OpenAI chat dialect: the data of one SSE event, or a unary body. What is in it?

Owns the side tap of the relay: does this payload commit the answer (content), end it (finish), fail it (error) or bill
it (usage), and where do those lie. Nothing is decoded: an uninteresting chunk costs one scan and no Python object.
The grammar is jsoncore.pxd; the specification is _pure/jsonreply.py.

The rule that must not be broken: R_CONTENT is only said of bytes a user would miss. A role, an empty string, a filter
annotation or an empty list is lifecycle: before content all may still be retried elsewhere (design.md section 3).
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

from slipstream._fast.jsoncore cimport Key, enter, next_item, skip_space, skip_value, take_key
from slipstream._fast.jsonstring cimport E_NOT_OBJECT, E_TRAILING, fail, fail_pos

cdef enum:
    REPLY_DEPTH = 512       # levels; tool results and logprobs nest, 512 is beyond all of them

cdef enum Flag:
    F_INVALID = 1, F_ERROR = 2, F_CHOICES = 4, F_CONTENT = 8, F_FINISH = 16, F_USAGE = 32, F_DATA = 64, F_ROLE = 128

cdef enum Field:            # of a delta or message; one bit each, so that of duplicates the last one wins
    FIELD_CONTENT = 1, FIELD_REFUSAL = 2, FIELD_REASONING = 4, FIELD_REASONING_CONTENT = 8, FIELD_TOOL_CALLS = 16
    FIELD_DETAILS = 32, FIELD_FUNCTION = 64, FIELD_AUDIO = 128, FIELD_ROLE = 256

cdef struct Span:
    Py_ssize_t start
    Py_ssize_t end

cdef struct Choices:
    int flags               # F_CHOICES, F_CONTENT, F_ROLE
    Py_ssize_t count
    Py_ssize_t n_finish
    Span finish             # the last one that is there

cdef struct Reply:
    int flags
    Choices choices
    Span error
    Span usage
    Span groq_usage
    Span model
    Span id


cdef inline bint same(const uint8_t* a, const char* b, size_t n) noexcept nogil:
    return memcmp(a, b, n) == 0


cdef inline bint is_key(Key* key, const char* name, Py_ssize_t n) noexcept nogil:
    return key.size == n and memcmp(key.text, name, n) == 0


cdef inline Span span_if(bint there, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    cdef Span span
    span.start = start if there else -1
    span.end = end if there else -1
    return span


cdef inline bint full_string(const uint8_t* s, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    return s[start] == c'"' and end - start > 2


cdef inline bint full_array(const uint8_t* s, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    return s[start] == c'[' and skip_space(s, start + 1, end) < end - 1


cdef inline int field_of(Key* key) noexcept nogil:
    """Which field of a delta or message; 0: none of interest."""
    cdef const uint8_t* k = key.text
    if key.size == 4:
        return FIELD_ROLE if same(k, b"role", 4) else 0
    if key.size == 5:
        return FIELD_AUDIO if same(k, b"audio", 5) else 0
    if key.size == 7:
        return FIELD_CONTENT if same(k, b"content", 7) else FIELD_REFUSAL if same(k, b"refusal", 7) else 0
    if key.size == 9:
        return FIELD_REASONING if same(k, b"reasoning", 9) else 0
    if key.size == 10:
        return FIELD_TOOL_CALLS if same(k, b"tool_calls", 10) else 0
    if key.size == 13:
        return FIELD_FUNCTION if same(k, b"function_call", 13) else 0
    if key.size == 17:
        if same(k, b"reasoning_content", 17):
            return FIELD_REASONING_CONTENT
        return FIELD_DETAILS if same(k, b"reasoning_details", 17) else 0
    return 0


cdef inline bint fills(int field, const uint8_t* s, Py_ssize_t start, Py_ssize_t end) noexcept nogil:
    """Does this value count for this field?"""
    if field == FIELD_ROLE:
        return full_string(s, start, end)
    if field == FIELD_TOOL_CALLS or field == FIELD_DETAILS:
        return full_array(s, start, end)
    if field == FIELD_FUNCTION or field == FIELD_AUDIO:
        return s[start] == c'{'
    return full_string(s, start, end) or full_array(s, start, end)


cdef Py_ssize_t scan_delta(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, int* fields) noexcept nogil:
    """The value of delta or message; fields are its Field bits."""
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    cdef int field
    fields[0] = 0
    if i >= n or s[i] != c'{':
        return skip_value(s, i, n, 3, REPLY_DEPTH)
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        i = skip_value(s, start, n, 4, REPLY_DEPTH)
        if i < 0:
            return i
        field = field_of(&key)
        if field:
            fields[0] &= ~field
            if fills(field, s, start, i):
                fields[0] |= field
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    return i


cdef Py_ssize_t scan_choice(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Choices* c) noexcept nogil:
    """One element of choices, added to c."""
    cdef int delta = 0, message = 0
    cdef Span finish = span_if(False, 0, 0)
    cdef bint text = False
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    c.count += 1
    if i >= n or s[i] != c'{':
        return skip_value(s, i, n, 2, REPLY_DEPTH)
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        if is_key(&key, b"delta", 5):
            i = scan_delta(s, start, n, &delta)
        elif is_key(&key, b"message", 7):
            i = scan_delta(s, start, n, &message)
        else:
            i = skip_value(s, start, n, 3, REPLY_DEPTH)
        if i < 0:
            return i
        if is_key(&key, b"finish_reason", 13):
            finish = span_if(full_string(s, start, i), start, i)
        elif is_key(&key, b"text", 4):
            text = full_string(s, start, i)
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    if text or (delta | message) & ~FIELD_ROLE:
        c.flags |= F_CONTENT
    if (delta | message) & FIELD_ROLE:
        c.flags |= F_ROLE
    if finish.start >= 0:
        c.finish = finish
        c.n_finish += 1
    return i


cdef inline void clear_choices(Choices* c) noexcept nogil:
    c.flags = 0
    c.count = c.n_finish = 0
    c.finish = span_if(False, 0, 0)


cdef Py_ssize_t scan_choices(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Choices* c) noexcept nogil:
    """The value of choices, an array or not."""
    cdef bint more
    clear_choices(c)
    if i >= n or s[i] != c'[':
        return skip_value(s, i, n, 1, REPLY_DEPTH)
    c.flags = F_CHOICES
    i = enter(s, i, n, &more)
    while more:
        i = scan_choice(s, i, n, c)
        if i < 0:
            return i
        i = next_item(s, i, n, c']', &more)
        if i < 0:
            return i
    return i


cdef Py_ssize_t scan_groq(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Span* usage) noexcept nogil:
    """The value of x_groq: Groq put the usage of a stream there."""
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    usage[0] = span_if(False, 0, 0)
    if i >= n or s[i] != c'{':
        return skip_value(s, i, n, 1, REPLY_DEPTH)
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        i = skip_value(s, start, n, 2, REPLY_DEPTH)
        if i < 0:
            return i
        if is_key(&key, b"usage", 5):
            usage[0] = span_if(s[start] == c'{', start, i)
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    return i


cdef inline void note(Key* key, const uint8_t* s, Py_ssize_t start, Py_ssize_t end, Reply* r) noexcept nogil:
    """A top-level member whose inside does not matter."""
    if is_key(key, b"id", 2):
        r.id = span_if(s[start] == c'"', start, end)
    elif is_key(key, b"data", 4):
        r.flags = r.flags | F_DATA if s[start] == c'[' else r.flags & ~F_DATA
    elif is_key(key, b"model", 5):
        r.model = span_if(s[start] == c'"', start, end)
    elif is_key(key, b"usage", 5):
        r.usage = span_if(s[start] == c'{', start, end)
    elif is_key(key, b"error", 5):
        r.error = span_if(s[start] != c'n', start, end)


cdef Py_ssize_t scan_reply(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, Reply* r) noexcept nogil:
    """All of s[i:n] into a cleared r; the offset of its end, or an error."""
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    if n - i >= 3 and s[i] == 0xEF and s[i + 1] == 0xBB and s[i + 2] == 0xBF:
        i += 3
    i = skip_space(s, i, n)
    if i >= n or s[i] != c'{':
        return fail(E_NOT_OBJECT, i)
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        if is_key(&key, b"choices", 7):
            i = scan_choices(s, start, n, &r.choices)
        elif is_key(&key, b"x_groq", 6):
            i = scan_groq(s, start, n, &r.groq_usage)
        else:
            i = skip_value(s, start, n, 1, REPLY_DEPTH)
            if i >= 0:
                note(&key, s, start, i, r)
        if i < 0:
            return i
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    i = skip_space(s, i, n)
    return i if i >= n else fail(E_TRAILING, i)


cdef void clear(Reply* r) noexcept nogil:
    r.flags = 0
    clear_choices(&r.choices)
    r.error = r.usage = r.groq_usage = r.model = r.id = span_if(False, 0, 0)


cdef void conclude(Reply* r) noexcept nogil:
    """Flags that depend on more than one member."""
    if r.usage.start < 0:
        r.usage = r.groq_usage
    r.flags |= r.choices.flags
    if r.error.start >= 0:
        r.flags |= F_ERROR
    if r.usage.start >= 0:
        r.flags |= F_USAGE
    if r.choices.n_finish:
        r.flags |= F_FINISH


# ---------------------------------------------------------------------------------------------------- the Python face

R_INVALID, R_ERROR, R_CHOICES, R_CONTENT, R_FINISH, R_USAGE, R_DATA, R_ROLE = (1 << bit for bit in range(8))


cdef void publish(ReplyScan self, Reply* r) noexcept:
    self.n_choices, self.n_finish = r.choices.count, r.choices.n_finish
    self.error_start, self.error_end = r.error.start, r.error.end
    self.usage_start, self.usage_end = r.usage.start, r.usage.end
    self.finish_start, self.finish_end = r.choices.finish.start, r.choices.finish.end
    self.model_start, self.model_end = r.model.start, r.model.end
    self.id_start, self.id_end = r.id.start, r.id.end


@cython.final
cdef class ReplyScan:
    def __cinit__(self):
        cdef Reply r
        clear(&r)
        publish(self, &r)
        self.pos = -1

    cdef int look(self, const uint8_t* s, Py_ssize_t n) noexcept nogil:
        """The flags of ``scan`` for the n bytes at s; the fields stay as they are."""
        cdef Reply r
        clear(&r)
        if scan_reply(s, 0, n, &r) < 0:
            return F_INVALID
        conclude(&r)
        return r.flags

    cpdef int scan(self, bytes data, Py_ssize_t start=0, Py_ssize_t end=-1) except -1:
        if data is None:
            raise TypeError("data must be bytes")
        cdef Py_ssize_t stop
        cdef Reply r
        if end == -1:
            end = PyBytes_GET_SIZE(data)
        if not 0 <= start <= end <= PyBytes_GET_SIZE(data):
            raise ValueError("start and end are not offsets of data")
        clear(&r)
        stop = scan_reply(<const uint8_t*>PyBytes_AS_STRING(data), start, end, &r)
        self.pos = -1
        if stop < 0:
            clear(&r)
            r.flags = F_INVALID
            self.pos = fail_pos(stop)
        conclude(&r)
        publish(self, &r)
        return r.flags
