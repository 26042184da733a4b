"""``slipstream mock`` as a process: it says where it is, ends cleanly, and sums up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import openai
import pytest

from tests.aio import DEADLINE_S

USER: Any = [{"role": "user", "content": "Hello there"}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command(number: signal.Signals) -> None:
    code = "from slipstream.cli.mock import command; command()"
    arguments = [sys.executable, "-W", "error", "-c", code, "--port", "0", "--mean-latency-ms", "0", "--model", "gpt-x"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http://"))
        with openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
            client.chat.completions.create(model="gpt-x", messages=USER)
        child.send_signal(number)
        out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    assert err == ""
    assert out.startswith("1 requests (1 x 200), 0 streams, 0 disconnects, 3 prompt")
