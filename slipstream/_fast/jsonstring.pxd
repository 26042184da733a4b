# cython: language_level=3
"""JSON strings: escapes (RFC 8259 section 7), strict UTF-8 (Unicode table 3-7), and how an error is passed.

Half of the tokenizer; the other half, and the conventions of both, are in jsoncore.pxd. Inline functions, no module.
A body is mostly prose in strings, so a string is walked in blocks (SSE2: 32 bytes; else SWAR: 8) and only left byte by
byte.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #define SLIP_EACH(b) (UINT64_C(0x0101010101010101) * (b))
    /* Loads put the first byte lowest, on any machine. */
    static inline uint64_t slip_load64(const uint8_t *p) {
        uint64_t x;
        memcpy(&x, p, 8);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        x = __builtin_bswap64(x);
    #endif
        return x;
    }
    static inline uint32_t slip_load32(const uint8_t *p) {
        uint32_t x;
        memcpy(&x, p, 4);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        x = __builtin_bswap32(x);
    #endif
        return x;
    }
    /* High bit of each byte that is < 0x20, '"', '\\\\' or >= 0x80. A borrow can only leave a byte that is marked
       itself, so the LOWEST mark is exact (those above it may be false). */
    static inline uint64_t slip_special(uint64_t x) {
        return ((x - SLIP_EACH(0x20)) | ((x ^ SLIP_EACH(0x22)) - SLIP_EACH(1)) |
                ((x ^ SLIP_EACH(0x5c)) - SLIP_EACH(1)) | x) & SLIP_EACH(0x80);
    }
    /* Bit c is set for each c of "\\\\/bfnrt (section 7), in two halves. */
    static const uint64_t slip_escapes_low = UINT64_C(1) << '"' | UINT64_C(1) << '/';
    static const uint64_t slip_escapes_high = UINT64_C(1) << ('\\\\' - 64) | UINT64_C(1) << ('b' - 64) |
        UINT64_C(1) << ('f' - 64) | UINT64_C(1) << ('n' - 64) | UINT64_C(1) << ('r' - 64) | UINT64_C(1) << ('t' - 64);
    static inline int slip_first(uint64_t marks) { return __builtin_ctzll(marks) >> 3; }
    /* How many of n bytes are neither < 0x20, '"', '\\\\' nor >= 0x80, as far as whole blocks go: the byte behind them is
       one of those, or few are left. SSE2 is part of x86-64; elsewhere eight bytes at a time. */
    #if defined(__SSE2__)
    #include <emmintrin.h>
    static inline uint64_t slip_special16(const uint8_t *p) {
        const __m128i x = _mm_loadu_si128((const __m128i *)p);
        const __m128i low = _mm_cmpgt_epi8(_mm_set1_epi8(0x20), x);  /* with signs: what is >= 0x80 is low too */
        const __m128i odd = _mm_or_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(0x22)), _mm_cmpeq_epi8(x, _mm_set1_epi8(0x5c)));
        return (uint32_t)_mm_movemask_epi8(_mm_or_si128(low, odd));
    }
    static inline ptrdiff_t slip_plain(const uint8_t *p, ptrdiff_t n) {
        ptrdiff_t i = 0;
        uint64_t marks;
        for (; n - i >= 32; i += 32) {
            marks = slip_special16(p + i) | slip_special16(p + i + 16) << 16;
            if (marks)
                return i + __builtin_ctzll(marks);
        }
        for (; n - i >= 16; i += 16) {
            marks = slip_special16(p + i);
            if (marks)
                return i + __builtin_ctzll(marks);
        }
        return i;
    }
    #else
    static inline ptrdiff_t slip_plain(const uint8_t *p, ptrdiff_t n) {
        ptrdiff_t i = 0;
        for (; n - i >= 8; i += 8) {
            uint64_t marks = slip_special(slip_load64(p + i));
            if (marks)
                return i + slip_first(marks);
        }
        return i;
    }
    #endif
    """
    uint64_t load64 "slip_load64" (const uint8_t* p) noexcept nogil
    uint32_t load32 "slip_load32" (const uint8_t* p) noexcept nogil
    Py_ssize_t plain_bytes "slip_plain" (const uint8_t* p, Py_ssize_t n) noexcept nogil
    const uint64_t ESCAPES_LOW "slip_escapes_low"
    const uint64_t ESCAPES_HIGH "slip_escapes_high"
    bint likely "__builtin_expect" (bint condition, long expected) noexcept nogil

