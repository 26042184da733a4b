"""What a client of each dialect must see of a stream, whatever the provider did: whole events that parse, in an order
that the dialect knows, with one of its two ends (R12, R62, R63; PROTOCOLS.md section 3).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from slipstream.engine.translate import TranslatingTap
from slipstream.types import Endpoint
from slipstream.wire.canonical import Answer, StreamReader
from slipstream.wire.faces import FACES

WRITERS = (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES, Endpoint.INFER)
FINISHES = {"stop", "length", "tool_calls", "content_filter"}
Events = list[tuple[str, Any]]


def answer(endpoint: Endpoint) -> Answer:
    request: Any = {"model": "m", "input": "x"} if endpoint is Endpoint.RESPONSES else {"model": "m"}
    return Answer("0123456789abcdef01234567", "m", 1_700_000_000, request, include_usage=True)


def tap_for(reader: StreamReader, endpoint: Endpoint) -> TranslatingTap:
    return TranslatingTap(reader, FACES[endpoint].writer(answer(endpoint), "p", lambda usage: (0.25, 7.0)))


def read_events(data: bytes) -> Events:
    """``(name, value)`` of each event, strictly: our own framing is ``event:`` and ``data:`` lines and nothing else."""
    assert data == b"" or data.endswith(b"\n\n")
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        name = ""
        *heads, last = block.split("\n")
        for line in heads:
            assert line.startswith("event: "), line
            name = line[7:]
        assert last.startswith("data: "), last
        events.append((name, last[6:] if last == "data: [DONE]" else json.loads(last[6:], parse_constant=_no_constant)))
    return events


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def see_chat(events: Events, done: bool) -> None:
    values = [value for _, value in events]
    assert (values[-1:] == ["[DONE]"]) == done
    values = values[:-1]
    finished: dict[int, bool] = {}
    for value in values:
        assert value["object"] == "chat.completion.chunk"
        for choice in value["choices"]:
            assert ("role" in choice["delta"]) == (choice["index"] not in finished)
            assert choice["finish_reason"] in {None, *FINISHES}
            done_before = finished.get(choice["index"], False)
            assert not (done_before and choice["finish_reason"]), "two finish reasons"
            finished[choice["index"]] = done_before or choice["finish_reason"] is not None
    assert len({(value["id"], value["created"], value["model"]) for value in values}) <= 1
    assert not done or all(finished.values())


def see_completions(events: Events, done: bool) -> None:
    values = [value for _, value in events]
    assert (values[-1:] == ["[DONE]"]) == done
    for value in values[:-1]:
        assert value["object"] == "text_completion"
        assert all(isinstance(choice["text"], str) for choice in value["choices"])


def see_responses(events: Events, done: bool) -> None:
    assert all(name == value["type"] for name, value in events)
    values = [value for _, value in events]
    assert [value["sequence_number"] for value in values] == list(range(len(values)))
    assert values[0]["type"] == "response.created"
    assert (values[-1]["type"] in ("response.completed", "response.incomplete")) == done
    assert done or values[-1]["type"] == "response.failed"
    open_items: set[int] = set()
    for value in values:
        if value["type"] == "response.output_item.added":
            open_items.add(value["output_index"])
        elif value["type"] == "response.output_item.done":
            open_items.remove(value["output_index"])
        elif "output_index" in value:
            assert value["output_index"] in open_items
    assert not (done and open_items)
    streamed = "".join(v["delta"] for v in values if v["type"] == "response.output_text.delta")
    parts = [part for item in values[-1]["response"]["output"] for part in item.get("content") or ()]
    assert not done or streamed == "".join(part.get("text", "") for part in parts if part["type"] == "output_text")


def see_messages(events: Events, done: bool) -> None:
    assert all(name == value["type"] for name, value in events)
    values = [value for _, value in events]
    assert (values[-1]["type"] == "message_stop") == done
    assert done or values[-1]["type"] == "error"
    opened, count = None, 0
    for at, value in enumerate(values):
        kind = value["type"]
        assert (kind == "message_start") == (at == 0) or kind == "error"
        if kind == "content_block_start":
            assert opened is None
            assert value["index"] == count
            opened, count = value["index"], count + 1
        elif kind in ("content_block_delta", "content_block_stop"):
            assert value["index"] == opened
            opened = None if kind.endswith("stop") else opened
        elif kind in ("message_delta", "message_stop"):
            assert opened is None
    if done:
        assert values[-2]["type"] == "message_delta"
        assert values[-2]["delta"]["stop_reason"]


def see_infer(events: Events, done: bool) -> None:
    *pieces, (last_name, last) = events
    assert all(name == "" and isinstance(value["text"], str) for name, value in pieces)
    assert bool(last.get("done")) == done
    assert done or last_name == "error"
    assert not done or last["text"] == "".join(value["text"] for _, value in pieces)


LIFECYCLES: dict[Endpoint, Callable[[Events, bool], None]] = {
    Endpoint.CHAT: see_chat,
    Endpoint.COMPLETIONS: see_completions,
    Endpoint.RESPONSES: see_responses,
    Endpoint.MESSAGES: see_messages,
    Endpoint.INFER: see_infer,
}
