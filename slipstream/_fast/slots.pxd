"""How a key gets its slot, once for all processes: rows of targets, series and pools are all claimed here.

A header (inline functions, no module). A slot begins with two words, ``state`` and ``meta``; the key lies further on.
``state`` is 0 (free), ``mark | CLAIMING`` or ``mark | READY``, where ``mark`` is the hash of the key less its two low
bits. Open addressing: the search starts at ``hash % cap`` and goes on slot by slot.

Invariants, and why a process may be killed at any instruction:
* A slot never becomes free again and never changes its mark. So all that look for one key walk the same slots in the
  same order, and the first free one is claimed by one CAS: one key, one slot.
* Who finds a slot in ``CLAIMING`` with the mark of its own key does not wait: it writes the same meta and key words
  (word by word, the same values as the other one) and sets ``READY`` itself. A dead claimant leaves at most a slot
  that the next process with that key finishes; all others step over it.
* ``READY`` is set after the key was written (release), and a key is always compared in full (acquire). Two different
  keys of the same 62-bit mark claimed in the same instant could mix their bytes: neither would compare equal, both
  move on, and ``key_of`` shows no slot whose key does not hash to its mark.
* Nothing read from the table is used as an index or as a length before it was bounded.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from slipstream._fast.atomics cimport cas, load, load_acquire, store

cdef enum:
    CLAIMING = 1
    READY = 2
    KEY_WORDS = 26
    KEY_MAX = 208        # bytes
    META_KIND = 16       # meta is the length of the key, and from this bit on its kind (series: number of values)

cdef inline uint64_t word_at(const char* p, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    """Word ``i`` of ``n`` bytes, padded with zeros."""
    cdef uint64_t w = 0
    memcpy(&w, p + 8 * i, min(n - 8 * i, 8))
    return w

cdef inline uint64_t key_hash(const char* key, Py_ssize_t n, uint64_t kind) noexcept nogil:
    """Not for keys of an enemy: ours are made of names that the configuration bounds."""
    cdef uint64_t h = (kind << META_KIND | <uint64_t>n) * <uint64_t>0x9E3779B97F4A7C15
    cdef Py_ssize_t i
    for i in range((n + 7) // 8):
        h = (h ^ word_at(key, n, i)) * <uint64_t>0xD6E8FEB86659FD93
        h ^= h >> 32
    h *= <uint64_t>0x9E3779B97F4A7C15
    return h ^ h >> 32

cdef inline bint same_key(
    const uint64_t* slot, int key_at, const char* key, Py_ssize_t n, uint64_t kind
) noexcept nogil:
    cdef Py_ssize_t i
    if load(slot + 1) != (kind << META_KIND | <uint64_t>n):
        return False
    for i in range((n + 7) // 8):
        if load(slot + key_at + i) != word_at(key, n, i):
            return False
    return True

cdef inline Py_ssize_t find_or_claim(
    uint64_t* base, Py_ssize_t stride, Py_ssize_t cap, int key_at, const char* key, Py_ssize_t n, uint64_t kind
) noexcept nogil:
    """Index of the slot of ``key`` (at most KEY_MAX bytes), or -1 when every slot has another key."""
    cdef uint64_t h = key_hash(key, n, kind), mark = h & ~<uint64_t>3, seen
    cdef Py_ssize_t i = <Py_ssize_t>(h % <uint64_t>cap), tries, k
    cdef uint64_t* slot
    for tries in range(cap):
        slot = base + i * stride
        seen = load_acquire(slot)
        if seen == 0 and cas(slot, &seen, mark | CLAIMING):
            seen = mark | CLAIMING
        if seen == mark | CLAIMING:  # ours, or that of another process for the same key
            store(slot + 1, kind << META_KIND | <uint64_t>n)
            for k in range((n + 7) // 8):
                store(slot + key_at + k, word_at(key, n, k))
            if cas(slot, &seen, mark | READY):
                seen = mark | READY
        if seen == mark | READY and same_key(slot, key_at, key, n, kind):
            return i
        i = i + 1 if i + 1 < cap else 0
    return -1

cdef inline Py_ssize_t key_of(const uint64_t* slot, int key_at, char* out, uint64_t* kind) noexcept nogil:
    """Copies the key of a slot to ``out`` (KEY_MAX bytes) and gives its length; -1: no complete slot."""
    cdef uint64_t seen = load_acquire(slot), meta = load(slot + 1), w
    cdef Py_ssize_t n = <Py_ssize_t>(meta & 0xFFFF), i
    if seen & 3 != READY or n > KEY_MAX:
        return -1
    kind[0] = meta >> META_KIND
    for i in range((n + 7) // 8):
        w = load(slot + key_at + i)
        memcpy(out + 8 * i, &w, 8)
    return n if seen & ~<uint64_t>3 == key_hash(out, n, kind[0]) & ~<uint64_t>3 else -1
