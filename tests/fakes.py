"""The two ends of the engine, scripted: a client that is a list of what it saw, providers that follow a plan.

Time is that of the loop (use ``tests.virtual``): a number in a script is a pause in seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slipstream.config.snapshot import ProviderSpec, RoutingSpec, ServerSpec, Snapshot, Timeouts
from slipstream.engine.exchange import ClientGone
from slipstream.engine.pipeline import serve
from slipstream.engine.runtime import Runtime
from slipstream.net.upstream import UpstreamRequest
from slipstream.obs import families as f
from slipstream.obs.exposition import read
from slipstream.types import Endpoint, Secret
from slipstream.wire import headers as wire_headers
from tests.virtual import loop_now

HANG = float("inf")
Step = bytes | float | Exception
WALL = 1_700_000_000.0

BODIES = {
    Endpoint.CHAT: {"model": "m", "messages": [{"role": "user", "content": "Hello"}]},
    Endpoint.COMPLETIONS: {"model": "m", "prompt": "Hello"},
    Endpoint.EMBEDDINGS: {"model": "m", "input": "Hello"},
}
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def request_body(endpoint: Endpoint = Endpoint.CHAT, **more: Any) -> bytes:
    return json.dumps({**BODIES[endpoint], **more}).encode()


def answer(endpoint: Endpoint = Endpoint.CHAT, *, text: str = "Hi", usage: Any = USAGE) -> bytes:
    """A whole good reply."""
    reply: dict[str, Any] = {"id": "r", "model": "x"}
    if endpoint is Endpoint.EMBEDDINGS:
        reply["data"] = [{"index": 0, "embedding": [0.5]}]
    elif endpoint is Endpoint.COMPLETIONS:
        reply["choices"] = [{"index": 0, "text": text, "finish_reason": "stop"}]
    else:
        reply["choices"] = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    if usage is not None:
        reply["usage"] = usage
    return json.dumps(reply).encode()


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    """One chunk; without text a role-only one."""
    inner = {"role": "assistant", "content": ""} if text is None else {"content": text}
    return event({"id": "c", "choices": [{"index": 0, "delta": inner, "finish_reason": finish}], **more})


ROLE = delta()
FINISH = event({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
USAGE_EVENT = event({"id": "c", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
GOOD_STREAM = (ROLE, delta("Hel"), delta("lo"), FINISH, USAGE_EVENT, DONE)


def error_event(status: int, message: str = "it broke") -> bytes:
    return event({"error": {"message": message, "code": status}})


@dataclass
class Plan:
    """What a provider does with one request: wait, then fail, or answer with a status and the steps of a body."""

    steps: tuple[Step, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    fail: Exception | None = None


def ok(endpoint: Endpoint = Endpoint.CHAT, **more: Any) -> Plan:
    return Plan((answer(endpoint, **more),))


def stream(*steps: Step) -> Plan:
    return Plan(steps or GOOD_STREAM)


def refuse(status: int, message: str = "no", **headers: str) -> Plan:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
    return Plan((body,), status, {k.replace("_", "-"): v for k, v in headers.items()})


class FakeReply:
    complete = False

    def take(self) -> bytes:
        raise AssertionError("nothing to take")

    def __init__(self, plan: Plan) -> None:
        self.status = plan.status
        self.headers = plan.headers
        self.left = list(plan.steps)
        self.at_end = False
        self.closed_at: float | None = None
        self.lingered_s = 0.0

    async def chunk(self) -> bytes:
        assert self.closed_at is None, "read after close"
        while self.left:
            step = self.left.pop(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, bytes):
                return step
            await pause(step)
        self.at_end = True
        return b""

    async def read(self, limit: int) -> bytes:
        raise AssertionError("the engine reads piece by piece")

    def linger(self, seconds: float) -> None:
        """What a transport does with the rest of the body is its own business, and tested there."""
        self.lingered_s = seconds
        self.close()

    def close(self) -> None:
        if self.closed_at is None:
            self.closed_at = loop_now().time()


async def pause(seconds: float) -> None:
    if seconds == HANG:
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(seconds)


class FakeUpstream:
    """One provider. Follows its plans in turn, the last one for ever; remembers what it was sent."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = list(plans) or [ok()]
        self.requests: list[UpstreamRequest] = []
        self.replies: list[FakeReply] = []
        self.sending = 0
        self.closed = False
        self.lists: list[Plan] = []
        """What its list of models answers, in turn, the last one for ever."""
        self.listed_at: list[float] = []

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[Any, Any]:
        return url, dict(headers)

    async def send(self, request: UpstreamRequest) -> FakeReply:
        assert not self.closed, "sent on a closed transport (R42)"
        self.requests.append(request)
        plan = self.plans[min(len(self.requests), len(self.plans)) - 1]
        self.sending += 1
        try:
            await pause(plan.wait_s)
        finally:
            self.sending -= 1
        if plan.fail is not None:
            raise plan.fail
        reply = FakeReply(plan)
        self.replies.append(reply)
        return reply

    async def get(self, url: Any, headers: Any, *, connect_s: float) -> FakeReply:
        assert self.lists, "the data plane sends POST only"
        assert not self.closed, "sent on a closed transport (R42)"
        self.listed_at.append(loop_now().time())
        plan = self.lists[min(len(self.listed_at), len(self.lists)) - 1]
        await pause(plan.wait_s)
        if plan.fail is not None:
            raise plan.fail
        reply = FakeReply(plan)
        self.replies.append(reply)
        return reply

    async def close(self) -> None:
        self.closed = True

    def stats(self) -> Mapping[str, int]:
        return {"connections_made": len(self.requests), "connections_reused": 0, "replays": 0}

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(r.body) for r in self.requests]

    @property
    def all_closed(self) -> bool:
        return not self.sending and all(r.closed_at is not None for r in self.replies)


