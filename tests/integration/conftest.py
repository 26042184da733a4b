"""Fixtures of several files of this folder."""

from __future__ import annotations

import pytest

from slipstream.server.native_connection import NativeConnection
from tests.hotpath import native_connections


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[NativeConnection]:
    return native_connections(monkeypatch)
