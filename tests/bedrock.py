"""A stand-in for Bedrock that believes no signature, and a stand-in for the place where containers get credentials.

Owns: what AWS checks of a signed request. The signature is computed again by botocore's own signer from the bytes that
came, so a gateway that signs one thing and sends another is found out. Answers are recorded ones (``tests.recorded``).

The rule that must not be broken: no request is answered that AWS would have refused.
"""

from __future__ import annotations

import base64
import calendar
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count, cycle
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from tests.recorded import BEDROCK, payload_of
from tests.upstreams import Peer, upstream

SERVICE = "bedrock"
SKEW_S = 300.0
MUST_SIGN = {"host", "x-amz-date"}
# Recordings whose text does not depend on what was asked.
PLAIN = re.compile(r"bedrock\.(converse\.(text|reasoning|multi-turn|stop-length)(-stream)?\.|seed)")
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>\w+)/(?P<date>[0-9]{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z]+)"
    r"/aws4_request, SignedHeaders=(?P<names>[a-z0-9;-]+), Signature=(?P<signature>[0-9a-f]{64})"
)
_TARGET = re.compile(r"/model/(?P<model>[^/:]+)/(?P<action>converse|converse-stream)")
Clock = Callable[[], float]


class Login(NamedTuple):
    """One set of credentials, and when it ends."""

    secret: str
    token: str = ""
    ends: float = float("inf")


Account = dict[str, Login]
"""By access key."""


class Refused(Exception):
    """AWS's error: ``type`` as in ``x-amzn-ErrorType``."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.type = status, type


class Served(NamedTuple):
    """A request whose signature was right."""

    key: str
    model: str
    action: str
    body: dict[str, object]


class Request:
    """What came, as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.path, _ = first.split(" ")
        pairs = [line.partition(":")[::2] for line in lines]
        self.headers = {name.lower(): value.strip() for name, value in pairs}
        assert len(self.headers) == len(pairs), "a header came twice"
        self.body = body


