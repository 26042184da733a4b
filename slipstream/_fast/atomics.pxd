"""Atomic access to aligned words in shared memory: thin names for the ``__atomic`` builtins of gcc and clang.

A header (inline functions, no module). The builtins and not ``<stdatomic.h>``: they work on plain ``uint64_t`` in a
file that other processes map, where ``_Atomic`` types promise nothing about layout. The assertions are what sharing
between processes rests on: lock-free words (a lock of libatomic would be private to each process), little-endian.

``load_acquire`` sees everything that was written before the ``store_release`` or ``cas`` whose value it reads. All
else is relaxed: counters are single words and order nothing.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if !defined(__GNUC__)
    #error "slipstream needs the __atomic builtins of gcc or clang"
    #endif
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "the shared table is little-endian"
    #endif
    _Static_assert(__atomic_always_lock_free(sizeof(uint64_t), 0), "64-bit words must be lock-free");
    _Static_assert(__atomic_always_lock_free(sizeof(uint32_t), 0), "32-bit words must be lock-free");
    _Static_assert(sizeof(double) == sizeof(uint64_t), "a double is one word");

    static inline uint64_t slip_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline uint64_t slip_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline void slip_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void slip_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline uint64_t slip_add(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    /* strong; on failure *seen becomes what is there */
    static inline int slip_cas(uint64_t *p, uint64_t *seen, uint64_t v) {
        return __atomic_compare_exchange_n(p, seen, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline uint32_t slip_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void slip_store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline uint32_t slip_add32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
    static inline int slip_cas32(uint32_t *p, uint32_t *seen, uint32_t v) {
        return __atomic_compare_exchange_n(p, seen, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    static inline uint64_t slip_bits(double v) { uint64_t w; memcpy(&w, &v, 8); return w; }
    static inline double slip_real(uint64_t w) { double v; memcpy(&v, &w, 8); return v; }
    static inline int slip_log2(uint64_t v) { return 63 - __builtin_clzll(v); }
    """
    uint64_t load "slip_load"(const uint64_t* p) noexcept nogil
    uint64_t load_acquire "slip_load_acquire"(const uint64_t* p) noexcept nogil
    void store "slip_store"(uint64_t* p, uint64_t v) noexcept nogil
    void store_release "slip_store_release"(uint64_t* p, uint64_t v) noexcept nogil
    uint64_t fetch_add "slip_add"(uint64_t* p, uint64_t v) noexcept nogil
    bint cas "slip_cas"(uint64_t* p, uint64_t* seen, uint64_t v) noexcept nogil
    uint32_t load32 "slip_load32"(const uint32_t* p) noexcept nogil
    void store32 "slip_store32"(uint32_t* p, uint32_t v) noexcept nogil
    uint32_t fetch_add32 "slip_add32"(uint32_t* p, uint32_t v) noexcept nogil
    bint cas32 "slip_cas32"(uint32_t* p, uint32_t* seen, uint32_t v) noexcept nogil
    uint64_t bits_of "slip_bits"(double v) noexcept nogil
    double real_of "slip_real"(uint64_t w) noexcept nogil
    int log2_of "slip_log2"(uint64_t v) noexcept nogil    # v > 0
