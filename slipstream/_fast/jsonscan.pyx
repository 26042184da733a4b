# cython: language_level=3
"""One scan over a request body: validates all of it, and finds the few top-level keys that matter.

Owns the peek of pass-through: where model, stream, stream_options, ... lie, so that bytes are patched in place and a
1 MB body is never decoded nor encoded again (design.md section 3). The grammar is jsoncore.pxd, replies are
jsonreply.pyx, the specification is _pure/jsonscan.py: both give the same answer, and the same error at the same byte.

The rule that must not be broken: a body that scan_request accepts is one that EVERY reader behind us takes for the same
JSON object. So it is strict everywhere, not only in the keys it looks at, and reports duplicates, never hides them.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memchr, memcmp

from slipstream._fast.jsoncore cimport (
    KIND_ABSENT, KIND_ARRAY, KIND_NULL, KIND_OBJECT, KIND_STRING, MAX_LEVELS, Key, enter, kind_of, next_item,
    skip_space, skip_value, take_key,
)
from slipstream._fast.jsonstring cimport (
    E_BOM, E_DEPTH, E_NOT_OBJECT, E_TRAILING, fail, fail_code, fail_pos, skip_string, unescape,
)

from slipstream._fast._errors import JsonError

cdef enum Watched:          # the order of KEYS below
    W_MODEL, W_STREAM, W_STREAM_OPTIONS, W_MESSAGES, W_TOOLS, W_USER, W_MAX_TOKENS, W_MAX_COMPLETION_TOKENS, W_N
    W_PROMPT, W_INPUT, W_SEED, W_TEMPERATURE, W_RESPONSE_FORMAT, W_REASONING_EFFORT, W_TIMEOUT, N_WATCHED

cdef struct Span:
    Py_ssize_t key_start
    Py_ssize_t key_end
    Py_ssize_t start
    Py_ssize_t end

cdef struct Options:        # what is inside stream_options
    Py_ssize_t open         # -1: no object
    Py_ssize_t n_keys
    int usage_kind
    Py_ssize_t usage_start
    Py_ssize_t usage_end

cdef struct Request:
    Py_ssize_t open
    Py_ssize_t close
    Py_ssize_t n_keys
    uint32_t duplicates
    uint8_t kind[N_WATCHED]     # KIND_ABSENT: the span of this key holds nothing
    Span span[N_WATCHED]
    Options options


cdef inline bint same(const uint8_t* a, const char* b, size_t n) noexcept nogil:
    return memcmp(a, b, n) == 0


cdef int watched(const uint8_t* k, Py_ssize_t n) noexcept nogil:
    """Which watched key these n bytes are; -1: none."""
    if n == 1:
        return W_N if k[0] == c'n' else -1
    if n == 4:
        return W_USER if same(k, b"user", 4) else W_SEED if same(k, b"seed", 4) else -1
    if n == 5:
        if same(k, b"model", 5):
            return W_MODEL
        return W_TOOLS if same(k, b"tools", 5) else W_INPUT if same(k, b"input", 5) else -1
    if n == 6:
        return W_STREAM if same(k, b"stream", 6) else W_PROMPT if same(k, b"prompt", 6) else -1
    if n == 7:
        return W_TIMEOUT if same(k, b"timeout", 7) else -1
    if n == 8:
        return W_MESSAGES if same(k, b"messages", 8) else -1
    if n == 10:
        return W_MAX_TOKENS if same(k, b"max_tokens", 10) else -1
    if n == 11:
        return W_TEMPERATURE if same(k, b"temperature", 11) else -1
    if n == 14:
        return W_STREAM_OPTIONS if same(k, b"stream_options", 14) else -1
    if n == 15:
        return W_RESPONSE_FORMAT if same(k, b"response_format", 15) else -1
    if n == 16:
        return W_REASONING_EFFORT if same(k, b"reasoning_effort", 16) else -1
    if n == 21:
        return W_MAX_COMPLETION_TOKENS if same(k, b"max_completion_tokens", 21) else -1
    return -1


cdef enum:
    MODEL_MAX = 256         # bytes of a model name; the same in wire/request.py


cdef inline void clear_options(Options* o) noexcept nogil:
    o.open = o.usage_start = o.usage_end = -1
    o.n_keys = 0
    o.usage_kind = KIND_ABSENT


cdef Py_ssize_t scan_options(const uint8_t* s, Py_ssize_t i, Py_ssize_t n, int max_depth, Options* o) noexcept nogil:
    """The value of stream_options, an object or not."""
    cdef Py_ssize_t start
    cdef Key key
    cdef bint more
    clear_options(o)
    if i >= n or s[i] != c'{' or max_depth < 2:
        return skip_value(s, i, n, 1, max_depth)
    o.open = i + 1
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        i = skip_value(s, start, n, 2, max_depth)
        if i < 0:
            return i
        o.n_keys += 1
        if key.size == 13 and same(key.text, b"include_usage", 13):
            o.usage_kind = kind_of(s[start])
            o.usage_start = start
            o.usage_end = i
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    return i


cdef Py_ssize_t scan_body(const uint8_t* s, Py_ssize_t n, int max_depth, Request* r) noexcept nogil:
    """The whole body into r, whose kinds are all KIND_ABSENT; the offset of its end, or an error."""
    cdef Py_ssize_t i, start
    cdef Span* span
    cdef Key key
    cdef bint more
    cdef int w
    clear_options(&r.options)
    if n >= 3 and s[0] == 0xEF and s[1] == 0xBB and s[2] == 0xBF:
        return fail(E_BOM, 0)
    i = skip_space(s, 0, n)
    if i >= n or s[i] != c'{':
        return fail(E_NOT_OBJECT, i)
    r.open = i + 1
    i = enter(s, i, n, &more)
    while more:
        start = take_key(s, i, n, &key)
        if start < 0:
            return start
        r.n_keys += 1
        w = watched(key.text, key.size)
        if w == W_STREAM_OPTIONS:
            i = scan_options(s, start, n, max_depth, &r.options)
        else:
            i = skip_value(s, start, n, 1, max_depth)
        if i < 0:
            return i
        if w >= 0:
            if r.kind[w] != KIND_ABSENT:
                r.duplicates |= <uint32_t>1 << w
            r.kind[w] = kind_of(s[start])
            span = &r.span[w]
            span.key_start = key.start
            span.key_end = key.end
            span.start = start
            span.end = i
        i = next_item(s, i, n, c'}', &more)
        if i < 0:
            return i
    r.close = i - 1
    i = skip_space(s, i, n)
    return i if i >= n else fail(E_TRAILING, i)


cdef bint plain(Request* r, const char* s, int subject) noexcept nogil:
    """Everything that decides is as it mostly is: nobody has to look closer."""
    cdef Span* model = &r.span[<int>W_MODEL]
    cdef int stream = r.kind[<int>W_STREAM], options = r.kind[<int>W_STREAM_OPTIONS], known = r.kind[subject]
    if r.duplicates or r.kind[<int>W_MODEL] != KIND_STRING or not 3 <= model.end - model.start <= MODEL_MAX + 2:
        return False
    if known == KIND_ABSENT or (subject == <int>W_MESSAGES and known != KIND_ARRAY):
        return False
    if KIND_STRING <= stream <= KIND_ARRAY or options not in (<int>KIND_ABSENT, <int>KIND_NULL, <int>KIND_OBJECT):
        return False
    return memchr(s + model.start, c'\\', model.end - model.start) == NULL


# ---------------------------------------------------------------------------------------------------- the Python face

ABSENT, STRING, NUMBER, OBJECT, ARRAY, TRUE, FALSE = range(7)
globals()["NULL"] = 7       # a reserved word of Cython

KEYS = (
    "model", "stream", "stream_options", "messages", "tools", "user", "max_tokens", "max_completion_tokens", "n",
    "prompt", "input", "seed", "temperature", "response_format", "reasoning_effort", "timeout",
)
(
    K_MODEL, K_STREAM, K_STREAM_OPTIONS, K_MESSAGES, K_TOOLS, K_USER, K_MAX_TOKENS, K_MAX_COMPLETION_TOKENS, K_N,
    K_PROMPT, K_INPUT, K_SEED, K_TEMPERATURE, K_RESPONSE_FORMAT, K_REASONING_EFFORT, K_TIMEOUT,
) = range(16)

REASONS = (
    "",
    "the body is not a JSON object",
    "the body starts with a byte order mark",
    "the text ends inside a value",
    "expected a value",
    "expected a key in double quotes",
    "expected ':'",
    "expected ',' or '}'",
    "expected ',' or ']'",
    "data after the JSON object",
    "a control character in a string",
    "an escape that JSON does not have",
    "\\u without four hexadecimal digits",
    "not valid UTF-8",
    "a malformed number",
    "a number of more than 4300 digits",
    "nesting deeper than {} levels",
)


@cython.final
@cython.freelist(16)
cdef class RequestScan:
    cdef Request r
    cdef readonly Py_ssize_t body_open, body_close, n_keys
    cdef readonly Py_ssize_t options_open, options_keys, include_usage_start, include_usage_end
    cdef readonly int include_usage
    cdef readonly unsigned int duplicates

    cdef Span* span(self, int key) except? NULL:
        if not 0 <= key < N_WATCHED:
            raise IndexError("no such watched key")
        return &self.r.span[key] if self.r.kind[key] != KIND_ABSENT else NULL

    def kind(self, int key):
        if not 0 <= key < N_WATCHED:
            raise IndexError("no such watched key")
        return self.r.kind[key]

    def start(self, int key):
        cdef Span* span = self.span(key)
        return -1 if span is NULL else span.start

    def end(self, int key):
        cdef Span* span = self.span(key)
        return -1 if span is NULL else span.end

    def key_start(self, int key):
        cdef Span* span = self.span(key)
        return -1 if span is NULL else span.key_start

    def key_end(self, int key):
        cdef Span* span = self.span(key)
        return -1 if span is NULL else span.key_end

    def plain_model(self, bytes body not None, int subject):
        cdef Span* span = &self.r.span[<int>W_MODEL]
        if not 0 <= subject < N_WATCHED:
            raise IndexError("no such watched key")
        if span.end > PyBytes_GET_SIZE(body) or not plain(&self.r, PyBytes_AS_STRING(body), subject):
            return None
        return PyUnicode_DecodeUTF8(PyBytes_AS_STRING(body) + span.start + 1, span.end - span.start - 2, NULL)


cdef object error(Py_ssize_t packed, int max_depth):
    cdef int code = fail_code(packed)
    reason = REASONS[code]
    if code == E_DEPTH:
        reason = reason.format(max_depth)
    return JsonError(reason, fail_pos(packed))


def scan_request(bytes body not None, int max_depth=128):
    if not 1 <= max_depth <= MAX_LEVELS:
        raise ValueError("max_depth must be 1 to 1024")
    cdef RequestScan scan = RequestScan.__new__(RequestScan)       # new memory is zero: every kind KIND_ABSENT
    cdef Py_ssize_t end = scan_body(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), max_depth, &scan.r)
    if end < 0:
        raise error(end, max_depth)
    scan.body_open = scan.r.open
    scan.body_close = scan.r.close
    scan.n_keys = scan.r.n_keys
    scan.duplicates = scan.r.duplicates
    scan.options_open = scan.r.options.open
    scan.options_keys = scan.r.options.n_keys
    scan.include_usage = scan.r.options.usage_kind
    scan.include_usage_start = scan.r.options.usage_start
    scan.include_usage_end = scan.r.options.usage_end
    return scan


def decode_string(bytes body not None, Py_ssize_t start, Py_ssize_t end):
    cdef const uint8_t* s = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef Py_ssize_t stop, size
    if start < 0 or end > PyBytes_GET_SIZE(body) or end - start < 2 or s[start] != c'"':
        raise ValueError("not the span of a JSON string")
    stop = skip_string(s, start + 1, end)
    if stop < 0:
        raise error(stop, 0)
    if stop != end:
        raise ValueError("not the span of a JSON string")
    size = end - start - 2
    if memchr(s + start + 1, c'\\', size) is NULL:
        return PyUnicode_DecodeUTF8(<const char*>s + start + 1, size, NULL)
    cdef bytes text = PyBytes_FromStringAndSize(NULL, size + 4)
    size = unescape(s, start + 1, end - 1, <uint8_t*>PyBytes_AS_STRING(text), size + 4)
    return None if size < 0 else PyUnicode_DecodeUTF8(PyBytes_AS_STRING(text), size, NULL)
