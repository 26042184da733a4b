"""The choice of one target out of a pool, at a cost that does not depend on the size of the pool.

Owns the shared words of a pool (turn counter, choice words) and the arithmetic of load. Three ways to choose:
* ``pick``: power of two choices. Two members at random, the one in better health wins, then the one with less load
  (peak EWMA x requests in flight, as Finagle and Linkerd have it). When both rest, at most three more pairs and
  sixteen neighbours are looked at.
* ``turn``: weighted round robin. One ``fetch_add`` on a counter that all workers share, so that they are exact
  together; the order of a cycle was computed before (routing.weighted).
* ``fastest`` and ``cheapest``: one atomic load of a word that ``refresh`` (the only walk over all members) left there.

The rule that must not be broken: a choice word is only believed when it carries the fingerprint of this very list of
members, and an index out of it only when it is inside. Choices are hints: whether a target may be used now is asked of
its row (``Table.available``, ``cas_breaker``).

Documentation of the face: select.pyi. The same in plain words: _pure/select.py.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.math cimport exp
from libc.stdint cimport uint32_t, uint64_t

from slipstream._fast.atomics cimport fetch_add, load, store
from slipstream._fast.slots cimport KEY_MAX, find_or_claim, key_hash
from slipstream._fast.table cimport (
    CURRENT, P_CHEAPEST, P_FASTEST, P_KEY, P_TURN, POOL_WORDS, R_LAST, R_LATENCY, R_TTFT, ROW_WORDS, Table, pending,
    shut,
)
from slipstream._fast.windows cimport LOW_32, average, average_now

cdef enum:
    PAIRS = 4
    NEIGHBOURS = 16


# ---- core ----------------------------------------------------------------------------------------------------------

cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """splitmix64 (Steele, Lea, Flood 2014)."""
    x += <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ x >> 30) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ x >> 27) * <uint64_t>0x94D049BB133111EB
    return x ^ x >> 31


cdef inline double penalty_now(const uint64_t* row, uint64_t now, double tau, double penalty) noexcept nogil:
    """What the last failure still costs; nothing after a success."""
    cdef uint64_t last = load(row + R_LAST), then = last >> 8, ms = now // 1000000
    if not last & CURRENT:
        return 0.0
    return penalty * exp(-(<double>(ms - then) * 1e6 / tau)) if then < ms else penalty


cdef inline double load_of(const uint64_t* header, const uint64_t* row, uint64_t now, double tau, double penalty,
                           double unknown) noexcept nogil:
    """Expected time to the first token in us times what is waiting for it."""
    cdef double cost = average_now(row + R_TTFT, now, tau)
    if cost == 0.0:
        cost = average_now(row + R_LATENCY, now, tau)
    if cost == 0.0:
        cost = unknown
    cost = max(cost, 1.0) + penalty_now(row, now, tau, penalty)
    return cost * <double>(pending(header, row) + 1)


cdef inline double speed_of(const uint64_t* row, uint64_t now, double tau, double penalty,
                            double unknown) noexcept nogil:
    cdef double cost = average(row + R_TTFT)
    if cost == 0.0:
        cost = average(row + R_LATENCY)
    if cost == 0.0:
        cost = unknown
    return cost + penalty_now(row, now, tau, penalty)


# ---- face ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class Pool:
    def __cinit__(self, Table table not None, bytes key not None, rows, order=None, costs=None, *,
                  double penalty_us=5e6, double unknown_us=30e3):
        cdef Py_ssize_t i
        cdef Py_ssize_t n = len(rows), n_order = 0 if order is None else len(order)
        table.row(0)
        if not n or PyBytes_GET_SIZE(key) > KEY_MAX or (order is not None and not n_order) or (
            costs is not None and len(costs) != n
        ):
            raise ValueError(f"a pool has members, one cost for each, and a key of at most {KEY_MAX} bytes")
        self.table = table
        self.penalty, self.unknown = penalty_us, unknown_us
        self.members = <uint32_t*>PyMem_Malloc(n * sizeof(uint32_t))
        self.order = <uint32_t*>PyMem_Malloc(max(n_order, 1) * sizeof(uint32_t))
        self.costs = <double*>PyMem_Malloc(n * sizeof(double)) if costs is not None else NULL
        if self.members == NULL or self.order == NULL or (costs is not None and self.costs == NULL):
            raise MemoryError
        for i in range(n):
            if not 0 <= rows[i] < table.n_rows:
                raise IndexError("no such row")
            self.members[i] = rows[i]
            if costs is not None:
                self.costs[i] = costs[i]
        for i in range(n_order):
            if not 0 <= order[i] < n:
                raise IndexError("the order names a member that does not exist")
            self.order[i] = order[i]
        self.n, self.n_order = n, n_order
        self.mark = key_hash(<char*>self.members, n * sizeof(uint32_t), 1) & ~LOW_32
        self.slot = find_or_claim(table.pool_slots, POOL_WORDS, table.n_pools, P_KEY, PyBytes_AS_STRING(key),
                                  PyBytes_GET_SIZE(key), 0)

    def __dealloc__(self):
        PyMem_Free(self.members)
        PyMem_Free(self.order)
        PyMem_Free(self.costs)

    def __len__(self):
        return self.n

    cdef uint64_t* word(self, int at) except NULL:
        if self.table.p == NULL:
            raise ValueError("the table is closed")
        if self.slot < 0:
            return self.own + at
        return self.table.pool_slots + self.slot * POOL_WORDS + at

    cdef void look(self, Best* best, Py_ssize_t index, uint64_t now, tuple avoid):
        cdef Table t = self.table
        cdef uint64_t* row = t.rows + self.members[index] * ROW_WORDS
        cdef int rank = shut(row, now)
        cdef double cost
        if avoid is not None and index in avoid:
            rank = 2
        if rank > best.rank:
            return
        cost = load_of(t.p, row, now, t.tau, self.penalty, self.unknown)
        if rank < best.rank or cost < best.load:
            best[0] = Best(index=index, rank=rank, load=cost)

    def pick(self, uint64_t seed, uint64_t now_ns, tuple avoid=None):
        cdef Best best = Best(index=-1, rank=3, load=0.0)
        cdef uint64_t h = mix(seed), n = <uint64_t>self.n, a = 0, b
        cdef int tries
        self.word(0)
        for tries in range(PAIRS):
            a = (h & LOW_32) * n >> 32
            self.look(&best, a, now_ns, avoid)
            if n > 1:
                b = (h >> 32) * (n - 1) >> 32
                self.look(&best, b + 1 if b >= a else b, now_ns, avoid)
            if best.rank == 0:
                return best.index
            h = mix(h)
        for tries in range(<int>min(n, <uint64_t>NEIGHBOURS)):
            self.look(&best, (a + tries) % n, now_ns, avoid)
            if best.rank == 0:
                break
        return best.index if best.rank < 2 else -1

    def turn(self):
        cdef uint64_t turn = fetch_add(self.word(P_TURN), 1)
        return self.order[turn % <uint64_t>self.n_order] if self.n_order else turn % <uint64_t>self.n

    cdef Py_ssize_t chosen(self, int at) except? -2:
        cdef uint64_t word = load(self.word(at))
        cdef uint64_t index = (word & LOW_32) - 1
        return <Py_ssize_t>index if word & ~LOW_32 == self.mark and index < <uint64_t>self.n else -1

    def fastest(self):
        return self.chosen(P_FASTEST)

    def cheapest(self):
        return self.chosen(P_CHEAPEST)

    cdef int publish(self, int at, Py_ssize_t index) except -1:
        cdef uint64_t* word = self.word(at)
        cdef uint64_t new = self.mark | <uint64_t>(index + 1)
        if load(word) != new:  # an unchanged choice keeps the cache line shared
            store(word, new)
        return 0

    def refresh(self, uint64_t now_ns):
        cdef Table t = self.table
        cdef Best fast = Best(index=-1, rank=3, load=0.0), cheap = fast
        cdef double speed, cost, cheap_speed = 0.0
        cdef uint64_t* row
        cdef Py_ssize_t i
        cdef int rank
        self.word(0)
        for i in range(self.n):
            row = t.rows + self.members[i] * ROW_WORDS
            rank = shut(row, now_ns)
            speed = speed_of(row, now_ns, t.tau, self.penalty, self.unknown)
            if rank < fast.rank or (rank == fast.rank and speed < fast.load):
                fast = Best(index=i, rank=rank, load=speed)
            if self.costs == NULL:
                continue
            cost = self.costs[i]
            if rank < cheap.rank or (rank == cheap.rank and (
                cost < cheap.load or (cost == cheap.load and speed < cheap_speed)
            )):
                cheap = Best(index=i, rank=rank, load=cost)
                cheap_speed = speed
        self.publish(P_FASTEST, fast.index)
        if self.costs != NULL:
            self.publish(P_CHEAPEST, cheap.index)
