"""The registry of metric series in the shared table: counters, gauges and histograms of all workers together.

Owns two arenas of slots: small ones (up to COUNTER_VALUES values) and large ones (up to HISTOGRAM_VALUES). What a key
says and what the values mean is the caller's business. How slots are claimed, and why a killed worker does no harm:
slots.pxd. Values are single words and are only ever added to or stored, so the sums are exact whoever dies when.

The rule that must not be broken: a slot belongs to its key for the life of the file, so callers may keep its number.

Documentation of the face: series.pyi. The same in plain words: _pure/series.py.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from slipstream._fast.atomics cimport fetch_add, load, store
from slipstream._fast.slots cimport KEY_MAX, META_KIND, find_or_claim, key_of
from slipstream._fast.table cimport (
    COUNTER_KEY, COUNTER_VALUES, COUNTER_WORDS, HISTOGRAM_KEY, HISTOGRAM_VALUES, HISTOGRAM_WORDS, S_VALUES, Table,
)


@cython.final
cdef class Series:
    def __cinit__(self, Table table not None):
        self.table = table

    cdef uint64_t* slot(self, Py_ssize_t slot, Py_ssize_t index) except NULL:
        """The value ``index`` of ``slot``. The numbers of large slots follow those of the small ones."""
        cdef Table t = self.table
        if <size_t>slot < <size_t>t.n_counters and <size_t>index < COUNTER_VALUES:
            return t.counter_slots + slot * COUNTER_WORDS + S_VALUES + index
        slot -= t.n_counters
        if <size_t>slot < <size_t>t.n_histograms and <size_t>index < HISTOGRAM_VALUES:
            return t.histogram_slots + slot * HISTOGRAM_WORDS + S_VALUES + index
        raise ValueError("the table is closed") if t.p == NULL else IndexError("no such series or value")

    def series(self, bytes key not None, Py_ssize_t n_values):
        cdef Table t = self.table
        cdef const char* k = PyBytes_AS_STRING(key)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(key), slot
        if t.p == NULL:
            raise ValueError("the table is closed")
        if n > KEY_MAX or not 0 < n_values <= HISTOGRAM_VALUES:
            raise ValueError(f"a series has a key of at most {KEY_MAX} bytes and 1 to {HISTOGRAM_VALUES} values")
        if n_values <= COUNTER_VALUES:
            return find_or_claim(t.counter_slots, COUNTER_WORDS, t.n_counters, COUNTER_KEY, k, n, n_values)
        slot = find_or_claim(t.histogram_slots, HISTOGRAM_WORDS, t.n_histograms, HISTOGRAM_KEY, k, n, n_values)
        return slot if slot < 0 else t.n_counters + slot

    cpdef add(self, Py_ssize_t slot, Py_ssize_t index, int64_t delta):
        fetch_add(self.slot(slot, index), <uint64_t>delta)

    def set(self, Py_ssize_t slot, Py_ssize_t index, int64_t value):
        store(self.slot(slot, index), <uint64_t>value)

    def get(self, Py_ssize_t slot, Py_ssize_t index):
        return <int64_t>load(self.slot(slot, index))

    def observe(self, Py_ssize_t slot, Py_ssize_t bucket, int64_t amount):
        cdef uint64_t* value = self.slot(slot, bucket)
        cdef uint64_t* meta = value - bucket - S_VALUES + 1
        cdef Py_ssize_t last = <Py_ssize_t>(load(meta) >> META_KIND & 0xFF) - 1
        cdef uint64_t* total = self.slot(slot, last)
        if bucket >= last:
            raise IndexError("the last value is the sum of what was observed, not a bucket")
        fetch_add(value, 1)
        fetch_add(total, <uint64_t>amount)

    cdef items_of(self, list found, uint64_t* base, Py_ssize_t n, Py_ssize_t stride, int key_at, uint64_t values):
        cdef char key[KEY_MAX]
        cdef uint64_t kind = 0, i
        cdef uint64_t* s
        cdef Py_ssize_t length, at
        for at in range(n):
            s = base + at * stride
            length = key_of(s, key_at, key, &kind)
            if length >= 0 and 0 < kind <= values:
                values_of = [<int64_t>load(s + S_VALUES + i) for i in range(kind)]
                found.append((PyBytes_FromStringAndSize(key, length), values_of))

    def items(self):
        cdef Table t = self.table
        cdef list found = []
        if t.p == NULL:
            raise ValueError("the table is closed")
        self.items_of(found, t.counter_slots, t.n_counters, COUNTER_WORDS, COUNTER_KEY, COUNTER_VALUES)
        self.items_of(found, t.histogram_slots, t.n_histograms, HISTOGRAM_WORDS, HISTOGRAM_KEY, HISTOGRAM_VALUES)
        return found
