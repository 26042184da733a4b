"""Fixtures of all tests with clients' own libraries."""

from __future__ import annotations

import functools

import pytest

from slipstream.engine import runtime
from slipstream.resilience.backoff import Backoff, RetryPolicy


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same target is asked again almost at once: what a client is told in the end does not depend on the wait."""
    monkeypatch.setattr(runtime, "RetryPolicy", functools.partial(RetryPolicy, same=Backoff(0.01, 0.01)))
