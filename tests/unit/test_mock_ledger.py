"""The mock's books: totals, bounds, and that no credential is kept."""

from __future__ import annotations

import json

from slipstream.mock.behaviour import CHAT
from slipstream.mock.ledger import MASK, MAX_NAMES, OTHER, RECORDS, Entry, Ledger, fingerprint, visible_headers


def entry(model: str = "m", key: str = "none") -> Entry:
    return Entry("req", CHAT, model, True, key, 10.0)


def test_ledger_counts() -> None:
    ledger = Ledger(price_per_1k_tokens_usd=0.5)
    one = entry()
    ledger.begin(one, 40)
    ledger.wrote(one, 60)
    assert ledger.snapshot()["open"] == 1
    one.status = 200
    ledger.finish(one, 10.25, disconnected=True)
    got = ledger.snapshot()
    (record,) = got.pop("last")
    assert got == {
        "requests": 1,
        "by_status": {"200": 1},
        "by_endpoint": {CHAT: 1},
        "by_model": {"m": 1},
        "by_key": {"none": 1},
        "prompt_tokens": 40,
        "completion_tokens": 60,
        "streams": 1,
        "disconnects": 1,
        "open": 0,
        "cost_usd": 0.05,
    }
    assert record["ms"] == 250
    assert record["disconnected"] is True
    assert "key" not in record


def test_ledger_reset_with_a_request_in_flight() -> None:
    ledger = Ledger()
    one = entry()
    ledger.begin(one, 4)
    ledger.reset()
    assert ledger.open == 1
    ledger.wrote(one, 5)
    ledger.finish(one, 11.0, disconnected=False)
    assert (ledger.open, ledger.requests, ledger.completion_tokens, len(ledger.last)) == (0, 0, 0, 0)


def test_ledger_is_bounded() -> None:
    ledger = Ledger()
    for i in range(MAX_NAMES + 20):
        one = entry(f"m{i}", f"k{i}")
        ledger.begin(one, 1)
        ledger.finish(one, 10.0, disconnected=False)
        ledger.saw("POST", "/", {}, 10, {})
    assert len(ledger.by_model) == len(ledger.by_key) == MAX_NAMES + 1
    assert ledger.by_model[OTHER] == 20
    assert len(ledger.last) == len(ledger.last_requests) == RECORDS
    ledger.saw("POST", "/", {}, 1_000_000, {"large": True})
    assert ledger.last_requests[-1]["body"] is None


def test_a_body_nested_too_deep_to_encode_is_left_out() -> None:
    ledger = Ledger()
    ledger.saw("POST", "/", {}, 700, json.loads("[" * 300 + "]" * 300))
    assert json.loads(ledger.requests_page())["requests"][0]["body"] is None


def test_no_credential_is_kept() -> None:
    secrets = ["Authorization", "api-key", "x-api-key", "X-Goog-Api-Key", "X-Amz-Security-Token", "Cookie", "host"]
    shown = visible_headers([*((name, "s3cret") for name in secrets), ("X-Trace", "1"), ("Accept", "a")])
    assert shown == {name.lower(): MASK for name in secrets} | {"x-trace": "1", "accept": "a"}
    assert "s3cret" not in fingerprint("Bearer s3cret")
    assert fingerprint("Bearer a") != fingerprint("Bearer b")
