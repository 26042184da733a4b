"""Heartbeats (R19): a silent stream says that it is alive, and nothing else about it changes."""

from __future__ import annotations

from slipstream.types import Endpoint
from slipstream.wire.faces import FACES
from tests.fakes import DONE, GOOD_STREAM, HANG, ROLE, World, delta, error_event, stream
from tests.virtual import run_virtual

PING = b": keep-alive\n\n"


def test_a_stream_that_flows_gets_none() -> None:
    async def main() -> None:
        world = World(
            {"a": [stream(ROLE, delta("x"), *[step for _ in range(50) for step in (4.0, delta("y"))], DONE)]},
            heartbeat_s=15.0,
        )
        exchange = await world.ask(stream=True)
        assert PING not in exchange.received

    run_virtual(main())


def test_silence_between_events() -> None:  # R19
    """At most two intervals of silence; between whole events; the events themselves are untouched."""

    async def main() -> None:
        world = World({"a": [stream(ROLE, delta("x"), 100.0, *GOOD_STREAM[1:])]}, heartbeat_s=15.0)
        exchange = await world.ask(stream=True)
        assert 5 <= exchange.received.count(PING) <= 6
        assert exchange.received.replace(PING, b"").startswith(ROLE + delta("x"))
        assert exchange.ended
        world.settled_once()

    run_virtual(main())


def test_silence_before_the_first_content_begins_the_answer() -> None:  # R19
    async def main() -> None:
        world = World({"a": [stream(40.0, *GOOD_STREAM)]}, heartbeat_s=15.0)
        exchange = await world.ask(stream=True)
        assert exchange.received.startswith(PING + GOOD_STREAM[0]) or exchange.received.startswith(PING + PING)
        assert exchange.headers["x-slipstream-provider"] == "a"
        assert exchange.ended
        world.settled_once()

    run_virtual(main())


def test_a_failure_before_the_first_heartbeat_has_its_status() -> None:  # R19
    async def main() -> None:
        world = World({"a": [stream(10.0, error_event(500))]}, heartbeat_s=15.0, retries=0)
        exchange = await world.ask(stream=True)
        assert exchange.status == 500
        assert not exchange.started

    run_virtual(main())


def test_after_a_heartbeat_another_target_may_still_answer() -> None:
    """R9: a heartbeat commits nothing."""

    async def main() -> None:
        world = World({"a": [stream(HANG)], "b": [stream()]}, heartbeat_s=15.0)
        exchange = await world.ask(stream=True)
        assert exchange.received.replace(PING, b"") == b"".join(s for s in GOOD_STREAM if b'"choices": []' not in s)
        assert world.asked == {"a": 1, "b": 1}
        world.settled_once()

    run_virtual(main())


def test_when_all_fail_after_a_heartbeat_the_stream_says_so() -> None:
    async def main() -> None:
        world = World({"a": [stream(HANG)]}, heartbeat_s=15.0, retries=0)
        exchange = await world.ask(stream=True)
        assert exchange.started
        assert b'data: {"error":' in exchange.received
        assert DONE not in exchange.received
        world.settled_once()

    run_virtual(main())


def test_zero_turns_them_off() -> None:
    async def main() -> None:
        world = World({"a": [stream(50.0, *GOOD_STREAM)]}, heartbeat_s=0.0)
        exchange = await world.ask(stream=True)
        assert PING not in exchange.received

    run_virtual(main())


def test_each_dialect_has_its_own() -> None:
    assert FACES[Endpoint.CHAT].ping == FACES[Endpoint.RESPONSES].ping == PING
    assert FACES[Endpoint.MESSAGES].ping == b'event: ping\ndata: {"type": "ping"}\n\n'
