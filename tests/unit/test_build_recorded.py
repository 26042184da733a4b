"""What we would send for a recorded request means what was recorded (issue PROVIDERS, beyond the harness).

A recorded Messages request, read by our client side and written by our provider side, must read back as the same
canonical request: nothing changed its meaning on the way. What the provider side reports as dropped is left out of the
comparison.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipstream.errors import ClientError
from slipstream.wire.anthropic.face_request import decode_request
from slipstream.wire.anthropic.request import build_body, options_for
from slipstream.wire.canonical import text_of
from tests.harness import SHARED

FOLDER = SHARED / "wire" / "dev"
RECORDED = sorted(FOLDER.glob("anthropic.messages.*.json")) if FOLDER.is_dir() else []
pytestmark = pytest.mark.skipif(not RECORDED, reason=f"no {FOLDER}: set SLIPSTREAM_SHARED")
LOOSE = ("stream_options", "reasoning_effort", "thinking", "temperature", "top_p", "top_k")
"""Depend on the model's traits on purpose (PROTOCOLS.md 1.2), and are tested with them."""


def canonical(body: Any) -> tuple[dict[str, Any], list[str]]:
    request, dropped = decode_request({**body, "max_tokens": body.get("max_tokens", 4096)})
    return {name: value for name, value in request.items() if name not in LOOSE}, dropped


def meaning(message: dict[str, Any]) -> tuple[Any, ...]:
    """Who says what, with which calls and files."""
    content = message.get("content")
    parts = [p for p in content if p.get("type") != "text"] if isinstance(content, list) else []
    calls = [(c["id"], c["function"]) for c in message.get("tool_calls") or ()]
    return message["role"], text_of(content).split(), [p.get("type") for p in parts], calls, message.get("tool_call_id")


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: p.stem.split(".", 2)[2])
def test_a_recorded_request_keeps_its_meaning(path: Any) -> None:
    exchange = json.loads(path.read_text())
    body = exchange["request"]["body"]
    if not isinstance(body, dict) or not body.get("messages") or not body.get("model"):
        pytest.skip("no request was recorded")
    try:
        request, lost = canonical(body)
    except ClientError:
        pytest.skip("recorded to be refused")
    built, dropped = build_body(request, body["model"], options_for(body["model"]))
    again, _ = canonical({**built, "model": body["model"]})
    said, meant = request.pop("messages"), again.pop("messages")
    assert [meaning(message) for message in meant] == [meaning(message) for message in said]
    for name in {name.split("[")[0].split(".")[0] for name in [*lost, *dropped]}:
        request.pop(name, None)
        again.pop(name, None)
    assert again == request