cdef enum:
    CODE_BITS = 5           # of a packed error

cdef enum Code:             # the texts are jsonscan.REASONS, in this order
    E_NONE, E_NOT_OBJECT, E_BOM, E_TRUNCATED, E_VALUE, E_KEY, E_COLON, E_OBJECT_NEXT, E_ARRAY_NEXT, E_TRAILING
    E_CONTROL, E_ESCAPE, E_HEX, E_UTF8, E_NUMBER, E_DIGITS, E_DEPTH


cdef inline Py_ssize_t fail(int code, Py_ssize_t pos) noexcept nogil:
    return -((pos << CODE_BITS) | code)


cdef inline int fail_code(Py_ssize_t packed) noexcept nogil:
    return <int>(-packed & ((1 << CODE_BITS) - 1))


cdef inline Py_ssize_t fail_pos(Py_ssize_t packed) noexcept nogil:
    return -packed >> CODE_BITS


cdef inline int hex_value(uint8_t c) noexcept nogil:
    if c >= c'0' and c <= c'9':
        return c - c'0'
    c |= 0x20
    if c >= c'a' and c <= c'f':
        return c - c'a' + 10
    return -1


cdef inline bint is_escape(uint8_t c) noexcept nogil:
    """One of "\\/bfnrt: a look into two words, since a chain of comparisons is mispredicted all the time."""
    return c < 128 and (ESCAPES_HIGH if c >= 64 else ESCAPES_LOW) >> (c & 63) & 1


