"""The mock LLM API (``slipstream mock``): a provider that costs nothing, is reproducible, and fails on demand.

It is shipped and tested code, not a test helper: ``serve --demo``, the simulator, the load tests and our own test
suite all use it. ``behaviour`` and what it is made of (``settings``, ``faults``, ``requests``, ``replies``) are pure
functions of a seed and a request; ``ledger`` keeps the books; only ``app`` knows sockets, clocks and aiohttp.
"""
