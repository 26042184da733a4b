"""The straight line of a request between a scripted client and scripted providers, in virtual time: what is answered,
when another target is tried, how a stream fails, what each limit does."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from slipstream.config.snapshot import Timeouts
from slipstream.engine.relay import LINGER_S, MAX_HELD_BYTES
from slipstream.errors import ConnectFailed, MalformedReply, TransportError, UpstreamTimeout
from slipstream.obs.families import FAILOVERS, RETRIES, TOKENS
from slipstream.providers.base import OPENAI_ENDPOINTS
from slipstream.types import Endpoint, Secret
from tests.fakes import (
    DONE,
    FINISH,
    GOOD_STREAM,
    HANG,
    ROLE,
    USAGE_EVENT,
    Plan,
    World,
    answer,
    delta,
    error_event,
    ok,
    refuse,
    request_body,
    spec,
    stream,
)
from tests.virtual import loop_now, run_virtual

CHAT = Endpoint.CHAT
STREAMED = (Endpoint.CHAT, Endpoint.COMPLETIONS)
LIMITS = Timeouts(connect_s=5, first_byte_s=30, idle_s=60, total_s=100)
RESET = TransportError()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "slipstream.request")


def broken_stream_is_honest(exchange: Any) -> Any:
    """One in-band error, last, no ``[DONE]`` (R12); returns the error."""
    assert exchange.ended
    assert exchange.status == 200
    assert "[DONE]" not in exchange.events
    assert ["error" in e for e in exchange.events].count(True) == 1
    return exchange.events[-1]["error"]


# ---- success ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
def test_a_whole_reply_passes_as_it_is(endpoint: Endpoint) -> None:
    async def main() -> None:
        world = World({"a": [ok(endpoint)]})
        exchange = await world.ask(endpoint)
        assert (exchange.status, exchange.received) == (200, answer(endpoint))
        assert exchange.headers == {"Content-Type": "application/json", "x-slipstream-provider": "a"}
        request = world.upstreams["a"].requests[0]
        assert request.url == "https://a.test/v1" + endpoint.path.removeprefix("/v1")
        assert request.body == request_body(endpoint)
        assert world.finished == {"200": 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("endpoint", STREAMED)
def test_a_stream_passes_as_it_is(endpoint: Endpoint) -> None:
    async def main() -> None:
        world = World({"a": [stream(ROLE, 1.0, *GOOD_STREAM[1:])]})
        exchange = await world.ask(endpoint, stream=True, stream_options={"include_usage": True})
        assert exchange.received == b"".join(GOOD_STREAM)
        assert exchange.ended
        assert exchange.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert exchange.headers["x-slipstream-provider"] == "a"
        world.settled_once()

    run_virtual(main())


def test_the_first_content_is_not_held_back() -> None:
    async def main() -> None:
        world = World({"a": [stream(ROLE, delta("x"), HANG)]})
        exchange = await world.ask(stream=True)
        assert exchange.received.startswith(ROLE + delta("x"))

    run_virtual(main())


@pytest.mark.parametrize("asked", [True, False])
def test_usage_is_always_asked_for_and_stripped_again(asked: bool) -> None:  # R68
    async def main() -> None:
        world = World({"a": [stream()]})
        more: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
        exchange = await world.ask(stream=True, **more)
        assert world.upstreams["a"].bodies[0]["stream_options"] == {"include_usage": True}
        assert (USAGE_EVENT in exchange.received) == asked
        assert exchange.received.endswith(DONE)
        assert world.series(TOKENS) == {("m", "a", "default"): [11, 7]}

    run_virtual(main())


@pytest.mark.parametrize("type_", ["groq", "mistral"])
def test_providers_that_report_usage_are_not_asked(type_: str) -> None:
    async def main() -> None:
        world = World({"a": [stream()]}, make=lambda name, **kw: spec(name, type=type_, **kw))
        await world.ask(stream=True, max_completion_tokens=5)
        body = world.upstreams["a"].bodies[0]
        assert "stream_options" not in body
        assert ("max_tokens" in body) == (type_ == "mistral")

    run_virtual(main())


def test_finish_without_done_gets_one() -> None:  # S-35
    async def main() -> None:
        world = World({"a": [stream(delta("x"), FINISH)]})
        exchange = await world.ask(stream=True)
        assert exchange.received == delta("x") + FINISH + DONE
        assert world.finished == {"200": 1}

    run_virtual(main())


@pytest.mark.parametrize("tail", [(), (0.01,), (HANG,), (RESET,), (0.01, b"late bytes", 0.01)])
def test_what_follows_done_changes_nothing(tail: tuple[Any, ...]) -> None:
    """The answer is complete and counted at once; the end of the body is left to the transport, for a moment."""

    async def main() -> None:
        world = World({"a": [stream(*GOOD_STREAM, *tail)]})
        exchange = await world.ask(stream=True)
        assert exchange.received.endswith(DONE)
        assert loop_now().time() == 0.0
        assert world.upstreams["a"].replies[0].lingered_s == LINGER_S
        assert world.finished == {"200": 1}
        assert world.runtime.active.cooldowns.failures_in_a_row(world.row("a")) == 0
        world.settled_once()

    run_virtual(main())


# ---- another target before the first content -------------------------------------------------------------------------

FAILURES = {
    "connect": Plan(fail=ConnectFailed("no connection")),
    "connect time-out": Plan(fail=UpstreamTimeout("connect", 5)),
    "first byte": Plan(wait_s=HANG),
    "reset": Plan(fail=RESET),
    "bad http": Plan(fail=MalformedReply("x")),
    "408": refuse(408),
    "429": refuse(429),
    "500": refuse(500),
    "502 html": Plan((b"<html>",), 502),
    "503": refuse(503),
    "504": refuse(504),
    "529": refuse(529),
    "redirect": Plan((b"",), 307),
    "101": Plan((b"",), 101),
    "error body cut": Plan((b'{"error', RESET), 500),
    "error body without end": Plan((b'{"error":"' + b"x" * 70_000,), 503),
    "empty 200": Plan(),
    "not json": Plan((b"<html>",)),
    "wrong shape": Plan((b"{}",)),
    "error in 200": Plan((b'{"error":{"message":"x","code":503}}',)),
    "body cut": Plan((b'{"choices":[', RESET)),
    "body stalls": Plan((b'{"choices":[', HANG)),
}


@pytest.mark.parametrize("plan", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_failover_before_the_first_byte(endpoint: Endpoint, plan: Plan, streamed: bool) -> None:  # R16, R10, R55
    if streamed and endpoint is Endpoint.EMBEDDINGS:
        return

    async def main() -> None:
        good = stream() if streamed else ok(endpoint)
        world = World({"a": [plan], "b": [good]}, timeouts=LIMITS)
        exchange = await world.ask(endpoint, stream=streamed)
        assert exchange.status == 200
        assert exchange.headers["x-slipstream-provider"] == "b"
        assert exchange.headers["x-slipstream-attempts"] == "2"
        assert exchange.ended == streamed
        assert b"error" not in exchange.received
        assert world.asked == {"a": 1, "b": 1}
        assert world.runtime.active.cooldowns.resting(world.row("a"), loop_now().time())
        assert world.counted(FAILOVERS) == {(): 1}
        assert world.finished == {"200": 1}
        world.settled_once()

    run_virtual(main())


LIFECYCLE_FAILURES = {
    "error first": (error_event(429),),
    "role, then error": (ROLE, error_event(503)),
    "comments, then error": (b": PROCESSING\n\n", b": PROCESSING\n\n", error_event(502)),
    "usage preview, then error": (ROLE, USAGE_EVENT, error_event(500)),
    "role, then cut": (ROLE, RESET),
    "role, then the end": (ROLE,),
    "role, then silence": (ROLE, HANG),
    "role, then html": (ROLE, b"<html>\n\n"),
    "role and content and error at once": (ROLE + delta("x") + error_event(500),),
    "bare json": (b'{"error":{"message":"x","code":429}}',),
    "bare json in pieces": (b'{"error":{"mes', b'sage":"x","code":429}}'),
    "a whole reply": (answer(),),
    "nothing": (),
}


@pytest.mark.parametrize("steps", LIFECYCLE_FAILURES.values(), ids=LIFECYCLE_FAILURES)
@pytest.mark.parametrize("endpoint", STREAMED)
def test_lifecycle_frames_do_not_commit(endpoint: Endpoint, steps: tuple[Any, ...]) -> None:  # R9, R11, S-05, S-37
    async def main() -> None:
        world = World({"a": [Plan(steps)], "b": [stream()]}, timeouts=LIMITS)
        exchange = await world.ask(endpoint, stream=True)
        assert exchange.received == b"".join(GOOD_STREAM).replace(USAGE_EVENT, b"")
        assert world.finished == {"200": 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("steps", LIFECYCLE_FAILURES.values(), ids=LIFECYCLE_FAILURES)
def test_when_all_fail_before_the_first_byte_it_is_an_http_error(steps: tuple[Any, ...]) -> None:  # R11, S-37
    async def main() -> None:
        world = World({"a": [Plan(steps)], "b": [Plan(steps)]}, timeouts=LIMITS)
        exchange = await world.ask(stream=True)
        assert not exchange.started
        assert exchange.replies == 1
        assert exchange.status >= 429
        assert set(exchange.json["error"]) >= {"message", "type", "param", "code"}
        assert world.asked == {"a": 1, "b": 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
def test_what_another_target_would_refuse_too_is_not_retried(endpoint: Endpoint, status: int) -> None:  # R54, Q06
    async def main() -> None:
        world = World({"a": [refuse(status, "because")], "b": [ok(endpoint)]})
        exchange = await world.ask(endpoint)
        assert exchange.status == status
        assert world.asked == {"a": 1, "b": 0}
        assert not world.runtime.active.cooldowns.resting(world.row("a"), 0.0)
        assert "x-should-retry" not in exchange.headers
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize(("status", "told"), [(401, 502), (402, 402)])
def test_a_refused_or_spent_key_is_the_end_for_that_key_only(status: int, told: int) -> None:  # Q06d, S-28, S-49, R56
    async def main() -> None:
        world = World({"a": [refuse(status, "because")], "b": [ok()]})
        assert (await world.ask()).status == 200
        assert world.asked == {"a": 1, "b": 1}
        assert world.runtime.active.cooldowns.remaining_s(world.row("a"), 0.0) == 300
        world.settled_once()

        def same_key(name: str, **kw: Any) -> Any:
            return spec(name, api_key=Secret("one key"), **kw)

        world = World({"a": [refuse(status, "because")], "b": [ok()]}, make=same_key)
        assert (await world.ask()).status == told
        assert world.asked == {"a": 1, "b": 0}
        world.settled_once()

    run_virtual(main())


def test_each_target_is_tried_once_and_not_more_than_retries_allow() -> None:  # Q05
    async def main() -> None:
        for retries, names, attempts in ((2, "ab", 2), (2, "abcd", 3), (0, "ab", 1), (5, "abc", 3)):
            world = World({n: [refuse(503)] for n in names}, retries=retries)
            assert (await world.ask()).status == 503
            assert sum(world.asked.values()) == attempts
            assert max(world.asked.values()) == 1
            world.settled_once()

    run_virtual(main())


def test_every_attempt_starts_from_the_original_bytes() -> None:  # R59, Q10
    async def main() -> None:
        def make(name: str, **kw: Any) -> Any:
            return spec(name, models=(), model_mapping={"m": {"a": "m", "b": "other", "c": "m"}[name]}, **kw)

        world = World({"a": [refuse(500)], "b": [refuse(500)], "c": [ok()]}, make=make)
        body = b'{ "model" :"m","messages":[],"x":1e400}'
        await world.ask(body=body)
        sent = {name: u.requests[0].body for name, u in world.upstreams.items()}
        assert sent == {"a": body, "b": body.replace(b'"m"', b'"other"'), "c": body}
        assert sent["a"] is sent["c"]

    run_virtual(main())


def test_a_resting_target_is_left_alone_until_it_may_be_asked_again() -> None:  # S-25
    async def main() -> None:
        world = World({"a": [refuse(429, retry_after="20"), ok()], "b": [ok()]})
        for _ in range(10):
            assert (await world.ask()).status == 200
        assert world.asked["a"] == 1
        loop_now().now += 20
        for _ in range(4):
            await world.ask()
        assert world.asked["a"] == 3

    run_virtual(main())


@pytest.mark.parametrize("catch_all", [True, False])
def test_a_fallback_model_is_tried_when_the_first_cannot(catch_all: bool) -> None:
    async def main() -> None:
        models = () if catch_all else ("m", "n")
        world = World(
            {"a": [refuse(429), ok()]}, make=lambda n, **kw: spec(n, models=models, **kw), fallbacks={"m": ("n",)}
        )
        exchange = await world.ask()
        assert exchange.status == 200
        assert [b["model"] for b in world.upstreams["a"].bodies] == ["m", "n"]
        world.settled_once()

    run_virtual(main())


def test_a_fallback_to_the_same_upstream_model_is_not_the_same_request_twice() -> None:
    async def main() -> None:
        world = World(
            {"a": [refuse(500)]},
            make=lambda n, **kw: spec(n, models=(), model_mapping={"m": "x", "n": "x"}, **kw),
            fallbacks={"m": ("n", "unknown")},
        )
        assert (await world.ask()).status == 500
        assert world.asked == {"a": 3}, "the same again (Q09), and no more of them than for one model"
        assert world.counted(RETRIES) == {(): 2}

    run_virtual(main())


# ---- after the first content -----------------------------------------------------------------------------------------

MID_FAILURES = {
    "reset": ((RESET,), "upstream_connection_closed"),
    "end": ((), "upstream_incomplete"),
    "half an event": ((b'data: {"choices":[{"del', RESET), "upstream_connection_closed"),
    "error": ((error_event(429),), "429"),
    "html": ((b"<html>oops</html>\n\n",), "upstream_malformed_response"),
    "silence": ((HANG,), "upstream_idle_timeout"),
    "role again, then silence": ((ROLE, HANG), "upstream_idle_timeout"),
}


@pytest.mark.parametrize(("steps", "code"), MID_FAILURES.values(), ids=MID_FAILURES)
@pytest.mark.parametrize("endpoint", STREAMED)
def test_after_content_a_failure_is_one_error_event(
    endpoint: Endpoint, steps: tuple[Any, ...], code: str
) -> None:  # R12, Q07, S-06, S-10, S-11, S-36
    async def main() -> None:
        world = World({"a": [stream(ROLE, delta("Hel"), *steps)], "b": [stream()]}, timeouts=LIMITS)
        exchange = await world.ask(endpoint, stream=True)
        assert exchange.received.startswith(ROLE + delta("Hel"))
        assert str(broken_stream_is_honest(exchange)["code"]) == code
        assert world.asked == {"a": 1, "b": 0}
        assert world.finished == {"200": 1}
        assert world.runtime.active.cooldowns.resting(world.row("a"), loop_now().time())
        world.settled_once()

    run_virtual(main())


def test_what_came_before_the_error_in_one_chunk_is_relayed() -> None:
    async def main() -> None:
        world = World({"a": [stream(delta("a"), delta("b") + error_event(500))]})
        exchange = await world.ask(stream=True)
        assert exchange.received.startswith(delta("a") + delta("b"))
        broken_stream_is_honest(exchange)

    run_virtual(main())


def test_endless_lifecycle_frames_are_not_held_for_ever() -> None:  # R33
    async def main() -> None:
        comment = b":" + b"x" * 1000 + b"\n\n"
        steps = [comment] * (MAX_HELD_BYTES // 1000 + 1)
        world = World({"a": [stream(*steps, *GOOD_STREAM)]})
        exchange = await world.ask(stream=True)
        assert exchange.received.startswith(comment * 100)
        assert exchange.received.endswith(DONE)

    run_virtual(main())
