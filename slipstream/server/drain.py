"""How long a process may take to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..errors import ConfigError

CUT_S = 1.0
"""What the answers that are cut at the deadline get to end with their error."""
HANDSHAKES_S = 0.02
MAX_DRAIN_S = 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Drain:
    """How a process ends. ``delay_s``: it goes on accepting for so long after the signal, while the load balancer finds
    out; then requests in flight may run for ``deadline_s`` (Kubernetes sends SIGKILL 30 s after the signal by default).
    """

    delay_s: float = 0.0
    deadline_s: float = 30.0

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Drain:
        """``SLIPSTREAM_DRAIN_DELAY_S`` and ``SLIPSTREAM_DRAIN_DEADLINE_S``. Raises ``ConfigError``."""
        values, problems = {}, []
        for field in dataclasses.fields(cls):
            name = f"SLIPSTREAM_DRAIN_{field.name.upper()}"
            if text := env.get(name):
                try:
                    values[field.name] = float(text)
                except ValueError:
                    values[field.name] = -1.0
                if not 0 <= values[field.name] <= MAX_DRAIN_S:
                    problems.append(f"environment: {name}: must be a number of seconds between 0 and {MAX_DRAIN_S:g}")
        if problems:
            raise ConfigError(problems)
        return cls(**values)

    @property
    def longest_s(self) -> float:
        return self.delay_s + self.deadline_s + 3 * CUT_S


DEFAULT_DRAIN = Drain()
