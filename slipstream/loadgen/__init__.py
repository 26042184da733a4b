"""Load on an LLM API and what came of it (``slipstream loadgen``), and the whole house in one command (``simulate``).

``schedule``, ``stats`` and ``reply`` are pure: time and bytes are arguments. ``client`` is one connection, ``run``
drives many, ``report`` shows. Nothing of the gateway is imported: what measures must not share a fault with what is
measured.
"""