cdef inline Py_ssize_t skip_escapes(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """An escape (section 7), or a run of \\u escapes, s[i] being a backslash."""
    cdef Py_ssize_t stop
    while True:
        if i + 1 >= n:
            return fail(E_TRUNCATED, n)
        if s[i + 1] != c'u':
            return i + 2 if is_escape(s[i + 1]) else fail(E_ESCAPE, i + 1)
        i += 2
        stop = i + 4
        while i < stop:
            if i >= n:
                return fail(E_TRUNCATED, n)
            if hex_value(s[i]) < 0:
                return fail(E_HEX, i)
            i += 1
        if i >= n or s[i] != c'\\':
            return i


cdef inline Py_ssize_t skip_unicode(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """A run of non-ASCII characters, s[i] being >= 0x80 (Unicode table 3-7). A fault is at its first byte."""
    cdef uint32_t x, y
    while i < n:
        if n - i >= 4:
            x = load32(s + i)
        else:
            x = s[i]                                # zeros behind the end can continue nothing
            if n - i > 1:
                x |= <uint32_t>s[i + 1] << 8
            if n - i > 2:
                x |= <uint32_t>s[i + 2] << 16
        if (x & 0xC0C0F0) == 0x8080E0:              # E0..EF and two continuations
            y = x & 0x200F
            if y == 0 or y == 0x200D:               # E0 80..9F overlong, ED A0..BF surrogate
                return fail(E_UTF8, i)
            i += 3
        elif (x & 0xC0E0) == 0x80C0:                # C0..DF and one
            if (x & 0x1E) == 0:                     # C0, C1: overlong
                return fail(E_UTF8, i)
            i += 2
        elif (x & 0x80) == 0:
            # a single blank or comma between words of, say, Cyrillic: stay here
            if not (n - i >= 2 and (x & 0x8000) and (x & 0xFF) >= 0x20 and (x & 0xFF) != 0x22 and (x & 0xFF) != 0x5C):
                return i
            i += 1
        elif (x & 0xF8) == 0xF0 and (x >> 8 & 0xC0C0C0) == 0x808080:      # F0..F7 and three
            y = (x & 7) << 2 | (x >> 12 & 3)        # the plane
            if y == 0 or y > 16:                    # F0 80..8F overlong, F4 90.. beyond U+10FFFF
                return fail(E_UTF8, i)
            i += 4
        else:
            return fail(E_UTF8, i)
    return i


cdef inline Py_ssize_t skip_string(const uint8_t* s, Py_ssize_t i, Py_ssize_t n) noexcept nogil:
    """The rest of a string, i being behind its opening quote."""
    cdef uint8_t c
    while True:
        i += plain_bytes(s + i, n - i)
        while i < n and s[i] >= 0x20 and s[i] < 0x80 and s[i] != c'"' and s[i] != c'\\':
            i += 1                                      # fewer than a block are left
        if i >= n:
            return fail(E_TRUNCATED, n)
        c = s[i]
        if likely(c == c'"', 1):
            return i + 1
        if c == c'\\':
            i = skip_escapes(s, i, n)
        elif c >= 0x80:
            i = skip_unicode(s, i, n)
        else:
            return fail(E_CONTROL, i)
        if i < 0:
            return i


cdef inline Py_ssize_t unescape(
    const uint8_t* s, Py_ssize_t i, Py_ssize_t n, uint8_t* out, Py_ssize_t room
) noexcept nogil:
    """The inside of a validated string as UTF-8 into out; its size, or -1: a lone surrogate, or too little room.

    Room for n - i + 4 bytes is always enough.
    """
    cdef Py_ssize_t o = 0
    cdef uint32_t x, low
    cdef uint8_t c
    while i < n:
        if o + 4 > room:
            return -1
        c = s[i]
        if c != c'\\':
            out[o] = c
            o += 1
            i += 1
            continue
        c = s[i + 1]
        i += 2
        if c != c'u':
            if c == c'n':
                c = 10
            elif c == c't':
                c = 9
            elif c == c'r':
                c = 13
            elif c == c'b':
                c = 8
            elif c == c'f':
                c = 12
            out[o] = c
            o += 1
            continue
        x = hex_quad(s + i)
        i += 4
        if (x & 0xF800) == 0xD800:
            if x >= 0xDC00 or n - i < 6 or s[i] != c'\\' or s[i + 1] != c'u':
                return -1
            low = hex_quad(s + i + 2)
            if (low & 0xFC00) != 0xDC00:
                return -1
            i += 6
            x = 0x10000 + ((x & 0x3FF) << 10 | (low & 0x3FF))
        o += put_utf8(out + o, x)
    return o


cdef inline uint32_t hex_quad(const uint8_t* s) noexcept nogil:
    return <uint32_t>(hex_value(s[0]) << 12 | hex_value(s[1]) << 8 | hex_value(s[2]) << 4 | hex_value(s[3]))


cdef inline int put_utf8(uint8_t* out, uint32_t x) noexcept nogil:
    """The character x as UTF-8; how many bytes that took."""
    if x < 0x80:
        out[0] = <uint8_t>x
        return 1
    if x < 0x800:
        out[0] = <uint8_t>(0xC0 | x >> 6)
        out[1] = <uint8_t>(0x80 | x & 0x3F)
        return 2
    if x < 0x10000:
        out[0] = <uint8_t>(0xE0 | x >> 12)
        out[1] = <uint8_t>(0x80 | x >> 6 & 0x3F)
        out[2] = <uint8_t>(0x80 | x & 0x3F)
        return 3
    out[0] = <uint8_t>(0xF0 | x >> 18)
    out[1] = <uint8_t>(0x80 | x >> 12 & 0x3F)
    out[2] = <uint8_t>(0x80 | x >> 6 & 0x3F)
    out[3] = <uint8_t>(0x80 | x & 0x3F)
    return 4