def _fields(headers: Mapping[str, str] | bytes) -> Mapping[str, str]:
    """A block as a mapping; no field twice."""
    if not isinstance(headers, bytes):
        return headers
    pairs = wire_headers.fields(headers)
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return dict(pairs)


class FakeExchange:
    """A client. ``gone_at`` names the call at which it is found to have left (``begin``, ``write2``, ``end``);
    ``pauses`` makes calls slow.
    """

    def __init__(
        self, body: bytes | Exception, *, gone_at: str = "", pauses: Mapping[str, float] | None = None
    ) -> None:
        self.request_id = "req-1"
        self.started = False
        self.ended = False
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.received = b""
        self.replies = 0
        self.fields: dict[str, str] = {}
        self._body = body
        self._gone_at = gone_at
        self._pauses = pauses or {}
        self._writes = 0

    asked_s: float | None = None

    def header(self, name: str) -> str | None:
        return self.fields.get(name)

    async def _at(self, *names: str) -> None:
        for name in names:
            if name in self._pauses:
                await pause(self._pauses[name])
            if name == self._gone_at:
                raise ClientGone

    async def body(self) -> bytes:
        await self._at("body")
        if isinstance(self._body, Exception):
            raise self._body
        return self._body

    def reply(self, status: int, headers: Mapping[str, str] | bytes, body: bytes) -> None:
        assert not self.started, "a whole reply behind a stream's status line (R11)"
        self.replies += 1
        self.status, self.headers, self.received = status, _fields(headers), body

    async def begin(self, headers: Mapping[str, str] | bytes) -> None:
        assert not self.started, "two start frames (R11)"
        self.started = True
        self.status, self.headers = 200, _fields(headers)
        await self._at("begin")

    def _must_be_open(self) -> None:
        assert self.started
        assert not self.ended, "something behind the end of a stream"

    async def write(self, data: bytes) -> None:
        self._must_be_open()
        self._writes += 1
        await self._at("write", f"write{self._writes}")
        self.received += data

    async def end(self) -> None:
        self._must_be_open()
        await self._at("end")
        self.ended = True

    @property
    def json(self) -> Any:
        return json.loads(self.received)

    @property
    def events(self) -> list[Any]:
        """The stream's events, decoded; ``[DONE]`` as it is."""
        assert self.received.endswith(b"\n\n"), "half an event"
        data = [part.removeprefix(b"data: ") for part in self.received.split(b"\n\n")[:-1]]
        return [d.decode() if d == b"[DONE]" else json.loads(d) for d in data if not d.startswith(b":")]


