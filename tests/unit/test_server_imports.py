"""What the server's room does not load: start-up time and memory are features."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, ssl, sys
given = {given!r}
os.environ.update(given)
before = dict(os.environ)
import slipstream.server
assert dict(os.environ) == before
assert "aiohttp" in sys.modules
assert "frozenlist._frozenlist" not in sys.modules
from aiohttp import connector
assert connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"] == 0
"""


@pytest.mark.parametrize("given", [{}, {"SSL_CERT_FILE": "/nowhere.pem", "FROZENLIST_NO_EXTENSIONS": ""}])
def test_aiohttp_comes_without_what_a_server_does_not_need(given: dict[str, str]) -> None:
    """No root certificates, no C++ library; the environment, which our own contexts read, is what it was."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(given=given)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_reference_transport_has_the_certificates_of_the_system() -> None:
    """It never takes aiohttp's own context, which has none."""
    script = (
        "import slipstream.server, ssl\n"
        "from slipstream.net.aiohttp_transport import _ssl_context\n"
        "wanted = ssl.create_default_context().cert_store_stats()\n"
        "assert _ssl_context(True, None).cert_store_stats() == wanted\n"
        "assert _ssl_context(False, None) is False\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