class Bedrock:
    """One region. ``served`` and ``refused`` (types of errors) tell what happened; ``throttled``: 429 to everybody."""

    def __init__(self, region: str, account: Account, wall: Clock = time.time) -> None:
        self.region = region
        self.account = account
        self.wall = wall
        self.port = 0
        self.served: list[Served] = []
        self.refused: list[str] = []
        self.throttled = False
        self.whole = _turns("chat", _text_of_reply)
        self.streams = _turns("stream", _text_of_stream)
        self.texts = {text for turns in (self.whole, self.streams) for _, text in turns}
        self._next_whole = cycle(self.whole)
        self._next_stream = cycle(self.streams)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> set[str]:
        return {one.key for one in self.served}

    async def serve(self, peer: Peer) -> None:
        while (got := await peer.request()) is not None:
            try:
                one = self.check(Request(*got))
            except Refused as error:
                self.refused.append(error.type)
                body = json.dumps({"message": str(error)}).encode()
                type_url = f"{error.type}:http://internal.amazon.com/coral/com.amazon.bedrock/"
                await peer.send(_whole(error.status, body, f"x-amzn-ErrorType: {type_url}\r\n"))
                continue
            self.served.append(one)
            if one.action == "converse":
                await peer.send(_whole(200, next(self._next_whole)[0]))
            else:
                await peer.send(*_chunked(next(self._next_stream)[0]))

    def check(self, request: Request) -> Served:
        """As AWS does. Raises ``Refused``."""
        found = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
        if found is None:
            raise Refused(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
        login = self.account.get(found["key"])
        token = request.headers.get("x-amz-security-token", "")
        if login is None or token != login.token:
            raise Refused(403, "UnrecognizedClientException", "The security token included in the request is invalid.")
        if (found["region"], found["service"]) != (self.region, SERVICE):
            raise Refused(403, "InvalidSignatureException", "Credential should be scoped to a valid region.")
        self._check_time(request, found["date"])
        names = set(found["names"].split(";"))
        must = MUST_SIGN | ({"x-amz-security-token"} if token else set())
        if not must <= names or request.headers["host"] != f"127.0.0.1:{self.port}":
            raise Refused(403, "InvalidSignatureException", "Host, date and token must be signed.")
        text, signature = botocore_signature(request, found["key"], login, self.region, names)
        if signature != found["signature"]:
            said = f"The request signature we calculated does not match. The Canonical String should have been\n{text}"
            raise Refused(403, "InvalidSignatureException", said)
        if self.wall() >= login.ends:
            raise Refused(403, "ExpiredTokenException", "The security token included in the request is expired")
        if self.throttled:
            raise Refused(429, "ThrottlingException", "Too many requests, please wait before trying again.")
        target = _TARGET.fullmatch(request.path)
        if target is None or request.method != "POST":
            raise Refused(404, "UnknownOperationException", "Model ids in paths are escaped.")
        return Served(found["key"], unquote(target["model"]), target["action"], json.loads(request.body))

    def _check_time(self, request: Request, date: str) -> None:
        stamp = request.headers.get("x-amz-date", "")
        try:
            at = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
        except ValueError:
            raise Refused(403, "IncompleteSignatureException", "Date must be in ISO-8601 'basic format'.") from None
        if not stamp.startswith(date) or abs(at - self.wall()) > SKEW_S:
            raise Refused(403, "InvalidSignatureException", "Signature expired")


def botocore_signature(request: Request, key: str, login: Login, region: str, names: set[str]) -> tuple[str, str]:
    """The canonical request and the signature that botocore makes of what came."""
    auth = pytest.importorskip("botocore.auth", reason="the extra 'bedrock' is not installed")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    signed = {name: request.headers[name] for name in names if name in request.headers}
    url = f"http://{request.headers['host']}{request.path}"
    theirs = AWSRequest(method=request.method, url=url, headers=signed, data=request.body)
    theirs.context["timestamp"] = request.headers["x-amz-date"]
    signer = auth.SigV4Auth(Credentials(key, login.secret, login.token or None), SERVICE, region)
    canonical = signer.canonical_request(theirs)
    return canonical, signer.signature(signer.string_to_sign(theirs, canonical), theirs)


@asynccontextmanager
async def bedrock(region: str, account: Account, wall: Clock = time.time) -> AsyncIterator[Bedrock]:
    standin = Bedrock(region, account, wall)
    async with upstream(standin.serve) as up:
        standin.port = up.port
        yield standin


# ------------------------------------------------------------------ credentials that end


class Vending:
    """What containers ask (``AWS_CONTAINER_CREDENTIALS_FULL_URI``): each answer is a new login that ends soon.

    ``broken``: the body of its next errors. ``asked`` counts all requests.
    """

    def __init__(self, account: Account, life_s: float, pass_word: str, secret: str = "secret/+") -> None:
        self.account = account
        self.life_s = life_s
        self.pass_word = pass_word
        self.secret = secret
        self.port = 0
        self.asked = 0
        self.broken: bytes | None = None
        self._numbers = count(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/credentials"

    def issue(self) -> dict[str, str]:
        number, ends = next(self._numbers), time.time() + self.life_s
        key = f"ASIA{number:04}"
        # real tokens are long and hold '/', '+' and '='
        token = base64.b64encode(f"{self.secret}{number}".encode() * 40).decode()
        self.account[key] = Login(f"{self.secret}{number}", token, ends)
        iso = datetime.fromtimestamp(ends, UTC).isoformat()
        return {"AccessKeyId": key, "SecretAccessKey": f"{self.secret}{number}", "Token": token, "Expiration": iso}

    async def serve(self, peer: Peer) -> None:
        while (got := await peer.request()) is not None:
            self.asked += 1
            if Request(*got).headers.get("authorization") != self.pass_word:
                await peer.send(_whole(401, b"{}"))
            elif self.broken is not None:
                await peer.send(_whole(400, self.broken))
            else:
                await peer.send(_whole(200, json.dumps(self.issue()).encode()))


@asynccontextmanager
async def vending(account: Account, life_s: float, pass_word: str, secret: str = "secret/+") -> AsyncIterator[Vending]:
    source = Vending(account, life_s, pass_word, secret)
    async with upstream(source.serve) as up:
        source.port = up.port
        yield source


# ------------------------------------------------------------------ answers


def _turns(endpoint: str, text_of: Callable[[bytes], str]) -> list[tuple[bytes, str]]:
    """Answers and the text that is in each."""
    found = [e.body for e in BEDROCK.exchanges(endpoint) if e.good and PLAIN.match(e.id)]
    assert found, f"no answers for {endpoint}"
    return [(body, text_of(body)) for body in found]


def _text_of_reply(body: bytes) -> str:
    content = json.loads(body)["output"]["message"]["content"]
    return "".join(block["text"] for block in content if "text" in block)


def _text_of_stream(body: bytes) -> str:
    parts = [payload_of("frames", event) for event in BEDROCK.split(body)]
    deltas = [json.loads(part[1]).get("delta", {}) for part in parts if part is not None]
    return "".join(delta.get("text", "") for delta in deltas)


def _whole(status: int, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _chunked(stream: bytes) -> list[bytes]:
    """Each frame in a chunk of its own; nothing waits for anything."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(frame), frame) for frame in BEDROCK.split(stream))
    return [head, chunks + b"0\r\n\r\n"]