def spec(name: str, **more: Any) -> ProviderSpec:
    values: dict[str, Any] = {
        "type": "openai",
        "api_base": f"https://{name}.test/v1",
        "api_key": Secret(f"canary-key-{name}"),
        "models": ("m",),
    }
    return ProviderSpec(name=name, **{**values, **more})


def snapshot(*providers: ProviderSpec, retries: int = 2, heartbeat_s: float = 0.0, **more: Any) -> Snapshot:
    names = {field.name for field in dataclasses.fields(RoutingSpec)}
    routing = RoutingSpec(retries=retries, **{name: more.pop(name) for name in list(more) if name in names})
    server = ServerSpec(master_api_key=Secret("canary-master-key"), access_log=True, heartbeat_s=heartbeat_s)
    return Snapshot(server=server, routing=routing, providers=providers, **more)


class World:
    """A runtime over fakes: ``World({"a": [plan, ...]})``; must be made inside a virtual loop."""

    def __init__(
        self,
        plans: Mapping[str, list[Plan]],
        *,
        retries: int = 2,
        timeouts: Timeouts = Timeouts(),  # noqa: B008
        make: Callable[..., ProviderSpec] = spec,
        **more: Any,
    ) -> None:
        self.upstreams = {name: FakeUpstream(*wanted) for name, wanted in plans.items()}
        self.snapshot = snapshot(*(make(name, timeouts=timeouts) for name in plans), retries=retries, **more)
        self.runtime = Runtime(
            self.snapshot, lambda s, _: self.upstreams[s.name], clock=loop_now().time, wall=lambda: WALL
        )

    async def ask(
        self, endpoint: Endpoint = Endpoint.CHAT, *, body: bytes | Exception | None = None, **more: Any
    ) -> FakeExchange:
        """Serve one request. ``gone_at`` and ``pauses`` are the client's, the rest are members of the body."""
        client = {key: more.pop(key) for key in ("gone_at", "pauses") if key in more}
        exchange = FakeExchange(request_body(endpoint, **more) if body is None else body, **client)
        await serve(self.runtime, exchange, endpoint, "default")
        return exchange

    @property
    def asked(self) -> dict[str, int]:
        return {name: len(u.requests) for name, u in self.upstreams.items()}

    def row(self, name: str) -> int:
        """The row of the one target of a provider."""
        (row,) = (t.row for t in self.runtime.active.routes.targets if t.provider.name == name)
        return row

    def series(self, family: f.Family) -> dict[tuple[str, ...], list[int]]:
        """What the table holds of a family: values by labels."""
        return read(self.runtime.shared.series)[family.name]

    def counted(self, family: f.Family) -> dict[tuple[str, ...], int]:
        """The first value of every series of a family that was ever counted."""
        return {labels: values[0] for labels, values in self.series(family).items() if any(values)}

    @property
    def finished(self) -> dict[str, int]:
        """Settled requests by status."""
        out: dict[str, int] = {}
        for key, count in self.counted(f.REQUESTS).items():
            out[key[4]] = out.get(key[4], 0) + count
        return out

    def settled_once(self, requests: int = 1) -> None:
        """Nothing in flight, each request counted once, every upstream connection given back (R51)."""
        assert sum(self.finished.values()) == requests
        assert sum(sum(values[:-1]) for values in self.series(f.DURATION).values()) == requests
        assert self.runtime.in_flight == 0
        assert self.counted(f.ACTIVE) == {}
        assert self.runtime.metrics.dropped == 0
        assert self.runtime.active.in_flight == 0
        assert all(u.all_closed for u in self.upstreams.values())
