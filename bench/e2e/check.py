"""Are the answers right? Statuses and bodies, compared with what the upstream must have said; never only counted.

A pass before the timed rounds asks every peer, from several connections at once, questions that are all different:
each answer depends on its question (``payloads``), so one that was cut, altered, or given to the wrong client is seen.
Proxies and our gateway must give the upstream's bytes; others may write the JSON anew, but the text, the finish
reason and the token counts must be the upstream's.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import payloads
from .proc import Failed

THREADS = 8
TIMEOUT_S = 60.0
EXCERPT = 300

Question = tuple[bytes, bytes]
"""A request body, and the body that the upstream answers it with."""


def thinking(chars: int, count: int, first_seed: int = 1000) -> list[Question]:
    """Questions for ``upstream.py``, all different."""
    bodies = [payloads.request(chars, first_seed + i) for i in range(count)]
    return [(body, payloads.reply_to(json.loads(body))) for body in bodies]


def streamed(count: int, events: int = payloads.EVENTS) -> list[Question]:
    """Every other one asks for usage; a gateway that asks for itself must not show it to those that did not."""
    asked = [(seed, seed % 2 == 1) for seed in range(count)]
    return [(payloads.request(seed=i, stream=True, usage=u), payloads.stream(events, usage=u)) for i, u in asked]


def static(chars: int, count: int) -> list[Question]:
    """Questions for the nginx upstream, which gives every one the same answer."""
    return [(payloads.request(chars, seed), payloads.reply()) for seed in range(count)]


def check(name: str, port: int, headers: Mapping[str, str], questions: list[Question], *, exact: bool) -> int:
    """How many answers were compared. Raises ``Failed`` at the first that is not right."""
    compare = same_bytes if exact else same_answer

    def ask(share: list[Question]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        try:
            for body, expected in share:
                connection.request("POST", payloads.PATH, body, payloads.all_headers(headers))
                response = connection.getresponse()
                got = response.read()
                if response.status != 200:
                    raise Failed(f"{name}: status {response.status}: {got[:EXCERPT]!r}")
                compare(name, got, expected)
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{name}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()
        return len(share)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(ask, [questions[i::THREADS] for i in range(min(THREADS, len(questions)))]))


def same_bytes(name: str, got: bytes, expected: bytes) -> None:
    if got != expected:
        shorter = min(len(got), len(expected))
        at = next((i for i in range(shorter) if got[i] != expected[i]), shorter)
        raise Failed(
            f"{name}: {len(got)} bytes instead of {len(expected)}, different from byte {at}:\n"
            f"  got      {got[at : at + EXCERPT]!r}\n  expected {expected[at : at + EXCERPT]!r}"
        )


def same_answer(name: str, got: bytes, expected: bytes) -> None:
    read: Callable[[bytes], Any] = stream_facts if expected.startswith(b"data:") else reply_facts
    try:
        facts = read(got)
    except (ValueError, LookupError, TypeError) as error:
        raise Failed(f"{name}: not an answer ({type(error).__name__}: {error}): {got[:EXCERPT]!r}") from error
    if facts != read(expected):
        same_bytes(name, repr(facts).encode(), repr(read(expected)).encode())


def reply_facts(data: bytes) -> tuple[str, str, int, int]:
    body = json.loads(data)
    choice, usage = body["choices"][0], body["usage"]
    return choice["message"]["content"], choice["finish_reason"], usage["prompt_tokens"], usage["completion_tokens"]


def stream_facts(data: bytes) -> tuple[str, list[str], bool]:
    """Text, finish reasons, and whether it ends with [DONE]. Usage was not asked for, so it may be left out."""
    texts, reasons = [], []
    blocks = [block.strip() for block in data.split(b"\n\n") if block.strip().startswith(b"data:")]
    for block in blocks[:-1]:
        for choice in json.loads(block[5:])["choices"]:
            texts.append(choice["delta"].get("content") or "")
            if choice.get("finish_reason"):
                reasons.append(choice["finish_reason"])
    return "".join(texts), reasons, blocks[-1][5:].strip() == b"[DONE]"
